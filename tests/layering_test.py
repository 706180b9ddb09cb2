#!/usr/bin/env python3
"""Fails when a file includes what its room may not (README, "Layout"). Needs only Python 3.

One include root lets any wrong include compile, so nothing else would notice. `--check` is what the build runs
(cmake/Layering.cmake). The second half of this file plants wrong includes in a small tree and checks that each one is
found, and that a build with one fails (this needs CMake, ninja and a compiler).
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
import unittest

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
ROOMS = ("kernels", "engine", "server", "trainer", "client", "tests", "bench")
CHECKED = ("kernels", "engine", "server", "trainer", "client")

# The part of the engine that is shared with the trainer and the client: one reader of weights, one tokenizer.
SHELF = ("engine/base/", "engine/model_config.h", "engine/checkpoint.h", "engine/tokenizer.h",
         "engine/chat_template.h")

# Which files of ours a room may include, by the beginning of their path. The longest matching room counts.
OURS = {
    "kernels/": ("kernels/",),
    "engine/": ("engine/", "kernels/"),
    "engine/base/": ("engine/base/",),
    "server/": ("server/", "engine/", "kernels/device.h"),
    "trainer/": ("trainer/", "kernels/") + SHELF,
    "client/": ("client/",) + SHELF,
}

# Libraries that only some places may include: name, what its headers begin with, where it is allowed.
LIBRARIES = (
    ("gRPC", ("grpc/", "grpcpp/", "grpc++/"), ("server/", "client/")),
    ("our generated protobuf code", ("skein/v1/", "google/rpc/"), ("server/", "client/")),
    ("protobuf", ("google/protobuf/",), ("server/", "client/", "trainer/")),
    ("yaml-cpp", ("yaml-cpp/",), ("engine/base/strict_yaml.cc",)),
    ("LibTorch", ("torch/", "ATen/", "c10/", "caffe2/"),
     ("kernels/torch/", "kernels/torch_ops.h", "trainer/")),
    ("CUDA", ("cuda", "cublas", "cooperative_groups", "nccl", "cub/", "thrust/"), ("kernels/cuda/",)),
    ("prometheus-cpp", ("prometheus/",), ("server/",)),
    ("MPI", ("mpi.h",), ("trainer/data_parallel_mpi.cc",)),
    ("RocksDB and Redis", ("rocksdb/", "hiredis/"), ("engine/store/",)),
)

INCLUDE = re.compile(r'^\s*#\s*include\s*([<"])([^>"]+)[>"]', re.MULTILINE)


def sources(root, rooms):
    for room in rooms:
        for folder, _, names in os.walk(os.path.join(root, room)):
            for name in sorted(names):
                if name.endswith((".h", ".cc", ".cu", ".cuh", ".inc")):
                    yield os.path.relpath(os.path.join(folder, name), root)


def includes_of(root, path):
    """(line, included path, quoted?) of every include in a file."""
    with open(os.path.join(root, path), encoding="utf-8") as file:
        text = file.read()
    return [(text.count("\n", 0, match.start(1)) + 1, match.group(2), match.group(1) == '"')
            for match in INCLUDE.finditer(text)]


def complaint(path, included, quoted):
    """Why `path` may not include `included`; None when it may."""
    if quoted and ("/" not in included or included.startswith(("./", "../"))):
        return "name the file from the root of the repository"
    if included.startswith(tuple(room + "/" for room in ROOMS)):
        room = max((r for r in OURS if path.startswith(r)), key=len)
        if not included.startswith(OURS[room]):
            return f"{room} may include only {', '.join(OURS[room])}"
    for name, beginnings, places in LIBRARIES:
        if included.startswith(beginnings) and not path.startswith(places):
            return f"{name} belongs only in {', '.join(places)}"
    return None


def reach(root, path, direct):
    """All files that a file includes, through our own headers. `direct` remembers the includes of each file."""
    found, waiting = set(), [path]
    while waiting:
        current = waiting.pop()
        if current not in direct:
            direct[current] = [included for _, included, _ in includes_of(root, current)]
        for included in direct[current]:
            if included not in found:
                found.add(included)
                if os.path.exists(os.path.join(root, included)):
                    waiting.append(included)
    return found


def problems(root):
    found = []
    direct = {}
    for path in sources(root, CHECKED):
        for line, included, quoted in includes_of(root, path):
            reason = complaint(path, included, quoted)
            if reason:
                found.append(f"{path}:{line}: includes {included}: {reason}")
        # The torch wheel was built against another protobuf than the system's.
        reached = reach(root, path, direct)
        if (any(i.startswith(("torch/", "ATen/", "c10/")) for i in reached)
                and any(i.startswith("google/protobuf/") or i.endswith(".pb.h") for i in reached)):
            found.append(f"{path}:1: includes LibTorch and protobuf, which clash")
    return found


class Layering(unittest.TestCase):
    def test_this_repository(self):
        self.assertGreater(len(list(sources(ROOT, CHECKED))), 20, "the sources were not found")
        self.assertEqual(problems(ROOT), [])


class PlantedIncludes(unittest.TestCase):
    """Each wrong include is found, at its line, and the right ones beside it are not complained about."""

    RIGHT = {
        "kernels/ops.h": "#include <vector>\n",
        "kernels/cuda/matmul.cu": "#include <cuda_runtime.h>\n",
        "kernels/torch/ops.cc": "#include <ATen/core/Tensor.h>\n",
        "engine/engine.cc": '#include "absl/status/status.h"\n#include "kernels/ops.h"\n#include "engine/engine.h"\n',
        "engine/engine.h": "",
        "engine/checkpoint.h": "",
        "engine/base/strict_yaml.cc": "#include <yaml-cpp/parser.h>\n",
        "server/main.cc": '#include "engine/engine.h"\n#include "skein/v1/info.pb.h"\n#include <grpcpp/server.h>\n',
        "trainer/main.cc": '#include "engine/checkpoint.h"\n#include "kernels/torch_ops.h"\n#include <torch/torch.h>\n',
        "trainer/events.cc": "#include <google/protobuf/message.h>\n",
        "client/main.cc": '#include "engine/checkpoint.h"\n#include <grpcpp/channel.h>\n',
    }
    WRONG = (
        ("kernels/bad.cc", '#include "engine/base/check.h"'),
        ("kernels/cpu/bad.cc", "#include <ATen/core/Tensor.h>"),
        ("kernels/cpu/bad.cc", "#include <cuda_runtime.h>"),
        ("engine/bad.cc", '#include "server/config.h"'),
        ("engine/bad.cc", '# include "trainer/dataset.h"'),
        ("engine/bad.cc", "#include <grpcpp/server.h>"),
        ("engine/bad.cc", "#include <torch/torch.h>"),
        ("engine/bad.cc", "#include <yaml-cpp/yaml.h>"),
        ("engine/bad.cc", '#include "skein/v1/info.pb.h"'),
        ("engine/bad.cc", "#include <rocksdb/db.h>"),
        ("engine/base/bad.cc", '#include "engine/engine.h"'),
        ("engine/base/bad.cc", '#include "kernels/ops.h"'),
        ("server/bad.cc", '#include "kernels/ops.h"'),
        ("server/bad.cc", '#include "trainer/dataset.h"'),
        ("server/bad.cc", '#include "client/chat.h"'),
        ("server/bad.cc", '#include "config.h"'),
        ("server/bad.cc", '#include "../engine/engine.h"'),
        ("trainer/bad.cc", '#include "engine/engine.h"'),
        ("trainer/bad.cc", '#include "server/config.h"'),
        ("trainer/bad.cc", "#include <grpcpp/server.h>"),
        ("client/bad.cc", '#include "engine/engine.h"'),
        ("client/bad.cc", '#include "kernels/ops.h"'),
        ("engine/bad.h", '#include "tests/engine/random_model.h"'),
        ("trainer/bad.cc", '#include "bench/timer.h"'),
    )

    def plant(self, files):
        root = tempfile.TemporaryDirectory()
        self.addCleanup(root.cleanup)
        for path, text in files.items():
            os.makedirs(os.path.join(root.name, os.path.dirname(path)), exist_ok=True)
            with open(os.path.join(root.name, path), "w", encoding="utf-8") as file:
                file.write(text)
        return root.name

    def test_right_includes_pass(self):
        self.assertEqual(problems(self.plant(self.RIGHT)), [])

    def test_each_wrong_include_is_found(self):
        for path, line in self.WRONG:
            with self.subTest(path=path, line=line):
                root = self.plant({**self.RIGHT, path: f"// A comment.\n{line}\n"})
                found = problems(root)
                self.assertEqual(len(found), 1, found)
                self.assertTrue(found[0].startswith(f"{path}:2: includes "), found[0])

    def test_torch_and_protobuf_through_headers(self):
        root = self.plant({**self.RIGHT,
                           "trainer/bad.cc": '#include "trainer/events.h"\n#include "trainer/model.h"\n',
                           "trainer/events.h": "#include <google/protobuf/message.h>\n",
                           "trainer/model.h": '#include <torch/types.h>\n#include "trainer/model.h"\n'})
        self.assertEqual(problems(root), ["trainer/bad.cc:1: includes LibTorch and protobuf, which clash"])


class TheBuild(unittest.TestCase):
    """A project with our CMake files and one program."""

    def setUp(self):
        root = tempfile.TemporaryDirectory()
        self.addCleanup(root.cleanup)
        self.root = root.name
        shutil.copytree(os.path.join(ROOT, "cmake"), os.path.join(self.root, "cmake"))
        self.write("CMakeLists.txt", "cmake_minimum_required(VERSION 3.25)\nproject(planted CXX)\n"
                   "list(APPEND CMAKE_MODULE_PATH ${CMAKE_SOURCE_DIR}/cmake)\ninclude(Layering)\n"
                   "include(SkeinTargets)\nskein_program(program SOURCES client/main.cc)\n")
        self.write("client/main.cc", "int main() {}\n")
        self.write("engine/engine.h", "")
        os.makedirs(os.path.join(self.root, "tests"))
        shutil.copy(__file__, os.path.join(self.root, "tests", "layering_test.py"))
        code, output = self.run_cmake("-S", self.root, "-B", self.root + "/build", "-G", "Ninja")
        self.assertEqual(code, 0, output)

    def write(self, path, text):
        path = os.path.join(self.root, path)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "w", encoding="utf-8") as file:
            file.write(text)

    def run_cmake(self, *arguments):
        done = subprocess.run(["cmake", *arguments], capture_output=True, text=True, check=False)
        return done.returncode, done.stdout + done.stderr

    def build(self):
        return self.run_cmake("--build", self.root + "/build", "--target", "program")

    def test_a_wrong_include_fails_it_until_it_is_gone(self):
        code, output = self.build()
        self.assertEqual(code, 0, output)
        self.write("client/main.cc", '#include "engine/engine.h"\nint main() {}\n')
        code, output = self.build()
        self.assertNotEqual(code, 0, output)
        self.assertIn("client/main.cc:1: includes engine/engine.h: ", output)
        self.write("client/main.cc", "int main() {}\n")
        self.write("client/new.h", '#include "server/config.h"\n')  # a new file, which no program includes
        code, output = self.build()
        self.assertNotEqual(code, 0, output)
        self.assertIn("client/new.h:1: includes server/config.h: ", output)
        self.write("client/new.h", "")
        code, output = self.build()
        self.assertEqual(code, 0, output)


def check():
    found = problems(ROOT)
    for problem in found:
        print(f"layering: {problem}", file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    if sys.argv[1:] == ["--check"]:
        sys.exit(check())
    unittest.main(argv=[sys.argv[0], *sys.argv[1:]])
