"""One training run by two processes under mpirun: the figures of one process, one voice, one folder, any of them ends all."""

import contextlib
import json
import os
import pathlib
import shutil
import signal
import subprocess
import time

import pytest

from daemon import killed_after
from test_trainer import TRAIN, settings, tensors, train, wait_for_step

MPIRUN = ["mpirun", "--allow-run-as-root", "--oversubscribe", "--bind-to", "none"]
STEPS = 30

pytestmark = pytest.mark.skipif(not TRAIN.exists(), reason="built without LibTorch")


def built_without_mpi():
    return TRAIN.exists() and "built without MPI" in subprocess.run([TRAIN, "--help"], capture_output=True, text=True).stdout


needs_mpi = pytest.mark.skipif(built_without_mpi() or shutil.which("mpirun") is None,
                               reason="skein-train was built without MPI: deploy/install-deps.sh --mpi, then build again")


def keys(**more):
    return {"train.batch": 4, "train.steps": STEPS, "evaluate.every": 10, "save.every": 10, **more}


def command(processes, arguments):
    return [*MPIRUN, "-n", str(processes), TRAIN, *arguments] if processes > 1 else [TRAIN, *arguments]


def run(processes, path, **more):
    return subprocess.run(command(processes, settings(path, **keys(**more))), capture_output=True, text=True, timeout=240)


def succeeds(processes, path, **more):
    done = run(processes, path, **more)
    assert done.returncode == 0, done.stdout + done.stderr
    return done


def log(path):
    return [json.loads(line) for line in (path / "run" / "log.jsonl").read_text().splitlines()]


def assert_same_course(path, expected):
    """Every step once, with the same figures but for rounding in fp32: another order of summing."""
    ours, theirs = log(path), log(expected)
    assert [(e["step"], sorted(e)) for e in ours] == [(e["step"], sorted(e)) for e in theirs]
    for a, b in zip(ours, theirs):
        for figure in ["loss", "grad_norm", "validation_loss", "bits_per_byte"]:
            assert a.get(figure, 0) == pytest.approx(b.get(figure, 0), rel=1e-5), (a, b)
        assert a.get("tokens_seen") == b.get("tokens_seen") and a.get("skipped") == b.get("skipped")


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The whole run by one process: dropout, two micro-batches a step."""
    path = tmp_path_factory.mktemp("alone")
    succeeds(1, path)
    return path


@pytest.fixture(scope="module")
def together(tmp_path_factory):
    """The same by two, each with half of the rows."""
    path = tmp_path_factory.mktemp("together")
    return path, succeeds(2, path)


@needs_mpi
def test_two_processes_give_the_losses_of_one(alone, together):
    assert_same_course(together[0], alone)
    state, metadata = tensors(together[0] / "run" / "state.safetensors")
    expected, expected_metadata = tensors(alone / "run" / "state.safetensors")
    assert sorted(metadata) == sorted(expected_metadata)
    for key in ["step", "updates", "tokens_seen", "best_step", "layout"]:
        assert metadata[key] == expected_metadata[key]
    assert {name: len(raw) for name, raw in state.items()} == {name: len(raw) for name, raw in expected.items()}


@needs_mpi
def test_only_the_lead_speaks(together, alone):
    output = together[1].stdout
    for line in ["model: ", "data: ", "compute: ", "run: ", f"step {STEPS}/{STEPS} ", "Trained in "]:
        assert output.count(line) == 1, output
    assert "2 processes of 1 threads" in output
    assert sorted(os.listdir(together[0] / "run")) == sorted(os.listdir(alone / "run"))


@needs_mpi
def test_two_processes_give_the_same_bytes_again(together, tmp_path):
    shutil.copy(together[0] / "data.txt", tmp_path)
    succeeds(2, tmp_path)
    for name in ["last.safetensors", "best.safetensors"]:
        assert (tmp_path / "run" / name).read_bytes() == (together[0] / "run" / name).read_bytes()
    assert tensors(tmp_path / "run" / "state.safetensors")[0] == tensors(together[0] / "run" / "state.safetensors")[0]


@needs_mpi
def test_labels_count_the_same_wherever_they_are(tmp_path):
    """Of a row with long words of the user only a few labels count, or none: the mean is over those of both processes.
    Steps without any are skipped by both."""
    data = tmp_path / "data.jsonl"
    data.write_text("".join(json.dumps({"messages": [
        {"role": "user", "content": "tell me more " * (5 + i % 30)}, {"role": "assistant", "content": "no " * (i % 7 + 1)}]})
        + "\n" for i in range(60)))
    more = {"data.train": data, "train.batch": 2, "train.accumulate": 1, "data.user_weight": 0}
    for name, processes in [("one", 1), ("two", 2)]:
        succeeds(processes, tmp_path / name, **more)
    assert_same_course(tmp_path / "two", tmp_path / "one")
    skipped = [entry for entry in log(tmp_path / "one") if entry.get("skipped")]
    assert 0 < len(skipped) < STEPS


@needs_mpi
def test_a_model_of_many_buckets(tmp_path):
    """Buckets hold parts of parameters and are sent while the backward pass goes on."""
    more = {"model.layers": 4, "model.width": 192, "model.head_size": 64, "train.steps": 6, "train.warmup": 1,
            "evaluate.every": 0, "save.every": 0}
    for name, processes in [("one", 1), ("two", 2)]:
        succeeds(processes, tmp_path / name, **more)
    assert_same_course(tmp_path / "two", tmp_path / "one")


def ranks(mpirun):
    """rank -> process id of mpirun's children."""
    found = {}
    for folder in pathlib.Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # ended meanwhile
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            variables = (folder / "environ").read_bytes().split(b"\0") if parent == mpirun.pid else []
            for value in [v for v in variables if v.startswith(b"OMPI_COMM_WORLD_RANK=")]:
                found[int(value.partition(b"=")[2])] = int(folder.name)
    return found


def wait_until_gone(processes):
    deadline = time.monotonic() + 60
    while alive := [pid for pid in processes if pathlib.Path(f"/proc/{pid}/exe").exists()]:
        assert time.monotonic() < deadline, alive
        time.sleep(0.05)


@contextlib.contextmanager
def started(processes, path, **more):
    """A run that has made its twelfth step; nothing of it is left afterwards."""
    arguments = command(processes, settings(path, **keys(**more)))
    process = subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        with killed_after(process, 120):
            assert wait_for_step(process, 12)
            yield process
            process.rest = process.stdout.read()
            process.wait()
    finally:
        process.kill()
        process.wait()


def step_of(path):
    return int(tensors(path / "run" / "state.safetensors")[1]["step"])


def interrupted(processes, path, alone, end, **more):
    """A run that `end(process)` has ended in the middle, and its folder."""
    for attempt in range(20):  # a busy machine may let it run to its end unseen
        folder = path / str(attempt)
        folder.mkdir()
        shutil.copy(alone / "data.txt", folder)
        with started(processes, folder, **more) as process:
            with contextlib.suppress(KeyError, ProcessLookupError):  # it has ended
                end(process)
        if process.returncode != 0 and step_of(folder) < STEPS:
            return process, folder
    pytest.fail("never caught at work")


@needs_mpi
def test_sigterm_to_any_rank_stops_all_and_one_goes_on(alone, tmp_path):
    process, folder = interrupted(2, tmp_path, alone, lambda process: os.kill(ranks(process)[1], signal.SIGTERM),
                                  **{"save.every": 0})
    assert process.returncode == 130, process.rest
    assert process.rest.count("stopped after step") == 1
    succeeds(1, folder, **{"run.resume": "always", "save.every": 0})
    assert_same_course(folder, alone)


@needs_mpi
def test_sigusr1_to_mpirun_stops_all(tmp_path):
    with started(2, tmp_path, **{"train.steps": 3000, "save.every": 0, "evaluate.every": 0}) as process:
        process.send_signal(signal.SIGUSR1)
    assert process.returncode == 130, process.rest
    assert 12 <= step_of(tmp_path) < 3000


@needs_mpi
def test_ctrl_c_ends_all_with_a_state(tmp_path):
    """mpirun kills its processes a second after: on a busy machine the state may be that of the last save."""
    with started(2, tmp_path, **{"train.steps": 3000, "evaluate.every": 0}) as process:
        both = ranks(process)
        process.send_signal(signal.SIGINT)
    assert process.returncode != 0
    wait_until_gone(both.values())
    assert 10 <= step_of(tmp_path) < 3000


@needs_mpi
def test_one_process_stopped_two_go_on(alone, tmp_path):
    process, folder = interrupted(1, tmp_path, alone, lambda process: process.send_signal(signal.SIGINT))
    assert process.returncode == 130, process.rest
    succeeds(2, folder, **{"run.resume": "always"})
    assert_same_course(folder, alone)


@needs_mpi
@pytest.mark.parametrize("rank", [0, 1])
def test_a_killed_rank_ends_all_and_the_run_goes_on(alone, tmp_path, rank):
    both = {}

    def kill(process):
        both.update(ranks(process))
        os.kill(both[rank], signal.SIGKILL)

    process, folder = interrupted(2, tmp_path, alone, kill)
    assert f"process rank {rank} " in process.rest and "signal 9" in process.rest
    wait_until_gone(both.values())
    assert step_of(folder) in [10, 20]
    succeeds(1, folder, **{"run.resume": "always"})
    assert_same_course(folder, alone)


@needs_mpi
@pytest.mark.parametrize("change, message", [
    ({"train.batch": 5}, "train.batch is 5, of all processes together, and must be a multiple of their number, 2: "
                         "--set train.batch=6 or 4"),
    ({"data.train": "/nowhere/text.txt"}, "/nowhere/text.txt"),
    ({"train.lr_final": 1}, "train.lr_final is above train.lr"),
])
def test_an_error_is_said_once_and_ends_all(tmp_path, change, message):
    done = run(2, tmp_path, **change)
    assert done.returncode == 1
    assert done.stderr.count(message) == 1 and done.stderr.count("skein-train: ") == 1, done.stderr
    assert not (tmp_path / "run" / "state.safetensors").exists()


@needs_mpi
def test_processes_with_different_configs_do_not_train(tmp_path):
    """Here the second has another seed."""
    arguments = settings(tmp_path, **keys())
    done = subprocess.run([*MPIRUN, "-n", "1", TRAIN, *arguments, ":", "-n", "1", TRAIN, *arguments, "--set", "train.seed=2"],
                          capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert done.stderr.count("the processes were given different configs") == 1


@needs_mpi
def test_processes_that_compute_differently_save_nothing(tmp_path):
    """Processors of two kinds: the plain loops round otherwise than AVX2, so the weights come apart."""
    arguments = settings(tmp_path, **keys())
    done = subprocess.run([*MPIRUN, "-n", "1", "-x", "SKEIN_CPU=plain", TRAIN, *arguments, ":", "-n", "1", TRAIN, *arguments],
                          capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert done.stderr.count("no longer alike at step 10, and are not saved") == 1, done.stderr
    assert not (tmp_path / "run" / "state.safetensors").exists()


def test_processes_that_cannot_find_each_other_do_not_train(tmp_path):
    """A build without MPI, or a launcher of another one: each process would train alone, in the same folder."""
    done = train(settings(tmp_path, **keys()), env={**os.environ, "OMPI_COMM_WORLD_SIZE": "2"})
    assert done.returncode != 0
    assert ("built without MPI" if built_without_mpi() else "one of 2 processes, but MPI finds 1") in done.stderr
    assert not (tmp_path / "run").exists()


def test_a_batch_script_of_slurm_starts_one_process(tmp_path):
    """There SLURM_NTASKS says what srun would start."""
    done = train(settings(tmp_path, **keys(**{"train.steps": 5})), env={**os.environ, "SLURM_NTASKS": "2"})
    assert done.returncode == 0, done.stderr
