"""`skein evaluate` against a real daemon; its figures are computed a second time here, from Score."""

import functools
import json
import math
import os
import re
import socket
import subprocess

import pytest
from client import Client
from daemon import BUILD

SKEIN = BUILD / "bin" / "skein"


def run_evaluate(folder, address, task, text, *arguments, code=0):
    """What `skein evaluate` prints of a file with that text, or the error it ends with."""
    file = folder / "input"
    file.write_text(text)
    result = subprocess.run([SKEIN, "evaluate", task, file, *arguments], capture_output=True, text=True, timeout=60,
                            env={**os.environ, "SKEIN_SERVER": address})
    assert result.returncode == code, result.stderr
    return result.stdout if code == 0 else result.stderr


@pytest.fixture
def evaluate(shared, tmp_path):
    def run(task, text, *arguments, code=0):
        printed = run_evaluate(tmp_path, shared.address, task, text, "--json", *arguments, code=code)
        return json.loads(printed) if code == 0 else printed

    return run


def score_of(client, prompt, *continuations, model=""):
    """For each continuation, all of ids: the sum of its log-probabilities and whether it is the greedy one."""
    g = client.pb.gen
    request = g.ScoreRequest(model=model, token_ids=g.TokenIds(ids=prompt),
                             continuations=[g.Continuation(token_ids=g.TokenIds(ids=c)) for c in continuations])
    return [(a.total_logprob, a.is_greedy) for a in client.gen.Score(request, timeout=60)
            if a.HasField("total_logprob")]


@pytest.fixture
def score(client):
    return functools.partial(score_of, client)


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
    # As published, cut at titles -> as it is scored. Words and bytes are counted in what was published.
    articles = {" = One = \n \n A dog , a cat . \n \n": " = One =\n\nA dog, a cat.\n\n",
                " = Two = \n \n = = Part = = \n \n It 's 1 @,@ 000 . \n": " = Two =\n\n== Part ==\n\nIt's 1,000.\n"}
    published = "".join(articles)
    total = sum(score([0], ids(text))[0][0] for text in articles.values())
    words = sum(len(re.split(r"\s+", text)) for text in articles)
    report = evaluate("wikitext", "\n" + published)
    assert report["documents"] == len(articles)
    assert report["tokens"] == sum(len(ids(text)) for text in articles.values())
    assert report["word_perplexity"] == pytest.approx(math.exp(-total / words), rel=1e-4)
    assert report["byte_perplexity"] == pytest.approx(math.exp(-total / len(published)), rel=1e-5)
    assert evaluate("wikitext", published, "--limit", "1")["documents"] == 1


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


@pytest.fixture
def two_types(start, pb, steady_model):
    """The same weights in two types, served by one daemon, and a client of it."""
    other = f"[{{path: {steady_model}, name: small, weights: int8}}]"
    daemon = start({"model.name": "whole", "model.weights": "bf16", "models": other}, model=steady_model)
    return daemon, Client(pb, daemon.channel)


def test_against_another_type_of_weights(two_types, tmp_path):
    daemon, client = two_types
    text = "It was the best of times,\nit was the worst of times.\n" * 3
    tokens = list(client.gen.Tokenize(client.pb.gen.TokenizeRequest(text=text)).ids)
    loss = {model: -score_of(client, [0], tokens, model=model)[0][0] / len(tokens) for model in ["whole", "small"]}
    assert loss["whole"] != loss["small"]

    arguments = ["--model", "small", "--against", "whole"]
    report = json.loads(run_evaluate(tmp_path, daemon.address, "text", text, "--json", *arguments))
    other, difference = report["against"], report["difference"]
    assert (report["model"], report["weights"]) == ("small", "int8")
    assert (other["model"], other["weights"]) == ("whole", "bf16")
    assert report["loss"] == pytest.approx(loss["small"], rel=1e-6)
    assert other["loss"] == pytest.approx(loss["whole"], rel=1e-6)
    assert difference["loss"] == report["loss"] - other["loss"] != 0
    assert difference["perplexity"] == report["perplexity"] - other["perplexity"]
    assert "tokens" not in difference and other["tokens"] == report["tokens"]

    lines = {line.split()[0]: line.split()[1:]
             for line in run_evaluate(tmp_path, daemon.address, "text", text, *arguments).splitlines()}
    assert lines["weights"] == ["int8", "bf16"]
    assert lines["loss"] == [f"{report['loss']:.4f}", f"{other['loss']:.4f}", f"{difference['loss']:+.6f}"]


def test_against_another_server(two_types, evaluate, shared, tmp_path):
    daemon, _ = two_types
    text = "hello there, hello there"
    report = evaluate("text", text, "--against-server", daemon.address)
    assert report["against"]["model"] == "whole"  # that server's default
    assert report["loss"] == evaluate("text", text)["loss"]
    there = json.loads(run_evaluate(tmp_path, daemon.address, "text", text, "--json"))
    assert report["against"]["loss"] == there["loss"]
    assert report["difference"]["loss"] == report["loss"] - there["loss"]

    assert "nosuch" in evaluate("text", text, "--against", "nosuch", code=4)
    # Nothing listens there: the error names that address, not the first server's.
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        error = evaluate("text", text, "--against-server", address, code=3)
    assert address in error and shared.address not in error


def test_bad_input_is_named(evaluate):
    assert "input: line 1: is not a JSON object" in evaluate("lambada", "hello", code=5)
    assert "nothing to evaluate" in evaluate("choice", "", code=5)
    assert "no text to evaluate" in evaluate("text", "", code=5)
