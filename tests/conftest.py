"""Shared fixtures: every conformance test runs on every backend that this installation has."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest
import torch

import places

places.require_same_sources()

from saekernels.backends import registry  # noqa: E402

# Without a GPU, Triton's kernels are interpreted. To be said before anything imports triton.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")
    # Those of sparsify are not ours to interpret, which takes minutes.
    os.environ.setdefault("SPARSIFY_DISABLE_TRITON", "1")

# For the processes that tests start: threads beyond the cores that are free sleep while they wait, and do not spin.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

# Tiny models only lose by threads, which would wait for each other. Tests of threading set their own number.
torch.set_num_threads(1)

hypothesis.settings.register_profile(
    "default", deadline=None, max_examples=40, derandomize=True, suppress_health_check=list(hypothesis.HealthCheck)
)
hypothesis.settings.load_profile("default")


# The GPU's backends, where there is one. What can be said of them without is in tests/gpu and csrc/tests.
ON_GPU = ("cuda", "triton")
BACKENDS = [name for name in registry.PREFERENCE if name not in ON_GPU or torch.cuda.is_available()]


# The rooms of `pytest -m quick`: what most changes to ops, SAEs, splices and files would break first.
QUICK = ("formats", "ops", "sae", "splice")


@pytest.hookimpl(tryfirst=True)  # before -m selects
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests of those rooms as quick, but those that are left out by default."""
    for item in items:
        room = item.path.relative_to(places.TESTS).parts[0] if item.path.is_relative_to(places.TESTS) else ""
        if room in QUICK and not any(item.get_closest_marker(name) for name in ("slow", "peers")):
            item.add_marker("quick")


@contextlib.contextmanager
def usable(name: str) -> Iterator[str]:
    """A backend, with new tensors on its device; skips, with the backend's own reason, where it is not built."""
    reason = registry.load(name).available()
    if reason is not None:
        pytest.skip(f"backend {name}: {reason}")
    with torch.device("cuda") if name in ON_GPU else contextlib.nullcontext():
        yield name


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    """The name of a backend."""
    with usable(request.param) as name:
        yield name


@pytest.fixture(params=[*BACKENDS, *(f"cpu, screening in {screen}" for screen in ("bf16", "int16", "int8"))])
def encoder(request: pytest.FixtureRequest) -> Iterator[str]:
    """The name of a backend for the encoders, whose native form runs once with each screen."""
    name, _, screen = request.param.partition(", screening in ")
    with usable(name):
        if name == "cpu":
            registry.load(name).set_screening(screen or "fp32")
        yield name
        if name == "cpu":
            registry.load(name).set_screening("auto")


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
    return


@pytest.fixture(autouse=True)
def the_same_start() -> None:
    """The same random numbers in every test, and one thread, whatever ran before."""
    torch.set_num_threads(1)
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The tiny model, its SAEs by site and its texts under "data", as files. Do not change them."""
    import cli

    return cli.files(tmp_path_factory.mktemp("inputs"))
