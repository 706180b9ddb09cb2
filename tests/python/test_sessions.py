"""Retries with the same request id, Attach, turns that outlive their client, Cancel: nothing is applied twice, nothing is
lost, and no other tenant's or request's stream is touched."""

import re
import time

import grpc
import pytest
from client import ENDLESS, Client, Running, Turn, details, expect_error, fresh_id
from test_bounds import WINDOW

ALREADY_EXISTS = grpc.StatusCode.ALREADY_EXISTS
NOT_FOUND = grpc.StatusCode.NOT_FOUND
FAILED_PRECONDITION = grpc.StatusCode.FAILED_PRECONDITION


def attach(client, request_id, after_token=0, timeout=60):
    return client.gen.Attach(client.pb.gen.AttachRequest(request_id=request_id, after_token=after_token),
                             timeout=timeout)


def cancel(client, request_id):
    return client.gen.Cancel(client.pb.gen.CancelRequest(request_id=request_id)).cancelled


def first_deltas(stream, tokens):
    """Reads until so many tokens have come; their deltas."""
    deltas, seen = [], 0
    for event in stream:
        if event.WhichOneof("event") == "delta":
            deltas.append(event.delta)
            seen = event.delta.token_count
            if seen >= tokens:
                return deltas
    raise AssertionError("the stream ended")


def wait_until(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


def same_turn(a, b):
    """The same result; only how it was cut into messages may differ."""
    assert (a.text, a.ids) == (b.text, b.ids)
    assert [t.SerializeToString() for t in a.tokens] == [t.SerializeToString() for t in b.tokens]
    assert a.started == b.started and a.finished == b.finished


# The same id again.

def test_the_deadline_is_that_of_the_call_that_began(client):
    """Who joins with more time left hears of it, and may send the request again."""
    request_id = fresh_id()
    fields = dict(request_id=request_id, max_tokens=ENDLESS)
    running = Running(client.stream("x", timeout=5, **fields))
    error = expect_error(grpc.StatusCode.DEADLINE_EXCEEDED, lambda: client.stream("x", timeout=300, **fields))
    assert error.details() == "the deadline passed before the request had ended"
    assert expect_error(grpc.StatusCode.ABORTED, running.end).details() == "another stream reads this request now"
    again = Running(client.stream("x", timeout=300, **fields))
    assert cancel(client, request_id)
    assert again.end().finished.reason == client.pb.gen.FINISH_REASON_CANCELLED


@pytest.mark.parametrize("kind", ["stateless", "committed"])
def test_an_ended_request_is_replayed_and_not_applied_twice(client, kind):
    request_id = fresh_id()
    fields = dict(max_tokens=40, request_id=request_id, output=client.pb.gen.Output(top_logprobs=3))
    if kind == "committed":
        fields.update(conversation=fresh_id(), create_if_missing=True)
    first = client.generate("hello", **fields)
    for _ in range(3):
        same_turn(client.generate("hello", **fields), first)
    if kind == "committed":
        info = client.get(fields["conversation"])
        assert first.finished.committed and info.head_version == first.finished.version == 1
        assert info.last_request_id == request_id
        # A later turn does not bring the old one back.
        client.generate("more", conversation=fields["conversation"])
        same_turn(client.generate("hello", **fields), first)
        assert client.get(fields["conversation"]).head_version == 2


def test_other_input_under_the_same_id(client):
    g = client.pb.gen
    request_id = fresh_id()
    request = client.request("hello", request_id=request_id)
    Turn(client.gen.Generate(request))
    changes = [lambda r: setattr(r.text, "text", "other"),
               lambda r: setattr(r.stopping, "max_tokens", 9),
               lambda r: setattr(r.sampling, "seed", 1),
               lambda r: r.sampling.logit_bias.update({3: 1.0}),
               lambda r: setattr(r, "commit", g.COMMIT_MODE_NEVER),
               lambda r: setattr(r, "on_disconnect", g.ON_DISCONNECT_FINISH)]
    for change in changes:
        other = g.GenerateRequest.FromString(request.SerializeToString())
        change(other)
        error = expect_error(ALREADY_EXISTS, lambda: client.gen.Generate(other))
        info = details(error)["ErrorInfo"]
        assert info.reason == "REQUEST_ID_IN_USE" and info.metadata["request_id"] == request_id
        assert not error.initial_metadata()


def test_the_same_request_in_other_bytes(client):
    """Order of map entries and spelled out defaults make no other request."""
    g = client.pb.gen
    bias = {i: float(i) for i in range(1, 60)}
    request_id = fresh_id()

    def request(order, **fields):
        out = client.request("hello", request_id=request_id, **fields)
        for key in order:
            out.sampling.logit_bias[key] = bias[key]
        return out

    first = Turn(client.gen.Generate(request(bias)))
    same_turn(Turn(client.gen.Generate(request(reversed(bias)))), first)
    same_turn(Turn(client.gen.Generate(request(bias, commit=g.COMMIT_MODE_ON_SUCCESS, num_sequences=1,
                                               on_disconnect=g.ON_DISCONNECT_CANCEL))), first)


def test_what_left_nothing_runs_again(start, pb):
    """Refused, failed, cancelled: with the same id it is a new run."""
    client = Client(pb, start({"limits.queued": 4}).channel)
    conversation, request_id = fresh_id(), fresh_id()
    fields = dict(conversation=conversation, request_id=request_id)
    expect_error(NOT_FOUND, lambda: client.stream("x", **fields))  # refused at submission
    client.generate("x", conversation=conversation, create_if_missing=True)
    assert client.generate("x", **fields).finished.version == 2

    request_id = fresh_id()  # stopped by Cancel
    fields = dict(conversation=conversation, request_id=request_id, max_tokens=20000)
    running = Running(client.stream("y", **fields))
    assert cancel(client, request_id)
    ended = running.end().finished
    assert ended.reason == pb.gen.FINISH_REASON_CANCELLED and not ended.committed
    again = client.generate("y", **fields)
    assert again.finished.committed and again.finished.version == 3 and len(again.ids) == 20000

    request_id = fresh_id()  # past its deadline
    fields = dict(conversation=conversation, request_id=request_id, max_tokens=20000)
    expect_error(grpc.StatusCode.DEADLINE_EXCEEDED, lambda: client.stream("z", timeout=0.05, **fields))
    wait_until(lambda: not client.get(conversation).busy)  # the server has seen it too; until then the retry would join
    again = client.generate("z", **fields)
    assert again.finished.version == 4 and len(again.ids) == 20000


def test_a_full_queue_refuses_no_retry(start, pb, steady_model):
    """What runs, waits or is kept needs no place in it."""
    client = Client(pb, start({"engine.slots": 1, "limits.queued": 1}, model=steady_model).channel)
    kept = client.generate("a", request_id="kept")
    running = Running(client.stream("b", request_id="running", max_tokens=ENDLESS))
    waiting = client.stream("c", request_id="waiting")
    assert next(waiting).WhichOneof("event") == "queued"
    error = expect_error(grpc.StatusCode.RESOURCE_EXHAUSTED, lambda: client.stream("d", request_id="new"))
    assert details(error)["ErrorInfo"].reason == "QUEUE_FULL"
    same_turn(client.generate("a", request_id="kept"), kept)
    again = Running(client.stream("b", request_id="running", max_tokens=ENDLESS))
    assert details(expect_error(grpc.StatusCode.ABORTED, running.end))["ErrorInfo"].reason == "REPLACED"
    moved = client.stream("c", request_id="waiting")
    assert next(moved).WhichOneof("event") == "queued"
    expect_error(grpc.StatusCode.ALREADY_EXISTS, lambda: client.stream("other", request_id="kept"))
    assert cancel(client, "running")
    again.end()
    assert list(moved)[-1].finished.usage.completion_tokens == 8
    expect_error(grpc.StatusCode.ABORTED, lambda: waiting)


def test_a_partial_commit_counts(client):
    g = client.pb.gen
    conversation, request_id = fresh_id(), fresh_id()
    fields = dict(conversation=conversation, create_if_missing=True, request_id=request_id, max_tokens=ENDLESS,
                  commit=g.COMMIT_MODE_KEEP_PARTIAL)
    running = Running(client.stream("x", **fields))
    assert cancel(client, request_id)
    first = running.end()
    assert first.finished.committed and first.finished.reason == g.FINISH_REASON_CANCELLED
    same_turn(client.generate("x", **fields), first)

    fields["request_id"] = fresh_id()  # committed by the end of the connection: there is no Finished to replay
    running = Running(client.stream("y", **fields))
    running.cancel()
    wait_until(lambda: client.get(conversation).head_version == 2)
    error = expect_error(grpc.StatusCode.CANCELLED, lambda: client.stream("y", **fields))
    metadata = details(error)["ErrorInfo"].metadata
    assert (metadata["committed"], metadata["version"]) == ("true", "2")
    assert client.get(conversation).head_version == 2


def test_a_retry_joins_the_running_request(client):
    conversation, request_id = fresh_id(), fresh_id()
    fields = dict(conversation=conversation, create_if_missing=True, request_id=request_id, max_tokens=30000)
    first = client.stream("x", **fields)
    read = first_deltas(first, 10)
    second = client.generate("x", **fields)
    assert len(second.ids) == 30000 and second.finished.version == 1
    assert second.text.startswith("".join(d.text for d in read))
    # The older stream has ended: what was on its way, then the reason.
    error = expect_error(grpc.StatusCode.ABORTED, lambda: first)
    assert details(error)["ErrorInfo"].reason == "REPLACED"
    assert client.get(conversation).head_version == 1


def test_a_retry_at_once_after_the_connection_went(client):
    """The first run is about to end; the retry waits for that and runs."""
    conversation = fresh_id()
    client.generate("x", conversation=conversation, create_if_missing=True)
    for turn in range(20):
        fields = dict(conversation=conversation, request_id=fresh_id(), max_tokens=400)
        stream = client.stream("y", **fields)
        first_deltas(stream, 1)
        stream.cancel()
        done = client.generate("y", **fields)
        assert len(done.ids) == 400 and done.finished.version == 2 + turn


def test_many_retries_at_once_apply_once(client):
    conversation = fresh_id()
    request = client.request("x", conversation=conversation, create_if_missing=True, request_id=fresh_id(), max_tokens=200)
    streams = [client.gen.Generate(request, timeout=60) for _ in range(16)]
    turns, replaced = [], 0
    for stream in streams:
        try:
            turns.append(Turn(stream))
        except grpc.RpcError as error:
            assert error.code() == grpc.StatusCode.ABORTED, error
            replaced += 1
    assert turns and len(turns) + replaced == 16
    for turn in turns:
        same_turn(turn, turns[0])
    assert client.get(conversation).head_version == 1


# Attach.

def decoded(data):
    """Text as the server streams it: each byte that is not UTF-8 is one U+FFFD."""
    out = ""
    while data:
        for size in range(1, 5):
            try:
                out += data[:size].decode("utf-8")
                data = data[size:]
                break
            except UnicodeDecodeError:
                continue
        else:
            out += "\ufffd"
            data = data[1:]
    return out


def test_attach_after_each_token_of_an_ended_request(client):
    """Every place is good, also those inside of a code point: seen text + the rest = the whole text."""
    g = client.pb.gen
    request_id = fresh_id()
    # High temperature over bytes of few leads and continuations: whole, broken and cut code points.
    banned = [i + 1 for i in range(256) if i not in (0x41, 0xC3, 0xA9, 0xE2, 0x82, 0xAC, 0xF0, 0x9F)] + [0]
    whole = client.generate("x", request_id=request_id, max_tokens=60,
                            sampling=g.Sampling(temperature=5, top_p=1.0, seed=3, banned_token_ids=banned))
    pieces = [t.bytes for t in whole.tokens]
    assert any(p >= b"\x80" for p in pieces) and "\ufffd" in whole.text and "A" in whole.text
    texts = []
    for n in range(61):
        turn = Turn(attach(client, request_id, n))
        assert turn.ids == whole.ids[n:] and turn.started == whole.started and turn.finished == whole.finished
        assert whole.text.endswith(turn.text)
        texts.append(whole.text[:len(whole.text) - len(turn.text)])
    assert texts[0] == ""
    for n, text in enumerate(texts[:-1]):  # what n tokens gave: all of their bytes but an incomplete end
        assert decoded(b"".join(pieces[:n])).startswith(text)
        assert len(decoded(b"".join(pieces[:n]))) - len(text) <= 3


def test_attach_follows_a_running_request(client):
    """The stream changes hands in the middle again and again; together the pieces are the whole."""
    g = client.pb.gen
    request_id = fresh_id()
    request = client.request("x", request_id=request_id, max_tokens=50000, on_disconnect=g.ON_DISCONNECT_FINISH,
                             output=g.Output())
    stream = client.gen.Generate(request, timeout=60)
    text, count = "", 0
    for _ in range(8):
        deltas = first_deltas(stream, count + 50)
        stream.cancel()
        text += "".join(d.text for d in deltas)
        count = deltas[-1].token_count
        stream = attach(client, request_id, count)
    last = Turn(stream)
    whole = text + last.text
    assert last.finished.reason == g.FINISH_REASON_LENGTH
    assert whole == Turn(client.gen.Generate(request, timeout=60)).text == Turn(attach(client, request_id)).text


def test_attach_replaces_the_reader_before(client):
    request_id = fresh_id()
    running = Running(client.stream("x", request_id=request_id, max_tokens=ENDLESS))
    second = attach(client, request_id, 1)
    assert next(second).WhichOneof("event") == "started"
    error = expect_error(grpc.StatusCode.ABORTED, running.end)
    assert details(error)["ErrorInfo"].reason == "REPLACED"
    first_deltas(second, 10)
    # The reader that is left is the client: without it the turn ends.
    second.cancel()
    wait_until(lambda: not cancel(client, request_id))


def test_attach_knows_ids_that_the_server_made(client):
    turn = client.generate("x")
    same_turn(Turn(attach(client, turn.started.request_id)), turn)


def test_attach_refusals(client):
    g = client.pb.gen
    error = expect_error(NOT_FOUND, lambda: attach(client, "nobody"))
    assert details(error)["ErrorInfo"].reason == "REQUEST_NOT_FOUND" and not error.initial_metadata()
    request_id = client.generate("x").started.request_id
    for request, field in [(g.AttachRequest(), "request_id"),
                           (g.AttachRequest(request_id=request_id, after_token=-1), "after_token"),
                           (g.AttachRequest(request_id=request_id, after_token=9), "after_token")]:
        error = expect_error(grpc.StatusCode.INVALID_ARGUMENT, lambda: client.gen.Attach(request))
        assert [v.field for v in details(error)["BadRequest"].field_violations] == [field]
    assert Turn(attach(client, request_id, 8)).ids == []


def test_tokens_that_are_no_longer_kept(start, pb):
    g = pb.gen
    client = Client(pb, start({"requests.record": 4096, "limits.outbox_tokens": 16}).channel)
    conversation, request_id = fresh_id(), fresh_id()
    request = client.request("x", request_id=request_id, conversation=conversation, create_if_missing=True,
                             max_tokens=1000, on_disconnect=g.ON_DISCONNECT_FINISH)
    stream = client.gen.Generate(request)
    first_deltas(stream, 1)
    stream.cancel()
    wait_until(lambda: client.get(conversation).head_version == 1)
    for call in [lambda: attach(client, request_id, 1), lambda: client.gen.Generate(request)]:
        error = expect_error(FAILED_PRECONDITION, call)
        found = details(error)
        assert found["ErrorInfo"].reason == found["PreconditionFailure"].violations[0].type == "TOKENS_NOT_KEPT"
        assert not error.initial_metadata()
    first = int(found["ErrorInfo"].metadata["first_token"])
    assert 1000 - 4096 // 16 <= first < 1000
    committed = list(client.history(conversation).versions[0].output_token_ids)
    assert Turn(attach(client, request_id, first)).ids == committed[first:]
    assert client.get(conversation).head_version == 1


@pytest.mark.parametrize("settings", [{"requests.kept": 2}, {"requests.kept_age": "5s"}])
def test_the_window_passes(start, pb, settings):
    client = Client(pb, start(settings).channel)
    conversation, request_id = fresh_id(), fresh_id()
    fields = dict(conversation=conversation, create_if_missing=True, request_id=request_id)
    first = client.generate("x", **fields)
    same_turn(client.generate("x", **fields), first)
    for _ in range(3):
        client.generate("y")

    def expired():
        try:
            return not list(attach(client, request_id))
        except grpc.RpcError as error:
            return details(error)["ErrorInfo"].reason == "REQUEST_EXPIRED"

    wait_until(expired)
    # Out of the window an id is a new one.
    assert client.generate("x", **fields).finished.version == 2


def test_tokens_beyond_the_byte_budget_go_but_the_end_is_known(start, pb):
    client = Client(pb, start({"requests.kept_bytes": 4096}).channel)
    conversation, request_id = fresh_id(), fresh_id()
    fields = dict(conversation=conversation, create_if_missing=True, request_id=request_id, max_tokens=200)
    client.generate("x", **fields)
    for _ in range(2):
        client.generate("y", max_tokens=200)
    error = expect_error(FAILED_PRECONDITION, lambda: client.stream("x", **fields))
    assert details(error)["ErrorInfo"].metadata["first_token"] == "200"
    assert client.get(conversation).head_version == 1  # not applied twice
    last = Turn(attach(client, request_id, 200))
    assert last.ids == [] and last.finished.version == 1


# on_disconnect.

@pytest.mark.parametrize("how", ["cancel", "deadline", "connection"])
def test_finish_runs_on_without_its_client(shared, client, how):
    g = client.pb.gen
    conversation, request_id = fresh_id(), fresh_id()
    channel = shared.new_channel(WINDOW)
    other = Client(client.pb, channel)
    request = client.request("x", request_id=request_id, conversation=conversation, create_if_missing=True,
                             max_tokens=30000, on_disconnect=g.ON_DISCONNECT_FINISH)
    client.conv.Create(client.pb.conv.CreateConversationRequest(id=conversation))
    stream = other.gen.Generate(request, timeout=3 if how == "deadline" else 60)
    first_deltas(stream, 1)  # what is not read holds it up, so it is there when the deadline passes
    if how == "deadline":
        wait_until(stream.done)
        expect_error(grpc.StatusCode.DEADLINE_EXCEEDED, lambda: stream)
    else:
        stream.cancel() if how == "cancel" else channel.close()
    wait_until(lambda: client.get(conversation).head_version == 1)
    info = client.history(conversation)
    assert info.last_end == "length" and info.last_request_id == request_id
    assert len(info.versions[0].output_token_ids) == 30000
    turn = Turn(attach(client, request_id))
    assert turn.ids == list(info.versions[0].output_token_ids) and turn.finished.committed


def test_cancel_ends_a_detached_request(client):
    g = client.pb.gen
    conversation, request_id = fresh_id(), fresh_id()
    stream = client.stream("x", request_id=request_id, conversation=conversation, create_if_missing=True,
                           max_tokens=ENDLESS, on_disconnect=g.ON_DISCONNECT_FINISH)
    first_deltas(stream, 5)
    stream.cancel()
    time.sleep(0.05)
    assert client.get(conversation).busy
    assert cancel(client, request_id)
    wait_until(lambda: not cancel(client, request_id))
    expect_error(NOT_FOUND, lambda: client.get(conversation))  # made by this turn, which left nothing


def test_cancel_knows_only_running_requests(client):
    assert not cancel(client, "nobody")
    turn = client.generate("x")
    assert not cancel(client, turn.started.request_id)


def test_a_finish_turn_outlives_a_reader_that_never_reads(start, pb):
    g = pb.gen
    daemon = start({"limits.outbox_tokens": 32, "limits.outbox_age": "500ms"})
    lazy = Client(pb, daemon.new_channel())
    client = Client(pb, daemon.channel)
    conversation, request_id = fresh_id(), fresh_id()
    client.generate("x", conversation=conversation, create_if_missing=True)
    stream = lazy.stream("x", request_id=request_id, conversation=conversation, on_disconnect=g.ON_DISCONNECT_FINISH,
                         max_tokens=20000, output=g.Output(top_logprobs=20), timeout=60)
    wait_until(lambda: client.get(conversation).head_version == 2)
    error = expect_error(grpc.StatusCode.RESOURCE_EXHAUSTED, lambda: stream)
    assert details(error)["ErrorInfo"].reason == "SLOW_READER"
    assert client.get(conversation).last_end == "length"


# The log.

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
PARENT = "00f067aa0ba902b7"


@pytest.mark.parametrize("value, known", [
    (f"00-{TRACE}-{PARENT}-01", True),
    (f"cc-{TRACE}-{PARENT}-01-later", True),
    (f"00-{TRACE}-{PARENT}-01-more", False),
    (f"ff-{TRACE}-{PARENT}-01", False),
    (f"00-{'0' * 32}-{PARENT}-01", False),
    (f"00-{TRACE}-{'0' * 16}-01", False),
    (f"00-{TRACE.upper()}-{PARENT}-01", False),
    (f"00-{TRACE}-{PARENT}", False),
    ("nonsense", False),
])
def test_traceparent(shared, client, value, known):
    request_id = fresh_id()
    Turn(client.gen.Generate(client.request("x", request_id=request_id), metadata=[("traceparent", value)]))
    line = shared.wait_for_line(f"id={request_id}")
    assert (f"trace_id={TRACE}" in line) == (f"parent_id={PARENT}" in line) == known


def test_the_request_line(shared, client):
    g = client.pb.gen
    conversation, request_id = fresh_id(), fresh_id()
    client.generate("SECRETPROMPT", request_id=request_id, conversation=conversation, create_if_missing=True)
    line = shared.wait_for_line(f"id={request_id}")
    for part in ["method=skein.v1.Generation/Generate", "code=OK", "model=tiny", f"conversation={conversation}",
                 "phase=decode", "version=1", "end=LENGTH", "prompt_tokens=12", "reused_tokens=0", " tokens=8"]:
        assert part in line, line
    for key in ["seconds", "queue_seconds", "restore_seconds", "prefill_seconds", "ttft_seconds", "decode_seconds"]:
        assert re.search(rf" {key}=[0-9.]+", line), line
    assert re.search(r" peer=\S*127\.0\.0\.1:\d+", line), line
    assert "SECRETPROMPT" not in shared.log()

    request_id = fresh_id()  # without its client it has a line of its own
    stream = client.stream("x", request_id=request_id, max_tokens=20000, on_disconnect=g.ON_DISCONNECT_FINISH)
    first_deltas(stream, 1)
    stream.cancel()
    line = shared.wait_for_line(f"request ended without a reader.*id={request_id}")
    assert "end=LENGTH" in line and " tokens=20000" in line
    assert "code=CANCELLED" in shared.wait_for_line(f" request id={request_id}")
