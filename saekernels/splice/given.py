"""What people give in an SAE's place, as an SAE: a path, a hub id, an object of another tool."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from saekernels.adapters.errors import NotAccelerated
from saekernels.adapters.live import LiveSAE, is_live, live_sae
from saekernels.adapters.tools import TOOLS
from saekernels.crosslayer.crosscoder import Crosscoder
from saekernels.errors import InputError, InputTypeError, first_line, kind_of
from saekernels.formats.config import Config
from saekernels.formats.load import load
from saekernels.formats.readers.saelens_config import metadata_of
from saekernels.parallel.devices import device_of
from saekernels.splice.sites import resolve_site

_STANDS = ("d_in", "d_out", "W_dec", "forward_with_codes")
NEEDED = f"a saekernels.SAE, a path or hub id, or an object of {', '.join(TOOLS)}"


def as_sae(given: Any, model: nn.Module, site: str, argument: str) -> Any:
    """The SAE that was given for a site; None, and what has an SAE's form already, as it is.

    A path or hub id is loaded to where the site's module is. An object of a tool that `accelerate` knows becomes an SAE
    that reads the object's weights at every pass (`LiveSAE`). argument: whose error it would be.

    Raises:
        InputError (a ValueError): a checkpoint that cannot be loaded, an object whose maths is not known, by name.
        InputTypeError (a TypeError): anything else, with how it is made an SAE.
    """
    if given is None or all(hasattr(given, name) for name in _STANDS):
        return given
    where = f"{argument}: {site!r}"
    if isinstance(given, Crosscoder):
        raise InputTypeError(
            f"{where} cannot take a Crosscoder: it reads {given.n_heads} heads at once, of which later ones are not "
            "there yet when it would write; give one of saekernels.head_sites, with codes of clean passes"
        )
    is_path = isinstance(given, str | os.PathLike)
    device = device_of(resolve_site(model, site).write.module) if is_path else None
    try:
        if is_path:
            return load(os.fspath(given), device=device)
        if isinstance(given, nn.Module) and is_live(given):
            return _with_origin(live_sae(given))
    except NotAccelerated as error:
        raise InputError(f"{where} cannot take this object for an SAE: {error}") from error
    except (OSError, ValueError) as error:
        raise InputError(f"{where}: {first_line(error)}") from error
    raise InputTypeError(f"{where} needs {NEEDED}; got {kind_of(given)}{_how(given)}")


def _how(given: Any) -> str:
    """How such a thing is made an SAE."""
    if isinstance(given, nn.Module):
        return ": saekernels.accelerate(it, activation=..., names={...}) by the names of its weights makes it one"
    if isinstance(given, Mapping):
        return ": torch.save it, with a config (docs/reference/formats.md), and give the path"
    return ": make a saekernels.SAE with its weights, W_enc [F, d_in] and W_dec [F, d_out]"


def _with_origin(sae: LiveSAE) -> LiveSAE:
    """With what the object's config says of the model, read as the file that its tool would write."""
    if sae.config is None:
        return sae
    name = Path(f"<{type(sae.source).__name__}>")
    told: dict[str, Any] = {key: sae.config[key] for key in ("metadata", "reshape_activations") if key in sae.config}
    sae.metadata = metadata_of(Config(name, told), name, "SAELens")
    if sae.config.get("normalize_activations") == "expected_average_only_in":
        warnings.warn(
            f"{name}: trained on scaled activations, and the scale is not in it; running unscaled, as its own forward. "
            "Fold the scale into its weights first (fold_activation_norm_scaling_factor)",
            stacklevel=4,
        )
    return sae
