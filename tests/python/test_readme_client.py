"""The client of the README, as it stands there."""

import os
import re
import subprocess
import sys

from daemon import BUILD, ROOT


def readme_client():
    section = (ROOT / "README.md").read_text().split("## Write a client\n")[1].split("\n## ")[0]
    return "\n".join(line[4:] for line in section.splitlines() if not line or line.startswith("    "))


def test_the_client_of_the_readme(start):
    daemon = start({"defaults.temperature": 0})
    code = readme_client()
    assert "127.0.0.1:50051" in code
    done = subprocess.run([sys.executable, "-c", code.replace("127.0.0.1:50051", daemon.address)], text=True,
                          capture_output=True, timeout=60, env={**os.environ, "PYTHONPATH": str(BUILD / "python-protos")})
    assert done.returncode == 0, done.stderr
    assert re.search(r"\n\[\d+ tokens\]\n$", done.stdout), done.stdout
