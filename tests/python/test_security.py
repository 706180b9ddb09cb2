"""Who may call: tokens, scopes, tenants, TLS, client certificates, and what the configuration refuses."""

import hashlib
import re
import shutil
import signal
import ssl
import time
import urllib.request

import grpc
import pytest
from certificates import Authority
from client import Client, Running, details, expect_error, fresh_id
from daemon import Daemon, run

UNAUTHENTICATED = grpc.StatusCode.UNAUTHENTICATED
DENIED = grpc.StatusCode.PERMISSION_DENIED
UNAVAILABLE = grpc.StatusCode.UNAVAILABLE


def new_token(cwd, name, *arguments):
    """A token and its line for auth.tokens, as an operator makes them."""
    made = run("token", "create", name, *arguments, cwd=cwd)
    assert made.returncode == 0, made.stderr
    token, line = re.fullmatch(r"token:  (\S+)\nconfig: - (\{.*\})\n", made.stdout).groups()
    return token, line


def without_scopes(line):
    return re.sub(r"scopes: \[.*\]", "scopes: []", line)


def bearer(token):
    return [("authorization", "Bearer " + token)]


class TokenClient(Client):
    """Sends a token with each call."""

    def __init__(self, pb, channel, token):
        super().__init__(pb, grpc.intercept_channel(channel, _Sender(token)))


class _Sender(grpc.UnaryUnaryClientInterceptor, grpc.UnaryStreamClientInterceptor):
    def __init__(self, token):
        self.metadata = bearer(token)

    def intercept_unary_unary(self, continuation, call, request):
        return continuation(call._replace(metadata=self.metadata), request)

    intercept_unary_stream = intercept_unary_unary


class Secured:
    """A daemon with four clients."""

    def __init__(self, folder, model):
        self.tokens, lines = {}, []
        for name, arguments in {"alice": ["--tenant", "acme"], "bob": [], "nothing": [],
                                "admin": ["--scopes", "admin"]}.items():
            self.tokens[name], line = new_token(folder, name, *arguments)
            lines.append(without_scopes(line) if name == "nothing" else line)
        file = folder / "tokens.yaml"
        file.write_text("tokens:\n" + "".join(f"  - {line}\n" for line in lines[1:]))
        self.daemon = Daemon(model, folder, settings={"auth.tokens": f"[{lines[0]}]", "auth.tokens_file": file})
        self.channel = self.daemon.channel

    def client(self, pb, name):
        return TokenClient(pb, self.channel, self.tokens[name])

    def failures(self):
        text = urllib.request.urlopen(self.daemon.metrics, timeout=60).read().decode()
        found = re.findall(r'^skein_auth_failures_total\{reason="(\w+)"\} (\d+)', text, re.MULTILINE)
        return {reason: int(count) for reason, count in found}


@pytest.fixture(scope="module")
def secured(model, tmp_path_factory):
    one = Secured(tmp_path_factory.mktemp("secured"), model)
    yield one
    assert one.daemon.process.poll() is None, one.daemon.log()
    assert not any(token in one.daemon.log() for token in one.tokens.values())
    one.daemon.stop()


# Tokens.

def test_token_create(tmp_path):
    token, line = new_token(tmp_path, "web", "--scopes", "generate,state_io")
    assert re.fullmatch(r"skein_[A-Za-z0-9_-]{43}", token)
    assert token not in line and hashlib.sha256(token.encode()).hexdigest() in line
    assert 'name: "web"' in line and 'tenant: "web"' in line and "scopes: [generate, state_io]" in line
    assert new_token(tmp_path, "web")[0] != token
    assert "scopes: []" in new_token(tmp_path, "web", "--scopes", "")[1]
    for arguments, message in {("web", "--scopes", "root"): "there is no scope 'root'",
                               ("a b",): "the name 'a b' must be"}.items():
        refused = run("token", "create", *arguments, cwd=tmp_path)
        assert refused.returncode == 1 and message in refused.stderr and not refused.stdout


@pytest.mark.parametrize("metadata, reason", [
    ([], "TOKEN_MISSING"),
    (bearer("skein_" + "A" * 43), "TOKEN_INVALID"),
    (bearer(""), "TOKEN_INVALID"),
    ([("authorization", "Basic YTpi")], "TOKEN_INVALID"),
    ([("authorization", "")], "TOKEN_INVALID"),
])
def test_no_or_wrong_token(secured, pb, metadata, reason):
    before = secured.failures().get(reason, 0)
    client = Client(pb, secured.channel)
    for call in [lambda: client.gen.Generate(client.request("x"), metadata=metadata),
                 lambda: client.info.ListModels(pb.info.ListModelsRequest(), metadata=metadata),
                 lambda: client.conv.List(pb.conv.ListConversationsRequest(), metadata=metadata)]:
        error = expect_error(UNAUTHENTICATED, call)
        assert details(error)["ErrorInfo"].reason == reason
    assert secured.failures()[reason] == before + 3


def test_two_identities_are_none(secured, pb):
    client = Client(pb, secured.channel)
    both = bearer(secured.tokens["alice"]) + bearer(secured.tokens["bob"])
    error = expect_error(UNAUTHENTICATED, lambda: client.info.ListModels(pb.info.ListModelsRequest(), metadata=both))
    assert details(error)["ErrorInfo"].reason == "TOKEN_INVALID"


def test_the_scheme_has_no_case(secured, pb):
    client = Client(pb, secured.channel)
    client.info.ListModels(pb.info.ListModelsRequest(),
                           metadata=[("authorization", "bearer " + secured.tokens["alice"])])


def test_a_request_without_a_token_is_not_read(secured):
    garbage = secured.channel.unary_unary("/skein.v1.Info/ListModels")
    error = expect_error(UNAUTHENTICATED, lambda: garbage(b"\xff\xff\xff"))
    assert details(error)["ErrorInfo"].reason == "TOKEN_MISSING"
    error = expect_error(grpc.StatusCode.INVALID_ARGUMENT,
                         lambda: garbage(b"\xff\xff\xff", metadata=bearer(secured.tokens["alice"])))
    assert details(error)["ErrorInfo"].reason == "MALFORMED_MESSAGE"


def test_scopes(secured, pb):
    alice, nothing, admin = (secured.client(pb, name) for name in ["alice", "nothing", "admin"])
    assert alice.generate("hello").finished.usage.completion_tokens == 8
    alice.conv.List(pb.conv.ListConversationsRequest())
    for client in nothing, admin:
        client.info.GetServerInfo(pb.info.GetServerInfoRequest())  # for every client
        error = expect_error(DENIED, lambda: client.stream("hello"))
        info = details(error)["ErrorInfo"]
        assert info.reason == "SCOPE_MISSING" and info.metadata["scope"] == "generate"
        assert not error.initial_metadata()
        error = expect_error(DENIED, lambda: client.conv.List(pb.conv.ListConversationsRequest()))
        assert details(error)["ErrorInfo"].metadata["scope"] == "conversations"


def test_other_tenants_conversations_are_not_there(secured, pb):
    alice, bob = secured.client(pb, "alice"), secured.client(pb, "bob")
    name = fresh_id()
    alice.generate("one", conversation=name, create_if_missing=True)
    error = expect_error(grpc.StatusCode.NOT_FOUND, lambda: bob.get(name))
    assert details(error)["ErrorInfo"].reason == "CONVERSATION_NOT_FOUND"
    expect_error(grpc.StatusCode.NOT_FOUND, lambda: bob.stream("two", conversation=name))
    expect_error(grpc.StatusCode.NOT_FOUND, lambda: bob.conv.Delete(pb.conv.DeleteConversationRequest(id=name)))
    expect_error(grpc.StatusCode.NOT_FOUND, lambda: bob.conv.Fork(pb.conv.ForkConversationRequest(id=name)))
    assert name not in [c.id for c in bob.conv.List(pb.conv.ListConversationsRequest()).conversations]
    # The same id is bob's own conversation then, and alice's stays as it was.
    bob.generate("other", conversation=name, create_if_missing=True)
    assert alice.history(name).versions[-1].input != bob.history(name).versions[-1].input
    assert name in [c.id for c in alice.conv.List(pb.conv.ListConversationsRequest()).conversations]


def test_other_tenants_requests_are_not_cancelled(secured, pb):
    alice, bob = secured.client(pb, "alice"), secured.client(pb, "bob")
    running = Running(alice.stream("x", max_tokens=10**6, request_id="shared-id", timeout=60))
    assert not bob.gen.Cancel(pb.gen.CancelRequest(request_id="shared-id")).cancelled
    assert alice.gen.Cancel(pb.gen.CancelRequest(request_id="shared-id")).cancelled
    assert running.end().finished.reason == pb.gen.FINISH_REASON_CANCELLED


# Every RPC.

def methods_of(channel, token):
    """Full names of all RPCs at a port, by reflection."""
    from google.protobuf.descriptor_pool import DescriptorPool
    from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

    database = ProtoReflectionDescriptorDatabase(grpc.intercept_channel(channel, _StreamSender(token)))
    pool = DescriptorPool(database)
    return [f"/{service}/{method.name}" for service in database.get_services()
            for method in pool.FindServiceByName(service).methods]


class _StreamSender(grpc.StreamStreamClientInterceptor):
    def __init__(self, token):
        self.metadata = bearer(token)

    def intercept_stream_stream(self, continuation, call, requests):
        return continuation(call._replace(metadata=self.metadata), requests)


def outcome(channel, method, metadata):
    """Code and ErrorInfo of a call with an empty request; None when it is served."""
    call = channel.stream_stream(method)(iter([b""]), metadata=metadata, timeout=60)
    try:
        next(iter(call))
        call.cancel()
        return None
    except StopIteration:
        return None
    except grpc.RpcError as error:
        info = details(error)["ErrorInfo"]
        return error.code(), info.reason, info.metadata["scope"]


def test_every_rpc_needs_what_the_table_says(secured):
    found = methods_of(secured.channel, secured.tokens["nothing"])
    assert len(found) >= 24
    open_to_all = {"/grpc.health.v1.Health/Check", "/grpc.health.v1.Health/Watch"}
    for_clients = {"/skein.v1.Info/GetServerInfo", "/skein.v1.Info/ListModels",
                   "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
                   "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"}
    scopes = {"skein.v1.Generation": "generate", "skein.v1.Conversations": "conversations",
              "skein.v1.Control": "admin"}
    for method in found:
        nobody = outcome(secured.channel, method, [])
        client = outcome(secured.channel, method, bearer(secured.tokens["nothing"]))
        if method in open_to_all:
            assert nobody is None and client is None, method
            continue
        assert nobody == (UNAUTHENTICATED, "TOKEN_MISSING", ""), method
        if method in for_clients:
            assert client is None, method
        else:
            service = method[1:].split("/")[0]
            assert client == (DENIED, "SCOPE_MISSING", scopes[service]), method
    assert open_to_all | for_clients <= set(found)


def test_health_may_want_a_token(start, secured, tmp_path):
    from grpc_health.v1 import health_pb2, health_pb2_grpc

    check = health_pb2.HealthCheckRequest()
    assert health_pb2_grpc.HealthStub(secured.channel).Check(check).status == 1
    token, line = new_token(tmp_path, "probe")
    daemon = start({"auth.tokens": f"[{without_scopes(line)}]", "auth.open_health": "false"})
    health = health_pb2_grpc.HealthStub(daemon.channel)
    expect_error(UNAUTHENTICATED, lambda: health.Check(check))
    expect_error(UNAUTHENTICATED, lambda: health.Watch(check))
    assert health.Check(check, metadata=bearer(token)).status == 1


# TLS.

@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def server_pair(authority):
    return authority.issue("server")


def tls_settings(pair, **more):
    return {"listen.tls.certificate": pair.certificate, "listen.tls.key": pair.key,
            **{"listen.tls." + key: value for key, value in more.items()}}


def tls_channel(daemon, authority, pair=None):
    keys = (pair.key_pem(), pair.pem()) if pair else (None, None)
    return grpc.secure_channel(daemon.address, grpc.ssl_channel_credentials(authority.pem(), *keys),
                               options=[("grpc.use_local_subchannel_pool", 1)])


def served_certificate(daemon):
    host, port = daemon.address.rsplit(":", 1)
    return ssl.get_server_certificate((host, int(port)))


def models(pb, channel):
    return pb.info_grpc.InfoStub(channel).ListModels(pb.info.ListModelsRequest(), timeout=60)


def test_tls(start, pb, authority, server_pair, tmp_path):
    daemon = start(tls_settings(server_pair))
    with tls_channel(daemon, authority) as channel:
        assert Client(pb, channel).generate("hello").finished.usage.completion_tokens == 8
        # Plaintext, a stranger's authority, and somebody who says nothing sensible.
        expect_error(UNAVAILABLE, lambda: models(pb, daemon.channel))
        with tls_channel(daemon, Authority(tmp_path, "stranger")) as other:
            expect_error(UNAVAILABLE, lambda: models(pb, other))
        models(pb, channel)


def test_tls_to_a_plaintext_port(shared, pb, authority):
    with tls_channel(shared, authority) as channel:
        expect_error(UNAVAILABLE, lambda: models(pb, channel))
    models(pb, shared.channel)


def test_client_certificates(start, pb, authority, server_pair, tmp_path):
    daemon = start(tls_settings(server_pair, client_ca=authority.certificate, require_client_certificate="true"))
    stranger = Authority(tmp_path, "stranger")
    with tls_channel(daemon, authority, authority.issue("client")) as channel:
        models(pb, channel)
        for pair in None, stranger.issue("client"), authority.issue("old-client", expired=True):
            with tls_channel(daemon, authority, pair) as other:
                expect_error(UNAVAILABLE, lambda: models(pb, other))
        models(pb, channel)


def test_a_certificate_is_an_identity(start, pb, authority, server_pair):
    clients = '[{name: ann, certificate: "ann.example"}, {name: bot, certificate: "robot", scopes: []}]'
    daemon = start({**tls_settings(server_pair, client_ca=authority.certificate), "auth.tokens": clients})
    with tls_channel(daemon, authority, authority.issue("ann", "DNS:ann.example")) as channel:
        Client(pb, channel).generate("hello")
    with tls_channel(daemon, authority, authority.issue("robot")) as channel:
        models(pb, channel)
        expect_error(DENIED, lambda: Client(pb, channel).stream("hello"))
    for pair in None, authority.issue("unknown"):
        with tls_channel(daemon, authority, pair) as channel:
            expect_error(UNAUTHENTICATED, lambda: models(pb, channel))


def test_certificates_are_replaced_while_calls_run(start, pb, steady_model, authority, tmp_path):
    first, second = authority.issue("first"), authority.issue("second")
    files = [tmp_path / "server.pem", tmp_path / "server.key"]

    def install(pair, key=None):
        for source, target in zip([pair.certificate, key or pair.key], files):
            shutil.copy(source, str(target) + ".new")
            (tmp_path / (target.name + ".new")).rename(target)

    install(first)
    daemon = start({"listen.tls.certificate": files[0], "listen.tls.key": files[1]}, model=steady_model)
    assert served_certificate(daemon) == first.certificate.read_text()
    with tls_channel(daemon, authority) as channel:
        running = Running(Client(pb, channel).stream("x", max_tokens=4000, timeout=120))
        install(second)
        daemon.wait_for_line("new certificates")
        assert served_certificate(daemon) == second.certificate.read_text()
        # A key of another certificate, and no certificate at all: told, and nothing changes.
        install(first, key=second.key)
        daemon.wait_for_line("not taken.*is not the key of the certificate")
        files[0].write_text("nonsense")
        daemon.wait_for_line("not taken.*no certificate")
        assert served_certificate(daemon) == second.certificate.read_text()
        with tls_channel(daemon, authority) as other:
            models(pb, other)
        assert running.end().finished.usage.completion_tokens == 4000
        models(pb, channel)
    text = urllib.request.urlopen(daemon.metrics, timeout=60).read().decode()
    expiry = float(re.search(r"^skein_tls_certificate_expiry_seconds (\S+)", text, re.MULTILINE).group(1))
    assert 0 < expiry - time.time() < 2 * 86400 + 60


def test_the_authority_of_clients_is_replaced_while_calls_run(start, pb, steady_model, authority, server_pair, tmp_path):
    """Who is connected stays; of those who come the new authority's are let in, and no longer the old one's."""
    before, after = Authority(tmp_path, "before"), Authority(tmp_path, "after")
    ann, bob = before.issue("ann"), after.issue("bob")
    file = tmp_path / "clients.pem"
    shutil.copy(before.certificate, file)
    daemon = start(tls_settings(server_pair, client_ca=file, require_client_certificate="true"), model=steady_model)

    def let_in(pair):
        with tls_channel(daemon, authority, pair) as channel:
            try:
                return bool(models(pb, channel).models)
            except grpc.RpcError as error:
                assert error.code() == UNAVAILABLE
                return False

    with tls_channel(daemon, authority, ann) as channel:
        running = Running(Client(pb, channel).stream("x", max_tokens=4000, timeout=120))
        assert (let_in(ann), let_in(bob)) == (True, False)
        new = tmp_path / "clients.new"
        shutil.copy(after.certificate, new)
        new.rename(file)
        daemon.wait_for_line("new certificates")
        assert (let_in(ann), let_in(bob)) == (False, True)
        assert running.end().finished.usage.completion_tokens == 4000
        models(pb, channel)


def test_a_reload_names_other_certificates(start, pb, steady_model, authority, tmp_path):
    """As above, by other files."""
    first, second, after = authority.issue("first"), authority.issue("second"), Authority(tmp_path, "after")
    config = tmp_path / "config.yaml"

    def write(pair, clients):
        config.write_text(f"listen:\n  tls: {{certificate: {pair.certificate}, key: {pair.key}, "
                          f"client_ca: {clients.certificate}, require_client_certificate: true}}\n")

    write(first, authority)
    daemon = start(model=steady_model)
    with tls_channel(daemon, authority, first) as channel:
        running = Running(Client(pb, channel).stream("x", max_tokens=4000, timeout=120))
        write(second, after)
        daemon.process.send_signal(signal.SIGHUP)
        applied = re.search(r'applied="?([^" ]*)', daemon.wait_for_line("configuration reloaded")).group(1).split(",")
        assert sorted(applied) == ["listen.tls.certificate", "listen.tls.client_ca", "listen.tls.key"]
        with tls_channel(daemon, authority, after.issue("bob")) as other:
            models(pb, other)
            assert served_certificate(daemon) == second.certificate.read_text()
        with tls_channel(daemon, authority, first) as other:
            expect_error(UNAVAILABLE, lambda: models(pb, other))
        assert running.end().finished.usage.completion_tokens == 4000
        models(pb, channel)


# What the configuration refuses.

HASH = "0" * 64


@pytest.mark.parametrize("settings, message", [
    (["listen.address=0.0.0.0:0"], "neither TLS (listen.tls) nor tokens (auth.tokens); set listen.allow_insecure_public"),
    (["listen.address=[::]:0"], "other machines can reach '[::]:0'"),
    (["listen.address=example.com:1"], "other machines can reach"),
    (["listen.address=0.0.0.0:0", f"auth.tokens=[{{name: a, hash: {HASH}}}]"], "there are no TLS"),
    (["listen.control=0.0.0.0:0"], "listen.control: other machines can reach"),
    (["listen.metrics=0.0.0.0:9464"], "listen.metrics: other machines can reach '0.0.0.0:9464', and the metrics are plain HTTP "
     "for everybody, whatever listen.tls and auth.tokens say; set listen.allow_public_metrics to true"),
    (["listen.metrics=[::]:0"], "listen.metrics: other machines can reach '[::]:0'"),
    (["listen.metrics=example.com:1"], "listen.metrics: other machines can reach"),
    (["listen.tls.key=x"], "listen.tls.certificate is empty"),
    (["listen.tls.certificate=nowhere.pem"], "listen.tls.certificate: cannot open 'nowhere.pem'"),
    (["listen.tls.require_client_certificate=true"], "needs listen.tls.client_ca"),
    (["auth.tokens=[{name: a, hash: abc}]"], "client 'a': hash must be the SHA-256"),
    ([f"auth.tokens=[{{name: a, hash: {HASH}, scopes: [root]}}]"], "there is no scope 'root'"),
    ([f"auth.tokens=[{{hash: {HASH}}}]"], "the name '' must be"),
    (["auth.tokens=[{name: a}]"], "needs either a hash or a certificate"),
    (["auth.tokens=[{name: a, certificate: x}]"], "needs listen.tls.client_ca"),
    ([f"auth.tokens=[{{name: a, hash: {HASH}}}, {{name: b, hash: {HASH}}}]"], "have the same token"),
    ([f"auth.tokens=[{{name: a, tenant: t, hash: {HASH}, quotas: {{requests: 1}}}}, "
      f"{{name: b, tenant: t, hash: {'1' * 64}, quotas: {{requests: 2}}}}]"], "state different quotas"),
    (["auth.tokens_file=nowhere.yaml"], "auth.tokens_file: cannot open 'nowhere.yaml'"),
])
def test_refused_configuration(tmp_path, settings, message):
    arguments = [part for setting in settings for part in ("--set", setting)]
    checked = run("--check-config", *arguments, cwd=tmp_path)
    assert checked.returncode == 1 and message in checked.stderr, checked.stderr


def test_allowed_public_addresses(tmp_path, server_pair):
    secure = [f"listen.tls.certificate={server_pair.certificate}", f"listen.tls.key={server_pair.key}",
              f"auth.tokens=[{{name: a, hash: {HASH}}}]"]
    everything, metrics = "listen.address=0.0.0.0:0", "listen.metrics=0.0.0.0:0"
    for settings in [[everything, "listen.allow_insecure_public=true"], [everything, *secure],
                     [metrics, "listen.allow_public_metrics=true"], [metrics, "listen.allow_insecure_public=true"],
                     [everything, metrics, *secure, "listen.allow_public_metrics=true"]]:
        arguments = [part for setting in settings for part in ("--set", setting)]
        assert run("--check-config", *arguments, cwd=tmp_path).returncode == 0, settings
    # Neither stands for the other.
    for settings in [[metrics, *secure], [everything, "listen.allow_public_metrics=true"]]:
        arguments = [part for setting in settings for part in ("--set", setting)]
        assert run("--check-config", *arguments, cwd=tmp_path).returncode == 1, settings


def test_metrics_at_a_public_address(start):
    daemon = start({"listen.metrics": "0.0.0.0:0", "listen.allow_public_metrics": "true"})
    answer = urllib.request.urlopen(daemon.metrics.replace("0.0.0.0", "127.0.0.1"), timeout=60)
    assert b"skein_build_info" in answer.read()


@pytest.mark.parametrize("spoil, message", [
    (lambda pair, other: pair.certificate.write_text("x"), "holds no certificate in PEM form"),
    (lambda pair, other: pair.key.write_text("x"), "holds no private key in PEM form"),
    (lambda pair, other: shutil.copy(other.key, pair.key), "is not the key of the certificate in"),
    (lambda pair, other: pair.key.unlink(), "No such file"),
    (lambda pair, other: shutil.copy(other.folder / "old.pem", pair.certificate), "expired on 2"),
])
def test_bad_certificates_are_told(tmp_path, spoil, message):
    authority = Authority(tmp_path)
    pair = authority.issue("server")
    other = authority.issue("other")
    other.folder = tmp_path
    authority.issue("old", expired=True)
    spoil(pair, other)
    checked = run("--check-config", "--set", f"listen.tls.certificate={pair.certificate}",
                  "--set", f"listen.tls.key={pair.key}", cwd=tmp_path)
    assert checked.returncode == 1 and "listen.tls." in checked.stderr and message in checked.stderr, checked.stderr


# The command-line client.

def test_skein_with_tls_and_token(start, pb, authority, server_pair, tmp_path):
    import os
    import subprocess
    from daemon import BUILD

    def skein(*arguments, env=None):
        return subprocess.run([BUILD / "bin" / "skein", *map(str, arguments)], capture_output=True, text=True, timeout=60,
                              env={**os.environ, "SKEIN_SERVER": daemon.address, **(env or {})}, cwd=tmp_path)

    token, line = new_token(tmp_path, "cli")
    daemon = start({**tls_settings(server_pair), "auth.tokens": f"[{line}]"})
    done = skein("generate", "hello", "--ca", authority.certificate, "--token", token)
    assert done.returncode == 0, done.stderr
    assert skein("info", "--ca", authority.certificate, env={"SKEIN_TOKEN": token}).returncode == 0
    missing = skein("info", "--ca", authority.certificate)
    assert missing.returncode == 8 and "UNAUTHENTICATED" in missing.stderr
    assert skein("info", "--token", token).returncode == 3  # plaintext to a TLS port
    assert skein("info", "--ca", tmp_path / "nowhere").returncode != 0
    clear = skein("info", "--server", "192.0.2.1:1", "--token", token)
    assert clear.returncode == 5 and "for everybody to read" in clear.stderr


# Signals.

def test_reload_of_tokens(start, pb, tmp_path):
    (first, line), (second, other) = (new_token(tmp_path, name) for name in ["one", "two"])
    file = tmp_path / "tokens.yaml"
    file.write_text(f"tokens: [{line}]\n")
    daemon = start({"auth.tokens_file": file})
    stub = pb.info_grpc.InfoStub(daemon.channel)
    request = pb.info.ListModelsRequest()
    stub.ListModels(request, metadata=bearer(first))
    expect_error(UNAUTHENTICATED, lambda: stub.ListModels(request, metadata=bearer(second)))
    file.write_text(f"tokens: [{other}]\n")
    daemon.process.send_signal(signal.SIGHUP)
    daemon.wait_for_line("reloaded")
    stub.ListModels(request, metadata=bearer(second))
    expect_error(UNAUTHENTICATED, lambda: stub.ListModels(request, metadata=bearer(first)))


@pytest.mark.parametrize("key, public, instead", [
    ("address", "{address: 0.0.0.0:0}", "{}"), ("address", "{address: 0.0.0.0:0}", "{allow_insecure_public: true}"),
    ("control", "{address: 127.0.0.1:0, control: 0.0.0.0:0}", "{address: 127.0.0.1:0}")])
def test_a_reload_does_not_open_a_public_address(start, pb, authority, server_pair, tmp_path, key, public, instead):
    """The file would do for a restart; what listens now stays where it is until then, and needs its tokens."""
    token, line = new_token(tmp_path, "one", "--scopes", "generate,admin")
    config = tmp_path / "config.yaml"
    config.write_text(f"listen: {public}\nauth:\n  tokens: [{line}]\n")
    daemon = start(tls_settings(server_pair), listen=None)
    assert daemon.address.startswith("0.0.0.0:" if key == "address" else "127.0.0.1:")
    daemon.address = daemon.address.replace("0.0.0.0", "127.0.0.1")
    config.write_text(f"listen: {instead}\n")
    daemon.process.send_signal(signal.SIGHUP)
    refused = daemon.wait_for_line("was not reloaded")
    assert f"listen.{key}: other machines can reach '0.0.0.0:0', and there are no tokens" in refused
    with tls_channel(daemon, authority) as channel:
        expect_error(UNAUTHENTICATED, lambda: models(pb, channel))
        pb.info_grpc.InfoStub(channel).ListModels(pb.info.ListModelsRequest(), metadata=bearer(token))


def test_whether_clients_need_certificates_takes_a_restart(start, pb, authority, server_pair, tmp_path):
    config = tmp_path / "config.yaml"
    config.write_text("")
    daemon = start(tls_settings(server_pair, client_ca=authority.certificate))
    config.write_text("listen: {tls: {require_client_certificate: true}}\n")
    with tls_channel(daemon, authority) as channel:
        control = pb.control_grpc.ControlStub(channel)
        answer = control.ReloadConfig(pb.control.ReloadConfigRequest(), timeout=60)
        assert (list(answer.applied), list(answer.ignored)) == ([], ["listen.tls.require_client_certificate"])
    with tls_channel(daemon, authority) as channel:
        models(pb, channel)  # as it was
