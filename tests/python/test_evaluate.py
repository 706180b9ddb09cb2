"""`skein evaluate` against a real daemon; its figures are computed a second time here, from Score."""

import json
import math
import os
import subprocess

import pytest
from daemon import BUILD

SKEIN = BUILD / "bin" / "skein"


@pytest.fixture
def evaluate(shared, tmp_path):
    def run(task, text, *arguments, code=0):
        file = tmp_path / "input"
        file.write_text(text)
        result = subprocess.run([SKEIN, "evaluate", task, file, "--json", *arguments], capture_output=True, text=True,
                                timeout=60, env={**os.environ, "SKEIN_SERVER": shared.address})
        assert result.returncode == code, result.stderr
        return json.loads(result.stdout) if code == 0 else result.stderr

    return run


@pytest.fixture
def score(client):
    """score(prompt ids, continuation ids) -> (sum of log-probabilities, whether it is the greedy one)."""
    g = client.pb.gen

    def run(prompt, *continuations):
        request = g.ScoreRequest(token_ids=g.TokenIds(ids=prompt),
                                 continuations=[g.Continuation(token_ids=g.TokenIds(ids=c)) for c in continuations])
        totals = [(a.total_logprob, a.is_greedy) for a in client.gen.Score(request, timeout=20)
                  if a.HasField("total_logprob")]
        return totals

    return run


@pytest.fixture
def ids(client):
    return lambda text: list(client.gen.Tokenize(client.pb.gen.TokenizeRequest(text=text)).ids)


def test_text(evaluate, score, ids):
    text = "It was the best of times,\nit was the worst of times.\n" * 3
    tokens = ids(text)
    (whole, _), = score([0], tokens)
    report = evaluate("text", text)
    assert report["tokens"] == len(tokens)
    assert report["loss"] == pytest.approx(-whole / len(tokens), rel=1e-5)
    assert report["perplexity"] == pytest.approx(math.exp(-whole / len(tokens)), rel=1e-4)
    assert report["bits_per_byte"] == pytest.approx(-whole / len(text) / math.log(2), rel=1e-5)

    # In windows, each after the last token of the one before.
    windows = [score([0] if at == 0 else [tokens[at - 1]], tokens[at:at + 50])[0][0] for at in range(0, len(tokens), 50)]
    assert evaluate("text", text, "--window", "50")["loss"] == pytest.approx(-sum(windows) / len(tokens), rel=1e-5)


def test_wikitext(evaluate, score, ids):
    report = evaluate("wikitext", " \n = One = \n \n A dog , a cat . \n \n = Two = \n \n It 's 1 @,@ 000 . \n ")
    texts = ["\n= One =\n\nA dog, a cat.\n\n", "= Two =\n\nIt's 1,000.\n\n"]
    assert report["documents"] >= 2
    assert report["word_perplexity"] > 1
    assert report["tokens"] >= sum(len(ids(text)) for text in texts) - 6


def test_lambada(evaluate, score, ids):
    texts = ["she gave it to Ann", "the end of it all", "x y"]
    expected, greedy = 0, 0
    for text in texts:
        at = text.rindex(" ")
        (total, is_greedy), = score([0] + ids(text[:at]), ids(text[at:]))
        expected += total
        greedy += is_greedy
    report = evaluate("lambada", "\n".join(json.dumps({"text": text}) for text in texts))
    assert report["items"] == 3
    assert report["perplexity"] == pytest.approx(math.exp(-expected / 3), rel=1e-4)
    assert report["accuracy"] == pytest.approx(greedy / 3)
    assert evaluate("lambada", json.dumps({"text": "a b"}) + "\n" + json.dumps({"text": "c d"}), "--limit", "1")["items"] == 1


def test_choice(evaluate, score, ids):
    items = [{"prompt": f"Question {n}:", "choices": [" yes", " no", " a much longer answer"], "answer": n % 3}
             for n in range(9)]
    right = norm = 0
    for item in items:
        totals = [total for total, _ in score([0] + ids(item["prompt"]), *[ids(c) for c in item["choices"]])]
        lengths = [len(c) - 1 for c in item["choices"]]
        right += max(range(3), key=totals.__getitem__) == item["answer"]
        norm += max(range(3), key=lambda i: totals[i] / lengths[i]) == item["answer"]
    report = evaluate("choice", "\n".join(map(json.dumps, items)))
    assert report["accuracy"] == pytest.approx(right / 9)
    assert report["accuracy_norm"] == pytest.approx(norm / 9)


def test_bad_input_is_named(evaluate):
    assert "input: line 1: is not a JSON object" in evaluate("lambada", "hello", code=5)
    assert "nothing to evaluate" in evaluate("choice", "", code=5)
    assert "no text to evaluate" in evaluate("text", "", code=5)
