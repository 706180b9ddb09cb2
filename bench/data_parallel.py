#!/usr/bin/env python3
"""skein-train by N processes of one thread each (mpirun) beside one process of N threads, on one machine.

Tokens per second, the median over the steps after the first two. "apart" is what the N processes would do if they had
nothing to tell each other: N runs at the same time, each with its share of the batch; the ratio is to that.

usage: bench/data_parallel.py [--build FOLDER] [--processes 2] [--compute fp32] [--rounds 1] [--json FILE]
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile

import figures

ROOT = pathlib.Path(__file__).resolve().parent.parent
# name: layers, width, context, batch, steps. Gradients of 4, 48 and 92 MB.
SHAPES = {"L4 C128": (4, 128, 64, 12, 120), "L6 C384": (6, 384, 256, 8, 8), "L3 C768": (3, 768, 256, 4, 6)}


def parse():
    parser = argparse.ArgumentParser(description="one process of N threads beside N processes of one")
    parser.add_argument("--build", type=pathlib.Path, default=ROOT / "build")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--compute", default="fp32", choices=["fp32", "bf16"])
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--json", type=pathlib.Path)
    return parser.parse_args()


def start(options, shape, folder, batch, threads, launcher=()):
    layers, width, context, _, steps = SHAPES[shape]
    keys = {"run.folder": folder, "data.train": ROOT / "trainer/examples/tinyshakespeare.txt",
            "data.validation_fraction": 0, "model.layers": layers, "model.width": width, "train.context": context,
            "train.batch": batch, "train.steps": steps, "train.warmup": 2, "train.threads": threads,
            "train.compute": options.compute, "evaluate.every": 0, "save.every": 0, "log.every": 1,
            "log.tensorboard": "false"}
    command = [*launcher, options.build / "bin" / "skein-train"]
    for key, value in keys.items():
        command += ["--set", f"{key}={value}"]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL)


def log_of(folder):
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def speed(processes, folders):
    """The sum over runs that were made at the same time."""
    for process in processes:
        if process.wait() != 0:
            sys.exit("skein-train failed")
    total = 0
    for folder in folders:
        total += statistics.median([line["tokens_per_second"] for line in log_of(folder)][2:])
    return total


def measure(options, shape):
    n, batch = options.processes, SHAPES[shape][3]
    mpirun = ["mpirun", "--bind-to", "core", "-n", str(n), *(["--allow-run-as-root"] if os.geteuid() == 0 else [])]
    with tempfile.TemporaryDirectory() as scratch:
        folder = pathlib.Path(scratch)
        threads = speed([start(options, shape, folder / "threads", batch, n)], [folder / "threads"])
        together = speed([start(options, shape, folder / "mpi", batch, 1, mpirun)], [folder / "mpi"])
        folders = [folder / str(i) for i in range(n)]
        apart = speed([start(options, shape, f, batch // n, 1) for f in folders], folders)
        losses = json.dumps([line["loss"] for line in log_of(folder / "mpi")])
    return {"shape": shape, "compute": options.compute, "processes": n, "one_process": threads, "processes_mpi": together,
            "apart": apart, "hash_of_losses": figures.hash_of(losses.encode())}


def main():
    options = parse()
    n = options.processes
    print(f"tokens/s, {options.compute}    1 process of {n} threads   {n} processes of 1   {n} apart   ratio to apart   losses")
    rows = []
    for shape in SHAPES:
        for _ in range(options.rounds):
            row = measure(options, shape)
            rows.append(row)
            print(f"{shape:16} {row['one_process']:12.0f} {row['processes_mpi']:22.0f} {row['apart']:15.0f} "
                  f"{row['processes_mpi'] / row['apart']:11.2f}   {row['hash_of_losses']}", flush=True)
    figures.write_json(options.json, rows)


if __name__ == "__main__":
    main()
