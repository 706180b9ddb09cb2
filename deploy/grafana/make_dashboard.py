#!/usr/bin/env python3
"""Writes the Grafana dashboard beside it: skein.json. Import that file in Grafana; it asks for the Prometheus.

Panels are a table here and JSON there, so that a change is one line. usage: deploy/grafana/make_dashboard.py [FILE]
"""

import json
import pathlib
import sys

HERE = pathlib.Path(__file__).resolve().parent
WIDTH, HEIGHT = 8, 7  # of a panel; a row is 24 wide
SELECT = '{instance=~"$instance", model=~"$model"}'
DAEMON = '{instance=~"$instance"}'
DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}


def quantiles(name):
    rate = f"sum by (le) (rate({name}_bucket{SELECT}[$__rate_interval]))"
    return [(f"histogram_quantile({q}, {rate})", f"p{q * 100:g}") for q in (0.5, 0.9, 0.99)]


def rate(name, by, select=SELECT):
    return f"sum by ({by}) (rate({name}{select}[$__rate_interval]))"


# Row title -> panels: title, unit, [(query, legend)].
ROWS = {
    "Service": [
        ("Requests ended", "reqps", [(rate("skein_requests_total", "code"), "{{code}}")]),
        ("Requests refused", "reqps", [
            (rate("skein_admission_rejections_total", "reason", DAEMON), "{{reason}}")]),
        ("Running and waiting", "short", [
            (f"sum(skein_requests_running{SELECT})", "running"), (f"sum(skein_requests_waiting{SELECT})", "waiting"),
            (f"sum(skein_slots{SELECT})", "slots")]),
        ("First token", "s", quantiles("skein_time_to_first_token_seconds")),
        ("Between tokens", "s", quantiles("skein_inter_token_latency_seconds")),
        ("Whole request", "s", quantiles("skein_e2e_request_latency_seconds")),
    ],
    "Tokens": [
        ("Generated", "suffix: tokens/s", [(rate("skein_generation_tokens_total", "model"), "{{model}}")]),
        ("Prompts", "suffix: tokens/s", [(rate("skein_prompt_tokens_total", "model"), "{{model}}")]),
        ("Reused from states", "suffix: tokens/s", [(rate("skein_cached_tokens_total", "source"), "{{source}}")]),
        ("Time per output token", "s", quantiles("skein_request_time_per_output_token_seconds")),
        ("Prefill", "s", quantiles("skein_request_prefill_time_seconds")),
        ("Decode", "s", quantiles("skein_request_decode_time_seconds")),
    ],
    "Queue": [
        ("Waiting for a slot", "s", quantiles("skein_request_queue_time_seconds")),
        ("Oldest in the queue", "s", [(f"max by (model) (skein_queue_oldest_seconds{SELECT})", "{{model}}")]),
        ("Prompt tokens in the queue", "short", [(f"sum by (model) (skein_queue_tokens{SELECT})", "{{model}}")]),
    ],
    "Engine": [
        ("Step time by what is in it", "s", [
            (f"histogram_quantile(0.99, sum by (le, phase) (rate(skein_step_duration_seconds_bucket{SELECT}"
             "[$__rate_interval])))", "p99 {{phase}}")]),
        ("Requests in a step", "short", quantiles("skein_step_batch_size")),
        ("Tokens in a step", "short", quantiles("skein_step_tokens")),
        ("Idle between steps", "s", quantiles("skein_step_gap_seconds")),
        ("Since the last step", "s", [(f"max by (model) (skein_engine_heartbeat_age_seconds{SELECT})", "{{model}}")]),
        ("Draining", "short", [(f"max by (model) (skein_draining{SELECT})", "{{model}}")]),
    ],
    "States and conversations": [
        ("Share of a tier in use", "percentunit", [
            (f"max by (tier) (skein_state_cache_usage_ratio{DAEMON})", "{{tier}}")]),
        ("Bytes of states", "bytes", [(f"sum by (tier) (skein_state_cache_bytes{DAEMON})", "{{tier}}")]),
        ("Bytes of token ids", "bytes", [(f"sum(skein_conversation_token_bytes{DAEMON})", "token ids")]),
        ("Conversations", "short", [(f"sum by (tier) (skein_conversations{DAEMON})", "{{tier}}")]),
        ("Turns that found their state, or not", "reqps", [
            (rate("skein_state_cache_hits_total", "tier"), "found in {{tier}}"),
            (rate("skein_state_cache_misses_total", "reason"), "rebuilt: {{reason}}")]),
        ("Starting states by source", "reqps", [(rate("skein_state_restores_total", "from"), "{{from}}")]),
        ("States that left a tier", "ops", [
            (rate("skein_state_evictions_total", "from, to", DAEMON), "{{from}} to {{to}}")]),
        ("Copying a state", "s", quantiles("skein_state_transfer_seconds")),
        ("Conversations that went", "ops", [
            (rate("skein_conversations_lost_total", "reason", DAEMON), "{{reason}}"),
            (rate("skein_conversations_deleted_total", "instance", DAEMON), "deleted")]),
    ],
    "RPCs and process": [
        ("RPCs by code", "reqps", [(rate("grpc_server_handled_total", "grpc_code", DAEMON), "{{grpc_code}}")]),
        ("RPCs under way", "short", [
            (f"sum by (grpc_method) (grpc_server_started_total{DAEMON}) - "
             f"sum by (grpc_method) (grpc_server_handled_total{DAEMON})", "{{grpc_method}}")]),
        ("p99 of RPCs", "s", [
            (f"histogram_quantile(0.99, sum by (le, grpc_method) (rate(grpc_server_handling_seconds_bucket{DAEMON}"
             "[$__rate_interval])))", "{{grpc_method}}")]),
        ("Connections", "short", [(f"skein_connections{DAEMON}", "{{instance}}")]),
        ("Connections and credentials refused", "ops", [
            (rate("skein_connections_refused_total", "reason", DAEMON), "connection: {{reason}}"),
            (rate("skein_auth_failures_total", "reason", DAEMON), "credentials: {{reason}}")]),
        ("Certificate expires in", "s", [(f"skein_tls_certificate_expiry_seconds{DAEMON} - time()", "{{instance}}")]),
        ("Processor", "short", [(rate("process_cpu_seconds_total", "instance", DAEMON), "cores {{instance}}")]),
        ("Resident memory", "bytes", [(f"process_resident_memory_bytes{DAEMON}", "{{instance}}")]),
        ("Descriptors and threads", "short", [
            (f"process_open_fds{DAEMON}", "descriptors {{instance}}"), (f"process_threads{DAEMON}", "threads {{instance}}")]),
        ("Versions", "short", [
            (f"count by (version) (skein_build_info{DAEMON})", "skeind {{version}}"),
            (f"count by (model, fingerprint) (skein_model_info{DAEMON})", "{{model}} {{fingerprint}}"),
            (f"count by (sha256) (skein_config_info{DAEMON})", "config {{sha256}}")]),
        ("Log lines lost", "short", [(f"skein_log_lines_lost_total{DAEMON}", "{{instance}}")]),
        ("Last reload of the configuration", "short", [
            (f"skein_config_last_reload_successful{DAEMON}", "successful {{instance}}")]),
    ],
}


def panel(number, title, unit, queries, x, y):
    return {
        "id": number, "type": "timeseries", "title": title, "datasource": DATASOURCE,
        "gridPos": {"x": x, "y": y, "w": WIDTH, "h": HEIGHT},
        "fieldConfig": {"defaults": {"unit": unit, "min": 0, "custom": {"fillOpacity": 8, "showPoints": "never"}},
                        "overrides": []},
        "options": {"legend": {"displayMode": "list", "placement": "bottom"}, "tooltip": {"mode": "multi"}},
        "targets": [{"refId": chr(ord("A") + i), "datasource": DATASOURCE, "expr": query, "legendFormat": legend}
                    for i, (query, legend) in enumerate(queries)],
    }


def panels():
    out, y = [], 0
    for row, entries in ROWS.items():
        out.append({"id": len(out) + 1, "type": "row", "title": row, "collapsed": False, "panels": [],
                    "gridPos": {"x": 0, "y": y, "w": 24, "h": 1}})
        y += 1
        for i, (title, unit, queries) in enumerate(entries):
            out.append(panel(len(out) + 1, title, unit, queries, i % 3 * WIDTH, y + i // 3 * HEIGHT))
        y += (len(entries) + 2) // 3 * HEIGHT
    return out


def variable(name, label, query):
    return {"name": name, "label": label, "type": "query", "datasource": DATASOURCE, "refresh": 2, "includeAll": True,
            "multi": True, "allValue": ".*", "current": {"text": "All", "value": "$__all"},
            "query": {"query": query, "refId": name}, "definition": query, "sort": 1}


def dashboard():
    return {
        "title": "Skein", "uid": "skein", "tags": ["skein", "rwkv"], "schemaVersion": 38, "version": 1,
        "editable": True, "timezone": "browser", "refresh": "10s", "time": {"from": "now-30m", "to": "now"},
        "templating": {"list": [
            {"name": "datasource", "label": "Prometheus", "type": "datasource", "query": "prometheus"},
            variable("instance", "Server", "label_values(skein_build_info, instance)"),
            variable("model", "Model", "label_values(skein_model_info, model)"),
        ]},
        "annotations": {"list": []}, "panels": panels(),
    }


if __name__ == "__main__":
    path = pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else HERE / "skein.json"
    path.write_text(json.dumps(dashboard(), indent=1) + "\n")
