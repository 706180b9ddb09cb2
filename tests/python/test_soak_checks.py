"""That the soak fails when it should, and not from noise: its checks, on figures that are made up."""

import collections
import random
import types

import pytest
from soak import BLOCK, GROWTH, Slope, check_answers, check_counts, kinds_of, least_of_blocks
from soak_user import CANCELLED, COMPARED, CONTINUED, REFUSALS, Failed


def growing(leak, noise, seed, n=15):
    """Resident memory of a run: MiB a minute of a leak, and what comes and goes."""
    rng = random.Random(seed)
    return Slope([(i * BLOCK / 60, 40 + leak * i * BLOCK / 60 + rng.gauss(0, noise)) for i in range(n)])


def test_a_leak_is_seen_and_noise_is_not():
    assert all(growing(leak=2 * GROWTH, noise=1, seed=seed).above(GROWTH) for seed in range(100))
    assert not any(growing(leak=0, noise=4, seed=seed).above(GROWTH) for seed in range(100))
    assert sum(growing(leak=GROWTH, noise=1, seed=seed).above(GROWTH) for seed in range(1000)) < 30  # one in a hundred


def test_peaks_under_load_are_no_growth():
    rng = random.Random(1)
    samples = [(t / 2, {"process_resident_memory_bytes": (40 + rng.choice([0, 0, 30])) * 2**20}) for t in range(1200)]
    blocks = least_of_blocks(samples, skip=150)
    assert len(blocks) == 15 and {least for _, least in blocks} == {40}


def complete():
    """Counts and metrics of a run in which everything happened."""
    counts = collections.Counter({name: 100 for name in [*REFUSALS, CONTINUED, CANCELLED, COMPARED]})
    counts.update({"read_slowly refused: SLOW_READER": 100, "hurry refused: ": 100, "create refused: CONVERSATION_LIMIT": 100})
    values = {'skein_conversations_lost_total{reason="expired"}': 100,
              'skein_state_evictions_total{from="device",model="m",to="host"}': 100,
              'skein_state_evictions_total{from="host",to="none"}': 100,
              'skein_state_cache_misses_total{model="m",reason="evicted"}': 100}
    return counts, values


@pytest.mark.parametrize("missing", list(complete()[0]) + list(complete()[1]))
def test_each_kind_has_to_happen(missing):
    counts, values = complete()
    check_counts(kinds_of(counts, values), 600)
    (counts if missing in counts else values)[missing] = 29
    with pytest.raises(Failed, match="too few"):
        check_counts(kinds_of(counts, values), 600)


@pytest.mark.parametrize("line, code, fails", [
    ("2026-01-01 00:00:00.000 info request id=x error=y", "OK", False),
    ("2026-01-01 00:00:00.000 error request id=x", "OK", True),
    ("2026-01-01 00:00:00.000 info ready", "INTERNAL", True),
    ("2026-01-01 00:00:00.000 info ready", "UNAVAILABLE", True),
])
def test_answers_and_the_log(line, code, fails):
    values = {f'grpc_server_handled_total{{grpc_code="{code}",grpc_method="Generate"}}': 1}
    daemon = types.SimpleNamespace(lines=[line, None])
    if not fails:
        check_answers(daemon, values)
        return
    with pytest.raises(Failed):
        check_answers(daemon, values)
