"""A client that has nothing but reflection, as grpcurl has: services, methods and messages come from the server."""

import grpc
import pytest
from google.protobuf import descriptor_pool, json_format, message_factory
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from test_operation import SERVICES


class ReflectionClient:
    """call("skein.v1.Info/ListModels", {...}) -> the answers as dicts."""

    def __init__(self, channel):
        self.channel = channel
        self.database = ProtoReflectionDescriptorDatabase(channel)
        self.pool = descriptor_pool.DescriptorPool(self.database)

    def services(self):
        return set(self.database.get_services())

    def method(self, path):
        service, name = path.split("/")
        return self.pool.FindServiceByName(service).FindMethodByName(name)

    def message(self, descriptor):
        if hasattr(message_factory, "GetMessageClass"):
            return message_factory.GetMessageClass(descriptor)
        return message_factory.MessageFactory(self.pool).GetPrototype(descriptor)

    def call(self, path, request):
        method = self.method(path)
        answer = self.message(method.output_type)
        rpc = self.channel.unary_stream if method.server_streaming else self.channel.unary_unary
        made = rpc("/" + path, request_serializer=lambda m: m.SerializeToString(),
                   response_deserializer=answer.FromString)
        result = made(json_format.ParseDict(request, self.message(method.input_type)()), timeout=60)
        messages = result if method.server_streaming else [result]
        return [json_format.MessageToDict(m, preserving_proto_field_name=True) for m in messages]


@pytest.fixture
def reflection(shared):
    return ReflectionClient(shared.channel)


def test_every_method_of_every_service_is_described(reflection):
    assert set(SERVICES) <= reflection.services()
    for service in SERVICES:
        for method in reflection.pool.FindServiceByName(service).methods:
            assert method.input_type.full_name.startswith("skein.v1."), method.full_name


def test_calls_without_generated_code(reflection):
    [models] = reflection.call("skein.v1.Info/ListModels", {})
    assert models["models"][0]["name"] == "tiny"
    [load] = reflection.call("skein.v1.Control/GetLoad", {})
    assert load["serving"] and load["models"][0]["slots"] == 64
    events = reflection.call("skein.v1.Generation/Generate",
                             {"text": {"text": "hello"}, "stopping": {"max_tokens": 4, "ignore_eos": True},
                              "sampling": {"temperature": 0}})
    assert events[-1]["finished"]["reason"] == "FINISH_REASON_LENGTH"
    assert int(events[-1]["finished"]["usage"]["completion_tokens"]) == 4


def test_errors_have_their_details(reflection):
    with pytest.raises(grpc.RpcError) as caught:
        reflection.call("skein.v1.Conversations/Get", {"id": "nobody"})
    assert caught.value.code() == grpc.StatusCode.NOT_FOUND
    assert "grpc-status-details-bin" in dict(caught.value.trailing_metadata())
