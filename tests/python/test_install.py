"""`make install`: a tree whose programs run, with nothing of the build folder in them."""

import os
import re
import subprocess

import pytest

from daemon import BUILD, ROOT, environment, killed_after
from test_trainer import TRAIN, text

pytestmark = pytest.mark.skipif(not TRAIN.exists(), reason="built without LibTorch")


def make_install(folder, **more):
    """As sudo would run it: another home, where no dependency is."""
    home = folder / "root"
    home.mkdir(exist_ok=True)
    variables = {"PREFIX": "/opt/skein", "DESTDIR": folder / "tree", "SUDO_USER": "somebody", "BUILD": BUILD, **more}
    env = {key: value for key, value in os.environ.items() if key != "SKEIN_DEPS" and not key.startswith("MAKE")}
    done = subprocess.run(["make", "-C", ROOT, "install", *(f"{key}={value}" for key, value in variables.items())],
                          capture_output=True, text=True, timeout=240, env={**env, "HOME": str(home)})
    assert list(home.iterdir()) == []  # nothing was downloaded
    assert "ninja" not in done.stdout + done.stderr and "Building" not in done.stdout + done.stderr
    return done


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    folder = tmp_path_factory.mktemp("install")
    done = make_install(folder)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "tree" / "opt" / "skein"


def run(*command, cwd):
    done = subprocess.run(command, cwd=cwd, env=environment(), capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_installed_programs_train_serve_and_talk(tree, tmp_path):
    text(tmp_path / "data.txt")
    small = {"run.folder": "run", "data.train": "data.txt", "model.layers": 1, "model.width": 32, "model.head_size": 16,
             "train.context": 16, "train.batch": 2, "train.steps": 2, "train.warmup": 0, "train.threads": 1}
    trained = run(tree / "bin/skein-train", *(part for key, value in small.items() for part in ("--set", f"{key}={value}")),
                  cwd=tmp_path)
    assert f"  {tree}/bin/skeind --model run/last.safetensors" in trained
    assert "RWKV-7" in run(tree / "bin/skein", "info", "run/last.safetensors", cwd=tmp_path)
    process = subprocess.Popen([tree / "bin/skeind", "--config", tree / "etc/skein/config.yaml", "--model", "run/last.safetensors",
                                "--set", "listen.address=127.0.0.1:0", "--set", "listen.metrics="],
                               cwd=tmp_path, env=environment(), stderr=subprocess.PIPE, text=True)
    with killed_after(process, 120):
        try:
            ready = next((line for line in process.stderr if " ready " in line), "")
            address = re.search(r"\bgrpc=(\S+)", ready).group(1)
            run(tree / "bin/skein", "generate", "--server", address, "--max-tokens", "3", "the ", cwd=tmp_path)
        finally:
            process.terminate()
            process.stderr.read()
            process.stderr.close()
            code = process.wait()
    assert code == 0


def test_the_tree_needs_no_build_folder(tree):
    for program in ["skeind", "skein", "skein-train"]:
        needed = run("ldd", tree / "bin" / program, cwd="/")
        assert "not found" not in needed and str(BUILD) not in needed, program
    assert f"=> {tree}/" in run("ldd", tree / "bin/skein-train", cwd="/")  # libskein_torch_ops.so
    unit = (tree / "lib/systemd/system/skeind.service").read_text()
    assert "ExecStart=/opt/skein/bin/skeind --config /opt/skein/etc/skein/config.yaml" in unit
    for file in ["share/skein/configs/text.yaml", "share/doc/skein/README.md", "share/doc/skein/LICENSE"]:
        assert (tree / file).exists(), file


def test_sudo_builds_nothing(tmp_path):
    done = make_install(tmp_path, BUILD=tmp_path / "empty")
    assert done.returncode == 2
    assert "run 'make build' first, without sudo" in done.stderr
