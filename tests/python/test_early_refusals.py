"""What an overloaded server refuses before it has done anything for a request: of several models the one that is asked for,
of a tenant its quota. A request with an id that the model does not know tells: whoever reads its input first, says so."""

import grpc
import pytest
from checkpoint import write_tiny_checkpoint
from client import ENDLESS, Client, Running, details, expect_error, fresh_id
from test_metrics import scrape, series
from test_security import TokenClient, new_token
from test_signals import reload_by

EXHAUSTED = grpc.StatusCode.RESOURCE_EXHAUSTED
UNREADABLE = [10**6]  # no such token


def unreadable_score(client, **fields):
    g = client.pb.gen
    return client.gen.Score(g.ScoreRequest(text=g.Text(text="a"), continuations=[
        g.Continuation(token_ids=g.TokenIds(ids=UNREADABLE))], **fields), timeout=60)


def refused_unread(client, reason, **fields):
    for call in [lambda: client.stream(ids=UNREADABLE, request_id=fresh_id(), **fields),
                 lambda: unreadable_score(client, **fields)]:
        error = expect_error(EXHAUSTED, call)
        found = details(error)
        assert found["ErrorInfo"].reason == reason
        pushback = dict(error.trailing_metadata())["grpc-retry-pushback-ms"]
        assert int(pushback) == found["RetryInfo"].retry_delay.ToMilliseconds() > 0


@pytest.fixture
def two_models(start, pb, steady_model, tmp_path):
    """(daemon, client) of the models "m" and "other", with one slot and one place in the queue each."""
    write_tiny_checkpoint(tmp_path / "other.safetensors", layers=3, width=384, head_size=64, seed=2)
    daemon = start({"model.name": "m", "models": f"[{{path: {tmp_path}/other.safetensors}}]", "engine.slots": 1,
                    "limits.queued": 1}, model=steady_model)
    return daemon, Client(pb, daemon.channel)


def test_a_full_model_beside_another(two_models):
    daemon, client = two_models
    kept = client.generate("a", request_id="kept", model="other")
    running = Running(client.stream("b", request_id="running", model="other", max_tokens=ENDLESS))
    waiting = client.stream("c", model="other")
    assert next(waiting).WhichOneof("event") == "queued"
    refused_unread(client, "QUEUE_FULL", model="other")
    counted = {k: v for k, v in series(scrape(daemon)).items() if k.startswith("skein_admission_rejections_total")}
    assert counted == {'skein_admission_rejections_total{model="other",reason="QUEUE_FULL"}': 2}
    # There is room in the other one, so there the input is looked at.
    for call in [lambda: client.stream(ids=UNREADABLE), lambda: unreadable_score(client, model="m")]:
        expect_error(grpc.StatusCode.INVALID_ARGUMENT, call)
    # Who tries again needs no place.
    assert client.generate("a", request_id="kept", model="other").ids == kept.ids
    again = Running(client.stream("b", request_id="running", model="other", max_tokens=ENDLESS))
    assert details(expect_error(grpc.StatusCode.ABORTED, running.end))["ErrorInfo"].reason == "REPLACED"
    again.cancel()
    assert list(waiting)[-1].WhichOneof("event") == "finished"


def test_a_quota_of_requests(start, pb, steady_model, tmp_path):
    token, line = new_token(tmp_path, "few")
    daemon = start({"auth.tokens": f"[{line[:-1]}, quotas: {{requests: 1}}}}]", "model.name": "m"}, model=steady_model)
    client = TokenClient(pb, daemon.channel, token)
    kept = client.generate("a", request_id="kept")
    running = Running(client.stream("b", max_tokens=ENDLESS))
    refused_unread(client, "TENANT_QUOTA")
    assert series(scrape(daemon))['skein_admission_rejections_total{model="m",reason="TENANT_QUOTA"}'] == 2
    assert client.generate("a", request_id="kept").ids == kept.ids
    running.cancel()


def test_a_kept_result_outlives_limits_and_its_model(start, pb, tmp_path, model):
    """What was taken once is not held against what holds now."""
    config = tmp_path / "config.yaml"
    config.write_text("")
    write_tiny_checkpoint(tmp_path / "other.safetensors", seed=2)
    daemon = start({"models": f"[{{path: {tmp_path}/other.safetensors}}]"})
    client = Client(pb, daemon.channel)
    fields = {"text": "x" * 100, "model": "other", "request_id": "kept"}
    kept = client.generate(**fields)
    config.write_text("limits:\n  prompt_tokens: 50\n")
    assert reload_by("ReloadConfig", daemon, client) == (["limits.prompt_tokens"], [])
    expect_error(grpc.StatusCode.INVALID_ARGUMENT, lambda: client.stream(**{**fields, "request_id": "new"}))
    assert client.generate(**fields).ids == kept.ids
    expect_error(grpc.StatusCode.ALREADY_EXISTS, lambda: client.stream(**{**fields, "text": "y"}))
    client.control.UnloadModel(pb.control.UnloadModelRequest(name="other"))
    expect_error(grpc.StatusCode.NOT_FOUND, lambda: client.stream(**{**fields, "request_id": "new"}))
    assert client.generate(**fields).ids == kept.ids
