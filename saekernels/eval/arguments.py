"""What evaluate() is given, checked before hours of work end in an exception: every failure names the argument."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from saekernels.crosslayer.site import LayerSite
from saekernels.errors import InputError, InputTypeError, kind_of
from saekernels.eval.passes.plan import site_of
from saekernels.eval.sums.bootstrap import MOST_REPLICATES
from saekernels.parallel import LatentParallelSAE
from saekernels.sae.edits import EditedSAE
from saekernels.sae.module import SAE
from saekernels.splice.given import NEEDED, as_sae

_LEAST = {"tokens": 1, "batch_size": 1, "bootstrap": 0, "context": 2, "seed": 0}
_MOST = {"bootstrap": MOST_REPLICATES}


def given_saes(saes: object, model: nn.Module) -> dict[str, Any]:
    """Site -> SAE, loaded or wrapped where something else was given; TypeError or InputError unless there is one."""
    if not isinstance(saes, Mapping):
        raise TypeError(f"saes: got {kind_of(saes)}, need a mapping from site to SAE")
    if not saes:
        raise InputError("saes: no SAE was given; need a mapping from site to SAE")
    made = {}
    for entry, given in saes.items():
        site = site_of(entry) if isinstance(entry, str) else entry
        made[entry] = as_sae(given, model, site, "saes")
        if not isinstance(made[entry], SAE | EditedSAE | LatentParallelSAE | LayerSite):
            raise InputTypeError(f"saes: {entry!r} is {kind_of(given)}, need {NEEDED}")
    return made


def check_tokenizer(tokenizer: object) -> None:
    """TypeError unless `tokenizer` is None, or can be called and names its special tokens, as those of transformers."""
    if tokenizer is None:
        return
    if not callable(tokenizer) or not hasattr(tokenizer, "all_special_ids"):
        raise TypeError(f"tokenizer: got {kind_of(tokenizer)}, need a tokenizer of transformers")


def check_numbers(**values: Any) -> None:
    """TypeError or InputError unless each is an int, not too small or large, or None where that is a default."""
    for name, value in values.items():
        if value is None and name in ("tokens", "context"):
            continue
        if isinstance(value, bool) or not isinstance(value, int):
            raise TypeError(f"{name}: got {value!r:.40}, need an int")
        if value < _LEAST[name]:
            raise InputError(f"{name} must be at least {_LEAST[name]}, got {value}")
        if value > _MOST.get(name, value):
            raise InputError(f"{name} must be at most {_MOST[name]:,}, got {value}")


def check_choices(bos: object, model_name: object, encoder_ids: object) -> None:
    """TypeError unless `bos` is a bool or None, the name a string or None, and the ids a sequence of ints or None."""
    if bos is not None and not isinstance(bos, bool):
        raise TypeError(f"bos: got {bos!r:.40}, need True, False or None")
    if model_name is not None and not isinstance(model_name, str):
        raise TypeError(f"model_name: got {kind_of(model_name)}, need a str or None")
    if encoder_ids is not None and not (
        isinstance(encoder_ids, Sequence) and encoder_ids and all(isinstance(one, int) for one in encoder_ids)
    ):
        raise TypeError(f"encoder_ids: got {encoder_ids!r:.40}, need a sequence of token ids, or None")
