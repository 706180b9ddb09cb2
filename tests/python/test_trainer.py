"""skein-train from outside: resume after kill -9 and Ctrl-C, a full disk, the run folder, bad input."""

import fcntl
import json
import os
import pathlib
import pty
import random
import re
import resource
import shutil
import signal
import struct
import subprocess
import termios
import threading
import time
import unicodedata

import numpy as np
import pytest

from daemon import BUILD, ROOT, environment, killed_after

TRAIN = BUILD / "bin" / "skein-train"
STEPS = 40

pytestmark = pytest.mark.skipif(not TRAIN.exists(), reason="built without LibTorch")


def text(path):
    rng = random.Random(7)
    words = "the skein of geese flies over a quiet lake and the river runs to the sea".split()
    path.write_text(" ".join(rng.choice(words) for _ in range(4000)))
    return path


def settings(tmp_path, folder="run", **more):
    tmp_path.mkdir(exist_ok=True)
    data = tmp_path / "data.txt"
    if not data.exists():
        text(data)
    keys = {"run.folder": tmp_path / folder, "data.train": data, "model.layers": 2, "model.width": 32,
            "model.head_size": 16, "model.dropout": 0.1, "train.context": 24, "train.batch": 3, "train.accumulate": 2,
            "train.steps": STEPS, "train.warmup": 4, "train.lr": 2e-3, "train.lr_final": 1e-4, "train.threads": 1,
            "train.compute": "fp32", "evaluate.every": 15, "evaluate.samples": 0, "evaluate.max_windows": 10,
            "save.every": 6, "log.every": 1, "log.tensorboard": False, **more}
    return [part for key, value in keys.items() for part in ("--set", f"{key}={str(value).lower() if value in (True, False) else value}")]


def start(arguments, **options):
    return subprocess.Popen([TRAIN, *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **options)


def start_step_by_step(arguments):
    """Its output holds one line at a time, so it is at most two lines further than what was read of it."""
    reading, writing = os.pipe2(os.O_DIRECT | os.O_CLOEXEC)  # packets, of which a page holds one
    fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, resource.getpagesize())
    process = subprocess.Popen([TRAIN, *arguments], stdout=writing, stderr=subprocess.STDOUT)
    os.close(writing)
    process.stdout = os.fdopen(reading)
    return process


def train(arguments, **options):
    return subprocess.run([TRAIN, *arguments], capture_output=True, text=True, timeout=240, **options)


def tensors(path):
    """name -> raw bytes, and the metadata, of a .safetensors file."""
    raw = pathlib.Path(path).read_bytes()
    (size,) = struct.unpack("<Q", raw[:8])
    header = json.loads(raw[8:8 + size])
    metadata = header.pop("__metadata__", {})
    begin = 8 + size
    return {n: raw[begin + t["data_offsets"][0]:begin + t["data_offsets"][1]] for n, t in header.items()}, metadata


def wait_for_step(process, step):
    """False when the process ends before; one that stands still is killed."""
    watch = threading.Timer(240, process.kill)
    watch.start()
    try:
        return any(line.startswith("step ") and int(line.split()[1].split("/")[0].rstrip(":")) >= step
                   for line in process.stdout)
    finally:
        watch.cancel()


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that was never stopped."""
    path = tmp_path_factory.mktemp("whole")
    done = train(settings(path))
    assert done.returncode == 0, done.stderr
    return path


def steps(folder):
    return [(line["step"], line["loss"], line["grad_norm"])
            for line in map(json.loads, (folder / "log.jsonl").read_text().splitlines()) if "loss" in line]


def same_end(whole, path, folder="run"):
    # Step by step first: where the two part says more than how their weights differ.
    assert steps(path / folder) == steps(whole / "run")
    assert (path / folder / "last.safetensors").read_bytes() == (whole / "run" / "last.safetensors").read_bytes()
    state, metadata = tensors(path / folder / "state.safetensors")
    expected, expected_metadata = tensors(whole / "run" / "state.safetensors")
    assert state == expected
    for key in ["step", "updates", "tokens_seen", "best_loss_bits", "best_step"]:
        assert metadata[key] == expected_metadata[key]


def test_ends_with_the_serving_command(tmp_path, whole):
    again = train(settings(whole, **{"run.resume": "always"}))
    assert again.returncode == 0, again.stderr
    assert f"--model {whole}/run/last.safetensors" in again.stdout
    _, metadata = tensors(whole / "run" / "last.safetensors")
    assert metadata["skein.tokenizer"] == "bytes"
    assert metadata["skein.training_context"] == "24"
    assert metadata["skein.tokens_seen"] == str(STEPS * 2 * 3 * 24)


def serves(command, cwd):
    """Whether the printed command, typed into a shell, starts a server of this model."""
    process = subprocess.Popen(f"exec {command} --set listen.address=127.0.0.1:0 --set listen.metrics=",
                               shell=True, cwd=cwd, env=environment(), stderr=subprocess.PIPE, text=True)
    with killed_after(process, 60):
        ready = any(" ready " in line for line in process.stderr)
        process.terminate()
        process.stderr.close()
        process.wait()
    return ready


@pytest.mark.parametrize("tokens", [50, 6000])
def test_the_printed_command_serves_with_a_vocabulary_of_any_size(tmp_path, tokens):
    """Small ones are part of the checkpoint, large ones a file that skeind has to be told of."""
    folder = tmp_path / "my own"  # the command is quoted as a shell wants it
    folder.mkdir()
    vocabulary = folder / "vocabulary.txt"
    entries = [bytes([i]) for i in range(256)] + [b"%090d" % i for i in range(tokens)]
    vocabulary.write_text("".join(f"{i} {entry!r} {len(entry)}\n" for i, entry in enumerate(entries, 1)))
    assert (vocabulary.stat().st_size > 512 << 10) == (tokens == 6000)
    done = train(settings(folder, **{"data.tokenizer": vocabulary, "train.steps": 1, "train.warmup": 0,
                                     "evaluate.every": 0}), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    command = done.stdout.split("serve it with\n")[1].strip()
    assert serves(command, tmp_path)


def test_a_published_pth_keeps_its_chat_template(tmp_path):
    """It has no metadata; 65,536 rows say what it is: the World vocabulary, which is not in the file, and its chats."""
    vocabulary = tmp_path / "vocabulary.txt"
    entries = [bytes([i]) for i in range(256)] + [b"<%d>" % i for i in range(65529 - 256)]
    vocabulary.write_text("".join(f"{i} {entry!r} {len(entry)}\n" for i, entry in enumerate(entries, 1)))
    small = {"model.layers": 1, "model.width": 16, "train.steps": 1, "train.warmup": 0, "evaluate.every": 0}
    first = train(settings(tmp_path, **small, **{"data.tokenizer": vocabulary, "save.pth": True}))
    assert first.returncode == 0, first.stderr
    _, metadata = tensors(tmp_path / "run" / "last.safetensors")
    assert metadata["skein.chat_template"] == "none"  # it has seen no conversation
    more = {**small, "model.init_from": tmp_path / "run" / "last.pth"}
    refused = train(settings(tmp_path, "more", **more))
    assert refused.returncode == 1
    assert "the key data.tokenizer takes its path" in refused.stderr and "model.vocabulary" not in refused.stderr
    done = train(settings(tmp_path, "more", **more, **{"data.tokenizer": vocabulary}))
    assert done.returncode == 0, done.stderr
    _, metadata = tensors(tmp_path / "more" / "last.safetensors")
    assert (metadata["skein.chat_template"], metadata["skein.tokenizer"]) == ("rwkv", "world")


def test_log_has_every_step_and_the_loss_falls(whole):
    lines = [json.loads(line) for line in (whole / "run" / "log.jsonl").read_text().splitlines()]
    losses = {line["step"]: line["loss"] for line in lines if "loss" in line}
    assert sorted(losses) == list(range(1, STEPS + 1))
    assert losses[STEPS] < losses[1] - 1
    validations = [line for line in lines if "bits_per_byte" in line]
    seconds = [line["seconds"] for line in validations]
    assert len(seconds) == 3 and 0 < seconds[0] < seconds[1] < seconds[2]


def test_samples_of_any_bytes_do_not_harm_a_terminal(tmp_path):
    """A model that has learnt nothing writes every byte there is."""
    arguments = settings(tmp_path, **{"train.steps": 1, "train.warmup": 0, "evaluate.samples": 64,
                                      "evaluate.sample_tokens": 300, "evaluate.temperature": 1})
    done = subprocess.run([TRAIN, *arguments], capture_output=True, timeout=240)
    assert done.returncode == 0, done.stderr
    shown = done.stdout.decode()  # valid UTF-8
    assert shown.count("  | ") == 64 and "\ufffd" in shown
    logged = (tmp_path / "run" / "log.jsonl").read_text()
    written = "".join(sample for line in logged.splitlines() for sample in json.loads(line).get("samples", []))
    assert {"\x1b", "\x7f"} < set(written) and any("\x80" <= c <= "\x9f" for c in written)
    assert [c for c in shown if unicodedata.category(c) == "Cc" and c != "\n"] == []


def test_eighty_columns_show_speed_and_eta(tmp_path):
    terminal, inside = pty.openpty()
    fcntl.ioctl(inside, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    process = subprocess.Popen([TRAIN, *settings(tmp_path)], stdout=inside, stderr=inside)
    os.close(inside)
    output = b""
    try:
        while chunk := os.read(terminal, 65536):
            output += chunk
    except OSError:  # how Linux says that the other side is closed
        pass
    os.close(terminal)
    assert process.wait() == 0
    drawn = [line for line in re.split(r"[\r\n]+(?:\x1b\[K)?", output.decode()) if re.match(r"(\[[#.]+\] )?\d+/", line)]
    assert f"{STEPS}/{STEPS} " in drawn[-1]
    for line in drawn:
        assert len(line) < 80
        for part in ["loss ", "lr ", "grad ", " tok/s", "ETA "]:
            assert part in line


def kill_at_random_steps(tmp_path, times, **more):
    """Starts the run, goes on with it, and kills it every time."""
    rng = random.Random()
    kills = 0
    for _ in range(20 * times):
        process = start(settings(tmp_path, **{"run.resume": "auto", **more}))
        wait_for_step(process, rng.randint(1, STEPS // 2))  # what is left lasts longer than the sleep
        time.sleep(rng.random() * 0.05)
        process.kill()
        alive = process.wait() == -signal.SIGKILL
        process.stdout.close()
        if not alive:  # a busy machine may let it run to its end
            shutil.rmtree(tmp_path / "run")
        kills = kills + 1 if alive else 0
        if kills == times:
            return
    pytest.fail("the kills found it alive too seldom")


def test_kill_9_and_resume_end_in_the_same_bytes(tmp_path, whole):
    kill_at_random_steps(tmp_path, 3)
    done = train(settings(tmp_path, **{"run.resume": "auto"}))
    assert done.returncode == 0, done.stderr
    same_end(whole, tmp_path)
    assert_logged_once(tmp_path)


def assert_logged_once(path):
    """Every step, also those that were made again because a kill came before they were saved."""
    lines = [json.loads(line) for line in (path / "run" / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == list(range(1, STEPS + 1))
    assert [line["step"] for line in lines if "validation_loss" in line] == [15, 30, STEPS]


@pytest.mark.parametrize("batch", [3, 24], ids=["shared-operators", "shards"])
@pytest.mark.parametrize("compute", ["fp32", "bf16"])
def test_resume_is_exact_on_two_threads_and_in_bf16(tmp_path, compute, batch):
    more = {"train.threads": 2, "train.compute": compute, "train.batch": batch}
    done = train(settings(tmp_path / "whole", **more))
    assert done.returncode == 0, done.stderr
    kill_at_random_steps(tmp_path, 2, **more)
    done = train(settings(tmp_path, **{"run.resume": "auto", **more}))
    assert done.returncode == 0, done.stderr
    same_end(tmp_path / "whole", tmp_path)


def leftovers(folder):
    """What is there of files that were not written to the end."""
    return sorted(p.name for p in folder.glob("*.tmp.*"))


def kill_while_it_writes(arguments, folder, name):
    """Runs the trainer a moment at a time until it stands still with `name` half written, and kills it there with -9.
    False: it came to its end.
    """
    process = subprocess.Popen([TRAIN, *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    end = time.monotonic() + 120
    try:
        while time.monotonic() < end:
            time.sleep(0.001)
            # Not send_signal, which would take the exit code of one that has ended away from waitid.
            os.kill(process.pid, signal.SIGSTOP)
            state = os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
            if state.si_code != os.CLD_STOPPED:
                assert process.wait() == 0
                return False
            if list(folder.glob(f"{name}.tmp.*")):
                process.kill()
                assert process.wait() == -signal.SIGKILL
                return True
            os.kill(process.pid, signal.SIGCONT)
        pytest.fail("the trainer came to no end")
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize("name", ["state.safetensors", "last.safetensors", "step-*.safetensors"])
def test_kill_9_while_it_writes_loses_nothing(tmp_path, whole, name):
    for attempt in range(20):  # a busy machine may let it run to its end unseen
        path = tmp_path / str(attempt)
        run = settings(path, **{"run.resume": "auto", "save.every": 1, "save.keep_every": True})
        if kill_while_it_writes(run, path / "run", name):
            break
    else:
        pytest.fail("never caught writing")
    assert len(leftovers(path / "run")) == 1
    done = train(run)
    assert done.returncode == 0, done.stderr
    same_end(whole, path)
    assert leftovers(path / "run") == []
    for step in range(1, STEPS):  # none is missing
        tensors(path / "run" / f"step-{step:06}.safetensors")
    assert_logged_once(path)


def test_a_run_that_was_killed_at_its_first_write_starts(tmp_path):
    """Nothing but a leftover: no run to go on with, and nothing to lose."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml.tmp.12345.0").write_text("run:\n  fol")
    (tmp_path / "run" / "last.safetensors.tmp.12345.1").write_text("x")
    living = open(tmp_path / "run" / "copy.safetensors.tmp.12345.2", "w")  # of another program that writes here
    fcntl.flock(living, fcntl.LOCK_EX)
    refused = train(settings(tmp_path, **{"run.resume": "always"}))
    assert refused.returncode == 1 and "holds no run to resume" in refused.stderr
    done = train(settings(tmp_path, **{"train.steps": 2, "train.warmup": 0, "evaluate.every": 0}))
    assert done.returncode == 0, done.stderr
    assert leftovers(tmp_path / "run") == ["copy.safetensors.tmp.12345.2"]
    living.close()


def test_ctrl_c_writes_a_resumable_state(tmp_path, whole):
    process = start_step_by_step(settings(tmp_path))
    assert wait_for_step(process, 9)
    process.send_signal(signal.SIGINT)
    output = process.stdout.read()
    process.stdout.close()
    assert process.wait() == 130
    assert "run.resume=always" in output
    _, metadata = tensors(tmp_path / "run" / "state.safetensors")
    assert 9 <= int(metadata["step"]) < STEPS
    done = train(settings(tmp_path, **{"run.resume": "always"}))
    assert done.returncode == 0, done.stderr
    assert f"going on after step {metadata['step']}" in done.stdout
    same_end(whole, tmp_path)


def test_a_full_disk_loses_nothing(tmp_path, whole):
    process = start_step_by_step(settings(tmp_path))
    assert wait_for_step(process, 8)
    process.send_signal(signal.SIGINT)
    process.stdout.read()
    process.stdout.close()
    assert process.wait() == 130
    before = (tmp_path / "run" / "state.safetensors").read_bytes()

    def limit():  # no file may grow beyond this: the state is larger, the log is not
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (40000, 40000))

    full = train(settings(tmp_path, **{"run.resume": "always"}), preexec_fn=limit, restore_signals=False)
    assert full.returncode == 1
    assert "is not saved, the save before it is whole" in full.stdout
    assert "state.safetensors" in full.stderr
    assert (tmp_path / "run" / "state.safetensors").read_bytes() == before
    assert sorted(p.name for p in (tmp_path / "run").iterdir() if "tmp" in p.name) == []
    done = train(settings(tmp_path, **{"run.resume": "always"}))
    assert done.returncode == 0, done.stderr
    same_end(whole, tmp_path)


def test_a_run_folder_is_never_overwritten(whole):
    again = train(settings(whole))
    assert again.returncode == 1
    assert "run.resume=always" in again.stderr and "run.folder=" in again.stderr


def test_a_foreign_folder_is_left_alone(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.txt").write_text("mine")
    (tmp_path / "run" / "thesis.txt.tmp.1.1").write_text("mine too")
    for mode in ["never", "auto", "always"]:
        assert train(settings(tmp_path, **{"run.resume": mode})).returncode == 1
    assert sorted(p.name for p in (tmp_path / "run").iterdir()) == ["thesis.txt", "thesis.txt.tmp.1.1"]


def test_one_folder_one_trainer(tmp_path):
    first = start(settings(tmp_path, **{"train.steps": 100000}))
    try:
        assert wait_for_step(first, 2)
        second = train(settings(tmp_path, **{"run.resume": "auto", "train.steps": 100000}))
        assert second.returncode == 1
        assert "in use by another skein-train" in second.stderr
    finally:
        first.kill()
        first.wait()
        first.stdout.close()


def test_threads_are_those_of_the_cpu_quota(tmp_path):
    """A control group of 1.5 CPUs, as a container with --cpus 1.5 has it: a second thread would wait half of the time."""
    (tmp_path / "cgroup").mkdir()
    (tmp_path / "cgroup" / "cpu.max").write_text("150000 100000\n")
    (tmp_path / "cgroups").write_text("0::/\n")
    # The shell's own process, which becomes the trainer; /proc/self would be mount's.
    mounts = f"mount --bind {tmp_path}/cgroup /sys/fs/cgroup && mount --bind {tmp_path}/cgroups /proc/$$/cgroup"
    within = ["unshare", "--mount", "--map-root-user", "sh", "-c"]
    if subprocess.run([*within, mounts], capture_output=True).returncode != 0:
        pytest.skip("this machine lets a test mount nothing")
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("one processor is all there is")
    run = settings(tmp_path, **{"train.threads": 0, "train.steps": 1, "train.warmup": 0, "evaluate.every": 0})
    done = subprocess.run([*within, f'{mounts} && exec "$@"', "sh", TRAIN, *run], capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    assert ", 1 threads" in done.stdout


def test_resume_refuses_another_config(whole):
    changed = train(settings(whole, **{"run.resume": "always", "train.lr": 1e-3}))
    assert changed.returncode == 1
    assert "train.lr" in changed.stderr and "model.init_from" in changed.stderr


def test_an_existing_output_is_not_overwritten(tmp_path):
    (tmp_path / "model.safetensors").write_text("precious")
    refused = train(settings(tmp_path, **{"run.output": tmp_path / "model.safetensors"}))
    assert refused.returncode == 1
    assert "model.safetensors exists already" in refused.stderr


def test_a_non_finite_step_is_skipped_and_said(tmp_path, whole):
    """Continues from weights in which the embedding of 'Q' is NaN, on a text with a few of them."""
    source = (whole / "run" / "last.safetensors").read_bytes()
    (size,) = struct.unpack("<Q", source[:8])
    header = json.loads(source[8:8 + size])
    at = 8 + size + header["emb.weight"]["data_offsets"][0] + (ord("Q") + 1) * 32 * 4
    raw = bytearray(source)
    raw[at:at + 32 * 4] = np.full(32, np.nan, "<f4").tobytes()
    (tmp_path / "nan.safetensors").write_bytes(raw)
    words = text(tmp_path / "data.txt").read_text()
    (tmp_path / "data.txt").write_text(words[:9000] + " Q " + words[9000:])
    done = train(settings(tmp_path, **{"model.init_from": tmp_path / "nan.safetensors", "train.steps": 300,
                                       "evaluate.every": 0, "save.every": 0, "model.dropout": 0, "log.every": 50}))
    assert done.returncode == 0, done.stderr
    assert "skipped, the loss is not finite" in done.stdout
    weights, _ = tensors(tmp_path / "run" / "last.safetensors")
    for name, value in weights.items():
        numbers = np.frombuffer(value, "<f4")
        expected = 32 if name == "emb.weight" else 0
        assert np.isnan(numbers).sum() == expected, name


def steps_without_labels(tmp_path, **more):
    """Windows of a conversation in which the user talks long: what he says has no loss weight. The number skipped."""
    (tmp_path / "data.jsonl").write_text("".join(json.dumps({"messages": [
        {"role": "user", "content": "tell me more " * 30}, {"role": "assistant", "content": "no " * 30}]}) + "\n"
        for _ in range(20)))
    done = train(settings(tmp_path, **{"data.train": tmp_path / "data.jsonl", "train.batch": 1, "train.accumulate": 1,
                                       "evaluate.every": 0, "save.initial": True, **more}))
    assert done.returncode == 0, done.stderr
    return done.stdout.count("skipped, none of its labels counts; the weights are as before")


def test_a_step_without_labels_is_no_step(tmp_path):
    skipped = steps_without_labels(tmp_path)
    assert 5 < skipped < STEPS - 5
    _, metadata = tensors(tmp_path / "run" / "state.safetensors")
    assert (int(metadata["step"]), int(metadata["updates"])) == (STEPS, STEPS - skipped)
    weights, _ = tensors(tmp_path / "run" / "last.safetensors")
    assert all(np.isfinite(np.frombuffer(value, "<f4")).all() for value in weights.values())


def test_steps_without_any_label_change_nothing(tmp_path):
    """Neither weight decay nor momentum."""
    assert steps_without_labels(tmp_path, **{"data.assistant_weight": 0}) == STEPS
    weights, _ = tensors(tmp_path / "run" / "last.safetensors")
    initial, _ = tensors(tmp_path / "run" / "initial.safetensors")
    assert weights == initial


@pytest.mark.parametrize("change, message", [
    ({"train.lerning_rate": 1}, "train.lerning_rate"),
    ({"model.head_size": 24}, "multiple of 16"),
    ({"data.train": "/nowhere/text.txt"}, "/nowhere/text.txt"),
    ({"train.context": 100000}, "less than one window"),
    ({"data.sampler": "magic-prime"}, "data.sampler"),
    ({"data.tokenizer": "/nowhere/vocabulary.txt"}, "data.tokenizer"),
    ({"model.init_from": "/nowhere/model.safetensors"}, "/nowhere/model.safetensors"),
    ({"run.resume": "always"}, "holds no run to resume"),
])
def test_bad_input_is_named(tmp_path, change, message):
    if change.get("data.sampler"):
        change = {**change, "train.context": 1500}
    refused = train(settings(tmp_path, **change))
    assert refused.returncode == 1
    assert message in refused.stderr
    assert len(refused.stderr.splitlines()) == 1


def test_unknown_key_names_the_nearest(tmp_path):
    refused = train(["--set", "train.contxt=3"])
    assert refused.returncode == 1
    assert "train.context" in refused.stderr


def test_bad_json_lines_are_named_with_their_line(tmp_path):
    data = tmp_path / "data.jsonl"
    data.write_text('{"text": "fine"}\n{"messages": [{"role": "robot", "content": "x"}]}\n')
    refused = train(settings(tmp_path, **{"data.train": data}))
    assert refused.returncode == 1
    assert "data.jsonl:2:" in refused.stderr and "robot" in refused.stderr


def test_print_effective_config_reads_back(tmp_path):
    printed = train(["--set", "train.lr=0.00123", "--print-effective-config"])
    assert printed.returncode == 0
    (tmp_path / "config.yaml").write_text(printed.stdout)
    again = train(["--config", str(tmp_path / "config.yaml"), "--print-effective-config"])
    assert again.stdout == printed.stdout
    assert "0.00123" in printed.stdout


@pytest.mark.parametrize("config", sorted(p.name for p in (ROOT / "trainer" / "configs").glob("*.yaml")))
def test_shipped_configs_are_valid(config):
    assert train(["--config", str(ROOT / "trainer" / "configs" / config), "--print-effective-config"]).returncode == 0


def test_help_lists_the_keys():
    shown = train(["--help"])
    assert shown.returncode == 0
    assert "train.lr_final" in shown.stdout and "--write-binidx" in shown.stdout


def test_written_binidx_trains_to_the_same_weights(tmp_path, whole):
    """Text and its binidx are the same data."""
    written = train([*settings(tmp_path), "--write-binidx", str(tmp_path / "tokens")])
    assert written.returncode == 0, written.stderr
    done = train(settings(tmp_path, **{"data.train": tmp_path / "tokens", "data.validation": tmp_path / "tokens.validation"}))
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "last.safetensors").read_bytes() == (whole / "run" / "last.safetensors").read_bytes()
