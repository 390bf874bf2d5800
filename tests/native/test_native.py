"""What only the native backend has: SIMD levels, threads, processes, and checks of raw indices.

Meaning is tested by the conformance suite; here native results are compared with each other and with exact answers.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor

from native_helpers import LEVELS, best_level_again, needs_native  # noqa: F401
from oracle import same_bits
from saekernels.backends import cpu

pytestmark = needs_native

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
Results = dict[str, tuple[Tensor, ...]]


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def problem(
    dtype: torch.dtype, integers: bool, T: int = 45, d: int = 300, F: int = 530, k: int = 20
) -> dict[str, Tensor]:
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
    stack = torch.stack([x, p["y"], -x]).transpose(1, 2).contiguous().transpose(1, 2)
    results["gather_matmul"] = (cpu.gather_matmul(stack, W, *entries),)
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
def test_simd_levels_agree(dtype: torch.dtype) -> None:
    exact, rough = problem(dtype, integers=True), problem(dtype, integers=False)
    cpu.set_simd_level(LEVELS[0])
    exact_best, rough_best = everything(exact), everything(rough)
    for level in LEVELS[1:]:
        cpu.set_simd_level(level)
        exact_here = everything(exact)
        for name in [name for name in exact_here if name.startswith("linear")]:
            torch.testing.assert_close(exact_here.pop(name), exact_best[name], rtol=1e-6, atol=1e-6, msg=name)
        check_same(exact_here, {name: exact_best[name] for name in exact_here})
        check_close(everything(rough), rough_best, dtype)
        if level == "avx2":  # below avx512: the same sums in the same order, fused alike
            here = {name: value for name, value in everything(rough).items() if not name.startswith("linear")}
            check_same(here, {name: rough_best[name] for name in here})


@pytest.mark.parametrize("level", LEVELS)
def test_thread_counts_agree_bitwise(level: str, threads: Callable[[int], None]) -> None:
    cpu.set_simd_level(level)
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


@pytest.mark.parametrize("bad", [-1, 530, 2**31 - 1])
@pytest.mark.parametrize("where", [0, 7, 899])
def test_a_wrong_index_is_named(bad: int, where: int) -> None:
    p = problem(torch.float32, integers=False)
    indices = p["indices"].clone()
    indices[where] = bad
    calls = (
        lambda: cpu.decode(p["values"], indices, p["offsets"], p["W"], None),
        lambda: cpu.gather_dot(p["x"], p["W"], indices, p["offsets"]),
        lambda: cpu.gather_matmul(p["x"][None], p["W"], indices, p["offsets"]),
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
    with pytest.raises(ValueError, match=r"SIMD level 'sse9' is not available here; available: auto,.*portable"):
        cpu.set_simd_level("sse9")
    assert cpu.simd_level() == before


@pytest.mark.parametrize("level", LEVELS)
def test_many_row_blocks_and_a_large_k_stay_exact(level: str) -> None:
    """k close to F shrinks the row blocks to a few rows; the answer is that of a sort of exact scores."""
    cpu.set_simd_level(level)
    T, d, F, k = 70, 3, 30_000, 29_000
    x, W = torch.randint(-9, 10, (T, d)).float(), torch.randint(-9, 10, (F, d)).float()
    values, indices = cpu.encode_topk(x, W, None, None, k, "none")
    want_values, want_indices = (x @ W.T).sort(dim=1, descending=True, stable=True)
    assert torch.equal(values, want_values[:, :k])
    assert torch.equal(indices.long(), want_indices[:, :k])


@pytest.mark.parametrize("kind", ["ascending", "descending", "equal", "nan", "minus infinity"])
def test_adversarial_score_orders(kind: str) -> None:
    F, k = 5000, 40
    scores = {
        "ascending": torch.arange(F).float(),
        "descending": -torch.arange(F).float(),
        "equal": torch.full((F,), 3.0),
        "nan": torch.where(torch.arange(F) % 3 == 1, float("nan"), torch.arange(F).float()),
        "minus infinity": torch.full((F,), -float("inf")),
    }[kind]
    rank = torch.where(scores.isnan(), float("inf"), scores)
    want = rank.sort(descending=True, stable=True).indices[:k].int()
    encoded = cpu.encode_topk(torch.zeros(2, 1), torch.zeros(F, 1), scores, None, k, "none")
    selected = cpu.topk(scores.expand(2, F), k)
    for values, indices in (encoded, selected):
        assert torch.equal(indices, want.expand(2, k))
        torch.testing.assert_close(values, scores[want.long()].expand(2, k), rtol=0, atol=0, equal_nan=True)
