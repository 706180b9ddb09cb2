"""A real Prometheus scrapes skeind: the format is clean and every series moves with what happens."""

import json
import re
import shutil
import socket
import subprocess
import threading
import time
import urllib.parse
import urllib.request

import grpc
import pytest
from client import ENDLESS, Client, Running, fresh_id
from daemon import ROOT

# Set once at the start; all other series must change under load.
CONSTANT = {"skein_build_info", "skein_model_info", "skein_config_info", "skein_config_last_reload_successful",
            "skein_slots", "process_start_time_seconds", "process_max_fds"}
# Depend on what the allocator and the thread pools do; present and positive is all that can be asked.
PROCESS = {"process_resident_memory_bytes", "process_virtual_memory_bytes", "process_threads", "process_open_fds"}
# Move when log lines cannot be written (test_signals.py) and when there are too many connections (test_security_abuse.py).
ELSEWHERE = {"skein_log_lines_lost_total", "skein_connections_refused_total"}
FAMILY = re.compile(r"^# TYPE (\S+) (\S+)$", re.MULTILINE)


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def scrape(address):  # what skeind says at start: http://host:port/metrics
    with urllib.request.urlopen(address, timeout=60) as response:
        return response.read().decode()


class Prometheus:
    """The real thing, with the scrape config that deploy/ ships, pointed at one target and made faster."""

    def __init__(self, target, folder):
        assert shutil.which("prometheus"), "prometheus is not installed: deploy/install-deps.sh --test"
        config = (ROOT / "deploy" / "prometheus.yml").read_text()
        assert "127.0.0.1:9464" in config and "scrape_interval: 5s" in config
        config = config.replace("127.0.0.1:9464", target).replace("scrape_interval: 5s", "scrape_interval: 100ms")
        config = config.replace("global:", "global:\n  evaluation_interval: 1s")
        config = config.replace("prometheus/*.yml", str(ROOT / "deploy" / "prometheus" / "*.yml"))
        path = folder / "prometheus.yml"
        path.write_text(config)
        self.address = f"127.0.0.1:{free_port()}"
        self.log = open(folder / "prometheus.log", "w")
        self.process = subprocess.Popen(
            ["prometheus", f"--config.file={path}", f"--storage.tsdb.path={folder}/data",
             f"--web.listen-address={self.address}"], stdout=self.log, stderr=subprocess.STDOUT)

    def query(self, expression):
        """{series labels as text: value}."""
        url = f"http://{self.address}/api/v1/query?" + urllib.parse.urlencode({"query": expression})
        with urllib.request.urlopen(url, timeout=60) as response:
            answer = json.load(response)
        assert answer["status"] == "success", answer
        return {json.dumps(r["metric"], sort_keys=True): float(r["value"][1]) for r in answer["data"]["result"]}

    def wait_for(self, expression, timeout=60):
        """Waits until the query has an answer."""
        deadline = time.monotonic() + timeout
        while True:
            assert self.process.poll() is None, "prometheus ended"
            try:
                found = self.query(expression)
            except OSError:  # not listening yet
                found = {}
            if found:
                return found
            assert time.monotonic() < deadline, f"no answer to {expression}"
            time.sleep(0.1)

    def stop(self):
        self.process.terminate()
        try:
            self.process.wait(60)
        finally:
            self.process.kill()
            self.process.wait()
            self.log.close()


@pytest.fixture
def prometheus(tmp_path):
    running = []

    def start(target):
        running.append(Prometheus(target, tmp_path))
        return running[-1]

    yield start
    for one in running:
        one.stop()


def in_background(call):
    thread = threading.Thread(target=call)
    thread.start()
    return thread


def wait_for_value(daemon, name, value, seconds=60):
    end = time.monotonic() + seconds
    while not re.search(rf"^{name}(?:{{.*}})? {value}$", scrape(daemon.metrics), re.MULTILINE):
        assert time.monotonic() < end, f"{name} never was {value}"
        time.sleep(0.02)


def work(client, daemon, prom, pb):
    """Something for every series: turns, an eviction and its rebuild, a queue, a refusal, a score."""
    conversations = [fresh_id() for _ in range(12)]
    for conversation in conversations:
        client.generate("hello ", conversation=conversation, create_if_missing=True)
    client.generate("again", conversation=conversations[-1])  # finds its state
    client.generate("again", conversation=conversations[0])  # was evicted: rebuilt from its tokens
    g = pb.gen
    continuation = g.Continuation(text=g.Text(text=" text"))
    assert list(client.gen.Score(g.ScoreRequest(text=g.Text(text="some"), continuations=[continuation]), timeout=60))

    # One is deleted, one expires and is remembered for a while, one is waited for.
    client.conv.Delete(pb.conv.DeleteConversationRequest(id=conversations[1]))
    short = pb.conv.CreateConversationRequest(id=fresh_id())
    short.ttl.FromMilliseconds(100)
    client.conv.Create(short)
    writes = Running(client.stream("x", conversation=conversations[2], max_tokens=ENDLESS, timeout=600))
    in_line = in_background(lambda: client.generate("y", conversation=conversations[2], wait_if_busy=True, timeout=600))
    prom.wait_for("skein_conversation_lines == 1")
    writes.cancel()
    in_line.join()
    wait_for_value(daemon, "skein_conversations_lost_total", 1)

    # One slot and one place in the queue: one runs, one waits, one is refused.
    busy = Running(client.stream("x", max_tokens=ENDLESS, timeout=600))
    waiting = in_background(lambda: client.generate("waits " * 20, timeout=600))
    wait_for_value(daemon, "skein_requests_waiting", 1)
    with pytest.raises(grpc.RpcError) as refused:
        client.generate("one too many")
    assert refused.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    prom.wait_for("skein_queue_tokens > 0 and skein_queue_oldest_seconds > 0")
    busy.cancel()
    waiting.join()


def test_promtool_finds_nothing_to_say(start, pb):
    daemon = start()
    client = Client(pb, daemon.channel)
    client.generate("hello", conversation=fresh_id(), create_if_missing=True)
    check = subprocess.run(["promtool", "check", "metrics"], input=scrape(daemon.metrics), text=True, timeout=60,
                           capture_output=True)
    assert (check.returncode, check.stdout + check.stderr) == (0, "")


def test_every_series_moves(start, steady_model, prometheus, pb):
    # As few places as possible, so that little work reaches every limit.
    daemon = start({"engine.slots": 1, "limits.queued": 1, "conversations.budget": "2MiB", "shutdown.drain": "60s"},
                   model=steady_model)
    client = Client(pb, daemon.channel)
    first = scrape(daemon.metrics)
    prom = prometheus(urllib.parse.urlsplit(daemon.metrics).netloc)
    assert prom.wait_for('up{job="skeind"} == 1')
    time.sleep(0.5)

    work(client, daemon, prom, pb)
    last_call = Running(client.stream("x", max_tokens=ENDLESS, timeout=600))  # keeps the drain open for some scrapes
    text = scrape(daemon.metrics)
    daemon.terminate()
    prom.wait_for("skein_draining == 1")
    assert prom.wait_for('ALERTS{alertname="SkeinDrainingLong", alertstate="pending"}')
    # The recording rules ran beside it; vLLM's names.
    assert prom.wait_for('vllm:generation_tokens_total{model_name="steady"} > 0')
    assert prom.wait_for('vllm:time_to_first_token_seconds_count{model_name="steady"} > 0')
    last_call.cancel()

    families = dict(FAMILY.findall(text))
    assert len(families) > 30, sorted(families)
    still = []
    for name, kind in sorted(families.items()):
        if name in ELSEWHERE:
            continue
        if name in CONSTANT | PROCESS:
            if not prom.query(f"min_over_time({name}[5m]) > 0"):
                still.append(f"{name}: never positive")
        elif kind == "gauge":
            if not prom.query(f"max_over_time({name}[5m]) > min_over_time({name}[5m])"):
                still.append(f"{name}: did not change")
        else:
            series = name + "_count" if kind in ("histogram", "summary") else name
            before = sum(float(v) for v in re.findall(rf"^{series}(?:{{.*}})? (\S+)$", first, re.MULTILINE))
            if not prom.query(f"sum(max_over_time({series}[5m])) > {before}"):
                still.append(f"{name}: did not grow from {before}")
    assert still == []
    # What Prometheus computes from them makes sense.
    assert prom.query("histogram_quantile(0.5, sum by (le) (rate(skein_time_to_first_token_seconds_bucket[1m]))) > 0")
