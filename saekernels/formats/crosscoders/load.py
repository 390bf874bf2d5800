"""`load_crosscoder`: which tool a crosscoder is of, told by its tensors, and the crosscoder in it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from saekernels.crosslayer.crosscoder import Crosscoder
from saekernels.formats import hub
from saekernels.formats.crosscoders import ckkissane, dictionary_learning, llamascopium
from saekernels.formats.crosscoders.build import Asked, moved
from saekernels.formats.files import FLOATS, FormatError, read_safetensors
from saekernels.formats.pickles import read_pt, unwrapped

FORMATS = (ckkissane, dictionary_learning, llamascopium)
_SUFFIXES = (".pt", ".pth", ".safetensors")


def load_crosscoder(
    path: str | Path,
    *,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    input_scale: Sequence[float] | None = None,
    alphas: tuple[float, float] | None = None,
    revision: str | None = None,
) -> Crosscoder:
    """Load an acausal crosscoder, of several layers or several models; the tool is recognised by its tensors.

    Reads ckkissane's and neelnanda-io's, those of dictionary_learning's fork, and Llamascopium's
    (docs/reference/formats.md). Those of Gemma Scope 2 are weakly causal, which a `CrossLayerTranscoder` is.

    Args:
        path: a folder with one file of weights, or that file; or a Hugging Face hub id "owner/name/folder/in/it".
        device: where the weights go; the CPU by default.
        dtype: of the weights; the file's by default, the widest of several.
        input_scale: a factor for each head, on what it reads, where the files do not hold it; what is written is
            divided by it. ckkissane's and neelnanda-io's never do.
        alphas: (of the concatenated norm, of the sum of norms), for MIXED norms whose files do not hold them.
        revision: of the hub's repository; refused for what is on the disk.

    Returns:
        Crosscoder in eval mode. Its W_enc and W_dec are laid out anew, once.

    Raises:
        FileNotFoundError: there is no such path, or nothing under that id.
        FormatError (a ValueError): an unknown format, a damaged file, tensors or fields that do not fit or are not
            known, and what a file does not say and has to be given, by the argument's name.
        TypeError, ValueError: a dtype or a revision that cannot be.
    """
    if dtype is not None and dtype not in FLOATS:
        raise TypeError(f"dtype: got {dtype!r}, need one of {', '.join(map(str, FLOATS))}")
    place = Path(path)
    if not place.exists():
        place = hub.fetch(str(path), revision)
    elif revision is not None:
        raise ValueError(f"revision: got {revision!r} for {path}, which is on this machine's disk; need a hub id")
    file = _weights(place)
    found = _entries(file)
    form = next((form for form in FORMATS if form.claims(found)), None)
    if form is None:
        raise FormatError(f"{file}: no known crosscoder has the entries {sorted(found)[:12]}")
    return moved(form.read(file, found, Asked(input_scale, alphas)), device, dtype)


def _weights(place: Path) -> Path:
    """The file of weights: itself, or the only one of a folder."""
    if place.is_file():
        return place
    own = [entry for entry in sorted(place.iterdir()) if entry.suffix in _SUFFIXES and entry.is_file()]
    if len(own) != 1:
        names = ", ".join(entry.name for entry in own) or "none"
        raise FormatError(f"{place}: need one file of weights (.pt, .safetensors), got {names}; name the file")
    return own[0]


def _entries(file: Path) -> Mapping[str, Any]:
    if file.suffix == ".safetensors":
        return read_safetensors(file)
    if file.suffix not in _SUFFIXES:
        raise FormatError(f"{file}: got a {file.suffix or 'file without a suffix'}, need {', '.join(_SUFFIXES)}")
    found = read_pt(file)
    inner = found.get("sae")
    return inner if isinstance(inner, Mapping) and "W_E" in inner else unwrapped(file, found)[0]
