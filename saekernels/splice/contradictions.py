"""Where the model at hand, or the site, is another than the checkpoint of an SAE says that it was trained on."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from saekernels.sae.metadata import Metadata
from saekernels.splice.sites import End, Site, resolve_site

# Of TransformerLens' loading: each makes other activations, unless the next matrix is changed along with it.
_CENTERED = "center_writing_weights"


class OriginWarning(UserWarning):
    """An SAE is used elsewhere than its checkpoint says that it was trained."""


def contradictions(model: nn.Module, site: Site, metadata: Metadata | None) -> list[str]:
    """One sentence for each: hook points that this model has elsewhere, and weights that were changed at loading."""
    if metadata is None:
        return []
    known = [_elsewhere(model, site, reads, writes) for reads, writes in metadata.ends]
    said = [one for one in known if one is not None]
    told = [] if [] in said or not said else said[0]
    centered = metadata.model_options.get(_CENTERED)
    if centered is not None and bool(centered) != _is_centered(model):
        how = "centred writing weights" if centered else "writing weights as they are"
        told.append(
            f"{site.name!r}: the SAE was trained on a model with {how} ({_CENTERED}={centered}), unlike this one"
        )
    folded = [name for name, on in metadata.model_options.items() if on and name not in (_CENTERED, *_HARMLESS)]
    if folded and not hasattr(model, "hook_dict"):
        options = ", ".join(f"{name}={metadata.model_options[name]!r}" for name in folded)
        told.append(f"{site.name!r}: the SAE was trained on a model that was loaded with {options}; this one was not")
    return told


def _elsewhere(model: nn.Module, site: Site, reads: str, writes: str) -> list[str] | None:
    """A sentence for each end that this model has elsewhere; None where it has neither."""
    if site.same and reads != writes:
        both = f"to read {reads!r} and replace {writes!r}"
        return [f"{site.name!r}: the SAE was trained {both}, and reads what it replaces here"]
    ends = {"to read": (reads, site.read), "to replace": (writes, site.write)}
    if site.same:
        ends = {"at": (reads, site.read)}
    found = [(verb, named, _end_of(model, named), end) for verb, (named, end) in ends.items()]
    if all(there is None for _, _, there, _ in found):
        return None
    return [
        f"{site.name!r}: the SAE was trained {verb} {named!r}, which is another place in this model"
        for verb, named, there, end in found
        if there is not None and (there.module, there.is_input) != (end.module, end.is_input)
    ]


# Options that name what is loaded, and how, not what it computes.
_HARMLESS = (
    "dtype",
    "torch_dtype",
    "device",
    "device_map",
    "n_devices",
    "trust_remote_code",
    "revision",
    "token",
    "n_ctx",
)


def _end_of(model: nn.Module, name: str | None) -> End | None:
    """The place that a checkpoint names, where this model has it by that name."""
    if name is None:
        return None
    try:
        return resolve_site(model, name).read
    except ValueError:
        return None


@torch.no_grad()
def _is_centered(model: nn.Module) -> bool:
    """Whether what is written to the residual stream has mean 0 over its width, as TransformerLens can make it."""
    weight: Any = getattr(getattr(model, "embed", None), "W_E", None)
    if weight is None:
        embedding = model.get_input_embeddings() if hasattr(model, "get_input_embeddings") else None  # type: ignore[operator]
        weight = getattr(embedding, "weight", None)
    if not isinstance(weight, torch.Tensor) or weight.is_meta or weight.ndim != 2:
        return False
    rows = weight[:256].float()
    return bool(rows.mean(-1).abs().max() < 1e-3 * rows.std())
