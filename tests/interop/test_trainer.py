"""skein-train against other people's code: plain PyTorch, torch.load, the rwkv package, TensorBoard."""

import json
import math
import os
import pathlib
import random
import struct
import subprocess

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import rwkv7_reference as reference
from test_rwkv_package import engine_logits, package_logits

torch.set_num_threads(1)

BUILD = pathlib.Path(os.environ["SKEIN_BUILD"])
TRAIN = BUILD / "bin" / "skein-train"

STEPS, CONTEXT, BATCH, ACCUMULATE, WARMUP = 50, 32, 4, 2, 10
LR, LR_FINAL, DECAY = 2e-3, 2e-4, 0.1


def write_text(path):
    rng = random.Random(3)
    words = "a river of geese goes over the quiet lake to where the sea begins and the wind ends".split()
    path.write_text("".join(rng.choice(words) + " " for _ in range(9000)))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """50 steps in fp32 with the magic-prime sampler, all artefacts written."""
    folder = tmp_path_factory.mktemp("trainer")
    write_text(folder / "data.txt")
    keys = {"run.folder": folder / "run", "data.train": folder / "data.txt", "data.validation_fraction": 0,
            "data.sampler": "magic-prime", "model.layers": 2, "model.width": 64, "model.head_size": 32,
            "train.context": CONTEXT, "train.batch": BATCH, "train.accumulate": ACCUMULATE, "train.steps": STEPS,
            "train.warmup": WARMUP, "train.lr": LR, "train.lr_final": LR_FINAL, "train.weight_decay": DECAY,
            "train.compute": "fp32", "train.threads": 1, "save.initial": "true", "save.pth": "true", "log.every": 1, "evaluate.samples": 0}
    arguments = [part for key, value in keys.items() for part in ("--set", f"{key}={value}")]
    done = subprocess.run([TRAIN, *arguments], capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr
    return folder


def log_lines(run):
    return [json.loads(line) for line in (run / "run" / "log.jsonl").read_text().splitlines()]


def magic_prime(slots):
    p = slots - 1
    while p % 3 != 2 or any(p % d == 0 for d in range(2, math.isqrt(p) + 1)):
        p -= 1
    return p


def sample(tokens, index):
    """The published sampler: tokens and labels of one sample."""
    p = magic_prime(len(tokens) // CONTEXT)
    factor = int(p * (math.sqrt(5) - 1) / 2)
    at = factor * (index + 1) ** 3 % p * CONTEXT
    return tokens[at:at + CONTEXT], tokens[at + 1:at + CONTEXT + 1]


def learning_rate(step):
    progress = max(0, step - WARMUP) / (STEPS - WARMUP)
    f = LR_FINAL / LR
    lr = LR * ((1 + f) / 2 + (1 - f) / 2 * math.cos(math.pi * progress))
    return lr * (0.01 + 0.99 * step / WARMUP) if step < WARMUP else lr


def test_fifty_steps_equal_plain_pytorch(run):
    model = reference.Reference(load_file(run / "run" / "initial.safetensors"))
    optimizer = reference.AdamW(model.params, weight_decay=DECAY)
    tokens = torch.tensor([b + 1 for b in (run / "data.txt").read_bytes()] + [0])
    logged = {line["step"]: line for line in log_lines(run) if "loss" in line}
    count = BATCH * ACCUMULATE * CONTEXT
    for step in range(STEPS):
        total = 0.0
        for part in range(ACCUMULATE):
            first = (step * ACCUMULATE + part) * BATCH
            x, y = (torch.stack(s) for s in zip(*(sample(tokens, first + b) for b in range(BATCH))))
            hidden = model.hidden(x)[0].flatten(0, 1)
            loss, cross_entropy = reference.cross_entropy(hidden, model.params["head.weight"], y.flatten(), None, 1e-4,
                                                          count, count)
            loss.backward()
            total += cross_entropy.item() / count
        norm = optimizer.step(learning_rate(step))
        line = logged[step + 1]
        assert line["loss"] == pytest.approx(total, abs=1e-4), f"step {step + 1}"
        assert line["lr"] == pytest.approx(learning_rate(step), rel=1e-9)
        assert line["grad_norm"] == pytest.approx(norm, rel=5e-3), f"step {step + 1}"
    assert logged[STEPS]["loss"] < logged[1]["loss"] - 1  # it did learn


def test_initial_values_are_the_recipe(run):
    """Tensors that are not random are equal; random ones have the right shape, scale and orthogonality."""
    ours = load_file(run / "run" / "initial.safetensors")
    theirs = reference.initial_state_dict(2, 64, 32, 257)
    unused = {f"blocks.0.att.v{i}" for i in range(3)}
    assert set(ours) == set(theirs) - unused
    random_names = 0
    for name, value in ours.items():
        expected = theirs[name]
        assert value.shape == expected.shape, name
        matrix = value.dim() == 2 and not name.endswith("r_k") and expected.abs().sum() > 0
        if not matrix:
            torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-6, msg=name)
            continue
        random_names += 1
        if name == "emb.weight":
            assert value.abs().max() <= 1e-4 and value.std() == pytest.approx(2e-4 / math.sqrt(12), rel=0.05)
            continue
        gram = lambda m: m.T @ m if m.shape[0] >= m.shape[1] else m @ m.T
        torch.testing.assert_close(gram(value), gram(expected), rtol=1e-3, atol=1e-4, msg=name)
    assert random_names == 2 + 2 * 4 + 2 * 3 + 1  # emb, head; R K V ffn.key; w2 a2 g2; v2


def test_pth_opens_with_torch_and_equals_safetensors(run):
    pth = torch.load(run / "run" / "last.pth", weights_only=True)
    safe = load_file(run / "run" / "last.safetensors")
    assert set(pth) == set(safe)
    for name, value in safe.items():
        assert torch.equal(pth[name], value), name


def test_rwkv_package_and_engine_agree_on_a_trained_checkpoint(run, tmp_path):
    """Logits to 1e-4 and 200 greedy tokens: the package, the engine from both files, and the plain reference."""
    folder = run / "run"
    tokens = [b + 1 for b in (run / "data.txt").read_bytes()[:100]]
    expected, greedy = package_logits(folder / "last.pth", tokens, 200)
    scale = np.abs(expected).max()
    for name in ("last.pth", "last.safetensors"):
        served, served_greedy = engine_logits(folder / name, tokens, 200, tmp_path)
        assert np.abs(served - expected).max() / scale < 1e-4, name
        assert served_greedy == greedy, name
    plain = reference.Reference(load_file(folder / "last.safetensors")).logits(torch.tensor([tokens]))[0]
    assert np.abs(plain.detach().numpy() - expected).max() / scale < 1e-4


def test_tensorboard_reads_the_events(run):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    events = EventAccumulator(str(run / "run"), size_guidance={"scalars": 0})
    events.Reload()
    logged = {line["step"]: line for line in log_lines(run) if "loss" in line}
    scalars = events.Scalars("train/loss")
    assert [s.step for s in scalars] == sorted(logged)
    for s in scalars:
        assert s.value == pytest.approx(logged[s.step]["loss"], rel=1e-6)
    assert {"train/lr", "train/grad_norm", "train/tokens_per_second"} <= set(events.Tags()["scalars"])


def test_tensorboard_sees_each_step_of_a_killed_and_resumed_run_once(run, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    arguments = [part for key, value in {
        "run.folder": tmp_path / "run", "run.resume": "auto", "data.train": run / "data.txt", "model.layers": 1,
        "model.width": 32, "model.head_size": 16, "train.context": 16, "train.batch": 2, "train.steps": 30,
        "train.warmup": 1, "train.threads": 1, "evaluate.every": 5, "evaluate.max_windows": 4, "evaluate.samples": 0,
        "save.every": 10, "log.every": 1}.items() for part in ("--set", f"{key}={value}")]
    process = subprocess.Popen([TRAIN, *arguments], stdout=subprocess.PIPE, text=True)
    for line in process.stdout:
        if line.startswith("step 17/30"):
            process.kill()
            break
    assert process.wait() == -9
    process.stdout.close()
    assert subprocess.run([TRAIN, *arguments], capture_output=True, timeout=500).returncode == 0
    assert len(list((tmp_path / "run").glob("events.out.tfevents.*"))) == 2
    events = EventAccumulator(str(tmp_path / "run"), size_guidance={"scalars": 0})
    events.Reload()
    assert [s.step for s in events.Scalars("train/loss")] == list(range(1, 31))
    assert [s.step for s in events.Scalars("validation/loss")] == [5, 10, 15, 20, 25, 30]


def test_binidx_reads_as_megatron_wrote_it(run, tmp_path):
    """The written index, by the format's own description."""
    done = subprocess.run([TRAIN, "--set", f"data.train={run}/data.txt", "--set", "data.validation_fraction=0",
                           "--set", f"run.folder={tmp_path}/run", "--write-binidx", tmp_path / "d"],
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    idx = (tmp_path / "d.idx").read_bytes()
    assert idx[:9] == b"MMIDIDX\x00\x00"
    version, code, items, documents = struct.unpack_from("<QBQQ", idx, 9)
    assert (version, code, items, documents) == (1, 8, 1, 2)
    sizes = np.frombuffer(idx, "<i4", items, 34)
    offsets = np.frombuffer(idx, "<i8", items, 34 + 4 * items)
    ends = np.frombuffer(idx, "<i8", documents, 34 + 12 * items)
    tokens = np.fromfile(tmp_path / "d.bin", "<u2")
    assert list(sizes) == [len(tokens)] and list(offsets) == [0] and list(ends) == [0, 1]
    assert bytes((tokens[:-1] - 1).astype(np.uint8)) == (run / "data.txt").read_bytes() and tokens[-1] == 0
