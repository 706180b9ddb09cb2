"""LibTorch's matrix product, as a ceiling beside Skein's own blocked loop (bench/blocked_products.h): operations per second
in fp32 and bf16, the best of several shapes and calls. Run by the Python of the interop environment.

    python torch_gemm.py JSON THREADS SECONDS
"""

import json
import sys
import time

import torch

SHAPES = ((256, 3072, 768), (512, 2048, 2048), (2048, 2048, 2048))  # rows, outputs, k


def best_flops(dtype, shape, seconds):
    rows, outputs, k = shape
    x, w = torch.randn(rows, k).to(dtype), torch.randn(outputs, k).to(dtype)
    best, calls, start = float("inf"), 0, time.perf_counter()
    while calls < 5 or time.perf_counter() - start < seconds:
        begin = time.perf_counter()
        torch.nn.functional.linear(x, w)
        best = min(best, time.perf_counter() - begin)
        calls += 1
    return 2 * rows * outputs * k / best


def main(out, threads, seconds):
    torch.set_num_threads(int(threads))
    with torch.inference_mode():
        flops = {name: max(best_flops(dtype, shape, float(seconds)) for shape in SHAPES)
                 for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16))}
    with open(out, "w") as file:
        json.dump(flops, file)


if __name__ == "__main__":
    main(*sys.argv[1:])
