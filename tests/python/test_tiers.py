"""Every instruction set that this machine has, forced by SKEIN_CPU from the outside: a daemon says the same on each."""

import pytest
from client import Client
from daemon import Daemon, environment

TIERS = ["plain", "avx2", "avx512", "avx512bf16", "amx"]
WEIGHTS = ["fp32", "bf16", "int8", "int8a8"]
PROMPT = "It was the best of times, it was the worst of times"


def answers(model, pb, cwd, tier, more=None):
    """What a daemon of that tier says greedily with each type of weights; skips the test where the machine has none."""
    models = ", ".join(f"{{path: {model}, name: {weights}, weights: {weights}}}" for weights in WEIGHTS[1:])
    settings = {"model.name": WEIGHTS[0], "model.weights": WEIGHTS[0], "models": f"[{models}]", **(more or {})}
    try:
        daemon = Daemon(model, cwd, settings=settings, env={**environment(), "SKEIN_CPU": tier})
    except AssertionError as ended:
        if f"CPU tier '{tier}' needs" not in str(ended):
            raise
        pytest.skip(f"this machine does not have {tier}")
    try:
        client = Client(pb, daemon.channel)
        assert client.info.GetServerInfo(pb.info.GetServerInfoRequest()).device_tier == tier
        return {weights: client.generate(PROMPT, max_tokens=40, model=weights).ids for weights in WEIGHTS}
    finally:
        daemon.stop()


@pytest.fixture(scope="module")
def plain(model, pb, tmp_path_factory):
    return answers(model, pb, tmp_path_factory.mktemp("plain"), "plain")


@pytest.mark.parametrize("tier", TIERS[1:])
def test_greedy_answers_are_those_of_the_plain_loops(plain, model, pb, tmp_path, tier):
    assert len(set(plain["fp32"])) > 5  # an answer that goes on and on would show little
    assert answers(model, pb, tmp_path, tier) == plain


def test_greedy_answers_are_the_same_when_prompts_are_read_by_chunks(plain, model, pb, tmp_path):
    assert answers(model, pb, tmp_path, "amx", {"cpu.chunked_wkv": "true"}) == plain


def test_chunks_that_the_instruction_set_does_not_have_are_told(start):
    daemon = start({"cpu.tier": "plain", "cpu.chunked_wkv": "true"})
    assert "warning cpu.chunked_wkv changes nothing here: it needs the instruction set amx tier=plain" in daemon.log()
