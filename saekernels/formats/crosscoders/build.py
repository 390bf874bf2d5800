"""From a crosscoder's tensors to the object, and what every reader of them asks and refuses."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from saekernels.crosslayer.crosscoder import Crosscoder, HeadActivation
from saekernels.formats.checkpoint import widest
from saekernels.formats.config import Config, read_json
from saekernels.formats.files import FormatError
from saekernels.sae.metadata import Metadata


@dataclass(frozen=True)
class Asked:
    """What the caller of `load_crosscoder` says of a file; None where nothing."""

    input_scale: Sequence[float] | None = None
    alphas: tuple[float, float] | None = None


def config_beside(path: Path, *names: str) -> Config | None:
    """The first of these files in the folder of a file of weights, read; None where there is none."""
    found = next((path.parent / name for name in names if (path.parent / name).is_file()), None)
    return None if found is None else read_json(found)


def refuse_unknown(config: Config, known: Collection[str]) -> None:
    """Raise for a field that asks for something and that nobody here knows: it might change the function."""
    left = {key: value for key, value in config.items() if key not in known and value}
    if left:
        told = ", ".join(f"{key!r} ({value!r:.40})" for key, value in left.items())
        raise FormatError(f"{config.path}: fields that are not known here: {told}")


def refuse_size(config: Config, key: str, size: int, path: Path) -> None:
    """Raise where a field gives another size than the tensors have."""
    if config.get(key) not in (None, size):
        raise FormatError(f"{config.path}: {key!r} is {config[key]!r:.40}, but {path.name} has {size}")


def refuse_scales(asked: Asked, path: Path) -> None:
    """Raise where a scale was given for a file that holds its own, or that takes activations as they are."""
    if asked.input_scale is not None:
        raise FormatError(f"input_scale: got {asked.input_scale!r:.60}, but crosscoders like {path} need none")


def refuse_alphas(asked: Asked, path: Path) -> None:
    """Raise where alphas were given for a file that has no use for them."""
    if asked.alphas is not None:
        raise FormatError(f"alphas: got {asked.alphas!r:.60}, but {path} does not weigh codes by mixed norms")


def build(
    path: Path,
    state: Mapping[str, Tensor],
    activation: HeadActivation,
    metadata: Metadata,
    *,
    threshold: Tensor | None = None,
    sites: Sequence[str] | None = None,
    **options: Any,
) -> Crosscoder:
    """A crosscoder of these tensors: W_enc [F, H, d], b_enc [F], W_dec [F, H, d], b_dec [H, d], of any strides.

    Laid out once, as it computes with them; in the widest of their dtypes. options: keywords of `Crosscoder`. Raises
    FormatError, which names `path`, for what no crosscoder can be; warns of values that are no finite numbers.
    """
    latents, heads, d = state["W_enc"].shape
    try:
        made = Crosscoder(d, latents, heads, activation, dtype=widest(state), device="meta", **options)
    except (ValueError, TypeError) as error:
        raise FormatError(f"{path}: {error}") from error
    flat = {"W_enc": (latents, -1), "W_dec": (latents, -1), "b_enc": (latents,), "b_dec": (-1,)}
    kept = {name: state[name].to(made.W_enc.dtype).reshape(shape).contiguous() for name, shape in flat.items()}
    made.weights.load_state_dict({name: nn.Parameter(value) for name, value in kept.items()}, assign=True)
    if made.threshold is not None:
        assert threshold is not None
        if threshold.shape != made.threshold.shape:
            need = list(made.threshold.shape)
            raise FormatError(f"{path}: its threshold has shape {list(threshold.shape)}, need {need}")
        own = threshold.to(made.threshold.dtype).clone()
        made.threshold = nn.Parameter(own) if isinstance(made.threshold, nn.Parameter) else own
    made.metadata, made.sites = metadata, None if sites is None else tuple(sites)
    if odd := [repr(name) for name, value in kept.items() if not bool(value.isfinite().all())]:
        warnings.warn(f"{path}: {', '.join(odd)}: values that are no finite numbers", stacklevel=4)
    return made


def moved(made: Crosscoder, device: torch.device | str | None, dtype: torch.dtype | None) -> Crosscoder:
    """On a device and in a dtype, in eval mode; thresholds and statistics stay in float32 beside half weights."""
    precise = {
        name: value.detach()
        for name in ("threshold", "input_scale", "input_mean", "output_scale")
        if (value := getattr(made, name)) is not None
    }
    made.to(device=device, dtype=dtype)
    wide = torch.promote_types(made.W_enc.dtype, torch.float32)
    for name, value in precise.items():
        getattr(made, name).data = value.to(device=made.W_enc.device, dtype=wide)
    return made.eval()
