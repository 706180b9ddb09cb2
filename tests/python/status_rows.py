"""A row of the tables of refusals: a call that fails, and all that its client is told. test_status_table.py has the rows of
one server with small limits, test_status_worlds.py those of others."""

import dataclasses
import re
import time
import typing

import grpc
import pytest
from client import Running, details

C = grpc.StatusCode


@dataclasses.dataclass
class Row:
    name: str
    call: typing.Callable          # (client, world) -> a call that fails
    code: grpc.StatusCode
    reason: str                    # empty: gRPC's own refusal, without details
    message: str | re.Pattern      # `{...}`: of world; a pattern where it tells what was measured
    field: str = ""                # of BadRequest
    metadata: dict = dataclasses.field(default_factory=dict)   # of ErrorInfo
    precondition: str = ""         # type in PreconditionFailure
    retry: bool = False            # RetryInfo and grpc-retry-pushback-ms
    late: bool = False             # it ends a stream that has begun, so it comes after a header
    setup: str = ""                # what must be going on, see `situation`
    world: str = ""
    user: str = ""                 # who calls, in a world with several clients


def generate(change=None, **fields):
    def call(client, world):
        filled = {k: v(world) if callable(v) else v for k, v in fields.items()}
        request = client.request(filled.pop("text", "x"), **filled)
        if change is not None:
            change(request)
        return client.gen.Generate(request, timeout=60)
    return call


def conversations(method, make):
    return lambda client, world: getattr(client.conv, method)(make(client.pb.conv, world))


def control(method, make):
    return lambda client, world: getattr(client.control, method)(make(client.pb.control, world), timeout=60)


def attach(request_id, after=0):
    return lambda client, world: client.gen.Attach(
        client.pb.gen.AttachRequest(request_id=world.get(request_id, request_id), after_token=after), timeout=60)


def situation(world, name):
    """Brings about what the row needs; returns what undoes it."""
    client = world["client"]
    if not name:
        return lambda: None
    conversation = world["conversation"] if name in ("busy", "full line") else ""
    running = Running(client.stream("b", max_tokens=10**6, conversation=conversation))
    waiting = []
    if name == "full queue":
        waiting = [client.stream("y") for _ in range(2)]
    elif name == "long queue":
        waiting = [client.stream("y" * 60)]
    elif name == "full line":
        waiting = [client.stream("y", conversation=conversation, commit=client.pb.gen.COMMIT_MODE_NEVER, wait_if_busy=True)]
    for stream in waiting:
        assert next(stream).WhichOneof("event") == "queued"

    def undo():
        running.cancel()
        for stream in waiting:
            list(stream)
        while conversation and client.get(conversation).busy:
            time.sleep(0.002)
    return undo


def until_refused(client, seconds=60):
    """A server that was told to end serves what comes before it has begun to drain."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            client.generate("y", max_tokens=1)
        except grpc.RpcError:
            return
    raise AssertionError("still served")


def check(row, world, client):
    with pytest.raises(grpc.RpcError) as caught:
        result = row.call(client, world)
        if hasattr(result, "__iter__"):
            list(result)
    error = caught.value
    expected = {k: v for k, v in world.items() if isinstance(v, str)}
    assert error.code() == row.code, error
    if isinstance(row.message, re.Pattern):
        assert row.message.fullmatch(error.details()), error.details()
    else:
        assert error.details() == row.message.format(**expected)
    assert row.late or not error.initial_metadata(), "after a header no client retries"
    if not row.reason:
        return
    found = details(error)
    assert found["ErrorInfo"].reason == row.reason
    for key, value in row.metadata.items():
        if isinstance(value, re.Pattern):
            assert value.fullmatch(found["ErrorInfo"].metadata[key])
        else:
            assert found["ErrorInfo"].metadata[key] == value.format(**expected)
    violations = [v.field for v in found["BadRequest"].field_violations] if "BadRequest" in found else []
    assert violations == ([row.field] if row.field else [])
    preconditions = [v.type for v in found["PreconditionFailure"].violations] if "PreconditionFailure" in found else []
    assert preconditions == ([row.precondition] if row.precondition else [])
    pushback = dict(error.trailing_metadata()).get("grpc-retry-pushback-ms")
    assert ("RetryInfo" in found) == (pushback is not None) == row.retry
    if row.retry:
        assert 0 < int(pushback) == found["RetryInfo"].retry_delay.ToMilliseconds()
