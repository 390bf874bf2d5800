"""The native gradient of linear_ce_kl at every SIMD level, against float64 autograd."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from native_helpers import LEVELS, best_level_again, needs_native  # noqa: F401
from oracle import same_bits
from saekernels.backends import cpu

pytestmark = needs_native

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# Of a gradient's norm. bfloat16: each logit's gradient is rounded before it is multiplied, and so is the result.
ALLOWED = {torch.float32: 3e-6, torch.bfloat16: 5e-3, torch.float16: 5e-4}
ALL = (True, True, True)

Head = dict[str, Tensor | None]
Grads = tuple[Tensor, ...]


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def problem(T: int, d: int, V: int, dtype: torch.dtype = torch.float32, bias: bool = True) -> Head:
    """h_p, h_q [T, d], W_U [V, d], logits of about 2; the second token is ignored where there are three."""
    h_p = torch.randn(T, d)
    targets = torch.randint(0, V, (T,))
    if T > 2:
        targets[1] = -100
    return {
        "h_p": h_p.to(dtype),
        "h_q": (h_p + 0.3 * torch.randn(T, d)).to(dtype),
        "W_U": (torch.randn(V, d) * 2 * d**-0.5).to(dtype),
        "targets": targets,
        "bias": torch.randn(V) if bias else None,
    }


def native(head: Head, grads: Tensor, softcap: float | None = None, needs: tuple[bool, ...] = ALL) -> Grads:
    """The losses' gradients times grads [3, T], by the native forward and backward."""
    losses = cpu.linear_ce_kl(**head, softcap=softcap, ignore_index=-100)[:3]
    need_h, need_W, need_bias = needs
    return cpu.linear_ce_kl_backward(*grads, *losses, **head, softcap=softcap, ignore_index=-100, need_h=need_h,
                                     need_W=need_W, need_bias=need_bias)  # fmt: skip


def dense(head: Head, grads: Tensor, softcap: float | None = None) -> Grads:
    """The same by autograd in float64; without a bias, as if it were zeros."""
    h_p, h_q, W, bias = (
        value.double().requires_grad_()
        if value is not None
        else torch.zeros(len(head["W_U"])).double().requires_grad_()
        for value in (head["h_p"], head["h_q"], head["W_U"], head["bias"])
    )
    targets = head["targets"]

    def log_probabilities(h: Tensor) -> Tensor:
        z = h @ W.T + bias
        return (z if softcap is None else softcap * torch.tanh(z / softcap)).log_softmax(-1)

    log_p, log_q = log_probabilities(h_p), log_probabilities(h_q)
    index = targets.clamp(min=0)[:, None]
    gap = torch.where(log_p == -math.inf, 0.0, log_p - log_q)
    losses = torch.stack([-log_p.gather(1, index)[:, 0], -log_q.gather(1, index)[:, 0], (log_p.exp() * gap).sum(-1)])
    total = (losses * grads.double())[:, targets != -100].sum()
    return torch.autograd.grad(total, (h_p, h_q, W, bias))


def check(got: Grads, want: Grads, dtype: torch.dtype) -> None:
    for name, value, expected in zip(("h_p", "h_q", "W_U", "bias"), got, want, strict=True):
        error = float((value.double() - expected).norm()) / max(float(expected.norm()), 1e-30)
        assert error < ALLOWED[torch.float32 if value.dtype == torch.float32 else dtype], (name, error)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("T", "d", "V", "bias", "softcap"),
    [
        (1, 1, 2, False, None),
        (1, 40, 3001, True, None),
        (5, 33, 769, True, 3.0),
        (45, 300, 1537, False, 20.0),
        (130, 64, 95, True, None),
        (33, 193, 2304, False, None),
        (2, 8, 70_001, True, None),
    ],
)
def test_gradients_are_those_of_float64(
    level: str, dtype: torch.dtype, T: int, d: int, V: int, bias: bool, softcap: float | None
) -> None:
    cpu.set_simd_level(level)
    head, grads = problem(T, d, V, dtype, bias), torch.randn(3, T)
    got = native(head, grads, softcap)
    assert [value.dtype for value in got[:3]] == [dtype] * 3
    if not bias:  # is given in the head's dtype, and was summed in float32
        got = (*got[:3], native({**head, "bias": torch.zeros(V)}, grads, softcap)[3])
    check(got, dense(head, grads, softcap), dtype)
    assert (got[0][head["targets"] == -100] == 0).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_each_loss_alone(dtype: torch.dtype) -> None:
    head = problem(20, 48, 900, dtype)
    for loss in range(3):
        grads = torch.zeros(3, 20)
        grads[loss] = torch.randn(20)
        got, want = native(head, grads), dense(head, grads)
        if loss == 0:
            assert (got[1] == 0).all()
            got, want = got[::2] + got[3:], want[::2] + want[3:]
        if loss == 1:
            assert (got[0] == 0).all()
            got, want = got[1:], want[1:]
        for value, expected in zip(got, want, strict=True):
            wide = torch.float32 if value.dtype == torch.float32 else dtype
            # The gradients of KL are differences of nearly equal probabilities.
            assert float((value.double() - expected).norm() / expected.norm()) < 3 * ALLOWED[wide]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_layouts_give_the_same_bits(dtype: torch.dtype) -> None:
    head, grads = problem(40, 70, 500, dtype), torch.randn(3, 40)
    turned = {**head, "W_U": head["W_U"].T.contiguous().T, "h_p": torch.cat([head["h_p"]] * 2, 1)[:, :70]}
    assert same_bits(native(turned, grads), native(head, grads))


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_threads_change_no_bit(level: str, dtype: torch.dtype, threads: Callable[[int], None]) -> None:
    cpu.set_simd_level(level)
    head, grads = problem(150, 200, 2000, dtype), torch.randn(3, 150)
    threads(1)
    alone = native(head, grads)
    for count in (2, 3, 8):
        threads(count)
        assert same_bits(native(head, grads), alone)


@pytest.mark.skipif("avx2" not in LEVELS, reason="needs two levels with fused multiply-adds")
def test_levels_that_fuse_alike_give_the_same_bits() -> None:
    head, grads = problem(50, 300, 1600), torch.randn(3, 50)
    losses = cpu.linear_ce_kl(**head, softcap=9.0, ignore_index=-100)[:3]
    made = []
    for level in [level for level in LEVELS if level != "portable"]:
        cpu.set_simd_level(level)
        made.append(cpu.linear_ce_kl_backward(*grads, *losses, **head, softcap=9.0, ignore_index=-100,
                                              need_h=True, need_W=True, need_bias=True))  # fmt: skip
    for other in made[1:]:
        assert same_bits(other, made[0])


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_tokens_gradient_does_not_depend_on_the_batch(level: str, dtype: torch.dtype) -> None:
    """2,100 tokens are more than meet the vocabulary at a time where no sum over tokens is needed."""
    cpu.set_simd_level(level)
    head, grads = problem(2100, 24, 800, dtype), torch.randn(3, 2100)
    whole = native(head, grads)[:2]
    assert same_bits(native(head, grads, needs=(True, False, False))[:2], whole)
    for rows in (slice(0, 1), slice(7, 40), slice(2040, 2100)):
        part = {**head, **{name: head[name][rows] for name in ("h_p", "h_q", "targets")}}
        assert same_bits(native(part, grads[:, rows])[:2], tuple(value[rows] for value in whole))


@pytest.mark.parametrize(
    "needs", [(True, False, False), (False, True, False), (False, False, True), (True, True, False)]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_only_what_is_needed(needs: tuple[bool, bool, bool], dtype: torch.dtype) -> None:
    head, grads = problem(70, 40, 900, dtype), torch.randn(3, 70)
    some, all_of_them = native(head, grads, needs=needs), native(head, grads)
    for needed, value, expected in zip((needs[0], *needs), some, all_of_them, strict=True):
        assert same_bits((value,), (expected,)) if needed else value.numel() == 0


def test_no_token_counts() -> None:
    head = problem(4, 8, 30)
    head["targets"] = torch.full((4,), -100)
    assert [float(value.abs().sum()) for value in native(head, torch.ones(3, 4))] == [0.0] * 4


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_impossible_words_have_no_gradient(level: str, dtype: torch.dtype) -> None:
    """A bias of -inf, also at a target, whose cross-entropy is infinite: p - [target] is finite all the same."""
    cpu.set_simd_level(level)
    head = problem(9, 20, 300, dtype)
    head["bias"][[3, 120, 299]] = -math.inf
    head["targets"][4] = 120
    grads = torch.randn(3, 9)
    got = native(head, grads)
    assert all(value.isfinite().all() for value in got)
    head_without = {**head, "bias": head["bias"].clamp(min=-1e4)}
    check(got, dense(head_without, grads), dtype)
    assert (got[2][[3, 299]] == 0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_certain_tokens(dtype: torch.dtype) -> None:
    """Logits of 30,000: probabilities are 0 and 1."""
    W_U = torch.tensor([[1e4], [-1e4], [0.0]], dtype=dtype)
    h = torch.tensor([[3.0], [-3.0]], dtype=dtype)
    head: Head = {"h_p": h, "h_q": h.flip(0), "W_U": W_U, "targets": torch.tensor([0, 1]), "bias": None}
    d_hp, d_hq, d_W, _ = native(head, torch.tensor([[1.0, 1.0], [1.0, 1.0], [0.0, 0.0]]))
    assert d_hp.tolist() == [[0.0], [0.0]]
    low = float(W_U[1, 0]) - float(W_U[0, 0])
    assert d_hq.flatten().tolist() == pytest.approx([low, -low], rel=1e-2)
    assert d_W.flatten().tolist() == [6.0, -6.0, 0.0]


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_nan_stays_with_its_token(level: str, dtype: torch.dtype) -> None:
    cpu.set_simd_level(level)
    head = problem(20, 24, 400, dtype)
    head["h_p"][5, 3] = math.nan
    d_hp, _, d_W, d_bias = native(head, torch.ones(3, 20))
    assert d_hp.isnan().all(1).tolist() == [t == 5 for t in range(20)]
    assert not d_hp[[t for t in range(20) if t != 5]].isnan().any()
    assert d_W.isnan().all()
    assert d_bias.isnan().all()


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_an_infinite_word_that_no_token_can_mean(level: str, dtype: torch.dtype) -> None:
    """W_U may hold infinities whose logit is -inf for every token: padding must not turn them into NaN."""
    cpu.set_simd_level(level)
    head = problem(3, 1, 50, dtype)
    head["h_p"], head["h_q"] = head["h_p"].abs() + 0.1, head["h_q"].abs() + 0.1
    head["W_U"][7] = -math.inf
    head["targets"] = torch.tensor([1, 2, 3])
    got = native(head, torch.tensor([[1.0], [0.5], [0.0]]).expand(3, 3))
    finite = {**head, "W_U": head["W_U"].clamp(min=-1e4)}
    want = native(finite, torch.tensor([[1.0], [0.5], [0.0]]).expand(3, 3))
    torch.testing.assert_close(got[2:], want[2:])
