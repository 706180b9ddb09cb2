"""Control: models loaded, replaced and unloaded while requests run; load, drain, reload; probes over HTTP."""

import contextlib
import pathlib
import re
import shutil
import subprocess
import threading
import time
import urllib.error
import urllib.request

import grpc
import pytest
from checkpoint import write_tiny_checkpoint, write_words_checkpoint
from client import ENDLESS, Client, Running, details, expect_error, fresh_id
from daemon import BUILD, environment
from google.protobuf import duration_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from test_metrics import scrape, series

SKEIN = BUILD / "bin" / "skein"


@pytest.fixture
def folder(tmp_path):
    """Checkpoints of other weights than `model`, in a folder that the server may load from."""
    models = tmp_path / "checkpoints"
    models.mkdir()
    write_tiny_checkpoint(models / "second.safetensors", seed=2)
    write_tiny_checkpoint(models / "third.safetensors", seed=3)
    return models


@pytest.fixture
def control(start, pb, folder):
    """(daemon, client) of a server that may load from `folder`."""
    daemon = start({"control.model_folders": str(folder)})
    return daemon, Client(pb, daemon.channel)


def load(client, path, **fields):
    """All events of a LoadModel."""
    return list(client.control.LoadModel(client.pb.control.LoadModelRequest(path=path, **fields), timeout=60))


def get_load(client):
    return client.control.GetLoad(client.pb.control.GetLoadRequest())


def models_by_name(client):
    return {m.name: m for m in client.info.ListModels(client.pb.info.ListModelsRequest()).models}


def probe(daemon, path):
    """(status, body) of a GET beside /metrics."""
    url = daemon.metrics.replace("/metrics", path)
    try:
        with urllib.request.urlopen(url, timeout=60) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def until(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come true"
        time.sleep(0.02)


# Loading beside what is served.

def test_a_second_model_beside_the_first(control, pb):
    daemon, client = control
    first = client.generate("hello", max_tokens=16).ids
    events = load(client, "second.safetensors", name="other")
    assert events[-1].WhichOneof("event") == "model"
    model = events[-1].model
    assert model.name == "other" and not model.is_default
    progress = [e.progress.fraction for e in events[:-1]]
    assert progress == sorted(progress) and all(0 <= f <= 1 for f in progress)
    listed = list(client.info.ListModels(pb.info.ListModelsRequest()).models)
    assert [(m.name, m.is_default) for m in listed] == [("tiny", True), ("other", False)]
    assert listed[0].fingerprint != listed[1].fingerprint
    # Each answers with its own weights; unnamed requests get the default.
    other = client.generate("hello", max_tokens=16, model="other").ids
    assert other != first
    assert client.generate("hello", max_tokens=16, model="tiny").ids == first
    assert client.generate("hello", max_tokens=16).ids == first
    names = {k for k in series(scrape(daemon)) if k.startswith("skein_slots{")}
    assert names == {'skein_slots{model="tiny"}', 'skein_slots{model="other"}'}


def test_models_of_the_configuration(start, pb, model, folder):
    daemon = start({"models": f"[{{path: {folder}/second.safetensors}}, {{path: {folder}/third.safetensors, name: x}}]"})
    client = Client(pb, daemon.channel)
    assert list(models_by_name(client)) == ["tiny", "second", "x"]
    assert client.generate("a", model="x").ids != client.generate("a", model="second").ids


def test_unknown_model_is_told_what_there_is(control):
    _, client = control
    load(client, "second.safetensors")
    error = expect_error(grpc.StatusCode.NOT_FOUND, lambda: client.stream("x", model="nobody"))
    info = details(error)["ErrorInfo"]
    assert info.reason == "MODEL_NOT_FOUND" and info.metadata["served"] == "second,tiny"


# Replacing under load: what a freshly trained checkpoint needs.

def test_replace_under_load_drops_nothing(control, pb):
    daemon, client = control
    old = client.generate("the question", max_tokens=12).ids
    stop = threading.Event()
    answers, errors = [], []

    def ask():
        mine = Client(pb, daemon.new_channel())
        while not stop.is_set():
            try:
                answers.append(tuple(mine.generate("the question", max_tokens=12).ids))
            except grpc.RpcError as error:
                errors.append(error)

    threads = [threading.Thread(target=ask) for _ in range(6)]
    for thread in threads:
        thread.start()
    new = None
    for round_ in range(6):
        before = len(answers)
        until(lambda: len(answers) > before + 10)  # noqa: B023
        name = ["second", "third"][round_ % 2]
        load(client, f"{name}.safetensors", name="tiny", replace=True)
        new = client.generate("the question", max_tokens=12).ids
    stop.set()
    for thread in threads:
        thread.join(60)
    assert not errors, errors[0]
    assert new != old
    # Every answer is one model's, never a mixture.
    assert len(set(answers)) == 3 and tuple(old) in answers and tuple(new) in answers
    until(lambda: len(get_load(client).models) == 1)


def test_what_runs_ends_on_the_old_model(control, pb):
    _, client = control
    whole = client.generate("x", max_tokens=3000).ids
    running = Running(client.stream("x", max_tokens=3000))
    load(client, "second.safetensors", name="tiny", replace=True)
    after = client.generate("x", max_tokens=3000).ids
    turn = running.end()
    assert turn.ids == whole and turn.finished.reason == pb.gen.FINISH_REASON_LENGTH
    assert after != whole


def engines(daemon):
    """How many engines there are, by their threads."""
    found = 0
    for name in pathlib.Path(f"/proc/{daemon.process.pid}/task").glob("*/comm"):
        with contextlib.suppress(OSError):  # another thread, which has ended meanwhile
            found += name.read_text() == "skein-engine\n"
    return found


def test_the_old_engine_goes_with_its_last_request(start, pb, folder, steady_model):
    daemon = start({"control.model_folders": str(folder)}, model=steady_model)
    client = Client(pb, daemon.channel)
    running = Running(client.stream("x", max_tokens=ENDLESS))
    old = models_by_name(client)["steady"].fingerprint
    load(client, "second.safetensors", name="steady", replace=True)
    retired = [m for m in get_load(client).models if m.retired]
    assert [(m.name, m.fingerprint, m.running) for m in retired] == [("steady", old, 1)]
    assert engines(daemon) == 2
    running.cancel()
    until(lambda: not any(m.retired for m in get_load(client).models))
    until(lambda: engines(daemon) == 1)


def test_conversations_go_on_by_the_rule_for_other_weights(control, pb):
    _, client = control
    conversation = fresh_id()
    first = client.generate("one", conversation=conversation, create_if_missing=True)
    load(client, "second.safetensors", name="tiny", replace=True)
    error = expect_error(grpc.StatusCode.FAILED_PRECONDITION, lambda: client.stream("two", conversation=conversation))
    assert details(error)["ErrorInfo"].reason == "MODEL_MISMATCH"
    turn = client.generate("two", conversation=conversation, on_model_mismatch=pb.gen.ON_MODEL_MISMATCH_REBUILD)
    # As if the new model had read it all from the start.
    ids = [b + 1 for b in b"one"] + first.ids + [b + 1 for b in b"two"]
    assert turn.ids == client.generate(ids=ids).ids


def test_the_text_of_a_history_needs_a_model_of_its_vocabulary(control, pb, folder):
    """Token ids of another one would read as something that nobody said."""
    _, client = control
    conversation = fresh_id()
    for seed in 1, 2:
        write_words_checkpoint(folder / f"words{seed}.safetensors", [b"hello"], seed=seed)
    load(client, "words1.safetensors", name="words")
    client.generate("hello you", conversation=conversation, create_if_missing=True, model="words")
    before = client.history(conversation)
    assert before.model == "words" and before.versions[0].input == "hello you" and before.versions[0].output
    assert list(before.versions[0].input_token_ids) == [257] + [b + 1 for b in b" you"]

    client.control.UnloadModel(pb.control.UnloadModelRequest(name="words"))
    [gone] = client.history(conversation).versions
    assert (gone.input, gone.output) == ("", "") and gone.input_token_ids == before.versions[0].input_token_ids
    assert gone.output_token_ids == before.versions[0].output_token_ids

    load(client, "words2.safetensors", name="other")
    after = client.history(conversation)
    assert after.model == "" and list(after.versions) == list(before.versions)


def test_cancelling_a_load_changes_nothing(control, pb):
    _, client = control
    before = models_by_name(client)["tiny"].fingerprint
    for _ in range(5):
        call = client.control.LoadModel(pb.control.LoadModelRequest(path="second.safetensors", name="tiny",
                                                                    replace=True))
        call.cancel()
        until(lambda: not get_load(client).loading)
        if models_by_name(client)["tiny"].fingerprint == before:
            return
        load(client, "third.safetensors", name="tiny", replace=True)  # it was faster: try again
        before = models_by_name(client)["tiny"].fingerprint
    raise AssertionError("cancelled five times, loaded five times")


# What is refused.

def test_only_files_in_the_folders(control, folder, tmp_path, model):
    _, client = control
    (folder / "link.safetensors").symlink_to(model)
    (folder / "folder.safetensors").mkdir()
    outside = tmp_path / "outside.safetensors"
    shutil.copy(model, outside)
    for path in ["missing.safetensors", "../outside.safetensors", str(outside), str(model), "link.safetensors",
                 "folder.safetensors", "/etc/passwd", ".", "..", "checkpoints/../../outside.safetensors"]:
        error = expect_error(grpc.StatusCode.NOT_FOUND, lambda: load(client, path))  # noqa: B023
        assert details(error)["ErrorInfo"].reason == "MODEL_FILE_NOT_FOUND"
        assert path in error.details() and "control.model_folders" in error.details()
    assert list(models_by_name(client)) == ["tiny"]
    # An absolute path into the folder is fine, and so is one with detours that stays inside.
    load(client, str(folder / "second.safetensors"))
    load(client, f"../{folder.name}/third.safetensors")


def test_bad_requests_to_load(control, folder):
    _, client = control
    for fields, field in [({"path": ""}, "path"), ({"path": "second.safetensors", "weights": "int3"}, "weights"),
                          ({"path": "second.safetensors", "name": "a\nb"}, "name"),
                          ({"path": "second.safetensors", "name": "n" * 129}, "name")]:
        error = expect_error(grpc.StatusCode.INVALID_ARGUMENT, lambda: load(client, **fields))  # noqa: B023
        assert details(error)["BadRequest"].field_violations[0].field == field
    error = expect_error(grpc.StatusCode.ALREADY_EXISTS, lambda: load(client, "second.safetensors", name="tiny"))
    assert details(error)["ErrorInfo"].reason == "MODEL_EXISTS"
    (folder / "broken.safetensors").write_bytes(b"not a checkpoint")
    error = expect_error(grpc.StatusCode.INVALID_ARGUMENT, lambda: load(client, "broken.safetensors"))
    assert "broken.safetensors" in error.details()
    assert [v.field for v in details(error)["BadRequest"].field_violations] == ["path"]
    assert list(models_by_name(client)) == ["tiny"]
    assert client.generate("still there").ids


def test_no_folders_no_loading(start, pb):
    daemon = start({"control.model_folders": "[]"})
    client = Client(pb, daemon.channel)
    error = expect_error(grpc.StatusCode.FAILED_PRECONDITION, lambda: load(client, "x.safetensors"))
    assert "control.model_folders" in error.details()


def test_no_room_beside_what_is_loaded(start, pb, folder):
    write_tiny_checkpoint(folder / "big.safetensors", layers=4, width=512, head_size=64)
    daemon = start({"control.model_folders": str(folder), "control.memory": "128MiB"})
    client = Client(pb, daemon.channel)
    error = expect_error(grpc.StatusCode.RESOURCE_EXHAUSTED, lambda: load(client, "big.safetensors"))
    assert details(error)["ErrorInfo"].reason == "MODEL_MEMORY" and "MiB" in error.details()
    assert list(models_by_name(client)) == ["tiny"]
    load(client, "second.safetensors")


# Unloading.

def test_unload(control, pb):
    _, client = control
    c = pb.control
    load(client, "second.safetensors")
    running = Running(client.stream("x", max_tokens=ENDLESS, model="second"))
    answer = client.control.UnloadModel(c.UnloadModelRequest(name="second"))
    assert answer.running == 1 and answer.default_model == "tiny"
    expect_error(grpc.StatusCode.NOT_FOUND, lambda: client.stream("x", model="second"))
    before = len(running.events)
    until(lambda: len(running.events) > before)  # it goes on
    running.cancel()
    expect_error(grpc.StatusCode.NOT_FOUND, lambda: client.control.UnloadModel(c.UnloadModelRequest(name="second")))
    expect_error(grpc.StatusCode.INVALID_ARGUMENT, lambda: client.control.UnloadModel(c.UnloadModelRequest()))


def test_unload_the_default_only_by_force(control, pb):
    daemon, client = control
    c = pb.control
    error = expect_error(grpc.StatusCode.FAILED_PRECONDITION,
                         lambda: client.control.UnloadModel(c.UnloadModelRequest(name="tiny")))
    assert details(error)["ErrorInfo"].reason == "DEFAULT_MODEL"
    load(client, "second.safetensors")
    answer = client.control.UnloadModel(c.UnloadModelRequest(name="tiny", force=True))
    assert answer.default_model == "second"
    assert client.generate("x").ids == client.generate("x", model="second").ids
    # Without any model: not ready, refused, and served again after a load.
    assert client.control.UnloadModel(c.UnloadModelRequest(name="second", force=True)).default_model == ""
    assert probe(daemon, "/readyz") == (503, "no model\n")
    error = expect_error(grpc.StatusCode.UNAVAILABLE, lambda: client.stream("x"))
    assert details(error)["ErrorInfo"].reason == "LOADING" and "RetryInfo" in details(error)
    load(client, "third.safetensors")
    assert probe(daemon, "/readyz") == (200, "ready\n")
    assert client.generate("x").ids


# Load.

def test_get_load(start, pb, steady_model):
    daemon = start({"engine.slots": 2}, model=steady_model)
    client = Client(pb, daemon.channel)
    idle = get_load(client)
    assert idle.serving and not idle.draining and not idle.loading and idle.not_serving_reason == ""
    [m] = idle.models
    assert (m.name, m.is_default, m.retired) == ("steady", True, False)
    assert (m.running, m.waiting, m.slots, m.slots_used) == (0, 0, 2, 0)
    assert m.bytes > 2_000_000 and m.fingerprint == models_by_name(client)["steady"].fingerprint
    running = [Running(client.stream("x", max_tokens=ENDLESS)) for _ in range(2)]
    queued = client.stream("yyyyy", max_tokens=4, timeout=60)
    next(queued)
    until(lambda: get_load(client).models[0].tokens_per_second > 5)
    [m] = get_load(client).models
    assert (m.running, m.waiting, m.waiting_tokens, m.slots_used) == (2, 1, 5, 2)
    assert m.queue_age.ToTimedelta().total_seconds() > 0
    assert m.retry_delay.ToTimedelta().total_seconds() > 0
    for one in running:
        one.cancel()
    list(queued)
    until(lambda: get_load(client).models[0].requests_per_second > 0)


# Drain and Undrain.

def test_drain_and_undrain(start, pb, steady_model):
    daemon = start(model=steady_model)
    client = Client(pb, daemon.channel)
    c = pb.control
    health = health_pb2_grpc.HealthStub(daemon.channel)
    running = Running(client.stream("x", max_tokens=3000, timeout=300))
    answer = client.control.Drain(c.DrainRequest())
    assert (answer.running, answer.waiting) == (1, 0)
    # At once, not at the next look around.
    assert health.Check(health_pb2.HealthCheckRequest()).status == health_pb2.HealthCheckResponse.NOT_SERVING
    assert probe(daemon, "/readyz") == (503, "draining\n")
    assert probe(daemon, "/healthz") == (200, "ok\n")
    error = expect_error(grpc.StatusCode.UNAVAILABLE, lambda: client.stream("y"))
    assert details(error)["ErrorInfo"].reason == "DRAINING" and "RetryInfo" in details(error)
    found = get_load(client)
    assert found.draining and not found.serving and found.not_serving_reason == "draining"
    assert running.end().finished.reason == pb.gen.FINISH_REASON_LENGTH
    assert daemon.process.poll() is None
    client.control.Undrain(c.UndrainRequest())
    assert health.Check(health_pb2.HealthCheckRequest()).status == health_pb2.HealthCheckResponse.SERVING
    assert probe(daemon, "/readyz") == (200, "ready\n")
    assert client.generate("y").ids


def test_drain_with_a_limit_ends_what_runs(control, pb, folder):
    _, client = control
    c = pb.control
    running = Running(client.stream("x", max_tokens=ENDLESS))
    client.control.Drain(c.DrainRequest(timeout=duration_pb2.Duration(nanos=200_000_000)))
    # A model that is loaded meanwhile drains too.
    load(client, "second.safetensors")
    expect_error(grpc.StatusCode.UNAVAILABLE, lambda: client.stream("x", model="second"))
    assert running.end().finished.reason == pb.gen.FINISH_REASON_DRAINED
    client.control.Undrain(c.UndrainRequest())
    assert client.generate("x").ids and client.generate("x", model="second").ids
    expect_error(grpc.StatusCode.INVALID_ARGUMENT,
                 lambda: client.control.Drain(c.DrainRequest(timeout=duration_pb2.Duration(seconds=-1))))


# A stall.

def test_a_stalled_engine_is_not_serving_and_recovers(start, pb, steady_model):
    # Long steps instead of a fault: a whole chunk of 2,048 tokens takes far longer than the limit.
    daemon = start({"engine.stall": "100ms", "engine.max_step_tokens": 2048, "engine.max_prefill_chunk": 2048,
                    "engine.target_inter_token": "60s", "engine.slots": 1}, model=steady_model)
    client = Client(pb, daemon.channel)
    health = health_pb2_grpc.HealthStub(daemon.channel)
    watch = health.Watch(health_pb2.HealthCheckRequest(), timeout=100)
    assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
    request = client.stream("x" * 60000, max_tokens=1, timeout=100)
    assert next(watch).status == health_pb2.HealthCheckResponse.NOT_SERVING
    daemon.wait_for_line("an engine has stalled")
    # Told while it lasts: the probes do not wait for the engine.
    until(lambda: probe(daemon, "/healthz") == (503, "stalled\n"))
    until(lambda: probe(daemon, "/readyz") == (503, "stalled\n"))
    request.cancel()  # it ends after the step at hand
    while next(watch).status != health_pb2.HealthCheckResponse.SERVING:
        pass
    assert probe(daemon, "/healthz") == (200, "ok\n")
    until(lambda: probe(daemon, "/readyz") == (200, "ready\n"))


# HTTP.

def test_probes_under_load(start, pb, steady_model):
    """They wait for no step and no request: all slots are taken, long prompts are read, the queue is full."""
    # Nobody is paused or dropped as a slow reader, and no request ends by itself; a step may take as long as it likes.
    daemon = start({"engine.slots": 64, "limits.queued": 8, "limits.outbox_tokens": 1 << 20, "engine.stall": "600s"},
                   model=steady_model)
    client = Client(pb, daemon.channel)
    decoding = [Running(client.stream("x", max_tokens=ENDLESS, timeout=None)) for _ in range(60)]
    prefilling = [client.stream("x" * 60000, max_tokens=ENDLESS, timeout=None) for _ in range(4)]
    until(lambda: get_load(client).models[0].running == 64)  # what has no slot yet is in the queue
    queued = [client.stream("y", max_tokens=ENDLESS, timeout=None) for _ in range(8)]

    def full():
        load = get_load(client).models[0]
        return (load.running, load.waiting) == (64, 8)

    until(full)
    took = []
    for _ in range(10):
        for path, word in (("/readyz", "ready"), ("/healthz", "ok"), ("/metrics", "skein_requests_running")):
            began = time.monotonic()
            code, text = probe(daemon, path)
            took.append(time.monotonic() - began)
            assert code == 200 and word in text
    assert full()  # still
    print(f"probes: median {sorted(took)[15] * 1e3:.1f} ms, longest {max(took) * 1e3:.1f} ms")
    # A request takes minutes here.
    assert sorted(took)[15] < 1
    for stream in prefilling + queued:
        stream.cancel()
    for one in decoding:
        one.cancel()


def test_http_paths(shared):
    assert probe(shared, "/healthz") == (200, "ok\n")
    assert probe(shared, "/readyz") == (200, "ready\n")
    assert probe(shared, "/")[0] == 404 and probe(shared, "/metrics/x")[0] == 404
    assert "skein_build_info" in probe(shared, "/metrics")[1]
    url = shared.metrics.replace("/metrics", "/healthz")
    with urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=60) as answer:
        assert answer.status == 200 and answer.read() == b"" and answer.headers["Content-Length"] == "3"
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(urllib.request.Request(url, method="DELETE"), timeout=60)
    assert caught.value.code == 405


# An address of its own.

def test_control_at_its_own_address(start, pb):
    daemon = start({"listen.control": "127.0.0.1:0"})
    address = re.search(r" control=(\S+)", "\n".join(daemon.lines)).group(1)
    assert address != daemon.address
    client = Client(pb, daemon.channel)
    expect_error(grpc.StatusCode.UNIMPLEMENTED, lambda: get_load(client))
    with grpc.insecure_channel(address) as channel:
        operator = Client(pb, channel)
        assert get_load(operator).serving
        expect_error(grpc.StatusCode.UNIMPLEMENTED, lambda: operator.stream("x"))
        operator.control.Drain(pb.control.DrainRequest())
    expect_error(grpc.StatusCode.UNAVAILABLE, lambda: client.stream("x"))


# The command line.

def test_skein_operates_a_server(control):
    daemon, _ = control

    def skein(*arguments, code=0):
        result = subprocess.run([SKEIN, *arguments, "--server", daemon.address], env=environment(), timeout=60,
                                capture_output=True, text=True)
        assert result.returncode == code, result
        return result.stdout + result.stderr

    assert "tiny (default): RWKV-7" in skein("models", "list")
    assert "second is live: RWKV-7" in skein("models", "load", "second.safetensors")
    assert "MODEL_EXISTS" in skein("models", "load", "second.safetensors", code=5)
    assert '"model":{"name":"second"' in skein("models", "load", "second.safetensors", "--replace", "--json")
    out = skein("server", "load")
    assert "serving" in out and "tiny (default): 0 running, 0 waiting" in out
    assert "unloaded second, 0 requests" in skein("models", "unload", "second")
    assert "no file 'x'" in skein("models", "load", "x", code=4)
    assert "draining: 0 running, 0 waiting" in skein("server", "drain", "--timeout", "5")
    assert "not serving: draining" in skein("server", "load")
    assert "serving again" in skein("server", "undrain")
    assert "in force: nothing" in skein("server", "reload")
    assert '"applied":[]' in skein("server", "reload", "--json")
