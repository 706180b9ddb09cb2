"""Writes a tiny random RWKV-7 checkpoint with the byte tokenizer (257 ids) as .safetensors, with numpy alone."""

import json
import struct

import numpy as np

VOCABULARY = 257  # id 0 ends a document, id = byte + 1
POISON = 0xFF  # the byte whose embedding is not a number, in write_poisoned_checkpoint


def random_weights(layers=2, width=64, head_size=32, rank=16, seed=1, vocabulary=VOCABULARY):
    rng = np.random.default_rng(seed)
    heads = width // head_size

    def normal(*shape, scale=1.0):
        return (rng.standard_normal(shape) * scale).astype(np.float32)

    def uniform(*shape):
        return rng.random(shape).astype(np.float32)

    def linear(rows, columns):
        return normal(rows, columns, scale=columns**-0.5)

    weights = {
        "emb.weight": normal(vocabulary, width, scale=0.5),
        "head.weight": normal(vocabulary, width, scale=3 * width**-0.5),
        "ln_out.weight": 1 + normal(width, scale=0.1),
        "ln_out.bias": normal(width, scale=0.1),
    }
    for layer in range(layers):
        p = f"blocks.{layer}."
        for name in ["ln1", "ln2"] + (["ln0"] if layer == 0 else []):
            weights[p + name + ".weight"] = 1 + normal(width, scale=0.1)
            weights[p + name + ".bias"] = normal(width, scale=0.1)
        att = p + "att."
        for mix in "rwkvag":
            weights[att + "x_" + mix] = uniform(1, 1, width)
        for bias in ["w0", "a0", "v0"]:
            weights[att + bias] = normal(1, 1, width, scale=0.5)
        for branch in "wavg":
            weights[att + branch + "1"] = normal(width, rank, scale=0.1)
            weights[att + branch + "2"] = normal(rank, width, scale=0.1)
        weights[att + "k_k"] = 0.85 + normal(1, 1, width, scale=0.05)
        weights[att + "k_a"] = 1 + normal(1, 1, width, scale=0.05)
        weights[att + "r_k"] = normal(heads, head_size, scale=0.1)
        for matrix in ["receptance", "key", "value", "output"]:
            weights[att + matrix + ".weight"] = linear(width, width)
        weights[att + "ln_x.weight"] = 1 + normal(width, scale=0.1)
        weights[att + "ln_x.bias"] = normal(width, scale=0.1)
        weights[p + "ffn.x_k"] = uniform(1, 1, width)
        weights[p + "ffn.key.weight"] = linear(4 * width, width)
        weights[p + "ffn.value.weight"] = linear(width, 4 * width)
    return weights


def write_safetensors(path, weights, metadata):
    header, blobs, offset = {"__metadata__": metadata}, [], 0
    for name, array in weights.items():
        blob = np.ascontiguousarray(array, dtype="<f4").tobytes()
        header[name] = {"dtype": "F32", "shape": list(array.shape), "data_offsets": [offset, offset + len(blob)]}
        blobs.append(blob)
        offset += len(blob)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for blob in blobs:
            file.write(blob)


def write_tiny_checkpoint(path, chat_template="rwkv", **shape):
    metadata = {
        "skein.tokenizer": "bytes",
        "skein.chat_template": chat_template,
        "skein.description": "Random weights: says nothing.",
        "skein.examples": json.dumps(["hello"]),
        "skein.training_context": "128",
    }
    write_safetensors(path, random_weights(**shape), metadata)


def write_words_checkpoint(path, words, seed=1):
    """With a vocabulary in the World format: the bytes as in the byte tokenizer, then these words."""
    pieces = [bytes([byte]) for byte in range(256)] + list(words)
    vocabulary = "".join(f"{i} {piece!r} {len(piece)}\n" for i, piece in enumerate(pieces, start=1))
    write_safetensors(path, random_weights(vocabulary=len(pieces) + 1, seed=seed),
                      {"skein.tokenizer": "world", "skein.vocabulary": vocabulary, "skein.chat_template": "rwkv"})


def write_poisoned_checkpoint(path, **shape):
    """A row that reads or says POISON has no finite logits from then on: what a fault of the device looks like."""
    weights = random_weights(**shape)
    weights["emb.weight"][POISON + 1] = float("nan")
    write_safetensors(path, weights, {"skein.tokenizer": "bytes", "skein.chat_template": "rwkv"})
