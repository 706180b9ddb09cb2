"""What one Generate may ask beyond one answer: several sequences, log-probabilities of the prompt, penalties over the
conversation, thinking and tools."""

import pytest
from client import ENDLESS, Turn, fresh_id


def by_index(events, n):
    """The events of each sequence; those of the whole request are in all of them."""
    parts = [[] for _ in range(n)]
    for event in events:
        kind = event.WhichOneof("event")
        if kind in ("started", "delta", "finished"):
            parts[getattr(event, kind).index].append(event)
        else:
            for part in parts:
                part.append(event)
    return [Turn(part) for part in parts]


def hot(client, **fields):
    return client.pb.gen.Sampling(temperature=1.5, top_p=1.0, **fields)


def test_each_sequence_is_a_request_of_its_own(client):
    turns = by_index(client.stream("hello", num_sequences=5, sampling=hot(client, seed=40), max_tokens=24), 5)
    assert len({tuple(t.ids) for t in turns}) > 1
    for index, turn in enumerate(turns):
        assert turn.started.seed == 40 + index and turn.started.conversation_id == ""
        alone = client.generate("hello", sampling=hot(client, seed=40 + index), max_tokens=24)
        assert turn.ids == alone.ids and turn.text == alone.text
        assert turn.finished.usage.prompt_tokens == 5 and turn.finished.usage.completion_tokens == 24


def test_each_sequence_becomes_a_conversation(client):
    original = fresh_id()
    first = client.generate("hello", conversation=original, create_if_missing=True)
    turns = by_index(client.stream(" you", conversation=original, num_sequences=3,
                                   sampling=hot(client, seed=1)), 3)
    assert client.get(original).head_version == 1 and not client.get(original).busy
    ids = {turn.started.conversation_id for turn in turns}
    assert len(ids) == 3 and original not in ids
    for turn in turns:
        assert turn.started.created and turn.started.version == 1
        assert turn.finished.committed and turn.finished.version == 2
        versions = client.history(turn.started.conversation_id).versions
        assert list(versions[0].output_token_ids) == first.ids
        assert list(versions[1].output_token_ids) == turn.ids
        whole = [b + 1 for b in b"hello"] + first.ids + [b + 1 for b in b" you"] + turn.ids
        assert client.generate(conversation=turn.started.conversation_id).ids == client.generate(ids=whole).ids
    never = by_index(client.stream(" you", conversation=original, num_sequences=2, sampling=hot(client, seed=1),
                                   commit=client.pb.gen.COMMIT_MODE_NEVER), 2)
    assert [t.ids for t in never] == [t.ids for t in turns[:2]]
    assert all(t.started.conversation_id == "" and not t.finished.committed for t in never)


def test_more_sequences_than_slots(start, pb):
    from client import Client

    client = Client(pb, start({"engine.slots": 2}).channel)
    turns = by_index(client.stream("hello", num_sequences=7, sampling=hot(client, seed=3), max_tokens=16), 7)
    for index, turn in enumerate(turns):
        assert turn.ids == client.generate("hello", sampling=hot(client, seed=3 + index), max_tokens=16).ids


def test_cancel_ends_all_sequences(client):
    g = client.pb.gen
    request_id = fresh_id()
    events, cancelled = [], False
    for event in client.stream("x", num_sequences=3, max_tokens=ENDLESS, request_id=request_id):
        if event.WhichOneof("event") == "delta" and not cancelled:
            cancelled = client.gen.Cancel(g.CancelRequest(request_id=request_id)).cancelled
            assert cancelled
        events.append(event)
    assert [t.finished.reason for t in by_index(events, 3)] == [g.FINISH_REASON_CANCELLED] * 3


def prompt_tokens(events):
    parts = [e.prompt_logprobs for e in events if e.WhichOneof("event") == "prompt_logprobs"]
    tokens = []
    for part in parts:
        assert part.first == len(tokens)
        tokens += part.tokens
    return tokens


def scores(client, **fields):
    return [t.logprob for answer in client.gen.Score(client.pb.gen.ScoreRequest(**fields), timeout=60)
            for t in answer.tokens]


def test_prompt_logprobs_equal_score(client):
    g = client.pb.gen
    output = g.Output(prompt_logprobs=True, token_ids=True)
    text = "hello there, " * 40
    turn = client.generate(text, output=output)
    tokens = prompt_tokens(turn.events)
    assert b"".join(t.bytes for t in tokens) == text.encode()
    assert not tokens[0].HasField("logprob") and turn.ids == client.generate(text).ids
    expected = scores(client, text=g.Text(text="h"), continuations=[g.Continuation(text=g.Text(text=text[1:]))])
    assert [t.logprob for t in tokens[1:]] == expected

    conversation = fresh_id()
    client.generate("hello", conversation=conversation, create_if_missing=True)
    expected = scores(client, conversation_id=conversation, continuations=[g.Continuation(text=g.Text(text=" you"))])
    turn = client.generate(" you", conversation=conversation, output=output)
    assert [t.logprob for t in prompt_tokens(turn.events)] == expected


def test_penalties_over_the_conversation(client):
    g = client.pb.gen
    sampling = hot(client, seed=5, frequency_penalty=2, presence_penalty=1, penalty_decay=0.9,
                   penalty_scope=g.PENALTY_SCOPE_CONVERSATION)
    conversation = fresh_id()
    first = client.generate("hello", conversation=conversation, create_if_missing=True, sampling=sampling)
    second = client.generate("again", conversation=conversation, sampling=sampling, max_tokens=16)
    whole = [b + 1 for b in b"hello"] + first.ids + [b + 1 for b in b"again"]
    assert client.generate(ids=whole, sampling=sampling, max_tokens=16).ids == second.ids
    # A penalty that nothing outweighs: what stands in the prompt does not come again.
    strong = g.Sampling(temperature=0, presence_penalty=10, penalty_scope=g.PENALTY_SCOPE_CONVERSATION,
                        logit_bias={66: 9.0})
    assert 66 in client.generate("B", sampling=strong).ids
    assert 66 not in client.generate("A", sampling=strong).ids


@pytest.mark.parametrize("thinking, rendered", [
    ("off", "User: hi\n\nAssistant:"), ("on", "User: hi\n\nAssistant: <think"),
    ("fast", "User: hi\n\nAssistant: <think>\n</think"),
    ("short", "User: hi (think a bit)\n\nAssistant: <think"),
    ("medium", "User: hi (think)\n\nAssistant: <think"),
    ("long", "User: hi (think a lot)\n\nAssistant: <think"),
])
def test_thinking_is_rendered(client, thinking, rendered):
    g = client.pb.gen
    messages = g.Messages(messages=[g.Message(role=g.ROLE_USER, content="hi")])
    out = client.gen.Tokenize(g.TokenizeRequest(messages=messages, thinking=thinking))
    assert b"".join(out.pieces).decode() == rendered
    turn = client.generate(messages=messages, thinking=thinking)
    assert turn.finished.usage.prompt_tokens == len(rendered)
    continuations = [g.Continuation(text=g.Text(text="x"))]
    assert scores(client, messages=messages, thinking=thinking, continuations=continuations) == scores(
        client, text=g.Text(text=rendered), continuations=continuations)


def test_tool_results_are_rendered(client):
    g = client.pb.gen
    messages = g.Messages(messages=[g.Message(role=g.ROLE_TOOL, content='{"x": 1}')])
    out = client.gen.Tokenize(g.TokenizeRequest(messages=messages))
    assert b"".join(out.pieces) == b'User: Function output:\n{"x": 1}\n\nAssistant:'
    assert client.generate(messages=messages).ids


def test_what_is_thought_comes_apart(client):
    g = client.pb.gen
    messages = g.Messages(messages=[g.Message(role=g.ROLE_USER, content="hi")])
    plain = client.generate(messages=messages, thinking="on", sampling=g.Sampling(temperature=0, logit_bias={66: 1000.0}))
    reasoning = "".join(d.reasoning for d in plain.deltas)
    assert reasoning == "A" * 8 and plain.text == ""
    said = client.generate(messages=messages, thinking="fast",
                           sampling=g.Sampling(temperature=0, logit_bias={66: 1000.0}))
    assert said.text == "A" * 8 and not any(d.reasoning for d in said.deltas)
    off = client.generate(messages=messages, sampling=g.Sampling(temperature=0, logit_bias={66: 1000.0}))
    assert off.text == "A" * 8
