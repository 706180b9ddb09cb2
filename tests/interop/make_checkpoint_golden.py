"""Makes the small checkpoints of tests/engine/checkpoint/data with the real torch and safetensors packages.

    python make_checkpoint_golden.py tests/engine/checkpoint/data

The files are committed, so that the C++ tests need no Python. Element i of every plain tensor is i / 4 - 1.
"""

import collections
import os
import pathlib
import pickle
import sys
import zipfile

import torch
from safetensors.torch import save_file

from make_random_rwkv7 import make_tensors


def ramp(*shape, dtype=torch.float32):
    count = torch.Size(shape).numel()
    return (torch.arange(count, dtype=torch.float32) / 4 - 1).reshape(shape).to(dtype)


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.first = torch.nn.Linear(3, 4)
        self.second = torch.nn.LayerNorm(4)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(ramp(*parameter.shape))


class Evil:
    def __reduce__(self):
        return os.system, ("touch /tmp/skein-was-here",)


class EvilEval:
    def __reduce__(self):
        return eval, ("__import__('os').system('touch /tmp/skein-was-here')",)


def strided():
    base = ramp(6, 4)
    return {
        "plain": base.clone(),
        "transposed": base.t(),                      # strides [1, 4]
        "slice": base[2:5, 1:3],                     # offset 9, strides [4, 1]
        "shared": base,                              # the same storage as the two above
        "every_other": base.reshape(-1)[1::2],       # stride 2
        "scalar": torch.tensor(2.5),
        "empty": torch.zeros(0, 4),
        "half": ramp(5, dtype=torch.float16),
        "bfloat": ramp(5, dtype=torch.bfloat16),
        "parameter": torch.nn.Parameter(ramp(3)),
    }


def rewrite(source, target, compression=zipfile.ZIP_STORED, zip64=False, replace=None):
    """Copies a zip with Python's zipfile: other headers, other padding, optionally other contents."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w", compression) as new:
        for name in old.namelist():
            data = (replace or {}).get(name.split("/", 1)[1], old.read(name))
            info = zipfile.ZipInfo(name)
            info.compress_type = compression
            with new.open(info, "w", force_zip64=zip64) as entry:
                entry.write(data)


def main():
    out = pathlib.Path(sys.argv[1])
    out.mkdir(parents=True, exist_ok=True)
    model = make_tensors(layers=2, width=16, head_size=16, vocab=24, ffn=32, ranks=(4, 3, 2, 5), seed=7,
                         dtype=torch.bfloat16)
    torch.save(model, out / "rwkv7_bf16.pth")
    save_file(dict(model), out / "rwkv7_bf16.safetensors", metadata={"skein.tokenizer": "bytes", "note": "π"})
    torch.save(strided(), out / "strided.pth")
    net = Net()
    torch.save(net.state_dict(), out / "module.pth")  # an OrderedDict with attributes
    torch.save(net.state_dict(), out / "protocol4.pth", pickle_protocol=4)
    torch.save(net.state_dict(), out / "legacy.pth", _use_new_zipfile_serialization=False)
    torch.serialization.set_crc32_options(False)
    torch.save(net.state_dict(), out / "no_crc.pth")
    torch.serialization.set_crc32_options(True)
    rewrite(out / "module.pth", out / "rezipped.pth")
    rewrite(out / "module.pth", out / "zip64.pth", zip64=True)
    rewrite(out / "module.pth", out / "compressed.pth", compression=zipfile.ZIP_DEFLATED)
    rewrite(out / "module.pth", out / "big_endian.pth", replace={"byteorder": b"big"})
    torch.save({"epoch": 3, "state_dict": net.state_dict()}, out / "epoch.pth")
    torch.save({"state_dict": net.state_dict()}, out / "nested.pth")
    torch.save({"w": ramp(3), "_strategy": "cpu fp32", "_version": "0.7"}, out / "converted.pth")
    torch.save({"w": torch.ones(3, dtype=torch.int8)}, out / "int8.pth")
    torch.save({"w": ramp(3).double()}, out / "double.pth")
    torch.save([ramp(3)], out / "list.pth")
    torch.save({"w": torch.ones(1).expand(1000, 1000)}, out / "expanded.pth")
    torch.save({"w": Evil()}, out / "evil_system.pth")
    torch.save({"w": EvilEval()}, out / "evil_eval.pth")
    torch.save(net, out / "whole_module.pth")
    torch.jit.script(net).save(str(out / "torchscript.pth"))
    (out / "pickle_only.pth").write_bytes(pickle.dumps(collections.OrderedDict(a=1)))
    save_file({"w": torch.ones(3, dtype=torch.int64)}, out / "int64.safetensors")
    save_file({"w": ramp(2, 3), "h": ramp(5, dtype=torch.float16), "e": torch.zeros(0, 3), "s": torch.tensor(2.5)},
              out / "mixed.safetensors")
    for path in sorted(out.iterdir()):
        assert path.stat().st_size < 50_000, path


if __name__ == "__main__":
    main()
