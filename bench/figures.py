"""What a benchmark in Python has measured, as a file: as bench/write_json.h does for those in C++."""

import datetime
import hashlib
import json
import os
import pathlib
import shlex
import sys


def processor():
    for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return "unknown processor"


def machine():
    return {"processor": processor(), "processors": os.cpu_count(), "kernel": os.uname().release,
            "load_average": os.getloadavg()[0]}  # of the last minute, this benchmark's own too


def hash_of(data):
    """Of outputs, beside figures: when it changes, the figures are of something else."""
    return hashlib.sha256(data).hexdigest()[:16]


def write_json(path, figures):
    """Nothing when `path` is None."""
    if path is None:
        return
    date = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
    path.write_text(json.dumps({"machine": machine(), "command": shlex.join(sys.argv), "date": date,
                                "figures": figures}, indent=1) + "\n")
