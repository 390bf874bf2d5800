"""The Triton threshold encoder in the interpreter, with and without a scale, against the reference."""

from __future__ import annotations

import pytest
import torch

from saekernels.backends import reference
from triton_cases import DTYPES, encoder, module, skip_unless_interpreting

skip_unless_interpreting()
from saekernels.backends.triton import encode_threshold, stats  # noqa: E402


@pytest.mark.parametrize(("dtype", "capacity"), [(DTYPES[0], 1024), (DTYPES[1], 1024), (DTYPES[0], 16)])
def test_scaled_thresholds(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, capacity: int) -> None:
    """Those whose scaled score is above the threshold, as it is rounded, with their values to the bit."""
    case = encoder(2, 120, 37, dtype)
    if capacity == 16:  # all scores at once, then
        monkeypatch.setattr(module("encode.encode_threshold"), "CAPACITY", capacity)
    every = encode_threshold(*case, torch.tensor(-torch.inf), out=torch.float32)[0].view(2, 120)
    scale = torch.linspace(0.1, 3, 120)[torch.randperm(120)]
    # Some thresholds are products themselves, which are not above them, or the float below one, which are.
    limits = (every * scale)[0] * (torch.rand(120) > 0.3)
    limits[::3] = limits[::3].nextafter(torch.tensor(-torch.inf))
    got = encode_threshold(*case, limits, scale=scale, out=torch.float32)
    kept = every * scale > limits
    assert torch.equal(got[1].long(), kept.nonzero()[:, 1])
    assert torch.equal(got[2].diff(), kept.sum(1))
    assert torch.equal(got[0], every[kept])


def test_limits_of_scaled_scores_are_to_the_float() -> None:
    """The largest float whose product with the factor does not exceed the threshold, of floats of all sizes."""
    bits = torch.randint(-(2**31), 2**31, (2, 60_000)).int()
    threshold, factor = bits.view(torch.float32)
    special = torch.tensor([0.0, -0.0, 1e-45, -1e-45, 3.4028234e38, -3.4028234e38, torch.inf, -torch.inf, torch.nan])
    threshold[:900] = special.repeat(100)
    threshold[900:20_000], factor[450:20_000] = torch.randn(19_100), torch.rand(19_550) + 0.05
    factor = factor.abs().nan_to_num(1.5, posinf=1.5).clamp(min=1e-45)
    found = module("encode.scaled").limits_of(threshold, factor)
    none, finite = threshold.isnan(), torch.finfo(torch.float32)
    assert torch.equal(found.isnan(), none)
    assert not (found * factor > threshold)[~none & (found != torch.inf)].any()
    assert not (finite.max * factor > threshold)[found == torch.inf].any()
    next_up = torch.where(found == -torch.inf, finite.min, found.nextafter(torch.tensor(torch.inf)))
    assert (next_up * factor > threshold)[~none & (found != torch.inf)].all()


@pytest.mark.parametrize(
    ("dtype", "capacity"),
    [pytest.param(DTYPES[0], 1024, marks=pytest.mark.slow), (DTYPES[1], 1024), (DTYPES[0], 16), (DTYPES[1], 16)],
)
def test_threshold(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, capacity: int) -> None:
    monkeypatch.setattr(module("encode.encode_threshold"), "CAPACITY", capacity)
    case = encoder(7, 300, 37, dtype)
    case.x[2], case.x[3] = torch.nan, 0
    for limits in (torch.tensor(0.5), torch.rand(300) + 0.5, torch.tensor(-9.0), torch.tensor(torch.nan)):
        before = stats()["fallback_rows"]
        got = encode_threshold(*case, limits)
        want = reference.encode_threshold(*case, limits)
        assert stats()["fallback_rows"] - before == (want[2].diff() > min(capacity, 512)).sum()
        assert torch.equal(got[2], want[2])
        assert torch.equal(got[1], want[1])
        tolerance = 1e-5 if dtype == torch.float32 else 4e-3
        torch.testing.assert_close(got[0], want[0], rtol=tolerance, atol=tolerance, equal_nan=True)


def test_thresholds_in_several_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    case = encoder(7, 120, 20)
    want = encode_threshold(*case, torch.tensor(0.3))
    monkeypatch.setattr(module("encode.encode_threshold"), "BUFFER_BYTES", 3 * 8 * 128)
    got = encode_threshold(*case, torch.tensor(0.3))
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


@pytest.mark.parametrize("capacity", [1024, 8])
def test_screened_thresholds(monkeypatch: pytest.MonkeyPatch, capacity: int) -> None:
    monkeypatch.setattr(module("encode.encode_threshold"), "CAPACITY", capacity)
    case = encoder(4, 200, 48)
    got = encode_threshold(*case, torch.tensor(1.0), precision="screened")
    want = reference.encode_threshold(*case, torch.tensor(1.0))
    assert torch.equal(got[2], want[2])
    assert torch.equal(got[1], want[1])
    torch.testing.assert_close(got[0], want[0], rtol=1e-5, atol=1e-5)
