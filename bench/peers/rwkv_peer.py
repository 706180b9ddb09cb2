"""The rwkv package's side of the table of peers (run.py): prefill of one prompt and decode of one row, the only ones
it has. Run by the Python of the interop environment.

    python rwkv_peer.py MODEL.pth fp32|bf16 JSON THREADS PREFILL SECONDS LOGITS PROMPT    (PROMPT: 1,2,3)
"""

import contextlib
import io
import json
import os
import statistics
import sys
import time

os.environ.update(RWKV_V7_ON="1", RWKV_JIT_ON="1", RWKV_CUDA_ON="0")

import numpy
import torch


def median_seconds(budget, body):
    """As bench/ceilings.h: a warm-up, then at least five. The warm-up is longer: TorchScript optimises in the first calls."""
    for _ in range(3):
        body()
    times, start = [], time.perf_counter()
    while len(times) < 5 or time.perf_counter() - start < budget:
        begin = time.perf_counter()
        body()
        times.append(time.perf_counter() - begin)
    return statistics.median(times)


def main(path, dtype, out, threads, prefill, seconds, logits, prompt):
    torch.set_num_threads(int(threads))
    prefill, seconds, prompt = int(prefill), float(seconds), [int(t) for t in prompt.split(",")]
    with contextlib.redirect_stdout(io.StringIO()):  # it greets
        from rwkv.model import RWKV

        model = RWKV(model=path.removesuffix(".pth"), strategy=f"cpu {dtype}")
    rows, _ = model.forward(list(prompt), None, full_output=True)
    rows.float().numpy().astype(numpy.float32).tofile(logits)

    vocab = model.args.vocab_size
    tokens = [1 + i * 7 % (vocab - 1) for i in range(prefill)]
    cells = {"prefill": prefill / median_seconds(seconds, lambda: model.forward(list(tokens), None))}
    _, state = model.forward(tokens[:4], None)
    cells["B1"] = 1 / median_seconds(seconds, lambda: model.forward([tokens[0]], state))
    with open(out, "w") as file:
        json.dump({"cells": {name: {"tokens_per_second": value} for name, value in cells.items()}}, file)


if __name__ == "__main__":
    main(*sys.argv[1:])
