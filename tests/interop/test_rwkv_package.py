"""The engine against the public `rwkv` package (CPU, fp32): logits and greedy tokens of random RWKV-7 files, by every
instruction set that this machine has."""

import os
import pathlib
import subprocess
import sys
import types

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


TIERS = ["plain", "avx2", "avx512", "avx512bf16", "amx"]
# Root of the mean square of the difference, as part of that of the logits: weights or factors are rounded.
ROUNDED = {"bf16": 0.05, "int8": 0.1, "int8a8": 0.1}


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
    """Skips the test on a machine that does not have the tier."""
    out = tmp_path / "logits.f32"
    run = subprocess.run([BUILD / "tests" / "logits_tool", path, weights, out, str(greedy), *map(str, prompt)],
                         capture_output=True, text=True, env={**os.environ, "SKEIN_CPU": tier})
    if f"CPU tier '{tier}' needs" in run.stderr:
        pytest.skip(run.stderr.strip())
    assert run.returncode == 0, run.stderr
    return numpy.fromfile(out, dtype=numpy.float32).reshape(len(prompt), -1), list(map(int, run.stdout.split()))


def error(got, want):
    return numpy.abs(got - want).max() / numpy.abs(want).max()


@pytest.fixture(scope="module", params=SHAPES)
def case(request, tmp_path_factory):
    """A random model as .pth and .safetensors, a prompt, and what the package makes of them."""
    from make_random_rwkv7 import make_tensors
    from safetensors.torch import save_file

    folder = tmp_path_factory.mktemp("model")
    options = SHAPES[request.param]
    tensors = make_tensors(**options)
    pth, safetensors = folder / "model.pth", folder / "model.safetensors"
    torch.save(tensors, pth)
    save_file(dict(tensors), safetensors)
    prompt = numpy.random.default_rng(options["seed"]).integers(0, options["vocab"], 40).tolist()
    want, want_tokens = package_logits(pth, prompt, 200)
    return types.SimpleNamespace(pth=pth, safetensors=safetensors, prompt=prompt, want=want, want_tokens=want_tokens)


@pytest.mark.parametrize("tier", TIERS)
def test_logits_and_greedy_tokens_agree(case, tier, tmp_path):
    got, got_tokens = engine_logits(case.pth, case.prompt, 200, tmp_path, tier=tier)
    assert error(got, case.want) < 1e-4
    assert got_tokens == case.want_tokens


def test_both_kinds_of_file_agree(case, tmp_path):
    got, got_tokens = engine_logits(case.safetensors, case.prompt, 200, tmp_path)
    assert error(got, case.want) < 1e-4
    assert got_tokens == case.want_tokens


@pytest.mark.parametrize("weights", ROUNDED)
@pytest.mark.parametrize("tier", TIERS)
def test_rounded_weights_are_close(case, tier, weights, tmp_path):
    got, _ = engine_logits(case.pth, case.prompt, 1, tmp_path, weights, tier)
    assert numpy.linalg.norm(got - case.want) < ROUNDED[weights] * numpy.linalg.norm(case.want)
    assert numpy.abs(got - case.want).max() > 0  # they were rounded
