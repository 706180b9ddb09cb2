#!/usr/bin/env python3
"""Skein beside its peers on the same random RWKV-7 weights, in one run: llama.cpp and the rwkv package.

    bench/peers/run.py [--build build] [--deps ~/.cache/skein] [--quick] [--rounds 2] [--seconds 2]
                       [--tier TIER] [--threads N] [--folder FOLDER] [--json FILE] [--markdown FILE]

Every program runs in turn, `rounds` times over, and the best round's median counts for each. Prints tokens per second
of prefill and of decode steps of B rows, the floor, the ratios, and how they stand against the targets (targets.py);
fails when logits do not agree. The floor is the slower of the bytes that must move at the read bandwidth and the products
at the ceiling, both measured in the same run; the ceiling is the better of Skein's blocked loop, whose operands lie in
the second cache (bench/blocked_products.h), and LibTorch's matrix product (torch_gemm.py). For one row it also says how
fast the tier's product takes weights that lie in a cache (bench/cached_product.h). `--tier` forces Skein to a lower
instruction set, LibTorch with it (and so the rwkv package), beside a llama.cpp that was built for it (setup.sh TIER).
"""

import argparse
import array
import json
import math
import operator
import os
import pathlib
import random
import shlex
import subprocess
import sys
import tempfile

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent.parent
sys.path.insert(0, str(HERE.parent))

import figures  # noqa: E402
import targets  # noqa: E402

LLAMA = "llama-cpp-0.3.36"
ROWS = (1, 4, 8, 16, 32)
CELLS = ("prefill", *(f"B{n}" for n in ROWS))
SHAPE = ["--layers", "12", "--width", "768", "--head-size", "64", "--vocab", "65536", "--ffn", "3072", "--ranks",
         "64,64,32,128", "--seed", "7", "--dtype", "bf16"]
VOCAB, PREFILL, PROMPT = 65536, 256, 48

# name, type of its weights, how far its logits may be from the rwkv package's in fp32 (root of the mean square, as part
# of that of the reference). Q8_0 rounds activations to eight bits too, like int8a8; Skein's bf16 and int8 round them to
# bf16.
SKEIN = (("Skein fp32", "fp32", 1e-3), ("Skein bf16", "bf16", 0.05), ("Skein int8", "int8", 0.1),
         ("Skein int8a8", "int8a8", 0.1))
LLAMA_CPP = (("llama.cpp F32", "F32", 1e-3), ("llama.cpp BF16", "BF16", 0.05), ("llama.cpp Q8_0", "Q8_0", 0.1))
# What LibTorch and its libraries must be told to stay at a tier; SKEIN_CPU does not reach them.
LIBTORCH = {
    "avx2": {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"},
    "avx512": {"ATEN_CPU_CAPABILITY": "avx512", "ONEDNN_MAX_CPU_ISA": "AVX512_CORE", "MKL_ENABLE_INSTRUCTIONS": "AVX512"},
    "avx512bf16": {"ATEN_CPU_CAPABILITY": "avx512", "ONEDNN_MAX_CPU_ISA": "AVX512_CORE_BF16",
                   "MKL_ENABLE_INSTRUCTIONS": "AVX512_E3"},
}
PACKAGE = (("rwkv package fp32", "fp32", 0), ("rwkv package bf16", "bf16", 0.1))


def programs_of(tier):
    """All that run. LibTorch kept below AVX512-BF16 has no fast product of bf16: the package then says half a token a
    second, so it is asked in fp32 only."""
    return (*(PACKAGE[:1] if tier in ("avx2", "avx512") else PACKAGE), *LLAMA_CPP, *SKEIN)


def call(command, **environment):
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True,
                          env={**os.environ, **environment})
    if done.returncode:
        raise SystemExit(f"{' '.join(map(str, command))}\nended with {done.returncode}:\n{done.stdout}{done.stderr}")


class Bench:
    def __init__(self, options, folder):
        self.options = options
        self.folder = folder
        self.interop = options.deps / "interop-venv/bin/python"
        self.peers = options.deps / "peers-venv/bin/python"
        self.llama = options.deps / LLAMA / (options.tier or "native") / "bin/llama_peer"
        self.skein = options.build / "bench/skein_peer"
        for needed in (self.interop, self.peers, self.llama, self.skein):
            if not needed.exists():
                raise SystemExit(f"{needed} is not there; run 'make bench-peers', which sets everything up")
        draw = random.Random(1)
        self.prompt = ",".join(str(draw.randrange(1, VOCAB)) for _ in range(PROMPT))
        self.threads = str(options.threads or len(os.sched_getaffinity(0)))
        self.seconds = str(options.seconds or (0.5 if options.quick else 2))
        self.lowered = LIBTORCH.get(options.tier, {})

    def make_models(self):
        maker = ROOT / "tests/interop/make_random_rwkv7.py"
        for suffix in ("pth", "safetensors"):
            self.make(f"model.{suffix}", lambda out: [self.interop, maker, out, *SHAPE])
        for _, kind, _ in LLAMA_CPP:
            self.make(f"{kind}.gguf", lambda out: [self.peers, HERE / "write_gguf.py", self.folder / "model.safetensors",
                                                   out, kind])

    def make(self, name, command):
        path = self.folder / name
        if not path.exists():
            partial = path.with_name("partial-" + name)
            call(command(partial))
            partial.rename(path)

    def files(self, name):
        stem = name.replace(" ", "_")
        return self.folder / f"{stem}.json", self.folder / f"{stem}.f32"

    def run(self, name, kind):
        out, logits = self.files(name)
        rows = ",".join(map(str, ROWS))
        if name.startswith("Skein"):
            tier = ["--tier", self.options.tier] if self.options.tier else []
            call([self.skein, self.folder / "model.safetensors", kind, "--json", out, "--threads", self.threads, "--rows",
                  rows, "--prefill", PREFILL, "--seconds", self.seconds, "--logits", logits, "--prompt", self.prompt, *tier])
        elif name.startswith("llama.cpp"):
            call([self.llama, self.folder / f"{kind}.gguf", out, self.threads, rows, PREFILL, self.seconds, logits,
                  self.prompt])
        else:
            call([self.interop, HERE / "rwkv_peer.py", self.folder / "model.pth", kind, out, self.threads, PREFILL,
                  self.seconds, logits, self.prompt], **self.lowered)
        return json.loads(out.read_text())

    def libtorch_flops(self):
        out = self.folder / "torch_gemm.json"
        call([self.interop, HERE / "torch_gemm.py", out, self.threads, self.seconds], **self.lowered)
        return json.loads(out.read_text())

    def hash(self, name):
        return figures.hash_of(self.files(name)[1].read_bytes())

    def error(self, name):
        """Relative difference to the reference, over all logits of the prompt."""
        want, got = (array.array("f", self.files(n)[1].read_bytes()) for n in (PACKAGE[0][0], name))
        if len(want) != PROMPT * VOCAB or len(got) != len(want):
            raise SystemExit(f"{name} wrote {len(got)} logits instead of {PROMPT * VOCAB}")
        difference = length(map(operator.sub, want, got))
        if not math.isfinite(difference):
            raise SystemExit(f"{name}: logits are not finite")
        return difference / length(want)


def length(vector):
    return math.sqrt(sum(x * x for x in vector))


def best_of(results):
    """One program's rounds -> its best figure a cell."""
    cells = {}
    for cell in CELLS:
        found = [r["cells"][cell] for r in results if cell in r["cells"]]
        if found:
            cells[cell] = max(found, key=lambda c: c["tokens_per_second"])
    return cells


def ceilings_of(results, libtorch, tier):
    """For each type of Skein's weights, what the machine did at its best in all rounds: one that was measured beside other
    work is none. How fast a model is read depends on how large it is, so each type has its own bandwidth."""
    ceilings = {}
    for name, kind, _ in SKEIN:
        best = {key: max(r["ceilings"][key] for r in results[name]) for key in results[name][0]["ceilings"]}
        # The tiers without products of bf16 multiply in fp32; LibTorch has no product of int8.
        theirs = "fp32" if kind == "fp32" or tier in ("plain", "avx2", "avx512") else "bf16"
        best["libtorch_flops"] = max(f[theirs] for f in libtorch)
        best["flops"] = max(best["cache_flops"], best["libtorch_flops"])
        ceilings[name] = best
    return ceilings


def add_floors(cells, ceilings):
    """Tokens per second at the ceilings."""
    for name, _, _ in SKEIN:
        best = ceilings[name]
        for cell in cells[name].values():
            cell["floor"] = cell["tokens"] / max(cell["bytes"] / best["read_bytes_per_second"],
                                                 cell["flops"] / best["flops"])


def row(name, values, form):
    return f"| {name} | " + " | ".join(form.format(v) if v is not None else "-" for v in values) + " |"


def table(cells, errors, machine):
    def speeds(name, key="tokens_per_second"):
        return [cells.get(name, {}).get(cell, {}).get(key) for cell in CELLS]

    def ratio(a, b):
        return [x / y if x and y else None for x, y in zip(a, b)]

    def best_speeds(programs):
        return [max(filter(None, column), default=None) for column in zip(*(speeds(name) for name, _, _ in programs))]

    # It has no batches: with it, several conversations decode by turns, each at the speed of one.
    package = best_speeds(PACKAGE)
    package = [speed or package[CELLS.index("B1")] for speed in package]
    lines = [machine, "", row("tokens/s", [f"prefill {PREFILL}", "decode B1", *CELLS[2:]], "{}") + " logits differ by |",
             "|---" * (len(CELLS) + 2) + "|"]
    for name in cells:
        lines.append(row(name, speeds(name), "{:.1f}") + (f" {errors[name]:.1e} |" if name in errors else " (reference) |"))
    for (name, kind, _), (theirs, _, _) in zip(SKEIN, (*LLAMA_CPP, LLAMA_CPP[-1])):
        lines.append(row(f"floor, {kind}", speeds(name, "floor"), "{:.0f}") + " |")
        lines.append(row(f"{name} / floor", ratio(speeds(name), speeds(name, "floor")), "{:.2f}") + " |")
        lines.append(row(f"{name} / {theirs}", ratio(speeds(name), speeds(theirs)), "{:.2f}") + " |")
        lines.append(row(f"{name} / rwkv package, its best type", ratio(speeds(name), package), "{:.2f}") + " |")
        cost = 16 * cells[name]["B1"]["tokens_per_second"] / cells[name]["B16"]["tokens_per_second"]
        lines.append(row(f"{name}: a step of 16 rows / of one", [cost if cell == "B16" else None for cell in CELLS],
                         "{:.2f}") + " |")
    lines.append(row("Skein int8 / bf16", ratio(speeds("Skein int8"), speeds("Skein bf16")), "{:.2f}") + " |")
    lines.append(row("Skein / rwkv package, best types", ratio(best_speeds(SKEIN), package), "{:.2f}") + " |")
    return "\n".join(lines)


def measure(bench, options):
    bench.make_models()
    programs = programs_of(options.tier)
    results, libtorch = {name: [] for name, _, _ in programs}, []
    for turn in range(options.rounds):
        print(f"round {turn + 1} of {options.rounds}: LibTorch's matrix product", file=sys.stderr)
        libtorch.append(bench.libtorch_flops())
        for name, kind, _ in programs:
            print(f"round {turn + 1} of {options.rounds}: {name}", file=sys.stderr)
            results[name].append(bench.run(name, kind))
    errors = {name: bench.error(name) for name, _, _ in programs[1:]}
    return results, libtorch, errors, {name: bench.hash(name) for name, _, _ in programs}


def describe(tier, threads, ceilings):
    """The machine and what it can do, above the table."""
    def each(key):
        return ", ".join(f"{kind} {ceilings[name][key] / 1e9:.0f}" for name, kind, _ in SKEIN)

    return (f"{figures.processor()}, {threads} threads, Skein tier {tier}, load {os.getloadavg()[0]:.1f}, "
            f"`{shlex.join(sys.argv)}`. Read, GB/s: {each('read_bytes_per_second')}. One row's product with weights in a "
            f"cache, GB/s: {each('cached_product_bytes_per_second')}. Products in GFLOP/s, blocked from the second cache: "
            f"{each('cache_flops')}; LibTorch's: {each('libtorch_flops')}; in registers: {each('register_flops')}. Random "
            "RWKV-7 L12 C768 V65536 F3072; llama.cpp without its AMX kernels, which crash on such a model.")


def check(errors):
    allowed = {name: most for name, _, most in (*PACKAGE, *LLAMA_CPP, *SKEIN)}
    too_far = [f"{name}: {error:.2e}, allowed {allowed[name]}" for name, error in errors.items() if error > allowed[name]]
    if too_far:
        raise SystemExit("logits do not agree with the rwkv package in fp32:\n" + "\n".join(too_far))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--build", type=pathlib.Path, default=ROOT / "build")
    parser.add_argument("--deps", type=pathlib.Path,
                        default=pathlib.Path(os.environ.get("SKEIN_DEPS", pathlib.Path.home() / ".cache/skein")))
    parser.add_argument("--quick", action="store_true", help="half a second a figure, one round")
    parser.add_argument("--rounds", type=int, help="default: 2, 1 with --quick")
    parser.add_argument("--seconds", type=float, help="of each figure and round; default: 2, 0.5 with --quick")
    parser.add_argument("--tier", choices=tuple(LIBTORCH))
    parser.add_argument("--threads", type=int, help="default: all that the process may use")
    parser.add_argument("--json", type=pathlib.Path)
    parser.add_argument("--markdown", type=pathlib.Path)
    parser.add_argument("--folder", type=pathlib.Path, help="keep the models there, and use those that are there already")
    options = parser.parse_args()
    options.rounds = options.rounds or (1 if options.quick else 2)
    with tempfile.TemporaryDirectory(prefix="skein-peers-") as temporary:
        folder = options.folder or pathlib.Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        bench = Bench(options, folder)
        results, libtorch, errors, hashes = measure(bench, options)
    tier = results["Skein bf16"][0]["tier"]
    ceilings = ceilings_of(results, libtorch, tier)
    cells = {name: best_of(rounds) for name, rounds in results.items()}
    add_floors(cells, ceilings)
    text = table(cells, errors, describe(tier, bench.threads, ceilings)) + "\n\n" + targets.table(cells, tier)
    print(text)
    if options.markdown:
        options.markdown.write_text(text + "\n")
    figures.write_json(options.json, {"tier": tier, "threads": bench.threads, "cells": cells, "ceilings": ceilings,
                                      "libtorch": libtorch, "logit_errors": errors, "logit_hashes": hashes,
                                      "rounds": results})
    check(errors)


if __name__ == "__main__":
    main()
