"""Models in GGUF files, as transformers' own loader reads them: what it is told, and what it would lose."""

from __future__ import annotations

import os
from collections import Counter
from typing import Any

import torch

from saekernels.cli.options.inputs import transformers
from saekernels.errors import InputError, missing_extra
from saekernels.files.gguf import GgufHeader, read_gguf_header

_PLAIN = ("F16", "F32", "F64", "BF16")
# Frequencies of rotary embeddings that a model was stretched with; transformers' loader leaves them out.
_ROPE_TENSORS = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")


def is_gguf(name: str) -> bool:
    """Whether this is the name of a GGUF file."""
    return name.lower().endswith(".gguf")


def gguf_place(path: str) -> dict[str, str]:
    """Where from_pretrained finds the file. Raises InputError for a damaged one, or without the package gguf."""
    _gguf()
    gguf_header(path)
    folder, name = os.path.split(path)
    return {"pretrained_model_name_or_path": folder or ".", "gguf_file": name}


def unpacked() -> dict[str, Any]:
    """The argument of from_pretrained that keeps no weight packed, where it has one.

    A kernel that multiplies by packed weights may come from the hub, and the figures would hang on its rounding.
    """
    config = getattr(transformers(), "GgufConfig", None)
    return {} if config is None else {"quantization_config": config(dequantize=True)}


def gguf_type(path: str, dtype: torch.dtype) -> str:
    """The file's quantisation and what became of it: "Q4_1 GGUF, dequantised to float32"."""
    gguf = _gguf()
    header = gguf_header(path)
    items: Counter[str] = Counter()
    for number, count in header.tensors.values():
        items[gguf.GGMLQuantizationType(number).name] += count
    most = items.most_common(1)[0][0]
    known = {one.value: one.name.partition("_")[2] for one in gguf.LlamaFileType}
    said = known.get(header.fields.get("general.file_type"), "")
    # The file's own word is the finer one (Q4_K_M), as long as its tensors bear it out.
    kind = said if any(said.startswith(one) for one in items) else most
    now = str(dtype).removeprefix("torch.")
    return f"{kind} GGUF, {'read as' if set(items) <= set(_PLAIN) else 'dequantised to'} {now}"


def check_rope(path: str, config: Any) -> None:
    """InputError where the file stretches its rotary embeddings and the config that was made of it does not."""
    header = gguf_header(path)
    lost = next((name for name in _ROPE_TENSORS if name in header.tensors), None)
    scalings = [
        name for name, value in header.fields.items() if name.endswith(".rope.scaling.type") and value != "none"
    ]
    rope = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    kinds = {str(one.get("rope_type", "default")) for one in (rope, *rope.values()) if isinstance(one, dict)}
    if lost is None and scalings and kinds <= {"default"}:
        lost = scalings[0]
    if lost is not None:
        raise InputError(
            f"--model: {path} stretches its rotary embeddings ({lost!r}), which transformers' GGUF loader leaves out: "
            "it would be another model; need the checkpoint that it was made from"
        )


def gguf_header(path: str) -> GgufHeader:
    """The file's header. Raises InputError where it cannot be read."""
    try:
        return read_gguf_header(path)
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from error


def _gguf() -> Any:
    try:
        import gguf
    except ImportError as error:
        raise missing_extra("gguf", "reading a GGUF file", extra="models") from error
    return gguf
