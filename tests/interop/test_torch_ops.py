"""torch.ops.skein.*: gradcheck in double, and every operator against plain PyTorch, forward and backward."""

import os
import pathlib
import subprocess
import sys

import pytest
import torch

HERE = pathlib.Path(__file__).parent
LIBRARY = pathlib.Path(os.environ["SKEIN_BUILD"]) / "kernels" / "libskein_torch_ops.so"
sys.path.insert(0, str(HERE))

import rwkv7_reference as reference  # noqa: E402

torch.ops.load_library(str(LIBRARY))
ops = torch.ops.skein


class Random:
    """Leaves that require gradients, in double, from one seed."""

    def __init__(self, seed, dtype=torch.double):
        self.generator, self.dtype = torch.Generator().manual_seed(seed), dtype

    def normal(self, *shape, scale=1.0):
        t = torch.randn(*shape, generator=self.generator, dtype=torch.double) * scale
        return t.to(self.dtype).requires_grad_()

    def uniform(self, *shape):
        t = torch.rand(*shape, generator=self.generator, dtype=torch.double)
        return t.to(self.dtype).requires_grad_()

    def mask(self, B, T, share=0.2):
        return torch.rand(B, T, generator=self.generator) < share

    def removal(self, B, T, H, N):
        """a = -kk and b = kk * gate of unit kk per head."""
        kk = torch.nn.functional.normalize(
            torch.randn(B, T, H, N, generator=self.generator, dtype=torch.double), dim=-1).view(B, T, H * N)
        gate = torch.rand(B, T, H * N, generator=self.generator, dtype=torch.double)
        return (-kk).to(self.dtype).requires_grad_(), (kk * gate).to(self.dtype).requires_grad_()


def check_gradients(function, inputs, **kwargs):
    assert torch.autograd.gradcheck(function, inputs, eps=1e-6, atol=1e-7, rtol=1e-5, **kwargs)


def outputs_and_gradients(function, inputs, seed):
    """Outputs of `function`, and the gradients of all inputs of a random linear form of its differentiable outputs."""
    outputs = function(*inputs)
    outputs = list(outputs) if isinstance(outputs, (tuple, list)) else [outputs]
    generator = torch.Generator().manual_seed(seed)
    total = 0
    for out in outputs:
        if out.requires_grad:
            total = total + (out * torch.randn(out.shape, generator=generator, dtype=torch.double).to(out.dtype)).sum()
    leaves = [t for t in inputs if isinstance(t, torch.Tensor) and t.requires_grad]
    return [t.detach() for t in outputs] + list(torch.autograd.grad(total, leaves))


def assert_same(ours, plain, inputs, tolerance, seed=99):
    for mine, theirs in zip(outputs_and_gradients(ours, inputs, seed), outputs_and_gradients(plain, inputs, seed),
                            strict=True):
        assert mine.shape == theirs.shape and mine.dtype == theirs.dtype
        error = (mine.double() - theirs.double()).abs().max().item()
        assert error <= tolerance * max(1.0, theirs.abs().max().item())


TOLERANCE = {torch.double: 1e-11, torch.float: 2e-5}
DTYPES = pytest.mark.parametrize("dtype", [torch.double, torch.float], ids=["double", "float"])


def add_norm_mix(*inputs):
    """The mixes as one tensor, as the reference has them."""
    total, mixed = ops.add_norm_mix(*inputs)
    return total, torch.stack(mixed)


def norm_mix_inputs(random, B, T, C, M):
    return [random.normal(B, T, C), random.normal(B, T, C), random.normal(C), random.normal(C), random.uniform(M, C)]


@pytest.mark.parametrize("with_reset", [False, True])
@pytest.mark.parametrize("with_delta", [False, True])
def test_add_norm_mix_gradcheck(with_delta, with_reset):
    random = Random(1)
    x, delta, weight, bias, mix = norm_mix_inputs(random, 2, 5, 6, 3)
    reset = random.mask(2, 5, 0.4) if with_reset else None
    if with_delta:
        check_gradients(lambda *a: add_norm_mix(*a, reset, 1e-5), (x, delta, weight, bias, mix))
    else:
        check_gradients(lambda x, *a: add_norm_mix(x, None, *a, reset, 1e-5), (x, weight, bias, mix))


@DTYPES
@pytest.mark.parametrize("shape", [(1, 1, 8, 1), (2, 7, 20, 6), (3, 65, 32, 6), (1, 130, 13, 1)])
def test_add_norm_mix_against_pytorch(shape, dtype):
    random = Random(2, dtype)
    B, T, C, M = shape
    inputs = norm_mix_inputs(random, B, T, C, M)
    for reset in (None, random.mask(B, T)):
        assert_same(lambda *a: add_norm_mix(*a, reset, 1e-5), lambda *a: reference.add_norm_mix(*a, reset),
                    inputs, TOLERANCE[dtype])


def test_add_norm_mix_gradient_of_one_output_alone():
    inputs = norm_mix_inputs(Random(3), 2, 4, 8, 2)
    assert_same(lambda *a: add_norm_mix(*a, None, 1e-5)[1], lambda *a: reference.add_norm_mix(*a)[1], inputs, 1e-11)
    for m in range(2):  # one mix, without the other
        assert_same(lambda *a: ops.add_norm_mix(*a, None, 1e-5)[1][m], lambda *a: reference.add_norm_mix(*a)[1][m],
                    inputs, 1e-11)
    total = ops.add_norm_mix(*inputs, None, 1e-5)[0].sum()
    d_x, d_delta, d_weight = torch.autograd.grad(total, inputs[:3], allow_unused=True)
    assert torch.equal(d_x, torch.ones_like(d_x)) and torch.equal(d_delta, torch.ones_like(d_x))
    assert d_weight is None


def prepare_inputs(random, B, T, C):
    return [random.normal(B, T, C) for _ in range(5)] + [random.normal(C), random.normal(C)]


def test_prepare_gradcheck():
    inputs = prepare_inputs(Random(4), 2, 3, 8)
    check_gradients(lambda *a: ops.prepare(*a, 2), inputs)
    k, v, a_raw, _, _, k_k, k_a = inputs
    check_gradients(lambda k, v, a, kk, ka: ops.prepare(k, v, a, None, None, kk, ka, 2), (k, v, a_raw, k_k, k_a))


@DTYPES
@pytest.mark.parametrize("shape", [(1, 1, 8, 1), (2, 70, 96, 3), (1, 5, 20, 4)])
def test_prepare_against_pytorch(shape, dtype):
    B, T, C, H = shape
    k, v, a_raw, v_raw, v_first, k_k, k_a = inputs = prepare_inputs(Random(5, dtype), B, T, C)
    assert_same(lambda *a: ops.prepare(*a, H), lambda *a: reference.prepare(*a, H), inputs, TOLERANCE[dtype])
    assert_same(lambda k, v, a, kk, ka: ops.prepare(k, v, a, None, None, kk, ka, H),
                lambda k, v, a, kk, ka: reference.prepare(k, v, a, None, None, kk, ka, H),
                (k, v, a_raw, k_k, k_a), TOLERANCE[dtype])


def wkv_inputs(random, B, T, H, N):
    C = H * N
    r, w_raw, k, v = (random.normal(B, T, C) for _ in range(4))
    return [r, w_raw, k, v, *random.removal(B, T, H, N), random.normal(B, H, N, N)]


@pytest.mark.parametrize("T", [1, 15, 16, 17, 33])
def test_wkv7_gradcheck(T):
    random = Random(6 + T)
    inputs = wkv_inputs(random, 1, T, 1, 16)
    reset = random.mask(1, T, 0.15)
    check_gradients(lambda *a: ops.wkv7(*a, reset, 1), inputs, fast_mode=True)
    check_gradients(lambda *a: ops.wkv7(*a, None, 1), inputs, fast_mode=True)
    check_gradients(lambda *a: ops.wkv7(*a, None, None, 1), inputs[:6], fast_mode=True)


def test_wkv7_gradcheck_every_element():
    random = Random(7)
    reset = torch.tensor([[False, True, False]])
    check_gradients(lambda *a: ops.wkv7(*a, reset, 1), wkv_inputs(random, 1, 3, 1, 16))


@DTYPES
@pytest.mark.parametrize("shape", [(2, 1, 1, 16), (1, 15, 2, 32), (2, 16, 1, 48), (1, 17, 2, 64), (2, 33, 2, 32),
                                   (1, 100, 1, 128)])
def test_wkv7_against_pytorch(shape, dtype):
    B, T, H, N = shape
    random = Random(8, dtype)
    inputs = wkv_inputs(random, B, T, H, N)
    tolerance = {torch.double: 1e-9, torch.float: 2e-4}[dtype]
    for reset in (None, random.mask(B, T)):
        assert_same(lambda *a: ops.wkv7(*a, reset, H),
                    lambda *a: reference.wkv7(*a[:6], H, a[6], reset), inputs, tolerance)


def test_wkv7_cut_anywhere():
    """Two calls with the state carried over are one call."""
    random = Random(9)
    B, T, H, N = 2, 50, 2, 16
    inputs = wkv_inputs(random, B, T, H, N)
    whole = ops.wkv7(*inputs, None, H)
    for cut in (1, 16, 23, 49):
        head = ops.wkv7(*[t[:, :cut] for t in inputs[:6]], inputs[6], None, H)
        tail = ops.wkv7(*[t[:, cut:] for t in inputs[:6]], head[1], None, H)
        torch.testing.assert_close(torch.cat([head[0], tail[0]], 1), whole[0], rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(tail[1], whole[1], rtol=1e-10, atol=1e-10)


def gate_inputs(random, B, T, H, N):
    C = H * N
    return [random.normal(B, T, C) for _ in range(5)] + [random.normal(H, N), random.normal(C), random.normal(C)]


def test_norm_bonus_gate_gradcheck():
    check_gradients(lambda *a: ops.norm_bonus_gate(*a, 64e-5), gate_inputs(Random(10), 2, 3, 2, 4))


@DTYPES
@pytest.mark.parametrize("shape", [(1, 1, 1, 16), (2, 70, 3, 32), (1, 9, 4, 5)])
def test_norm_bonus_gate_against_pytorch(shape, dtype):
    inputs = gate_inputs(Random(11, dtype), *shape)
    assert_same(lambda *a: ops.norm_bonus_gate(*a, 64e-5), lambda *a: reference.norm_bonus_gate(*a), inputs,
                TOLERANCE[dtype])


@DTYPES
def test_relu_squared(dtype):
    inputs = [Random(12, dtype).normal(3, 5, 40001 // 15)]
    assert_same(ops.relu_squared, lambda x: torch.relu(x).square(), inputs, TOLERANCE[dtype])
    check_gradients(ops.relu_squared, [Random(12).normal(3, 7)])
    assert ops.relu_squared(torch.tensor([float("nan")])).isnan().all()


ACTIVATIONS = {"none": lambda x: x, "tanh": torch.tanh, "sigmoid": torch.sigmoid}


@DTYPES
def test_linear_against_pytorch(dtype):
    random = Random(21, dtype)
    inputs = [random.normal(3, 37, 40), random.normal(70, 40)]
    assert_same(lambda x, w: ops.linear(x, w, False), torch.nn.functional.linear, inputs, TOLERANCE[dtype])
    check_gradients(lambda x, w: ops.linear(x, w, False), (Random(22).normal(2, 3, 5), Random(23).normal(4, 5)))
    flipped = torch.ones(2, 40, 3, dtype=dtype).transpose(1, 2)
    torch.testing.assert_close(ops.linear(flipped, inputs[1], False), flipped @ inputs[1].T)


@DTYPES
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("biased", [False, True])
def test_low_rank_against_pytorch(dtype, activation, biased):
    random = Random(24, dtype)
    act = ACTIVATIONS[activation]
    inputs = [random.normal(3, 37, 40), random.normal(40, 32), random.normal(32, 48)]
    small = [Random(25).normal(2, 3, 5), Random(26).normal(5, 2), Random(27).normal(2, 4)]
    if biased:
        assert_same(lambda x, a, b, c: ops.low_rank(x, a, b, c, activation, False),
                    lambda x, a, b, c: act(x @ a) @ b + c, [*inputs, random.normal(48)], TOLERANCE[dtype])
        check_gradients(lambda x, a, b, c: ops.low_rank(x, a, b, c, activation, False), (*small, Random(28).normal(4)))
    else:
        assert_same(lambda x, a, b: ops.low_rank(x, a, b, None, activation, False), lambda x, a, b: act(x @ a) @ b,
                    inputs, TOLERANCE[dtype])


def test_products_of_bf16_round_their_factors():
    """Forward and backward, against products in fp32 of what was rounded."""
    random = Random(29, torch.float)
    x, w, d_y = random.normal(70, 40), random.normal(50, 40), random.normal(70, 50).detach()
    rounded = lambda t: t.detach().bfloat16().float()
    y = ops.linear(x, w, True)
    d_x, d_w = torch.autograd.grad(y, [x, w], d_y)
    for actual, expected in ((y, rounded(x) @ rounded(w).T), (d_x, rounded(d_y) @ rounded(w)),
                             (d_w, rounded(d_y).T @ rounded(x))):
        # Where LibTorch multiplies, the result is rounded too.
        torch.testing.assert_close(actual, expected, rtol=2**-8, atol=1e-4)


LABELS = torch.tensor([1, -100, 3, 0, 6, 6, -100, 2])


@pytest.mark.parametrize("norms", [(0.0, 0.0), (3.5, 11.0)])
@pytest.mark.parametrize("weighted", [False, True])
def test_head_cross_entropy_gradcheck(weighted, norms):
    random = Random(13)
    weights = random.uniform(8).detach() if weighted else None
    check_gradients(lambda x, h: ops.head_cross_entropy(x, h, LABELS, weights, 0.3, *norms, False)[0],
                    (random.normal(8, 4), random.normal(7, 4)))


@DTYPES
@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("rows,V", [(1, 2), (300, 37), (77, 5000)])
def test_head_cross_entropy_against_pytorch(rows, V, bf16, dtype):
    random = Random(14, dtype)
    labels = torch.randint(0, V, (rows,), generator=random.generator)
    labels[1::5] = -100
    weights = random.uniform(rows).detach()
    inputs = [random.normal(rows, 24), random.normal(V, 24)]
    # Where the tier multiplies in bf16, the gradients of the logits are rounded too: by at most 2^-9 each.
    gradients = 2**-8 if bf16 and dtype == torch.float else TOLERANCE[dtype]
    for args in ((None, 0.0, 0.0, 0.0, bf16), (weights, 1e-2, 0.0, 0.0, bf16), (weights, 1e-2, 12.0, 34.0, bf16)):
        ours = outputs_and_gradients(lambda x, h: ops.head_cross_entropy(x, h, labels, *args), inputs, 99)
        plain = outputs_and_gradients(lambda x, h: [t if i == 0 else t.detach() for i, t in
                                                    enumerate(reference.cross_entropy(x, h, labels, *args))], inputs, 99)
        for i, (mine, theirs) in enumerate(zip(ours, plain, strict=True)):
            assert mine.dtype == theirs.dtype and mine.shape == theirs.shape
            largest = theirs.abs().max().item()
            assert (mine - theirs).abs().max().item() <= (TOLERANCE[dtype] if i < 2 else gradients) * largest
    with torch.no_grad():
        assert ops.head_cross_entropy(*inputs, labels, None, 0.0, 0.0, 0.0, bf16)[0] > 0


def test_head_cross_entropy_without_labels_is_zero():
    random = Random(15)
    x, head = random.normal(3, 4), random.normal(5, 4)
    loss, total = ops.head_cross_entropy(x, head, torch.full((3,), -100), None, 1e-4, 0.0, 0.0, False)
    assert loss == 0 and total == 0
    grads = torch.autograd.grad(loss, [x, head])
    assert all(not g.any() for g in grads)


def test_adamw_against_the_formula():
    generator = torch.Generator().manual_seed(16)
    n = 40001
    param = torch.randn(n, generator=generator)
    mine, m, v = param.clone(), torch.zeros(n), torch.zeros(n)
    plain, pm, pv = param.double(), torch.zeros(n).double(), torch.zeros(n).double()
    for step in range(1, 6):
        grad = torch.randn(n, generator=generator) * 10.0 ** (-step)
        ops.adamw_(mine, grad, m, v, step, 1e-2, 0.9, 0.99, 1e-18, 0.1, 0.5)
        g = grad.double() * 0.5
        pm, pv = 0.9 * pm + 0.1 * g, 0.99 * pv + 0.01 * g * g
        plain -= 1e-2 * (pm / (1 - 0.9**step) / ((pv / (1 - 0.99**step)).sqrt() + 1e-18) + 0.1 * plain)
    torch.testing.assert_close(mine.double(), plain, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(v.double(), pv, rtol=1e-5, atol=1e-12)


def test_squared_norm():
    x = torch.randn(100003, generator=torch.Generator().manual_seed(17))
    assert ops.squared_norm(x) == pytest.approx(float(x.double().square().sum()), rel=1e-13)


@pytest.mark.parametrize("function,shapes", [
    (ops.relu_squared, [(3, 4)]),
    (lambda x, w, m: ops.add_norm_mix(x, None, w, w, m, None, 1e-5)[1][0], [(1, 2, 4), (4,), (1, 4)]),
    (lambda x, p: ops.prepare(x, x, x, None, None, p, p, 1)[0], [(1, 2, 4), (4,)]),
    (lambda x: ops.wkv7(x, x, x, x, x, x, None, None, 1)[0], [(1, 2, 16)]),
    (lambda x, p, rk: ops.norm_bonus_gate(x, x, x, x, x, rk, p, p, 64e-5), [(1, 2, 4), (4,), (1, 4)]),
    (lambda x, w: ops.linear(x, w, False), [(2, 4), (3, 4)]),
    (lambda x, a, b: ops.low_rank(x, a, b, None, "none", False), [(2, 4), (4, 3), (3, 4)]),
    (lambda x, h: ops.head_cross_entropy(x, h, torch.tensor([0]), None, 0.0, 0.0, 0.0, False)[0], [(1, 4), (3, 4)]),
])
def test_second_derivatives_are_refused(function, shapes):
    random = Random(20)
    inputs = [random.normal(*shape) for shape in shapes]
    with pytest.raises(RuntimeError, match="differentiated twice"):
        torch.autograd.grad(function(*inputs).sum(), inputs, create_graph=True)


SAME_FOR_ALL_THREADS = """
import sys, torch
sys.path.insert(0, {here!r})
torch.ops.load_library({library!r})
import test_torch_ops as t
random = t.Random(18, torch.float)
for ours, inputs in (
    (lambda *a: t.add_norm_mix(*a, None, 1e-5), t.norm_mix_inputs(random, 3, 200, 64, 6)),
    (lambda *a: t.ops.prepare(*a, 2), t.prepare_inputs(random, 3, 200, 64)),
    (lambda *a: t.ops.wkv7(*a, None, 2), t.wkv_inputs(random, 3, 50, 2, 32)),
    (lambda *a: t.ops.norm_bonus_gate(*a, 64e-5), t.gate_inputs(random, 3, 200, 2, 32)),
    (t.ops.relu_squared, [random.normal(200, 640)]),
    (lambda *a: t.ops.linear(*a, True), [random.normal(200, 64), random.normal(96, 64)]),
    (lambda *a: t.ops.low_rank(*a, "tanh", True), [random.normal(200, 64), random.normal(64, 32), random.normal(32, 64),
                                                   random.normal(64)]),
    (lambda x, h: t.ops.head_cross_entropy(x, h, torch.arange(200) % 96, None, 1e-4, 0.0, 0.0, True),
     [random.normal(200, 64), random.normal(96, 64)]),
):
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        out = t.outputs_and_gradients(ours, inputs, 1)
        results.append(out + [torch.tensor(t.ops.squared_norm(torch.cat([o.flatten() for o in out])))])
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True)), ours
"""


@pytest.mark.parametrize("tier,flag", [("plain", ""), ("avx2", "avx2"), ("avx512", "avx512vl"), ("amx", "amx_bf16")])
def test_threads_do_not_change_a_bit(tier, flag):
    if flag not in pathlib.Path("/proc/cpuinfo").read_text():
        pytest.skip(f"this machine has no {flag}")
    script = SAME_FOR_ALL_THREADS.format(here=str(HERE), library=str(LIBRARY))
    subprocess.run([sys.executable, "-c", script], check=True, env={**os.environ, "SKEIN_CPU": tier})


def test_unknown_tier_is_an_error():
    script = f"import torch; torch.ops.load_library({str(LIBRARY)!r}); torch.ops.skein.relu_squared(torch.ones(3))"
    run = subprocess.run([sys.executable, "-c", script], env={**os.environ, "SKEIN_CPU": "mmx"}, capture_output=True,
                         text=True)
    assert run.returncode != 0 and "SKEIN_CPU" in run.stderr and "mmx" in run.stderr


@pytest.mark.parametrize("call,message", [
    (lambda x: ops.wkv7(x, x, x, x, x, x, None, None, 3), "multiple of 16"),
    (lambda x: ops.wkv7(x, x, x, x, x, x[:, :1], None, None, 2), "b has shape"),
    (lambda x: ops.wkv7(x, x, x, x, x, x, torch.zeros(1), None, 2), "state has shape"),
    (lambda x: ops.add_norm_mix(x, None, x[0, 0], x[0, 0].double(), x[0], None, 1e-5), "ln_bias is Double"),
    (lambda x: ops.prepare(x, x, x, x, None, x[0, 0], x[0, 0], 2), "v_raw and v_first come together"),
    (lambda x: ops.relu_squared(x.bfloat16()), "takes float or double"),
    (lambda x: ops.linear(x, x[0, :, :5], False), "weight has shape"),
    (lambda x: ops.low_rank(x, x[0].T, x[0], None, "gelu", False), "activation is gelu"),
    (lambda x: ops.head_cross_entropy(x[0], x[0], torch.tensor([0, 1, 2]), None, 0.0, 0.0, 0.0, False),
     "labels has shape|label 2"),
    (lambda x: ops.head_cross_entropy(x[0], x[0], torch.tensor([0, -5]), None, 0.0, 0.0, 0.0, False), "label -5"),
    (lambda x: ops.adamw_(x, x[:1, :1], x, x, 1, 1.0, 0.9, 0.99, 1e-8, 0.0, 1.0), "grad must be|elements, expected"),
])
def test_bad_input_is_named(call, message):
    with pytest.raises(RuntimeError, match=message):
        call(torch.zeros(1, 2, 32))


def use_fused_operators(monkeypatch):
    """From here on reference.Reference computes with our operators in place of its formulae."""
    monkeypatch.setattr(reference, "add_norm_mix",
                        lambda x, d, w, b, mix, reset: ops.add_norm_mix(x, d, w, b, mix, reset, 1e-5))
    monkeypatch.setattr(reference, "prepare", ops.prepare)
    monkeypatch.setattr(reference, "wkv7", lambda r, w, k, v, a, b, H, s, reset: ops.wkv7(r, w, k, v, a, b, s, reset, H))
    monkeypatch.setattr(reference, "norm_bonus_gate", lambda *a: ops.norm_bonus_gate(*a, 64e-5))


@pytest.mark.parametrize("dtype,tolerance", [(torch.double, 1e-10), (torch.float, 1e-4)], ids=["double", "float"])
def test_whole_model(dtype, tolerance, monkeypatch):
    from make_random_rwkv7 import make_tensors

    model = reference.Reference(make_tensors(layers=3, width=64, head_size=32, vocab=50, ranks=(16, 24, 8, 40)), dtype)
    random = Random(19)
    tokens = torch.randint(0, 50, (2, 37), generator=random.generator)
    labels = torch.randint(0, 50, (74,), generator=random.generator)
    reset = random.mask(2, 37, 0.1)
    head, names = model.params["head.weight"], sorted(model.params)
    leaves = [model.params[n] for n in names]
    plain = reference.cross_entropy(model.hidden(tokens, reset)[0].flatten(0, 1), head, labels, None, 1e-4)[0]
    use_fused_operators(monkeypatch)
    ours = ops.head_cross_entropy(model.hidden(tokens, reset)[0].flatten(0, 1), head, labels, None, 1e-4, 0.0, 0.0,
                                  False)[0]
    torch.testing.assert_close(ours, plain, rtol=tolerance, atol=0)
    expected = torch.autograd.grad(plain, leaves, allow_unused=True)
    actual = torch.autograd.grad(ours, leaves, allow_unused=True)
    for name, a, b in zip(names, actual, expected):
        assert (a is None) == (b is None), name
        if a is not None:
            error = (a - b).norm() / b.norm().clamp_min(1e-30)
            assert error < 10 * tolerance, (name, error.item())


def test_reference_matches_the_rwkv_package():
    """The reference itself against an independent implementation: the numpy-like step form of the public package."""
    os.environ.update(RWKV_V7_ON="1", RWKV_JIT_ON="0", RWKV_CUDA_ON="0")
    from make_random_rwkv7 import make_tensors
    from rwkv.model import RWKV
    import tempfile

    tensors = make_tensors(layers=2, width=96, head_size=32, vocab=60, ranks=(16, 24, 8, 40), seed=3)
    tokens = torch.randint(0, 60, (1, 20), generator=torch.Generator().manual_seed(4))
    with tempfile.TemporaryDirectory() as folder:
        torch.save(tensors, folder + "/m.pth")
        package, state, rows = RWKV(model=folder + "/m", strategy="cpu fp32"), None, []
        for token in tokens[0].tolist():
            logits, state = package.forward([token], state)
            rows.append(logits.float())
    ours = reference.Reference(tensors).logits(tokens)[0].detach()
    torch.testing.assert_close(ours, torch.stack(rows), rtol=1e-4, atol=1e-4)
