"""Writes a random RWKV-7 checkpoint whose values lie in the ranges of a trained model.

The weights mean nothing, but every term of the recurrence matters in the logits (decays from fast to slow, gates
away from 0 and 1, non-zero low-rank branches), so two implementations that agree on such a file agree on the
mathematics. The kind of file follows the suffix of OUT (.pth or .safetensors).

    python make_random_rwkv7.py OUT.pth --layers 3 --width 96 --head-size 32 --vocab 300 --ffn 384 \
        --ranks 16,24,8,40 --seed 1 --dtype bf16
"""

import argparse
import collections

import torch

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def make_tensors(layers=2, width=64, head_size=32, vocab=257, ffn=None, ranks=(16, 16, 8, 32), seed=0,
                 dtype=torch.float32, flat_vectors=False, layer0_v=True):
    """An OrderedDict of tensors. `ranks` are those of w, a, v, g. `flat_vectors` stores [C] instead of [1, 1, C]."""
    if width % head_size:
        raise ValueError(f"width {width} is not a multiple of the head size {head_size}")
    ffn = ffn or 4 * width
    C, H, N = width, width // head_size, head_size
    generator = torch.Generator().manual_seed(seed)
    tensors = collections.OrderedDict()

    def normal(name, shape, std, mean=0.0):
        tensors[name] = (mean + std * torch.randn(shape, generator=generator)).to(dtype)

    def uniform(name, shape, low, high):
        tensors[name] = (low + (high - low) * torch.rand(shape, generator=generator)).to(dtype)

    def norm(name, weight=1.0):
        normal(name + ".weight", (C,), 0.15, weight)
        normal(name + ".bias", (C,), 0.05)

    vector = (C,) if flat_vectors else (1, 1, C)
    normal("emb.weight", (vocab, C), 0.4)
    for i in range(layers):
        block = f"blocks.{i}."
        if i == 0:
            norm(block + "ln0")
        norm(block + "ln1")
        norm(block + "ln2")
        att = block + "att."
        for mix in "rwkvag":
            uniform(att + "x_" + mix, vector, -0.05, 1.05)
        # w0, a0, v0 are what the low-rank branches are added to; g has no bias.
        branches = {"w": ranks[0], "a": ranks[1], "v": ranks[2], "g": ranks[3]}
        for letter, rank in branches.items():
            if letter == "v" and i == 0 and not layer0_v:
                continue
            if letter == "w":
                uniform(att + "w0", vector, -6.0, 1.5)
            elif letter != "g":
                normal(att + letter + "0", vector, 0.6, -0.2 if letter == "a" else 0.5)
            normal(att + letter + "1", (C, rank), C ** -0.5)
            normal(att + letter + "2", (rank, C), (2.0 if letter == "g" else 1.0) * rank ** -0.5)
        normal(att + "k_k", vector, 0.15, 0.8)
        normal(att + "k_a", vector, 0.15, 1.0)
        normal(att + "r_k", (H, N), 0.15)
        normal(att + "receptance.weight", (C, C), C ** -0.5)
        normal(att + "key.weight", (C, C), 0.6 * C ** -0.5)
        normal(att + "value.weight", (C, C), C ** -0.5)
        normal(att + "output.weight", (C, C), 0.5 * C ** -0.5)
        norm(att + "ln_x", 0.7)
        uniform(block + "ffn.x_k", vector, -0.05, 1.05)
        normal(block + "ffn.key.weight", (ffn, C), C ** -0.5)
        normal(block + "ffn.value.weight", (C, ffn), 0.5 * ffn ** -0.5)
    norm("ln_out")
    normal("head.weight", (vocab, C), 2.0 * C ** -0.5)
    return tensors


def save(tensors, path):
    if path.endswith(".safetensors"):
        from safetensors.torch import save_file
        save_file(dict(tensors), path)
    elif path.endswith(".pth"):
        torch.save(tensors, path)
    else:
        raise ValueError(f"{path}: the name must end in .pth or .safetensors")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", metavar="OUT")
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--head-size", type=int, default=32)
    parser.add_argument("--vocab", type=int, default=257)
    parser.add_argument("--ffn", type=int, help="width of the channel mix; 4 * width when absent")
    parser.add_argument("--ranks", default="16,16,8,32", help="ranks of w,a,v,g")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--dtype", choices=sorted(DTYPES), default="fp32")
    parser.add_argument("--flat-vectors", action="store_true", help="store vectors as [C] instead of [1, 1, C]")
    parser.add_argument("--no-layer0-v", action="store_true", help="leave out v0, v1, v2 of layer 0")
    args = parser.parse_args()
    ranks = tuple(int(r) for r in args.ranks.split(","))
    if len(ranks) != 4:
        parser.error("--ranks takes four numbers: w,a,v,g")
    save(make_tensors(args.layers, args.width, args.head_size, args.vocab, args.ffn, ranks, args.seed,
                      DTYPES[args.dtype], args.flat_vectors, not args.no_layer0_v), args.out)


if __name__ == "__main__":
    main()
