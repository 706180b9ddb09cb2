"""What the trainer's validation printed is what skeind's Score says of the checkpoint that it wrote."""

import json
import math
import re

import pytest

from client import Client
from daemon import Daemon
from test_score import score
from test_trainer import TRAIN, settings, text, train

CONTEXT = 24
pytestmark = pytest.mark.skipif(not TRAIN.exists(), reason="built without LibTorch")


def served_loss(client, tokens):
    """Mean cross-entropy over all non-overlapping windows, each from an empty state, as the trainer validates."""
    g = client.pb.gen
    total, count = 0.0, 0
    for begin in range(0, len(tokens) - 1, CONTEXT):
        window = tokens[begin:begin + CONTEXT + 1]
        [result] = score(client, token_ids=g.TokenIds(ids=window[:1]), parts=[window[1:]])
        assert len(result["tokens"]) == len(window) - 1
        total -= result["total"]
        count += len(window) - 1
    return total / count


# bf16: both sides round the inputs of every product to 8 bits, at the same places, and sum in another order.
@pytest.mark.parametrize("compute, tolerance", [("fp32", 1e-6), ("bf16", 5e-4)])
def test_score_says_the_validation_loss_of_a_fresh_checkpoint(tmp_path, pb, compute, tolerance):
    validation = text(tmp_path / "validation.txt").read_bytes()[:1500]
    (tmp_path / "validation.txt").write_bytes(validation)
    done = train(settings(tmp_path, **{"data.validation": tmp_path / "validation.txt", "train.compute": compute,
                                       "train.context": CONTEXT, "evaluate.every": 0}))
    assert done.returncode == 0, done.stderr
    printed = re.findall(r"validation loss ([0-9.]+)", done.stdout)
    [logged] = [line["validation_loss"] for line in map(json.loads, (tmp_path / "run" / "log.jsonl").read_text().splitlines())
                if "validation_loss" in line]
    assert printed == [f"{logged:.4f}"]
    daemon = Daemon(tmp_path / "run" / "last.safetensors", tmp_path, {"model.weights": compute})
    try:
        served = served_loss(Client(pb, daemon.channel), [byte + 1 for byte in validation] + [0])
    finally:
        daemon.stop()
    print(f"{compute}: validation {logged:.7f}, served {served:.7f}, relative difference {abs(served / logged - 1):.1e}")
    assert served == pytest.approx(logged, rel=tolerance)
    assert logged < math.log(257) - 2  # it has learnt something to compare
