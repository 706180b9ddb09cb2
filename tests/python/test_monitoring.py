"""What deploy/ ships for monitoring: the rules do what they say, the dashboard asks for series that exist, and no text of a
client shows in logs or metrics."""

import importlib.util
import json
import pathlib
import re
import subprocess

import grpc
import pytest
from client import Client, fresh_id
from daemon import ROOT
from test_metrics import scrape, use_everything

RULES = sorted((ROOT / "deploy" / "prometheus").glob("*.yml"))
DASHBOARD = ROOT / "deploy" / "grafana" / "skein.json"
# api.md, section 6. `skein_` is the prefix of our own series only.
SERIES = """requests_running requests_waiting requests_total admission_rejections_total prompt_tokens_total
 generation_tokens_total time_to_first_token_seconds inter_token_latency_seconds request_time_per_output_token_seconds
 e2e_request_latency_seconds request_queue_time_seconds request_prefill_time_seconds request_decode_time_seconds
 step_duration_seconds step_batch_size step_tokens step_gap_seconds state_cache_usage_ratio state_cache_bytes conversations
 state_cache_hits_total state_cache_misses_total cached_tokens_total state_evictions_total state_restores_total
 state_transfer_seconds build_info config_info model_info conversations_lost_total config_last_reload_successful
 queue_oldest_seconds draining""".split()
BARE = """grpc_server_started_total grpc_server_handled_total grpc_server_handling_seconds process_cpu_seconds_total
 process_resident_memory_bytes process_open_fds process_max_fds process_start_time_seconds""".split()
# Only with credentials and certificates: test_security.py sees them move.
WITH_SECURITY = {"skein_auth_failures_total", "skein_tls_certificate_expiry_seconds"}
# Comes with the tiers below host memory.
WITH_TIERS = {"skein_store_errors_total"}


def families(text):
    return set(re.findall(r"^# TYPE (\S+) \S+$", text, re.MULTILINE))


@pytest.fixture(scope="module")
def exposed(model, tmp_path_factory, pb):
    """The families of a daemon that has seen everything."""
    from daemon import Daemon

    daemon = Daemon(model, tmp_path_factory.mktemp("exposed"), {"conversations.history": 1})
    try:
        use_everything(Client(pb, daemon.channel))
        yield families(scrape(daemon))
    finally:
        daemon.stop()


def test_every_series_of_the_contract_is_there(exposed):
    missing = {"skein_" + name for name in SERIES} | set(BARE)
    assert missing - exposed == set()
    assert not WITH_TIERS & exposed, "it is there now: move it to SERIES"


def names_in(query):
    return set(re.findall(r"\b(?:skein|grpc|process)_\w+", query))


def without_suffix(name, exposed):
    for suffix in ["", "_bucket", "_sum", "_count"]:
        base = name[:-len(suffix)] if suffix and name.endswith(suffix) else name
        if base in exposed:
            return base
    return name


def unknown(queries, exposed):
    names = {without_suffix(name, exposed) for query in queries for name in names_in(query)}
    labels = {"grpc_code", "grpc_method", "grpc_service", "process_name"}
    return names - labels - exposed - WITH_SECURITY


def dashboard_queries(dashboard):
    return [target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", [])]


def test_dashboard_is_what_its_script_makes(tmp_path):
    path = DASHBOARD.parent / "make_dashboard.py"
    spec = importlib.util.spec_from_file_location("make_dashboard", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert json.loads(DASHBOARD.read_text()) == module.dashboard(), f"run {path}"


def test_dashboard_can_be_imported_and_asks_for_existing_series(exposed):
    dashboard = json.loads(DASHBOARD.read_text())
    assert dashboard["schemaVersion"] >= 36 and dashboard["uid"] and dashboard["title"]
    variables = {v["name"]: v for v in dashboard["templating"]["list"]}
    assert variables["datasource"]["type"] == "datasource" and variables["datasource"]["query"] == "prometheus"
    ids = [panel["id"] for panel in dashboard["panels"]]
    assert len(ids) == len(set(ids)) > 30
    for panel in dashboard["panels"]:
        if panel["type"] == "row":
            continue
        assert panel["datasource"]["uid"] == "${datasource}" and panel["targets"], panel["title"]
        for target in panel["targets"]:
            assert names_in(target["expr"]), target
            for used in re.findall(r"\$\{?(\w+)", target["expr"]):
                assert used in variables or used == "__rate_interval", target
    queries = dashboard_queries(dashboard) + [v["query"]["query"] for v in variables.values() if v["type"] == "query"]
    assert unknown(queries, exposed) == set()
    shown = {without_suffix(name, exposed) for query in queries for name in names_in(query)}
    hidden = {"process_start_time_seconds", "process_max_fds", "process_virtual_memory_bytes",
              "skein_conversation_lines", "skein_conversation_tombstones"}
    assert {"skein_" + name for name in SERIES} - shown - hidden == set()


def test_dashboard_queries_are_promql(tmp_path):
    """promtool parses each query as a rule; Grafana's variables stand for what they are replaced by."""
    rules = []
    for i, query in enumerate(dashboard_queries(json.loads(DASHBOARD.read_text()))):
        query = query.replace("$__rate_interval", "1m").replace("$instance", ".*").replace("$model", ".*")
        rules.append({"record": f"panel:{i}", "expr": query})
    path = tmp_path / "panels.yml"
    path.write_text(json.dumps({"groups": [{"name": "panels", "rules": rules}]}))  # JSON is YAML
    check = subprocess.run(["promtool", "check", "rules", path], capture_output=True, text=True, timeout=60)
    assert check.returncode == 0, check.stdout + check.stderr


def test_rules_ask_for_existing_series(exposed):
    assert len(RULES) == 2
    queries = re.findall(r"expr: (.*(?:\n {10,}.*)*)", "\n".join(path.read_text() for path in RULES))
    assert len(queries) > 50 and unknown(queries, exposed) == set()


@pytest.mark.parametrize("name", ["alerts_test.yml", "recording_test.yml"])
def test_rules(name):
    test = subprocess.run(["promtool", "test", "rules", name], cwd=ROOT / "tests" / "deploy", capture_output=True,
                          text=True, timeout=60)
    assert test.returncode == 0, test.stdout + test.stderr


def test_every_alert_is_tested():
    alerts = re.findall(r"- alert: (\w+)", (ROOT / "deploy" / "prometheus" / "alerts.yml").read_text())
    tested = re.findall(r"alertname: (\w+)", (ROOT / "tests" / "deploy" / "alerts_test.yml").read_text())
    assert len(alerts) > 10 and sorted(tested) == sorted(alerts * 2)  # once firing, once quiet
    assert pathlib.Path(RULES[0]).name == "alerts.yml"


def test_no_text_of_a_client_in_logs_or_metrics(start, pb):
    daemon = start({"log.level": "debug", "limits.max_tokens": 256, "limits.prompt_tokens": 2000})
    client = Client(pb, daemon.channel)
    g = pb.gen
    marks = []

    def mark():
        marks.append(f"MARK{len(marks)}QZX")
        return marks[-1]

    def attempt(call):
        try:
            list(call())
        except grpc.RpcError:
            pass

    message = lambda role: g.Messages(messages=[g.Message(role=role, content=mark())])
    conversation = fresh_id()
    client.generate(mark(), conversation=conversation, create_if_missing=True)
    client.generate(conversation=conversation, messages=message(g.ROLE_USER))
    attempt(lambda: client.stream(conversation=conversation, messages=message(g.ROLE_TOOL)))
    attempt(lambda: client.stream(mark(), stopping=g.Stopping(max_tokens=4, stop_strings=[mark(), mark() * 200])))
    attempt(lambda: client.stream(mark() * 400))  # too long
    attempt(lambda: client.stream(mark(), max_tokens=100000))
    attempt(lambda: client.stream(mark(), constraint=g.Constraint(regex=mark())))
    attempt(lambda: client.stream(mark(), thinking=mark()))
    continuation = lambda: g.Continuation(text=g.Text(text=mark()))
    attempt(lambda: client.gen.Score(g.ScoreRequest(text=g.Text(text=mark()), continuations=[continuation()])))
    attempt(lambda: client.gen.Score(g.ScoreRequest(conversation_id=conversation, continuations=[continuation()])))
    attempt(lambda: [client.gen.Tokenize(g.TokenizeRequest(text=mark()))])
    attempt(lambda: [client.gen.Tokenize(g.TokenizeRequest(messages=message(g.ROLE_USER)))])
    raw = daemon.channel.unary_stream("/skein.v1.Generation/Generate")
    attempt(lambda: raw(b"\xff" + mark().encode()))
    client.history(conversation)
    client.info.ListModels(pb.info.ListModelsRequest())
    daemon.wait_for_line("ListModels")
    exposed, log = scrape(daemon), daemon.log()
    assert len(marks) > 15 and "code=OK" in log and "INVALID_ARGUMENT" in log
    assert [m for m in marks if m in exposed or m in log] == []
    # What the model says is nobody's business either.
    answer = client.generate("x", max_tokens=30).text
    assert len(answer) > 10 and answer not in daemon.log()
