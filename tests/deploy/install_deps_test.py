#!/usr/bin/env python3
"""The branches of deploy/install-deps.sh, on a pretended machine: stubs stand for dpkg, sudo, pip and df.

Needs only Python 3 and bash; changes nothing outside a temporary folder.
"""

import os
import shutil
import subprocess
import tempfile
import unittest

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
SCRIPT = os.path.join(ROOT, "deploy", "install-deps.sh")
REAL_TOOLS = ("awk", "basename", "bash", "cat", "chmod", "cmp", "cp", "cut", "dirname", "env", "flock", "grep", "mkdir",
              "mv", "printf", "rm", "rmdir", "sed", "sha256sum", "tail", "tee", "tr")


class Machine(unittest.TestCase):
    def setUp(self):
        temporary = tempfile.TemporaryDirectory()
        self.addCleanup(temporary.cleanup)
        self.folder = temporary.name
        self.bin = os.path.join(self.folder, "bin")
        self.deps = os.path.join(self.folder, "deps")
        self.log = os.path.join(self.folder, "log")
        self.policy = os.path.join(self.folder, "policy-rc.d")  # the machine's own may exist or not
        os.makedirs(self.bin)
        for tool in REAL_TOOLS:
            os.symlink(shutil.which(tool), os.path.join(self.bin, tool))
        self.os_release('PRETTY_NAME="Debian GNU/Linux 12 (bookworm)"\nID=debian\nVERSION_ID="12"\n')
        # Every package is installed, the user is not root, the disk is large, nothing may be called unnoticed.
        self.stub("dpkg-query", 'for last; do [[ $last == -* ]] || echo "installed $last"; done')
        self.stub("id", "echo 1000")
        self.stub("uname", "echo x86_64")
        self.stub("df", "printf 'head\\nfs 1 1 %s 1%% /\\n' 99999")
        self.stub("sudo", "exit 0")
        self.stub("python", "exit 3")

    def stub(self, name, body):
        path = os.path.join(self.bin, name)
        if os.path.lexists(path):
            os.unlink(path)
        with open(path, "w", encoding="utf-8") as file:
            file.write(f'#!/bin/bash\necho "{name} $*" >>"{self.log}"\n{body}\n')
        os.chmod(path, 0o755)

    def os_release(self, text):
        with open(os.path.join(self.folder, "os-release"), "w", encoding="utf-8") as file:
            file.write(text)

    def make(self, *names):
        for name in names:
            path = os.path.join(self.deps, name)
            os.makedirs(os.path.dirname(path), exist_ok=True)
            with open(path, "w", encoding="utf-8") as file:
                file.write("x")

    def make_torch(self):
        self.make("torch-2.11.0/torch/lib/libtorch_cpu.so", "torch-2.11.0/nvidia/cu13/lib/libcudart.so.13",
                  "torch-2.11.0/nvidia/cu13/lib/libcupti.so.13")

    def run_script(self, *arguments):
        environment = {"PATH": self.bin, "HOME": self.folder, "SKEIN_DEPS": self.deps,
                       "SKEIN_OS_RELEASE": os.path.join(self.folder, "os-release"),
                       "SKEIN_POLICY_RC": self.policy, "SKEIN_PYTHON": os.path.join(self.bin, "python")}
        done = subprocess.run([shutil.which("bash"), SCRIPT, *arguments], env=environment, capture_output=True,
                              text=True, timeout=60)
        return done.returncode, done.stdout + done.stderr

    def calls(self):
        if not os.path.exists(self.log):
            return []
        with open(self.log, encoding="utf-8") as file:
            return file.read().splitlines()

    def fails(self, *expected, arguments=()):
        code, output = self.run_script(*arguments)
        self.assertEqual(code, 1, output)
        self.assertIn("install-deps: error: ", output)
        for text in expected:
            self.assertIn(text, output)
        return output

    def test_other_systems_are_told_at_once(self):
        for text, name in (('PRETTY_NAME="Ubuntu 24.04 LTS"\nID=ubuntu\nVERSION_ID="24.04"\n', "Ubuntu 24.04 LTS"),
                           ('PRETTY_NAME="Debian GNU/Linux 13 (trixie)"\nID=debian\nVERSION_ID="13"\n', "trixie")):
            self.os_release(text)
            self.fails(name, "docker run", "debian:12", "make serve")
        os.unlink(os.path.join(self.folder, "os-release"))
        self.fails("an unknown system", "docker run")
        self.assertEqual([c for c in self.calls() if c.startswith(("sudo", "python"))], [])

    def test_other_processors_are_refused(self):
        self.stub("uname", "echo aarch64")
        self.fails("aarch64")

    def test_unknown_option(self):
        self.fails("--tset", arguments=["--tset"])

    def test_nothing_to_do(self):
        self.make_torch()
        self.make("rwkv_vocab_v20230424.txt")
        self.assertEqual(self.run_script(), (0, "install-deps: everything is there already\n"))
        self.assertEqual([c for c in self.calls() if c.startswith(("sudo", "python"))], [])

    def test_the_plan_names_what_is_missing_and_does_nothing(self):
        self.stub("dpkg-query", 'for last; do [[ $last == cmake ]] || echo "installed $last"; done')
        code, output = self.run_script("--test", "--interop", "--peers", "--dry-run")
        self.assertEqual(code, 0, output)
        for text in ("minutes", "GB of disk", "Debian packages: cmake\n", "LibTorch 2.11.0", "vocabulary",
                     "test-venv", "interop-venv", "peers-venv"):
            self.assertIn(text, output)
        self.assertFalse(os.path.exists(self.deps))

    def test_a_removed_package_is_missing(self):
        self.stub("dpkg-query", 'for last; do echo "config-files $last"; done')
        self.assertIn("prometheus clang", self.run_script("--test", "--dry-run")[1])

    def test_mpi_is_installed_on_request_and_for_the_tests(self):
        self.stub("dpkg-query", 'for last; do [[ $last == *openmpi* ]] || echo "installed $last"; done')
        self.assertNotIn("openmpi", self.run_script("--dry-run")[1])
        for option in ("--mpi", "--test"):
            self.assertIn("Debian packages: openmpi-bin libopenmpi-dev\n", self.run_script(option, "--dry-run")[1])

    def test_a_half_unpacked_torch_is_missing(self):
        self.make("torch-2.11.0/torch/lib/libtorch_cpu.so", "rwkv_vocab_v20230424.txt")
        self.assertIn("LibTorch", self.run_script("--dry-run")[1])
        self.make_torch()
        self.make("torch-2.11.0/torch/include/google/protobuf/message.h")
        self.assertIn("LibTorch", self.run_script("--dry-run")[1])

    def test_neither_root_nor_sudo(self):
        self.stub("dpkg-query", "exit 1")
        os.unlink(os.path.join(self.bin, "sudo"))
        self.fails("not root and has no sudo", "apt-get install -y --no-install-recommends make cmake g++")

    def test_services_are_forbidden_while_packages_are_installed(self):
        self.stub("dpkg-query", "exit 1")
        self.fails("pip could not download torch==2.11.0", arguments=["--test"])
        root = [c for c in self.calls() if c.startswith("sudo")]
        order = [next(i for i, c in enumerate(root) if text in c)
                 for text in ("apt-get", f"tee {self.policy}", "install --no-install-recommends",
                              f"rm -f {self.policy}")]
        self.assertEqual(order, sorted(order), root)

    def test_apt_fails(self):
        self.stub("dpkg-query", "exit 1")
        self.stub("sudo", 'echo "E: no route"; [[ $* != *update* ]]')
        self.fails("E: no route", "apt-get update failed", "Is there a network")
        self.stub("sudo", '[[ $* != *"apt-get"*" install "* ]]')
        self.fails("apt-get could not install the packages", "dpkg --configure -a")
        self.assertIn(f"rm -f {self.policy}", self.calls()[-1])

    def test_the_policy_of_the_machine_stays(self):
        with open(self.policy, "w", encoding="utf-8"):
            pass
        self.stub("dpkg-query", "exit 1")
        self.fails("pip could not download", arguments=["--test"])
        self.assertEqual([c for c in self.calls() if self.policy in c], [])

    def test_wrong_hash(self):
        self.stub("python", 'while [[ $1 != --dest ]]; do shift; done; mkdir -p "$2"; echo evil >"$2/torch-2.11.0.whl"')
        output = self.fails("torch-2.11.0.whl is not the file that was checked", "expected    7aa2f9bbc6d4595b",
                            "SHA-256 is  ")
        self.assertIn("pip config list", output)
        self.assertEqual(os.listdir(os.path.join(self.deps, "wheels")), [])
        self.assertFalse(os.path.exists(os.path.join(self.deps, "torch-2.11.0")))

    def test_disk_full(self):
        self.stub("df", "printf 'head\\nfs 1 1 %s 1%% /\\n' 100")
        self.fails("100 MB free", "SKEIN_DEPS=")

    def test_folder_cannot_be_made(self):
        with open(self.deps, "w", encoding="utf-8"):
            pass
        self.fails("cannot make the folder", "SKEIN_DEPS=")

    def test_venv_fails_and_is_not_taken_for_ready(self):
        self.make_torch()
        self.make("rwkv_vocab_v20230424.txt")
        self.fails("cannot make a Python environment", "python3-venv", arguments=["--test"])
        # A venv that other requirements filled is filled again.
        self.make("test-venv/ready", "test-venv/bin/python")
        self.assertIn("test-venv", self.run_script("--test", "--dry-run")[1])


class Help(unittest.TestCase):
    def test_options_are_listed(self):
        done = subprocess.run(["bash", SCRIPT, "--help"], capture_output=True, text=True, timeout=60, check=True)
        self.assertIn("--dry-run", done.stdout)


if __name__ == "__main__":
    unittest.main()
