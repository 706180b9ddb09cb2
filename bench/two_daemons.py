#!/usr/bin/env python3
"""Two daemons on one machine: tokens a second of one conversation in one of them alone, in both at once, and their sum
over that of one alone.

    ~/.cache/skein/test-venv/bin/python bench/two_daemons.py --build build --model FILE [--set KEY=VALUE ...]
                                                             [--json FILE]
"""

import argparse
import os
import pathlib
import sys
import tempfile
import threading
import time

import figures

ROOT = pathlib.Path(__file__).resolve().parents[1]
CASES = {
    "all threads each": [{"cpu.threads": 0}] * 2,
    "half of the CPUs each, pinned": None,
}


def halves():
    """Settings that give each daemon half of the CPUs."""
    cpus = sorted(os.sched_getaffinity(0))
    middle = max(1, len(cpus) // 2)
    return [{"cpu.threads": 0, "cpu.pin": ",".join(map(str, part))} for part in (cpus[:middle], cpus[-middle:])]


def measure(clients, tokens):
    """Tokens a second of each client, all at once, and what the first one said."""
    rates, said = [0.0] * len(clients), [None] * len(clients)
    together = threading.Barrier(len(clients))

    def one(i):
        clients[i].generate("Once upon a time", max_tokens=8)  # warm
        together.wait()
        began = time.monotonic()
        said[i] = clients[i].generate("Once upon a time", max_tokens=tokens, timeout=600).ids
        rates[i] = tokens / (time.monotonic() - began)

    threads = [threading.Thread(target=one, args=(i,)) for i in range(len(clients))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if said != said[:1] * len(said):
        raise SystemExit("two daemons with one model say different things")
    return rates, figures.hash_of(repr(said[0]).encode())


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n", maxsplit=1)[0])
    parser.add_argument("--build", default="build")
    parser.add_argument("--model", required=True)
    parser.add_argument("--tokens", type=int, default=160)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--set", action="append", default=[], help="key=value of both daemons")
    parser.add_argument("--json", type=pathlib.Path)
    arguments = parser.parse_args()
    os.environ["SKEIN_BUILD"] = str(pathlib.Path(arguments.build).resolve())
    sys.path.insert(0, str(ROOT / "tests" / "python"))
    import conftest
    from client import Client
    from daemon import Daemon

    conftest.generate_protos()
    pb = conftest.load_protos()
    common = {"engine.slots": 4, **dict(pair.split("=", 1) for pair in arguments.set)}
    print(f"{'':32} {'alone':>8} {'both at once':>18} {'sum / alone':>12}   hash")
    rows = []
    for name, settings in CASES.items():
        with tempfile.TemporaryDirectory() as folder:
            daemons = [Daemon(pathlib.Path(arguments.model).resolve(), folder, settings={**common, **own})
                       for own in settings or halves()]
            clients = [Client(pb, daemon.channel) for daemon in daemons]
            alone = max(measure(clients[:1], arguments.tokens)[0][0] for _ in range(arguments.rounds))
            both, said = max((measure(clients, arguments.tokens) for _ in range(arguments.rounds)),
                             key=lambda rates_and_hash: sum(rates_and_hash[0]))
            for daemon in daemons:
                daemon.stop()
        print(f"{name:32} {alone:8.1f} {both[0]:8.1f} {both[1]:8.1f}  {sum(both) / alone:12.2f}   {said}", flush=True)
        rows.append({"case": name, "alone": alone, "both": both, "hash": said})
    figures.write_json(arguments.json, rows)


if __name__ == "__main__":
    main()
