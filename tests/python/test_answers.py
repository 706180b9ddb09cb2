"""No answer is larger than what a gRPC client receives that was told nothing else (4 MiB), whatever it is about: a
vocabulary whose tokens are long, long texts of which each byte is a token, long turns."""

import grpc
import pytest
from checkpoint import VOCABULARY, write_words_checkpoint
from client import Client, details, expect_error, fresh_id

MOST = 4 << 20
LONG = VOCABULARY  # the id of a token of many bytes
BYTES = 128        # as many as the longest one of the public vocabulary has
TOO_LARGE = "makes an answer of more than 4194304 bytes, which is what clients receive; send it in pieces"


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    path = tmp_path_factory.mktemp("words") / "words.safetensors"
    write_words_checkpoint(path, [b" " * BYTES])
    return path


@pytest.fixture
def client(start, pb, words):
    return Client(pb, start({"limits.outbox_tokens": 10**6}, model=words).channel)


def refused(call, field):
    error = expect_error(grpc.StatusCode.INVALID_ARGUMENT, call)  # of the server, not the client's own
    assert error.details() == f"{field}: {TOO_LARGE}"
    found = details(error)
    assert found["ErrorInfo"].reason == "INVALID_FIELD"
    assert [v.field for v in found["BadRequest"].field_violations] == [field]


def test_detokenize(client):
    g = client.pb.gen
    answer = client.gen.Detokenize(g.DetokenizeRequest(ids=[LONG] * 16000), timeout=60)
    assert answer.text == answer.bytes.decode() == " " * BYTES * 16000 and answer.ByteSize() <= MOST
    for n in 17000, 1 << 18:
        refused(lambda: client.gen.Detokenize(g.DetokenizeRequest(ids=[LONG] * n), timeout=60), "ids")  # noqa: B023


def test_tokenize(client):
    g = client.pb.gen
    answer = client.gen.Tokenize(g.TokenizeRequest(text="x" * (MOST // 4 - 8)), timeout=60)
    assert len(answer.ids) == len(answer.pieces) == MOST // 4 - 8 and answer.ByteSize() <= MOST
    refused(lambda: client.gen.Tokenize(g.TokenizeRequest(text="x" * (MOST // 4)), timeout=60), "text")
    refused(lambda: client.gen.Tokenize(g.TokenizeRequest(bytes=b"\xff" * (MOST // 4)), timeout=60), "bytes")


def test_score_answers_in_pieces(client):
    g = client.pb.gen
    n = 5000
    request = g.ScoreRequest(text=g.Text(text="a"), continuations=[
        g.Continuation(token_ids=g.TokenIds(ids=[LONG] * n)), g.Continuation(text=g.Text(text="b"))])
    answers = list(client.gen.Score(request, timeout=60))
    assert [a.index for a in answers] == [0, 0, 0, 1]
    assert [a.HasField("total_logprob") for a in answers] == [a.HasField("is_greedy") for a in answers] == [
        False, False, True, True]
    first = [t for a in answers[:-1] for t in a.tokens]
    assert [t.id for t in first] == [LONG] * n and all(t.bytes == b" " * BYTES for t in first)
    assert answers[2].total_logprob == pytest.approx(sum(t.logprob for t in first), rel=1e-4)
    assert all(a.ByteSize() < MOST / 4 for a in answers)


def test_history(client):
    c = client.pb.conv
    conversation = fresh_id()
    turns = [12000, 24000, 40000, 1]  # tokens; the text of the third does not fit
    for n in turns:
        client.generate(ids=[LONG] * n, conversation=conversation, create_if_missing=True, max_tokens=0, timeout=120)
    versions, pages, token = [], [], ""
    while not pages or token:
        page = client.conv.Get(c.GetConversationRequest(id=conversation, view=c.VIEW_HISTORY, page_token=token))
        assert page.ByteSize() <= MOST
        versions += page.versions
        pages.append([v.id for v in page.versions])
        token = page.next_page_token
    assert pages == [[1], [2, 3, 4]]
    assert [list(v.input_token_ids) for v in versions] == [[LONG] * n for n in turns]
    assert [len(v.input) for v in versions] == [12000 * BYTES, 24000 * BYTES, 0, BYTES]
