"""What each RPC answers before the first model is there, and while another one is loaded: UNAVAILABLE with RetryInfo where
the model that it needs is on its way, as always where it needs none.

A declared prompt state is computed before its model goes live, so a long one makes a load last for seconds."""

import threading

import grpc
import pytest
from checkpoint import write_tiny_checkpoint
from client import Client, details, expect_error, fresh_id
from daemon import Daemon, run
from grpc_health.v1 import health_pb2, health_pb2_grpc
from status_rows import C, Row, attach, check, control, conversations, generate
from test_control import get_load, load, models_by_name, probe, until
from test_metrics import scrape, series
from test_signals import free_port

LONG_PROMPT = "be kind " * 5000
ANY = "the model is being loaded; try again later"


def info(method, make):
    return lambda client, world: getattr(client.info, method)(make(client.pb.info), timeout=60)


def score(**fields):
    def call(client, world):
        g = client.pb.gen
        return client.gen.Score(g.ScoreRequest(
            text=g.Text(text="a"), continuations=[g.Continuation(text=g.Text(text="b"))], **fields), timeout=60)
    return call


def text(method, **fields):
    """Tokenize or Detokenize."""
    def call(client, world):
        g = client.pb.gen
        request = g.TokenizeRequest(text="a", **fields) if method == "Tokenize" else g.DetokenizeRequest(ids=[98], **fields)
        return getattr(client.gen, method)(request, timeout=60)
    return call


def needs(method, call, message=ANY):
    return Row(method, call, C.UNAVAILABLE, "LOADING", message, retry=True)


def named(name):
    return f"model '{name}' is being loaded; try again later"


def create(**fields):
    return conversations("Create", lambda c, w: c.CreateConversationRequest(**fields))


def get(**fields):
    return conversations("Get", lambda c, w: c.GetConversationRequest(id=w["conversation"], **fields))


# While the first model, "m", is being loaded: what is refused...
REFUSED = [
    needs("Generate", generate()),
    needs("Generate", generate(model="m"), named("m")),
    needs("Generate", generate(conversation=lambda w: w["conversation"])),
    Row("Generate", generate(model="gpt"), C.NOT_FOUND, "MODEL_NOT_FOUND", "model 'gpt' is not served here; none is"),
    Row("Generate", lambda client, world: world["daemon"].channel.unary_stream("/skein.v1.Generation/Generate")(
        b"\x0a\xff\xff\xff", timeout=60), C.INVALID_ARGUMENT, "MALFORMED_MESSAGE",
        "the bytes are not a valid skein.v1.GenerateRequest"),
    Row("Attach", attach("nobody"), C.NOT_FOUND, "REQUEST_NOT_FOUND", "no request 'nobody' is known"),
    needs("Score", score()),
    needs("Score", score(model="m"), named("m")),
    needs("Tokenize", text("Tokenize")),
    needs("Tokenize", text("Tokenize", model="m"), named("m")),
    needs("Detokenize", text("Detokenize")),
    needs("Detokenize", text("Detokenize", model="m"), named("m")),
    needs("Create", create(prompt_state="long")),
    needs("Get", get(view=2)),
    needs("GetServerInfo", info("GetServerInfo", lambda i: i.GetServerInfoRequest())),
    needs("ListModels", info("ListModels", lambda i: i.ListModelsRequest())),
    Row("LoadModel", control("LoadModel", lambda c, w: c.LoadModelRequest(path="other.safetensors")), C.ABORTED,
        "LOAD_IN_PROGRESS", "another model is being loaded; one at a time"),
    needs("UnloadModel", control("UnloadModel", lambda c, w: c.UnloadModelRequest(name="m")), named("m")),
]
# ...and what is answered, as it needs no model.
ANSWERED = {
    "Create": create(),
    "Get": get(),
    "List": conversations("List", lambda c, w: c.ListConversationsRequest()),
    "Fork": conversations("Fork", lambda c, w: c.ForkConversationRequest(id=w["conversation"])),
    "Rewind": conversations("Rewind", lambda c, w: c.RewindConversationRequest(id=w["conversation"])),
    "Delete": conversations("Delete", lambda c, w: c.DeleteConversationRequest(
        id=w["client"].conv.Create(c.CreateConversationRequest()).id)),
    "Cancel": lambda client, world: client.gen.Cancel(client.pb.gen.CancelRequest(request_id="nobody")),
    "GetLoad": control("GetLoad", lambda c, w: c.GetLoadRequest()),
    "Drain": control("Drain", lambda c, w: c.DrainRequest()),
    "Undrain": control("Undrain", lambda c, w: c.UndrainRequest()),
    "ReloadConfig": control("ReloadConfig", lambda c, w: c.ReloadConfigRequest()),
}
# Services whose methods have to be in one of the two.
SERVICES = [("gen", "Generation"), ("conv", "Conversations"), ("info", "Info"), ("control", "Control")]


def health(daemon):
    return health_pb2_grpc.HealthStub(daemon.channel).Check(health_pb2.HealthCheckRequest(), timeout=60).status


def test_every_method_is_in_a_table(pb):
    methods = {m.name for short, name in SERVICES
               for m in getattr(pb, short).DESCRIPTOR.services_by_name[name].methods}
    missing = methods - {row.name for row in REFUSED} - set(ANSWERED)
    assert missing == {"Export", "Import"} & methods, "a new method needs a row"


@pytest.fixture
def folder(tmp_path):
    models = tmp_path / "checkpoints"
    models.mkdir()
    write_tiny_checkpoint(models / "other.safetensors", layers=3, width=384, head_size=64, seed=2)
    return models


def slow(model, prompt=LONG_PROMPT):
    """What makes the load of this model last."""
    return {"prompts": f"[{{name: long, text: {prompt!r}, model: {model}}}]"}


def test_before_the_first_model(pb, steady_model, folder, tmp_path):
    daemon = Daemon(steady_model, tmp_path, {"model.name": "m", "control.model_folders": str(folder), **slow("m")},
                    until="listening")
    try:
        client = Client(pb, daemon.channel)
        world = {"daemon": daemon, "client": client,
                 "conversation": client.conv.Create(pb.conv.CreateConversationRequest()).id}
        for row in REFUSED:
            check(row, world, client)
        for method, call in ANSWERED.items():
            assert call(client, world) is not None, method
        found = get_load(client)
        assert (found.loading, found.serving, found.draining, found.not_serving_reason) == (True, False, False, "loading"), \
            "the model was there before the tables were through: a longer prompt is needed"
        assert health(daemon) == health_pb2.HealthCheckResponse.NOT_SERVING
        assert probe(daemon, "/readyz") == (503, "loading\n") and probe(daemon, "/healthz") == (200, "ok\n")
        daemon.wait_for_line(" ready ", timeout=120)
        assert health(daemon) == health_pb2.HealthCheckResponse.SERVING
        assert probe(daemon, "/readyz") == (200, "ready\n")
        # The same calls, of which a client repeats those that asked it to.
        for row in REFUSED:
            if row.code == C.UNAVAILABLE and row.name != "UnloadModel":
                result = row.call(client, world)
                list(result) if hasattr(result, "__next__") else None
        assert client.generate("x", conversation=world["conversation"]).ids
    finally:
        daemon.stop()


def test_two_models_of_one_name_do_not_start(model, tmp_path):
    ended = run("--model", str(model), "--set", "model.name=m", "--set", f"models=[{{path: {model}, name: m}}]",
                "--set", "listen.address=127.0.0.1:0", "--set", "listen.metrics=127.0.0.1:0", cwd=tmp_path)
    assert ended.returncode == 1 and "models: two models have the name 'm'" in ended.stderr


def test_models_that_do_not_fit_do_not_start(model, tmp_path):
    """Told before the memory is taken: the first one, or one beside it."""
    write_tiny_checkpoint(tmp_path / "big.safetensors", layers=4, width=512, head_size=64)
    for settings, name in [({"control.memory": "32MiB"}, f"m' ({model})"),
                           ({"control.memory": "128MiB", "models": f"[{{path: {tmp_path}/big.safetensors}}]"},
                            f"big' ({tmp_path}/big.safetensors)")]:
        settings.update({"model.name": "m", "listen.address": "127.0.0.1:0", "listen.metrics": "127.0.0.1:0"})
        arguments = [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
        ended = run("--model", str(model), *arguments, cwd=tmp_path)
        assert ended.returncode == 1
        last = ended.stderr.strip().splitlines()[-1]
        assert f"model '{name} needs up to " in last and " MiB are left: serve fewer (models), with fewer engine.slots" in last


def test_a_signal_while_the_first_model_loads(pb, steady_model, tmp_path):
    daemon = Daemon(steady_model, tmp_path, {"model.name": "m", **slow("m")}, until="listening")
    try:
        client = Client(pb, daemon.channel)
        expect_error(C.UNAVAILABLE, lambda: client.stream("x"))
        daemon.terminate()
        assert daemon.wait() == 128 + 15  # at once: nothing was accepted
    finally:
        daemon.stop()


def test_who_asks_from_the_start_is_never_told_that_the_model_is_unknown(pb, steady_model, tmp_path):
    address = f"127.0.0.1:{free_port()}"
    told, served = set(), threading.Event()

    def ask():
        """A new connection each time: gRPC itself would wait long between two attempts to connect."""
        while not served.is_set():
            with grpc.insecure_channel(address, options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
                try:
                    Client(pb, channel).generate("x", model="m")
                    served.set()
                except grpc.RpcError as error:
                    told.add(error.code())

    thread = threading.Thread(target=ask)
    thread.start()
    daemon = Daemon(steady_model, tmp_path, {"model.name": "m"}, listen=address)
    try:
        assert served.wait(60)
        assert told == {C.UNAVAILABLE}
    finally:
        served.set()
        thread.join()
        daemon.stop()


def test_a_client_with_a_retry_policy_waits_for_the_model(pb, model, tmp_path):
    """It comes while the model is loaded and is served by it, by gRPC's own retries."""
    policy = ('{"methodConfig": [{"name": [{}], "retryPolicy": {"maxAttempts": 5, "initialBackoff": "0.1s", '
              '"maxBackoff": "0.1s", "backoffMultiplier": 1, "retryableStatusCodes": ["UNAVAILABLE"]}}]}')

    def served(prompt):
        """Fails when it is there at once; False: it was not there before the last attempt, four seconds later."""
        daemon = Daemon(model, tmp_path, {"model.name": "m", **slow("m", prompt)}, until="listening")
        try:
            with grpc.insecure_channel(daemon.address, options=[("grpc.service_config", policy)]) as channel:
                ids = Client(pb, channel).generate("x").ids
            refused = [k for k in series(scrape(daemon)) if k.startswith("grpc_server_handled_total{")
                       and 'grpc_method="Generate"' in k and 'grpc_code="UNAVAILABLE"' in k]
            assert refused, "it was there at once"
            return len(ids) == 8
        except grpc.RpcError as error:
            assert details(error)["ErrorInfo"].reason == "LOADING"
            return False
        finally:
            daemon.stop()

    # On a slow machine a shorter one lasts as long.
    assert any(served(LONG_PROMPT[:len(LONG_PROMPT) // shorter]) for shorter in (1, 4, 16))


def test_while_another_model_is_loaded(start, pb, steady_model, folder):
    """It is on its way, not unknown; who asks for what is there notices nothing."""
    daemon = start({"model.name": "m", "control.model_folders": str(folder), **slow("other")}, model=steady_model)
    client, c = Client(pb, daemon.channel), pb.control
    conversation = fresh_id()
    first = client.generate("x", conversation=conversation, create_if_missing=True).ids
    unknown = expect_error(C.NOT_FOUND, lambda: client.stream("x", model="other"))
    assert details(unknown)["ErrorInfo"].reason == "MODEL_NOT_FOUND"
    world = {"daemon": daemon, "client": client, "conversation": conversation}
    call = client.control.LoadModel(c.LoadModelRequest(path="other.safetensors"), timeout=300)
    until(lambda: get_load(client).loading)
    for row in [needs("Generate", generate(model="other"), named("other")), needs("Score", score(model="other"), named("other")),
                needs("Tokenize", text("Tokenize", model="other"), named("other")),
                needs("Detokenize", text("Detokenize", model="other"), named("other")),
                needs("Create", create(prompt_state="long", model="other"), named("other")),
                needs("UnloadModel", control("UnloadModel", lambda c, w: c.UnloadModelRequest(name="other")), named("other")),
                Row("LoadModel", control("LoadModel", lambda c, w: c.LoadModelRequest(path="other.safetensors", name="m2")),
                    C.ABORTED, "LOAD_IN_PROGRESS", "another model is being loaded; one at a time")]:
        check(row, world, client)
    assert client.generate("x").ids == client.generate("x", model="m").ids == first
    for answered in [score(), text("Tokenize"), text("Detokenize"), get(view=2)]:
        result = answered(client, world)
        list(result) if hasattr(result, "__next__") else None
    client.info.GetServerInfo(pb.info.GetServerInfoRequest())
    assert list(models_by_name(client)) == ["m"] and health(daemon) == health_pb2.HealthCheckResponse.SERVING
    # Without any other model all is as before the first one.
    client.control.UnloadModel(c.UnloadModelRequest(name="m", force=True))
    for row in REFUSED:
        if row.code == C.UNAVAILABLE and row.message == ANY:
            check(row, world, client)
    assert get_load(client).loading, "the model was there before the tables were through: a longer prompt is needed"
    assert probe(daemon, "/readyz") == (503, "no model\n")
    # Given up: nobody is told to wait for it.
    call.cancel()
    until(lambda: not get_load(client).loading)
    expect_error(C.NOT_FOUND, lambda: client.stream("x", model="other"))
    assert list(models_by_name(client)) == []


def test_while_a_model_is_replaced(start, pb, steady_model, folder):
    """What has the name serves until the new one is there."""
    daemon = start({"model.name": "m", "control.model_folders": str(folder)}, model=steady_model)
    client = Client(pb, daemon.channel)
    load(client, "other.safetensors", name="n")
    before = client.generate("x", model="n").ids
    replacing = client.control.LoadModel(pb.control.LoadModelRequest(path="other.safetensors", name="n", replace=True))
    answered = 0
    while get_load(client).loading or answered == 0:
        assert client.generate("x", model="n").ids == before
        answered += 1
    assert list(replacing)[-1].WhichOneof("event") == "model"
