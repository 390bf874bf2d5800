"""What only the native backend has: SIMD levels, threads, keys, conversions, and checks of raw indices.

Meaning is tested by the conformance suite; here native results are compared with each other and with exact answers.
"""

from __future__ import annotations

import math
import os
import struct
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from saekernels.backends import cpu
from tests.oracle import same_bits

pytestmark = pytest.mark.skipif(cpu.available() is not None, reason=str(cpu.available()))

LEVELS = cpu._native.supported_simd_levels().split(",") if cpu.available() is None else []
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
Results = dict[str, tuple[Tensor, ...]]


@pytest.fixture
def forced() -> Iterator[Callable[[str], None]]:
    """Forces a SIMD level; the best one is back afterwards."""
    yield cpu.set_simd_level
    cpu.set_simd_level("auto")


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def problem(dtype: torch.dtype, integers: bool, T: int = 45, d: int = 300, F: int = 530, k: int = 20) -> dict[str, Tensor]:
    """Inputs of every primitive. Small integers make every sum exact, so all levels must give the same bits."""

    def draw(*shape: int, scale: float = 1.0) -> Tensor:
        values = torch.randint(-2, 3, shape).float() if integers else torch.randn(shape) * scale
        return values.to(dtype)

    return {
        "x": draw(T, d),
        "y": draw(T, d),
        "W": draw(F, d, scale=d**-0.5),
        "b": draw(F),
        "pre": draw(d),
        "values": draw(T * k),
        "indices": torch.randint(0, F, (T * k,), dtype=torch.int32),
        "offsets": torch.arange(T + 1) * k,
        "targets": torch.randint(0, F, (T,)),
        "limits": draw(F) + 1,
    }


def everything(p: dict[str, Tensor]) -> Results:
    """One call of each primitive."""
    x, W, b, pre = p["x"], p["W"], p["b"], p["pre"]
    entries = (p["indices"], p["offsets"])
    results: Results = {
        f"encode_topk {activation} {k}": cpu.encode_topk(x, W, b, pre, k, activation)
        for activation in ("relu", "none", "abs")
        for k in (1, 20, 530)
    }
    results["encode_threshold"] = cpu.encode_threshold(x, W, b, pre, p["limits"])
    results["encode_threshold scalar"] = cpu.encode_threshold(x, W, None, None, torch.tensor(0.5))
    results["topk"] = cpu.topk(W, 9)
    results["topk one row"] = cpu.topk(W.reshape(1, -1), 700)
    results["decode"] = (cpu.decode(p["values"], *entries, W, pre),)
    results["gather_dot"] = (cpu.gather_dot(x, W, *entries),)
    results["segment_outer"] = (cpu.segment_outer(p["values"], *entries, x, W.shape[0]),)
    results["segment_sum"] = (cpu.segment_sum(p["values"], p["indices"], W.shape[0]),)
    results["linear_ce_kl"] = cpu.linear_ce_kl(x, p["y"], W, p["targets"], b, None, -100)
    results["linear_ce_kl softcap"] = cpu.linear_ce_kl(x, p["y"], W, p["targets"], None, 3.0, -100)
    return results


def check_same(got: Results, want: Results) -> None:
    for name, tensors in want.items():
        assert same_bits(got[name], tensors), name


def check_close(got: Results, want: Results, dtype: torch.dtype) -> None:
    tolerance = {torch.float32: 2e-5, torch.bfloat16: 2e-2, torch.float16: 3e-3}[dtype]
    for name, tensors in want.items():
        if name.startswith("encode_threshold"):  # near a threshold the sets may differ: sizes only
            assert abs(got[name][0].numel() - tensors[0].numel()) <= 2, name
            continue
        torch.testing.assert_close(got[name][0].float(), tensors[0].float(), rtol=tolerance, atol=tolerance, msg=name)


@pytest.mark.parametrize("dtype", DTYPES)
def test_simd_levels_agree(dtype: torch.dtype, forced: Callable[[str], None]) -> None:
    exact, rough = problem(dtype, integers=True), problem(dtype, integers=False)
    forced(LEVELS[0])
    exact_best, rough_best = everything(exact), everything(rough)
    for level in LEVELS[1:]:
        forced(level)
        exact_here = everything(exact)
        for name in [name for name in exact_here if name.startswith("linear")]:
            torch.testing.assert_close(exact_here.pop(name), exact_best[name], rtol=1e-6, atol=1e-6, msg=name)
        check_same(exact_here, {name: exact_best[name] for name in exact_here})
        check_close(everything(rough), rough_best, dtype)
        if level == "avx2":  # below avx512: the same sums in the same order, fused alike
            here = {name: value for name, value in everything(rough).items() if not name.startswith("linear")}
            check_same(here, {name: rough_best[name] for name in here})


@pytest.mark.parametrize("level", LEVELS)
def test_thread_counts_agree_bitwise(
    level: str, forced: Callable[[str], None], threads: Callable[[int], None]
) -> None:
    forced(level)
    # Enough work that the pool is used: small calls run in the calling thread.
    p = problem(torch.float32, integers=False, T=90, k=30)
    threads(1)
    alone = everything(p)
    for count in (2, 3, 8):
        threads(count)
        check_same(everything(p), alone)


def test_concurrent_callers_do_not_disturb_each_other() -> None:
    problems = [problem(torch.float32, integers=False, T=60 + 10 * i) for i in range(4)]
    alone = [everything(p) for p in problems]
    with ThreadPoolExecutor(4) as pool:
        for together in [list(pool.map(everything, problems)) for _ in range(3)]:
            for got, want in zip(together, alone, strict=True):
                check_same(got, want)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_can_compute(threads: Callable[[int], None]) -> None:
    threads(2)
    p = problem(torch.float32, integers=False, T=90)
    want = cpu.encode_topk(p["x"], p["W"], p["b"], p["pre"], 20, "relu")
    child = os.fork()
    if child == 0:
        got = cpu.encode_topk(p["x"], p["W"], p["b"], p["pre"], 20, "relu")
        same = got[0].numpy().tobytes() == want[0].numpy().tobytes()
        os._exit(0 if same else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


FLOAT32 = st.floats(width=32, allow_nan=False)


@given(st.tuples(FLOAT32, st.integers(0, 2**31 - 1)), st.tuples(FLOAT32, st.integers(0, 2**31 - 1)))
def test_keys_order_as_scores_then_indices(a: tuple[float, int], b: tuple[float, int]) -> None:
    key_a, key_b = (cpu._native.make_key(score, index, False) for score, index in (a, b))
    assert (key_a > key_b) == ((a[0], -a[1]) > (b[0], -b[1]))


@given(FLOAT32 | st.just(math.nan), st.integers(0, 2**31 - 1), st.booleans())
def test_keys_give_back_what_went_in(score: float, index: int, negative: bool) -> None:
    key = cpu._native.make_key(score, index, negative)
    back = cpu._native.key_score(key)
    assert cpu._native.key_index(key) == index
    assert math.isnan(back) if math.isnan(score) else back == score
    assert key & 1 == negative


def test_nan_of_any_sign_and_payload_ranks_above_infinity() -> None:
    above = cpu._native.make_key(math.inf, 0, False)
    for bits in (0x7FC00000, 0xFFC00000, 0x7F800001, 0xFFFFFFFF):
        (nan,) = struct.unpack("<f", struct.pack("<I", bits))
        assert cpu._native.make_key(nan, 5, False) > above
        assert cpu._native.make_key(nan, 5, False) < cpu._native.make_key(math.nan, 4, False)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("level", [*LEVELS, "scalar"])
def test_every_16_bit_value_survives(level: str, dtype: torch.dtype, forced: Callable[[str], None]) -> None:
    bits = torch.arange(2**16, dtype=torch.int32).to(torch.uint16)
    table = bits.view(dtype).view(2**11, 2**5)
    if level == "scalar":
        code = cpu._DTYPE_CODES[dtype]
        got = torch.tensor([cpu._native.round_trip(float(value), code) for value in table.flatten()]).view_as(table)
    else:
        forced(level)
        rows = torch.arange(2**11, dtype=torch.int32)
        got = cpu.decode(torch.ones(2**11, dtype=dtype), rows, torch.arange(2**11 + 1), table, None).float()
    torch.testing.assert_close(got, table.float(), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("level", [*LEVELS, "scalar"])
def test_rounding_is_to_nearest_even(level: str, dtype: torch.dtype, forced: Callable[[str], None]) -> None:
    grid = torch.arange(2**16, dtype=torch.int32).to(torch.uint16).view(dtype).float()
    grid = grid[grid.isfinite()].sort().values
    halfway = (grid[1:].double() + grid[:-1].double()).div(2).float()  # exact in fp32
    near = torch.cat([halfway, torch.nextafter(halfway, grid[1:]), torch.nextafter(halfway, grid[:-1])])
    limit = torch.finfo(dtype).max
    over = torch.tensor([limit * (1 + 2.0**-12), limit * (1 + 2.0**-8), 1e-45, -1e-45, 3.4e38, -3.4e38])
    values = torch.cat([near[:: 1 if level != "scalar" else 23], over])
    if level == "scalar":
        code = cpu._DTYPE_CODES[dtype]
        got = torch.tensor([cpu._native.round_trip(float(value), code) for value in values])
    else:
        forced(level)  # x = 1 times an fp32 bias: the encoder's value is the bias, rounded to x's dtype
        zero = torch.zeros(values.numel(), 1, dtype=dtype)
        top, index = cpu.encode_topk(torch.ones(1, 1, dtype=dtype), zero, values, None, values.numel(), "none")
        got = torch.empty_like(values).scatter_(0, index[0].long(), top[0].float())
    torch.testing.assert_close(got, values.to(dtype).float(), rtol=0, atol=0)


def logits_as_weights(z: Tensor) -> tuple[Tensor, Tensor]:
    """h and W_U whose product is exactly z [n]."""
    return torch.ones(1, 1), z.reshape(-1, 1).contiguous()


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("spread", [0.01, 1.0, 30.0])
def test_cross_entropy_and_kl_are_good_to_a_millionth(
    level: str, spread: float, forced: Callable[[str], None]
) -> None:
    forced(level)
    for vocabulary in (1, 2, 5, 511, 512, 513, 3001):
        p, q = torch.randn(2, 2, vocabulary) * spread
        h_p, h_q = torch.eye(2)[:1], torch.eye(2)[1:]
        W = torch.stack([p[0], q[0]], dim=1)
        target = torch.tensor([vocabulary // 2])
        ce_p, ce_q, kl, agree = cpu.linear_ce_kl(h_p, h_q, W, target, None, None, -100)
        log_p, log_q = (torch.log_softmax(row.double(), 0) for row in (p[0], q[0]))
        assert abs(float(ce_p) + float(log_p[target])) < 1e-6 * max(1.0, spread)
        assert abs(float(ce_q) + float(log_q[target])) < 1e-6 * max(1.0, spread)
        assert abs(float(kl) - float((log_p.exp() * (log_p - log_q)).sum())) < 1e-6 * max(1.0, spread)
        assert float(agree) == float(p[0].argmax() == q[0].argmax())


@pytest.mark.parametrize("level", LEVELS)
def test_kl_of_almost_equal_streams_is_not_negative(level: str, forced: Callable[[str], None]) -> None:
    forced(level)
    h, W = torch.randn(400, 32), torch.randn(1000, 32)
    targets = torch.zeros(400, dtype=torch.int64)
    for noise in (0.0, 1e-7, 1e-5, 1e-3):
        kl = cpu.linear_ce_kl(h, h + noise * torch.randn_like(h), W, targets, None, None, -100)[2]
        assert float(kl.min()) >= -1e-7
        if noise == 0:
            assert float(kl.abs().max()) == 0


@pytest.mark.parametrize("level", LEVELS)
def test_softcap_is_accurate_from_tiny_to_saturated(level: str, forced: Callable[[str], None]) -> None:
    forced(level)
    z = torch.cat([torch.linspace(-200, 200, 4001), torch.logspace(-30, 0, 301), torch.zeros(1)])
    for i in range(0, z.numel(), 97):
        pair = torch.stack([z[i], torch.zeros(())])
        ce = cpu.linear_ce_kl(*[torch.ones(1, 1)] * 2, pair[:, None].clone(), torch.zeros(1).long(), None, 5.0, -100)[0]
        capped = 5.0 * torch.tanh(pair.double() / 5.0)
        assert abs(float(ce) - float(torch.logsumexp(capped, 0) - capped[0])) < 2e-6


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("special", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("position", [0, 1, 7, 600])
def test_special_logits_do_what_log_softmax_does(
    level: str, special: float, position: int, forced: Callable[[str], None]
) -> None:
    forced(level)
    z = torch.randn(700)
    z[position] = special
    h, W = logits_as_weights(z)
    ce, _, kl, _ = cpu.linear_ce_kl(h, h, W, torch.tensor([3]), None, None, -100)
    want = -torch.log_softmax(z.double(), 0)[3:4].float()
    torch.testing.assert_close(ce, want, equal_nan=True, rtol=1e-6, atol=1e-6)
    assert bool(kl.isnan()) == bool(want.isnan())


def test_a_row_of_minus_infinity_is_nan() -> None:
    h, W = logits_as_weights(torch.full((600,), -math.inf))
    assert cpu.linear_ce_kl(h, h, W, torch.tensor([3]), None, None, -100)[0].isnan().all()


def test_where_p_is_zero_infinite_differences_add_nothing() -> None:
    W = torch.randn(20, 2)
    W[4] = torch.tensor([-math.inf, 0.0])
    W[5] = torch.tensor([-math.inf, -math.inf])
    rows = torch.eye(2)
    # 0 * inf is NaN in the product itself, so the streams are given as rows of a diagonal with a bias of -inf instead.
    finite = W.nan_to_num(neginf=0.0)
    bias = torch.zeros(20)
    bias[4:6] = -math.inf
    kl = cpu.linear_ce_kl(rows[:1], rows[1:], finite, torch.tensor([0]), bias, None, -100)[2]
    log_p, log_q = (torch.log_softmax((finite[:, i] + bias).double(), 0) for i in (0, 1))
    kept = log_p > -math.inf
    assert abs(float(kl) - float((log_p.exp() * (log_p - log_q))[kept].sum())) < 1e-6


@pytest.mark.parametrize("bad", [-1, 530, 2**31 - 1])
@pytest.mark.parametrize("where", [0, 7, 899])
def test_a_wrong_index_is_named(bad: int, where: int) -> None:
    p = problem(torch.float32, integers=False)
    indices = p["indices"].clone()
    indices[where] = bad
    calls = (
        lambda: cpu.decode(p["values"], indices, p["offsets"], p["W"], None),
        lambda: cpu.gather_dot(p["x"], p["W"], indices, p["offsets"]),
        lambda: cpu.segment_outer(p["values"], indices, p["offsets"], p["x"], 530),
        lambda: cpu.segment_sum(p["values"], indices, 530),
    )
    for call in calls:
        with pytest.raises(ValueError, match=rf"indices: must lie in \[0, 530\), but entry {where} is {bad}"):
            call()


@pytest.mark.parametrize("change", [(0, 1), (5, 1000), (45, 899)])
def test_wrong_offsets_are_named(change: tuple[int, int]) -> None:
    p = problem(torch.float32, integers=False)
    offsets = p["offsets"].clone()
    offsets[change[0]] = change[1]
    with pytest.raises(ValueError, match="offsets: "):
        cpu.decode(p["values"], p["indices"], offsets, p["W"], None)


def test_a_wrong_target_is_named() -> None:
    p = problem(torch.float32, integers=False)
    p["targets"][3] = 530
    with pytest.raises(ValueError, match=r"targets: .* targets\[3\] is 530"):
        cpu.linear_ce_kl(p["x"], p["y"], p["W"], p["targets"], None, None, -100)


def test_an_unknown_simd_level_is_refused() -> None:
    before = cpu.simd_level()
    with pytest.raises(ValueError, match="SIMD level 'sse9' is not available here; available: auto,.*portable"):
        cpu.set_simd_level("sse9")
    assert cpu.simd_level() == before
