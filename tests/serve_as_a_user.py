#!/usr/bin/env python3
"""Types `make serve` into a terminal, chats through a pipe, presses Ctrl-C and types it again, as a new user would.

Checks that the first run says what it does and becomes ready, that the demo model answers, that Ctrl-C ends it without an
error of make, and that the second run is ready in seconds. Needs only Python 3.
"""

import os
import pty
import re
import select
import signal
import subprocess
import sys
import time

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
READY = "skeind is ready on "


class Terminal:
    """A command in a terminal of its own; what it prints is shown and kept."""

    def __init__(self, command):
        self.output = ""
        self.pid, self.file = pty.fork()
        if self.pid == 0:
            os.chdir(ROOT)
            os.execvp(command[0], command)

    def read(self, seconds):
        """False when the command has ended its output."""
        ready, _, _ = select.select([self.file], [], [], seconds)
        if not ready:
            return True
        try:
            text = os.read(self.file, 65536).decode("utf-8", "replace")
        except OSError:  # how Linux says that the other side is closed
            return False
        sys.stdout.write(text)
        sys.stdout.flush()
        self.output += text
        return bool(text)

    def wait_for(self, text, seconds):
        deadline = time.monotonic() + seconds
        while text not in self.output:
            if time.monotonic() > deadline:
                self.fail(f"no '{text}' after {seconds} s")
            if not self.read(1):
                self.fail(f"ended before it printed '{text}'")

    def press_ctrl_c(self):
        os.write(self.file, b"\x03")

    def exit_code(self, seconds):
        deadline = time.monotonic() + seconds
        while self.read(0.2):
            if time.monotonic() > deadline:
                self.fail(f"still running {seconds} s later")
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])

    def fail(self, reason):
        try:
            os.kill(self.pid, signal.SIGTERM)
        except ProcessLookupError:
            pass  # it has ended by itself
        sys.exit(f"serve_as_a_user: FAILED: {reason}")


def check(condition, reason, terminal):
    if not condition:
        terminal.fail(reason)


def chat(lines):
    address = "127.0.0.1:50051"
    return subprocess.run(["build/bin/skein", "chat", "--server", address], input="\n".join(lines) + "\n", cwd=ROOT,
                          capture_output=True, text=True, timeout=120, check=True).stdout


def stop(terminal):
    terminal.press_ctrl_c()
    code = terminal.exit_code(60)
    check(code == 0, f"make ended with {code} after Ctrl-C", terminal)
    check("***" not in terminal.output, "make reported an error", terminal)


def main():
    first = Terminal(["make", "serve"])
    first.wait_for(READY, 40 * 60)
    check(re.search(r"make serve:", first.output), "it did not say first what it will do", first)
    # Only the run that trained says it.
    recall = re.search(r"recall of held-out values ([0-9.]+) %(?!.*recall of)", first.output, re.DOTALL)
    if recall:
        check(float(recall.group(1)) >= 95, f"the trainer found a recall of only {recall.group(1)} %", first)
    # What the demo is for: told in one turn, asked for in another. A small model may miss one of them.
    facts = [(f"My name is {name}.", "What is my name?", name) for name in ("Durili", "Megu", "Nalu")]
    right = 0
    for told, asked, value in facts:
        answer = chat([told, asked])
        print(f"{told} {asked}\n{answer}")
        right += value in (answer.strip().splitlines() or [""])[-1]
    check(right >= 2, f"the demo model answered only {right} of {len(facts)} questions", first)
    stop(first)

    begin = time.monotonic()
    second = Terminal(["make", "serve"])
    second.wait_for(READY, 60)
    seconds = time.monotonic() - begin
    check(seconds < 20, f"the second start took {seconds:.0f} s", second)
    stop(second)
    print(f"serve_as_a_user: passed; the second start took {seconds:.1f} s")


if __name__ == "__main__":
    main()
