"""The packed weights that skeind keeps beside a checkpoint (cpu.keep_packed), from outside."""

import os
import pathlib
import shutil

import pytest
from checkpoint import write_tiny_checkpoint
from client import Client

READ = "the packed weights were read"
KEPT = "the packed weights are kept"
ANEW = "the file of packed weights was not used: they were packed anew"
NOT_KEPT = "the packed weights could not be kept; serving goes on"


@pytest.fixture
def checkpoint(model, tmp_path):
    (tmp_path / "models").mkdir()
    return pathlib.Path(shutil.copy(model, tmp_path / "models" / "tiny.safetensors"))


@pytest.fixture
def serve(start, pb, checkpoint):
    """serve(settings) -> (the log of a daemon that has answered and ended, its model's description and answer)"""

    def serve(settings=None):
        daemon = start({"cpu.keep_packed": "true", **(settings or {})}, model=checkpoint)
        client = Client(pb, daemon.channel)
        answer = client.generate("Once", max_tokens=24).ids
        served = client.info.ListModels(pb.info.ListModelsRequest()).models[0]
        daemon.terminate()
        assert daemon.wait() == 0
        return daemon.log(), (served.fingerprint, answer)

    return serve


def beside(checkpoint):
    return [path for path in sorted(checkpoint.parent.iterdir()) if path != checkpoint]


def test_off_by_default(start, checkpoint):
    start(model=checkpoint)
    assert beside(checkpoint) == []


@pytest.mark.parametrize("weights", ["fp32", "bf16", "int8"])
def test_the_next_start_reads_them(serve, checkpoint, weights):
    plain = serve({"cpu.keep_packed": "false", "model.weights": weights})[1]
    log, first = serve({"model.weights": weights})
    assert KEPT in log and READ not in log
    (packed,) = beside(checkpoint)
    assert packed.name.startswith(checkpoint.name + ".") and packed.name.endswith(f"-{weights}.packed")
    log, second = serve({"model.weights": weights})
    assert READ in log and ANEW not in log
    assert first == second == plain


def test_damage_is_told_and_mended(serve, checkpoint):
    _, right = serve()
    (packed,) = beside(checkpoint)
    with open(packed, "r+b") as file:
        file.seek(-100, os.SEEK_END)
        file.write(b"\xff" * 50)
    log, answer = serve()
    assert ANEW in log and "checksum" in log and KEPT in log and answer == right
    os.truncate(packed, 5000)
    log, answer = serve()
    assert ANEW in log and KEPT in log and answer == right
    assert READ in serve()[0]


def test_a_new_checkpoint_under_the_old_name(serve, checkpoint):
    _, old = serve()
    write_tiny_checkpoint(checkpoint, seed=5)
    log, new = serve()
    assert ANEW in log and "has changed" in log and new != old
    assert serve()[1] == new


def test_no_place_for_the_file(serve, checkpoint):
    tier = serve({"cpu.tier": "plain"})[0]
    assert KEPT in tier
    (packed,) = beside(checkpoint)
    packed.unlink()
    packed.mkdir()  # root may write into any folder, but not over this
    log, _ = serve({"cpu.tier": "plain"})
    assert NOT_KEPT in log and "not a regular file" in log
