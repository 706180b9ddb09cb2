"""Our checkpoint reader and writers against torch and safetensors, both ways."""

import os
import pathlib
import subprocess
import sys
import zipfile
import zlib

os.environ.update(RWKV_V7_ON="1", RWKV_JIT_ON="0", RWKV_CUDA_ON="0")

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

HERE = pathlib.Path(__file__).parent
TOOL = pathlib.Path(os.environ["SKEIN_BUILD"]) / "tests" / "checkpoint_tool"
sys.path.insert(0, str(HERE))

from make_checkpoint_golden import strided
from make_random_rwkv7 import make_tensors

NAMES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}


def tool(*arguments):
    run = subprocess.run([TOOL, *map(str, arguments)], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return run.stdout


def refusal(*arguments):
    run = subprocess.run([TOOL, *map(str, arguments)], capture_output=True, text=True)
    assert run.returncode == 1, run.stdout
    return run.stderr


def listing(tensors):
    """What `checkpoint_tool list` should print, as a set of lines."""
    lines = set()
    for name, tensor in tensors.items():
        raw = tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        shape = ",".join(map(str, tensor.shape))
        lines.add(f"{name} {NAMES[tensor.dtype]} [{shape}] {zlib.crc32(raw):08x}")
    return lines


def same(got, want):
    assert list(sorted(got)) == list(sorted(want))
    for name in want:
        assert got[name].dtype == want[name].dtype and got[name].shape == want[name].shape, name
        assert torch.equal(got[name].view(torch.uint8) if got[name].dim() else got[name],
                           want[name].contiguous().view(torch.uint8) if want[name].dim() else want[name]), name


@pytest.fixture(params=["fp32", "bf16", "fp16"])
def model(request):
    dtype = {name: torch_type for torch_type, name in NAMES.items()}[request.param]
    return make_tensors(layers=3, width=96, head_size=32, vocab=131, ffn=200, ranks=(7, 11, 5, 13), seed=3, dtype=dtype)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_reads_what_torch_writes(model, protocol, tmp_path):
    torch.save(model, tmp_path / "m.pth", pickle_protocol=protocol)
    assert set(tool("list", tmp_path / "m.pth").splitlines()) == listing(model)


def test_reads_what_safetensors_writes(model, tmp_path):
    save_file(dict(model), tmp_path / "m.safetensors", metadata={"a": "b"})
    assert set(tool("list", tmp_path / "m.safetensors").splitlines()) == listing(model)


def test_reads_views_shared_storages_and_parameters(tmp_path):
    tensors = strided()
    torch.save(tensors, tmp_path / "s.pth")
    assert set(tool("list", tmp_path / "s.pth").splitlines()) == listing(tensors)


@pytest.mark.parametrize("source", ["pth", "safetensors"])
def test_torch_and_safetensors_open_what_we_write(model, source, tmp_path):
    start = tmp_path / f"start.{source}"
    torch.save(model, start) if source == "pth" else save_file(dict(model), start)
    tool("convert", start, tmp_path / "out.pth")
    tool("convert", start, tmp_path / "out.safetensors")
    for mmap in (False, True):
        same(torch.load(tmp_path / "out.pth", weights_only=True, mmap=mmap), model)
    with zipfile.ZipFile(tmp_path / "out.pth") as archive:
        assert archive.testzip() is None
        data = (tmp_path / "out.pth").read_bytes()
        for entry in archive.infolist():
            name, extra = (int.from_bytes(data[entry.header_offset + at:][:2], "little") for at in (26, 28))
            assert (entry.header_offset + 30 + name + extra) % 64 == 0
    same(load_file(tmp_path / "out.safetensors"), model)


def test_views_are_written_as_plain_tensors(tmp_path):
    tensors = {name: tensor.detach() for name, tensor in strided().items()}
    torch.save(tensors, tmp_path / "s.pth")
    tool("convert", tmp_path / "s.pth", tmp_path / "out.pth")
    tool("convert", tmp_path / "s.pth", tmp_path / "out.safetensors")
    same(torch.load(tmp_path / "out.pth", weights_only=True), tensors)
    same(load_file(tmp_path / "out.safetensors"), tensors)


def test_conversion_rounds_as_torch_does(tmp_path):
    generator = torch.Generator().manual_seed(5)
    bits = torch.randint(-2**31, 2**31, (100000,), generator=generator, dtype=torch.int64).to(torch.int32)
    special = torch.tensor([0.0, -0.0, float("inf"), -float("inf"), float("nan"), 3.4e38, -3.4e38, 1e-45])
    values = torch.cat([bits.view(torch.float32), special])
    save_file({"w": values}, tmp_path / "w.safetensors")
    tool("convert", tmp_path / "w.safetensors", tmp_path / "b.safetensors", "bf16")
    got, want = load_file(tmp_path / "b.safetensors")["w"], values.to(torch.bfloat16)
    assert torch.equal(got.isnan(), want.isnan())
    assert torch.equal(got[~want.isnan()].view(torch.int16), want[~want.isnan()].view(torch.int16))
    half = torch.arange(-2**15, 2**15, dtype=torch.int32).to(torch.int16).view(torch.float16)
    save_file({"w": half}, tmp_path / "h.safetensors")
    tool("convert", tmp_path / "h.safetensors", tmp_path / "f.safetensors", "fp32")
    got, want = load_file(tmp_path / "f.safetensors")["w"], half.to(torch.float32)
    assert torch.equal(got.isnan(), want.isnan())
    assert torch.equal(got[~want.isnan()].view(torch.int32), want[~want.isnan()].view(torch.int32))


def test_metadata_survives(tmp_path):
    start, out = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    metadata = {"skein.tokenizer": "bytes", "text": 'quote " backslash \\ newline \n π \u0001'}
    save_file({"w": torch.ones(3)}, start, metadata=metadata)
    tool("convert", start, out)
    with safe_open(out, "pt") as file:
        assert file.metadata() == metadata


def test_the_rwkv_package_opens_what_we_write(tmp_path):
    from rwkv.model import RWKV

    options = dict(layers=2, width=64, head_size=32, vocab=99, seed=9)
    torch.save(make_tensors(**options), tmp_path / "theirs.pth")
    save_file(dict(make_tensors(**options, layer0_v=False, flat_vectors=True)), tmp_path / "m.safetensors")
    save_file(dict(make_tensors(**options)), tmp_path / "n.safetensors")
    tool("convert", tmp_path / "m.safetensors", tmp_path / "flat.pth")  # opens; other numbers, no layer-0 v
    tool("convert", tmp_path / "n.safetensors", tmp_path / "ours.pth")

    def logits(name):
        return RWKV(str(tmp_path / name), "cpu fp32").forward([1, 2, 3], None)[0]

    assert torch.equal(logits("theirs"), logits("ours"))
    assert torch.isfinite(logits("flat")).all()
    assert tool("config", tmp_path / "flat.pth").startswith("RWKV-7, 2 layers, width 64, 2 heads of 32, vocabulary 99")


def test_executes_nothing(tmp_path):
    victim = tmp_path / "was-here"

    class Evil:
        def __reduce__(self):
            return os.system, (f"touch {victim}",)

    torch.save({"w": Evil()}, tmp_path / "evil.pth")
    assert "posix.system" in refusal("list", tmp_path / "evil.pth")
    assert not victim.exists()
