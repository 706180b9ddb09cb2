"""Metrics: what is counted. test_prometheus.py has the format and a real Prometheus."""

import re
import time
import urllib.request

import grpc
from client import ENDLESS, Client, Running, expect_error, fresh_id


def scrape(daemon):
    with urllib.request.urlopen(daemon.metrics, timeout=60) as answer:
        return answer.read().decode()


def series(text):
    """{name{labels}: value}"""
    out = {}
    for line in text.splitlines():
        if line and not line.startswith("#"):
            name, value = line.rsplit(" ", 1)
            out[name] = float(value)
    return out


def wait_for_value(daemon, name, value, seconds=60):
    end = time.monotonic() + seconds
    while (now := series(scrape(daemon)).get(name)) != value:
        assert time.monotonic() < end, f"{name} is {now}"
        time.sleep(0.01)


def use_everything(client):
    """Work that moves every series."""
    g = client.pb.gen
    conversation = fresh_id()
    client.generate("a secret prompt " * 40, conversation=conversation, create_if_missing=True, max_tokens=4)
    for i in range(3):
        client.generate(f"turn {i}", conversation=conversation, request_id=f"request-{conversation}-{i}")
    client.generate("again", conversation=conversation, base_version=1)  # its state was not kept: conversations.history
    request_id = fresh_id()
    running = Running(client.stream("x", max_tokens=ENDLESS, request_id=request_id))
    side = client.stream("y" * 500, max_tokens=4)  # prefill beside decode
    list(side)
    client.gen.Cancel(g.CancelRequest(request_id=request_id))
    running.end()
    list(client.gen.Score(g.ScoreRequest(text=g.Text(text="a"), continuations=[g.Continuation(text=g.Text(text="b"))])))
    expect_error(grpc.StatusCode.NOT_FOUND, lambda: client.stream("x", conversation=fresh_id()))
    return conversation


def test_steps_calls_and_refusals_are_counted_without_ids(start, steady_model, pb):
    daemon = start({"conversations.history": 1, "model.name": "tiny"}, model=steady_model)
    client = Client(pb, daemon.channel)
    conversation = use_everything(client)
    text = scrape(daemon)
    assert conversation not in text and "secret" not in text
    values = series(text)
    for phase in ["decode", "prefill", "mixed"]:
        assert values[f'skein_step_duration_seconds_count{{model="tiny",phase="{phase}"}}'] > 0
    missed = {k.split('reason="')[1].split('"')[0]: v for k, v in values.items() if "state_cache_misses_total" in k}
    assert missed == {"evicted": 0, "history": 1, "not_made": 0, "model": 0, "empty_input": 0}
    assert values['skein_admission_rejections_total{model="tiny",reason="CONVERSATION_NOT_FOUND"}'] == 1
    handled = {k: v for k, v in values.items() if k.startswith("grpc_server_handled_total")}
    refused = [v for k, v in handled.items() if 'grpc_code="NOT_FOUND"' in k and 'grpc_method="Generate"' in k]
    assert refused == [1]
    started = sum(v for k, v in values.items() if k.startswith("grpc_server_started_total"))
    assert sum(handled.values()) == started == 10


def test_gauges_move_while_there_is_work(start, steady_model, pb):
    daemon = start({"engine.slots": 1, "model.name": "tiny"}, model=steady_model)
    client = Client(pb, daemon.channel)
    running = Running(client.stream("x", max_tokens=ENDLESS))
    waiting = client.stream("yyy", max_tokens=4)
    next(waiting)
    for name, value in {"requests_running": 1, "requests_waiting": 1, "queue_tokens": 3}.items():
        wait_for_value(daemon, f'skein_{name}{{model="tiny"}}', value)
    wait_for_value(daemon, 'skein_state_cache_usage_ratio{model="tiny",tier="device"}', 1)
    assert series(scrape(daemon))['skein_queue_oldest_seconds{model="tiny"}'] > 0
    # The time between tokens is told while the request runs, not at its end.
    counted = 'skein_inter_token_latency_seconds_count{model="tiny"}'
    before = series(scrape(daemon))[counted]
    end = time.monotonic() + 60
    while (values := series(scrape(daemon)))[counted] == before:
        assert time.monotonic() < end
        time.sleep(0.01)
    assert values['skein_requests_running{model="tiny"}'] == 1
    daemon.terminate()
    daemon.wait_for_line("draining")
    wait_for_value(daemon, 'skein_draining{model="tiny"}', 1)
    running.cancel()
    list(waiting)


def test_buckets_are_those_of_the_configuration(start, pb):
    daemon = start({"metrics.latency_buckets": "[0.25, 1.5, 40]"})
    Client(pb, daemon.channel).generate("x", max_tokens=4)
    text = scrape(daemon)
    for name in ["skein_time_to_first_token_seconds", "skein_inter_token_latency_seconds", "grpc_server_handling_seconds"]:
        bounds = re.findall(rf'^{name}_bucket\{{.*?le="([^"]+)"\}}', text, re.MULTILINE)
        assert set(bounds) == {"0.25", "1.5", "40", "+Inf"}, name
    counted = series(text)
    assert counted['skein_inter_token_latency_seconds_bucket{model="tiny",le="+Inf"}'] == 3
