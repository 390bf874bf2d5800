"""`load` and `save`: which format a checkpoint has, and the SAE in it.

A format is a module with `NAME`, `FILES` (what is looked for), `find(path)` and `read(found, input_scale, k)`; formats
of torch files have `claims(dictionary)` instead of `find`. safetensors, JSON and arrays are read, and torch files by
the unpickler that makes nothing but tensors and plain values: nothing in a checkpoint is ever run.
"""

from __future__ import annotations

import warnings
from pathlib import Path

import torch

from saekernels.formats import hub
from saekernels.formats.checkpoint import Checkpoint
from saekernels.formats.files import FLOATS, FormatError
from saekernels.formats.pickles import read_pt
from saekernels.formats.readers import (
    circuit_tracer,
    dictionary_learning,
    gemma_scope,
    goodfire,
    llama_scope,
    openai,
    qwen_scope,
    saelens,
    sparsify,
)
from saekernels.formats.write import write
from saekernels.sae.activations import Scale
from saekernels.sae.module import SAE

FORMATS = (saelens, sparsify, llama_scope, gemma_scope)
TORCH_FORMATS = (openai, goodfire, dictionary_learning, qwen_scope)
_TORCH_SUFFIXES = (".pt", ".pth")


def load(
    path: str | Path,
    *,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    input_scale: float | None = None,
    k: int | None = None,
    revision: str | None = None,
) -> SAE:
    """Load an SAE or transcoder from a checkpoint; the format is recognised by its files and tensors.

    Reads SAELens (before and since 6.0), sparsify, dictionary_learning (ae.pt), Gemma Scope (1, 2 and transcoders),
    Llama Scope and Llamascopium, OpenAI's sparse_autoencoder, Goodfire, Qwen Scope, and circuit-tracer transcoders
    (docs/reference/formats.md).

    Args:
        path: a folder or a file of a checkpoint; or a Hugging Face hub id "owner/name/folder/in/it", of which only what
            is under that folder, or that file, is downloaded.
        device: where the weights go; the CPU by default.
        dtype: the dtype of the weights; the checkpoint's by default.
        input_scale: the factor on inputs of an SAE that was trained on scaled activations and whose checkpoint does not
            hold it (SAELens' `expected_average_only_in`); such a checkpoint loads with a warning without it.
        k: active latents, for files that do not say (Qwen Scope).
        revision: of the hub's repository.

    Returns:
        SAE in eval mode.

    Raises:
        FileNotFoundError: there is no such path, or nothing under that id.
        FormatError (a ValueError): an unknown format or architecture, a damaged file, tensors that do not fit.
        TypeError, ValueError: a dtype or an input scale that no SAE can have.
    """
    found = open_checkpoint(path, dtype=dtype, input_scale=input_scale, k=k, revision=revision)
    return finish(found, device, dtype)


def open_checkpoint(
    path: str | Path, *, dtype: torch.dtype | None, input_scale: float | None, k: int | None, revision: str | None
) -> Checkpoint:
    """What `load` reads, checked, and not yet an SAE: tensors of safetensors files are not in memory yet."""
    _check_options(dtype, input_scale)
    if k is not None and (isinstance(k, bool) or not isinstance(k, int) or k < 1):
        raise ValueError(f"k: got {k!r}, need an int of at least 1")
    place = Path(path)
    if not place.exists():
        place = hub.fetch(str(path), revision)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = _read(place, input_scale, k)
    for one in caught:
        warnings.warn(str(one.message), one.category, stacklevel=3)
    return found


def finish(found: Checkpoint, device: torch.device | str | None, dtype: torch.dtype | None) -> SAE:
    """The SAE of a checkpoint in eval mode, on that device and in that dtype."""
    return _move(found.sae(), device, dtype).eval()


def _read(place: Path, input_scale: float | None, k: int | None) -> Checkpoint:
    torch_file = _torch_file(place)
    for form in FORMATS:
        found = form.find(place)
        if found is not None and not (torch_file == place and form is llama_scope):
            return form.read(found, input_scale, k)
    if torch_file is not None:
        content = read_pt(torch_file)
        for one in TORCH_FORMATS:
            if one.claims(content):
                return one.read(torch_file, content, input_scale, k)
        raise FormatError(f"{torch_file}: no known format has the entries {sorted(content)[:12]}")
    single = circuit_tracer.find(place)
    if single is not None:
        return circuit_tracer.read(single, input_scale, k)
    raise FormatError(_unknown(place))


def _torch_file(place: Path) -> Path | None:
    """The torch file at a path: itself, a folder's ae.pt, or the only one in it."""
    if place.is_file():
        return place if place.suffix in _TORCH_SUFFIXES else None
    if (place / "ae.pt").is_file():
        return place / "ae.pt"
    own = [entry for entry in sorted(place.iterdir()) if entry.suffix in _TORCH_SUFFIXES and entry.is_file()]
    return own[0] if len(own) == 1 else None


def save(sae: SAE, path: str | Path, *, metadata: dict[str, object] | None = None) -> tuple[str, ...]:
    """Write `sae` as a SAELens (>= 6) checkpoint folder: cfg.json and sae_weights.safetensors.

    What SAELens has no place for is folded into the weights where that is the same function in exact arithmetic: an
    input scale, a separate pre-bias, decoder norms, BatchTopK as JumpReLU with equal thresholds, a Gated transcoder as
    a JumpReLU one. It is rounded once, to the dtype of the weights. `sae.metadata` goes into cfg.json's metadata.

    Args:
        sae: an SAE.
        path: the folder, made if it is not there.
        metadata: more for "metadata" in cfg.json, e.g. {"model_name": ..., "hook_name": ...}, before what the SAE has.

    Returns:
        A sentence for everything that was folded, is written as something else, or could not be kept.

    Raises:
        TypeError: anything but a `saekernels.SAE`; an edited one has no file.
        FormatError: an SAE that SAELens has no architecture for (GroupMax, TopK without a ReLU, a TopK transcoder), a
            transcoder with a normalisation, another LayerNorm than LayerNorm(eps=1e-5), weights on the meta device or
            too large for their dtype once folded, or metadata that is not JSON. Nothing is then written.
    """
    return write(sae, Path(path), metadata or {})


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


def _unknown(place: Path) -> str:
    wanted = "folder or file of one: " + "; ".join(
        f"{form.NAME}: {form.FILES}" for form in (*FORMATS, *TORCH_FORMATS, circuit_tracer)
    )
    if place.is_file():
        return f"path: got {str(place)!r}, need a checkpoint {wanted}"
    found = sorted(entry.name for entry in place.iterdir())[:8]
    inside = [entry.name for entry in sorted(place.iterdir()) if entry.is_dir() and (entry / "cfg.json").exists()]
    hint = f"; it has checkpoints inside: {', '.join(inside[:8])}" if inside else ""
    layers = any(entry.name.startswith("layer") and entry.is_file() for entry in place.iterdir())
    hint += "; name the file of one layer" if layers else ""
    return f"path: got {str(place)!r} with {found}, need a checkpoint {wanted}{hint}"
