"""Score, Tokenize, Detokenize, Info."""

import math
import re
import time

import grpc
import pytest
from client import Client, details, expect_error, fresh_id
from daemon import run
from test_metrics import scrape, series


def score(client, **fields):
    g = client.pb.gen
    parts = fields.pop("parts")
    continuations = [g.Continuation(text=g.Text(text=p)) if isinstance(p, str)
                     else g.Continuation(token_ids=g.TokenIds(ids=p)) for p in parts]
    answers = list(client.gen.Score(g.ScoreRequest(continuations=continuations, **fields), timeout=60))
    out = [{"tokens": []} for _ in parts]
    last = 0
    for answer in answers:
        assert answer.index >= last
        last = answer.index
        out[answer.index]["tokens"] += answer.tokens
        if answer.HasField("total_logprob"):
            out[answer.index]["total"] = answer.total_logprob
            out[answer.index]["greedy"] = answer.is_greedy
    return out


def test_scores_agree_with_generated_logprobs(client):
    g = client.pb.gen
    turn = client.generate("hello", output=g.Output(logprobs=True), max_tokens=12)
    results = score(client, text=g.Text(text="hello"), parts=[list(turn.ids), "xyz", "a"])
    greedy, other, short = results
    assert [t.id for t in greedy["tokens"]] == turn.ids and greedy["greedy"]
    assert [t.logprob for t in greedy["tokens"]] == pytest.approx([t.logprob for t in turn.tokens], abs=1e-5)
    assert greedy["total"] == pytest.approx(sum(t.logprob for t in turn.tokens), abs=1e-4)
    assert b"".join(t.bytes for t in other["tokens"]) == b"xyz" and not other["greedy"]
    assert len(short["tokens"]) == 1 and math.isfinite(short["total"])


def test_the_prompt_is_taken_in_once_bit_by_bit(client):
    """Alone each continuation takes the prompt in itself; together they start from copies of one state."""
    g = client.pb.gen
    conversation = fresh_id()
    client.generate("hello", conversation=conversation, create_if_missing=True, max_tokens=5)
    parts = ["a", "bc", "xyz" * 30, [0], "a"]
    for fields in [{"text": g.Text(text="Once upon a time " * 10)}, {"conversation_id": conversation},
                   {"conversation_id": conversation, "text": g.Text(text="and then")}, {"text": g.Text(text="x")},
                   {"conversation_id": conversation, "base_version": 0, "text": g.Text(text="two")}]:
        together = score(client, parts=parts, **fields)
        assert together == [score(client, parts=[part], **fields)[0] for part in parts]
    assert client.get(conversation).head_version == 1


def test_scores_of_all_bytes_sum_to_one(client):
    results = []
    for ids in [range(200), range(200, 257)]:
        results += score(client, text=client.pb.gen.Text(text="hello"), parts=[[i] for i in ids])
    assert sum(math.exp(r["total"]) for r in results) == pytest.approx(1, abs=1e-4)
    assert sum(r["greedy"] for r in results) == 1


def test_score_after_a_conversation_changes_nothing(client):
    g = client.pb.gen
    conversation = fresh_id()
    client.generate("hello", conversation=conversation, create_if_missing=True, max_tokens=0)
    plain = score(client, text=g.Text(text="hello there"), parts=["abc"])
    after = score(client, conversation_id=conversation, text=g.Text(text=" there"), parts=["abc"])
    assert after[0]["total"] == pytest.approx(plain[0]["total"], abs=1e-5)
    assert client.get(conversation).head_version == 1
    error = expect_error(grpc.StatusCode.NOT_FOUND,
                         lambda: score(client, conversation_id=fresh_id(), parts=["a"]))
    assert details(error)["ErrorInfo"].reason == "CONVERSATION_NOT_FOUND"


def test_score_refuses_bad_requests(client):
    g = client.pb.gen
    for request, field in [
        (g.ScoreRequest(text=g.Text(text="a")), "continuations"),
        (g.ScoreRequest(text=g.Text(text="a"), continuations=[g.Continuation()]), "continuations[0]"),
        (g.ScoreRequest(continuations=[g.Continuation(text=g.Text(text="a"))]), "prompt"),
        (g.ScoreRequest(text=g.Text(text="a"), continuations=[g.Continuation(token_ids=g.TokenIds(ids=[257]))]),
         "continuations[0].token_ids.ids[0]"),
    ]:
        error = expect_error(grpc.StatusCode.INVALID_ARGUMENT, lambda r=request: client.gen.Score(r))
        assert details(error)["BadRequest"].field_violations[0].field == field


def test_tokenize_and_back(client):
    g = client.pb.gen
    text = "héllo 🦆"
    out = client.gen.Tokenize(g.TokenizeRequest(text=text))
    assert list(out.ids) == [b + 1 for b in text.encode()]
    assert b"".join(out.pieces) == text.encode()
    back = client.gen.Detokenize(g.DetokenizeRequest(ids=out.ids))
    assert back.text == text and back.bytes == text.encode()
    broken = client.gen.Detokenize(g.DetokenizeRequest(ids=[0x41 + 1, 0xF0 + 1]))
    assert broken.bytes == b"A\xf0" and broken.text == "A\ufffd"
    assert list(client.gen.Tokenize(g.TokenizeRequest(bytes=b"\xff")).ids) == [256]
    messages = g.Messages(messages=[g.Message(role=g.ROLE_SYSTEM, content="Be short."),
                                    g.Message(role=g.ROLE_USER, content=" hi\r\n\n\nyou ")])
    rendered = client.gen.Tokenize(g.TokenizeRequest(messages=messages))
    assert b"".join(rendered.pieces) == b"System: Be short.\n\nUser: hi\nyou\n\nAssistant:"


def test_info(client):
    server = client.info.GetServerInfo(client.pb.info.GetServerInfoRequest())
    assert server.version and server.device == "cpu" and server.device_tier and server.slots == 64
    assert server.limits.max_prompt_tokens == 65536 and not server.draining
    assert server.default_stopping.max_tokens == 256 and server.default_sampling.HasField("temperature")
    [model] = client.info.ListModels(client.pb.info.ListModelsRequest()).models
    assert (model.name, model.rwkv_version, model.layers, model.width, model.heads, model.head_size) == \
        ("tiny", "7", 2, 64, 2, 32)
    assert (model.vocabulary, model.tokenizer, model.chat_template, model.weights) == (257, "bytes", "rwkv", "fp32")
    assert model.state_bytes == 2 * (64 + 2 * 32 * 32 + 64) * 4
    assert model.training_context == 128 and list(model.examples) == ["hello"] and len(model.fingerprint) == 16


def test_info_has_every_limit_of_requests(pb, tmp_path):
    """By the key of the configuration, so that a new one is not forgotten. What bounds a slow reader is no limit of a request."""
    printed = run("--print-effective-config", cwd=tmp_path).stdout
    section = re.search(r"^limits:\n((?:  .*\n)+)", printed, re.MULTILINE).group(1)
    keys = {key for key in re.findall(r"^  (\w+):", section, re.MULTILINE) if not key.startswith("outbox_")}
    fields = {field.name for field in pb.info.Limits.DESCRIPTOR.fields}
    assert fields == {"max_" + key.removeprefix("max_") for key in keys} | {"max_message_bytes"}


def test_info_tells_the_configuration(start, pb):
    """Every limit and every default, each with a value that no other has."""
    names = [field.name for field in pb.info.Limits.DESCRIPTOR.fields]
    keys = {name: "limits." + name.removeprefix("max_") for name in names}
    keys.update(max_tokens="limits.max_tokens", max_message_bytes="listen.max_message")
    limits = {name: 100 + i for i, name in enumerate(names)}
    limits.update(max_prompt_tokens=1000, max_queued_tokens=2000, max_tokens=3000, max_top_logprobs=7,
                  max_message_bytes=123456)
    assert len(set(limits.values())) == len(limits)
    sampling = {"temperature": 0.5, "top_p": 0.75, "top_k": 11, "min_p": 0.125, "presence_penalty": 0.25,
                "frequency_penalty": -0.25, "penalty_decay": 0.875, "repetition_penalty": 1.5,
                "top_p_before_temperature": True}
    daemon = start({**{keys[name]: value for name, value in limits.items()}, "defaults.max_tokens": 55, "engine.slots": 13,
                    **{f"defaults.{name}": str(value).lower() for name, value in sampling.items()}})
    client = Client(pb, daemon.channel)
    server = client.info.GetServerInfo(pb.info.GetServerInfoRequest())
    assert {name: getattr(server.limits, name) for name in names} == limits
    for name, value in sampling.items():
        assert getattr(server.default_sampling, name) == value, name
    assert server.default_sampling.penalty_scope == pb.gen.PENALTY_SCOPE_REQUEST
    told = {field.name for field, _ in server.default_sampling.ListFields()}
    assert told == sampling.keys() | {"penalty_scope"}
    stopping = server.default_stopping
    assert (stopping.max_tokens, stopping.min_tokens, stopping.ignore_eos) == (55, 0, False)
    assert stopping.HasField("min_tokens") and stopping.HasField("ignore_eos")
    assert server.slots == 13 and server.uptime.ToNanoseconds() > 0


class Lazy:
    """A Score of many parts whose answers nobody reads, once as much of it is computed as will be."""

    PARTS, TOKENS = 200, 2000

    def __init__(self, daemon, pb):
        g = pb.gen
        part = g.Continuation(text=g.Text(text="b" * self.TOKENS))
        request = g.ScoreRequest(text=g.Text(text="a"), continuations=[part] * self.PARTS)
        # A small window, which does not grow: the transport takes little of what nobody reads.
        self.channel = daemon.new_channel([("grpc.http2.bdp_probe", 0)])
        self.daemon = daemon
        self.answers = Client(pb, self.channel).gen.Score(request, timeout=600)
        next(self.answers)
        before, quiet = -1, 0
        while quiet < 10:
            now = self.scored()
            quiet, before = quiet + 1 if now == before else 0, now
            time.sleep(0.1)
        assert 1 <= before < self.PARTS / 2

    def scored(self):
        return series(scrape(self.daemon)).get('skein_prompt_tokens_total{model="tiny"}', 0) / (self.TOKENS + 1)


def test_a_reader_that_does_not_read_holds_the_scoring_up(start, pb):
    """What it does not read is not computed: neither time nor memory go into answers for nobody."""
    lazy = Lazy(start({"limits.outbox_tokens": 64, "limits.outbox_age": "600s"}), pb)
    with lazy.channel:
        assert len(list(lazy.answers)) == lazy.PARTS - 1  # once it reads, the rest comes
    assert lazy.scored() == lazy.PARTS


def test_a_reader_that_never_reads_loses_the_rest(start, pb):
    lazy = Lazy(start({"limits.outbox_tokens": 64, "limits.outbox_age": "300ms"}), pb)
    with lazy.channel:
        def read():
            for _ in lazy.answers:
                time.sleep(0.1)  # still too slow
        error = expect_error(grpc.StatusCode.RESOURCE_EXHAUSTED, read)
    assert error.details() == "the client did not read its stream for too long"
    found = details(error)
    assert found["ErrorInfo"].reason == "SLOW_READER" and "RetryInfo" not in found
    assert lazy.scored() < lazy.PARTS


def test_a_reader_that_never_reads_does_not_hold_up_sigterm(start, pb):
    daemon = start({"limits.outbox_tokens": 64, "limits.outbox_age": "2s", "shutdown.drain": "600s"})
    lazy = Lazy(daemon, pb)
    daemon.terminate()
    assert daemon.wait(timeout=60) == 0
    with pytest.raises(grpc.RpcError):
        list(lazy.answers)
    lazy.channel.close()
