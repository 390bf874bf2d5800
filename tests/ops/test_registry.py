"""Which backend serves what: the choice, the reasons, the override."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch

from native_helpers import needs_native
from saekernels.backends import registry
from saekernels.backends.cpu import native
from saekernels.cli import main


def test_every_backend_has_every_primitive_that_it_claims() -> None:
    for name in registry.PREFERENCE:
        module = registry.load(name)
        assert name == module.NAME
        for op in registry.PRIMITIVES:
            for dtype in registry.DTYPES:
                if registry.refusal(name, op, "cpu", dtype) is None:
                    assert callable(getattr(module, op))


def test_the_first_that_can_is_chosen() -> None:
    for choice in registry.explain("cpu"):
        dtype = getattr(torch, choice.dtype)
        # On a CPU Triton's interpreter could, and is never chosen.
        able = [
            n for n in registry.PREFERENCE if registry.refusal(n, choice.op, "cpu", dtype) is None and n != "triton"
        ]
        if not able:
            assert choice.op in registry.OPTIONAL
            assert choice.backend == "none"
            continue
        assert choice.backend == able[0]
        assert set(choice.others) == set(registry.PREFERENCE) - {choice.backend}
        assert all(choice.others.values()), "a backend is passed over without a reason"
    assert len(registry.explain("cpu")) == len(registry.PRIMITIVES) * len(registry.DTYPES)


def test_reference_serves_everything() -> None:
    for op in set(registry.PRIMITIVES) - set(registry.OPTIONAL):
        for device in ("cpu", "cuda"):
            assert registry.refusal("reference", op, device, torch.float64) is None


@pytest.mark.parametrize("device", ["mps", "xpu"])
def test_a_device_without_kernels_is_served_by_the_reference_and_told_of_once(device: str) -> None:
    for cached in (registry.select, registry._say_reference):
        cached.cache_clear()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for op in ("encode_topk", "decode"):
            for dtype in (torch.float32, torch.bfloat16):
                assert registry.select(op, device, dtype).NAME == "reference"
        assert registry.select("decode", device, torch.float32, "reference").NAME == "reference"
        registry.select("decode", "cpu", torch.float64)
    assert [str(one.message).partition(",")[0] for one in caught] == [f"saekernels: there are no kernels for {device}"]


OVERRIDES = """
import os, sys, torch
for override in sys.argv[1:]:
    child = os.fork()
    if child == 0:
        os.environ.update([override.split("=")])
        import saekernels
        from saekernels.backends import registry
        try:
            print(registry.select("topk", "cpu", torch.float32).NAME, flush=True)
        except ValueError as error:
            print(error, flush=True)
        os._exit(0)
    os.waitpid(child, 0)
os._exit(0)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_environment_override(tmp_path: Path) -> None:
    """Read once, at import; a SIMD level that is not there is no reason for the reference."""
    overrides = [*(f"SAEKERNELS_BACKEND={name}" for name in ("reference", "auto", "tpu")), "SAEKERNELS_SIMD=bogus"]
    # Not here: "-c" would put the sources of a checkout before the installed package.
    argv = [sys.executable, "-c", OVERRIDES, *overrides]
    shown = subprocess.run(argv, cwd=tmp_path, capture_output=True, text=True, check=True)
    reference, auto, unknown, level = shown.stdout.splitlines()
    usual = registry.select("topk", "cpu", torch.float32).NAME
    assert (reference, auto) == ("reference", usual)
    assert unknown == "SAEKERNELS_BACKEND: got 'tpu', need one of 'auto', 'cpu', 'cuda', 'triton', 'reference'"
    if native.LOADED is not None:
        assert level.startswith("SAEKERNELS_SIMD: SIMD level 'bogus' is not available here; available: auto,")
    else:
        assert level == usual


@needs_native
@pytest.mark.parametrize("value", ["bogus", "own", "torch"])
def test_whose_threads_is_one_of_two_words(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAEKERNELS_THREADS", value)
    wrong = None if value in ("own", "torch") else f"SAEKERNELS_THREADS: got {value!r}, need 'torch' or 'own'"
    assert native.available() == wrong
    assert registry.misset() == wrong


def test_a_backend_that_is_none_is_named_wherever_it_was_chosen(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    known = "need one of 'auto', 'cpu', 'cuda', 'triton', 'reference'"
    with pytest.raises(ValueError, match=f"^backend: got 'tpu', {known}$"):
        registry.select("topk", "cpu", torch.float32, "tpu")
    assert registry.misset() is None
    assert main(["info"]) == 0
    assert "need one of" not in capsys.readouterr().out
    monkeypatch.setattr(registry, "ENVIRONMENT_CHOICE", "tpu")
    assert main(["info"]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.strip().endswith(f"SAEKERNELS_BACKEND: got 'tpu', {known}")
    with pytest.raises(ValueError, match=f"^backend: got 'cpu2', {known}$"):
        registry.select("topk", "cpu", torch.float64, "cpu2")
