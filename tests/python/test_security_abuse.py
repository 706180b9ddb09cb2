"""Clients that mean harm, or are broken: the daemon lives, its memory stays bounded, a normal client is served meanwhile."""

import os
import random
import re
import resource
import socket
import subprocess
import threading
import time
import urllib.request

import grpc
import pytest
from client import ENDLESS, Client, Running, details, expect_error
from http2 import (CONTINUATION, DATA, END_HEADERS, END_STREAM, GOAWAY, HEADERS, PING, RST_STREAM, SETTINGS, Connection,
                   address_of, call_headers, frame, header)
from test_control import probe
from test_load import total
from test_metrics import scrape, series
from test_security import new_token

EXHAUSTED = grpc.StatusCode.RESOURCE_EXHAUSTED
MIB = 1 << 20


def resident(daemon):
    with open(f"/proc/{daemon.process.pid}/status") as file:
        return int(re.search(r"VmRSS:\s+(\d+) kB", file.read()).group(1)) * 1024


def peak(daemon):
    with open(f"/proc/{daemon.process.pid}/status") as file:
        return int(re.search(r"VmHWM:\s+(\d+) kB", file.read()).group(1)) * 1024


def metric(daemon, name):
    text = urllib.request.urlopen(daemon.metrics, timeout=60).read().decode()
    return float(re.search(rf"^{re.escape(name)} (\S+)", text, re.MULTILINE).group(1))


def eventually(check, timeout=60):
    end = time.monotonic() + timeout
    while not check():
        assert time.monotonic() < end
        time.sleep(0.05)


def serves(daemon, pb, timeout=60):
    """A client that was not there before gets its answer."""
    with daemon.new_channel() as channel:
        assert Client(pb, channel).generate("hello", timeout=timeout).finished.usage.completion_tokens == 8


def test_oversized_metadata(client, shared, pb):
    request = pb.info.ListModelsRequest()
    client.info.ListModels(request, metadata=[("x", "y" * 8000)])
    error = expect_error(EXHAUSTED, lambda: client.info.ListModels(request, metadata=[("x", "y" * 100000)]))
    assert "metadata" in error.details()
    # Many at once: now and then gRPC 1.51 closes the connection instead.
    with shared.new_channel() as channel:
        with pytest.raises(grpc.RpcError) as caught:
            models = pb.info_grpc.InfoStub(channel).ListModels
            models(request, metadata=[(f"x{i}", "y" * 1000) for i in range(100)], timeout=60)
        assert caught.value.code() in (EXHAUSTED, grpc.StatusCode.UNAVAILABLE)
    client.info.ListModels(request)
    serves(shared, pb)


def test_oversized_message(client, shared, pb):
    error = expect_error(EXHAUSTED, lambda: client.stream("x" * (5 * MIB)))
    assert "4194304" in error.details()
    serves(shared, pb)


def test_malformed_messages(shared, pb):
    noise = random.Random(7)
    methods = [f"/skein.v1.{service.name}/{method.name}"
               for file in (pb.gen, pb.conv, pb.info) for service in file.DESCRIPTOR.services_by_name.values()
               for method in service.methods if not method.client_streaming]
    assert len(methods) > 10
    for method in methods:
        call = shared.channel.unary_stream(method)
        for size in (1, 2, 17, 300, 5000):
            # The first byte is a tag that no message of ours begins with: field 15, wire type 7.
            data = b"\x7f" + noise.randbytes(size)
            error = expect_error(grpc.StatusCode.INVALID_ARGUMENT, lambda: call(data, timeout=60))
            assert details(error)["ErrorInfo"].reason == "MALFORMED_MESSAGE", method
    serves(shared, pb)


def test_long_values_are_cut(start, pb):
    """Ids, names and paths may be as long as a message; what is told and logged of them is not."""
    daemon = start()
    client = Client(pb, daemon.channel)
    long = "x" * (3 * MIB)
    invalid, not_found = grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND
    calls = [(not_found, "Attach", lambda: client.gen.Attach(pb.gen.AttachRequest(request_id=long), timeout=60)),
             (invalid, "Generate", lambda: client.stream("x", request_id=long)),
             (invalid, "Get", lambda: client.get(long)),
             (not_found, "Tokenize", lambda: client.gen.Tokenize(pb.gen.TokenizeRequest(model=long), timeout=60)),
             (not_found, "Score", lambda: client.gen.Score(pb.gen.ScoreRequest(model=long), timeout=60)),
             (not_found, "LoadModel", lambda: client.control.LoadModel(pb.control.LoadModelRequest(path=long), timeout=60)),
             (not_found, "UnloadModel",
              lambda: client.control.UnloadModel(pb.control.UnloadModelRequest(name=long), timeout=60))]
    for code, method, call in calls:
        expect_error(code, call)
        daemon.wait_for_line(f"method=[^ ]*{method} ")
    expect_error(not_found, lambda: client.stream("x", prompt_state=long))
    assert client.gen.Cancel(pb.gen.CancelRequest(request_id=long), timeout=60).cancelled is False
    assert max(len(line) for line in daemon.lines) < 20000
    serves(daemon, pb)


IDLE = 10000


def open_files(wanted):
    """As many files as this process and one that it starts may have open, raised to `wanted` where that is allowed."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    if hard == resource.RLIM_INFINITY:
        hard = 1 << 20
    try:
        limit = max(hard, wanted)
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
    except ValueError:  # not everyone may raise the hard one
        limit = hard
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
    return limit


def test_idle_connections(start, pb):
    # At each end: both have other files open, and skeind keeps 256 for them.
    limit = open_files(IDLE + 1000)
    count = min(IDLE, limit - 1000)
    assert count >= 500, "the limit of open files is too low for this test"
    # Half of them do not even begin, and none answers pings; how fast they come depends on the machine.
    daemon = start({"listen.handshake": "10m", "listen.keepalive": "10m"})
    serves(daemon, pb)
    before = resident(daemon)
    idle = []
    for i in range(count):
        one = socket.create_connection(address_of(daemon), timeout=60)
        idle.append(one)
        if i % 2 == 0:
            one.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(SETTINGS))
    eventually(lambda: metric(daemon, "skein_connections") >= count, 60)
    serves(daemon, pb)
    each = (resident(daemon) - before) / count
    print(f"{count} idle connections, {each / 1024:.1f} KiB each")
    assert each < 128 * 1024
    for one in idle:
        one.close()
    eventually(lambda: metric(daemon, "skein_connections") <= 2, 60)
    serves(daemon, pb)
    if count < IDLE:
        pytest.skip(f"{count} idle connections were borne; {IDLE} want more open files than the limit of {limit}")


def test_limit_of_connections(start, pb):
    daemon = start({"listen.max_connections": 8})
    client = Client(pb, daemon.channel)
    client.generate("hello")
    connections = [Connection(daemon) for _ in range(7)]
    assert not any(c.closed(0.2) for c in connections)
    extra = [Connection(daemon, preface=False) for _ in range(5)]
    assert all(c.closed(60) for c in extra)
    daemon.wait_for_line("too many connections.*limit=8")
    client.generate("hello")  # who is in stays in
    eventually(lambda: metric(daemon, 'skein_connections_refused_total{reason="limit"}') >= 5)
    connections.pop().close()
    eventually(lambda: not Connection(daemon).closed(0.3))


def test_exhausted_descriptors(start, pb):
    daemon = start({"listen.max_connections": 1000})
    client = Client(pb, daemon.channel)
    client.generate("hello")
    used = len(os.listdir(f"/proc/{daemon.process.pid}/fd"))
    subprocess.run(["prlimit", f"--nofile={used + 20}", "--pid", str(daemon.process.pid)], check=True)
    flood = [Connection(daemon, preface=False) for _ in range(100)]
    daemon.wait_for_line("cannot accept connections.*Too many open files")
    client.generate("hello")
    # Refused at once, not left waiting; and after the flood everything is as before.
    eventually(lambda: sum(c.closed(0.01) for c in flood) >= 70)
    for connection in flood:
        connection.close()
    eventually(lambda: len(os.listdir(f"/proc/{daemon.process.pid}/fd")) <= used + 3)
    serves(daemon, pb)
    eventually(lambda: metric(daemon, 'skein_connections_refused_total{reason="descriptors"}') >= 70)


def test_half_open_connections_are_closed(start, pb):
    daemon = start({"listen.handshake": "3s"})
    silent = Connection(daemon, preface=False)
    slow = Connection(daemon, preface=False)
    slow.send(b"PRI * HTTP/2.0\r\n")
    wrong = Connection(daemon, preface=False)
    wrong.send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
    assert wrong.closed(60)
    serves(daemon, pb)
    assert silent.closed(60) and slow.closed(60)


def test_idle_timeout(start, pb):
    daemon = start({"listen.max_connection_idle": "2s"})
    idle = Connection(daemon)
    assert idle.closed(60)
    # A client that was put out comes back by itself. (A call that begins while it is put out ends UNAVAILABLE.)
    with daemon.new_channel() as channel:
        states = []
        channel.subscribe(states.append)
        client = Client(pb, channel)
        client.generate("hello")
        eventually(lambda: grpc.ChannelConnectivity.READY in states)
        eventually(lambda: states[-1] == grpc.ChannelConnectivity.IDLE)
        client.generate("hello")


def test_ping_flood(start, pb):
    daemon = start()
    flood = Connection(daemon)
    try:
        for _ in range(2000):
            flood.send(frame(PING, payload=b"8 bytes!"))
    except OSError:
        pass
    said = [payload for kind, payload in flood.frames() if kind == GOAWAY]
    assert said and b"too_many_pings" in said[-1]
    serves(daemon, pb)


def test_who_does_not_answer_pings_is_closed(start, pb):
    daemon = start({"listen.keepalive": "2s"})
    running = Running(Client(pb, daemon.channel).stream("hello", max_tokens=ENDLESS))  # its connection does answer
    silent = Connection(daemon)
    assert not silent.closed(0.5) and silent.closed(60)
    assert running.error is None
    running.cancel()


def test_pings_now_and_then_are_no_flood(start, pb):
    # Far from what either does: the server may read the polite one's late, and the busy one may be slow.
    daemon = start({"listen.min_client_ping": "100ms"})
    polite, busy = Connection(daemon), Connection(daemon)
    for _ in range(6):
        polite.send(frame(PING, payload=b"8 bytes!"))
        assert not polite.closed(0.5)
    try:
        for _ in range(100):
            busy.send(frame(PING, payload=b"8 bytes!"))
    except OSError:
        pass
    assert busy.closed(60)
    serves(daemon, pb)


def test_the_age_of_connections(start, pb):
    """Who is asked to reconnect may end its calls, for as long as the grace lasts."""
    daemon = start({"listen.max_connection_age": "1s", "listen.max_connection_grace": "5s"})
    begin = time.monotonic()  # before there is a connection, so none of them ends before it may
    idle = Connection(daemon)
    running = Running(Client(pb, daemon.channel).stream("hello", max_tokens=ENDLESS))
    time.sleep(max(0, begin + 1.5 - time.monotonic()))  # the age is a tenth more or less, so that not all reconnect at once
    assert running.error is None
    serves(daemon, pb)
    eventually(lambda: running.error is not None)
    assert running.error.code() == grpc.StatusCode.UNAVAILABLE
    assert time.monotonic() - begin > 5.5
    assert GOAWAY in [kind for kind, _ in idle.frames()] and idle.closed(60)
    serves(daemon, pb)


def test_dripping_headers(start, pb):
    """A call whose headers never end, a few bytes at a time: its connection has no call, so it counts as idle."""
    daemon = start({"listen.max_connection_idle": "2s"})
    slow = Connection(daemon)
    slow.send(frame(HEADERS, 0, 1, call_headers(b"/skein.v1.Info/ListModels")))
    begin = time.monotonic()
    try:
        while not slow.closed(0.2):
            assert time.monotonic() - begin < 60
            slow.send(frame(CONTINUATION, 0, 1, header(b"x", b"y")))
    except OSError:
        pass
    serves(daemon, pb)


def test_dead_readers(start, pb):
    """64 clients that never read: a normal one is served meanwhile, and each of them ends."""
    daemon = start({"limits.outbox_tokens": 64, "limits.outbox_age": "1s"})
    client = Client(pb, daemon.channel)
    client.generate("hello")
    before = peak(daemon)
    message = client.request("x", max_tokens=ENDLESS).SerializeToString()
    dead = [Connection(daemon) for _ in range(64)]
    for one in dead:
        one.open_call(1, b"/skein.v1.Generation/Generate")
        one.send(frame(DATA, END_STREAM, 1, b"\0" + len(message).to_bytes(4, "big") + message))
    begin = time.monotonic()
    running = ended = 0
    while ended < 64:
        client.generate("hello", timeout=60)
        values = series(scrape(daemon))
        running = max(running, total(values, "skein_requests_running"))
        ended = total(values, "skein_requests_total", 'code="RESOURCE_EXHAUSTED"')
        assert time.monotonic() - begin < 120
    assert running > 1  # the first of them may end before the last has come
    assert peak(daemon) - before < 64 * MIB
    for one in dead:
        one.close()
    serves(daemon, pb)


def thrown_out(attacker, data, most):
    """Sends until the server has enough of it; how much that was."""
    attacker.socket.settimeout(60)
    sent = 0
    try:
        while sent < most:
            attacker.send(data)
            sent += len(data)
    except TimeoutError:
        raise
    except OSError:
        pass
    assert attacker.closed(60), f"{sent / MIB:.0f} MiB were taken"
    return sent


# A field after the other; one whose value of 2 GB never ends.
ENDLESS_HEADERS = {"fields": (b"", header(b"x-junk", b"y" * 8000)), "value": (b"\0\1x\x7f\x81\xff\xff\xff\x07", b"y" * 8000)}


def taken_of_endless_headers(daemon, pb, kind):
    """Two attackers, one after the other; the bytes that the server took of them at its peak."""
    serves(daemon, pb)
    before = peak(daemon)
    begin, junk = ENDLESS_HEADERS[kind]
    for _ in range(2):
        attacker = Connection(daemon)
        attacker.send(frame(HEADERS, 0, 1, call_headers(b"/skein.v1.Info/ListModels") + begin))
        sent = thrown_out(attacker, frame(CONTINUATION, 0, 1, junk) * 100, 512 * MIB)
        print(f"{sent / MIB:.0f} MiB were sent")
        serves(daemon, pb)
    daemon.wait_for_line("headers that do not end")
    eventually(lambda: metric(daemon, 'skein_connections_refused_total{reason="headers"}') == 2)
    return peak(daemon) - before


@pytest.mark.parametrize("kind", ENDLESS_HEADERS)
def test_endless_headers(start, pb, kind):
    """gRPC 1.51 keeps all that it is sent of headers that never end (CVE-2023-33953). Who sends them is looked at every
    50 ms; other programs that hold up the look let him send more, so one of three tries must do."""
    # 800 MB would be kept of the first one alone.
    assert any(taken_of_endless_headers(start(), pb, kind) < 192 * MIB for _ in range(3))


def error_beside_dripping_headers(daemon, pb):
    """The attacker is disconnected; how the call of another client ended, None: it goes on."""
    client = Client(pb, daemon.channel)
    other = Running(client.stream("hello", max_tokens=ENDLESS))
    attacker = Connection(daemon)
    message = client.request("x", max_tokens=ENDLESS).SerializeToString()
    attacker.open_call(1, b"/skein.v1.Generation/Generate")
    attacker.send(frame(DATA, END_STREAM, 1, b"\0" + len(message).to_bytes(4, "big") + message))
    reader = threading.Thread(target=attacker.closed, args=(60,))
    reader.start()
    eventually(lambda: total(series(scrape(daemon)), "skein_requests_running") == 2, 60)
    attacker.send(frame(HEADERS, 0, 3, call_headers(b"/skein.v1.Info/ListModels")))
    drip = frame(CONTINUATION, 0, 3, header(b"x", b"y" * 4000))
    sent = thrown_out(attacker, drip, 512 * MIB)
    reader.join()
    print(f"{sent / MIB:.1f} MiB were sent")
    serves(daemon, pb)
    error = other.error
    other.cancel()
    return error


def test_headers_that_drip_beside_a_call(start, pb):
    """While a call runs its connection is not idle: there the bytes are bounded that nothing comes of. Who sends them is
    looked at every 50 ms, in which a fast one can fill as little as this; gRPC may then end the call of another, so one of
    three tries must leave it alone, and nothing else may come to it."""
    errors = []
    while len(errors) < 3 and None not in errors:
        daemon = start({"listen.transport_memory": "16MiB"})
        errors.append(error_beside_dripping_headers(daemon, pb))
    assert None in errors
    daemon.wait_for_line("headers that do not end")
    assert all(error.code() == grpc.StatusCode.RESOURCE_EXHAUSTED for error in errors if error is not None)


def test_many_requests_at_once_are_no_endless_headers(start, pb):
    """Large requests, one after the other and side by side, on one connection: each is a beginning and an end."""
    daemon = start()
    client = Client(pb, daemon.channel)
    tokenize = pb.gen.TokenizeRequest(text="x" * 200000)
    for _ in range(2):
        calls = [client.gen.Tokenize.future(tokenize, timeout=120) for _ in range(20)]
        for call in calls:
            assert len(call.result().ids) == 200000
    assert metric(daemon, 'skein_connections_refused_total{reason="headers"}') == 0


@pytest.mark.parametrize("method", [b"/skein.v1.Info/ListModels", b"/skein.v1.Generation/Generate", b"/nothing/Here"])
def test_reset_flood(start, pb, method):
    """Calls that are opened and reset at once (CVE-2023-44487). All of them together would take 1.2 GB."""
    daemon = start({"listen.max_streams": 256})
    serves(daemon, pb)
    before = resident(daemon)
    headers = call_headers(method)
    flood = b"".join(frame(HEADERS, END_HEADERS, stream, headers) + frame(RST_STREAM, 0, stream, b"\0\0\0\x08")
                     for stream in range(1, 120000, 2))
    attacker = Connection(daemon)
    try:
        attacker.send(flood)
    except OSError:
        pass
    closed = attacker.closed(30)
    serves(daemon, pb, timeout=60)
    assert resident(daemon) - before < 256 * MIB
    if not closed and method == b"/nothing/Here":
        return  # a busy machine reads the flood so slowly that each of these calls ends before many more have come
    assert closed
    daemon.wait_for_line("resets calls faster")
    eventually(lambda: metric(daemon, 'skein_connections_refused_total{reason="calls"}') >= 1)


def test_giving_up_all_calls_is_no_flood(start, pb):
    daemon = start({"listen.max_streams": 50})
    client = Client(pb, daemon.channel)
    for _ in range(3):
        calls = [client.stream("hello", max_tokens=1000) for _ in range(50)]
        for call in calls:
            call.cancel()
    client.generate("hello")
    assert metric(daemon, 'skein_connections_refused_total{reason="calls"}') == 0


def test_unfinished_uploads(start, pb):
    """Many calls that send most of a large message and then nothing."""
    daemon = start({"listen.transport_memory": "64MiB"})
    serves(daemon, pb)
    before = resident(daemon)
    # 3.9 MiB of a message of 4 MiB, in frames of 16 KiB.
    size = 4 * MIB - 64
    message = b"\0" + size.to_bytes(4, "big") + bytes(size - 100000)
    attackers, sent = [], 0
    for _ in range(32):
        if len(attackers) >= 8 and sent > 64 * MIB:
            break
        attacker = Connection(daemon)
        attacker.socket.settimeout(2)
        attackers.append(attacker)
        try:
            for stream in range(1, 41, 2):
                attacker.open_call(stream, b"/skein.v1.Generation/Generate")
                for at in range(0, len(message), 16384):
                    attacker.send(frame(DATA, 0, stream, message[at:at + 16384]))
                    sent += 16384
        except OSError:
            pass  # flow control, or thrown out: both are what is wanted
    grown = resident(daemon) - before
    print(f"sent {sent / MIB:.0f} MiB, grown by {grown / MIB:.0f} MiB")
    assert sent > 64 * MIB, "not more than what may be on its way"
    assert grown < 256 * MIB
    for attacker in attackers:
        attacker.close()
    serves(daemon, pb)


def test_streams_of_one_connection(start, pb):
    """Calls beyond listen.max_streams, of a client that has agreed to that limit and of one that never says so: gRPC 1.51
    holds only the first to it."""
    daemon = start({"listen.max_streams": 10})
    serves(daemon, pb)
    before = peak(daemon)
    agreed = Connection(daemon)
    agreed.agree()
    for stream in range(1, 21, 2):
        agreed.open_call(stream, b"/skein.v1.Generation/Generate")
    assert not agreed.closed(0.3)
    agreed.open_call(21, b"/skein.v1.Generation/Generate")
    assert agreed.closed(60)
    silent = Connection(daemon)
    try:
        for stream in range(1, 200001, 2):
            silent.open_call(stream, b"/skein.v1.Generation/Generate")
    except OSError:
        pass
    assert silent.closed(60)
    assert peak(daemon) - before < 64 * MIB  # all of them would take 1.2 GB
    eventually(lambda: metric(daemon, 'skein_connections_refused_total{reason="calls"}') == 1)
    serves(daemon, pb)


def send_bytes(daemon, data, code, **options):
    """Sends one message of these bytes; it must be refused with this code."""
    with grpc.insecure_channel(daemon.address, options=[("grpc.max_send_message_length", -1)]) as channel:
        call = channel.unary_stream("/skein.v1.Generation/Generate")
        return expect_error(code, lambda: call(data, timeout=60, **options))


@pytest.mark.parametrize("algorithm", [grpc.Compression.Gzip, grpc.Compression.Deflate])
def test_compressed_bomb(start, pb, algorithm):
    """A hundred kilobytes that would be a hundred megabytes: they are not unpacked."""
    daemon = start()
    serves(daemon, pb)
    before = peak(daemon)
    send_bytes(daemon, bytes(128 * MIB), grpc.StatusCode.UNIMPLEMENTED, compression=algorithm)
    assert peak(daemon) - before < 16 * MIB
    serves(daemon, pb)


def test_a_huge_message_is_bounded_by_the_transports_memory(start, pb):
    """gRPC 1.51 compares the size with listen.max_message when the message is whole."""
    daemon = start({"listen.transport_memory": "64MiB"})
    serves(daemon, pb)
    before = peak(daemon)
    send_bytes(daemon, bytes(512 * MIB), EXHAUSTED)
    assert peak(daemon) - before < 160 * MIB
    serves(daemon, pb)


def test_nothing_is_read_for_strangers(start, pb, tmp_path):
    _, line = new_token(tmp_path, "one")
    daemon = start({"auth.tokens": f"[{line}]"})
    before = peak(daemon)
    for _ in range(3):
        error = send_bytes(daemon, bytes(128 * MIB), grpc.StatusCode.UNAUTHENTICATED)
        assert details(error)["ErrorInfo"].reason == "TOKEN_MISSING"
    # What is on its way when the refusal is made; less than any of the messages.
    assert peak(daemon) - before < 64 * MIB
    assert metric(daemon, 'skein_connections_refused_total{reason="headers"}') == 0


@pytest.mark.parametrize("data", [b"", b"\0", b"\0" * 9, b"\xff" * 1000, frame(99, 0xff, 0x7fffffff, b"x" * 100),
                                  frame(DATA, 0, 1, b"x"), frame(HEADERS, 0, 0, b""), frame(CONTINUATION, 4, 1, b"x"),
                                  frame(HEADERS, 4, 1, b"\x7f" * 100), frame(SETTINGS, 0, 0, b"123")])
def test_broken_frames(shared, pb, data):
    connection = Connection(shared)
    connection.send(data)
    connection.closed(0.2)
    connection.close()
    serves(shared, pb)


def test_idle_connections_do_not_keep_probes_waiting(start):
    daemon = start()
    host, port = daemon.metrics.split("/")[2].split(":")
    idle = [socket.create_connection((host, int(port)), timeout=60) for _ in range(50)]
    began = time.monotonic()
    assert probe(daemon, "/healthz") == (200, "ok\n")
    assert time.monotonic() - began < 5  # beside none of them it takes milliseconds
    # Who says nothing is disconnected, and who comes later is served.
    for connection in idle:
        connection.settimeout(60)
        while connection.recv(4096):
            pass
        connection.close()
    assert probe(daemon, "/readyz") == (200, "ready\n")
