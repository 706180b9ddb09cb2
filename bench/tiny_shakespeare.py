#!/usr/bin/env python3
"""Trains tiny-shakespeare at nanoGPT's CPU budget (trainer/configs/tiny-shakespeare.yaml) and fails unless the validation
loss is under nanoGPT's. Says how long the whole budget took, and how long the training had gone on at the first
validation under it. What `make bench-shakespeare` does after building.

usage: bench/tiny_shakespeare.py [--build FOLDER] [--text FILE] [--json FILE]
"""

import argparse
import hashlib
import json
import pathlib
import shutil
import subprocess
import sys
import time

from figures import write_json

ROOT = pathlib.Path(__file__).resolve().parent.parent
TEXT_SHA256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"
MOST_LOSS = 1.88  # nats a character, which is a byte here; 4 layers, 128 wide, context 64, batch 12, 2,000 steps


def parse():
    parser = argparse.ArgumentParser(description="tiny-shakespeare at nanoGPT's CPU budget")
    parser.add_argument("--build", type=pathlib.Path, default=ROOT / "build")
    parser.add_argument("--text", type=pathlib.Path, default=ROOT / "trainer" / "examples" / "tinyshakespeare.txt")
    parser.add_argument("--json", type=pathlib.Path)
    return parser.parse_args()


def check_text(path):
    """The bar is known for this text alone."""
    try:
        found = hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        sys.exit(f"{path}: {error.strerror}")
    if found != TEXT_SHA256:
        sys.exit(f"{path} is not tiny-shakespeare (1,115,394 bytes, SHA-256 {TEXT_SHA256}); "
                 f"'make train TEXT={path}' trains on any text")


def train(build, text):
    """Seconds, the lines of the log, and the hash of the checkpoint."""
    run = build / "bench" / "shakespeare"
    shutil.rmtree(run, ignore_errors=True)
    begin = time.monotonic()
    subprocess.run([build / "bin" / "skein-train", "--config", ROOT / "trainer/configs/tiny-shakespeare.yaml",
                    "--set", f"data.train={text.resolve()}", "--set", f"run.folder={run}"], check=True)
    seconds = time.monotonic() - begin
    log = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return seconds, log, hashlib.sha256((run / "last.safetensors").read_bytes()).hexdigest()


def main():
    arguments = parse()
    check_text(arguments.text)
    seconds, log, sha256 = train(arguments.build, arguments.text)
    validations = [line for line in log if "validation_loss" in line]
    loss, steps = validations[-1]["validation_loss"], validations[-1]["step"]
    under = next((line for line in validations if line["validation_loss"] < MOST_LOSS), None)
    print(f"tiny-shakespeare: validation loss {loss:.4f} after {steps} steps, nanoGPT's {MOST_LOSS}, ratio {loss / MOST_LOSS:.3f}; "
          f"{seconds:.1f} s of wall time; checkpoint {sha256[:16]}")
    if under:
        print(f"first validation under {MOST_LOSS}: {under['validation_loss']:.4f}, after {under['step']} steps and "
              f"{under['seconds']:.1f} s of training")
    write_json(arguments.json, {
        "validation_loss": loss, "nanogpt": MOST_LOSS, "ratio": loss / MOST_LOSS, "steps": steps, "wall_seconds": seconds,
        "sha256": sha256,
        "first_under": under and {key: under[key] for key in ("step", "seconds", "validation_loss")}})
    if steps != 2000 or not loss < MOST_LOSS:
        sys.exit(f"tiny-shakespeare: the validation loss after 2,000 steps is to be under {MOST_LOSS}")


if __name__ == "__main__":
    main()
