"""cpu.pin: the threads that compute are bound, the others are not."""

import contextlib
import os
import pathlib
import re

from daemon import run
from test_control import until

FREE_PORTS = ("--set", "listen.address=127.0.0.1:0", "--set", "listen.metrics=127.0.0.1:0")


def masks(pid):
    """Cpus_allowed_list of every thread of a process."""
    found = []
    for status in pathlib.Path(f"/proc/{pid}/task").glob("*/status"):
        with contextlib.suppress(OSError):  # it has ended meanwhile
            found.append(re.search(r"^Cpus_allowed_list:\t(.*)$", status.read_text(), re.MULTILINE)[1])
    return found


def test_the_engine_and_its_workers_are_bound(start):
    cpus = sorted(os.sched_getaffinity(0))[-2:]
    daemon = start({"cpu.threads": 0, "cpu.pin": ",".join(map(str, cpus))})

    def bound():
        return sorted(mask for mask in masks(daemon.process.pid) if mask in map(str, cpus))

    if len(os.sched_getaffinity(0)) > 1:  # else all are
        until(lambda: bound() == sorted(map(str, cpus)))  # each binds itself, as the first thing that it does
    assert f"threads={len(cpus)}" in daemon.log()


def test_not_bound_by_default(start):
    cpus = os.sched_getaffinity(0)
    for mask in masks(start().process.pid):
        assert len(cpus) == 1 or not mask.isdigit()


def test_a_cpu_that_is_not_there(model, tmp_path):
    ended = run("--model", model, "--set", "cpu.pin=60000", *FREE_PORTS, cwd=tmp_path)
    assert ended.returncode == 1
    assert "cpu: CPU 60000 is not among those that this process may use (" in ended.stderr


def test_more_threads_than_cpus(model, tmp_path):
    cpu = min(os.sched_getaffinity(0))
    ended = run("--model", model, "--set", f"cpu.pin={cpu}", "--set", "cpu.threads=2",
                *FREE_PORTS, cwd=tmp_path)
    assert ended.returncode == 1 and "2 threads cannot be bound to 1 CPUs" in ended.stderr
