#!/usr/bin/env python3
"""`make serve` after the build: Ctrl-C in each phase, who says "ready", and the plan on a bare machine.

The programs are stubs, so each phase lasts as long as the test wants; tests/serve_as_a_user.py does the same with the
real ones. Needs Python 3, bash and make.
"""

import importlib.util
import itertools
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import unittest
import unittest.mock

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
sys.path.insert(0, os.path.join(ROOT, "tests"))
from terminal import Terminal  # noqa: E402

# Ends by SIGTERM alone, so a signal that comes from elsewhere, or twice, is seen.
SKEIND = """#!/usr/bin/env python3
import os, signal, socket, sys, time
if "--print-effective-config" in sys.argv:
    print('listen:\\n  address: "127.0.0.1:7777"\\n  tls:\\n    key: ""\\n  metrics: "127.0.0.1:7778"\\nauth:\\n  address: "no"')
    sys.exit()
phase = os.environ["PHASE"]
def told(number, _):
    print("skeind has signal", number, flush=True)
    if phase == "loading":
        os._exit(143)
    time.sleep(0.3)  # the drain; a second signal ends it
    print("skeind has drained", flush=True)
    sys.exit(0)
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
    signal.signal(number, told)
print("skeind", *sys.argv[1:], flush=True)
if phase == "fails":
    sys.exit(3)
notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
if phase == "serving":
    for text in (b"STATUS=x", b"READY=1"):
        notify.sendto(text, b"\\0" + os.environ["NOTIFY_SOCKET"][1:].encode())
while True:
    time.sleep(1)
"""
TRAIN = """#!/bin/bash
trap 'echo "the state is written"; exit 130' TERM
if [[ -e stopped ]]; then mkdir -p models && touch models/demo.safetensors && exit; fi
touch stopped
echo "the bar shows"
while true; do sleep 0.1; done
"""
READY = "skeind is ready on 127.0.0.1:7777. "


class Serve(unittest.TestCase):
    def setUp(self):
        temporary = tempfile.TemporaryDirectory()
        self.addCleanup(temporary.cleanup)
        self.folder = temporary.name
        os.makedirs(os.path.join(self.folder, "deploy"))
        shutil.copy(os.path.join(ROOT, "deploy", "serve.py"), os.path.join(self.folder, "deploy"))
        self.write("Makefile", "serve:\n\t@deploy/serve.py $(MODEL)\n")
        self.write("config.yaml", 'model:\n  vocabulary: ""\n')
        self.write("build/bin/skeind", SKEIND)
        self.write("build/bin/skein-train", TRAIN)

    def write(self, path, text):
        path = os.path.join(self.folder, path)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "w", encoding="utf-8") as file:
            file.write(text)
        os.chmod(path, 0o755)

    def type(self, phase, command="make serve MODEL=x"):
        return Terminal(["bash", "-o", "pipefail", "-mc", command], self.folder,
                        environment={**os.environ, "PHASE": phase})

    def stops(self, terminal, press=Terminal.press_ctrl_c):
        press(terminal)
        code = terminal.exit_code(60)
        self.assertEqual(code, 0, terminal.output)
        self.assertNotIn("***", terminal.output)
        return terminal.output

    def test_ctrl_c_while_it_serves(self):
        terminal = self.type("serving")
        terminal.wait_for("Ctrl-C here stops it", 60)
        output = self.stops(terminal)
        self.assertIn(READY, output)
        self.assertIn("http://127.0.0.1:7778/metrics", output)
        self.assertEqual(output.count("skeind has signal"), 1, output)
        self.assertIn("skeind has drained", output)

    def test_ctrl_backslash_leaves_no_skeind_behind(self):
        terminal = self.type("serving")
        terminal.wait_for("Ctrl-C here stops it", 60)
        output = self.stops(terminal, Terminal.press_ctrl_backslash)
        self.assertEqual(output.count("skeind has signal"), 1, output)
        self.assertIn("skeind has drained", output)

    def test_ctrl_c_while_it_loads(self):
        terminal = self.type("loading")
        terminal.wait_for("skeind --config", 60)
        output = self.stops(terminal)
        self.assertIn("make serve: stopped", output)
        self.assertNotIn(READY, output)

    def test_ctrl_c_while_the_demo_is_trained(self):
        terminal = self.type("serving", "make serve")
        terminal.wait_for("the bar shows", 60)
        output = self.stops(terminal)
        self.assertIn("the state is written", output)
        self.assertIn("the training was stopped; 'make serve' goes on with it", output)
        self.assertNotIn("skeind", output)
        again = self.type("serving", "make serve")
        again.wait_for(READY, 60)
        self.stops(again)

    def test_ctrl_c_with_a_pipe_behind_it(self):
        for command in ("make serve MODEL=x | tee log", "make serve MODEL=x 2>&1 | cat", "make serve MODEL=x </dev/null"):
            with self.subTest(command=command):
                terminal = self.type("serving", command)
                terminal.wait_for("Ctrl-C here stops it", 60)
                self.assertIn("skeind has drained", self.stops(terminal))

    def test_without_make_as_the_first_of_its_session(self):
        terminal = Terminal(["deploy/serve.py", "x"], self.folder, environment={**os.environ, "PHASE": "serving"})
        terminal.wait_for("Ctrl-C here stops it", 60)
        self.assertIn("skeind has drained", self.stops(terminal))

    def test_ctrl_z_does_nothing(self):
        terminal = self.type("serving")
        terminal.wait_for("Ctrl-C here stops it", 60)
        os.write(terminal.file, b"\x1a")
        time.sleep(0.3)
        self.assertIn("skeind has drained", self.stops(terminal))

    def test_another_server_on_the_address_is_not_taken_for_ours(self):
        terminal = self.type("fails")
        self.assertEqual(terminal.exit_code(60), 2, terminal.output)
        self.assertNotIn(READY, terminal.output)
        self.assertIn("Error 3", terminal.output)

    def test_without_a_terminal_sigterm_drains_it(self):
        script = os.path.join(self.folder, "deploy", "serve.py")
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGHUP):
            with self.subTest(signal=number):
                process = subprocess.Popen([script, "x"], env={**os.environ, "PHASE": "serving"}, stdin=subprocess.DEVNULL,
                                           stdout=subprocess.PIPE, text=True, start_new_session=True)
                output = ""
                while "Ctrl-C here stops it" not in output:
                    line = process.stdout.readline()
                    self.assertTrue(line, output)
                    output += line
                process.send_signal(number)
                output += process.stdout.read()
                process.stdout.close()
                self.assertEqual(process.wait(60), 0, output)
                self.assertIn(f"skeind has signal {signal.SIGTERM.value}", output)
                self.assertIn("skeind has drained", output)

    def test_the_world_vocabulary_is_named_unless_the_config_does(self):
        for config, expected in (('model:\n  vocabulary: ""\n', True), ('model:\n  vocabulary: "own.txt"\n', False)):
            self.write("config.yaml", config)
            terminal = self.type("fails", "make serve MODEL=some.pth")
            terminal.exit_code(60)
            self.assertIn("--model some.pth", terminal.output)
            self.assertEqual("rwkv_vocab_v20230424.txt" in terminal.output, expected)


class Script(unittest.TestCase):
    """Moments of deploy/serve.py that no user can hit on purpose."""

    def setUp(self):
        spec = importlib.util.spec_from_file_location("serve", os.path.join(ROOT, "deploy", "serve.py"))
        self.serve = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(self.serve)

    def sigterms(self, moment):
        """How many the program is told when one comes at a line of run(), counted from the start of the program; None
        when run() waits for the program before that.
        """
        program = unittest.mock.Mock(**{"wait.return_value": 0})
        lines = itertools.count()

        def trace(frame, event, _):
            if frame.f_code is not self.serve.run.__code__:
                return None
            if event == "line" and popen.called and not program.wait.called and next(lines) == moment:
                os.kill(os.getpid(), signal.SIGTERM)
            return trace

        with unittest.mock.patch.object(self.serve.subprocess, "Popen", return_value=program) as popen:
            sys.settrace(trace)
            try:
                self.serve.run(["program"])
            finally:
                sys.settrace(None)
        return program.terminate.call_count if next(lines) > moment else None

    def test_a_signal_is_passed_on_once_whenever_it_comes(self):
        moments = list(itertools.takewhile(lambda told: told is not None, map(self.sigterms, itertools.count())))
        self.assertGreater(len(moments), 1)
        self.assertEqual(moments, [1] * len(moments))

    def test_the_end_of_skeind_is_no_error_of_who_listens_to_it(self):
        ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        its.send(b"READY=1")
        its.close()
        with unittest.mock.patch("builtins.print") as printed:
            listener = threading.Thread(target=self.serve.say_when_ready, args=(ours, "it serves"), daemon=True)
            with unittest.mock.patch("threading.excepthook") as failed:
                listener.start()
                while not printed.called:
                    time.sleep(0.01)
                ours.shutdown(socket.SHUT_RDWR)
                ours.close()
                listener.join(60)
        self.assertFalse(listener.is_alive())
        failed.assert_not_called()


class Plan(unittest.TestCase):
    """The first thing that a new user sees, before anything is installed or built."""

    def setUp(self):
        temporary = tempfile.TemporaryDirectory()
        self.addCleanup(temporary.cleanup)
        self.folder = temporary.name
        shutil.copytree(os.path.join(ROOT, "deploy"), os.path.join(self.folder, "deploy"))

    def run_plan(self, *arguments):
        release = os.path.join(self.folder, "os-release")
        with open(release, "w", encoding="utf-8") as file:
            file.write('PRETTY_NAME="Debian GNU/Linux 12 (bookworm)"\nID=debian\nVERSION_ID="12"\n')
        environment = {**os.environ, "SKEIN_DEPS": os.path.join(self.folder, "empty"), "SKEIN_OS_RELEASE": release}
        done = subprocess.run([os.path.join(self.folder, "deploy", "plan.sh"), *arguments], env=environment,
                              capture_output=True, text=True, timeout=60, check=False)
        return done.returncode, done.stdout + done.stderr

    def test_bare_machine(self):
        code, output = self.run_plan()
        self.assertEqual(code, 0, output)
        lines = output.splitlines()
        self.assertEqual(lines[0], "make serve:")
        self.assertRegex(lines[1], r"^  install: to install, in about \d+ minutes and \d+\.\d GB of disk:$")
        self.assertRegex(output, r"(?m)^    LibTorch .* 545 MB to download")
        self.assertRegex(output, r"(?m)^    the RWKV World vocabulary")
        self.assertRegex(output, r"(?m)^  build:   a release in build/ \(about 10 minutes on two cores, 0\.3 GB\)$")
        self.assertRegex(output, r"(?m)^  train:   the demo model, .* \(under 3 minutes on two cores\)$")
        self.assertRegex(output, r"(?m)^  serve:   what config.yaml says")
        self.assertFalse(os.path.exists(os.path.join(self.folder, "empty")), "the plan did something")

    def test_a_model_of_ones_own_needs_no_training(self):
        model = os.path.join(self.folder, "my.safetensors")
        open(model, "w", encoding="utf-8").close()
        code, output = self.run_plan(model)
        self.assertEqual(code, 0, output)
        self.assertNotIn("train:", output)
        self.assertIn(f"  serve:   {model}", output)

    def test_a_model_that_is_not_there(self):
        code, output = self.run_plan("/nowhere/model.pth")
        self.assertEqual(code, 1, output)
        self.assertIn("MODEL=/nowhere/model.pth: there is no such file", output)
        self.assertNotIn("install", output)


if __name__ == "__main__":
    unittest.main()
