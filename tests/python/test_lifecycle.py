"""The lifecycle matrix: however a request ends, whenever it ends and whatever conversation it is of, all that it held is
given back (slots, queue places, bytes, gauges), the conversation is at the version that its commit mode says, and the
request's line in the log tells the same.

    end     ok | Cancel | transport cancel | deadline | max_time | server error | drain | client killed
    phase   waiting for a slot | prefill | decode | last token
    kind    stateless | new conversation | continued one | fork of one
    commit  ON_SUCCESS | KEEP_PARTIAL | NEVER

Each case asserts that its end came in its phase: the line says how far the request had come. A time cannot be aimed at a
phase exactly, so such a case is repeated, with what was learned of the machine's speed, until its end came there.

One engine slot: whoever waits, waits for the one request that holds it. The server error is a row whose logits are not
finite: the test's model has a byte (POISON) whose embedding is not a number. A killed client is a connection that is reset
in the middle, as the kernel does for a dead process; the last test kills a real one."""

import itertools
import os
import re
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
from test_control import until

KINDS = ["stateless", "new", "continued", "forked"]
PHASES = ["waiting", "prefill", "decode", "last token"]
ENDS = ["ok", "Cancel", "transport cancel", "deadline", "max_time", "server error", "drain", "client killed"]
COMMITS = ["ON_SUCCESS", "KEEP_PARTIAL", "NEVER"]
TIMES = ("deadline", "max_time")  # the ends that come by themselves

LONG_PROMPT = 60000     # bytes = tokens: seconds of prefill
LAST = 24               # tokens of an answer whose last one is the moment
TIME = 0.12             # seconds of deadlines and of max_time
NEAR = 0.7              # of a time or of an answer: about at its end
TRIES = 30              # at a phase with an end that is a time
SAID = 5                # tokens of an answer that ends by a stop id

# How Get says that a request has ended, and what commits: (ON_SUCCESS, KEEP_PARTIAL); NEVER never does.
COMMITTED = {
    "length": (True, True), "stop": (True, True), "time": (True, True),
    "cancelled": (False, True), "drained": (False, True),
    "CANCELLED": (False, True), "DEADLINE_EXCEEDED": (False, True),
    "INTERNAL": (False, False),
}
# What each end is called there.
NAMES = {"ok": "length", "stop": "stop", "Cancel": "cancelled", "transport cancel": "CANCELLED", "deadline": "DEADLINE_EXCEEDED",
         "max_time": "time", "server error": "INTERNAL", "drain": "drained", "client killed": "CANCELLED"}
# And in the version that it left.
REASONS = {"length": "LENGTH", "stop": "STOP", "time": "TIME", "cancelled": "CANCELLED", "drained": "DRAINED",
           "CANCELLED": "DISCONNECTED", "DEADLINE_EXCEEDED": "DEADLINE"}


class Server:
    """The daemon that all cases share, its metrics, and a connection that can be reset."""

    SETTINGS = {"engine.slots": 1, "engine.target_inter_token": "5ms", "limits.prompt_tokens": 100000,
                "requests.kept": 1, "model.name": "m"}

    def __init__(self, daemon, pb):
        self.pb = pb
        self.daemon = daemon
        self.client = Client(pb, daemon.channel)
        self.client.generate("warm", max_tokens=2)
        warm = self.client.generate("w" * 2000, max_tokens=100).finished.timings
        self.prefill_speed = 2000 / seconds(warm.prefill)  # tokens a second
        self.decode_speed = 100 / seconds(warm.decode)

    def last(self, end):
        """Tokens of an answer whose last one comes with the end; where that is a time, about then."""
        return max(2, int(self.decode_speed * TIME)) if end in TIMES else LAST

    def long_prompt(self, end):
        """Bytes of a prompt in whose prefill the end comes. With a deadline that it can never meet the request would not
        be let in at all: less than half of the least that it was seen to take is left."""
        if end == "deadline":
            return int(self.prefill_speed * TIME / NEAR)
        return LONG_PROMPT if end not in ("ok", "server error") else 400

    def line(self, request, end):
        """What the log says of a request; nothing of one whose deadline passed before it left its client."""
        try:
            line = self.daemon.wait_for_line(rf" request id={request.request_id} ", timeout=5 if end == "deadline" else 60)
        except AssertionError:
            assert end == "deadline" and self.daemon.process.poll() is None
            return None
        return dict(re.findall(r" ([a-z_]+)=(\S+)", line))

    def gauges(self):
        with urllib.request.urlopen(self.daemon.metrics, timeout=60) as answer:
            text = answer.read().decode()
        wanted = ["skein_requests_running{", "skein_requests_waiting{", "skein_queue_tokens{", "skein_state_cache_usage_ratio{",
                  "skein_state_cache_bytes{", "skein_conversations ", "skein_conversation_token_bytes "]
        out = {}
        for line in text.splitlines():
            name, _, value = line.rpartition(" ")
            if any(line.startswith(w) for w in wanted):
                out[name] = float(value)
        assert len(out) >= len(wanted), text
        return out

    def waiting(self):
        return self.gauges()['skein_requests_waiting{model="m"}']

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
        """Fails when the moment does not come, or the end before it."""
        with self._changed:
            self._changed.wait_for(lambda: self._ended or moment(self.events), seconds)
            assert moment(self.events), (self.events[-3:], self.error)

    def end(self, seconds=60):
        with self._changed:
            assert self._changed.wait_for(lambda: self._ended, seconds), self.events[-3:]
        return self

    def finished(self):
        return next((e.finished for e in self.events if e.WhichOneof("event") == "finished"), None)


def seconds(duration):
    return duration.seconds + duration.nanos * 1e-9


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
    text = b"go on " if phase != "prefill" else b"x" * server.long_prompt(end)
    sampling = g.Sampling(temperature=0)
    stopping = g.Stopping(ignore_eos=True)
    if end == "ok" and phase == "prefill":  # all that it does
        length = 0
    if end == "ok" and phase == "decode":   # by a stop id, with tokens left
        length = ENDLESS
        sampling.logit_bias[ord("A") + 1] = 1000.0
        stopping.stop_token_ids.append(ord("A") + 1)
        stopping.min_tokens = SAID
    if end == "server error":
        if phase in ("waiting", "prefill"):  # a part of the prompt breaks the row
            text += bytes([POISON])
        else:                                # a token that it says does: the next step's logits are no numbers
            sampling.logit_bias[POISON + 1] = 1000.0
            length = 2 if phase == "last token" else ENDLESS
    stopping.max_tokens = length
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
    began = time.monotonic()
    stream = Stream(stub.Generate(request, timeout=TIME if end == "deadline" else 120))
    if end not in TIMES and (phase == "waiting" or end not in ("ok", "server error")):
        stream.wait(MOMENT[phase])
        assert phase != "waiting" or server.waiting() == 1
    end_it(server, end, phase, stream, request, wire)
    if phase == "waiting":
        if end in ("ok", "server error"):
            blocker.call.cancel()  # its turn comes
        else:
            stream.end()
            until(lambda: server.waiting() == 0)  # the client knows sooner than the server
            blocker.call.cancel()
        blocker.end()
    stream.end()
    stream.took = time.monotonic() - began
    if end == "drain":
        server.client.control.Undrain(server.pb.control.UndrainRequest())
    return conversation, head, request, stream


def in_phase(server, end, phase, request, stream, line):
    """Whether the end came in its phase. After a miss it is better known where the next one has to go."""
    if end == "ok":  # it goes through all of them
        finished = stream.finished()
        return {"waiting": has("queued")(stream.events) and seconds(finished.timings.queue) > 0,
                "prefill": line["phase"] == "prefill" and line["end"] == "LENGTH",
                "decode": line["end"] == "STOP" and finished.usage.completion_tokens == SAID,
                "last token": line["end"] == "LENGTH" and finished.usage.completion_tokens == LAST}[phase]
    if end == "server error":  # what waits has no error before it has a slot
        said = {"waiting": 0, "prefill": 0, "decode": 1, "last token": 1}[phase]
        return (line["phase"], int(line["tokens"])) == ("decode" if said else "prefill", said)
    if phase != "last token":
        hit = line.get("phase", "refused") == phase and line.get("end") != "LENGTH"
        if phase == "prefill" and not hit:
            server.prefill_speed *= 0.8 if "phase" not in line else 1.25
        return hit
    length, said = request.stopping.max_tokens, int(line.get("tokens", 0))
    if end not in TIMES:
        return tokens(stream.events) >= length - 1
    if said >= NEAR * length and stream.took >= NEAR * TIME:
        return True
    server.decode_speed = max(said, 1) / stream.took
    return False


def check_client(pb, end, phase, request, stream):
    """What the client was told; at the last token an end may come too late."""
    finished = stream.finished()
    if end == "ok" and phase == "decode":
        assert stream.error is None and finished.reason == pb.gen.FINISH_REASON_STOP
        return
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
    """The conversation is where the commit mode says, and free. Returns the version that the request made."""
    if not conversation:
        return None
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
    if end == "ok" and phase == "decode":
        end = "stop"
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
        return None
    version = info.versions[-1]
    assert info.head_version == version.id > (head or 0) and version.parent == (head or 0)
    assert server.pb.gen.FinishReason.Name(version.finish_reason) == "FINISH_REASON_" + REASONS[name]
    # All of the input, and each token that the client was told of.
    ids = list(request.token_ids.ids)
    assert list(version.input_token_ids) == ids
    shown = [t.id for e in stream.events if e.WhichOneof("event") == "delta" for t in e.delta.tokens]
    assert list(version.output_token_ids)[:len(shown)] == shown
    if finished is not None:
        assert list(version.output_token_ids) == shown
    if phase != "prefill" and len(version.output_token_ids) < 2000:
        check_state(server, conversation, info)
    return version


def check_line(pb, end, phase, request, stream, line, kept):
    """What the log says is what the client was told and what the conversation keeps."""
    finished = stream.finished()
    code = "OK" if stream.error is None else NAMES[end]  # of an error it is the name
    # At its last token a request may have ended well before its client was seen to be gone.
    late = phase == "last token" and end in ("transport cancel", "client killed", "deadline")
    assert line["code"] == code or (late and line["code"] == "OK"), line
    if "phase" not in line:  # refused at the door
        assert code == "DEADLINE_EXCEEDED" and "DEADLINE" in line["reason"]
        return
    assert line.get("conversation", "") == request.conversation_id
    said = sum(len(e.delta.tokens) for e in stream.events if e.WhichOneof("event") == "delta")
    if finished is not None and line["code"] == "OK":
        assert line["end"] == pb.gen.FinishReason.Name(finished.reason).removeprefix("FINISH_REASON_")
        assert int(line["prompt_tokens"]) == finished.usage.prompt_tokens == len(request.token_ids.ids)
        assert int(line["tokens"]) == finished.usage.completion_tokens == said
        assert int(line.get("version", 0)) == finished.version
        return
    # The line of a client that is gone is written at once; the row ends, and commits, at its next token.
    assert said <= int(line["tokens"])
    assert kept is None or int(line["tokens"]) <= len(kept.output_token_ids)
    assert "version" not in line or (kept is not None and int(line["version"]) == kept.id)


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
        tries = TRIES if end in TIMES else 1
        try:
            assert any(one_case(server, end, phase, kind, commit, before) for _ in range(tries)), "the end came in no try"
        except AssertionError as error:
            raise AssertionError(f"{end} / {phase} / {kind} / {commit}: {error}") from error
    assert server.daemon.process.poll() is None


def one_case(server, end, phase, kind, commit, before):
    """Whether its end came in its phase; all else holds whenever it came."""
    pb = server.pb
    conversation, head, request, stream = run_case(server, end, phase, kind, commit)
    check_client(pb, end, phase, request, stream)
    line = server.line(request, end)
    if line is not None:
        # Who is told that the client has gone before its own clock says that the deadline has passed takes it for that.
        seen = "transport cancel" if end == "deadline" and line["code"] == "CANCELLED" else end
        kept = check_conversation(server, seen, phase, kind, commit, conversation, head, request, stream)
        check_line(pb, seen, phase, request, stream, line, kept)
    if conversation:
        try:
            server.client.conv.Delete(pb.conv.DeleteConversationRequest(id=conversation))
        except grpc.RpcError as error:
            assert error.code() == grpc.StatusCode.NOT_FOUND
    server.settled(before)
    return line is not None and seen == end and in_phase(server, end, phase, request, stream, line)


def test_sigterm(start, pb, poisoned_model):
    """The drain that ends the process: everybody at once; what is committed shows in what the clients are told."""
    daemon = start({**Server.SETTINGS, "engine.slots": 16, "shutdown.drain": "200ms"}, model=poisoned_model)
    server = Server(daemon, pb)
    cases = [(k, c, *prepare(server, k)) for k, c in itertools.product(KINDS, COMMITS)
             if not (k == "stateless" and c != "ON_SUCCESS")]
    streams = [Stream(server.client.gen.Generate(request_of(server, "drain", "decode", conversation, commit, new=kind == "new"),
                                                 timeout=60)) for kind, commit, conversation, _ in cases]
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
