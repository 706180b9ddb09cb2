"""The engine against the public `rwkv` package (CPU, fp32): logits and greedy tokens of random RWKV-7 files."""

import os
import pathlib
import subprocess
import sys

os.environ.update(RWKV_V7_ON="1", RWKV_JIT_ON="0", RWKV_CUDA_ON="0")

import numpy
import pytest
import torch

HERE = pathlib.Path(__file__).parent
BUILD = pathlib.Path(os.environ["SKEIN_BUILD"])
sys.path.insert(0, str(HERE))

SHAPES = {
    "head 32": dict(layers=2, width=96, head_size=32, vocab=300, ffn=384, ranks=(16, 24, 8, 40), seed=1),
    "head 64": dict(layers=3, width=192, head_size=64, vocab=257, ffn=768, ranks=(17, 9, 5, 33), seed=2),
    "head 128": dict(layers=2, width=256, head_size=128, vocab=500, ffn=1024, ranks=(32, 32, 32, 64), seed=3),
    "odd width": dict(layers=4, width=160, head_size=32, vocab=1001, ffn=640, ranks=(7, 11, 13, 19), seed=4),
}


def package_logits(path, prompt, greedy):
    from rwkv.model import RWKV

    model = RWKV(model=str(path.with_suffix("")), strategy="cpu fp32")
    state, rows, sampled = None, [], []
    for token in prompt:
        out, state = model.forward([token], state)
        rows.append(out.float().numpy().copy())
    for _ in range(greedy):
        sampled.append(int(out.argmax()))
        out, state = model.forward([sampled[-1]], state)
    return numpy.stack(rows), sampled


def engine_logits(path, prompt, greedy, tmp_path, weights="fp32", tier=""):
    out = tmp_path / "logits.f32"
    run = subprocess.run([BUILD / "tests" / "logits_tool", path, weights, out, str(greedy), *map(str, prompt)],
                         capture_output=True, text=True, env={**os.environ, "SKEIN_CPU": tier})
    assert run.returncode == 0, run.stderr
    return numpy.fromfile(out, dtype=numpy.float32).reshape(len(prompt), -1), list(map(int, run.stdout.split()))


@pytest.mark.parametrize("shape", SHAPES)
def test_logits_and_greedy_tokens_agree(shape, tmp_path):
    from make_random_rwkv7 import make_tensors
    from safetensors.torch import save_file

    options = SHAPES[shape]
    tensors = make_tensors(**options)
    pth, safetensors = tmp_path / "model.pth", tmp_path / "model.safetensors"
    torch.save(tensors, pth)
    save_file(dict(tensors), safetensors)
    prompt = numpy.random.default_rng(options["seed"]).integers(0, options["vocab"], 40).tolist()
    want, want_tokens = package_logits(pth, prompt, 200)
    for path in (pth, safetensors):
        got, got_tokens = engine_logits(path, prompt, 200, tmp_path)
        error = numpy.abs(got - want).max() / numpy.abs(want).max()
        assert error < 1e-4, f"{path.suffix}: relative error {error}"
        assert got_tokens == want_tokens, path.suffix
    plain, plain_tokens = engine_logits(pth, prompt, 200, tmp_path, tier="plain")
    assert numpy.abs(plain - want).max() / numpy.abs(want).max() < 1e-4
    assert plain_tokens == want_tokens
