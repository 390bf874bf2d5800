"""Shared fixtures: every conformance test runs on every backend that this installation has."""

from __future__ import annotations

from collections.abc import Iterator

import hypothesis
import pytest
import torch

from saekernels.backends import registry

# Tiny models and two cores: threads would wait for each other. Tests of threading set their own number.
torch.set_num_threads(1)

hypothesis.settings.register_profile(
    "default", deadline=None, max_examples=40, derandomize=True, suppress_health_check=list(hypothesis.HealthCheck)
)
hypothesis.settings.load_profile("default")


@pytest.fixture(params=registry.PREFERENCE)
def backend(request: pytest.FixtureRequest) -> str:
    """The name of a backend; skipped, with its own reason, where it is not built."""
    reason = registry.load(request.param).available()
    if reason is not None:
        pytest.skip(f"backend {request.param}: {reason}")
    return request.param


@pytest.fixture(params=[*registry.PREFERENCE, "cpu, screening in bf16"])
def encoder(request: pytest.FixtureRequest) -> Iterator[str]:
    """The name of a backend for the encoders, whose native form runs once with each screen."""
    name, _, screen = request.param.partition(", screening in ")
    module = registry.load(name)
    if module.available() is not None:
        pytest.skip(f"backend {name}: {module.available()}")
    if name == "cpu":
        module.set_screening(screen or "fp32")
    yield name
    if name == "cpu":
        module.set_screening("auto")


@pytest.fixture
def poisoned_empty(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Fresh float buffers start as NaN, so an output element that is never written shows."""

    def poison(make):  # type: ignore[no-untyped-def]
        def wrapper(*args, **kwargs):  # type: ignore[no-untyped-def]
            out = make(*args, **kwargs)
            if out.is_floating_point() and out.device.type == "cpu":
                out.fill_(float("nan"))
            return out

        return wrapper

    monkeypatch.setattr(torch, "empty", poison(torch.empty))
    monkeypatch.setattr(torch, "empty_like", poison(torch.empty_like))
    monkeypatch.setattr(torch.Tensor, "new_empty", poison(torch.Tensor.new_empty))
    yield


@pytest.fixture(autouse=True)
def seed() -> None:
    """The same random numbers in every test, whatever ran before."""
    torch.manual_seed(0)
