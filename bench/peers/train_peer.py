#!/usr/bin/env python3
"""skein-train beside a plain PyTorch loop of the same model on the same text, in one run: tokens per second.

    train_peer.py [--build build] [--config trainer/configs/tiny-shakespeare.yaml] [--steps 60] [--seconds 60]
                  [--threads N] [--json FILE]

The loop is autograd over tests/interop/rwkv7_reference.py (tested against the trainer's gradients), F.cross_entropy,
clip_grad_norm_ and torch.optim.AdamW(fused=True). It starts from the weights that skein-train starts from. Four
variants: the recurrence token by token or in chunks of 16 (below), in fp32 or with bf16 autocast; the fastest counts.
Each makes a few steps; those near the fastest go on by turns until they have made all steps or the seconds are over.
skein-train runs before and after them. Run by the Python of the interop environment.
"""

import argparse
import contextlib
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

import torch

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT / "tests/interop"))

import rwkv7_reference as reference  # noqa: E402

CHUNK = 16
PEAK_LR, BETAS, DECAY = 2e-3, (0.9, 0.99), 0.1
FEW, NEAR = 5, 1.5  # steps that each variant makes; how many times the fastest one's time it may take to go on
looped = reference.wkv7


def chunked(r, w_raw, k, v, a, b, heads, state=None, reset=None):
    """The same recurrence with matrix products: within a chunk u_t = S_(t-1) a_t solves a triangular system.

    With W_t the product of the decays of the chunk up to t: r' = W_t r, a' = W_(t-1) a, b' = b / W_t, k' = k / W_t;
    (1 - strict(a' b'^T)) U = a' S0^T + strict(a' k'^T) V and Y = r' S0^T + lower(r' b'^T) U + lower(r' k'^T) V.
    """
    assert reset is None
    B, T, C = r.shape
    pad = -T % CHUNK
    n = (T + pad) // CHUNK
    decay = -reference.DECAY_SCALE * torch.sigmoid(w_raw.float())

    def cut(t):  # [B, T, C] -> [B, H, n, CHUNK, N]
        t = torch.nn.functional.pad(t.float(), (0, 0, 0, pad))
        return t.view(B, n, CHUNK, heads, C // heads).permute(0, 3, 1, 2, 4)

    r, k, v, a, b, decay = map(cut, (r, k, v, a, b, decay))
    log_w = decay.cumsum(-2)
    w = log_w.exp()
    r, a, b, k = r * w, a * (log_w - decay).exp(), b / w, k / w
    bt, kt = b.transpose(-1, -2), k.transpose(-1, -2)
    solve = torch.eye(CHUNK) - (a @ bt).tril(-1)
    both = torch.linalg.solve_triangular(solve, torch.cat([a, (a @ kt).tril(-1) @ v], -1), upper=False,
                                         unitriangular=True)
    from_state, own = both.chunk(2, -1)  # U = from_state S0^T + own
    r_b, r_k = (r @ bt).tril(), (r @ kt).tril()
    S = state.float() if state is not None else r.new_zeros(B, heads, C // heads, C // heads)
    out = []
    for i in range(n):
        St = S.transpose(-1, -2)
        U = from_state[:, :, i] @ St + own[:, :, i]
        out.append(r[:, :, i] @ St + r_b[:, :, i] @ U + r_k[:, :, i] @ v[:, :, i])
        S = (S + U.transpose(-1, -2) @ b[:, :, i] + v[:, :, i].transpose(-1, -2) @ k[:, :, i]) * w[:, :, i, -1:]
    y = torch.stack(out, 2).permute(0, 2, 3, 1, 4).reshape(B, T + pad, C)
    return y[:, :T], S


def check_chunked():
    """A fast loop that computes something else would be no peer."""
    torch.manual_seed(1)
    r, w, k, v, a, b = (0.3 * torch.randn(2, 37, 64) for _ in range(6))
    want, _ = looped(r, w, k, v, a, b, 2)
    got, _ = chunked(r, w, k, v, a, b, 2)
    error = (want - got).abs().max() / want.abs().max()
    assert error < 1e-4, f"chunked recurrence: relative error {error}"


class Loop:
    """The plain loop: one variant's model, optimiser and times."""

    def __init__(self, start, recurrence, bf16, text, B, T):
        self.model = reference.Reference(start)
        self.recurrence, self.bf16, self.text, self.B, self.T = recurrence, bf16, text, B, T
        groups = {}
        for name, p in self.model.params.items():
            groups.setdefault(reference.parameter_group(name, p), []).append(p)
        self.optimizer = torch.optim.AdamW(
            [{"params": ps, "lr": PEAK_LR * factor, "weight_decay": DECAY if decays else 0.0}
             for (factor, decays), ps in groups.items()], betas=BETAS, eps=1e-8, fused=True)
        self.generator = torch.Generator().manual_seed(1)
        self.seconds, self.losses = [], []

    def step(self):
        begin = time.perf_counter()
        offsets = torch.randint(len(self.text) - self.T - 1, (self.B,), generator=self.generator)
        rows = torch.stack([self.text[o:o + self.T + 1] for o in offsets])
        reference.wkv7 = self.recurrence
        with torch.autocast("cpu", torch.bfloat16) if self.bf16 else contextlib.nullcontext():
            loss = self.model.loss(rows[:, :-1], rows[:, 1:])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(list(self.model.params.values()), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.seconds.append(time.perf_counter() - begin)
        self.losses.append(float(loss.detach()))

    def typical(self):
        """Seconds of a step. The first two are warm-up."""
        return statistics.median(self.seconds[2:])

    def figures(self):
        return {"tokens_per_second": self.B * self.T / self.typical(), "steps": len(self.seconds),
                "loss": late_loss(self.losses)}


def late_loss(losses):
    """The mean of the last quarter."""
    return statistics.mean(losses[-(len(losses) // 4):])


def train(loops, steps, seconds):
    """A few steps each, then those near the fastest by turns."""
    end = time.monotonic() + seconds
    for loop in loops:
        for _ in range(min(steps, FEW)):
            loop.step()
    fastest = min(loop.typical() for loop in loops)
    near = [loop for loop in loops if loop.typical() < NEAR * fastest]
    for _ in range(steps - FEW):
        for loop in near:
            if time.monotonic() > end:
                return
            loop.step()


def run_skein(program, config, steps, threads, folder):
    keys = {"run.folder": folder, "train.steps": steps, "train.warmup": 1,
            "train.lr": PEAK_LR, "train.lr_final": PEAK_LR, "train.threads": threads, "evaluate.every": 0,
            "evaluate.max_windows": 1, "evaluate.samples": 0, "save.every": 0, "save.initial": "true", "log.every": 1,
            "log.tensorboard": "false"}
    command = [str(program), "--config", str(config)]
    for key, value in keys.items():
        command += ["--set", f"{key}={value}"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}\n{done.stdout}{done.stderr}")
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    steps = [line for line in lines if "tokens_per_second" in line]
    return steps, done.stdout


def summary(steps, compared):
    """The loss after as many steps as the plain loop made."""
    return {"tokens_per_second": statistics.median(line["tokens_per_second"] for line in steps[2:]), "steps": len(steps),
            "loss": late_loss([line["loss"] for line in steps[:compared]])}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--build", type=pathlib.Path, default=ROOT / "build")
    parser.add_argument("--config", type=pathlib.Path, default=ROOT / "trainer/configs/tiny-shakespeare.yaml")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--seconds", type=float, default=60, help="of the plain loops, all together")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--json", type=pathlib.Path)
    options = parser.parse_args()
    if options.steps <= FEW:
        parser.error(f"--steps: more than {FEW}")

    import yaml
    from safetensors.torch import load_file

    check_chunked()
    torch.set_num_threads(options.threads)
    config = yaml.safe_load(options.config.read_text())
    B, T = config["train"]["batch"], config["train"]["context"]
    raw = (ROOT / config["data"]["train"]).read_bytes()
    text = torch.frombuffer(bytearray(raw), dtype=torch.uint8).long() + 1
    with tempfile.TemporaryDirectory(prefix="skein-train-peer-") as folder:
        program = options.build / "bin/skein-train"
        first, said = run_skein(program, options.config, options.steps, options.threads, pathlib.Path(folder) / "1")
        start = load_file(pathlib.Path(folder) / "1/initial.safetensors")
        loops = {f"{kind}, {dtype}": Loop(start, recurrence, dtype == "bf16", text, B, T)
                 for kind, recurrence in (("token by token", looped), ("chunks of 16", chunked))
                 for dtype in ("fp32", "bf16")}
        train(list(loops.values()), options.steps, options.seconds)
        second, _ = run_skein(program, options.config, options.steps, options.threads, pathlib.Path(folder) / "2")
    plain = {name: loop.figures() for name, loop in loops.items()}
    best = max(plain.values(), key=lambda f: f["tokens_per_second"])
    ours = max((summary(run, best["steps"]) for run in (first, second)), key=lambda f: f["tokens_per_second"])
    ratio = ours["tokens_per_second"] / best["tokens_per_second"]
    compute = next((line.strip() for line in said.splitlines() if "fp32" in line or "bf16" in line), "")
    print(f"{options.config.name}: {B} x {T} tokens a step, {options.threads} threads, load {os.getloadavg()[0]:.1f}; "
          f"skein-train: {compute}\n")
    print("| | tokens/s | steps | loss, mean of their last quarter |\n|---|---|---|---|")
    for name, f in plain.items():
        print(f"| plain PyTorch, {name} | {f['tokens_per_second']:.0f} | {f['steps']} | {f['loss']:.3f} |")
    print(f"| skein-train | {ours['tokens_per_second']:.0f} | {ours['steps']} | {ours['loss']:.3f} after {best['steps']} |")
    print(f"| ratio to the best | {ratio:.2f} | | |")
    if options.json:
        options.json.write_text(json.dumps({"plain": plain, "skein": ours, "ratio": ratio}, indent=1) + "\n")


if __name__ == "__main__":
    main()
