"""What a notebook shows of SAEs and of dictionaries that span layers; reads no weight."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from torch import nn

from saekernels.display.card import card
from saekernels.display.numbers import readable
from saekernels.sae.metadata import Metadata


def module_card(
    module: nn.Module, facts: Mapping[str, object], metadata: Metadata | None, sites: Sequence[str] | None = None
) -> str:
    """HTML: the module's type, facts, its tensors, and what its files said of where it was trained."""
    return card(type(module).__name__, {**facts, **_tensors(module), **_origin(metadata, sites)})


def each(values: Iterable[object]) -> str:
    """Of several layers: one value where all are equal, else all of them."""
    told = [f"{value:,}" if isinstance(value, int) else str(value) for value in values]
    return told[0] if len(set(told)) == 1 else "; ".join(told)


def _tensors(module: nn.Module) -> dict[str, object]:
    tensors = [*module.parameters(), *module.buffers()]
    count = sum(tensor.numel() for tensor in tensors)
    nbytes = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    return {
        "dtype": ", ".join(sorted({str(tensor.dtype).removeprefix("torch.") for tensor in tensors})),
        "device": ", ".join(sorted({str(tensor.device) for tensor in tensors})),
        "parameters": f"{count:,} ({readable(nbytes)}B)",
    }


def _origin(metadata: Metadata | None, sites: Sequence[str] | None) -> dict[str, object]:
    told: dict[str, object] = {"sites": ", ".join(sites) if sites else None}
    if metadata is None:
        return told
    ends = metadata.reads
    if metadata.writes not in (None, metadata.reads):
        ends = f"{metadata.reads} -> {metadata.writes}"
    return {
        **told,
        "format": metadata.format,
        "trained on": metadata.model,
        "at": ends,
        "text": metadata.dataset,
    }
