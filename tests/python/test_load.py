"""`skein load` against a daemon: what it reports is what the daemon counted."""

import json
import os
import re
import signal
import subprocess
import time
import types
from concurrent import futures

import grpc
import pytest
from client import Client
from daemon import BUILD
from test_control import until
from test_metrics import scrape, series

SKEIN = BUILD / "bin" / "skein"


def load(server, *arguments, check=True, timeout=120):
    """`server` has an address."""
    result = subprocess.run([SKEIN, "load", "--server", server.address, *arguments], capture_output=True, text=True,
                            timeout=timeout)
    if check:
        assert result.returncode == 0, result.stderr
    return result


def load_json(server, *arguments):
    return json.loads(load(server, *arguments, "--json").stdout)


def total(values, name, *labels):
    return sum(v for k, v in values.items() if re.match(rf"{name}(\{{|$)", k) and all(label in k for label in labels))


def is_ordered(quantiles):
    return quantiles["p50"] <= quantiles["p90"] <= quantiles["p99"] <= quantiles["p99.9"] <= quantiles["max"]


def test_closed_loop_counts_what_the_daemon_counts(start):
    daemon = start()
    report = load_json(daemon, "-u", "6", "-n", "60", "--prompt", "uniform:4,40", "--output", "uniform:2,20",
                       "--connections", "3")
    values = series(scrape(daemon))
    assert report["requests"]["started"] == report["requests"]["ok"] == 60
    assert report["codes"] == {"OK": 60} and report["ends"] == {"length": 60}
    assert total(values, "skein_requests_total", 'code="OK"') == 60
    assert report["tokens"]["prompt"] == total(values, "skein_prompt_tokens_total")
    assert report["tokens"]["output"] == total(values, "skein_generation_tokens_total")
    for name in ["first_token", "request"]:
        assert report["latency_seconds"][name]["count"] == 60
    for quantiles in report["latency_seconds"].values():
        assert is_ordered(quantiles), report
    # Of a short answer all tokens may come in one message.
    assert report["latency_seconds"]["first_token"]["p50"] <= report["latency_seconds"]["request"]["p50"]
    assert report["tokens"]["output_per_second"] == pytest.approx(
        report["tokens"]["output"] / report["measured_seconds"], rel=0.01)
    # One for the text, each other on a connection of its own.
    assert total(values, "grpc_server_started_total", 'grpc_method="Generate"') == 60


def test_the_seed_decides_what_is_sent(start):
    daemon = start()
    arguments = ["-u", "4", "-n", "20", "--prompt", "lognormal:20,0.5,100", "--output", "uniform:1,9", "--load-seed"]
    first = load_json(daemon, *arguments, "3")["tokens"]
    assert load_json(daemon, *arguments, "3")["tokens"]["prompt"] == first["prompt"]
    assert load_json(daemon, *arguments, "4")["tokens"]["prompt"] != first["prompt"]


def test_conversations_reuse_their_state_and_are_deleted(start, pb):
    daemon = start()
    report = load_json(daemon, "-u", "1", "-n", "24", "--turns", "4", "--prompt", "10", "--output", "5", "--think", "0.01")
    assert report["requests"]["ok"] == 24 and report["conversations_left"] == 0
    # Turns two to four of six conversations go on from a state.
    assert report["tokens"]["reused"] == sum(15 * turn - 1 for turn in (1, 2, 3)) * 6
    client = Client(pb, daemon.channel)
    assert not client.conv.List(pb.conv.ListConversationsRequest()).conversations
    load_json(daemon, "-u", "1", "-n", "4", "--turns", "2", "--keep")
    assert len(client.conv.List(pb.conv.ListConversationsRequest()).conversations) == 2


def test_open_loop_does_not_wait_for_the_server(start, steady_model):
    """One slot and 25 requests a second of 100 ms and more: those behind count from when they should have started."""
    daemon = start({"engine.slots": 1, "limits.queued": 1000}, model=steady_model)
    report = load_json(daemon, "--rate", "25", "-d", "3", "--prompt", "4", "--output", "100", "--grace", "60")
    assert report["requests"]["started"] == pytest.approx(75, abs=30)
    first, lag = report["latency_seconds"]["first_token"], report["latency_seconds"]["start_lag"]
    assert first["max"] > 1, report
    assert lag["max"] < first["max"] / 2


def test_open_loop_ends_in_time_on_a_machine_that_stands_still(start):
    """Whatever is due when the client goes on again: what comes after its end is not sent."""
    daemon = start()
    process = subprocess.Popen([SKEIN, "load", "--server", daemon.address, "--rate", "200", "-d", "1", "--output", "2", "--json"],
                               stdout=subprocess.PIPE, text=True)
    until(lambda: total(series(scrape(daemon)), "skein_requests_total") > 0)
    process.send_signal(signal.SIGSTOP)
    time.sleep(2)
    process.send_signal(signal.SIGCONT)
    requests = json.loads(process.communicate(timeout=60)[0])["requests"]
    assert 100 < requests["started"] + requests["never_started"] < 300, requests


def test_max_open_delays_starts_and_the_delay_counts(start, steady_model):
    daemon = start(model=steady_model)
    report = load_json(daemon, "--rate", "100", "-d", "2", "--prompt", "4", "--output", "60", "--max-open", "1",
                       "--grace", "60")
    assert report["requests"]["never_started"] > 0
    lag, first = report["latency_seconds"]["start_lag"], report["latency_seconds"]["first_token"]
    assert lag["max"] > 0.5 and first["max"] >= lag["max"]


def test_bad_manners_leave_nothing_behind(start, steady_model):
    daemon = start({"limits.outbox_tokens": 8}, model=steady_model)
    report = load_json(daemon, "-u", "12", "-n", "60", "--output", "200", "--cancel", "0.3", "--hang-up", "0.3", "--slow",
                       "0.2", "--slow-rate", "1000")
    requests = report["requests"]
    assert requests["ok"] == 60 and requests["ended_by_client"] > 20 and requests["slow_readers"] > 3
    assert report["ends"].get("cancelled", 0) > 3 and report["codes"]["hung up by this client"] > 3
    # Slow and ended ones are not in the table.
    assert report["latency_seconds"]["first_token"]["p50"] < report["latency_seconds"]["request"]["p50"]
    assert report["latency_seconds"]["request"]["count"] <= 60 - requests["ended_by_client"]
    end = time.monotonic() + 60
    while total(series(scrape(daemon)), "skein_requests_running") > 0:
        assert time.monotonic() < end
        time.sleep(0.1)


@pytest.fixture
def by_tens(pb):
    """A server whose messages bring ten tokens each, as those of a busy one may."""
    g = pb.gen

    class ByTens(pb.gen_grpc.GenerationServicer):
        def Tokenize(self, request, context):
            return g.TokenizeResponse(ids=[5, 6, 7])

        def Generate(self, request, context):
            yield g.GenerateResponse(started=g.Started(request_id=request.request_id))
            for tokens in range(10, request.stopping.max_tokens + 1, 10):
                yield g.GenerateResponse(delta=g.Delta(text="x" * 10, token_count=tokens))
            usage = g.Usage(completion_tokens=request.stopping.max_tokens)
            yield g.GenerateResponse(finished=g.Finished(reason=g.FINISH_REASON_LENGTH, usage=usage))

    server = grpc.server(futures.ThreadPoolExecutor(8))
    pb.gen_grpc.add_GenerationServicer_to_server(ByTens(), server)
    address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    yield types.SimpleNamespace(address=address)
    server.stop(None).wait(60)


def test_all_end_their_requests_that_should(by_tens):
    requests = load_json(by_tens, "-u", "4", "-n", "40", "--output", "40", "--hang-up", "1")["requests"]
    assert requests["ok"] == requests["ended_by_client"] == 40, requests


def test_refusals_are_told_by_code_and_time(start, steady_model):
    daemon = start({"engine.slots": 1, "limits.queued": 1}, model=steady_model)
    report = load_json(daemon, "--rate", "100", "-d", "2", "--output", "100", "--grace", "60")
    refused = report["codes"]["RESOURCE_EXHAUSTED QUEUE_FULL"]
    assert refused > 100 and refused == report["requests"]["failed"]
    assert report["latency_seconds"]["refusal"]["count"] == refused
    assert report["latency_seconds"]["refusal"]["p50"] < 0.5


def test_report_for_people_and_ctrl_c(start):
    daemon = start()
    out = load(daemon, "-u", "2", "-n", "10", "--warm-up", "0.1").stdout
    for words in ["closed loop, 2 users", "p99.9", "first token", "between tokens", "whole request", "codes: OK"]:
        assert words in out, out
    served = lambda: total(series(scrape(daemon)), "skein_requests_total", 'code="OK"')
    before = served()
    process = subprocess.Popen([SKEIN, "load", "--server", daemon.address, "-u", "2", "-d", "600", "--output", "5"],
                               stdout=subprocess.PIPE, text=True)
    end = time.monotonic() + 60
    while served() < before + 20:
        assert time.monotonic() < end
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    out = process.communicate(timeout=60)[0]
    assert process.returncode == 0 and "requests:" in out and "codes: OK" in out


@pytest.mark.parametrize("arguments,code,words", [
    (["--prompt", "normal:3"], 2, "--prompt"),
    (["--output", "uniform:9,3"], 2, "uniform:LEAST,MOST"),
    (["-u", "3", "--rate", "4"], 2, "--rate"),
    (["--cancel", "0.7", "--hang-up", "0.7"], 2, "more than 1"),
    (["--text", "/no/such/file"], 4, "/no/such/file"),
    (["-n", "3", "--model", "other"], 4, "other"),
])
def test_wrong_flags(shared, arguments, code, words):
    result = load(shared, *arguments, check=False)
    assert result.returncode == code and words in result.stderr, result


def test_nothing_succeeded(shared):
    result = load(shared, "-n", "3", "--prompt", "200000", check=False)
    assert result.returncode == 1 and "INVALID_ARGUMENT" in result.stdout
    assert "is skeind running" in subprocess.run([SKEIN, "load", "--server", "127.0.0.1:1"], capture_output=True, text=True,
                                                 timeout=60, env=os.environ).stderr


def test_help_has_examples(shared):
    out = load(shared, "--help").stdout
    for words in ["Examples:", "--rate", "--turns", "lognormal:MEDIAN", "coordinated omission"]:
        assert words in out
