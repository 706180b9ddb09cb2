"""Each status code of the API and each limit, as a client in another language meets it: code, reason, the exact message,
the google.rpc details, and that a refusal comes before any header. One table; a new refusal is a new line."""

import json
import threading
import time

import grpc
import pytest
from checkpoint import POISON
from client import ENDLESS, Client, Running, details, expect_error, fresh_id
from status_rows import C, Row, attach, check, control, conversations, generate, situation, until_refused
from test_control import until
from test_load import total
from test_metrics import scrape, series

# Small enough to be reached.
SMALL = {"limits.prompt_tokens": 100, "limits.max_tokens": 10**6, "limits.stop_strings": 2, "limits.stop_string_bytes": 8,
         "limits.stop_token_ids": 2, "limits.logit_bias": 2, "limits.top_logprobs": 3, "limits.score_continuations": 2,
         "limits.num_sequences": 2, "limits.tokenize_bytes": 64, "limits.detokenize_ids": 16, "limits.forks": 2, "limits.queued": 2, "limits.queued_tokens": 100, "engine.slots": 1,
         "defaults.max_tokens": 8, "listen.max_message": 8192, "conversations.max_waiting": 1, "model.name": "m",
         "control.model_folders": "[]", "prompts": "[{name: greeting, text: Hello.}]"}


def bad(name, change, message, field=None, reason="INVALID_FIELD"):
    field = field or name
    return Row(name, generate(change), C.INVALID_ARGUMENT, reason, f"{field}: {message}", field=field)


def score(n, prompt="a", continuation="b"):
    def call(client, world):
        g = client.pb.gen
        return client.gen.Score(g.ScoreRequest(text=g.Text(text=prompt),
                                               continuations=[g.Continuation(text=g.Text(text=continuation))] * n), timeout=60)
    return call


def tokenize(messages=(), **fields):
    def call(client, world):
        g = client.pb.gen
        request = g.TokenizeRequest(**fields)
        for text in messages:
            request.messages.messages.add(role=g.ROLE_USER, content=text)
        return client.gen.Tokenize(request, timeout=60)
    return call


def health(service):
    def call(client, world):
        from grpc_health.v1 import health_pb2, health_pb2_grpc
        return health_pb2_grpc.HealthStub(world["daemon"].channel).Check(health_pb2.HealthCheckRequest(service=service))
    return call


ROWS = [
    # ---- overload: what a client may send again
    Row("queue full", generate(), C.RESOURCE_EXHAUSTED, "QUEUE_FULL",
        "the queue is full (2 requests wait); try again later", retry=True, setup="full queue"),
    Row("prompt tokens wait", generate(text="y" * 60), C.RESOURCE_EXHAUSTED, "QUEUE_TOKENS_FULL",
        "the queue is full (60 prompt tokens wait, at most 100; this request has 60); try again later", retry=True,
        setup="long queue"),
    Row("more prompt tokens than can ever wait", score(1, "y" * 60, "z" * 60), C.RESOURCE_EXHAUSTED, "QUEUE_TOKENS_FULL",
        "the queue takes at most 100 prompt tokens (limits.queued_tokens), and this request has 120; send less at once"),
    Row("draining", generate(), C.UNAVAILABLE, "DRAINING", "the server is shutting down; try another one", retry=True,
        setup="draining"),

    # ---- conversations
    Row("unknown conversation", generate(conversation="nobody"), C.NOT_FOUND, "CONVERSATION_NOT_FOUND",
        "no conversation 'nobody'"),
    Row("unknown version", generate(conversation=lambda w: w["conversation"], base_version=9), C.NOT_FOUND,
        "VERSION_NOT_FOUND", "conversation '{conversation}' has no version 9"),
    Row("busy", generate(conversation=lambda w: w["conversation"]), C.ABORTED, "CONVERSATION_BUSY",
        "conversation '{conversation}' is in use by another request", setup="busy"),
    Row("its line is full", generate(conversation=lambda w: w["conversation"], wait_if_busy=True), C.ABORTED,
        "CONVERSATION_BUSY", "conversation '{conversation}' is in use and 1 requests wait for it already", setup="full line"),
    Row("version mismatch", generate(conversation=lambda w: w["conversation"], expected_version=7), C.FAILED_PRECONDITION,
        "VERSION_MISMATCH", "the head of conversation '{conversation}' is version 1, not 7", precondition="VERSION_MISMATCH"),
    Row("conversation exists", conversations("Create", lambda c, w: c.CreateConversationRequest(id=w["conversation"])),
        C.ALREADY_EXISTS, "CONVERSATION_EXISTS", "conversation '{conversation}' exists already"),

    Row("a prompt state in the middle", generate(conversation=lambda w: w["conversation"], prompt_state="greeting"),
        C.FAILED_PRECONDITION, "CONVERSATION_NOT_EMPTY",
        "a prompt state begins a conversation, and '{conversation}' is at version 1; leave prompt_state out to go on, or set "
        "base_version 0", precondition="CONVERSATION_NOT_EMPTY"),
    Row("unknown prompt state", generate(prompt_state="nobody"), C.NOT_FOUND, "PROMPT_STATE_NOT_FOUND",
        "model 'm' has no prompt state 'nobody'; it has: greeting"),

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
        "the model's logits for this request are not finite at token 1", late=True),
    Row("no models are loaded", control("LoadModel", lambda c, w: c.LoadModelRequest(path="x")), C.FAILED_PRECONDITION,
        "LOADING_OFF", "this server loads no models while it runs: control.model_folders is empty",
        precondition="LOADING_OFF"),
    Row("health of a stranger", health("nobody"), C.NOT_FOUND, "SERVICE_NOT_FOUND", "there is no such service here"),

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
    bad("nothing to go on from", lambda r: r.ClearField("text"), "is empty, and there is no conversation to go on with",
        field="input"),
    Row("an empty conversation", generate(lambda r: r.ClearField("text"), conversation="empty", create_if_missing=True),
        C.INVALID_ARGUMENT, "INVALID_FIELD",
        "input: is empty, and so is the conversation: there is nothing to go on from (token 0 starts a document)",
        field="input"),
    Row("a score of nothing", lambda client, world: client.gen.Score(client.pb.gen.ScoreRequest(
        conversation_id=client.conv.Create(client.pb.conv.CreateConversationRequest()).id,
        continuations=[client.pb.gen.Continuation(text=client.pb.gen.Text(text="b"))]), timeout=60),
        C.INVALID_ARGUMENT, "INVALID_FIELD",
        "prompt: is empty, and so is the conversation: there is nothing to go on from (token 0 starts a document)",
        field="prompt"),
    Row("text to tokenize", tokenize(text="x" * 65), C.INVALID_ARGUMENT, "INVALID_FIELD",
        "text: has 65 bytes; at most 64 (limits.tokenize_bytes)", field="text"),
    Row("bytes to tokenize", tokenize(bytes=b"x" * 65), C.INVALID_ARGUMENT, "INVALID_FIELD",
        "bytes: has 65 bytes; at most 64 (limits.tokenize_bytes)", field="bytes"),
    Row("messages to tokenize", tokenize(messages=["x" * 40, "y" * 25]), C.INVALID_ARGUMENT, "INVALID_FIELD",
        "messages: has 65 bytes; at most 64 (limits.tokenize_bytes)", field="messages"),
    Row("ids to detokenize", lambda client, world: client.gen.Detokenize(client.pb.gen.DetokenizeRequest(ids=[1] * 17),
                                                                         timeout=60),
        C.INVALID_ARGUMENT, "INVALID_FIELD", "ids: has 17 entries; at most 16", field="ids"),
    bad("num_sequences", lambda r: setattr(r, "num_sequences", 3), "is 3, must be in [1, 2]"),
    Row("bytes that are no message", lambda client, world: world["daemon"].channel.unary_stream(
        "/skein.v1.Generation/Generate")(b"\x0a\xff\xff\xff", timeout=60), C.INVALID_ARGUMENT, "MALFORMED_MESSAGE",
        "the bytes are not a valid skein.v1.GenerateRequest"),
    Row("message size", lambda client, world: client.stream("x" * 9000), C.RESOURCE_EXHAUSTED, "",
        "Received message larger than max (9023 vs. 8192)"),
    Row("metadata size", lambda client, world: client.gen.Generate(client.request("x"), metadata=[("x-big", "y" * 17000)],
                                                                   timeout=60), C.RESOURCE_EXHAUSTED, "",
        "received initial metadata size exceeds limit"),
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


# A server that drains serves nobody after that: test_draining.
@pytest.mark.parametrize("row", [row for row in ROWS if row.setup != "draining"], ids=lambda row: row.name)
def test_row(world, row):
    undo = situation(world, row.setup)
    try:
        check(row, world, world["client"])
    finally:
        undo()
    assert world["daemon"].process.poll() is None


def test_draining(start, pb, steady_model):
    daemon = start({"shutdown.drain": "60s"}, model=steady_model)
    client = Client(pb, daemon.channel)
    running = Running(client.stream("x", max_tokens=ENDLESS))
    daemon.terminate()
    until_refused(client)
    [row] = [row for row in ROWS if row.setup == "draining"]
    check(row, {}, client)
    # Before the request is looked at: it is none.
    malformed = daemon.channel.unary_stream("/skein.v1.Generation/Generate")
    error = expect_error(C.UNAVAILABLE, lambda: malformed(b"\x0a\xff\xff\xff", timeout=60))
    assert details(error)["ErrorInfo"].reason == "DRAINING"
    running.cancel()
    assert daemon.wait() == 0


def test_a_client_with_a_retry_policy_gets_through(start, steady_model, pb):
    """What the refusals are for: gRPC itself waits as long as it was told, and tries again."""
    daemon = start({"engine.slots": 1, "limits.queued": 1}, model=steady_model)
    client = Client(pb, daemon.channel)
    running = Running(client.stream("b", max_tokens=ENDLESS))
    waiting = client.stream("y")
    assert next(waiting).WhichOneof("event") == "queued"
    policy = {"methodConfig": [{"name": [{}], "retryPolicy": {
        "maxAttempts": 5, "initialBackoff": "100s", "maxBackoff": "100s", "backoffMultiplier": 1,
        "retryableStatusCodes": ["RESOURCE_EXHAUSTED"]}}]}
    channel = grpc.insecure_channel(daemon.address, options=[("grpc.service_config", json.dumps(policy)),
                                                             ("grpc.use_local_subchannel_pool", 1)])
    before = time.monotonic()
    patient = Client(pb, channel).stream("z", timeout=300)

    def make_room():
        until(lambda: total(series(scrape(daemon)), "skein_admission_rejections_total", 'reason="QUEUE_FULL"') > 0)
        running.stream.cancel()

    threading.Thread(target=make_room).start()
    events = list(patient)
    assert events[-1].finished.usage.completion_tokens == 8
    assert 0.1 < time.monotonic() - before < 60, "the pushback, not the policy's own backoff, says when"
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
    end = time.monotonic() + 60
    while 'code="RESOURCE_EXHAUSTED"' not in scrape(daemon):
        assert time.monotonic() < end
        time.sleep(0.05)
    with pytest.raises(grpc.RpcError) as caught:
        list(stream)
    assert caught.value.code() == C.RESOURCE_EXHAUSTED
    assert caught.value.details() == "the client did not read its stream for too long"
    found = details(caught.value)
    assert found["ErrorInfo"].reason == "SLOW_READER" and "RetryInfo" not in found
