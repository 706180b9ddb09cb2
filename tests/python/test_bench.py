"""A benchmark as it is run: the file that it leaves, and a decode step after 100,000 tokens that were really read."""

import json
import subprocess

import pytest

from daemon import BUILD

ENGINE_BENCH = BUILD / "bench" / "engine_bench"


pytestmark = pytest.mark.skipif(not ENGINE_BENCH.exists(), reason="built without benchmarks")


def run(path):
    """Its results by name, its file, and what it printed."""
    command = [str(ENGINE_BENCH), "--shape", "tiny", "--threads", "1", "--rows", "1,4", "--json", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    written = json.loads(path.read_text())
    assert written["command"] == " ".join(command)
    return {line["name"]: line for line in written["figures"]["results"]}, written, done.stdout


def test_a_decode_step_takes_as_long_after_100000_tokens_as_after_100(tmp_path):
    figures, written, printed = run(tmp_path / "out.json")
    assert written["machine"]["processors"] >= 1 and written["machine"]["processor"]
    again, _, _ = run(tmp_path / "again.json")
    for name in ["decode B1", "decode B4", "prefill 256", "prefill 1024"]:
        line = figures[name]
        assert line["ratio"] == pytest.approx(line["tokens_per_second"] / line["floor"])
        assert line["hash"] == again[name]["hash"]  # the same tokens, however long they took
    assert figures["decode B1"]["hash"] != figures["decode B4"]["hash"]
    context = figures["context 100 and 100000"]
    assert context["tokens_read"] == 99_999  # the last one of a prompt waits for what comes next
    # The best of 4,000 steps each, by turns. Attention over 100,000 tokens would take hundreds of times as long; a
    # machine that others use too has been seen to make one side a fifth slower.
    assert context["ratio"] < 2
    assert "best decode step after 100 tokens" in printed
