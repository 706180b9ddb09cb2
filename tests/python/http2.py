"""HTTP/2 by hand, for what no proper client does. Only what the tests need: frames, and headers without compression."""

import socket
import struct

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, CONTINUATION = 0, 1, 3, 4, 6, 7, 9
END_STREAM, ACK, END_HEADERS = 1, 1, 4


def frame(kind, flags=0, stream=0, payload=b""):
    return struct.pack(">I", len(payload))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + payload


def _number(value, prefix_bits):
    limit = (1 << prefix_bits) - 1
    if value < limit:
        return bytes([value])
    out, value = [limit], value - limit
    while value >= 128:
        out.append(value % 128 + 128)
        value //= 128
    return bytes(out + [value])


def header(name, value):
    """One header, literal and never indexed."""
    return b"\x00" + _number(len(name), 7) + name + _number(len(value), 7) + value


def call_headers(path, extra=()):
    fields = [(b":method", b"POST"), (b":scheme", b"http"), (b":path", path), (b":authority", b"x"),
              (b"te", b"trailers"), (b"content-type", b"application/grpc"), *extra]
    return b"".join(header(name, value) for name, value in fields)


def address_of(daemon):
    host, port = daemon.address.rsplit(":", 1)
    return host, int(port)


class Connection:
    """A socket that has said the preface."""

    def __init__(self, daemon, preface=True):
        self.socket = socket.create_connection(address_of(daemon), timeout=60)
        if preface:
            self.send(PREFACE + frame(SETTINGS))

    def send(self, data):
        self.socket.sendall(data)

    def open_call(self, stream, path=b"/skein.v1.Info/ListModels", extra=(), end=False):
        self.send(frame(HEADERS, END_HEADERS | (END_STREAM if end else 0), stream, call_headers(path, extra)))

    def agree(self):
        """Acknowledges the server's settings, once they are there: an earlier acknowledgement is one of nothing."""
        data = b""
        while len(data) < 9 or data[3] != SETTINGS:
            data += self.socket.recv(65536)
            assert data, "closed before its settings came"
        self.send(frame(SETTINGS, ACK))

    def closed(self, timeout):
        """Whether the other side closes within this time; what it says meanwhile is thrown away."""
        self.socket.settimeout(timeout)
        try:
            while self.socket.recv(65536):
                pass
            return True
        except TimeoutError:
            return False
        except OSError:
            return True

    def frames(self, timeout=60):
        """Frames until the other side closes or is silent for this long."""
        self.socket.settimeout(timeout)
        data = b""
        try:
            while part := self.socket.recv(65536):
                data += part
        except OSError:
            pass
        while len(data) >= 9:
            size = int.from_bytes(data[:3], "big")
            yield data[3], data[9:9 + size]
            data = data[9 + size:]

    def close(self):
        self.socket.close()
