"""Each status code of the API and each limit, as a client in another language meets it: code, reason, the exact message,
the google.rpc details, and that a refusal comes before any header. One table; a new refusal is a new line."""

import dataclasses
import json
import threading
import time
import typing

import grpc
import pytest
from checkpoint import POISON
from client import ENDLESS, Client, Running, details, fresh_id
from test_metrics import scrape

C = grpc.StatusCode

# Small enough to be reached.
SMALL = {"limits.prompt_tokens": 100, "limits.max_tokens": 10**6, "limits.stop_strings": 2, "limits.stop_string_bytes": 8,
         "limits.stop_token_ids": 2, "limits.logit_bias": 2, "limits.top_logprobs": 3, "limits.score_continuations": 2,
         "limits.forks": 2, "limits.queued": 2, "limits.queued_tokens": 100, "engine.slots": 1, "defaults.max_tokens": 8,
         "listen.max_message": 8192, "model.name": "m"}


@dataclasses.dataclass
class Row:
    name: str
    call: typing.Callable          # (client, world) -> a call that fails
    code: grpc.StatusCode
    reason: str
    message: str                   # `{...}`: of world
    field: str = ""                # of BadRequest
    metadata: dict = dataclasses.field(default_factory=dict)   # of ErrorInfo
    precondition: str = ""         # type in PreconditionFailure
    retry: bool = False            # RetryInfo and grpc-retry-pushback-ms
    setup: str = ""                # what must be going on, see `situation`


def generate(change=None, **fields):
    def call(client, world):
        filled = {k: v(world) if callable(v) else v for k, v in fields.items()}
        request = client.request(filled.pop("text", "x"), **filled)
        if change is not None:
            change(request)
        return client.gen.Generate(request, timeout=20)
    return call


def bad(name, change, message, field=None, reason="INVALID_FIELD"):
    field = field or name
    return Row(name, generate(change), C.INVALID_ARGUMENT, reason, f"{field}: {message}", field=field)


def score(n):
    def call(client, world):
        g = client.pb.gen
        return client.gen.Score(g.ScoreRequest(text=g.Text(text="a"),
                                               continuations=[g.Continuation(text=g.Text(text="b"))] * n), timeout=20)
    return call


def conversations(method, make):
    return lambda client, world: getattr(client.conv, method)(make(client.pb.conv, world))


def attach(request_id, after=0):
    return lambda client, world: client.gen.Attach(
        client.pb.gen.AttachRequest(request_id=world.get(request_id, request_id), after_token=after), timeout=20)


ROWS = [
    # ---- overload: what a client may send again
    Row("queue full", generate(), C.RESOURCE_EXHAUSTED, "QUEUE_FULL",
        "the queue is full (2 requests wait); try again later", retry=True, setup="full queue"),
    Row("prompt tokens wait", generate(text="y" * 60), C.RESOURCE_EXHAUSTED, "QUEUE_TOKENS_FULL",
        "the queue is full (60 prompt tokens wait, at most 100; this request has 60); try again later", retry=True,
        setup="long queue"),
    Row("draining", generate(), C.UNAVAILABLE, "DRAINING", "the server is shutting down; try another one", retry=True,
        setup="draining"),

    # ---- conversations
    Row("unknown conversation", generate(conversation="nobody"), C.NOT_FOUND, "CONVERSATION_NOT_FOUND",
        "no conversation 'nobody'"),
    Row("unknown version", generate(conversation=lambda w: w["conversation"], base_version=9), C.NOT_FOUND,
        "VERSION_NOT_FOUND", "conversation '{conversation}' has no version 9"),
    Row("busy", generate(conversation=lambda w: w["conversation"]), C.ABORTED, "CONVERSATION_BUSY",
        "conversation '{conversation}' is in use by another request", setup="busy"),
    Row("version mismatch", generate(conversation=lambda w: w["conversation"], expected_version=7), C.FAILED_PRECONDITION,
        "VERSION_MISMATCH", "the head of conversation '{conversation}' is version 1, not 7", precondition="VERSION_MISMATCH"),
    Row("conversation exists", conversations("Create", lambda c, w: c.CreateConversationRequest(id=w["conversation"])),
        C.ALREADY_EXISTS, "CONVERSATION_EXISTS", "conversation '{conversation}' exists already"),

    # ---- requests by id
    Row("request id with other input", generate(request_id=lambda w: w["request"], max_tokens=3), C.ALREADY_EXISTS,
        "REQUEST_ID_IN_USE", "request id '{request}' was used with other input; a new request needs an id of its own",
        metadata={"request_id": "{request}"}),
    Row("attach to nothing", attach("nobody"), C.NOT_FOUND, "REQUEST_NOT_FOUND", "no request 'nobody' is known",
        metadata={"request_id": "nobody"}),
    Row("attach behind the end", attach("request", 9), C.INVALID_ARGUMENT, "INVALID_FIELD",
        "after_token: is 9, but there are only 8 tokens so far", field="after_token"),

    # ---- the model
    Row("unknown model", generate(model="gpt"), C.NOT_FOUND, "MODEL_NOT_FOUND", "model 'gpt' is not served here; served: m",
        metadata={"served": "m"}),
    Row("not finite", generate(lambda r: (r.token_ids.ids.append(POISON + 1))), C.INTERNAL, "NON_FINITE_LOGITS",
        "the model's logits for this request are not finite at token 1"),

    # ---- not built
    Row("constraint", generate(lambda r: setattr(r.constraint, "regex", "a+")), C.UNIMPLEMENTED, "NOT_SUPPORTED",
        "constraint is not supported by this server yet", metadata={"field": "constraint"}),

    # ---- limits
    Row("prompt too long", generate(text="x" * 101), C.INVALID_ARGUMENT, "PROMPT_TOO_LONG",
        "text.text: has 101 tokens; at most 100 (limits.prompt_tokens)", field="text.text"),
    bad("stopping.max_tokens", lambda r: setattr(r.stopping, "max_tokens", 10**6 + 1), "is 1000001, must be in [0, 1000000]"),
    bad("stopping.stop_strings", lambda r: r.stopping.stop_strings.extend("abc"), "has 3 entries; at most 2"),
    bad("a long stop string", lambda r: r.stopping.stop_strings.append("x" * 9), "has 9 bytes; at most 8",
        field="stopping.stop_strings[0]"),
    bad("stopping.stop_token_ids", lambda r: r.stopping.stop_token_ids.extend([1, 2, 3]), "has 3 entries; at most 2"),
    bad("sampling.logit_bias", lambda r: r.sampling.logit_bias.update({1: 1, 2: 1, 3: 1}), "has 3 entries; at most 2"),
    bad("sampling.banned_token_ids", lambda r: r.sampling.banned_token_ids.extend([1, 2, 3]), "has 3 entries; at most 2"),
    bad("output.top_logprobs", lambda r: setattr(r.output, "top_logprobs", 4), "is 4, must be in [0, 3]"),
    bad("request_id", lambda r: setattr(r, "request_id", "x" * 129), "has 129 bytes; at most 128"),
    bad("conversation_id", lambda r: setattr(r, "conversation_id", "x" * 257), "has 257 bytes; at most 256"),
    Row("score continuations", score(3), C.INVALID_ARGUMENT, "INVALID_FIELD", "continuations: has 3 entries; at most 2",
        field="continuations"),
    Row("forks", conversations("Fork", lambda c, w: c.ForkConversationRequest(id=w["conversation"], count=3)),
        C.INVALID_ARGUMENT, "INVALID_FIELD", "count: is 3, must be in [1, 2] (limits.forks)", field="count"),
    Row("message size", lambda client, world: client.stream("x" * 9000), C.RESOURCE_EXHAUSTED, "",
        "Received message larger than max (9023 vs. 8192)"),
]


@pytest.fixture(scope="module")
def world(poisoned_model, pb, tmp_path_factory):
    """A daemon with small limits, a conversation with one version, a request that has ended."""
    import daemon as daemon_module
    daemon = daemon_module.Daemon(poisoned_model, tmp_path_factory.mktemp("table"), SMALL)
    client = Client(pb, daemon.channel)
    conversation, request = fresh_id(), fresh_id()
    client.generate("hi", conversation=conversation, create_if_missing=True)
    client.generate("x", request_id=request)
    yield {"daemon": daemon, "client": client, "conversation": conversation, "request": request, "pb": pb}
    daemon.stop()


def situation(world, name):
    """Brings about what the row needs; returns what undoes it."""
    client = world["client"]
    if not name:
        return lambda: None
    conversation = world["conversation"] if name == "busy" else ""
    running = Running(client.stream("b", max_tokens=10**6, conversation=conversation))
    waiting = []
    if name in ("full queue", "long queue"):
        waiting = [client.stream("y" * (60 if name == "long queue" else 1)) for _ in range(1 if name == "long queue" else 2)]
        for stream in waiting:
            assert next(stream).WhichOneof("event") == "queued"

    def undo():
        running.cancel()
        for stream in waiting:
            list(stream)
        while conversation and client.get(conversation).busy:
            time.sleep(0.002)
    return undo


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_row(world, row):
    if row.setup == "draining":
        pytest.skip("test_draining has it: the daemon is then gone")
    undo = situation(world, row.setup)
    try:
        check(row, world, world["client"])
    finally:
        undo()
    assert world["daemon"].process.poll() is None


def check(row, world, client):
    with pytest.raises(grpc.RpcError) as caught:
        result = row.call(client, world)
        if hasattr(result, "__iter__"):
            list(result)
    error = caught.value
    expected = {k: v for k, v in world.items() if isinstance(v, str)}
    assert (error.code(), error.details()) == (row.code, row.message.format(**expected))
    assert row.code == C.INTERNAL or not error.initial_metadata(), "after a header no client retries"
    if not row.reason:  # gRPC's own refusal
        return
    found = details(error)
    assert found["ErrorInfo"].reason == row.reason
    for key, value in row.metadata.items():
        assert found["ErrorInfo"].metadata[key] == value.format(**expected)
    violations = [v.field for v in found["BadRequest"].field_violations] if "BadRequest" in found else []
    assert violations == ([row.field] if row.field else [])
    preconditions = [v.type for v in found["PreconditionFailure"].violations] if "PreconditionFailure" in found else []
    assert preconditions == ([row.precondition] if row.precondition else [])
    pushback = dict(error.trailing_metadata()).get("grpc-retry-pushback-ms")
    assert ("RetryInfo" in found) == (pushback is not None) == row.retry
    if row.retry:
        assert 0 < int(pushback) == found["RetryInfo"].retry_delay.ToMilliseconds()


def test_draining(start, pb, steady_model):
    daemon = start({"shutdown.drain": "20s"}, model=steady_model)
    client = Client(pb, daemon.channel)
    running = Running(client.stream("x", max_tokens=ENDLESS))
    daemon.terminate()
    daemon.wait_for_line("draining")
    [row] = [row for row in ROWS if row.setup == "draining"]
    check(row, {}, client)
    running.cancel()
    assert daemon.wait() == 0


def test_metadata_size(shared, pb):
    """Headers above the limit are refused by the transport; others are served all the while."""
    client = Client(pb, shared.new_channel())
    with pytest.raises(grpc.RpcError) as caught:
        list(client.gen.Generate(client.request("x"), metadata=[("x-big", "y" * (32 << 10))], timeout=20))
    assert caught.value.code() in (C.RESOURCE_EXHAUSTED, C.UNAVAILABLE, C.INTERNAL), caught.value
    assert Client(pb, shared.channel).generate("x").ids


def test_a_client_with_a_retry_policy_gets_through(start, steady_model, pb):
    """What the refusals are for: gRPC itself waits as long as it was told, and tries again."""
    daemon = start({"engine.slots": 1, "limits.queued": 1}, model=steady_model)
    client = Client(pb, daemon.channel)
    running = Running(client.stream("b", max_tokens=ENDLESS))
    waiting = client.stream("y")
    assert next(waiting).WhichOneof("event") == "queued"
    policy = {"methodConfig": [{"name": [{}], "retryPolicy": {
        "maxAttempts": 5, "initialBackoff": "10s", "maxBackoff": "10s", "backoffMultiplier": 1,
        "retryableStatusCodes": ["RESOURCE_EXHAUSTED"]}}]}
    channel = grpc.insecure_channel(daemon.address, options=[("grpc.service_config", json.dumps(policy)),
                                                             ("grpc.use_local_subchannel_pool", 1)])
    patient = Client(pb, channel).stream("z", timeout=30)
    threading.Timer(0.2, running.stream.cancel).start()
    before = time.monotonic()
    events = list(patient)
    assert events[-1].finished.usage.completion_tokens == 8
    assert 0.1 < time.monotonic() - before < 9, "the pushback, not the policy's own backoff, says when"
    list(waiting)
    channel.close()


def test_slow_reader_row(start, pb):
    g = pb.gen
    daemon = start({"limits.outbox_tokens": 32, "limits.outbox_age": "300ms"})
    lazy = Client(pb, daemon.new_channel())
    request_id = fresh_id()
    stream = lazy.stream("x", request_id=request_id, stopping=g.Stopping(max_tokens=ENDLESS, ignore_eos=True),
                         output=g.Output(top_logprobs=20), timeout=60)
    next(stream)
    end = time.monotonic() + 40
    while 'code="RESOURCE_EXHAUSTED"' not in scrape(daemon):
        assert time.monotonic() < end
        time.sleep(0.05)
    with pytest.raises(grpc.RpcError) as caught:
        list(stream)
    assert caught.value.code() == C.RESOURCE_EXHAUSTED
    assert caught.value.details() == "the client did not read its stream for too long"
    found = details(caught.value)
    assert found["ErrorInfo"].reason == "SLOW_READER" and "RetryInfo" not in found
