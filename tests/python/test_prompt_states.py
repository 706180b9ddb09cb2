"""Named prompt states: declared in the configuration, computed once for each model, begun with by requests."""

import json
import signal
import subprocess
import time

import grpc
import pytest
from checkpoint import write_tiny_checkpoint
from client import Client, details, expect_error, fresh_id
from daemon import BUILD, run
from test_control import until
from test_metrics import scrape, series

GREETING = "You are kind and short. " * 20
RULES = "Answer in rhymes."
SKEIN = BUILD / "bin" / "skein"
PROMPTS = [{"name": "greeting", "text": GREETING}, {"name": "rules", "system": RULES}]


def declare(prompts):
    """As --set, and as a line of a config file."""
    return json.dumps(prompts)


@pytest.fixture
def client(start, pb):
    daemon = start({"prompts": declare(PROMPTS)})
    client = Client(pb, daemon.channel)
    client.address = daemon.address
    return client


def hot(client, seed=5):
    return client.pb.gen.Sampling(temperature=1.2, top_p=1.0, seed=seed)


def logprobs(client):
    return client.pb.gen.Output(logprobs=True)


def exact(turn):
    return [(token.id, token.logprob) for token in turn.tokens]


def states(client):
    models = client.info.ListModels(client.pb.info.ListModelsRequest()).models
    return {model.name: {state.name: state.tokens for state in model.prompt_states} for model in models}


def test_info_lists_them(client):
    assert states(client) == {"tiny": {"greeting": len(GREETING), "rules": len("System: " + RULES)}}


def test_bit_equal_to_the_same_text(client):
    fields = {"sampling": hot(client), "output": logprobs(client), "max_tokens": 24}
    same = client.generate(GREETING + "Hello", **fields)
    turn = client.generate("Hello", prompt_state="greeting", **fields)
    assert exact(turn) == exact(same)
    assert turn.started.tokens_reused == len(GREETING) - 1 and same.started.tokens_reused == 0
    assert turn.started.restored_from in ("host", "device")
    usage = turn.finished.usage
    assert (usage.prompt_tokens, usage.reused_tokens) == (5, len(GREETING) - 1)
    assert usage.conversation_tokens == len(GREETING) + 5 + 24
    # Nothing needs to be added.
    assert exact(client.generate(prompt_state="greeting", **fields)) == exact(client.generate(GREETING, **fields))


def test_system_messages_go_on_as_a_chat(client):
    g = client.pb.gen
    user = g.Message(role=g.ROLE_USER, content="Hello")
    system = g.Message(role=g.ROLE_SYSTEM, content=RULES)
    same = client.generate(messages=g.Messages(messages=[system, user]), output=logprobs(client))
    turn = client.generate(messages=g.Messages(messages=[user]), prompt_state="rules", output=logprobs(client))
    assert exact(turn) == exact(same)


def test_history_rewind_and_going_on(client):
    conversation = fresh_id()
    first = client.generate("Hello", conversation=conversation, create_if_missing=True, prompt_state="greeting")
    assert first.started.created and first.started.version == 0 and first.finished.version == 2
    versions = client.history(conversation).versions
    assert [v.prompt_state for v in versions] == ["greeting", ""]
    assert versions[0].input == GREETING and versions[0].output == "" and versions[0].parent == 0
    assert versions[1].parent == 1 and versions[1].input == "Hello"
    second = client.generate(" again", conversation=conversation)
    whole = [b + 1 for b in (GREETING + "Hello").encode()] + first.ids + [b + 1 for b in b" again"]
    assert second.ids == client.generate(ids=whole).ids
    client.conv.Rewind(client.pb.conv.RewindConversationRequest(id=conversation, version=1))
    assert client.generate("Hello", conversation=conversation).ids == first.ids


def test_a_state_that_left_memory_is_rebuilt(start, pb):
    client = Client(pb, start({"prompts": declare(PROMPTS), "conversations.budget": 1}).channel)
    conversation = fresh_id()
    first = client.generate("Hello", conversation=conversation, create_if_missing=True, prompt_state="greeting")
    assert first.started.tokens_reused == len(GREETING) - 1, "the declared state is not the conversations'"
    assert not any(v.has_state for v in client.history(conversation).versions)
    again = client.generate("Hello", conversation=conversation, base_version=1)
    assert again.started.restored_from == "tokens" and again.ids == first.ids


def test_create(client):
    c = client.pb.conv
    made = client.conv.Create(c.CreateConversationRequest(prompt_state="greeting", model="tiny"))
    assert made.head_version == 1 and made.tokens == len(GREETING) and made.model == "tiny"
    turn = client.generate("Hello", conversation=made.id)
    assert turn.started.version == 1 and turn.finished.version == 2
    assert turn.ids == client.generate(GREETING + "Hello").ids
    assert turn.finished.usage.reused_tokens == len(GREETING) - 1
    for request, field in [({"prompt_state": ""}, "prompt_state"), ({"model": "tiny"}, "model")]:
        error = expect_error(grpc.StatusCode.INVALID_ARGUMENT,
                             lambda: client.conv.Create(c.CreateConversationRequest(**request)))
        assert [v.field for v in details(error)["BadRequest"].field_violations] == [field]
    error = expect_error(grpc.StatusCode.NOT_FOUND,
                         lambda: client.conv.Create(c.CreateConversationRequest(prompt_state="greetings")))
    assert error.details() == "model 'tiny' has no prompt state 'greetings'; it has: greeting, rules"


def test_many_conversations_share_one_state(start, pb):
    daemon = start({"prompts": declare(PROMPTS)})
    client = Client(pb, daemon.channel)
    sizes = []
    for _ in range(3):
        client.conv.Create(pb.conv.CreateConversationRequest(prompt_state="greeting"))
        text = scrape(daemon)
        sizes.append([value for name, value in series(text).items()
                      if name.startswith("skein_state_cache_bytes") and 'tier="host"' in name][0])
    assert 0 < sizes[0] == sizes[1] == sizes[2]


def test_its_tokens_are_counted_apart(start, pb):
    daemon = start({"prompts": declare(PROMPTS)})
    client = Client(pb, daemon.channel)
    client.generate("Hello", prompt_state="greeting")
    values = series(scrape(daemon))
    assert values['skein_cached_tokens_total{model="tiny",source="prompt_state"}'] == len(GREETING) - 1
    assert values['skein_cached_tokens_total{model="tiny",source="conversation"}'] == 0
    assert values['skein_prompt_tokens_total{model="tiny"}'] == 5, "computing them at the start is no request"
    g = pb.gen
    parts = [g.Continuation(text=g.Text(text=text)) for text in ("one", "two", "three")]
    list(client.gen.Score(g.ScoreRequest(text=g.Text(text="x" * 50), continuations=parts)))
    values = series(scrape(daemon))
    assert values['skein_cached_tokens_total{model="tiny",source="score_prompt"}'] == 3 * 49
    assert values['skein_prompt_tokens_total{model="tiny"}'] == 5 + 50 + 3 + 3 + 5


def test_refusals(client):
    conversation = fresh_id()
    client.generate("Hello", conversation=conversation, create_if_missing=True)
    error = expect_error(grpc.StatusCode.FAILED_PRECONDITION,
                         lambda: client.stream("x", conversation=conversation, prompt_state="greeting"))
    assert details(error)["ErrorInfo"].reason == "CONVERSATION_NOT_EMPTY" and conversation in error.details()
    assert not client.get(conversation).busy
    error = expect_error(grpc.StatusCode.NOT_FOUND, lambda: client.stream("x", prompt_state="nobody"))
    assert details(error)["ErrorInfo"].reason == "PROMPT_STATE_NOT_FOUND"
    # A retry is the same request; another prompt state is another one.
    client.generate("x", request_id="one", prompt_state="greeting")
    assert client.generate("x", request_id="one", prompt_state="greeting").ids
    expect_error(grpc.StatusCode.ALREADY_EXISTS, lambda: client.stream("x", request_id="one", prompt_state="rules"))


@pytest.mark.parametrize("prompts,words", [
    ([{"name": "a"}], "either text or system"),
    ([{"name": "a", "text": "x", "system": "y"}], "either text or system"),
    ([{"text": "x"}], "a name"),
    ([{"name": "a", "text": "x"}, {"name": "a", "text": "y", "model": "m"}], "the name of prompts[0]"),
    ([{"name": "a", "txt": "x"}], "did you mean"),
])
def test_what_cannot_be_declared(tmp_path, prompts, words):
    (tmp_path / "config.yaml").write_text("prompts: " + declare(prompts) + "\n")
    result = run("--check-config", cwd=tmp_path)
    assert result.returncode == 1 and words in result.stderr


def test_a_system_message_needs_a_template(tmp_path):
    write_tiny_checkpoint(tmp_path / "plain.safetensors", chat_template="none")
    result = run("--model", tmp_path / "plain.safetensors", "--set", "prompts=" + declare(PROMPTS), "--set",
                 "listen.address=127.0.0.1:0", "--set", "listen.metrics=", cwd=tmp_path)
    assert result.returncode == 1
    assert "prompts[1] ('rules') does not fit model 'plain'" in result.stderr and "no chat template" in result.stderr


def test_models_that_come_later_and_reloads(start, pb, tmp_path):
    write_tiny_checkpoint(tmp_path / "other.safetensors", seed=2)
    config = tmp_path / "config.yaml"
    config.write_text("prompts: " + declare(PROMPTS) + f"\ncontrol:\n  model_folders: [{tmp_path}]\n")
    daemon = start()
    client = Client(pb, daemon.channel)
    before = client.generate("Hello", prompt_state="greeting")
    old = client.conv.Create(pb.conv.CreateConversationRequest(prompt_state="greeting")).id

    # Another model beside it, and in its place.
    path = str(tmp_path / "other.safetensors")
    for name, replace in [("second", False), ("tiny", True)]:
        load = client.control.LoadModel(pb.control.LoadModelRequest(path=path, name=name, replace=replace), timeout=60)
        assert list(load)[-1].model.prompt_states
        turn = client.generate("Hello", prompt_state="greeting", model=name)
        assert turn.ids == client.generate(GREETING + "Hello", model=name).ids != before.ids
        assert turn.started.tokens_reused == len(GREETING) - 1
    # What the model before it began is its own, and is rebuilt as any conversation.
    error = expect_error(grpc.StatusCode.FAILED_PRECONDITION, lambda: client.stream("Hello", conversation=old))
    assert details(error)["ErrorInfo"].reason == "MODEL_MISMATCH"
    rebuilt = client.generate("Hello", conversation=old, on_model_mismatch=pb.gen.ON_MODEL_MISMATCH_REBUILD)
    assert rebuilt.started.restored_from == "tokens" and rebuilt.ids == turn.ids

    # A reload: what is new can be used at once, what is unchanged stays computed.
    new = PROMPTS[:1] + [{"name": "second only", "text": "abc" * 30, "model": "second"}]
    config.write_text("prompts: " + declare(new) + f"\ncontrol:\n  model_folders: [{tmp_path}]\n")
    until(lambda: daemon.log().count("prompt state computed") == 3 * len(PROMPTS))  # of the first model, beside it, in its place
    daemon.process.send_signal(signal.SIGHUP)
    daemon.wait_for_line("configuration reloaded.*prompts")
    assert states(client) == {"tiny": {"greeting": len(GREETING)}, "second": {"greeting": len(GREETING), "second only": 90}}
    assert client.generate("x", prompt_state="second only", model="second").ids == client.generate("abc" * 30 + "x", model="second").ids
    daemon.wait_for_line('prompt state computed.*second only')
    end = time.monotonic() + 60
    while client.generate("x", prompt_state="second only", model="second").started.tokens_reused != 89:
        assert time.monotonic() < end
    assert daemon.log().count("prompt state computed") == 3 * len(PROMPTS) + 1
    # One that does not fit changes nothing.
    config.write_text("prompts: [{name: a, text: b}, {name: a, text: c}]\n")
    expect_error(grpc.StatusCode.INVALID_ARGUMENT,
                 lambda: client.control.ReloadConfig(pb.control.ReloadConfigRequest()))
    assert "greeting" in states(client)["tiny"]
    assert GREETING not in daemon.log() and "rhymes" not in daemon.log()


def test_a_reload_while_draining_computes_afterwards(start, pb, tmp_path):
    config = tmp_path / "config.yaml"
    config.write_text("prompts: []\n")
    daemon = start()
    client = Client(pb, daemon.channel)
    client.control.Drain(pb.control.DrainRequest())
    config.write_text("prompts: " + declare(PROMPTS) + "\n")
    assert list(client.control.ReloadConfig(pb.control.ReloadConfigRequest()).applied) == ["prompts"]
    assert set(states(client)["tiny"]) == {"greeting", "rules"}
    client.control.Undrain(pb.control.UndrainRequest())
    daemon.wait_for_line("prompt state computed.*rules")
    assert client.generate("x", prompt_state="greeting").started.tokens_reused == len(GREETING) - 1


def test_the_command_line_client(client):
    def skein(*arguments):
        result = subprocess.run([SKEIN, *arguments, "--server", client.address], capture_output=True, text=True, timeout=60)
        assert result.returncode == 0, result.stderr
        return result.stdout

    assert f"greeting, {len(GREETING)} tokens" in skein("info")
    sampling = ["-t", "0", "-n", "8", "--ignore-eos"]
    assert skein("generate", "Hello", "--prompt-state", "greeting", *sampling) == \
        skein("generate", GREETING + "Hello", *sampling)
    made = skein("conversations", "create", "mine", "--prompt-state", "greeting")
    assert made.startswith("mine: version 1, ")
    assert "prompt state greeting" in skein("conversations", "history", "mine")
    several = skein("generate", "Hello", "-c", "mine", "--num-sequences", "3", "--seed", "7", *sampling)
    assert sorted(line[:6] for line in several.splitlines() if line.startswith("--- ")) == \
        ["--- 0:", "--- 1:", "--- 2:"]
    first = skein("generate", "Hello", "--prompt-logprobs", "-n", "0").splitlines()
    assert len(first) == 5 and first[0].split() == ["73", '"H"'] and len(first[1].split()) == 3
    assert skein("conversations", "list", "--used-before", "10h") == ""
    assert "mine" in skein("conversations", "list", "--idle", "--with-state", "--used-since", "10h")
