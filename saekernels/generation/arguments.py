"""What `watching` and its `generate` are given, checked before a model writes: every failure names the argument."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from saekernels.errors import InputError, InputTypeError, check_each, kind_of
from saekernels.generation.watch import Watch
from saekernels.ops import _check
from saekernels.sae.edits import Edit
from saekernels.splice.given import NEEDED, as_sae

# Ways to generate in which a row is not one text that grows by a token per pass.
_REFUSED = {
    "num_beams": 1,
    "num_return_sequences": 1,
    "guidance_scale": 1.0,
    "assistant_model": None,
    "prompt_lookup_num_tokens": None,
    "custom_generate": None,
    "inputs_embeds": None,
    "return_dict_in_generate": False,
}


def check_model(model: object) -> None:
    """InputTypeError for a module that does not write text, or not after what it reads."""
    if isinstance(model, nn.Module) and not (hasattr(model, "generate") and hasattr(model, "generation_config")):
        raise InputTypeError(f"model: got {kind_of(model)}, which cannot generate, need a causal model of transformers")
    if getattr(getattr(model, "config", None), "is_encoder_decoder", False):
        raise InputTypeError(f"model: got {kind_of(model)}, which has an encoder, need a causal model of transformers")


def given_saes(saes: Mapping[str, Any], model: nn.Module) -> dict[str, Any]:
    """Site -> SAE, loaded or wrapped where something else was given."""
    if not isinstance(saes, Mapping):
        raise InputTypeError(f"saes: got {kind_of(saes)}, need a mapping from site to SAE")
    if not saes:
        raise InputError("saes: got none, need a mapping from site to SAE")
    made = {site: as_sae(sae, model, site, "saes") for site, sae in saes.items()}
    for site, sae in made.items():
        if sae is None:
            raise InputTypeError(f"saes: {site!r} needs {NEEDED}; got None")
    return made


def check_watched(
    saes: Mapping[str, Any], watches: Sequence[Watch], edits: Mapping[str, Sequence[Edit]] | None
) -> None:
    """InputError for a watch or an edit of what is not there; InputTypeError for what is neither."""
    check_each("watches", watches, Watch)
    if edits is not None and not isinstance(edits, Mapping):
        raise InputTypeError(f"edits: got {kind_of(edits)}, need a mapping from site to a sequence of saekernels.Edit")
    named = [("watches", watch.site, watch.latent) for watch in watches]
    for site, ones in (edits or {}).items():
        check_each(f"edits: {site!r}", ones, Edit)
        named += [("edits", site, edit.latent) for edit in ones]
    for argument, site, latent in named:
        if site not in saes:
            raise InputError(f"{argument}: there is no SAE {site!r}; there are {', '.join(saes)}")
        if latent is not None and latent >= saes[site].n_latents:
            last = saes[site].n_latents - 1
            raise InputError(f"{argument}: {site} has latents 0 to {last}, got {latent}")


def check_callbacks(**given: object) -> None:
    """InputTypeError for what cannot be called and is not None."""
    for name, value in given.items():
        if value is not None and not callable(value):
            raise InputTypeError(f"{name}: got {kind_of(value)}, need a function, or None")


def token_ids(untouched: Collection[int]) -> list[int]:
    """Token ids as a list."""
    untouched = untouched.tolist() if isinstance(untouched, Tensor) else untouched
    ids = untouched if isinstance(untouched, Collection) and not isinstance(untouched, str | bytes) else [None]
    made = [_check.integer(one) for one in ids]
    if None in made:
        raise InputTypeError(f"untouched: got {untouched!r:.40}, need a collection of token ids")
    return [one for one in made if one is not None]


def checked_mask(input_ids: Any, mask: Any, model: Any) -> Tensor:
    """The attention mask [B, P] int64, checked with the ids, which the model has to have embeddings for."""
    if not isinstance(input_ids, Tensor) or input_ids.dtype not in (torch.int32, torch.int64) or input_ids.ndim != 2:
        got = kind_of(input_ids)
        got = f"{input_ids.dtype} {list(input_ids.shape)}" if isinstance(input_ids, Tensor) else got
        raise InputError(f"input_ids: got {got}, need a tensor [B, P] of token ids")
    mask = torch.ones_like(input_ids) if mask is None else mask
    if not isinstance(mask, Tensor) or mask.shape != input_ids.shape:
        given = list(mask.shape) if isinstance(mask, Tensor) else kind_of(mask)
        raise InputError(f"attention_mask: got {given}, need a tensor {list(input_ids.shape)}")
    if not input_ids.numel() or not bool((mask[:, -1] != 0).all()):
        raise InputError("input_ids: every prompt needs a token, and padding to its left, not its right")
    ids, last = input_ids.aminmax(), model.get_input_embeddings().num_embeddings - 1
    if ids.min < 0 or ids.max > last:
        wrong = int(ids.min if ids.min < 0 else ids.max)
        raise InputError(f"input_ids: got {wrong}, need ids of the model's tokens, 0 to {last}")
    return (mask != 0).long()


def cached(past: Any) -> int:
    """How many tokens a cache that was given holds."""
    return 0 if past is None else int(past.get_seq_length())


def logits_processors(given: Any, check: Any) -> list[Any]:
    """Those that were given, and the check behind them."""
    given = () if given is None else given
    if not isinstance(given, Sequence) or not all(map(callable, given)):
        raise InputTypeError(f"logits_processor: got {kind_of(given)}, need a sequence of transformers.LogitsProcessor")
    return [*given, check]


def criteria(given: Any) -> list[Any]:
    """Stopping criteria of transformers, as a list."""
    if not isinstance(given, Sequence) or not all(map(callable, given)):
        raise InputTypeError(
            f"stopping_criteria: got {kind_of(given)}, need a sequence of transformers.StoppingCriteria"
        )
    return list(given)


class Settings:
    """Options of `generate` as transformers takes them: what a config leaves open is as in the model's own.

    Raises InputError for ways to generate in which a row is not one growing text.
    """

    def __init__(self, own: Any, options: Mapping[str, Any]) -> None:
        self._own, self._options = own, options
        self._given = options.get("generation_config") or own
        for name, plain in _REFUSED.items():
            value = self._of(name)
            if value is not None and value != plain:
                raise InputError(f"{name}: got {value!r:.40}, need {plain!r}: each row is one text, token by token")
        if self._of("stop_strings") is not None:
            raise InputError("stop_strings: give transformers.StopStringCriteria in stopping_criteria instead")

    def _of(self, name: str) -> Any:
        value = self._options.get(name, getattr(self._given, name, None))
        return getattr(self._own, name, None) if value is None else value

    @property
    def eos(self) -> list[int]:
        """The ids that end a text, however they are given: an id, several, a tensor, or None."""
        value = self._of("eos_token_id")
        given = value.reshape(-1).tolist() if isinstance(value, Tensor) else value
        given = [] if given is None else given if isinstance(given, list | tuple) else [given]
        ids = [_check.integer(one) for one in given]
        if None in ids:
            raise InputTypeError(f"eos_token_id: got {value!r:.40}, need a token id, or several")
        return [one for one in ids if one is not None]

    @property
    def max_time(self) -> float:
        """After so many seconds all texts end."""
        value = self._of("max_time")
        if value is not None and not (isinstance(value, int | float) and value > 0):
            raise InputError(f"max_time: got {value!r:.40}, need a positive number of seconds")
        return math.inf if value is None else float(value)
