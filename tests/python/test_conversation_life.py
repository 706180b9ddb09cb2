"""Conversations over time and between callers: waiting for a busy one, expiry and what is remembered, quotas, another
model's states, filters and pages."""

import threading
import time

import grpc
import pytest
from checkpoint import write_tiny_checkpoint
from client import ENDLESS, Client, Running, Turn, details, expect_error, fresh_id
from google.protobuf import duration_pb2, timestamp_pb2

ABORTED = grpc.StatusCode.ABORTED
NOT_FOUND = grpc.StatusCode.NOT_FOUND
INVALID = grpc.StatusCode.INVALID_ARGUMENT
PRECONDITION = grpc.StatusCode.FAILED_PRECONDITION
EXHAUSTED = grpc.StatusCode.RESOURCE_EXHAUSTED


def seconds(n):
    return duration_pb2.Duration(seconds=int(n), nanos=int(n % 1 * 1e9))


def until(condition, patience=60):
    end = time.monotonic() + patience
    while not condition():
        assert time.monotonic() < end, "it did not come true"
        time.sleep(0.02)


class Waiting:
    """A Generate with wait_if_busy, read in a thread of its own."""

    def __init__(self, client, text, conversation, **fields):
        fields.setdefault("timeout", 60)
        self.stream = client.stream(text, conversation=conversation, wait_if_busy=True, **fields)
        self.events, self.error = [], None
        self.thread = threading.Thread(target=self._read, daemon=True)
        self.thread.start()

    def _read(self):
        try:
            for event in self.stream:
                self.events.append(event)
        except grpc.RpcError as error:
            self.error = error

    def end(self):
        self.thread.join(60)
        assert not self.thread.is_alive()
        return self


def bad_fields(call):
    error = expect_error(INVALID, call)
    return [violation.field for violation in details(error)["BadRequest"].field_violations]


# Waiting for a busy conversation.

def test_turns_wait_in_the_order_of_arrival(client):
    conversation = fresh_id()
    holder = Running(client.stream("one", conversation=conversation, create_if_missing=True, max_tokens=ENDLESS,
                                   commit=client.pb.gen.COMMIT_MODE_KEEP_PARTIAL, timeout=60))
    waiting = []
    for i in range(3):
        waiting.append(Waiting(client, f"turn {i} ", conversation))
        until(lambda: client.get(conversation).waiting == i + 1)
    error = expect_error(ABORTED, lambda: client.stream("x", conversation=conversation))
    assert details(error)["ErrorInfo"].reason == "CONVERSATION_BUSY"
    until(lambda: all(w.events for w in waiting))
    assert [w.events[0].queued.position for w in waiting] == [0, 1, 2]
    client.gen.Cancel(client.pb.gen.CancelRequest(request_id=holder.events[0].started.request_id
                                                  or holder.events[1].started.request_id))
    for i, one in enumerate(waiting):
        one.end()
        assert one.error is None, one.error
        assert one.events[-1].finished.version == 2 + i
    assert [v.input for v in client.history(conversation).versions] == ["one", "turn 0 ", "turn 1 ", "turn 2 "]


def test_whoever_waits_can_leave(client):
    conversation = fresh_id()
    holder = Running(client.stream("one", conversation=conversation, create_if_missing=True, max_tokens=ENDLESS,
                                   timeout=60))
    gone = Waiting(client, "x", conversation)
    late = Waiting(client, "x", conversation, timeout=0.3)
    stopped = Waiting(client, "x", conversation, request_id="stop-" + conversation)
    until(lambda: gone.events and stopped.events)  # they wait
    gone.stream.cancel()
    assert late.end().error.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    assert client.gen.Cancel(client.pb.gen.CancelRequest(request_id="stop-" + conversation)).cancelled
    assert stopped.end().events[-1].finished.reason == client.pb.gen.FINISH_REASON_CANCELLED
    until(lambda: client.get(conversation).waiting == 0)
    holder.cancel()


def test_a_line_is_bounded(start, pb):
    client = Client(pb, start({"conversations.max_waiting": 1}).channel)
    conversation = fresh_id()
    holder = Running(client.stream("one", conversation=conversation, create_if_missing=True, max_tokens=ENDLESS,
                                   timeout=60))
    first = Waiting(client, "x", conversation)
    until(lambda: client.get(conversation).waiting == 1)
    error = expect_error(ABORTED, lambda: client.stream("y", conversation=conversation, wait_if_busy=True))
    assert details(error)["ErrorInfo"].reason == "CONVERSATION_BUSY"
    assert error.details() == (f"conversation '{conversation}' is in use and 1 requests wait for it already")
    holder.cancel()
    # The one that made it left nothing, and the one that waited does not make it.
    error = first.end().error
    assert error.code() == NOT_FOUND
    assert details(error)["ErrorInfo"].metadata["reason"] == "NOT_COMMITTED"


# Expiry, and what is remembered.

def test_an_idle_conversation_expires(start, pb):
    client = Client(pb, start({"conversations.ttl": "5s"}).channel)
    conversation = fresh_id()
    client.generate("one", conversation=conversation, create_if_missing=True)
    ever = client.conv.Create(pb.conv.CreateConversationRequest(ttl=seconds(0)))
    assert not ever.HasField("ttl") and not ever.HasField("expires")
    shown = client.get(conversation)
    assert shown.ttl.ToTimedelta().total_seconds() == 5
    assert shown.expires.ToNanoseconds() - shown.used.ToNanoseconds() == 5 * 10**9
    assert client.conv.List(pb.conv.ListConversationsRequest(id_prefix=conversation)).conversations
    time.sleep(5.1)
    for call in [lambda: client.get(conversation), lambda: client.stream("two", conversation=conversation),
                 lambda: client.conv.Fork(pb.conv.ForkConversationRequest(id=conversation))]:
        error = expect_error(NOT_FOUND, call)
        info = details(error)["ErrorInfo"]
        assert info.reason == "CONVERSATION_NOT_FOUND" and info.metadata["reason"] == "EXPIRED"
        seen = timestamp_pb2.Timestamp()
        seen.FromJsonString(info.metadata["last_seen"])
        assert abs(seen.ToSeconds() - shown.used.ToSeconds()) <= 1
        assert "not used for its ttl and expired" in error.details()
    assert not client.conv.List(pb.conv.ListConversationsRequest(id_prefix=conversation)).conversations
    assert client.get(ever.id).id == ever.id
    # The same id can begin anew, and then has no past.
    assert client.generate("again", conversation=conversation, create_if_missing=True).started.created
    assert client.get(conversation).head_version == 1


def test_ttl_of_a_conversation_and_use(client):
    c = client.pb.conv
    conversation = client.conv.Create(c.CreateConversationRequest(ttl=seconds(5.5))).id
    assert client.get(conversation).ttl.ToMilliseconds() == 5500
    for _ in range(6):
        time.sleep(1)
        client.generate("x", conversation=conversation)  # each use starts the time again
    copy = client.conv.Fork(c.ForkConversationRequest(id=conversation)).conversations[0]
    assert copy.ttl.ToMilliseconds() == 5500
    client.generate("x", conversation=conversation, ttl=seconds(0))
    assert not client.get(conversation).HasField("ttl")
    # One that is busy does not expire.
    busy = fresh_id()
    running = Running(client.stream("x", conversation=busy, create_if_missing=True, ttl=seconds(0.3), max_tokens=ENDLESS,
                                    timeout=60))
    time.sleep(0.8)
    shown = client.get(busy)
    assert shown.busy and not shown.HasField("expires")
    running.cancel()


def test_deleted_and_never_committed_are_told(client):
    c = client.pb.conv
    conversation = fresh_id()
    client.generate("one", conversation=conversation, create_if_missing=True)
    client.conv.Delete(c.DeleteConversationRequest(id=conversation))
    error = expect_error(NOT_FOUND, lambda: client.get(conversation))
    assert details(error)["ErrorInfo"].metadata["reason"] == "DELETED"
    assert {"last_seen", "gone"} <= set(details(error)["ErrorInfo"].metadata)
    tried = fresh_id()
    client.generate("x", conversation=tried, create_if_missing=True, commit=client.pb.gen.COMMIT_MODE_NEVER)
    error = expect_error(NOT_FOUND, lambda: client.get(tried))
    assert details(error)["ErrorInfo"].metadata["reason"] == "NOT_COMMITTED"
    error = expect_error(NOT_FOUND, lambda: client.get(fresh_id()))
    assert not details(error)["ErrorInfo"].metadata


# Quotas.

def test_quotas_of_tenants(start, pb, tmp_path):
    from test_security import TokenClient, new_token

    clients, lines = {}, []
    for name, limit in {"small": "conversations: 2", "tiny": "bytes: 4KiB", "free": ""}.items():
        token, line = new_token(tmp_path, name)
        lines.append(line[:-1] + ", quotas: {" + limit + "}}" if limit else line)
        clients[name] = token
    daemon = start({"auth.tokens": "[" + ", ".join(lines) + "]"})
    small, tiny, free = (TokenClient(pb, daemon.channel, clients[name]) for name in ["small", "tiny", "free"])
    first = fresh_id()
    small.generate("x", conversation=first, create_if_missing=True)
    small.conv.Create(pb.conv.CreateConversationRequest())
    for call in [lambda: small.conv.Create(pb.conv.CreateConversationRequest()),
                 lambda: small.conv.Fork(pb.conv.ForkConversationRequest(id=first)),
                 lambda: small.stream("x", conversation=fresh_id(), create_if_missing=True)]:
        error = expect_error(EXHAUSTED, call)
        assert details(error)["ErrorInfo"].reason == "TENANT_QUOTA"
        assert error.details() == "your quota is 2 conversations (quotas.conversations); delete some first"
    small.generate("y", conversation=first)  # what is there goes on
    for _ in range(3):
        free.conv.Create(pb.conv.CreateConversationRequest())
    full = fresh_id()
    tiny.generate("x", conversation=full, create_if_missing=True)
    with pytest.raises(grpc.RpcError) as refused:
        for _ in range(20):
            tiny.generate("x" * 50, conversation=full)
    assert refused.value.code() == EXHAUSTED
    assert details(refused.value)["ErrorInfo"].reason == "TENANT_QUOTA"
    assert tiny.get(full).state_bytes <= 4096
    kept = tiny.get(full).head_version
    assert kept >= 2
    small.conv.Delete(pb.conv.DeleteConversationRequest(id=first))
    small.conv.Create(pb.conv.CreateConversationRequest())


# Another model's states.

@pytest.fixture
def two_models(start, pb, tmp_path):
    """A client of a server with two models of one vocabulary, and the other one's name."""
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    write_tiny_checkpoint(folder / "second.safetensors", seed=2)
    client = Client(pb, start({"control.model_folders": str(folder)}).channel)
    list(client.control.LoadModel(pb.control.LoadModelRequest(path="second.safetensors", name="other"), timeout=60))
    return client


def test_another_model_fails_or_rebuilds(two_models):
    client = two_models
    g = client.pb.gen
    conversation = fresh_id()
    first = client.generate("one two ", conversation=conversation, create_if_missing=True)
    mine = client.get(conversation)
    assert mine.model and mine.model != "other" and len(mine.model_fingerprint) == 16
    for mode in [g.ON_MODEL_MISMATCH_UNSPECIFIED, g.ON_MODEL_MISMATCH_FAIL]:
        error = expect_error(PRECONDITION, lambda: client.stream("three", conversation=conversation, model="other",
                                                                 on_model_mismatch=mode))
        assert details(error)["ErrorInfo"].reason == "MODEL_MISMATCH"
        violation = details(error)["PreconditionFailure"].violations[0]
        assert violation.type == "MODEL_MISMATCH" and mine.model_fingerprint in violation.description
    ids = list(client.history(conversation).versions[0].input_token_ids) + first.ids
    rebuilt = client.generate("three", conversation=conversation, model="other",
                              on_model_mismatch=g.ON_MODEL_MISMATCH_REBUILD)
    assert rebuilt.started.restored_from == "tokens" and rebuilt.started.tokens_reused == 0
    whole = ids + list(client.history(conversation).versions[1].input_token_ids)
    assert rebuilt.ids == client.generate(ids=whole, model="other").ids
    shown = client.history(conversation)
    assert shown.model == "other" and shown.model_fingerprint != mine.model_fingerprint
    assert [v.model_fingerprint for v in shown.versions] == [mine.model_fingerprint, shown.model_fingerprint]
    # Each goes on from its own version as if nothing had been.
    again = client.generate("x", conversation=conversation, base_version=1)
    assert again.started.restored_from in ("host", "device")
    assert client.generate("y", conversation=conversation, base_version=2, model="other").started.version == 2


# Filters and pages.

def test_list_filters(client):
    c = client.pb.conv
    prefix = fresh_id() + "-"
    client.conv.Create(c.CreateConversationRequest(id=prefix + "empty"))
    time.sleep(0.05)
    middle = timestamp_pb2.Timestamp()
    middle.GetCurrentTime()
    client.generate("x", conversation=prefix + "kept", create_if_missing=True)
    running = Running(client.stream("x", conversation=prefix + "busy", create_if_missing=True, max_tokens=ENDLESS,
                                    timeout=60))

    def ids(**filters):
        found = client.conv.List(c.ListConversationsRequest(id_prefix=prefix, **filters)).conversations
        return [one.id[len(prefix):] for one in found]

    assert ids() == ["busy", "empty", "kept"]
    assert ids(busy=True) == ["busy"]
    assert ids(busy=False) == ["empty", "kept"]
    assert ids(has_state=True) == ["kept"]
    assert ids(has_state=False) == ["busy", "empty"]
    assert ids(used_since=middle) == ["busy", "kept"]
    assert ids(used_before=middle) == ["empty"]
    assert ids(used_since=middle, busy=False, page_size=1) == ["kept"]
    running.cancel()


def test_pages_stay_right_while_things_change(client):
    c = client.pb.conv
    prefix = fresh_id() + "-"
    ids = [f"{prefix}{i:02d}" for i in range(30)]
    for one in ids:
        client.conv.Create(c.CreateConversationRequest(id=one))
    seen, token = [], ""
    while True:
        page = client.conv.List(c.ListConversationsRequest(id_prefix=prefix, page_size=7, page_token=token))
        seen += [one.id for one in page.conversations]
        token = page.next_page_token
        client.conv.Delete(c.DeleteConversationRequest(id=seen[-1]))  # also the one that the token names
        if not token:
            break
        client.conv.Create(c.CreateConversationRequest(id=f"{prefix}-{len(seen)}"))  # before all of them
    assert seen == ids


def test_history_in_pages(client):
    c = client.pb.conv
    conversation = fresh_id()
    for _ in range(5):
        client.generate("x", conversation=conversation, create_if_missing=True, max_tokens=1)
    seen, token = [], ""
    for size in [2, 2, 2]:
        page = client.conv.Get(c.GetConversationRequest(id=conversation, view=c.VIEW_HISTORY, page_size=size,
                                                        page_token=token))
        seen.append([v.id for v in page.versions])
        token = page.next_page_token
        assert page.head_version == 5
    assert seen == [[1, 2], [3, 4], [5]] and token == ""
    assert len(client.history(conversation).versions) == 5


def test_long_histories_fit_in_messages(client):
    """A page ends early, so that it stays below the 4 MiB that clients receive by default."""
    c = client.pb.conv
    conversation = fresh_id()
    for _ in range(5):
        client.generate("x" * 25000, conversation=conversation, create_if_missing=True, max_tokens=0, timeout=120)
    seen, token, pages = [], "", 0
    while pages == 0 or token:
        page = client.conv.Get(c.GetConversationRequest(id=conversation, view=c.VIEW_HISTORY, page_token=token))
        assert page.ByteSize() < 4 << 20
        seen += [v.id for v in page.versions]
        token, pages = page.next_page_token, pages + 1
    assert seen == [1, 2, 3, 4, 5] and pages == 2


def test_bad_fields(client):
    c = client.pb.conv
    name = fresh_id()
    client.conv.Create(c.CreateConversationRequest(id=name))
    negative = duration_pb2.Duration(seconds=-1)
    assert bad_fields(lambda: client.conv.Create(c.CreateConversationRequest(ttl=negative))) == ["ttl"]
    assert bad_fields(lambda: client.conv.Fork(c.ForkConversationRequest(id=name, ttl=negative))) == ["ttl"]
    assert bad_fields(lambda: client.stream("x", conversation=name, ttl=negative)) == ["ttl"]
    assert bad_fields(lambda: client.stream("x", ttl=seconds(1), wait_if_busy=True)) == ["wait_if_busy", "ttl"]
    assert bad_fields(lambda: client.conv.List(c.ListConversationsRequest(page_size=1001))) == ["page_size"]
    assert bad_fields(lambda: client.conv.List(c.ListConversationsRequest(page_size=-1))) == ["page_size"]
    never = timestamp_pb2.Timestamp(nanos=-5)
    assert bad_fields(lambda: client.conv.List(c.ListConversationsRequest(used_since=never))) == ["used_since"]
    assert bad_fields(lambda: client.conv.List(c.ListConversationsRequest(used_before=never))) == ["used_before"]
    for token in ["x", "-1", "1x"]:
        assert bad_fields(lambda: client.conv.Get(c.GetConversationRequest(id=name, page_token=token))) == [
            "page_token"]
    assert bad_fields(lambda: client.conv.Get(c.GetConversationRequest(id=name, page_size=2000))) == ["page_size"]
