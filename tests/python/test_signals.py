"""Signals, reload, and a machine that runs out of things: log space, descriptors."""

import hashlib
import os
import resource
import signal
import socket
import subprocess
import time
import urllib.error

import grpc
import pytest
from client import ENDLESS, Client, Running, details, expect_error, fresh_id
from daemon import SKEIND, environment
from status_rows import until_refused
from test_control import probe, until
from test_metrics import scrape, series

RELOADED = "configuration reloaded"
NOT_RELOADED = "was not reloaded"


class Config:
    """A config file that a running daemon was started with."""

    def __init__(self, path):
        self.path = path

    def write(self, text):
        new = self.path.with_suffix(".new")
        new.write_text(text)
        new.rename(self.path)


@pytest.fixture
def config(tmp_path):
    return Config(tmp_path / "config.yaml")


def limits(client):
    return client.info.GetServerInfo(client.pb.info.GetServerInfoRequest()).limits


def reload_by(how, daemon, client):
    """Reloads; the (applied, ignored) keys, as the log tells them too."""
    if how == "SIGHUP":
        before = daemon.log().count(RELOADED)
        daemon.process.send_signal(signal.SIGHUP)
        until(lambda: daemon.log().count(RELOADED) > before)
        line = [line for line in daemon.lines if RELOADED in line][-1]
        found = {}
        for name in ["applied", "ignored"]:
            value = line.split(f" {name}=")[1].split(" ")[0].strip('"')
            found[name] = [key for key in value.split(",") if key]
        return found["applied"], found["ignored"]
    answer = client.control.ReloadConfig(client.pb.control.ReloadConfigRequest())
    return list(answer.applied), list(answer.ignored)


@pytest.mark.parametrize("how", ["SIGHUP", "ReloadConfig"])
def test_reload_takes_what_can_change(start, pb, config, how):
    config.write("limits:\n  queued: 7\n")
    daemon = start()
    client = Client(pb, daemon.channel)
    assert limits(client).max_queued == 7
    old = [k for k in series(scrape(daemon)) if k.startswith("skein_config_info")]
    assert reload_by(how, daemon, client) == ([], [])
    config.write("limits:\n  queued: 8\n  stop_strings: 2\nengine:\n  slots: 3\ndefaults:\n  max_tokens: 5\n"
                 "log:\n  level: debug\n")
    applied, ignored = reload_by(how, daemon, client)
    assert sorted(applied) == ["defaults.max_tokens", "limits.queued", "limits.stop_strings", "log.level"]
    assert ignored == ["engine.slots"]
    assert "engine.slots" in daemon.wait_for_line("take a restart")
    found = limits(client)
    assert (found.max_queued, found.max_stop_strings) == (8, 2)
    assert client.info.GetServerInfo(pb.info.GetServerInfoRequest()).slots == 64
    # In force: the default, the limit, the level of the log.
    g = pb.gen
    turn = client.generate("x", stopping=g.Stopping(ignore_eos=True))
    assert turn.finished.usage.completion_tokens == 5
    error = expect_error(grpc.StatusCode.INVALID_ARGUMENT,
                         lambda: client.stream("x", stopping=g.Stopping(stop_strings=["a", "b", "c"])))
    assert details(error)["BadRequest"].field_violations[0].field == "stopping.stop_strings"
    client.info.ListModels(pb.info.ListModelsRequest())
    daemon.wait_for_line("ListModels")
    values = series(scrape(daemon))
    assert values["skein_config_last_reload_successful"] == 1
    assert old != [k for k in values if k.startswith("skein_config_info")]


def test_the_queue_obeys_its_new_limit(start, pb, config, steady_model):
    config.write("limits:\n  queued: 1\n")
    daemon = start({"engine.slots": 1}, model=steady_model)
    client = Client(pb, daemon.channel)
    running = Running(client.stream("x", max_tokens=ENDLESS))
    waiting = [client.stream("y", max_tokens=1, timeout=60)]
    next(waiting[0])
    error = expect_error(grpc.StatusCode.RESOURCE_EXHAUSTED, lambda: client.stream("z"))
    assert details(error)["ErrorInfo"].reason == "QUEUE_FULL"
    config.write("limits:\n  queued: 2\n")
    assert reload_by("ReloadConfig", daemon, client) == (["limits.queued"], [])
    waiting.append(client.stream("z", max_tokens=1, timeout=60))
    next(waiting[1])
    running.cancel()
    for stream in waiting:
        assert list(stream)[-1].WhichOneof("event") == "finished"


@pytest.mark.parametrize("text,word", [
    ("limits:\n  queud: 8\n", "limits.queued"),
    ("limits:\n  stop_strings: many\n", "config.yaml:3"),
    ("listen: [\n", "config.yaml"),
    ("defaults:\n  max_tokens: 2000000000\n", "defaults.max_tokens"),
    ("listen:\n  tls: {certificate: /nowhere.pem, key: /nowhere.key}\n", "/nowhere"),
])
def test_a_broken_file_changes_nothing(start, pb, config, text, word):
    config.write("limits:\n  queued: 7\n")
    daemon = start()
    client = Client(pb, daemon.channel)
    config.write("limits:\n  queued: 9\n" + text.replace("limits:\n", ""))
    daemon.process.send_signal(signal.SIGHUP)
    line = daemon.wait_for_line(NOT_RELOADED)
    assert word in line and "nothing has changed" in line
    error = expect_error(grpc.StatusCode.INVALID_ARGUMENT,
                         lambda: client.control.ReloadConfig(pb.control.ReloadConfigRequest()))
    assert details(error)["ErrorInfo"].reason == "CONFIG_INVALID" and word in error.details()
    assert limits(client).max_queued == 7
    assert series(scrape(daemon))["skein_config_last_reload_successful"] == 0
    assert client.generate("x").ids
    # Mended, it is taken.
    config.write("limits:\n  queued: 9\n")
    assert reload_by("SIGHUP", daemon, client) == (["limits.queued"], [])
    assert series(scrape(daemon))["skein_config_last_reload_successful"] == 1
    assert limits(client).max_queued == 9


def test_the_command_line_still_wins_after_a_reload(start, pb, config):
    config.write("limits:\n  queued: 7\n")
    daemon = start({"limits.queued": 5})
    client = Client(pb, daemon.channel)
    config.write("limits:\n  queued: 8\n  forks: 3\n")
    assert reload_by("ReloadConfig", daemon, client) == (["limits.forks"], [])
    assert limits(client).max_queued == 5


def test_reload_while_requests_run(start, pb, config):
    config.write("")
    daemon = start()
    client = Client(pb, daemon.channel)
    running = Running(client.stream("x", max_tokens=20000))
    for i in range(20):
        config.write(f"limits:\n  queued: {100 + i}\ndefaults:\n  top_k: {i}\n")
        daemon.process.send_signal(signal.SIGHUP)
        assert client.generate("y").ids
    until(lambda: limits(client).max_queued == 119)
    assert running.end().finished.usage.completion_tokens == 20000


def test_limits_lowered_below_what_is_there(start, pb, config):
    """New conversations are refused, those that are there go on: read, continued, rewound, deleted."""
    config.write("")
    daemon = start()
    client, c = Client(pb, daemon.channel), pb.conv
    kept = [fresh_id() for _ in range(4)]
    for name in kept:
        client.generate("x" * 400, conversation=name, create_if_missing=True)
    request_id = fresh_id()
    running = Running(client.stream("x", conversation=kept[1], max_tokens=ENDLESS, request_id=request_id,
                                    commit=pb.gen.COMMIT_MODE_KEEP_PARTIAL))
    config.write("conversations:\n  max: 2\nlimits:\n  prompt_tokens: 50\n")
    assert sorted(reload_by("SIGHUP", daemon, client)[0]) == ["conversations.max", "limits.prompt_tokens"]
    assert limits(client).max_prompt_tokens == 50
    # What ran at the time is committed.
    assert client.gen.Cancel(pb.gen.CancelRequest(request_id=request_id)).cancelled
    finished = running.end().finished
    assert finished.committed and finished.version == 2
    # Longer than a prompt may be now, and more of them than there may be: the next turn is another request.
    assert client.generate("y", conversation=kept[0], max_tokens=5).finished.committed
    assert sum(len(v.input_token_ids) for v in client.history(kept[0]).versions) == 401
    error = expect_error(grpc.StatusCode.INVALID_ARGUMENT, lambda: client.stream("y" * 51, conversation=kept[0], max_tokens=5))
    assert details(error)["ErrorInfo"].reason == "PROMPT_TOO_LONG" and "limits.prompt_tokens" in error.details()
    for call in [lambda: client.conv.Create(c.CreateConversationRequest()),
                 lambda: client.conv.Fork(c.ForkConversationRequest(id=kept[0], version=1)),
                 lambda: client.stream("x", conversation=fresh_id(), create_if_missing=True)]:
        error = expect_error(grpc.StatusCode.RESOURCE_EXHAUSTED, call)
        assert details(error)["ErrorInfo"].reason == "CONVERSATION_LIMIT"
        assert error.details() == "the server keeps at most 2 conversations (conversations.max); delete some first"
    assert client.conv.Rewind(c.RewindConversationRequest(id=kept[0], version=1)).head_version == 1
    for name in kept[1:]:
        client.conv.Delete(c.DeleteConversationRequest(id=name))
    assert client.conv.Fork(c.ForkConversationRequest(id=kept[0], version=1)).conversations[0].head_version == 1


def test_memory_for_tokens_lowered_below_what_is_there(start, pb, config):
    config.write("")
    daemon = start()
    client, c, g = Client(pb, daemon.channel), pb.conv, pb.gen
    for name in "long", "short":
        client.generate("x" * 2000, conversation=name, create_if_missing=True)
    client.generate("y" * 2000, conversation="long")
    config.write("conversations:\n  token_budget: 12KiB\n")
    assert reload_by("ReloadConfig", daemon, client) == (["conversations.token_budget"], [])
    for name in "long", "short":
        error = expect_error(grpc.StatusCode.RESOURCE_EXHAUSTED, lambda: client.stream("z", conversation=name))  # noqa: B023
        assert details(error)["ErrorInfo"].reason == "CONVERSATION_MEMORY"
        assert error.details() == ("the memory for conversation tokens (conversations.token_budget, 12288 bytes) is full; "
                                   "delete some conversations first")
    # It can be read, scored, shortened and deleted; then the other one goes on.
    assert [len(v.input_token_ids) for v in client.history("long").versions] == [2000, 2000]
    continuation = g.Continuation(text=g.Text(text="a"))
    assert list(client.gen.Score(g.ScoreRequest(conversation_id="long", continuations=[continuation])))
    assert client.conv.Rewind(c.RewindConversationRequest(id="long", version=1)).tokens == 2008
    client.conv.Delete(c.DeleteConversationRequest(id="long"))
    assert client.generate("z", conversation="short").finished.version == 2


def test_reload_replaces_tokens(start, pb, config):
    def client_with(token):
        digest = hashlib.sha256(token.encode()).hexdigest()
        return f"auth:\n  tokens: [{{name: {token}, hash: {digest}, scopes: [generate, admin]}}]\n"

    def bearer(token):
        return [("authorization", f"Bearer {token}")]

    config.write(client_with("first"))
    daemon = start()
    client = Client(pb, daemon.channel)
    request = client.request("x", max_tokens=4)
    assert list(client.gen.Generate(request, metadata=bearer("first")))
    running = Running(client.gen.Generate(client.request("x", max_tokens=ENDLESS), metadata=bearer("first")))
    config.write(client_with("second"))
    answer = client.control.ReloadConfig(pb.control.ReloadConfigRequest(), metadata=bearer("first"))
    assert list(answer.applied) == ["auth.tokens"]
    expect_error(grpc.StatusCode.UNAUTHENTICATED, lambda: client.gen.Generate(request, metadata=bearer("first")))
    assert list(client.gen.Generate(request, metadata=bearer("second")))
    before = len(running.events)  # who was let in goes on
    until(lambda: len(running.events) > before)
    running.cancel()


def test_systemd_hears_of_a_reload(start, config, tmp_path):
    config.write("")
    path = tmp_path / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(path))
        listener.settimeout(60)
        daemon = start(env={**environment(), "NOTIFY_SOCKET": str(path), "WATCHDOG_USEC": "10000000"})
        while (heard := listener.recv(100)) != b"READY=1":
            assert heard.startswith(b"EXTEND_TIMEOUT_USEC=")
        assert listener.recv(100) == b"WATCHDOG=1"
        daemon.process.send_signal(signal.SIGHUP)
        heard = []
        while b"READY=1" not in heard:
            heard.append(listener.recv(100))
        heard = [h for h in heard if h != b"WATCHDOG=1"]
        assert heard[0].startswith(b"RELOADING=1\nMONOTONIC_USEC=") and heard[1:] == [b"READY=1"]


# The end.

def test_an_idle_daemon_stops_at_once(start, pb):
    daemon = start()
    client = Client(pb, daemon.channel)
    client.generate("x")
    scrape(daemon)
    before = time.monotonic()
    daemon.terminate()
    assert daemon.wait() == 0
    assert time.monotonic() - before < 25  # the drain of its configuration is 30 s


def test_sigterm_finishes_accepted_work_within_its_limit(start, pb, steady_model):
    daemon = start({"engine.slots": 2, "shutdown.drain": "60s"}, model=steady_model)
    client = Client(pb, daemon.channel)
    running = [Running(client.stream("x", max_tokens=200)) for _ in range(2)]
    waiting = client.stream("y", max_tokens=200, timeout=60)
    next(waiting)  # accepted, though it has no slot yet
    daemon.terminate()
    for one in running:
        assert one.end().finished.usage.completion_tokens == 200
    last = list(waiting)[-1].finished
    assert last.reason == pb.gen.FINISH_REASON_LENGTH and last.usage.completion_tokens == 200
    assert daemon.wait() == 0


def test_a_drain_lets_all_parts_of_a_score_end(start, pb, steady_model):
    daemon = start({"shutdown.drain": "60s"}, model=steady_model)
    client = Client(pb, daemon.channel)
    g = pb.gen
    parts = [g.Continuation(text=g.Text(text="continuation")) for _ in range(200)]
    answers = client.gen.Score(g.ScoreRequest(text=g.Text(text="prompt"), continuations=parts), timeout=60)
    first = next(answers)
    daemon.terminate()
    until_refused(client)
    assert [a.index for a in [first, *answers]] == list(range(200))
    assert daemon.wait() == 0


def test_a_drain_by_control_does_not_hold_up_sigterm(start, pb):
    daemon = start({"shutdown.drain": "300ms"})
    client = Client(pb, daemon.channel)
    running = Running(client.stream("x", max_tokens=ENDLESS))
    client.control.Drain(pb.control.DrainRequest())
    before = time.monotonic()
    daemon.terminate()
    daemon.wait_for_line("draining")
    assert running.end().finished.reason == pb.gen.FINISH_REASON_DRAINED
    assert daemon.wait() == 0
    assert time.monotonic() - before < 20


def test_no_way_back_after_sigterm(start, pb, steady_model):
    daemon = start({"shutdown.drain": "60s"}, model=steady_model)
    client = Client(pb, daemon.channel)
    running = Running(client.stream("x", max_tokens=ENDLESS))
    daemon.terminate()
    daemon.wait_for_line("draining")
    until(lambda: client.control.GetLoad(pb.control.GetLoadRequest()).not_serving_reason == "stopping")
    error = expect_error(grpc.StatusCode.FAILED_PRECONDITION,
                         lambda: client.control.Undrain(pb.control.UndrainRequest()))
    assert details(error)["ErrorInfo"].reason == "STOPPING"
    daemon.terminate()  # the second is fast
    assert running.end().finished.reason == pb.gen.FINISH_REASON_DRAINED
    assert daemon.wait() == 0


# A machine that runs out of things.

def free_port():
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return probe.getsockname()[1]


class Blind:
    """A daemon whose log nobody can read, so its ports are chosen here."""

    def __init__(self, model, cwd, stderr, settings=None):
        for _ in range(5):
            self._start(model, cwd, stderr, settings)
            until(lambda: self._ready() or self.process.poll() is not None)
            if self.process.poll() is None:
                break  # else somebody has taken a port meanwhile
        self.channel = grpc.insecure_channel(self.address)

    def _start(self, model, cwd, stderr, settings):
        self.address = f"127.0.0.1:{free_port()}"
        self.metrics = f"http://127.0.0.1:{free_port()}/metrics"
        command = [str(SKEIND), "--model", str(model)]
        merged = {"listen.address": self.address, "listen.metrics": self.metrics.split("/")[2], "cpu.threads": 1,
                  **(settings or {})}
        for key, value in merged.items():
            command += ["--set", f"{key}={value}"]
        self.process = subprocess.Popen(command, cwd=cwd, env=environment(), stdout=subprocess.DEVNULL, stderr=stderr)

    def _ready(self):
        try:
            return probe(self, "/readyz")[0] == 200
        except urllib.error.URLError:  # it does not listen yet
            return False

    def end(self):
        """Exit code after SIGTERM."""
        self.channel.close()
        self.process.terminate()
        try:
            return self.process.wait(60)
        finally:
            self.process.kill()


def test_a_fault_ends_the_process(start, pb, steady_model):
    """abort(), as a failed check of the engine calls it: clients hear UNAVAILABLE, nothing starts again by itself, and who
    comes back to the next process finds it serving and the conversation not silently empty."""
    daemon = start(model=steady_model)
    client = Client(pb, daemon.channel)
    client.generate("x", conversation="c", create_if_missing=True)
    running = Running(client.stream("y", max_tokens=ENDLESS, conversation="c", request_id="r"))
    daemon.process.send_signal(signal.SIGABRT)
    assert daemon.wait(60) == -signal.SIGABRT
    running._thread.join(60)
    assert running.error.code() == grpc.StatusCode.UNAVAILABLE
    assert "grpc-status-details-bin" not in dict(running.error.trailing_metadata() or ())
    start(model=steady_model, listen=daemon.address)
    error = expect_error(grpc.StatusCode.NOT_FOUND,
                         lambda: client.gen.Generate(client.request("y", conversation="c", request_id="r"), timeout=60,
                                                     wait_for_ready=True))
    assert details(error)["ErrorInfo"].reason == "CONVERSATION_NOT_FOUND"
    assert client.generate("y", request_id="r").finished.usage.completion_tokens == 8


def test_a_full_log_disk(model, tmp_path, pb):
    with open("/dev/full", "w") as full:
        daemon = Blind(model, tmp_path, full)
    client = Client(pb, daemon.channel)
    for i in range(20):
        assert client.generate(f"request {i}").ids
    until(lambda: series(scrape(daemon))["skein_log_lines_lost_total"] >= 20)
    assert daemon.end() == 0


def test_a_log_that_nobody_reads(model, tmp_path, pb):
    reading, writing = os.pipe()
    daemon = Blind(model, tmp_path, writing, {"log.level": "debug"})
    os.close(writing)
    client = Client(pb, daemon.channel)
    # Far more than a pipe holds.
    for _ in range(800):
        client.info.ListModels(pb.info.ListModelsRequest(), timeout=60)
    assert client.generate("x").ids
    until(lambda: series(scrape(daemon))["skein_log_lines_lost_total"] > 0)
    assert daemon.end() == 0
    os.close(reading)


def test_exhausted_descriptors(start, pb):
    daemon = start({"listen.max_connections": 4096})
    client = Client(pb, daemon.channel)
    assert client.generate("x").ids
    pid = daemon.process.pid
    open_now = len(os.listdir(f"/proc/{pid}/fd"))
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (open_now + 8, open_now + 8))
    host, port = daemon.address.split(":")
    idle = []
    for _ in range(64):
        connection = socket.create_connection((host, int(port)), timeout=60)
        idle.append(connection)
    # Who is connected is served, the loader and the reload say what is wrong, nobody dies.
    for _ in range(5):
        assert client.generate("y").ids
    assert daemon.process.poll() is None
    for connection in idle:
        connection.close()
    until(lambda: len(os.listdir(f"/proc/{pid}/fd")) < open_now + 4)

    def served_on_a_new_connection():
        with daemon.new_channel() as channel:
            try:
                return Client(pb, channel).generate("z", timeout=5).ids != []
            except grpc.RpcError:
                return False

    until(served_on_a_new_connection)
    daemon.terminate()
    assert daemon.wait() == 0
