"""RWKV-7 and its training recipe in plain PyTorch, written from the formulae: no operator of ours, no custom kernel.

What the fused operators, the trainer and the served logits are compared with. Parameters are a dict of tensors named as
in a checkpoint ("blocks.0.att.receptance.weight", ...); vectors may be [C] or [1, 1, C]. Runs in the parameters' dtype.
"""

import math

import torch
import torch.nn.functional as F

DECAY_SCALE = math.exp(-0.5)


def add_norm_mix(x, delta, ln_weight, ln_bias, mix, reset=None, eps=1e-5):
    """x' = x + delta; n = LN(x'); mixed[m] = n + (prev - n) mix[m], prev = n one token earlier or zero."""
    if delta is not None:
        x = x + delta
    n = F.layer_norm(x, x.shape[-1:], ln_weight, ln_bias, eps)
    prev = F.pad(n, (0, 0, 1, -1))
    if reset is not None:
        prev = prev.masked_fill(reset[..., None], 0)
    return x, torch.stack([n + (prev - n) * m for m in mix])


def prepare(k, v, a_raw, v_raw, v_first, k_k, k_a, heads):
    """-> (k', v', a = -kk, b = kk * gate), the inputs of the recurrence."""
    B, T, C = k.shape
    gate = torch.sigmoid(a_raw)
    kk = F.normalize((k * k_k).view(B, T, heads, -1), dim=-1, p=2.0, eps=1e-12).view(B, T, C)
    k = k * (1 + (gate - 1) * k_a)
    if v_raw is not None:
        v = v + (v_first - v) * torch.sigmoid(v_raw)
    return k, v, -kk, kk * gate


def wkv7(r, w_raw, k, v, a, b, heads, state=None, reset=None):
    """Token by token: S = S diag(w) + (S a) b^T + v k^T; y = S r. -> (y [B, T, C], final S [B, H, value, key])."""
    B, T, C = r.shape
    w = torch.exp(-DECAY_SCALE * torch.sigmoid(w_raw))
    r, w, k, v, a, b = (t.view(B, T, heads, C // heads) for t in (r, w, k, v, a, b))
    S = state if state is not None else r.new_zeros(B, heads, C // heads, C // heads)
    out = []
    for t in range(T):
        if reset is not None:
            S = S.masked_fill(reset[:, t, None, None, None], 0)
        sa = torch.einsum("bhij,bhj->bhi", S, a[:, t])
        S = (S * w[:, t, :, None, :] + sa[..., None] * b[:, t, :, None, :]
             + v[:, t, :, :, None] * k[:, t, :, None, :])
        out.append(torch.einsum("bhij,bhj->bhi", S, r[:, t]))
    return torch.stack(out, 1).reshape(B, T, C), S


def norm_bonus_gate(y, r, k, v, g, r_k, ln_weight, ln_bias, eps=64e-5):
    """(GroupNorm(y) + (sum over a head of r k r_k) v) g."""
    B, T, C = y.shape
    heads = r_k.shape[0]
    normed = F.group_norm(y.reshape(B * T, C), heads, ln_weight, ln_bias, eps).view(B, T, C)
    bonus = ((r * k).view(B, T, heads, -1) * r_k).sum(-1, keepdim=True) * v.view(B, T, heads, -1)
    return (normed + bonus.view(B, T, C)) * g


def cross_entropy(x, head, labels, weights=None, l2wrap=0.0, norm=0.0, norm_rows=0.0, compute_bf16=False):
    """-> (loss, weighted sum of cross-entropies). Label -100 ignores a row."""
    if compute_bf16:
        x, head = x + (x.bfloat16().to(x.dtype) - x).detach(), head + (head.bfloat16().to(x.dtype) - head).detach()
    logits = x @ head.T
    used = labels >= 0
    weights = torch.ones_like(x[:, 0]) if weights is None else weights
    ce = F.cross_entropy(logits, labels, ignore_index=-100, reduction="none")
    total = (ce * weights).sum()
    W = norm if norm > 0 else (weights * used).sum()
    n = norm_rows if norm_rows > 0 else used.sum()
    loss = total / W + 0.5 * l2wrap * (logits.max(-1).values.square() * used).sum() / n
    return loss, total


class Reference:
    """The model of one state dict. `params` are leaves that require gradients."""

    def __init__(self, state_dict, dtype=torch.float32):
        self.params = {}
        for name, value in state_dict.items():
            self.params[name] = value.detach().to(dtype).clone().requires_grad_()
        self.heads, self.head_size = self.params["blocks.0.att.r_k"].shape
        self.layers = 1 + max(int(n.split(".")[1]) for n in self.params if n.startswith("blocks."))

    def vector(self, name):
        return self.params[name].reshape(-1)

    def norm(self, x, name):
        return F.layer_norm(x, x.shape[-1:], self.params[name + ".weight"], self.params[name + ".bias"], 1e-5)

    def time_mix(self, i, x, delta, v_first, state, reset):
        p, att, block = self.params, f"blocks.{i}.att.", f"blocks.{i}."
        mix = torch.stack([self.vector(att + "x_" + m) for m in "rwkvag"])
        x, mixed = add_norm_mix(x, delta, p[block + "ln1.weight"], p[block + "ln1.bias"], mix, reset)
        xr, xw, xk, xv, xa, xg = mixed
        r = xr @ p[att + "receptance.weight"].T
        k = xk @ p[att + "key.weight"].T
        v = xv @ p[att + "value.weight"].T
        w_raw = self.vector(att + "w0") + torch.tanh(xw @ p[att + "w1"]) @ p[att + "w2"]
        a_raw = self.vector(att + "a0") + (xa @ p[att + "a1"]) @ p[att + "a2"]
        g = torch.sigmoid(xg @ p[att + "g1"]) @ p[att + "g2"]
        v_raw = self.vector(att + "v0") + (xv @ p[att + "v1"]) @ p[att + "v2"] if i > 0 else None
        first = v
        k, v, a, b = prepare(k, v, a_raw, v_raw, v_first, self.vector(att + "k_k"), self.vector(att + "k_a"),
                             self.heads)
        y, state = wkv7(r, w_raw, k, v, a, b, self.heads, state, reset)
        y = norm_bonus_gate(y, r, k, v, g, p[att + "r_k"], p[att + "ln_x.weight"], p[att + "ln_x.bias"])
        return x, y @ p[att + "output.weight"].T, first if i == 0 else v_first, state

    def channel_mix(self, i, x, delta, reset):
        p, block = self.params, f"blocks.{i}."
        mix = self.vector(block + "ffn.x_k")[None]
        x, mixed = add_norm_mix(x, delta, p[block + "ln2.weight"], p[block + "ln2.bias"], mix, reset)
        hidden = torch.relu(mixed[0] @ p[block + "ffn.key.weight"].T).square()
        return x, hidden @ p[block + "ffn.value.weight"].T

    def hidden(self, tokens, reset=None, states=None):
        """tokens int64 [B, T] -> (LN(x; ln_out) [B, T, C], list of final WKV states). Token shifts start at zero."""
        x = self.norm(self.params["emb.weight"][tokens], "blocks.0.ln0")
        delta, v_first, finals = None, None, []
        for i in range(self.layers):
            state = None if states is None else states[i]
            x, delta, v_first, state = self.time_mix(i, x, delta, v_first, state, reset)
            finals.append(state)
            x, delta = self.channel_mix(i, x, delta, reset)
        return self.norm(x + delta, "ln_out"), finals

    def logits(self, tokens, reset=None):
        return self.hidden(tokens, reset)[0] @ self.params["head.weight"].T

    def loss(self, tokens, labels, weights=None, l2wrap=1e-4, reset=None, norm=0.0, norm_rows=0.0):
        x, _ = self.hidden(tokens, reset)
        rows = None if weights is None else weights.reshape(-1)
        return cross_entropy(x.flatten(0, 1), self.params["head.weight"], labels.reshape(-1), rows, l2wrap, norm,
                             norm_rows)[0]


def parameter_group(name, tensor):
    """-> (learning-rate factor, whether weight decay applies), the three groups of the reference recipe."""
    if name.endswith("att.w0"):
        return 2.0, False
    return 1.0, name.endswith(".weight") and tensor.squeeze().dim() >= 2


class AdamW:
    """The recipe's optimiser on a dict of parameters, one formula per line."""

    def __init__(self, params, betas=(0.9, 0.99), eps=1e-18, weight_decay=0.0, clip=1.0):
        self.params, self.betas, self.eps, self.weight_decay, self.clip = params, betas, eps, weight_decay, clip
        self.m = {n: torch.zeros_like(p) for n, p in params.items()}
        self.v = {n: torch.zeros_like(p) for n, p in params.items()}
        self.steps = 0

    @torch.no_grad()
    def step(self, lr):
        """Uses and clears the gradients; -> the norm of all gradients before clipping."""
        self.steps += 1
        grads = {n: p.grad for n, p in self.params.items() if p.grad is not None}
        norm = math.sqrt(sum(float(g.double().square().sum()) for g in grads.values()))
        scale = min(1.0, self.clip / norm) if self.clip > 0 and norm > 0 else 1.0
        beta1, beta2 = self.betas
        for name, grad in grads.items():
            p, m, v = self.params[name], self.m[name], self.v[name]
            factor, decays = parameter_group(name, p)
            g = grad * scale
            m.mul_(beta1).add_((1 - beta1) * g)
            v.mul_(beta2).add_((1 - beta2) * g * g)
            update = (m / (1 - beta1**self.steps)) / ((v / (1 - beta2**self.steps)).sqrt() + self.eps)
            wd = self.weight_decay if decays else 0.0
            p.sub_(lr * factor * (update + wd * p))
            self.params[name].grad = None
        return norm


def rank(C, factor):
    return max(32, 32 * round(factor * math.sqrt(C) / 32))


def _orthogonal(rows, columns, gain, generator):
    out = torch.empty(rows, columns)
    torch.nn.init.orthogonal_(out, gain=gain, generator=generator)
    return out


def initial_state_dict(layers, C, N, V, seed=0, ranks=None, ffn=None):
    """The initial values of the reference recipe as a state dict. `ranks` are those of w, a, v, g."""
    generator = torch.Generator().manual_seed(seed)
    ranks = ranks or (rank(C, 2.5), rank(C, 2.5), rank(C, 1.7), rank(C, 5.0))
    d = torch.arange(C) / C
    lam = torch.arange(C) / (C - 1) - 0.5
    zeta = (torch.arange(C) % N - (N - 1) / 2) / ((N - 1) / 2)
    z = zeta * zeta.abs()
    ortho = lambda rows, columns, gain: _orthogonal(rows, columns, gain, generator)
    out = {"emb.weight": torch.empty(V, C).uniform_(-1e-4, 1e-4, generator=generator)}
    out["head.weight"] = ortho(V, C, 0.5 * math.sqrt(V / C) if V > C else 0.5)
    for i in range(layers):
        block, att = f"blocks.{i}.", f"blocks.{i}.att."
        rho, eta = (i / (layers - 1) if layers > 1 else 0.0), 1 - i / layers
        for norm in (["ln0"] if i == 0 else []) + ["ln1", "ln2"]:
            out[block + norm + ".weight"], out[block + norm + ".bias"] = torch.ones(C), torch.zeros(C)
        for letter, e in zip("rwkvag", (0.2, 0.9, 0.7, 0.7, 0.9, 0.2)):
            out[att + "x_" + letter] = (1 - d ** (e * eta)).view(1, 1, C)
        decay = -6 + 6 * (torch.arange(C) / (C - 1)) ** (1 + rho**0.3)
        biases = {"w": decay + 0.5 + 2.5 * z, "a": -0.19 + 0.3 * z + 0.4 * lam, "v": 0.73 - 0.4 * lam}
        for letter, D in zip("wavg", ranks):
            if letter in biases:
                out[att + letter + "0"] = biases[letter].view(1, 1, C)
            out[att + letter + "1"] = torch.zeros(C, D)
            out[att + letter + "2"] = ortho(D, C, 0.1 * (math.sqrt(D / C) if D > C else 1.0))
        out[att + "k_k"], out[att + "k_a"] = (0.71 - 0.1 * lam).view(1, 1, C), torch.full((1, 1, C), 1.02)
        out[att + "r_k"] = torch.full((C // N, N), -0.04)
        for name, gain in (("receptance", 1.0), ("key", 0.1), ("value", 1.0)):
            out[att + name + ".weight"] = ortho(C, C, gain)
        out[att + "output.weight"] = torch.zeros(C, C)
        out[att + "ln_x.weight"] = torch.full((C,), ((1 + i) / layers) ** 0.7)
        out[att + "ln_x.bias"] = torch.zeros(C)
        out[block + "ffn.x_k"] = (1 - d ** (eta**4)).view(1, 1, C)
        out[block + "ffn.key.weight"] = ortho(ffn or 4 * C, C, 1.0)
        out[block + "ffn.value.weight"] = torch.zeros(C, ffn or 4 * C)
    out["ln_out.weight"], out["ln_out.bias"] = torch.ones(C), torch.zeros(C)
    return out
