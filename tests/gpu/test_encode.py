"""The Triton top-k encoder in the interpreter: screens, certificates and fallbacks against the reference."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from saekernels.backends import reference
from triton_cases import DTYPES, check_topk, encoder, module, screening, skip_unless_interpreting

skip_unless_interpreting()
from saekernels.backends.triton import encode_threshold, encode_topk, stats  # noqa: E402


def truncated(matrix: Tensor) -> Tensor:
    """float32 with the 10 bits of fraction that tf32 keeps, cut off as the worst hardware would."""
    return (matrix.view(torch.int32) & ~0x1FFF).view(torch.float32)


def count_failures(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many rows each call that follows recomputed."""
    seen: list[int] = []
    exact_rows = module("encode.encode_topk").exact_rows

    def counted(of, failed, *rest, **options):  # type: ignore[no-untyped-def]
        seen.append(int(failed.number))
        exact_rows(of, failed, *rest, **options)

    monkeypatch.setattr(module("encode.encode_topk"), "exact_rows", counted)
    return seen


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation", ["relu", pytest.param("none", marks=pytest.mark.slow), "abs"])
def test_screened_topk(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, activation: str) -> None:
    # More rows than a tile where it is enough to see it once.
    case = encoder(17 if activation == "relu" else 5, 500, 37, dtype)
    failures = count_failures(monkeypatch)
    with screening(monkeypatch, step=4, rank=6, capacity=96):
        rounded, wide = encode_topk(*case, 9, activation), encode_topk(*case, 9, activation, out=torch.float32)
        check_topk(case, rounded, 9, activation)
        assert wide[0].dtype == torch.float32
        assert torch.equal(wide[1], rounded[1])
        assert torch.equal(wide[0].to(dtype), rounded[0])
        failures[1:] = []
    assert failures == [0], "nothing here needs the fallback"


@pytest.mark.parametrize("T", [1, 17])
@pytest.mark.parametrize("F", [100, 513])
def test_dense_topk(T: int, F: int) -> None:
    case = encoder(T, F, 20, biased=False)
    for k in (1, 7, F):
        check_topk(case, encode_topk(*case, k, "none"), k)


def test_both_layouts_and_views(monkeypatch: pytest.MonkeyPatch) -> None:
    case = encoder(5, 300, 33)
    with screening(monkeypatch, step=4, rank=5, capacity=96):
        want = encode_topk(*case, 8, "none")
        columns = case._replace(W=case.W.t().contiguous().t())
        wide_x, wide_W = torch.full((5, 66), torch.nan), torch.full((300, 70), torch.nan)
        wide_x[:, ::2], wide_W[:, 3:36] = case.x, case.W
        views = case._replace(x=wide_x[:, ::2], W=wide_W[:, 3:36])
        for other in (columns, views):
            got = encode_topk(*other, 8, "none")
            assert torch.equal(got[1], want[1])
            torch.testing.assert_close(got[0], want[0], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("rank", "capacity"), [(40, 64), (1, 96), (2, 512)], ids=["overflow", "short", "mixed"])
@pytest.mark.parametrize("dtype", [DTYPES[0], pytest.param(DTYPES[1], marks=pytest.mark.slow)])
def test_failed_rows_are_recomputed(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, rank: int, capacity: int
) -> None:
    case = encoder(4, 400, 24, dtype)
    failures = count_failures(monkeypatch)
    with screening(monkeypatch, step=4, rank=rank, capacity=capacity):
        before = stats()["fallback_rows"]
        check_topk(case, encode_topk(*case, 12, "abs"), 12, "abs")
    assert failures[0] > 0
    assert stats()["fallback_rows"] - before == failures[0]


@pytest.mark.parametrize("dtype", DTYPES)
def test_ties_nan_and_infinities(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype) -> None:
    case = encoder(6, 400, 24, dtype, biased=False)
    case.x[1] = 0  # all scores equal
    case.x[2] = torch.nan
    case.x[3, 5] = torch.inf
    case.W[7, 3], case.W[9, 2] = torch.inf, torch.nan
    with screening(monkeypatch, step=4, rank=6, capacity=96):
        values, indices = encode_topk(*case, 10, "none")
    want = reference.encode_topk(*case, 10, "none")
    # 0 * inf is NaN too, so row 1 has two of those ahead of its ties.
    assert indices[1].tolist() == want[1][1].tolist() == [7, 9, *(i for i in range(10) if i not in (7, 9))]
    assert indices[2].tolist() == list(range(10))
    assert values[2].isnan().all()
    check_topk(case, (values, indices), 10)


def test_planted_tile_and_repeated_latents(monkeypatch: pytest.MonkeyPatch) -> None:
    case = encoder(5, 512, 24)
    case.W[128:160] = case.x[0] * torch.linspace(1, 2, 32)[:, None]
    case.W[300:330] = case.W[200]
    with screening(monkeypatch, step=4, rank=9, capacity=96):
        got = encode_topk(*case, 16, "none")
    check_topk(case, got, 16)
    assert set(got[1][0].tolist()) == set(range(144, 160))


@pytest.mark.slow
@given(
    step=st.sampled_from([2, 3, 8]),
    rank=st.integers(1, 12),
    k=st.integers(1, 60),
    seed=st.integers(0, 99),
    activation=st.sampled_from(["relu", "none", "abs"]),
)
@settings(max_examples=6)
def test_any_plan_gives_the_same(step: int, rank: int, k: int, seed: int, activation: str) -> None:
    case = encoder(3, 200, 16, seed=seed)
    want = encode_topk(*case, k, activation)  # by the dense way
    with pytest.MonkeyPatch.context() as patch, screening(patch, step, rank, 128):
        got = encode_topk(*case, k, activation)
    assert torch.equal(got[1], want[1])
    torch.testing.assert_close(got[0], want[0], rtol=1e-5, atol=1e-5)


def test_a_screen_at_its_worst_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Operands cut off as tf32 might; near ties that only float32 tells apart."""
    case = encoder(9, 600, 64)
    case.W[100:140] = case.W[50] * (1 + 2e-4 * torch.randn(40, 1))
    case.x[:] += 2 * case.W[50]
    screen, sample = module("encode.encode_topk").screen, module("encode.encode_topk").sample

    def degraded(of, *rest, **options):  # type: ignore[no-untyped-def]
        return screen(of._replace(x=truncated(of.x), W=truncated(of.W)), *rest, **options)

    monkeypatch.setattr(module("encode.encode_topk"), "screen", degraded)
    monkeypatch.setattr(
        module("encode.encode_topk"),
        "sample",
        lambda of, *rest, **o: sample(of._replace(W=truncated(of.W)), *rest, **o),
    )
    failures = count_failures(monkeypatch)
    with screening(monkeypatch, step=4, rank=12, capacity=256):
        got = encode_topk(case.x, case.W, None, None, 20, "none")
    exact = case.x.double() @ case.W.double().T
    best = exact.topk(20).values
    assert failures == [0]
    # Without rescoring the truncation errors, some 1e-3, would show.
    torch.testing.assert_close(got[0].double(), best, rtol=2e-6, atol=2e-6)
    torch.testing.assert_close(exact.gather(1, got[1].long()), best, rtol=2e-6, atol=2e-6)


@pytest.mark.slow
def test_a_hint_changes_speed_only(monkeypatch: pytest.MonkeyPatch) -> None:
    case = encoder(6, 400, 24)
    with screening(monkeypatch, step=4, rank=6, capacity=96):
        want = encode_topk(*case, 10, "none")
        for hint in (torch.tensor(1.0), torch.tensor([1.0, 0.9, torch.nan, 9.0, -9.0, 1.1])):
            got = encode_topk(*case, 10, "none", hint=hint)
            assert torch.equal(got[1], want[1])
            torch.testing.assert_close(got[0], want[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", DTYPES)
def test_screened_precision(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype) -> None:
    case = encoder(4, 300, 48, dtype)
    with screening(monkeypatch, step=4, rank=8, capacity=256):
        check_topk(case, encode_topk(*case, 8, "relu", precision="screened"), 8, "relu")


@pytest.mark.parametrize(
    ("dtype", "rank", "precision", "activation"),
    [
        (DTYPES[0], 6, "exact", "abs"),
        (DTYPES[1], 6, "exact", "abs"),
        (DTYPES[1], 6, "exact", "relu"),
        (DTYPES[0], 40, "exact", "abs"),
        pytest.param(DTYPES[1], 40, "exact", "none", marks=pytest.mark.slow),
        pytest.param(DTYPES[0], 8, "screened", "none", marks=pytest.mark.slow),
        (DTYPES[0], None, "exact", "abs"),
    ],
)
def test_scaled_topk(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, rank: int | None, precision: str, activation: str
) -> None:
    """By screen and certificate, by rows that fail, and by all scores: in the order of scaled scores, the values that
    there are without a scale, to the bit.
    """
    case, few = encoder(2, 160, 37, dtype), rank == 40
    # Of rows that fail the 64 best are kept, among which those by scaled scores are to be.
    scale = torch.linspace(0.97 if few else 0.1, 1.03 if few else 3, 160)[torch.randperm(160)]
    options = {"out": torch.float32, "precision": precision}
    failures = count_failures(monkeypatch)
    with screening(monkeypatch, step=2, rank=rank or 0, capacity=256 if precision == "screened" else 128):
        if rank is None:
            monkeypatch.setattr(module("encode.encode_topk"), "plan", lambda *_: None)
        got = encode_topk(*case, 9, activation, scale=scale, **options)
        assert rank is None or (failures[0] > 0) == few
        signed = "abs" if activation == "abs" else "none"
        if rank is None or few:
            plain = encode_topk(*case, 64 if few else 160, signed, **options)
            every = torch.full((2, 160), -torch.inf).scatter(1, plain[1].long(), plain[0])
        else:
            plain = encode_threshold(*case, torch.tensor(-torch.inf), **options)
            assert (plain[2].diff() == 160).all()
            every = plain[0].view(2, 160)
    compared = every * scale if activation != "abs" else (every * scale).abs().nan_to_num(posinf=0)
    chosen = compared.sort(dim=1, descending=True, stable=True).indices[:, :9]
    assert torch.equal(got[1].long(), chosen)
    want = every.gather(1, chosen)
    assert torch.equal(got[0], want.relu() if activation == "relu" else want)


def test_no_rows() -> None:
    case = encoder(0, 100, 8)
    values, indices = encode_topk(*case, 3, "relu")
    assert values.shape == indices.shape == (0, 3)
    codes = encode_threshold(*case, torch.tensor(0.0))
    assert codes[0].numel() == 0
    assert codes[2].tolist() == [0]
