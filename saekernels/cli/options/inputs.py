"""What a command is given by name: devices, dtypes, SAEs. Every failure becomes one InputError."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from saekernels import parallel
from saekernels.cli.options.checkpoint import SAES, in_options
from saekernels.errors import InputError, first_line, missing_extra
from saekernels.files.checked import read_json
from saekernels.formats import load
from saekernels.formats.load import open_checkpoint
from saekernels.parallel import LatentParallelSAE
from saekernels.parallel.devices import device_of
from saekernels.sae.module import SAE
from saekernels.splice.sites import resolve_site

DEVICE_MAPS = ("auto", "balanced", "balanced_low_0", "sequential")
DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float64": torch.float64,
}


def pick_device(name: str, place: int = 0) -> torch.device:
    """The torch device of that name; "auto" is CUDA where there is one, else the CPU.

    place: of this process among those on the machine, which "auto" and "cuda" give a GPU each.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and torch.cuda.is_available():
        name = f"cuda:{place % torch.cuda.device_count()}" if place else name
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"--device: cannot use {name!r}: {first_line(error)}") from error
    if device.type == "meta":
        raise InputError(f"--device: cannot use {name!r}: its tensors hold no values")
    return device


def read_device_map(text: str | None) -> str | dict[str, Any] | None:
    """What --device-map says: a strategy of accelerate, or the device of each module from a JSON file."""
    if text is None or text in DEVICE_MAPS:
        return text
    try:
        found = read_json(text)
    except (OSError, ValueError) as error:
        strategies = ", ".join(DEVICE_MAPS)
        raise InputError(
            f"--device-map: got {text!r}, need {strategies} or a JSON file: {first_line(error)}"
        ) from error
    if not isinstance(found, dict) or not found or not all(isinstance(place, str | int) for place in found.values()):
        raise InputError(f"--device-map: {text} needs an object of a device for each module, got {found!r:.60}")
    return found


def load_saes(
    pairs: Sequence[tuple[str, str]],
    model: Any,
    device_at: Callable[[str], torch.device],
    dtype: str,
    told: Mapping[str, Any],
    group: Any = None,
) -> dict[str, SAE | LatentParallelSAE]:
    """Site -> SAE, in the given order; a site that comes again gets the name of its checkpoint, "SITE#NAME".

    pairs: (site, path); for the site "", where the checkpoint says that it was trained. model: where the sites are.
    device_at: the device of a site's SAE. told: of every checkpoint, as `saekernels.load` takes it.
    group: the processes over which each SAE is spread, if it is.
    """
    pairs = [(site or _site_of(path, model, told), path) for site, path in pairs]
    saes: dict[str, SAE | LatentParallelSAE] = {}
    given = set()
    for site, path in pairs:
        if (site, _real(path)) in given:
            raise InputError(f"--sae: {site}={path} is given twice")
        given.add((site, _real(path)))
        if "#" in site and (site in saes or site.endswith("#")):
            raise InputError(f"--sae: {site}={path}: need a name behind # that no other SAE of the site has")
        entry = f"{site}#{os.path.basename(os.path.normpath(path))}" if site in saes else site
        if entry in saes:
            raise InputError(f"--sae: {entry!r} is given twice; name one of them, SITE#NAME={path}")
        device = device_at(site.partition("#")[0])
        try:
            if group is None:
                saes[entry] = load(path, device=device, dtype=DTYPES[dtype], **told)
            else:
                saes[entry] = parallel.load(path, group, device=device, dtype=DTYPES[dtype], **told)
        except ImportError as error:
            raise missing_extra("safetensors", "reading SAEs") from error
        except (OSError, ValueError) as error:
            raise InputError(f"--sae {site}={path}: {in_options(first_line(error), SAES)}") from error
    return saes


def _real(path: str) -> str:
    """The path with links resolved, where it can be one at all."""
    try:
        return os.path.realpath(path)
    except ValueError:  # a NUL byte
        return path


def _site_of(path: str, model: Any, told: Mapping[str, Any]) -> str:
    """The place that a checkpoint says it was trained at, where this model has it."""
    try:
        metadata = open_checkpoint(path, dtype=None, **told).metadata
    except (OSError, ValueError) as error:
        raise InputError(f"--sae {path}: {in_options(first_line(error), SAES)}") from error
    found = [(site, place) for site in metadata.sites if (place := _place(model, site)) is not None]
    if len(found) > 1 and found[0][1] != found[1][1]:
        both = " and ".join(repr(site) for site, _ in found)
        raise InputError(f"--sae {path}: its files say {both}, which are two places in this model; give SITE={path}")
    if found:
        return found[0][0]
    said = f"its files say {' or '.join(map(repr, metadata.sites))}" if metadata.sites else "its files do not say where"
    raise InputError(f"--sae {path}: no place for it in this model: {said}; give SITE={path}")


def _place(model: Any, site: str) -> tuple[Any, ...] | None:
    """What a site resolves to in this model, its name aside; None where it has no such place."""
    try:
        resolved = resolve_site(model, site)
    except ValueError:
        return None
    return tuple((end.module, end.is_input) for end in (resolved.read, resolved.write))


def device_of_site(model: Any, site: str, otherwise: torch.device) -> torch.device:
    """Where the module of a site computes; `otherwise` for a site that the model does not have, which is told later."""
    try:
        return device_of(resolve_site(model, site).write.module)
    except ValueError:
        return otherwise


def first_reason(error: Exception) -> str:
    """What an exception says; with its type where that alone says what it is about."""
    told = isinstance(error, OSError | ValueError | RuntimeError | ImportError)
    return first_line(error) if told else f"{type(error).__name__}: {first_line(error)}"


def transformers() -> Any:
    """The package. Raises InputError where it is missing."""
    try:
        import transformers as package
    except ImportError as error:
        raise missing_extra("transformers", "loading a model") from error
    # Missing weights are an error here, so the long reports say nothing new.
    package.utils.logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    package.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    return package
