"""Conversations: create, history, fork, rewind, regenerate, list, delete."""

import time

import grpc
from client import ENDLESS, details, expect_error, fresh_id


def two_turns(client):
    conversation = fresh_id()
    first = client.generate("one ", conversation=conversation, create_if_missing=True)
    second = client.generate("two ", conversation=conversation)
    return conversation, first, second


def test_create_and_get(client):
    c = client.pb.conv
    before = time.time()
    made = client.conv.Create(c.CreateConversationRequest())
    assert made.id and made.head_version == 0 and made.tokens == 0
    assert before - 5 < made.created.ToSeconds() < before + 5
    named = client.conv.Create(c.CreateConversationRequest(id=fresh_id()))
    error = expect_error(grpc.StatusCode.ALREADY_EXISTS,
                         lambda: client.conv.Create(c.CreateConversationRequest(id=named.id)))
    assert details(error)["ErrorInfo"].reason == "CONVERSATION_EXISTS"
    # A created one needs no create_if_missing.
    assert client.generate("hi", conversation=named.id).finished.version == 1


def test_history(client):
    conversation, first, second = two_turns(client)
    info = client.history(conversation)
    assert [(v.id, v.parent) for v in info.versions] == [(1, 0), (2, 1)]
    assert [v.input for v in info.versions] == ["one ", "two "]
    assert list(info.versions[0].output_token_ids) == first.ids
    assert list(info.versions[1].output_token_ids) == second.ids
    assert info.versions[1].output == second.text
    assert info.versions[1].tokens == info.tokens == 2 * (4 + 8)
    assert all(v.finish_reason == client.pb.gen.FINISH_REASON_LENGTH for v in info.versions)
    assert info.head_version == 2 and info.last_end == "length" and info.last_request_id == second.started.request_id
    assert not client.get(conversation).versions  # BASIC


def test_regenerate_makes_a_branch(client):
    conversation, _, second = two_turns(client)
    again = client.generate("two ", conversation=conversation, base_version=1)
    assert again.ids == second.ids
    assert again.started.version == 1 and again.finished.version == 3
    edited = client.generate("TWO ", conversation=conversation, base_version=1)
    assert edited.ids != second.ids
    from_start = client.generate("one two ", conversation=conversation, base_version=0)
    assert from_start.ids == client.generate("one two ").ids
    info = client.history(conversation)
    assert [(v.id, v.parent) for v in info.versions] == [(1, 0), (2, 1), (3, 1), (4, 1), (5, 0)]
    assert info.head_version == 5


def test_expected_version_guards(client):
    conversation, _, _ = two_turns(client)
    error = expect_error(grpc.StatusCode.FAILED_PRECONDITION,
                         lambda: client.stream("x", conversation=conversation, expected_version=1))
    assert details(error)["ErrorInfo"].reason == "VERSION_MISMATCH"
    assert details(error)["PreconditionFailure"].violations[0].type == "VERSION_MISMATCH"
    assert client.generate("x", conversation=conversation, expected_version=2).finished.version == 3


def test_fork_shares_the_past(client):
    c = client.pb.conv
    conversation, _, _ = two_turns(client)
    ids = [fresh_id(), fresh_id()]
    copies = client.conv.Fork(c.ForkConversationRequest(id=conversation, count=2, new_ids=ids)).conversations
    assert [copy.id for copy in copies] == ids
    answer = client.generate("three", conversation=ids[0])
    assert client.generate("three", conversation=ids[1]).ids == answer.ids
    assert client.get(conversation).head_version == 2  # as it was
    assert client.generate("three", conversation=conversation).ids == answer.ids
    old = client.conv.Create(c.CreateConversationRequest(
        conversation=c.ForkSource(conversation_id=conversation, version=1)))
    two = client.generate("two ", conversation=old.id)
    assert two.ids == list(client.history(conversation).versions[1].output_token_ids)


def test_rewind(client):
    c = client.pb.conv
    conversation, _, second = two_turns(client)
    info = client.conv.Rewind(c.RewindConversationRequest(id=conversation, version=1))
    assert info.head_version == 1
    assert client.generate("two ", conversation=conversation).ids == second.ids
    client.conv.Rewind(c.RewindConversationRequest(id=conversation, version=2))  # versions after it stay
    client.conv.Rewind(c.RewindConversationRequest(id=conversation, version=0))
    assert client.generate("abc", conversation=conversation).ids == client.generate("abc").ids
    error = expect_error(grpc.StatusCode.NOT_FOUND,
                         lambda: client.conv.Rewind(c.RewindConversationRequest(id=conversation, version=99)))
    assert details(error)["ErrorInfo"].reason == "VERSION_NOT_FOUND"


def test_regenerating_costs_nothing_however_often(client):
    conversation, _, second = two_turns(client)
    for _ in range(5):
        again = client.generate("two ", conversation=conversation, base_version=1)
        assert again.ids == second.ids
        assert again.started.restored_from in ("host", "device") and again.started.tokens_reused == 11
    versions = client.history(conversation).versions
    assert [v.id for v in versions if v.has_state] == [1, 5, 6, 7]  # conversations.history of them
    # Another answer is made again of its own turn.
    on = client.generate("three ", conversation=conversation, base_version=2)
    assert on.started.restored_from == "tokens" and on.started.tokens_reused == 11
    assert on.ids == client.generate("three ", conversation=conversation, base_version=7).ids


def test_an_evicted_state_is_rebuilt_from_tokens(start, pb):
    from client import Client

    client = Client(pb, start({"conversations.history": 1}).channel)
    conversation, _, second = two_turns(client)
    client.generate("three ", conversation=conversation)
    versions = client.history(conversation).versions
    assert [v.has_state for v in versions] == [False, False, True]
    again = client.generate("two ", conversation=conversation, base_version=1)
    assert again.ids == second.ids
    assert again.started.restored_from == "tokens"


def test_list_pages_by_prefix(client):
    c = client.pb.conv
    prefix = fresh_id() + "-"
    ids = [f"{prefix}{i}" for i in range(5)]
    for one in reversed(ids):
        client.conv.Create(c.CreateConversationRequest(id=one))
    seen, token = [], ""
    for _ in range(3):
        page = client.conv.List(c.ListConversationsRequest(id_prefix=prefix, page_size=2, page_token=token))
        seen += [one.id for one in page.conversations]
        token = page.next_page_token
    assert seen == ids and token == ""


def test_delete(client):
    c = client.pb.conv
    conversation, _, _ = two_turns(client)
    client.conv.Delete(c.DeleteConversationRequest(id=conversation))
    for call in [lambda: client.get(conversation), lambda: client.stream("x", conversation=conversation),
                 lambda: client.conv.Delete(c.DeleteConversationRequest(id=conversation))]:
        error = expect_error(grpc.StatusCode.NOT_FOUND, call)
        assert details(error)["ErrorInfo"].reason == "CONVERSATION_NOT_FOUND"


def test_busy(client):
    c = client.pb.conv
    conversation = fresh_id()
    stream = client.stream("x", conversation=conversation, create_if_missing=True, max_tokens=ENDLESS)
    next(stream)
    assert client.get(conversation).busy
    for call in [lambda: client.stream("y", conversation=conversation),
                 lambda: client.conv.Delete(c.DeleteConversationRequest(id=conversation))]:
        error = expect_error(grpc.StatusCode.ABORTED, call)
        assert details(error)["ErrorInfo"].reason == "CONVERSATION_BUSY"
    stream.cancel()
