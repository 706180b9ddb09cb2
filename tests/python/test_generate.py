"""Generate: streaming, continuing by id, stopping, sampling, and what is committed."""

import time

import grpc
import pytest
from client import ENDLESS, expect_error, fresh_id


def test_streams_tokens_and_text(client):
    turn = client.generate("hello", max_tokens=16)
    assert len(turn.ids) == 16
    assert all(0 <= i < 257 for i in turn.ids)
    raw = b"".join(t.bytes for t in turn.tokens)
    assert turn.text == raw.decode("utf-8", "replace") or "\ufffd" in turn.text
    f = turn.finished
    assert f.reason == client.pb.gen.FINISH_REASON_LENGTH
    assert (f.usage.prompt_tokens, f.usage.completion_tokens) == (5, 16)
    assert not f.committed and f.version == 0
    assert turn.started.request_id
    assert f.timings.time_to_first_token.ToNanoseconds() > 0


def test_times_are_those_of_the_request(client):
    """Whatever a busy machine makes of them: they are parts of the time that the client saw, and fit together."""
    conversation, n = fresh_id(), 20
    for turn in range(2):
        wall, before = time.time(), time.monotonic()
        answer = client.generate("hello " * 50, conversation=conversation, create_if_missing=True, max_tokens=n)
        took = int((time.monotonic() - before) * 1e9)
        t = {field.name: value.ToNanoseconds() for field, value in answer.finished.timings.ListFields()}
        assert set(t) == {"queue", "restore", "prefill", "time_to_first_token", "decode", "mean_inter_token"}
        for name in ["restore", "prefill", "time_to_first_token", "decode", "mean_inter_token"]:
            assert 0 < t[name] <= took, (name, t)
        assert 0 <= t["queue"] and t["queue"] + t["restore"] + t["prefill"] <= t["time_to_first_token"]
        assert t["time_to_first_token"] + t["decode"] <= took
        assert t["mean_inter_token"] == t["decode"] // (n - 1)
        # Of each token since the one before; of the first one since the prompt was taken in.
        latencies = [token.latency.ToNanoseconds() for token in answer.tokens]
        assert len(latencies) == n and latencies[0] >= 0 and min(latencies[1:]) > 0
        assert sum(latencies[1:]) == t["decode"]
        made = client.history(conversation).versions[turn].time.ToNanoseconds() / 1e9
        assert wall - 0.01 <= made <= time.time() + 0.01


def test_output_choices(client):
    g = client.pb.gen
    silent = client.generate("hello", output=g.Output(text=False))
    assert not silent.deltas and silent.finished.usage.completion_tokens == 8
    plain = client.generate("hello", output=g.Output())
    assert plain.text and not plain.tokens
    rich = client.generate("hello", output=g.Output(top_logprobs=3))
    assert all(len(t.top) == 3 and t.HasField("logprob") for t in rich.tokens)
    for token in rich.tokens:
        assert token.logprob <= 0
        values = [top.logprob for top in token.top]
        assert values == sorted(values, reverse=True)
        assert token.id == token.top[0].id  # greedy


def test_continues_by_id_without_resending(client):
    conversation = fresh_id()
    first = client.generate("hello ", conversation=conversation, create_if_missing=True)
    assert first.started.created and first.finished.committed and first.finished.version == 1
    second = client.generate("world", conversation=conversation)
    assert not second.started.created
    assert second.started.version == 1
    assert second.finished.usage.prompt_tokens == 5
    # The same tokens sent at once and stateless give the same answer: the state remembers exactly.
    whole = [b + 1 for b in b"hello "] + list(first.ids) + [b + 1 for b in b"world"]
    assert client.generate(ids=whole).ids == second.ids
    assert second.finished.usage.conversation_tokens == len(whole) + 8


def test_empty_input_goes_on(client):
    conversation = fresh_id()
    head = client.generate("abc", conversation=conversation, create_if_missing=True, max_tokens=5)
    tail = client.generate(conversation=conversation, max_tokens=5)
    assert head.ids + tail.ids == client.generate("abc", max_tokens=10).ids


def test_max_tokens_zero_only_takes_the_text_in(client):
    conversation = fresh_id()
    turn = client.generate("abc", conversation=conversation, create_if_missing=True, max_tokens=0)
    assert turn.ids == [] and turn.finished.committed
    assert client.generate(conversation=conversation).ids == client.generate("abc").ids


def test_seed_repeats_and_is_told(client):
    g = client.pb.gen
    hot = g.Sampling(temperature=1.5, top_p=1.0)
    drawn = client.generate("hello", sampling=hot, max_tokens=32)
    again = client.generate("hello", sampling=g.Sampling(temperature=1.5, top_p=1.0, seed=drawn.started.seed),
                            max_tokens=32)
    other = client.generate("hello", sampling=g.Sampling(temperature=1.5, top_p=1.0, seed=7), max_tokens=32)
    assert again.ids == drawn.ids
    assert other.ids != drawn.ids
    assert other.started.seed == 7


def test_bias_and_bans(client):
    g = client.pb.gen
    forced = client.generate("hello", sampling=g.Sampling(temperature=0, logit_bias={66: 1000.0}))
    assert set(forced.ids) == {66} and forced.text == "A" * 8
    banned = client.generate("hello", sampling=g.Sampling(temperature=0, logit_bias={66: 1000.0, 67: 900.0},
                                                          banned_token_ids=[66]))
    assert set(banned.ids) == {67}


def test_stop_string_leaves_no_trace(client):
    g = client.pb.gen
    conversation = fresh_id()
    # "A" is forced, so "AAA" stops at once; the conversation then equals one that took only the input in.
    turn = client.generate("hello", conversation=conversation, create_if_missing=True,
                           sampling=g.Sampling(temperature=0, logit_bias={66: 1000.0}),
                           stopping=g.Stopping(max_tokens=16, stop_strings=["AAA"]))
    assert turn.finished.reason == g.FINISH_REASON_STOP
    assert turn.finished.stop_string == "AAA"
    assert turn.text == "" and turn.ids == []
    assert turn.finished.usage.completion_tokens == 0
    assert client.generate(conversation=conversation).ids == client.generate("hello").ids


def test_stop_id_and_end_of_document(client):
    g = client.pb.gen
    by_id = client.generate("x", sampling=g.Sampling(temperature=0, logit_bias={66: 1000.0}),
                            stopping=g.Stopping(max_tokens=16, stop_token_ids=[66]))
    assert by_id.finished.reason == g.FINISH_REASON_STOP and by_id.finished.stop_token_id == 66
    assert by_id.ids == []
    forced_end = g.Sampling(temperature=0, logit_bias={0: 1000.0})
    end = client.generate("x", sampling=forced_end, stopping=g.Stopping(max_tokens=16))
    assert end.finished.reason == g.FINISH_REASON_STOP and end.ids == []
    ignored = client.generate("x", sampling=forced_end, stopping=g.Stopping(max_tokens=4, ignore_eos=True))
    assert ignored.ids == [0] * 4


def test_max_time_ends_with_time(client):
    g = client.pb.gen
    stopping = g.Stopping(max_tokens=ENDLESS, ignore_eos=True)
    stopping.max_time.FromMilliseconds(300)
    conversation = fresh_id()
    before = time.monotonic()
    turn = client.generate("x", conversation=conversation, create_if_missing=True, stopping=stopping)
    assert turn.finished.reason == g.FINISH_REASON_TIME
    assert turn.finished.committed and 0.2 < time.monotonic() - before < 30


def test_messages_use_the_template(client):
    g = client.pb.gen
    messages = g.Messages(messages=[g.Message(role=g.ROLE_USER, content="hi")])
    conversation = fresh_id()
    turn = client.generate(messages=messages, conversation=conversation, create_if_missing=True)
    assert turn.finished.usage.prompt_tokens == len("User: hi\n\nAssistant:")
    again = client.generate(messages=messages, conversation=conversation)
    version = client.history(conversation).versions[1]
    # What separates the turns was added to the conversation.
    assert version.input == "\n\nUser: hi\n\nAssistant:"
    assert again.finished.committed


def test_cancel_ends_with_finished(client):
    g = client.pb.gen
    conversation, request_id = fresh_id(), fresh_id()
    stream = client.stream("x", conversation=conversation, create_if_missing=True, max_tokens=ENDLESS,
                           request_id=request_id)
    while next(stream).WhichOneof("event") != "delta":
        pass
    assert client.gen.Cancel(g.CancelRequest(request_id=request_id)).cancelled
    rest = list(stream)
    assert rest[-1].finished.reason == g.FINISH_REASON_CANCELLED
    assert not rest[-1].finished.committed
    assert not client.gen.Cancel(g.CancelRequest(request_id=request_id)).cancelled
    # ON_SUCCESS: nothing of it was kept, and what the request had created is gone.
    expect_error(grpc.StatusCode.NOT_FOUND, lambda: client.get(conversation))


def test_cancel_keeps_partial_when_asked(client):
    g = client.pb.gen
    conversation, request_id = fresh_id(), fresh_id()
    stream = client.stream("x", conversation=conversation, create_if_missing=True, max_tokens=ENDLESS,
                           request_id=request_id, commit=g.COMMIT_MODE_KEEP_PARTIAL)
    ids = []
    for event in stream:
        ids += [t.id for t in event.delta.tokens]
        if len(ids) > 5:
            client.gen.Cancel(g.CancelRequest(request_id=request_id))
        last = event
    assert last.finished.committed and last.finished.reason == g.FINISH_REASON_CANCELLED
    version = client.history(conversation).versions[0]
    assert list(version.output_token_ids) == ids
    # Going on from there equals never having been cancelled.
    whole = client.generate("x", max_tokens=len(ids) + 8).ids
    assert client.generate(conversation=conversation).ids == whole[len(ids):]


def test_commit_never_leaves_the_conversation(client):
    g = client.pb.gen
    conversation = fresh_id()
    client.generate("abc", conversation=conversation, create_if_missing=True)
    tried = client.generate("def", conversation=conversation, commit=g.COMMIT_MODE_NEVER)
    assert not tried.finished.committed
    assert client.get(conversation).head_version == 1
    assert client.generate("def", conversation=conversation).ids == tried.ids


def test_deadline(client):
    conversation = fresh_id()
    client.generate("abc", conversation=conversation, create_if_missing=True)
    for timeout in 0.4, 1, 3, 10:
        stream = client.stream("x", conversation=conversation, max_tokens=ENDLESS, timeout=timeout)
        expect_error(grpc.StatusCode.DEADLINE_EXCEEDED, lambda: stream)  # noqa: B023
        info = wait_until_free(client, conversation)
        assert info.head_version == 1
        if info.last_end == "DEADLINE_EXCEEDED":
            return
        # Of a request that was long on its way the server hears that its client has gone before its own clock says why;
        # of one that was longer on its way, nothing.
        assert info.last_end in ("CANCELLED", "length")
    raise AssertionError("the server saw no deadline pass")


def test_client_gone_in_the_middle(client):
    conversation = fresh_id()
    client.generate("abc", conversation=conversation, create_if_missing=True)
    stream = client.stream("x", conversation=conversation, max_tokens=ENDLESS, timeout=60)
    while next(stream).WhichOneof("event") != "delta":
        pass
    stream.cancel()
    info = wait_until_free(client, conversation)
    assert info.head_version == 1 and info.last_end == "CANCELLED"


def wait_until_free(client, conversation):
    end = time.monotonic() + 60
    while time.monotonic() < end:
        info = client.get(conversation)
        if not info.busy:
            return info
        time.sleep(0.02)
    pytest.fail("the conversation stays busy")


@pytest.mark.parametrize("rows", [12])
def test_a_row_among_others_is_the_same(client, rows):
    alone = [client.generate(f"prompt {i}", max_tokens=24).ids for i in range(rows)]
    streams = [client.stream(f"prompt {i}", max_tokens=24) for i in range(rows)]
    together = [[t.id for event in s for t in event.delta.tokens] for s in streams]
    assert together == alone
