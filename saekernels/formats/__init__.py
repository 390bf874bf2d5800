"""Read and write the checkpoints of other SAE tools.

A format is a module with `NAME`, `WEIGHTS`, `matches(folder)` and `read(folder, input_scale)`. Only safetensors and
JSON are read: nothing in a checkpoint is ever unpickled or run.
"""

from __future__ import annotations

from pathlib import Path

import torch

from saekernels.activations import Scale
from saekernels.formats import saelens, sparsify
from saekernels.formats.files import FLOATS, FormatError
from saekernels.sae import SAE

__all__ = ["FORMATS", "FormatError", "load", "save"]

FORMATS = (saelens, sparsify)


def load(
    path: str | Path,
    *,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    input_scale: float | None = None,
) -> SAE:
    """Load an SAE or transcoder from a checkpoint folder; the format is recognised by its files.

    Reads SAELens (cfg.json + sae_weights.safetensors, before and since 6.0) and sparsify (cfg.json + sae.safetensors).

    Args:
        path: the folder, or a file in it.
        device: where the weights go; the CPU by default.
        dtype: the dtype of the weights; the checkpoint's by default.
        input_scale: the factor on inputs of an SAE that was trained on scaled activations and whose checkpoint does not
            hold it (SAELens' `expected_average_only_in`); such a checkpoint loads with a warning without it.

    Returns:
        SAE in eval mode.

    Raises:
        FileNotFoundError: there is no such path.
        FormatError (a ValueError): an unknown format or architecture, a damaged file, tensors that do not fit.
        TypeError, ValueError: a dtype or an input scale that no SAE can have.
    """
    _check_options(dtype, input_scale)
    folder = Path(path)
    if not folder.exists():
        raise FileNotFoundError(f"path: got {str(path)!r}, which does not exist")
    if folder.is_file():
        folder = folder.parent
    for form in FORMATS:
        if form.matches(folder):
            return _move(form.read(folder, input_scale), device, dtype).eval()
    raise FormatError(_unknown(folder))


def save(sae: SAE, path: str | Path, *, metadata: dict[str, object] | None = None) -> None:
    """Write `sae` as a SAELens (>= 6) checkpoint folder: cfg.json and sae_weights.safetensors.

    An input scale and a separate pre-bias are folded into the weights, BatchTopK becomes JumpReLU with equal
    thresholds: the same function, and the form that SAELens itself writes.

    Args:
        metadata: goes under "metadata" in cfg.json, e.g. {"model_name": ..., "hook_name": ...}.

    Raises:
        FormatError: an SAE that SAELens has no architecture for (GroupMax, say), another LayerNorm than
            LayerNorm(eps=1e-5), weights on the meta device, or metadata that is not JSON. Nothing is then written.
    """
    saelens.write(sae, Path(path), metadata or {})


def _check_options(dtype: torch.dtype | None, input_scale: float | None) -> None:
    if dtype is not None and dtype not in FLOATS:
        raise TypeError(f"dtype: got {dtype!r}, need one of {', '.join(map(str, FLOATS))}")
    if input_scale is not None:
        try:
            Scale(input_scale)
        except (TypeError, ValueError):
            raise ValueError(f"input_scale: got {input_scale!r}, need a positive finite number") from None


def _move(sae: SAE, device: torch.device | str | None, dtype: torch.dtype | None) -> SAE:
    """`sae.to(...)`, except that thresholds stay in float32 beside half weights: rounding moves them by up to 0.4 %."""
    precise = None if sae.threshold is None else sae.threshold.detach().clone()
    sae.to(device=device, dtype=dtype)
    if sae.threshold is not None and precise is not None and sae.W_enc.dtype in (torch.bfloat16, torch.float16):
        sae.threshold.data = precise.to(device=sae.W_enc.device, dtype=torch.float32)
    return sae


def _unknown(folder: Path) -> str:
    wanted = "; ".join(f"{form.NAME}: cfg.json + {form.WEIGHTS}" for form in FORMATS)
    found = sorted(entry.name for entry in folder.iterdir())[:8]
    inside = [entry.name for entry in sorted(folder.iterdir()) if entry.is_dir() and (entry / "cfg.json").exists()]
    hint = f"; it has checkpoints inside: {', '.join(inside[:8])}" if inside else ""
    return f"path: got {str(folder)!r} with {found}, need a checkpoint folder ({wanted}){hint}"
