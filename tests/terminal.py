"""A command in a terminal of its own, as a user types it. Needs only Python 3."""

import os
import pty
import re
import select
import signal
import sys
import time


class Terminal:
    """What the command prints is kept, and shown when `show` is set. Failures are AssertionErrors."""

    def __init__(self, command, folder, show=False, environment=None):
        self.output = ""
        self.show = show
        self.pid, self.file = pty.fork()
        if self.pid == 0:
            # As a terminal's shell starts it; who runs the tests may ignore them, as nohup and `&` in a script do.
            for number in (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT):
                signal.signal(number, signal.SIG_DFL)
            os.chdir(folder)
            os.execvpe(command[0], command, environment or os.environ)

    def read(self, seconds):
        """False when the command has ended its output."""
        ready, _, _ = select.select([self.file], [], [], seconds)
        if not ready:
            return True
        try:
            text = os.read(self.file, 65536).decode("utf-8", "replace")
        except OSError:  # how Linux says that the other side is closed
            return False
        if self.show:
            sys.stdout.write(text)
            sys.stdout.flush()
        self.output += text
        return bool(text)

    def wait_for(self, pattern, seconds):
        deadline = time.monotonic() + seconds
        while not re.search(pattern, self.output):
            if time.monotonic() > deadline:
                self.fail(f"no '{pattern}' after {seconds} s")
            if not self.read(1):
                self.fail(f"ended before it printed '{pattern}'")

    def press_ctrl_c(self):
        os.write(self.file, b"\x03")

    def press_ctrl_backslash(self):
        os.write(self.file, b"\x1c")

    def exit_code(self, seconds):
        deadline = time.monotonic() + seconds
        while self.read(0.2):
            if time.monotonic() > deadline:
                self.fail(f"still running {seconds} s later")
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])

    def check(self, condition, reason):
        if not condition:
            self.fail(reason)

    def fail(self, reason):
        try:
            os.kill(self.pid, signal.SIGTERM)
        except ProcessLookupError:
            pass  # it has ended by itself
        raise AssertionError(f"{reason}; it printed:\n{self.output[-3000:]}")
