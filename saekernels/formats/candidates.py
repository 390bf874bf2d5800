"""The formats, and which of them fit what lies at a path.

Formats are told by the names of files (FORMATS), or by the tensors in a torch file (TORCH_FORMATS) or in a safetensors
file that was named. A file of a folder's format is that format's: what its tensors resemble does not count.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from saekernels.formats.checkpoint import Checkpoint
from saekernels.formats.config import Config
from saekernels.formats.files import FormatError, read_safetensors
from saekernels.formats.pickles import read_pt, unwrapped
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
    state_dict,
)

FORMATS = (saelens, sparsify, llama_scope, gemma_scope)
TORCH_FORMATS = (openai, goodfire, dictionary_learning, qwen_scope, state_dict)
ALL = (*FORMATS, *TORCH_FORMATS, circuit_tracer)
_BY_SHAPE = (qwen_scope, circuit_tracer, state_dict)


@dataclass(frozen=True)
class Wanted:
    """What the caller of `load` says of a checkpoint; None where nothing."""

    input_scale: float | None = None
    k: int | None = None
    format: str | None = None
    config: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Candidate:
    """A format that fits, and the file or folder that it fits."""

    form: Any
    place: Path
    read: Callable[[], Checkpoint]

    def __str__(self) -> str:
        return f"{self.form.NAME!r} ({self.place.name})"


def form_of(name: str) -> Any:
    """The format of that name, in whatever case. ValueError where there is none."""
    for form in ALL:
        if isinstance(name, str) and name.casefold() == form.NAME.casefold():
            return form
    raise ValueError(f"format: got {name!r:.40}, need one of {', '.join(repr(form.NAME) for form in ALL)}")


def candidates(place: Path, wanted: Wanted, named: Any) -> Iterator[Candidate]:
    """Every format that fits what lies at a path, and how it is read; `named`: that format alone, None for all."""
    by_name = list(_by_name(place, wanted, named))
    yield from by_name
    if named in FORMATS:
        return
    file = _torch_file(place)
    own = place.is_file() or (named is None and not by_name) or (file is not None and file.name == "ae.pt") or named
    if file is not None and own and (named or not any(form.find(file) for form in FORMATS)):
        yield from _of_torch(file, wanted, named)
    elif file is None and (named or not by_name):
        single = _single(place, (".safetensors",))
        if single is not None and (place == single or state_dict.claims(read_safetensors(single))):
            yield from _of_safetensors(single, wanted, named)


def _by_name(place: Path, wanted: Wanted, named: Any) -> Iterator[Candidate]:
    for form in FORMATS if named is None else (named,) if named in FORMATS else ():
        inside = [place / name for name in getattr(form, "PARAMETERS", ())] if place.is_dir() else []
        for one in [path for path in inside if path.is_file()] or [place]:
            found = form.find(one)
            if found is not None and (named is not None or not _is_anyones(form, found)):
                yield Candidate(form, found, partial(form.read, found, wanted.input_scale, wanted.k))


def _is_anyones(form: Any, folder: Path) -> bool:
    """Whether sparsify's name for a file, sae.safetensors, is on tensors of other names than its own."""
    if form is not sparsify:
        return False
    found = read_safetensors(folder / sparsify.WEIGHTS)
    return "encoder.weight" not in found and state_dict.claims(found)


def _of_torch(file: Path, wanted: Wanted, named: Any) -> Iterator[Candidate]:
    content, inside = unwrapped(file, read_pt(file))
    forms = [form for form in TORCH_FORMATS if form.claims(content)] if named is None else [named]
    if named is None and dictionary_learning in forms and not dictionary_learning.sure(file, content):
        forms.remove(dictionary_learning)
    if state_dict in forms and set(forms) - {state_dict, qwen_scope}:
        forms.remove(state_dict)  # what any tensors of these names could be, where they are one tool's
    if named is None and set(forms) & set(_BY_SHAPE):
        forms = _by_shape(file, content, forms)
    if not forms:
        raise FormatError(f"{file}: no known format has the entries {sorted(content)[:12]}")
    for form in forms:
        if form is state_dict:
            yield _plain(file, content, wanted, inside)
        else:
            Config(file, {name: value for name, value in inside.items() if name not in content}).unknown(())
            yield Candidate(form, file, partial(form.read, file, content, wanted.input_scale, wanted.k))


def _of_safetensors(file: Path, wanted: Wanted, named: Any) -> Iterator[Candidate]:
    found = read_safetensors(file)
    forms: list[Any] = [named]
    if named is None:
        forms = [circuit_tracer] if circuit_tracer.sure(file, found) else []
        if state_dict.claims(found) and (not forms or wanted.config is not None or state_dict.has_config(file)):
            forms.append(state_dict)
        if not forms and not any(name.startswith(("W_enc", "W_dec")) for name in found):
            raise FormatError(f"{file}: no known format has the entries {sorted(found)[:12]}")
        forms = _by_shape(file, found, forms or [circuit_tracer])
    for form in forms:
        if form is state_dict:
            yield _plain(file, found, wanted, {})
        else:
            source = (file, found) if form in TORCH_FORMATS else (file,)
            yield Candidate(form, file, partial(form.read, *source, wanted.input_scale, wanted.k))


def _plain(file: Path, content: Mapping[str, Any], wanted: Wanted, inside: Mapping[str, Any]) -> Candidate:
    read = partial(state_dict.read, file, content, wanted.input_scale, wanted.k, inside=inside, given=wanted.config)
    return Candidate(state_dict, file, read)


def _by_shape(file: Path, content: Mapping[str, Any], forms: list[Any]) -> list[Any]:
    """Of formats that keep W_enc either way, those whose way it lies; FormatError where that cannot be told."""
    if "W_enc" not in content and "W_gate" not in content:
        return forms
    rows = state_dict.latents_are_rows(content)
    if rows is None and state_dict.claims(content):
        own = {name: content.get(name) for name in ("W_enc", "W_gate", "b_enc")}
        shapes = {name: list(value.shape) for name, value in own.items() if isinstance(value, torch.Tensor)}
        by_rows = circuit_tracer if file.suffix == ".safetensors" else qwen_scope
        raise FormatError(
            f"{file}: which side of W_enc is the latents' cannot be told from {shapes}; say format="
            f"{by_rows.NAME!r} where rows are, format={state_dict.NAME!r} where columns are"
        )
    if not rows:
        return [state_dict, *(form for form in forms if form not in _BY_SHAPE)]
    return forms


def _torch_file(place: Path) -> Path | None:
    """The torch file at a path: itself, a folder's ae.pt, or the only one in it."""
    own = place / "ae.pt"
    return own if place.is_dir() and own.is_file() else _single(place, (".pt", ".pth"))


def _single(place: Path, suffixes: tuple[str, ...]) -> Path | None:
    """The file of such a suffix: itself, or the only one in a folder."""
    if place.is_file():
        return place if place.suffix in suffixes else None
    own = [entry for entry in sorted(place.iterdir()) if entry.suffix in suffixes and entry.is_file()]
    return own[0] if len(own) == 1 else None
