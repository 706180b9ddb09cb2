"""A thin client over the generated code: what tests say often."""

import threading
import uuid

import grpc
import pytest


# More tokens than any test waits for; daemon.py raises limits.max_tokens above it.
ENDLESS = 10**8


def fresh_id():
    return "c-" + uuid.uuid4().hex


class Turn:
    """The events of one Generate, all read."""

    def __init__(self, events):
        self.events = list(events)
        kinds = [event.WhichOneof("event") for event in self.events]
        assert kinds.count("finished") == 1 and kinds[-1] == "finished", kinds
        assert kinds.count("started") == 1, kinds
        self.started = next(e.started for e in self.events if e.WhichOneof("event") == "started")
        self.deltas = [e.delta for e in self.events if e.WhichOneof("event") == "delta"]
        self.text = "".join(d.text for d in self.deltas)
        self.tokens = [t for d in self.deltas for t in d.tokens]
        self.ids = [t.id for t in self.tokens]
        self.finished = self.events[-1].finished


class Running:
    """A Generate that goes on while the test does something else; its events are read as they come."""

    def __init__(self, stream):
        self.stream = stream
        self.events = []
        self.error = None
        self._decoding = threading.Event()
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()
        assert self._decoding.wait(60), "no token came"

    def _read(self):
        try:
            for event in self.stream:
                self.events.append(event)
                if event.WhichOneof("event") == "delta":
                    self._decoding.set()
        except grpc.RpcError as error:
            self.error = error

    def end(self):
        """Waits for the end; the whole turn."""
        self._thread.join(120)
        assert not self._thread.is_alive()
        if self.error is not None:
            raise self.error
        return Turn(self.events)

    def cancel(self):
        self.stream.cancel()
        self._thread.join(60)


class Client:
    def __init__(self, pb, channel):
        self.pb = pb
        self.gen = pb.gen_grpc.GenerationStub(channel)
        self.conv = pb.conv_grpc.ConversationsStub(channel)
        self.info = pb.info_grpc.InfoStub(channel)
        self.control = pb.control_grpc.ControlStub(channel)

    def request(self, text=None, ids=None, conversation="", max_tokens=8, **fields):
        """A greedy request that does not stop by itself and shows token ids."""
        g = self.pb.gen
        sampling = fields.pop("sampling", None) or g.Sampling(temperature=0)
        stopping = fields.pop("stopping", None) or g.Stopping(max_tokens=max_tokens, ignore_eos=True)
        output = fields.pop("output", None) or g.Output(token_ids=True)
        request = g.GenerateRequest(conversation_id=conversation, sampling=sampling, stopping=stopping,
                                    output=output, **fields)
        if text is not None:
            request.text.text = text
        if ids is not None:
            request.token_ids.ids.extend(ids)
        return request

    def stream(self, *args, timeout=60, **fields):
        return self.gen.Generate(self.request(*args, **fields), timeout=timeout)

    def generate(self, *args, timeout=60, **fields):
        return Turn(self.stream(*args, timeout=timeout, **fields))

    def history(self, conversation):
        return self.conv.Get(self.pb.conv.GetConversationRequest(id=conversation, view=self.pb.conv.VIEW_HISTORY))

    def get(self, conversation):
        return self.conv.Get(self.pb.conv.GetConversationRequest(id=conversation))


def details(error):
    """The google.rpc details of an RpcError, by message name."""
    from google.rpc import error_details_pb2, status_pb2

    packed = dict(error.trailing_metadata()).get("grpc-status-details-bin")
    assert packed is not None, error
    status = status_pb2.Status.FromString(packed)
    assert status.code == error.code().value[0]
    out = {}
    for any_detail in status.details:
        name = any_detail.type_url.split(".")[-1]
        message = getattr(error_details_pb2, name)()
        assert any_detail.Unpack(message)
        out[name] = message
    assert out["ErrorInfo"].domain == "skein"
    return out


def expect_error(code, call):
    """Calls, reads to the end, and returns the RpcError, which must have this code."""
    with pytest.raises(grpc.RpcError) as caught:
        result = call()
        if hasattr(result, "__iter__"):
            list(result)
    assert caught.value.code() == code, caught.value
    return caught.value
