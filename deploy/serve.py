#!/usr/bin/env python3
"""What `make serve` does after installing and building: trains the demo model when there is none, starts skeind and
says what to type next.

usage: deploy/serve.py [MODEL]
"""

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import threading

DEMO = "models/demo.safetensors"
SKEIND = "build/bin/skeind"
ENDS = (signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGHUP)
# Exit codes of programs that were told to end before they could do it well, from inside and from the signal.
STOPPED = (128 + signal.SIGINT, 128 + signal.SIGTERM, -signal.SIGTERM)


@contextlib.contextmanager
def foreground():
    """Meanwhile Ctrl-C reaches this script and not make, which would report an error however well everything ends: the
    script becomes the foreground process group of its terminal, where it has one. Ctrl-Z is ignored, since the shell,
    which knows make alone, would not come back.
    """
    ours = os.getpgrp()
    try:
        terminal = os.open("/dev/tty", os.O_RDWR | os.O_CLOEXEC)
        if os.tcgetpgrp(terminal) != ours:
            raise OSError("in the background")
        signal.signal(signal.SIGTSTP, signal.SIG_IGN)
        # Taking the terminal from the background is what is meant, and so is writing to it from there (`stty tostop`).
        signal.signal(signal.SIGTTOU, signal.SIG_IGN)
        if ours != os.getpid():  # whoever was started by a shell, or as the first of a session, leads its group already
            os.setpgid(0, 0)
            os.tcsetpgrp(terminal, os.getpgrp())
    except OSError:
        yield
        return
    try:
        yield
    finally:
        with contextlib.suppress(OSError):  # it may be closed
            os.tcsetpgrp(terminal, ours)


def run(command, **options):
    """Runs a program to its end; its exit code. Ctrl-C, Ctrl-\\, SIGTERM and the end of the terminal reach this
    script alone, which passes each on as one SIGTERM: a second one ends skeind without a drain.
    """
    program, asked = None, False

    def end(*_):
        nonlocal asked
        asked = True
        if program:
            program.terminate()

    before = {number: signal.signal(number, end) for number in ENDS if signal.getsignal(number) != signal.SIG_IGN}
    started = subprocess.Popen(command, start_new_session=True, **options)
    # Either `end` tells the program or this does, never both.
    signal.pthread_sigmask(signal.SIG_BLOCK, ENDS)
    if asked:
        started.terminate()
    program = started
    signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDS)
    code = program.wait()
    for number, handler in before.items():
        signal.signal(number, handler)
    return code


def train_demo():
    """The exit code of this script when there is no demo model to serve; else None."""
    if os.path.exists(DEMO):
        return None
    print("make serve: training the demo model", flush=True)
    # An interrupted training goes on where it was (run.resume in that config).
    code = run(["build/bin/skein-train", "--config", "trainer/configs/demo.yaml"])
    if code == 0:
        return None
    if code in STOPPED:
        print("make serve: the training was stopped; 'make serve' goes on with it", flush=True)
        return 0
    return code


def arguments(model):
    result = ["--config", "config.yaml"]
    if model:
        result += ["--model", model]
        # Checkpoints as published do not bring their vocabulary; one that is named in the config stays.
        with open("config.yaml", encoding="utf-8") as file:
            if re.search(r'^  vocabulary: ""', file.read(), re.MULTILINE):
                folder = os.environ.get("SKEIN_DEPS") or os.path.expanduser("~/.cache/skein")
                result += ["--set", f"model.vocabulary={folder}/rwkv_vocab_v20230424.txt"]
    return result


def welcome(config):
    """What to type next. `config` is the effective one."""
    section = re.search(r"^listen:\n((?:  .*\n)*)", config, re.MULTILINE)[1]
    listen = dict(re.findall(r'^  (\w+): "(.*)"', section, re.MULTILINE))
    lines = [f"\nskeind is ready on {listen['address']}. In another terminal, in this folder:",
             "  make chat                              talk to the model; /help lists what you can type",
             "  build/bin/skein generate 'Some text'   continue a text"]
    if listen["metrics"]:
        lines.append(f"  {'http://' + listen['metrics'] + '/metrics':<38} what Prometheus sees")
    return "\n".join([*lines, "Ctrl-C here stops it."])


def say_when_ready(notifications, text):
    """skeind, and no other server on that address, tells when it serves, as it tells systemd."""
    with contextlib.suppress(OSError):  # the socket is closed when skeind has ended
        while b"READY=1" not in notifications.recv(4096):
            pass
        print(text, flush=True)
        while True:  # what it tells later is not of interest, but must have somewhere to go
            notifications.recv(4096)


def serve(model):
    command = [SKEIND, *arguments(model)]
    config = subprocess.run([*command, "--print-effective-config"], stdout=subprocess.PIPE, text=True, check=False)
    if config.returncode != 0:
        return config.returncode
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notifications:
        notifications.bind("")  # the kernel chooses an abstract name, which begins with a zero byte
        name = "@" + notifications.getsockname()[1:].decode()
        threading.Thread(target=say_when_ready, args=(notifications, welcome(config.stdout)), daemon=True).start()
        return run(command, env={**os.environ, "NOTIFY_SOCKET": name})


def main():
    os.chdir(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    model = sys.argv[1] if len(sys.argv) > 1 else ""
    with foreground():
        try:
            code = None if model else train_demo()
            if code is None:
                code = serve(model)
        except KeyboardInterrupt:  # between two programs
            code = 128 + signal.SIGINT
    if code in STOPPED:
        print("make serve: stopped", flush=True)
        code = 0
    return code if code >= 0 else 128 - code


if __name__ == "__main__":
    sys.exit(main())
