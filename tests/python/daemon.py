"""Starts the real skeind on free ports and stops it."""

import contextlib
import os
import pathlib
import re
import signal
import subprocess
import threading
import time

import grpc

ROOT = pathlib.Path(__file__).resolve().parents[2]
BUILD = pathlib.Path(os.environ.get("SKEIN_BUILD", ROOT / "build")).resolve()
SKEIND = BUILD / "bin" / "skeind"


def environment():
    """The caller's, without anything that configures skeind."""
    return {k: v for k, v in os.environ.items() if not k.startswith("SKEIND_")}


def run(*arguments, cwd, env=None, timeout=60):
    """Runs skeind to its end."""
    return subprocess.run([SKEIND, *arguments], cwd=cwd, env=env or environment(), timeout=timeout,
                          capture_output=True, text=True)


@contextlib.contextmanager
def killed_after(process, seconds):
    """A deadline for who reads its output until a line that may never come: at the latest then the output ends."""
    timer = threading.Timer(seconds, process.kill)
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


class Daemon:
    """A running skeind. `settings` become --set key=value; `listen` None: as its config file says. `until`: "ready", or
    "listening" for one that still loads."""

    def __init__(self, model, cwd, settings=None, listen="127.0.0.1:0", env=None, until="ready"):
        merged = {"listen.metrics": "127.0.0.1:0", "cpu.threads": 1, "limits.max_tokens": 10**9, **(settings or {})}
        if listen is not None:
            merged["listen.address"] = listen
        command = [str(SKEIND), "--model", str(model)]
        for key, value in merged.items():
            command += ["--set", f"{key}={value}"]
        self.process = subprocess.Popen(command, cwd=cwd, env=env or environment(), stdout=subprocess.DEVNULL,
                                        stderr=subprocess.PIPE, text=True)
        self.lines = []
        self._new_line = threading.Condition()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        line = self.wait_for_line(f' {until} |"message":"{until}"', timeout=60)  # text or JSON
        self.address = re.search(r'\bgrpc[=":]+([^\s"]+)', line).group(1)
        self.metrics = re.search(r'\bmetrics[=":]+([^\s"]+)', line).group(1)
        self.channel = grpc.insecure_channel(self.address)

    def _read(self):
        for line in self.process.stderr:
            with self._new_line:
                self.lines.append(line.rstrip("\n"))
                self._new_line.notify_all()
        with self._new_line:
            self.lines.append(None)
            self._new_line.notify_all()

    def wait_for_line(self, pattern, timeout=60):
        end = time.monotonic() + timeout
        seen = 0
        with self._new_line:
            while True:
                while seen < len(self.lines):
                    line = self.lines[seen]
                    seen += 1
                    if line is None:
                        raise AssertionError("skeind ended:\n" + self.log())
                    if re.search(pattern, line):
                        return line
                left = end - time.monotonic()
                assert left > 0, f"no line with {pattern!r}:\n" + self.log()
                self._new_line.wait(left)

    def log(self):
        return "\n".join(line for line in self.lines if line is not None)

    def new_channel(self, options=()):
        """A connection of its own, not shared with other channels of this process."""
        return grpc.insecure_channel(self.address, options=[("grpc.use_local_subchannel_pool", 1), *options])

    def terminate(self):
        self.process.send_signal(signal.SIGTERM)

    def wait(self, timeout=60):
        """The exit code; the log is then whole."""
        code = self.process.wait(timeout)
        self._reader.join(60)
        return code

    def stop(self):
        self.channel.close()
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait(60)
        self._reader.join(60)
        self.process.stderr.close()
