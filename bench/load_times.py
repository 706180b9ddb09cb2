#!/usr/bin/env python3
"""Seconds from skeind's start to its `ready` line and its peak memory: packing the weights, packing them and keeping the
packed file, and reading that file; each with the files in the page cache (warm) and not (cold).

    ~/.cache/skein/test-venv/bin/python bench/load_times.py --build build --model FILE [--rounds 3] [--set KEY=VALUE ...]
                                                            [--json FILE]

The best of the rounds counts. The hash is that of 16 greedy tokens: all ways of loading give the same model.
"""

import argparse
import os
import pathlib
import re
import sys
import tempfile
import time

import figures

ROOT = pathlib.Path(__file__).resolve().parents[1]


def forget(folder):
    """Takes the files out of the page cache."""
    for path in folder.iterdir():
        with open(path, "rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def remember(folder):
    for path in folder.iterdir():
        with open(path, "rb") as file:
            while file.read(1 << 24):
                pass


class Loads:
    """One checkpoint in a folder of its own, where the packed file then lies beside it."""

    def __init__(self, folder, model, settings, new_client, new_daemon):
        self.folder, self.settings = folder, settings
        self.new_client, self.new_daemon = new_client, new_daemon
        self.model = folder / model.name
        os.link(model, self.model)

    def packed(self):
        return [path for path in self.folder.iterdir() if path.name.endswith(".packed")]

    def once(self, keep, cold):
        (forget if cold else remember)(self.folder)
        began = time.monotonic()
        daemon = self.new_daemon(self.model, self.folder, settings={**self.settings, "cpu.keep_packed": keep})
        seconds = time.monotonic() - began
        try:
            status = pathlib.Path(f"/proc/{daemon.process.pid}/status").read_text()
            peak = int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) // 1024
            said = self.new_client(daemon.channel).generate("Once upon a time", max_tokens=16, timeout=600).ids
        finally:
            daemon.stop()
        return {"seconds": seconds, "peak_mib": peak, "hash": figures.hash_of(repr(said).encode())}

    def case(self, name, rounds, keep, cold, fresh):
        runs = []
        for _ in range(rounds):
            for path in self.packed() if fresh else []:
                path.unlink()
            runs.append(self.once(keep, cold))
        if bool(self.packed()) != (keep == "true"):
            raise SystemExit(f"{name}: packed files: {self.packed()}")
        return {"case": f"{name}, {'cold' if cold else 'warm'}", **min(runs, key=lambda run: run["seconds"])}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--build", default="build")
    parser.add_argument("--model", type=pathlib.Path, required=True)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--set", action="append", default=[], help="key=value of the daemon")
    parser.add_argument("--json", type=pathlib.Path)
    arguments = parser.parse_args()
    os.environ["SKEIN_BUILD"] = str(pathlib.Path(arguments.build).resolve())
    sys.path.insert(0, str(ROOT / "tests" / "python"))
    import conftest
    from client import Client
    from daemon import Daemon

    conftest.generate_protos()
    pb = conftest.load_protos()
    settings = {"cpu.threads": 0, "engine.slots": 4, **dict(pair.split("=", 1) for pair in arguments.set)}
    rows = []
    # Beside the checkpoint, so that a link is enough.
    with tempfile.TemporaryDirectory(dir=arguments.model.resolve().parent, prefix="load-times-") as folder:
        loads = Loads(pathlib.Path(folder), arguments.model.resolve(), settings, lambda channel: Client(pb, channel), Daemon)
        for cold in (True, False):
            rows.append(loads.case("packs", arguments.rounds, "false", cold, fresh=True))
            rows.append(loads.case("packs and writes the file", arguments.rounds, "true", cold, fresh=True))
            rows.append(loads.case("reads the packed file", arguments.rounds, "true", cold, fresh=False))
    print(f"{'start to ready':34} {'seconds':>8} {'peak MiB':>9}   hash")
    for row in rows:
        print(f"{row['case']:34} {row['seconds']:8.2f} {row['peak_mib']:9}   {row['hash']}")
    if len({row["hash"] for row in rows}) != 1:
        raise SystemExit("the ways of loading do not give the same model")
    figures.write_json(arguments.json, rows)


if __name__ == "__main__":
    main()
