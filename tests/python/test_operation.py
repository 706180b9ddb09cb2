"""Running the daemon: configuration, start-up errors, health, reflection, drain, logs."""

import json
import os
import signal
import socket
import struct
import time

import grpc
import pytest
from client import ENDLESS, Client, Running, details, expect_error, fresh_id
from daemon import Daemon, environment, run
from grpc_health.v1 import health_pb2, health_pb2_grpc

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
SERVICES = ["skein.v1.Generation", "skein.v1.Conversations", "skein.v1.Info", "skein.v1.Control"]


# Configuration.

def test_unknown_key_names_line_and_nearest(tmp_path):
    (tmp_path / "config.yaml").write_text("# a comment\nlimits:\n  queud: 8\n")
    result = run("--check-config", cwd=tmp_path)
    assert result.returncode == 1
    assert "config.yaml:3" in result.stderr
    assert "limits.queud" in result.stderr and "limits.queued" in result.stderr


@pytest.mark.parametrize("text,words", [
    ("limits:\n  queued: many\n", ["config.yaml:2", "limits.queued"]),
    ("limits:\n  queued: 0\n", ["config.yaml:2", "limits.queued"]),
    ("listen: [\n", ["config.yaml"]),
    ("defaults:\n  max_tokens: 100000\n", ["defaults.max_tokens", "limits.max_tokens"]),
    ("model:\n  weights: int3\n", ["config.yaml:2", "model.weights", "bf16"]),
    ("cpu:\n  tier: z80\n", ["cpu: unknown CPU tier 'z80'"]),
    ("cpu:\n  pin: 60000\n", ["cpu: CPU 60000 is not among those"]),
    ("listen:\n  metrics: nowhere\n", ["listen.metrics: 'nowhere' is no address"]),
    ("models: [{path: demo.pth}]\n", ["models: two models have the name 'demo'"]),
])
def test_bad_values(tmp_path, text, words):
    (tmp_path / "config.yaml").write_text(text)
    result = run("--check-config", cwd=tmp_path)
    assert result.returncode == 1
    for word in words:
        assert word in result.stderr


def test_order_of_precedence(tmp_path):
    (tmp_path / "other.yaml").write_text("limits:\n  queued: 11\n  forks: 12\n  max_tokens: 500\n")
    env = {**environment(), "SKEIND_LIMITS__FORKS": "13", "SKEIND_LIMITS__MAX_TOKENS": "600"}
    result = run("--config", "other.yaml", "--set", "limits.max_tokens=700", "--model", "x.pth",
                 "--print-effective-config", cwd=tmp_path, env=env)
    assert result.returncode == 0, result.stderr
    for line in ["queued: 11", "forks: 13", "max_tokens: 700", 'path: "x.pth"']:
        assert line in result.stdout
    # What is printed is a config that says the same.
    (tmp_path / "config.yaml").write_text(result.stdout)
    assert run("--print-effective-config", cwd=tmp_path).stdout == result.stdout
    assert run("--check-config", cwd=tmp_path).returncode == 0


def test_bad_flags_and_environment(tmp_path):
    for arguments, env, word in [
        (["--set", "limits.queued"], {}, "limits.queued"),
        (["--set", "limits.nothing=1"], {}, "limits.nothing"),
        (["--no-such-flag"], {}, "no-such-flag"),
        (["--config", "missing.yaml"], {}, "missing.yaml"),
        (["--check-config"], {"SKEIND_LIMITS__NOTHING": "1"}, "SKEIND_LIMITS__NOTHING"),
    ]:
        result = run(*arguments, cwd=tmp_path, env={**environment(), **env})
        assert result.returncode == 1 and word in result.stderr, result


# Start-up errors: one clear line, exit code 1.

def failed_start(tmp_path, *arguments):
    result = run("--set", "listen.address=127.0.0.1:0", "--set", "listen.metrics=127.0.0.1:0", *arguments, cwd=tmp_path)
    assert result.returncode == 1, result
    return result.stderr.strip().splitlines()[-1]


def test_port_in_use(tmp_path, model):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        line = failed_start(tmp_path, "--model", str(model), "--set", f"listen.address={address}")
        assert "listen.address" in line and address in line and "in use" in line
        line = failed_start(tmp_path, "--model", str(model), "--set", f"listen.metrics={address}")
        assert "listen.metrics" in line and address in line and "in use" in line


def test_two_daemons_do_not_share_a_port(start, tmp_path, model):
    first = start()
    line = failed_start(tmp_path, "--model", str(model), "--set", f"listen.address={first.address}")
    assert first.address in line


def test_missing_and_damaged_checkpoints(tmp_path, model):
    assert "nothing.pth" in failed_start(tmp_path, "--model", "nothing.pth")
    good = model.read_bytes()
    for name, data in {
        "truncated.safetensors": good[:len(good) // 2],
        "header.safetensors": struct.pack("<Q", 1 << 60) + good[8:],
        "json.safetensors": good[:8] + b"[" + good[9:],
        "empty.safetensors": b"",
        "noise.pth": os.urandom(4096),
    }.items():
        (tmp_path / name).write_bytes(data)
        assert name in failed_start(tmp_path, "--model", name)


def test_a_checkpoint_that_is_no_rwkv7(tmp_path):
    import numpy as np
    from checkpoint import random_weights, write_safetensors

    weights = random_weights()
    del weights["blocks.1.att.r_k"]
    write_safetensors(tmp_path / "part.safetensors", weights, {"skein.tokenizer": "bytes"})
    assert "r_k" in failed_start(tmp_path, "--model", "part.safetensors")
    write_safetensors(tmp_path / "llama.safetensors", {"model.embed_tokens.weight": np.zeros((4, 4), np.float32)}, {})
    assert "RWKV-7" in failed_start(tmp_path, "--model", "llama.safetensors")


# Health and reflection.

def test_health_check_and_watch(start):
    daemon = start()
    health = health_pb2_grpc.HealthStub(daemon.channel)
    for name in ["", *SERVICES]:
        assert health.Check(health_pb2.HealthCheckRequest(service=name)).status == SERVING
    expect_error(grpc.StatusCode.NOT_FOUND, lambda: health.Check(health_pb2.HealthCheckRequest(service="nobody")))
    watch = health.Watch(health_pb2.HealthCheckRequest(service=SERVICES[0]), timeout=60)
    assert next(watch).status == SERVING
    daemon.terminate()
    assert next(watch).status == NOT_SERVING
    watch.cancel()
    assert daemon.wait() == 0


def test_reflection(shared):
    from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

    database = ProtoReflectionDescriptorDatabase(shared.channel)
    assert set(SERVICES) <= set(database.get_services())
    file = database.FindFileContainingSymbol("skein.v1.Generation")
    assert file.name == "skein/v1/generation.proto"


# Shutdown.

def refused_while_draining(client):
    """The first refusal; what arrives before the drain has begun is served."""
    end = time.monotonic() + 60
    while time.monotonic() < end:
        try:
            client.generate("y", max_tokens=1)
        except grpc.RpcError as error:
            return error
    raise AssertionError("still served")


def test_sigterm_lets_running_requests_end(start, steady_model, pb):
    daemon = start({"shutdown.drain": "60s"}, model=steady_model)
    client = Client(pb, daemon.channel)
    running = Running(client.stream("x", max_tokens=1000))
    daemon.terminate()
    error = refused_while_draining(client)
    # With what a client needs to go elsewhere.
    assert error.code() == grpc.StatusCode.UNAVAILABLE
    assert details(error)["ErrorInfo"].reason == "DRAINING" and "RetryInfo" in details(error)
    finished = running.end().finished
    assert finished.reason == pb.gen.FINISH_REASON_LENGTH and finished.usage.completion_tokens == 1000
    assert daemon.wait() == 0


def test_drain_that_takes_too_long_ends_at_a_token(start, pb):
    daemon = start({"shutdown.drain": "500ms"})
    running = Running(Client(pb, daemon.channel).stream("x", max_tokens=ENDLESS))
    daemon.terminate()
    before = time.monotonic()
    finished = running.end().finished
    assert finished.reason == pb.gen.FINISH_REASON_DRAINED and 0 < finished.usage.completion_tokens < ENDLESS
    assert daemon.wait() == 0
    assert time.monotonic() - before < 20


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
def test_second_signal_is_fast(start, pb, second):
    daemon = start({"shutdown.drain": "60s"})
    running = Running(Client(pb, daemon.channel).stream("x", max_tokens=ENDLESS))
    daemon.terminate()
    daemon.wait_for_line("draining")
    before = time.monotonic()
    daemon.process.send_signal(second)
    assert running.end().finished.reason == pb.gen.FINISH_REASON_DRAINED
    assert daemon.wait() == 0
    assert time.monotonic() - before < 20


def test_a_dead_reader_does_not_hold_up_the_end(start, pb):
    daemon = start({"shutdown.drain": "500ms", "limits.outbox_tokens": 32})
    g = pb.gen
    stream = Client(pb, daemon.channel).stream(
        "x", stopping=g.Stopping(max_tokens=ENDLESS, ignore_eos=True), output=g.Output(top_logprobs=20), timeout=60)
    time.sleep(1)
    daemon.terminate()
    assert daemon.wait() == 0
    del stream


class Systemd:
    """What skeind tells its service manager, as it comes."""

    def __init__(self, folder):
        self.path = str(folder / "notify")
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(self.path)
        self.socket.settimeout(60)

    def environment(self):
        return {**environment(), "NOTIFY_SOCKET": self.path}

    def heard(self, last, times=1):
        """All messages up to this one."""
        messages = []
        while messages.count(last) < times:
            messages.append(self.socket.recv(100).decode())
        return messages


@pytest.fixture
def systemd(tmp_path):
    one = Systemd(tmp_path)
    yield one
    one.socket.close()


MORE_TO_LOAD, MORE_TO_END = "EXTEND_TIMEOUT_USEC=300000000", "EXTEND_TIMEOUT_USEC=15000000"


def test_systemd_is_told(start, systemd):
    daemon = start(env=systemd.environment())
    assert set(systemd.heard("READY=1")) <= {MORE_TO_LOAD, "READY=1"}
    daemon.terminate()
    assert systemd.heard("STOPPING=1") == ["STOPPING=1"]
    assert daemon.wait() == 0


def test_systemd_waits_for_a_long_load(steady_model, tmp_path, systemd):
    """Longer than TimeoutStartSec it may take, as long as it goes on: here with the computing of a prompt state."""
    prompt = f"[{{name: long, text: {'be kind ' * 5000!r}}}]"
    daemon = Daemon(steady_model, tmp_path, {"prompts": prompt}, env=systemd.environment(), until="listening")
    try:
        heard = systemd.heard("READY=1")
        assert heard[:2] == [MORE_TO_LOAD] * 2 and set(heard[:-1]) == {MORE_TO_LOAD}, heard
    finally:
        daemon.stop()


def test_systemd_waits_for_a_long_drain(start, pb, systemd):
    """Longer than TimeoutStopSec shutdown.drain may be."""
    daemon = start({"shutdown.drain": "60s"}, env=systemd.environment())
    systemd.heard("READY=1")
    running = Running(Client(pb, daemon.channel).stream("x", max_tokens=ENDLESS))
    daemon.terminate()
    assert systemd.heard(MORE_TO_END, times=2) == ["STOPPING=1", MORE_TO_END, MORE_TO_END]
    daemon.terminate()
    assert running.end().finished.reason == pb.gen.FINISH_REASON_DRAINED
    assert daemon.wait() == 0


# Logs.

def test_start_line_and_one_line_a_request(start, pb, model):
    daemon = start()
    ready = next(line for line in daemon.lines if " ready " in line)
    for part in ["model=tiny", "RWKV-7", "slots=64", "bytes_per_conversation=", "device=cpu/", "threads=1"]:
        assert part in ready
    client = Client(pb, daemon.channel)
    request_id = "job-" + fresh_id()
    client.generate("SECRETPROMPT", request_id=request_id)
    line = daemon.wait_for_line(f"id={request_id}")
    for part in ["method=skein.v1.Generation/Generate", "code=OK", "end=LENGTH", "prompt_tokens=12", " tokens=8", "ttft_seconds="]:
        assert part in line
    expect_error(grpc.StatusCode.NOT_FOUND, lambda: client.stream("SECRETPROMPT", model="x", request_id="refused"))
    assert "MODEL_NOT_FOUND" in daemon.wait_for_line("id=refused")
    # An id cannot forge a line.
    client.generate("hi", request_id='a" id=b message=\u2028forged')
    daemon.wait_for_line("forged")
    assert "SECRETPROMPT" not in daemon.log()
    assert sum("forged" in line for line in daemon.lines) == 1


def test_json_logs(start, pb):
    daemon = start({"log.format": "json", "log.level": "debug"})
    client = Client(pb, daemon.channel)
    client.generate("hi", request_id='quote " and \u2028')
    client.info.ListModels(pb.info.ListModelsRequest())
    daemon.wait_for_line("ListModels")
    records = [json.loads(line) for line in daemon.lines]
    assert all({"time", "level", "message"} <= set(record) for record in records)
    [request] = [r for r in records if r["message"] == "request"]
    assert request["id"] == 'quote " and \u2028' and request["tokens"] == 8 and request["level"] == "info"
