"""How a model is called: from token ids alone to the logits of every position, found by trials."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from saekernels.errors import InputError, first_line, kind_of
from saekernels.eval.text.windows import model_limit
from saekernels.parallel.collectives import RankLostError
from saekernels.parallel.devices import input_device

_TRIAL = 16


@dataclass(frozen=True)
class Call:
    """model(ids, **options), or for an encoder-decoder the decoder's ids beside a fixed text on its encoder.

    options: keyword arguments of every call; echoed: names of arguments that take the ids once more, because the model
    gives the logits of all positions only then; encoder_ids [E] int64 or None.
    """

    model: nn.Module
    options: dict[str, Any] = field(default_factory=dict)
    echoed: tuple[str, ...] = ()
    encoder_ids: Tensor | None = None

    def run(self, ids: Tensor) -> Any:
        """Whatever the model gives for ids [B, S]."""
        further = {**self.options, **dict.fromkeys(self.echoed, ids)}
        if self.encoder_ids is None:
            return self.model(ids, **further)
        prompt = self.encoder_ids.to(ids.device).expand(len(ids), -1)
        return self.model(input_ids=prompt, decoder_input_ids=ids, **further)

    def logits(self, ids: Tensor) -> Tensor:
        """[B, S, V], in the model's dtype."""
        found = logits_in(self.run(ids), ids)
        if found is None:
            raise InputError(f"model: {type(self.model).__name__} gave no logits for ids of shape {list(ids.shape)}")
        return found


def logits_in(output: Any, ids: Tensor) -> Tensor | None:
    """The logits [B, S, V] in what a model gave for ids [B, S]: itself, its `logits`, or the first such of a tuple."""
    if isinstance(output, dict):
        candidates = [output.get("logits")]
    elif hasattr(output, "logits"):
        candidates = [output.logits]
    else:
        candidates = list(output) if isinstance(output, tuple | list) else [output]
    for one in candidates:
        if isinstance(one, Tensor) and one.is_floating_point() and one.ndim == 3 and one.shape[:2] == ids.shape:
            return one
    return None


def find_call(model: nn.Module, ids: Tensor, encoder_ids: Sequence[int] | None = None) -> tuple[Call, int]:
    """How to get logits [B, S, V] for ids [B, S], without a cache where the model can do without; and V.

    Raises InputError if the model fails, gives no logits, or is an encoder-decoder without (else with) `encoder_ids`.
    """
    prompt = _prompt(model, encoder_ids, ids)
    accepted = inspect.signature(model.forward).parameters
    without_cache: list[dict[str, Any]] = [{"use_cache": False}] if "use_cache" in accepted else []
    answers = [name for name in accepted if "target" in name or "label" in name]
    tried = [Call(model, options, (), prompt) for options in (*without_cache, {})]
    tried += [Call(model, {}, (name,), prompt) for name in answers]
    problems = []
    for call in tried:
        try:
            output = call.run(ids)
        except RankLostError:
            raise
        except Exception as error:  # whatever a model of any kind may raise, for a config that does not fit itself, say
            problems.append(f"a trial run on {ids.numel()} tokens failed: {first_line(error)}")
            continue
        logits = logits_in(output, ids)
        if logits is not None and not _is_hidden(model, logits):
            return call, logits.shape[-1]
        problems.append(
            f"{type(model).__name__} is no causal language model: it gives {_shape_of(output)} for {ids.numel()} "
            "tokens, not logits of every position"
        )
    raise InputError(f"model: {problems[0]}")


def _prompt(model: nn.Module, encoder_ids: Sequence[int] | None, ids: Tensor) -> Tensor | None:
    two = bool(getattr(getattr(model, "config", None), "is_encoder_decoder", False))
    if two and not encoder_ids:
        raise InputError(
            f"model: {type(model).__name__} is an encoder-decoder; give encoder_ids, the tokens its encoder is to read"
        )
    if not two and encoder_ids is not None:
        raise InputError(f"encoder_ids: {type(model).__name__} has no encoder")
    return torch.tensor(list(encoder_ids), dtype=torch.int64, device=ids.device) if encoder_ids else None


def _is_hidden(model: nn.Module, found: Tensor) -> bool:
    """Whether these are a bare body's hidden states: as wide as its embedding, which has more rows than that."""
    weight = embedding_weight(model)
    if weight is None or not hasattr(model, "get_output_embeddings") or found.shape[-1] >= weight.shape[0]:
        return False
    return found.shape[-1] == weight.shape[1] and output_embedding(model) is None


def _shape_of(output: Any) -> str:
    if isinstance(output, Tensor):
        return f"a tensor of shape {list(output.shape)}"
    if isinstance(output, tuple | list):
        return f"{kind_of(output)} of {', '.join(_shape_of(one) for one in output)}"
    logits = output.get("logits") if isinstance(output, dict) else getattr(output, "logits", None)
    return _shape_of(logits) if isinstance(logits, Tensor) else kind_of(output)


def embedding_weight(model: Any) -> Tensor | None:
    """The weight [rows, d] of the model's input embedding, or None if the model does not say."""
    return _weight_of(model, "get_input_embeddings")


def token_rows(model: Any, vocabulary: int) -> int:
    """Token ids that a model can read and its head, of so many, can predict."""
    weight = embedding_weight(model)
    return vocabulary if weight is None else min(len(weight), vocabulary)


def output_embedding(model: Any) -> nn.Module | None:
    """What the model calls its output embedding, if that has a weight [V, d]."""
    return None if _weight_of(model, "get_output_embeddings") is None else model.get_output_embeddings()


def _weight_of(model: Any, getter: str) -> Tensor | None:
    try:
        weight = getattr(getattr(model, getter)(), "weight", None)
    except (AttributeError, NotImplementedError, TypeError):
        return None
    return weight if isinstance(weight, Tensor) and weight.ndim == 2 else None


def trial_ids(model: nn.Module, vocabulary: int | None = None, most: int | None = None) -> Tensor:
    """[1, S] token ids for a trial run, S at most 16, the model's positions and `most`: 0, 1, 2, ...

    vocabulary: how many ids there are; unknown, only 0 and 1 are used.
    """
    weight = embedding_weight(model)
    limits = [_TRIAL, model_limit(model) or _TRIAL, most or _TRIAL]
    rows = min(n for n in (vocabulary or 2, None if weight is None else len(weight)) if n is not None)
    if vocabulary is None and weight is not None:
        rows = len(weight)
    return torch.arange(min(limits), device=input_device(model))[None] % max(1, rows)


@contextlib.contextmanager
def eval_mode(*modules: nn.Module) -> Iterator[None]:
    """Dropout off; every submodule's own mode comes back afterwards."""
    before = [(part, part.training) for module in modules for part in module.modules()]
    try:
        for module in modules:
            module.eval()
        yield
    finally:
        for part, training in before:
            part.training = training


def module_in(model: Any) -> nn.Module:
    """The model itself, or the one module that an object around it holds (as nnsight's do).

    Raises TypeError where there is none.
    """
    if isinstance(model, nn.Module):
        return model
    for value in getattr(model, "__dict__", {}).values():
        if isinstance(value, nn.Module):
            return value
    raise TypeError(f"model: got {kind_of(model)}, need a torch.nn.Module, or an object around one")
