"""What is another tenant's is not there: whichever RPC and field brings its id, the caller is told what he is told of an id
that nobody has. One table, which has every field of every request that could bring one."""

import grpc
import pytest
from client import ENDLESS, Running, details, fresh_id
from test_security import Secured

# Strings in requests that name no conversation and no request: text, and what all tenants share.
OTHERS = {
    "Generate": ["model", "text.text", "messages.messages.content", "stopping.stop_strings", "constraint.regex",
                 "constraint.json_schema", "constraint.grammar", "thinking", "prompt_state"],
    "Score": ["model", "text.text", "messages.messages.content", "continuations.text.text", "thinking"],
    "Tokenize": ["model", "text", "bytes", "messages.messages.content", "thinking"],
    "Detokenize": ["model"],
    "Create": ["prompt_state", "model"],
    "Get": ["page_token"],  # the number of a version
    "LoadModel": ["path", "name", "weights"],
    "UnloadModel": ["name"],
}


def score(client, **fields):
    g = client.pb.gen
    request = g.ScoreRequest(text=g.Text(text="x"), continuations=[g.Continuation(text=g.Text(text="y"))], **fields)
    return [answer.total_logprob for answer in client.gen.Score(request, timeout=60)]


def of_its_own(client, new_id):
    c = client.pb.conv
    own = client.conv.Create(c.CreateConversationRequest()).id
    return client.conv.Fork(c.ForkConversationRequest(id=own, new_ids=[new_id])).conversations[0]


def listed(client, wanted, **fields):
    return wanted in [c.id for c in client.conv.List(client.pb.conv.ListConversationsRequest(**fields)).conversations]


# (client, id) -> what the caller learns; of a conversation, of a request that has ended, of one that runs.
CONVERSATION = {
    "Generate.conversation_id": lambda a, i: a.generate("x", conversation=i, commit=a.pb.gen.COMMIT_MODE_NEVER).ids,
    "Score.conversation_id": lambda a, i: score(a, conversation_id=i),
    "Create.id": lambda a, i: a.conv.Create(a.pb.conv.CreateConversationRequest(id=i)).tokens,
    "Create.conversation.conversation_id": lambda a, i: a.conv.Create(a.pb.conv.CreateConversationRequest(
        conversation=a.pb.conv.ForkSource(conversation_id=i))).tokens,
    "Get.id": lambda a, i: [v.input for v in a.history(i).versions],
    "List.id_prefix": lambda a, i: listed(a, i, id_prefix=i),
    "List.page_token": lambda a, i: listed(a, i, page_token=i[:-1]),
    "Delete.id": lambda a, i: a.conv.Delete(a.pb.conv.DeleteConversationRequest(id=i)),
    "Fork.id": lambda a, i: a.conv.Fork(a.pb.conv.ForkConversationRequest(id=i)).conversations[0].tokens,
    "Fork.new_ids": lambda a, i: of_its_own(a, i).tokens,
    "Rewind.id": lambda a, i: a.conv.Rewind(a.pb.conv.RewindConversationRequest(id=i)).tokens,
}
ENDED = {
    "Generate.request_id": lambda a, i: a.generate("another", request_id=i).ids,
    "Attach.request_id": lambda a, i: [e.delta.text for e in a.gen.Attach(
        a.pb.gen.AttachRequest(request_id=i), timeout=60)],
    # Nobody is found by it, not even by its owner.
    "Score.request_id": lambda a, i: score(a, request_id=i),
}
RUNNING = {
    "Cancel.request_id": lambda a, i: a.gen.Cancel(a.pb.gen.CancelRequest(request_id=i)).cancelled,
}


def strings(message, prefix=""):
    """Paths of all strings in a message."""
    for field in message.fields:
        if field.message_type is not None:
            yield from strings(field.message_type, f"{prefix}{field.name}.")
        elif field.type in (field.TYPE_STRING, field.TYPE_BYTES):
            yield prefix + field.name


def test_every_field_is_in_the_table(pb):
    found = {f"{method.name}.{path}" for module in [pb.gen, pb.conv, pb.info, pb.control]
             for service in module.DESCRIPTOR.services_by_name.values()
             for method in service.methods for path in strings(method.input_type)}
    named = CONVERSATION.keys() | ENDED.keys() | RUNNING.keys()
    assert found == named | {f"{method}.{path}" for method, paths in OTHERS.items() for path in paths}, \
        "a new field needs a row"


@pytest.fixture(scope="module")
def secured(model, tmp_path_factory):
    one = Secured(tmp_path_factory.mktemp("tenants"), model)
    yield one
    one.daemon.stop()


@pytest.fixture
def alice(secured, pb):
    return secured.client(pb, "alice")


@pytest.fixture
def bob(secured, pb):
    return secured.client(pb, "bob")


def learns(call, client, name):
    """What a caller learns, with the id left out."""
    try:
        return call(client, name)
    except grpc.RpcError as error:
        info = details(error)["ErrorInfo"]
        metadata = {key: value.replace(name, "ID") for key, value in info.metadata.items()}
        return error.code(), error.details().replace(name, "ID"), info.reason, metadata


def is_found(call, client, name):
    """Whether a caller learns anything else than of an id that nobody has."""
    return learns(call, client, name) != learns(call, client, fresh_id())


@pytest.mark.parametrize("row", CONVERSATION)
def test_conversations(alice, bob, row):
    name = fresh_id()
    alice.generate("one", conversation=name, create_if_missing=True)
    alice.generate("two", conversation=name)
    before = alice.history(name)
    assert not is_found(CONVERSATION[row], bob, name)
    assert alice.history(name) == before
    assert is_found(CONVERSATION[row], alice, name)


def test_conversations_that_went(alice, bob):
    """What is told of them is told their tenant alone."""
    name = fresh_id()
    alice.generate("one", conversation=name, create_if_missing=True)
    alice.conv.Delete(alice.pb.conv.DeleteConversationRequest(id=name))
    assert not is_found(CONVERSATION["Get.id"], bob, name)
    assert is_found(CONVERSATION["Get.id"], alice, name)


@pytest.mark.parametrize("row", ENDED)
def test_requests_that_have_ended(alice, bob, row):
    name = fresh_id()
    first = alice.generate("secret", request_id=name)
    assert not is_found(ENDED[row], bob, name)
    assert is_found(ENDED[row], alice, name) == (row != "Score.request_id")
    again = alice.generate("secret", request_id=name)  # the result that was kept
    assert (again.started, again.ids, again.finished) == (first.started, first.ids, first.finished)


@pytest.mark.parametrize("row", RUNNING)
def test_requests_that_run(alice, bob, row):
    name = fresh_id()
    running = Running(alice.stream("x", max_tokens=ENDLESS, request_id=name))
    assert not is_found(RUNNING[row], bob, name)
    assert is_found(RUNNING[row], alice, name)
    assert running.end().finished.reason == alice.pb.gen.FINISH_REASON_CANCELLED
