"""The lifecycle matrix: however a request ends, whenever it ends and whatever conversation it is of, all that it held is
given back (slots, queue places, bytes, gauges), and the conversation is at the version that its commit mode says.

    end     ok | Cancel | transport cancel | deadline | max_time | server error | drain | client killed
    phase   waiting for a slot | prefill | decode | last token
    kind    stateless | new conversation | continued one | fork of one
    commit  ON_SUCCESS | KEEP_PARTIAL | NEVER

One engine slot: whoever waits, waits for the one request that holds it. The server error is a row whose logits are not
finite: the test's model has a byte (POISON) whose embedding is not a number. A killed client is a connection that is reset
in the middle, as the kernel does for a dead process; the last test kills a real one."""

import itertools
import os
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
import urllib.request

import grpc
import pytest
from checkpoint import POISON
from client import ENDLESS, Client, details, fresh_id
from daemon import Daemon

KINDS = ["stateless", "new", "continued", "forked"]
PHASES = ["waiting", "prefill", "decode", "last token"]
ENDS = ["ok", "Cancel", "transport cancel", "deadline", "max_time", "server error", "drain", "client killed"]
COMMITS = ["ON_SUCCESS", "KEEP_PARTIAL", "NEVER"]

LONG_PROMPT = 60000     # bytes = tokens: seconds of prefill
LAST = 24               # tokens of an answer whose last one is the moment
TIME = 0.12             # seconds of deadlines and of max_time

# How Get says that a request has ended, and what commits: (ON_SUCCESS, KEEP_PARTIAL); NEVER never does.
COMMITTED = {
    "length": (True, True), "stop": (True, True), "time": (True, True),
    "cancelled": (False, True), "drained": (False, True),
    "CANCELLED": (False, True), "DEADLINE_EXCEEDED": (False, True),
    "INTERNAL": (False, False),
}
# What each end is called there.
NAMES = {"ok": "length", "Cancel": "cancelled", "transport cancel": "CANCELLED", "deadline": "DEADLINE_EXCEEDED",
         "max_time": "time", "server error": "INTERNAL", "drain": "drained", "client killed": "CANCELLED"}


class Server:
    """The daemon that all cases share, its metrics, and a connection that can be reset."""

    SETTINGS = {"engine.slots": 1, "engine.target_inter_token": "5ms", "limits.prompt_tokens": 100000,
                "requests.kept": 1, "model.name": "m"}

    def __init__(self, daemon, pb):
        self.pb = pb
        self.daemon = daemon
        self.client = Client(pb, daemon.channel)
        self.client.generate("warm", max_tokens=2)
        began = time.monotonic()
        self.client.generate("warm", max_tokens=100)
        self._second = 100 / (time.monotonic() - began)  # tokens

    def last(self, end):
        """Tokens of an answer whose last one comes with the end; where that is a time, about then."""
        return max(2, int(self._second * TIME)) if end in ("deadline", "max_time") else LAST

    def gauges(self):
        with urllib.request.urlopen(self.daemon.metrics, timeout=10) as answer:
            text = answer.read().decode()
        wanted = ["skein_requests_running{", "skein_requests_waiting{", "skein_queue_tokens{", "skein_state_cache_usage_ratio{",
                  "skein_state_cache_bytes{", "skein_conversations{"]
        out = {}
        for line in text.splitlines():
            name, _, value = line.rpartition(" ")
            if any(name.startswith(w) for w in wanted):
                out[name] = float(value)
        assert len(out) >= 6, text
        return out

    def settled(self, expected, seconds=60):
        """Waits until the gauges are what they were; an RPC may end a moment before its row."""
        end = time.monotonic() + seconds
        while (now := self.gauges()) != expected:
            assert time.monotonic() < end, {k: (v, now.get(k)) for k, v in expected.items() if now.get(k) != v}
            time.sleep(0.005)


class Wire:
    """A client's own connection, through a forwarder that can reset it as a dying process would."""

    def __init__(self, address):
        host, port = address.rsplit(":", 1)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.channel = grpc.insecure_channel(f"127.0.0.1:{self._listener.getsockname()[1]}",
                                             options=[("grpc.use_local_subchannel_pool", 1)])
        self._sockets = []
        self._target = (host, int(port))
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self):
        try:
            near, _ = self._listener.accept()
        except OSError:
            return
        far = socket.create_connection(self._target)
        self._sockets = [near, far]
        for a, b in [(near, far), (far, near)]:
            threading.Thread(target=self._pump, args=(a, b), daemon=True).start()

    @staticmethod
    def _pump(source, sink):
        try:
            while data := source.recv(1 << 16):
                sink.sendall(data)
        except OSError:
            pass

    def reset(self):
        for s in self._sockets:
            s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            try:
                s.shutdown(socket.SHUT_RD)  # wakes the thread that reads
            except OSError:
                pass
            s.close()
        self._listener.close()
        self.channel.close()


class Stream:
    """A running request, read by a thread; `wait` for a moment of it."""

    def __init__(self, call):
        self.call = call
        self.events = []
        self.error = None
        self._changed = threading.Condition()
        self._ended = False
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self):
        try:
            for event in self.call:
                with self._changed:
                    self.events.append(event)
                    self._changed.notify_all()
        except grpc.RpcError as error:
            self.error = error
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def wait(self, moment, seconds=60):
        with self._changed:
            assert self._changed.wait_for(lambda: self._ended or moment(self.events), seconds), self.events[-3:]

    def end(self, seconds=60):
        self.wait(lambda _: False, seconds) if not self._ended else None
        assert self._ended
        return self

    def finished(self):
        return next((e.finished for e in self.events if e.WhichOneof("event") == "finished"), None)


def has(kind):
    return lambda events: any(e.WhichOneof("event") == kind for e in events)


def tokens(events):
    return max((e.delta.token_count for e in events if e.WhichOneof("event") == "delta"), default=0)


MOMENT = {"waiting": has("queued"), "prefill": has("progress"), "decode": has("delta"),
          "last token": lambda events: tokens(events) >= LAST - 1}


def request_of(server, end, phase, conversation, commit, new):
    """The request whose end comes in that phase."""
    g = server.pb.gen
    length = server.last(end) if phase == "last token" or end == "ok" else ENDLESS
    text = b"go on " if phase != "prefill" else b"x" * (LONG_PROMPT if end not in ("ok", "server error") else 400)
    sampling = g.Sampling(temperature=0)
    if end == "server error":
        if phase in ("waiting", "prefill"):  # a part of the prompt breaks the row
            text += bytes([POISON])
        else:                                # a token that it says does: the next step's logits are no numbers
            sampling.logit_bias[POISON + 1] = 1000.0
            length = 2 if phase == "last token" else ENDLESS
    stopping = g.Stopping(max_tokens=length, ignore_eos=True)
    if end == "max_time":
        stopping.max_time.FromMilliseconds(int(TIME * 1000))
    return g.GenerateRequest(request_id=fresh_id(), conversation_id=conversation, create_if_missing=new,
                             commit=g.CommitMode.Value("COMMIT_MODE_" + commit), sampling=sampling, stopping=stopping,
                             output=g.Output(token_ids=True), token_ids=g.TokenIds(ids=[b + 1 for b in text]))


def prepare(server, kind):
    """The conversation and its head before the request; None: it is not there."""
    c = server.pb.conv
    if kind == "stateless":
        return "", None
    conversation = fresh_id()
    if kind == "new":
        return conversation, None
    head = server.client.generate("start", conversation=conversation, create_if_missing=True, max_tokens=2).finished.version
    if kind == "continued":
        return conversation, head
    fork = server.client.conv.Fork(c.ForkConversationRequest(id=conversation, count=1)).conversations[0]
    server.client.conv.Delete(c.DeleteConversationRequest(id=conversation))
    return fork.id, fork.head_version


def end_it(server, end, phase, stream, request, wire):
    if end == "Cancel":
        found = server.client.gen.Cancel(server.pb.gen.CancelRequest(request_id=request.request_id)).cancelled
        assert found or phase == "last token"
    elif end == "transport cancel":
        stream.call.cancel()
    elif end == "client killed":
        wire.reset()
    elif end == "drain":
        d = server.pb.control.DrainRequest()
        d.timeout.SetInParent()  # 0: at the next token
        server.client.control.Drain(d)


def run_case(server, end, phase, kind, commit):
    """One request, to its end. What the client saw."""
    conversation, head = prepare(server, kind)
    request = request_of(server, end, phase, conversation, commit, new=kind == "new")
    blocker = None
    if phase == "waiting":
        blocker = Stream(server.client.stream("b", max_tokens=ENDLESS))
        blocker.wait(has("delta"))
    wire = Wire(server.daemon.address) if end == "client killed" else None
    stub = Client(server.pb, wire.channel).gen if wire else server.client.gen
    timeout = 120
    if end == "deadline":
        timeout = TIME
    stream = Stream(stub.Generate(request, timeout=timeout))
    if end not in ("ok", "deadline", "max_time", "server error") or phase == "waiting":
        stream.wait(MOMENT[phase])
    end_it(server, end, phase, stream, request, wire)
    if phase == "waiting":
        if end in ("ok", "server error"):
            blocker.call.cancel()  # its turn comes
        else:
            stream.end()
            blocker.call.cancel()
        blocker.end()
    stream.end()
    if end == "drain":
        server.client.control.Undrain(server.pb.control.UndrainRequest())
    return conversation, head, request, stream


def check_client(pb, end, phase, request, stream):
    """What the client was told; at the last token an end may come too late."""
    finished = stream.finished()
    if end == "ok" or (phase == "last token" and finished is not None and finished.reason == pb.gen.FINISH_REASON_LENGTH):
        # The client may have ended the call between Finished and the status.
        assert stream.error is None or end in ("transport cancel", "deadline", "client killed")
        assert finished.usage.completion_tokens == request.stopping.max_tokens
        return
    reasons = {"Cancel": pb.gen.FINISH_REASON_CANCELLED, "max_time": pb.gen.FINISH_REASON_TIME,
               "drain": pb.gen.FINISH_REASON_DRAINED}
    if end in reasons:
        assert stream.error is None and finished.reason == reasons[end]
        return
    code = {"transport cancel": grpc.StatusCode.CANCELLED, "deadline": grpc.StatusCode.DEADLINE_EXCEEDED,
            "server error": grpc.StatusCode.INTERNAL, "client killed": grpc.StatusCode.UNAVAILABLE}[end]
    assert finished is None and stream.error is not None
    assert stream.error.code() in (code, grpc.StatusCode.CANCELLED if end == "client killed" else code), stream.error
    if end == "server error":
        assert details(stream.error)["ErrorInfo"].reason == "NON_FINITE_LOGITS"


def check_conversation(server, end, phase, kind, commit, conversation, head, request, stream):
    """The conversation is where the commit mode says, and free."""
    if not conversation:
        return
    deadline = time.monotonic() + 60
    while True:
        try:
            info = server.client.history(conversation)
        except grpc.RpcError as error:
            assert error.code() == grpc.StatusCode.NOT_FOUND
            info = None
        if info is None or not info.busy:
            break
        assert time.monotonic() < deadline, "still busy"
        time.sleep(0.002)
    name = info.last_end if info is not None and info.last_request_id == request.request_id else None
    if name is not None:
        assert name == NAMES[end] or (phase == "last token" and name == "length"), name
    else:
        # A new one that left nothing is not there at all; a deadline may have been refused at the door.
        # NEVER only reads, and leaves no trace.
        assert info is None or end == "deadline" or commit == "NEVER"
        name = NAMES[end]
    committed = commit != "NEVER" and COMMITTED[name][COMMITS.index(commit)]
    if name == "DEADLINE_EXCEEDED" and not has("queued")(stream.events) and not has("started")(stream.events):
        committed = committed and info is not None and info.last_request_id == request.request_id
    finished = stream.finished()
    if finished is not None:
        assert finished.committed == committed
    if not committed:
        assert (info is None) if head is None else info.head_version == head
        return
    version = info.versions[-1]
    assert info.head_version == version.id > (head or 0) and version.parent == (head or 0)
    # All of the input, and each token that the client was told of.
    ids = list(request.token_ids.ids)
    assert list(version.input_token_ids) == ids
    shown = [t.id for e in stream.events if e.WhichOneof("event") == "delta" for t in e.delta.tokens]
    assert list(version.output_token_ids)[:len(shown)] == shown
    if finished is not None:
        assert list(version.output_token_ids) == shown
    if phase != "prefill" and len(version.output_token_ids) < 2000:
        check_state(server, conversation, info)


def check_state(server, conversation, info):
    """The kept state is that of the kept tokens: it goes on as they do when sent at once."""
    c = server.pb.gen
    whole = [i for v in info.versions for i in [*v.input_token_ids, *v.output_token_ids]]
    on = server.client.generate(conversation=conversation, max_tokens=3, commit=c.COMMIT_MODE_NEVER)
    assert on.ids == server.client.generate(ids=whole, max_tokens=3).ids


CASES = [(end, phase, kind, commit) for end, phase, kind, commit in itertools.product(ENDS, PHASES, KINDS, COMMITS)
         if not (kind == "stateless" and commit != "ON_SUCCESS")]


@pytest.fixture(scope="module")
def server(poisoned_model, pb, tmp_path_factory):
    daemon = Daemon(poisoned_model, tmp_path_factory.mktemp("lifecycle"), Server.SETTINGS)
    yield Server(daemon, pb)
    daemon.stop()


@pytest.mark.parametrize("end, phase", list(itertools.product(ENDS, PHASES)))
def test_matrix(server, pb, end, phase):
    before = server.gauges()
    for kind, commit in [(k, c) for e, p, k, c in CASES if (e, p) == (end, phase)]:
        case = f"{end} / {phase} / {kind} / {commit}"
        try:
            conversation, head, request, stream = run_case(server, end, phase, kind, commit)
            check_client(pb, end, phase, request, stream)
            check_conversation(server, end, phase, kind, commit, conversation, head, request, stream)
            if conversation:
                try:
                    server.client.conv.Delete(pb.conv.DeleteConversationRequest(id=conversation))
                except grpc.RpcError as error:
                    assert error.code() == grpc.StatusCode.NOT_FOUND
            server.settled(before)
        except AssertionError as error:
            raise AssertionError(f"{case}: {error}") from error
    assert server.daemon.process.poll() is None


def test_sigterm(start, pb, poisoned_model):
    """The drain that ends the process: everybody at once; what is committed shows in what the clients are told."""
    daemon = start({**Server.SETTINGS, "engine.slots": 16, "shutdown.drain": "200ms"}, model=poisoned_model)
    server = Server(daemon, pb)
    cases = [(k, c, *prepare(server, k)) for k, c in itertools.product(KINDS, COMMITS)
             if not (k == "stateless" and c != "ON_SUCCESS")]
    streams = [Stream(server.client.gen.Generate(request_of(server, "drain", "decode", conversation, commit, new=kind == "new"),
                                                 timeout=30)) for kind, commit, conversation, _ in cases]
    for stream in streams:
        stream.wait(MOMENT["decode"])
    daemon.terminate()
    for stream, (kind, commit, conversation, head) in zip(streams, cases):
        finished = stream.end().finished()
        assert stream.error is None and finished.reason == pb.gen.FINISH_REASON_DRAINED, (kind, commit)
        committed = bool(conversation) and commit == "KEEP_PARTIAL"
        assert finished.committed == committed
        assert finished.version == ((head or 0) + 1 if committed else 0)
    assert daemon.wait() == 0
    assert daemon.log().count("end=DRAINED") == len(cases)


def test_a_killed_process(server, pb):
    """The real thing once: a client process that is killed in the middle of its stream."""
    import google
    before = server.gauges()
    conversation = fresh_id()
    server.client.generate("start", conversation=conversation, create_if_missing=True)
    held = server.gauges()
    code = textwrap.dedent(f"""
        import sys
        sys.path[:0] = {[p for p in sys.path if p]!r}
        import google
        google.__path__ = {list(google.__path__)!r}
        import grpc
        from skein.v1 import generation_pb2 as g, generation_pb2_grpc as s
        stub = s.GenerationStub(grpc.insecure_channel({server.daemon.address!r}))
        request = g.GenerateRequest(conversation_id={conversation!r}, text=g.Text(text="x"), sampling=g.Sampling(temperature=0),
                                    stopping=g.Stopping(max_tokens={ENDLESS}, ignore_eos=True))
        for event in stub.Generate(request):
            print(event.WhichOneof("event"), flush=True)
    """)
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    while process.stdout.readline().strip() != "delta":
        assert process.poll() is None
    assert server.client.get(conversation).busy
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    process.stdout.close()
    server.settled(held)
    info = server.client.get(conversation)
    assert (info.head_version, info.last_end) == (1, "CANCELLED")
    server.client.conv.Delete(pb.conv.DeleteConversationRequest(id=conversation))
    server.settled(before)
