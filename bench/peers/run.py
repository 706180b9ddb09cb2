#!/usr/bin/env python3
"""Skein beside its peers on the same random RWKV-7 weights, in one run: llama.cpp and the rwkv package.

    bench/peers/run.py [--build build] [--deps ~/.cache/skein] [--quick] [--rounds 2] [--seconds 2]
                       [--tier TIER] [--threads N] [--folder FOLDER] [--json FILE] [--markdown FILE]

Checks first that all logits agree. Then every program runs in turn, `rounds` times over, and the best round's median
counts for each. Prints tokens per second of prefill and of decode steps of B rows, the machine's floor (bytes that
must move at the read bandwidth, products at the peak, both measured in the same run) and the ratios. `--tier avx2` or
`avx512` forces Skein there, beside a llama.cpp that was built for it (bench/peers/setup.sh TIER).
"""

import argparse
import array
import json
import math
import operator
import os
import pathlib
import random
import subprocess
import sys
import tempfile

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent.parent
LLAMA = "llama-cpp-0.3.36"
ROWS = (1, 4, 16, 32)
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
PACKAGE = (("rwkv package fp32", "fp32", 0), ("rwkv package bf16", "bf16", 0.1))


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
                  self.seconds, logits, self.prompt])
        return json.loads(out.read_text())

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
    """One program's rounds -> its best figure a cell, and the floor of that round where there is one."""
    cells = {}
    for cell in CELLS:
        found = [r["cells"][cell] for r in results if cell in r["cells"]]
        if found:
            cells[cell] = max(found, key=lambda c: c["tokens_per_second"])
    return cells


def machine_best(rounds):
    """The machine at its best in those rounds: a ceiling that was measured beside other work is none."""
    return {key: max(r[key] for r in rounds) for key in ("read_bytes_per_second", "flops")}


def add_floors(results):
    """How fast a model is read depends on how large it is, so each type of weights has its own bandwidth."""
    for name, _, _ in SKEIN:
        best = machine_best(results[name])
        for r in results[name]:
            for cell in r["cells"].values():
                cell["floor"] = cell["tokens"] / max(cell["bytes"] / best["read_bytes_per_second"], cell["flops"] / best["flops"])


def row(name, values, form):
    return f"| {name} | " + " | ".join(form.format(v) if v is not None else "-" for v in values) + " |"


def table(figures, errors, machine):
    def speeds(name, key="tokens_per_second"):
        return [figures[name].get(cell, {}).get(key) for cell in CELLS]

    def ratio(a, b):
        return [x / y if x and y else None for x, y in zip(a, b)]

    package = [max((figures[name][cell]["tokens_per_second"] for name, _, _ in PACKAGE if cell in figures[name]),
                   default=None) for cell in CELLS]
    lines = [machine, "", row("tokens/s", ["prefill 256", "decode B1", "B4", "B16", "B32"], "{}") + " logits differ by |",
             "|---" * 7 + "|"]
    for name, _, _ in (*PACKAGE, *LLAMA_CPP, *SKEIN):
        lines.append(row(name, speeds(name), "{:.1f}") + (f" {errors[name]:.1e} |" if name in errors else " (reference) |"))
    for (name, kind, _), (theirs, _, _) in zip(SKEIN, (*LLAMA_CPP, LLAMA_CPP[-1])):
        lines.append(row(f"floor, {kind}", speeds(name, "floor"), "{:.0f}") + " |")
        lines.append(row(f"{name} / floor", ratio(speeds(name), speeds(name, "floor")), "{:.2f}") + " |")
        lines.append(row(f"{name} / {theirs}", ratio(speeds(name), speeds(theirs)), "{:.2f}") + " |")
        lines.append(row(f"{name} / rwkv package, its best type", ratio(speeds(name), package), "{:.2f}") + " |")
    return "\n".join(lines)


def processor():
    for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return "unknown processor"


def measure(bench, options):
    bench.make_models()
    programs = (*PACKAGE, *LLAMA_CPP, *SKEIN)
    results = {name: [] for name, _, _ in programs}
    for turn in range(options.rounds):
        for name, kind, _ in programs:
            print(f"round {turn + 1} of {options.rounds}: {name}", file=sys.stderr)
            results[name].append(bench.run(name, kind))
    errors = {name: bench.error(name) for name, _, _ in programs[1:]}
    return results, errors


def check(errors):
    programs = (*PACKAGE[1:], *LLAMA_CPP, *SKEIN)
    too_far = [f"{name}: {errors[name]:.2e}, allowed {most}" for name, _, most in programs if errors[name] > most]
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
    parser.add_argument("--tier", choices=("avx2", "avx512"))
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
        results, errors = measure(bench, options)
    add_floors(results)
    one, best = results["Skein bf16"][-1], machine_best(results["Skein bf16"])
    peaks = ", ".join(f"{kind} {machine_best(results[name])['flops'] / 1e9:.0f}" for name, kind, _ in SKEIN)
    machine = (f"{processor()}, {bench.threads} threads, Skein tier {one['tier']}, load {os.getloadavg()[0]:.1f}; read "
               f"{best['read_bytes_per_second'] / 1e9:.1f} GB/s, peak in GFLOP/s {peaks}; random RWKV-7 "
               "L12 C768 V65536 F3072; llama.cpp without its AMX kernels, which crash on such a model")
    figures = {name: best_of(rounds) for name, rounds in results.items()}
    text = table(figures, errors, machine)
    print(text)
    if options.markdown:
        options.markdown.write_text(text + "\n")
    if options.json:
        options.json.write_text(json.dumps({"machine": machine, "figures": figures, "logit_errors": errors,
                                            "rounds": results}, indent=1) + "\n")
    check(errors)


if __name__ == "__main__":
    main()
