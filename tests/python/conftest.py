"""Fixtures of the client tests: the protos, a tiny model, and real daemons. Everything is seen from outside."""

import importlib
import pathlib
import sys
import types

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).parent))

import daemon as daemon_module  # noqa: E402
from checkpoint import write_poisoned_checkpoint, write_tiny_checkpoint  # noqa: E402


def generate_protos():
    """Python modules from proto/, as any user would make them."""
    import grpc_tools
    from grpc_tools import protoc

    root = daemon_module.ROOT / "proto"
    out = daemon_module.BUILD / "python-protos"
    out.mkdir(parents=True, exist_ok=True)
    files = ["google/rpc/error_details.proto", "google/rpc/status.proto"]
    files += [f"skein/v1/{name}.proto" for name in ["generation", "conversations", "info", "control"]]
    well_known = str(pathlib.Path(grpc_tools.__file__).parent / "_proto")
    arguments = ["protoc", f"-I{root}", f"-I{well_known}", f"--python_out={out}", f"--grpc_python_out={out}"]
    assert protoc.main(arguments + files) == 0
    sys.path.insert(0, str(out))
    # `google` belongs to the protobuf package: our google.rpc joins its search path.
    import google
    google.__path__.append(str(out / "google"))


def pytest_configure(config):
    del config
    if not daemon_module.SKEIND.exists():
        raise pytest.UsageError(f"{daemon_module.SKEIND} is not there: build first, or set SKEIN_BUILD")
    generate_protos()


def load_protos():
    """The generated modules, after generate_protos."""
    names = {"gen": "generation", "conv": "conversations", "info": "info", "control": "control"}
    modules = {}
    for short, name in names.items():
        modules[short] = importlib.import_module(f"skein.v1.{name}_pb2")
        modules[short + "_grpc"] = importlib.import_module(f"skein.v1.{name}_pb2_grpc")
    return types.SimpleNamespace(**modules)


@pytest.fixture(scope="session")
def pb():
    return load_protos()


@pytest.fixture(scope="session")
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "tiny.safetensors"
    write_tiny_checkpoint(path)
    return path


@pytest.fixture(scope="session")
def steady_model(tmp_path_factory):
    """A bigger one (a millisecond a token): its answers are read as fast as they come, so no request is ever paused as
    slow and loses its slot to another."""
    path = tmp_path_factory.mktemp("model") / "steady.safetensors"
    write_tiny_checkpoint(path, layers=3, width=384, head_size=64)
    return path


@pytest.fixture(scope="session")
def poisoned_model(tmp_path_factory):
    """As big as the steady one, with a byte that breaks the row which reads or says it."""
    path = tmp_path_factory.mktemp("model") / "poisoned.safetensors"
    write_poisoned_checkpoint(path, layers=3, width=384, head_size=64)
    return path


@pytest.fixture
def start(model, tmp_path):
    """start(settings) -> a daemon of its own for one test."""
    running = []

    def start(settings=None, **options):
        options.setdefault("model", model)
        running.append(daemon_module.Daemon(cwd=tmp_path, settings=settings, **options))
        return running[-1]

    yield start
    for one in running:
        one.stop()


@pytest.fixture(scope="session")
def shared(model, tmp_path_factory):
    """One daemon for all tests that leave it as it was."""
    one = daemon_module.Daemon(model, tmp_path_factory.mktemp("shared"))
    yield one
    one.stop()


@pytest.fixture
def client(shared, pb):
    from client import Client

    yield Client(pb, shared.channel)
    assert shared.process.poll() is None, "skeind died:\n" + shared.log()
