"""Refusals: each with its code, its google.rpc details, and nothing changed."""

import time

import grpc
import pytest
from client import ENDLESS, Client, Running, details, expect_error, fresh_id
from test_control import until

INVALID = grpc.StatusCode.INVALID_ARGUMENT
UNIMPLEMENTED = grpc.StatusCode.UNIMPLEMENTED


def refuse(client, code, request):
    error = expect_error(code, lambda: client.gen.Generate(request, timeout=60))
    # Before any header: this is what lets clients retry.
    assert not error.initial_metadata()
    return details(error)


BAD_FIELDS = {
    "sampling.temperature": lambda r: setattr(r.sampling, "temperature", 11),
    "sampling.top_p": lambda r: setattr(r.sampling, "top_p", 0),
    "sampling.min_p": lambda r: setattr(r.sampling, "min_p", float("nan")),
    "sampling.top_k": lambda r: setattr(r.sampling, "top_k", -1),
    "sampling.presence_penalty": lambda r: setattr(r.sampling, "presence_penalty", 11),
    "sampling.frequency_penalty": lambda r: setattr(r.sampling, "frequency_penalty", -11),
    "sampling.penalty_decay": lambda r: setattr(r.sampling, "penalty_decay", 0),
    "sampling.repetition_penalty": lambda r: setattr(r.sampling, "repetition_penalty", 0),
    "sampling.logit_bias[257]": lambda r: r.sampling.logit_bias.update({257: 1}),
    "sampling.logit_bias[3]": lambda r: r.sampling.logit_bias.update({3: float("inf")}),
    "sampling.logit_bias": lambda r: r.sampling.logit_bias.update({i % 257: 1 for i in range(257)}),
    "sampling.banned_token_ids[1]": lambda r: r.sampling.banned_token_ids.extend([1, -1]),
    "sampling.banned_token_ids": lambda r: r.sampling.banned_token_ids.extend(range(257)),
    "stopping.max_tokens": lambda r: setattr(r.stopping, "max_tokens", 2 * 10**9),
    "stopping.min_tokens": lambda r: setattr(r.stopping, "min_tokens", 100),
    "stopping.max_time": lambda r: r.stopping.max_time.FromSeconds(-1),
    "stopping.stop_strings[0]": lambda r: r.stopping.stop_strings.append(""),
    "stopping.stop_strings": lambda r: r.stopping.stop_strings.extend(["x"] * 17),
    "stopping.stop_token_ids[0]": lambda r: r.stopping.stop_token_ids.append(257),
    "output.top_logprobs": lambda r: setattr(r.output, "top_logprobs", 21),
    "request_id": lambda r: setattr(r, "request_id", "x" * 129),
    "conversation_id": lambda r: setattr(r, "conversation_id", "a\nb"),
    "base_version": lambda r: setattr(r, "base_version", 1),
    "expected_version": lambda r: setattr(r, "expected_version", 1),
    "create_if_missing": lambda r: setattr(r, "create_if_missing", True),
    "num_sequences": lambda r: setattr(r, "num_sequences", 17),
    "thinking": lambda r: setattr(r, "thinking", "on"),
    "commit": lambda r: setattr(r, "commit", 77),
    "input": lambda r: r.ClearField("input"),
    "token_ids.ids[1]": lambda r: r.token_ids.ids.extend([5, 300]),
    "messages.messages": lambda r: r.messages.SetInParent(),
    "messages.messages[0].content": lambda r: r.messages.messages.add(role=2),
    "messages.messages[0].role": lambda r: r.messages.messages.add(content="x"),
}


@pytest.mark.parametrize("field", BAD_FIELDS)
def test_bad_field(client, start, pb, field):
    if field == "sampling.logit_bias":  # 257 ids cannot exceed the default limit
        client = Client(pb, start({"limits.logit_bias": 256}).channel)
    request = client.request("hello")
    BAD_FIELDS[field](request)
    found = refuse(client, INVALID, request)
    assert [v.field for v in found["BadRequest"].field_violations] == [field]
    assert found["BadRequest"].field_violations[0].description


def test_all_bad_fields_are_told_at_once(client):
    request = client.request("hello")
    request.sampling.temperature = -1
    request.stopping.max_tokens = -1
    fields = [v.field for v in refuse(client, INVALID, request)["BadRequest"].field_violations]
    assert fields == ["sampling.temperature", "stopping.max_tokens"]


NOT_BUILT = {
    "constraint": lambda r: setattr(r.constraint, "regex", "a+"),
}


@pytest.mark.parametrize("field", NOT_BUILT)
def test_not_built(client, field):
    request = client.request("hello")
    NOT_BUILT[field](request)
    info = refuse(client, UNIMPLEMENTED, request)["ErrorInfo"]
    assert info.metadata["field"] == field and info.reason == "NOT_SUPPORTED"


def raw(client, method, payload, reply):
    """Sends bytes that no protobuf library would make."""
    channel = client.raw_channel
    call = channel.unary_stream(method, request_serializer=lambda b: b, response_deserializer=reply.FromString)
    return call(payload, timeout=60)


def test_bad_utf8_names_the_field(shared, client):
    g = client.pb.gen
    client.raw_channel = shared.channel
    request = client.request(messages=g.Messages(messages=[g.Message(role=2, content="fine"),
                                                           g.Message(role=2, content="BAD")]))
    payload = request.SerializeToString().replace(b"BAD", b"\xff\xfe!")
    error = expect_error(INVALID, lambda: raw(client, "/skein.v1.Generation/Generate", payload, g.GenerateResponse))
    assert details(error)["BadRequest"].field_violations[0].field == "messages.messages[1].content"
    assert "UTF-8" in error.details()


def test_bytes_that_are_no_message(shared, client):
    client.raw_channel = shared.channel
    error = expect_error(INVALID, lambda: raw(client, "/skein.v1.Generation/Generate", b"\x0a\xff\xff\xff",
                                              client.pb.gen.GenerateResponse))
    assert details(error)["ErrorInfo"].reason == "MALFORMED_MESSAGE"


def test_message_too_big(client):
    error = expect_error(grpc.StatusCode.RESOURCE_EXHAUSTED, lambda: client.stream("x" * (4 << 20)))
    assert "larger than max" in error.details()
    assert client.generate("hi").ids


def test_prompt_too_long(client):
    found = refuse(client, INVALID, client.request("x" * 65537))
    assert found["ErrorInfo"].reason == "PROMPT_TOO_LONG"
    assert found["BadRequest"].field_violations[0].field == "text.text"


def test_unknown_model(client):
    found = refuse(client, grpc.StatusCode.NOT_FOUND, client.request("x", model="gpt"))
    assert found["ErrorInfo"].reason == "MODEL_NOT_FOUND" and found["ErrorInfo"].metadata["served"] == "tiny"
    assert client.generate("x", model="tiny").ids


def test_unknown_conversation_is_no_silent_amnesia(client):
    found = refuse(client, grpc.StatusCode.NOT_FOUND, client.request("x", conversation=fresh_id()))
    assert found["ErrorInfo"].reason == "CONVERSATION_NOT_FOUND"
    conversation = fresh_id()
    client.generate("x", conversation=conversation, create_if_missing=True)
    found = refuse(client, grpc.StatusCode.NOT_FOUND, client.request("x", conversation=conversation, base_version=9))
    assert found["ErrorInfo"].reason == "VERSION_NOT_FOUND"


def test_nothing_to_go_on_from(client):
    c = client.pb.conv
    empty = client.conv.Create(c.CreateConversationRequest())
    refuse(client, INVALID, client.request(conversation=empty.id))


def test_two_running_requests_may_not_share_an_id(client):
    request_id = fresh_id()
    stream = client.stream("x", max_tokens=ENDLESS, request_id=request_id)
    next(stream)
    found = refuse(client, grpc.StatusCode.ALREADY_EXISTS, client.request("x", request_id=request_id))
    assert found["ErrorInfo"].reason == "REQUEST_ID_IN_USE"
    stream.cancel()


def test_messages_without_a_template(start, pb, tmp_path):
    from checkpoint import write_tiny_checkpoint

    path = tmp_path / "plain.safetensors"
    write_tiny_checkpoint(path, chat_template="none")
    client = Client(pb, start(model=path).channel)
    g = pb.gen
    request = client.request(messages=g.Messages(messages=[g.Message(role=2, content="x")]))
    found = refuse(client, grpc.StatusCode.FAILED_PRECONDITION, request)
    assert found["PreconditionFailure"].violations[0].type == "NO_CHAT_TEMPLATE"


def test_full_queue(start, steady_model, pb):
    daemon = start({"engine.slots": 1, "limits.queued": 2, "engine.max_step_tokens": 64}, model=steady_model)
    client = Client(pb, daemon.channel)
    running = Running(client.stream("x", max_tokens=ENDLESS))
    waiting = [client.stream("y", max_tokens=4) for _ in range(2)]
    for stream in waiting:
        assert next(stream).WhichOneof("event") == "queued"
    error = expect_error(grpc.StatusCode.RESOURCE_EXHAUSTED, lambda: client.stream("z"))
    found = details(error)
    assert found["ErrorInfo"].reason == "QUEUE_FULL"
    delay = found["RetryInfo"].retry_delay.ToMilliseconds()
    pushback = int(dict(error.trailing_metadata())["grpc-retry-pushback-ms"])
    assert 0 < delay == pushback
    running.cancel()
    for stream in waiting:
        assert list(stream)[-1].finished.usage.completion_tokens == 4


def test_a_deadline_is_met_in_a_slot_that_is_lent(start, steady_model, pb):
    daemon = start({"engine.slots": 1}, model=steady_model)
    client = Client(pb, daemon.channel)
    running = Running(client.stream("x", max_tokens=ENDLESS, timeout=600))
    # All that it may say it cannot say before its deadline, so it does not wait for half of the time. It says little.
    g = pb.gen
    urgent = client.generate("y", sampling=g.Sampling(temperature=0, logit_bias={66: 1000.0}),
                             stopping=g.Stopping(max_tokens=ENDLESS, stop_token_ids=[66], min_tokens=5))
    assert len(urgent.ids) == 5 and urgent.finished.reason == g.FINISH_REASON_STOP
    had = len(running.events)
    until(lambda: len(running.events) > had)  # it has its slot again
    assert running.error is None
    running.cancel()


def test_a_reader_that_never_reads(start, pb):
    daemon = start({"limits.outbox_tokens": 32, "limits.outbox_age": "1s"})
    other = Client(pb, daemon.new_channel())
    lazy = Client(pb, daemon.new_channel())
    conversation = fresh_id()
    other.generate("hello", conversation=conversation, create_if_missing=True)
    g = pb.gen
    stream = lazy.stream("x", conversation=conversation, commit=g.COMMIT_MODE_KEEP_PARTIAL,
                         stopping=g.Stopping(max_tokens=ENDLESS, ignore_eos=True), output=g.Output(top_logprobs=20),
                         timeout=60)
    end = time.monotonic() + 60
    while not other.get(conversation).busy:
        assert time.monotonic() < end, daemon.log()
    while True:  # others are served all the while
        assert len(other.generate("hello").ids) == 8
        info = other.get(conversation)
        if not info.busy:
            break
        assert time.monotonic() < end, daemon.log()
    assert info.last_end == "RESOURCE_EXHAUSTED" and info.head_version == 1
    # When it reads at last it gets what was sent, then the reason.
    error = expect_error(grpc.StatusCode.RESOURCE_EXHAUSTED, lambda: stream)
    assert details(error)["ErrorInfo"].reason == "SLOW_READER"
