"""Writes an RWKV-7 .safetensors file as GGUF, the file that llama.cpp reads.

    python write_gguf.py MODEL.safetensors OUT.gguf F32|BF16|Q8_0

Which tensors take the type follows llama.cpp's own converter: one-dimensional ones, the mixes and the low-rank
branches of the decay stay fp32. There is no vocabulary in the file: the bench feeds token ids.
"""

import json
import sys

import gguf
import numpy

# Of a block, without ".weight"; the mixes of r, w, k, v, a, g become one tensor.
NAMES = {
    "ln1": "attn_norm", "ln2": "attn_norm_2", "att.ln_x": "time_mix_ln",
    "att.receptance": "time_mix_receptance", "att.key": "time_mix_key", "att.value": "time_mix_value",
    "att.output": "time_mix_output", "ffn.x_k": "channel_mix_lerp_k", "ffn.key": "channel_mix_key",
    "ffn.value": "channel_mix_value",
    **{f"att.{name}": f"time_mix_{name}" for name in
       ("w0", "w1", "w2", "a0", "a1", "a2", "v0", "v1", "v2", "g1", "g2", "k_k", "k_a", "r_k")},
}
TRANSPOSED = {f"att.{branch}{n}" for branch in "wavg" for n in (1, 2)}
ALWAYS_F32 = {"time_mix_w1", "time_mix_w2", "time_mix_lerp_fused"}


def read_safetensors(path):
    """name -> fp32 array."""
    with open(path, "rb") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
        data = numpy.memmap(path, dtype=numpy.uint8, mode="r", offset=8 + size)
    tensors = {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        raw = data[slice(*entry["data_offsets"])]
        if entry["dtype"] == "BF16":
            values = (raw.view(numpy.uint16).astype(numpy.uint32) << 16).view(numpy.float32)
        elif entry["dtype"] == "F32":
            values = raw.view(numpy.float32)
        else:
            raise SystemExit(f"{path}: {name} is {entry['dtype']}; BF16 and F32 are read here")
        tensors[name] = values.reshape(entry["shape"])
    return tensors


def block_tensors(tensors, i):
    """What llama.cpp has in block i: (name, array)."""
    def get(name):
        return tensors[f"blocks.{i}.{name}"]

    yield "time_mix_lerp_fused.weight", numpy.stack([get(f"att.x_{m}").reshape(1, 1, -1) for m in "rwkvag"])
    for name, theirs in NAMES.items():
        full = f"blocks.{i}.{name}"
        if full + ".bias" in tensors:
            yield f"{theirs}.bias", tensors[full + ".bias"]
        if full + ".weight" in tensors:
            yield f"{theirs}.weight", tensors[full + ".weight"]
            continue
        if i == 0 and name.startswith("att.v"):  # read by nobody, but llama.cpp wants them to be there
            name = name.replace("att.v", "att.a")
        array = get(name)
        array = array.T if name in TRANSPOSED else array.reshape(-1)
        yield f"{theirs}.weight", array


def gguf_tensors(tensors, layers):
    yield "token_embd.weight", tensors["emb.weight"]
    for theirs, ours in (("token_embd_norm", "blocks.0.ln0"), ("output_norm", "ln_out")):
        for part in ("weight", "bias"):
            yield f"{theirs}.{part}", tensors[f"{ours}.{part}"]
    yield "output.weight", tensors["head.weight"]
    for i in range(layers):
        for name, array in block_tensors(tensors, i):
            yield f"blk.{i}.{name}", array


def type_of(name, array, wanted):
    keep = array.ndim < 2 or any(part in name for part in ALWAYS_F32) or array.shape[-1] % 32
    return gguf.GGMLQuantizationType.F32 if keep else gguf.GGMLQuantizationType[wanted]


def write(source, out, wanted):
    tensors = read_safetensors(source)
    layers = 1 + max(int(name.split(".")[1]) for name in tensors if name.startswith("blocks."))
    vocab, width = tensors["emb.weight"].shape
    heads, head_size = tensors["blocks.0.att.r_k"].shape
    ranks = {letter: tensors[f"blocks.{layers - 1}.att.{letter}1"].shape[1] for letter in "wavg"}
    writer = gguf.GGUFWriter(out, "rwkv7")
    writer.add_context_length(1 << 20)
    writer.add_embedding_length(width)
    writer.add_block_count(layers)
    writer.add_layer_norm_eps(1e-5)
    writer.add_wkv_head_size(head_size)
    writer.add_decay_lora_rank(ranks["w"])
    writer.add_iclr_lora_rank(ranks["a"])
    writer.add_value_residual_mix_lora_rank(ranks["v"])
    writer.add_gate_lora_rank(ranks["g"])
    writer.add_feed_forward_length(tensors["blocks.0.ffn.key.weight"].shape[0])
    writer.add_head_count(0)
    writer.add_vocab_size(vocab)
    writer.add_tokenizer_model("no_vocab")
    writer.add_file_type({"F32": gguf.LlamaFileType.ALL_F32, "BF16": gguf.LlamaFileType.MOSTLY_BF16,
                          "Q8_0": gguf.LlamaFileType.MOSTLY_Q8_0}[wanted])
    for name, array in gguf_tensors(tensors, layers):
        kind = type_of(name, array, wanted)
        data = gguf.quants.quantize(numpy.ascontiguousarray(array, dtype=numpy.float32), kind)
        writer.add_tensor(name, data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


if __name__ == "__main__":
    if len(sys.argv) != 4 or sys.argv[3] not in ("F32", "BF16", "Q8_0"):
        raise SystemExit(__doc__)
    write(*sys.argv[1:])
