"""Attention patterns and norms' scales of one pass, held in others: what a local replacement model holds fixed."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from saekernels.errors import InputError
from saekernels.splice.gains import gain_and_bias

_NAME = "saekernels_frozen"
# Of `transformers`' attention functions: what changes the pattern beside the mask, and is honoured here.
_HONOURED = ("softcap",)
_WITHOUT_EFFECT = ("sliding_window", "is_causal", "position_ids", "use_cache", "cache_position", "output_attentions")


class Frozen:
    """The attention patterns and norm scales of one pass of a model of transformers, to be held in others.

    So that all that is left between two latents is linear, as in the local replacement model of "Circuit Tracing"
    (Ameisen et al. 2025): values still flow through attention, and what a norm reads through the norm.

    Args:
        model: of transformers; attention through its attention interface, RMSNorms or LayerNorms.
        attention, norms: which of the two are held.

    Held patterns and scales are constants for autograd. Layers' codes and errors are held by `layer_sites(codes=,
    errors=)`.

    Raises ValueError for a model without such attention, or a norm whose gain cannot be told.
    """

    def __init__(self, model: nn.Module, attention: bool = True, norms: bool = True) -> None:
        self._model = model
        self._held = False
        self._patterns: dict[nn.Module, Tensor] = {}
        self._scales: dict[nn.Module, Tensor] = {}
        self._configs = _configs(model) if attention else []
        if attention and not self._configs:
            raise InputError(f"attention: {type(model).__name__} has no attention interface of transformers")
        named = _norms(model) if norms else {}
        self._gains = {norm: gain_and_bias(norm, name) for name, norm in named.items()}

    @contextlib.contextmanager
    def recording(self) -> Iterator[Frozen]:
        """The model's own passes (by plain products of queries and keys); the last one's patterns and scales are kept.

        Raises InputError where a pass has no pattern to keep, because its attention is not the interface's.
        """
        self._patterns.clear()
        self._scales.clear()
        with self._running(held=False):
            yield self
        if self._configs and not self._patterns:
            raise InputError(f"attention: {type(self._model).__name__} computed none through transformers' interface")

    @contextlib.contextmanager
    def holding(self) -> Iterator[Frozen]:
        """Passes with what was recorded in place of their own. Raises InputError where nothing was, or for others'."""
        if not self._patterns and not self._scales:
            raise InputError("nothing was recorded yet: run the model once in `recording()`")
        with self._running(held=True):
            yield self

    @contextlib.contextmanager
    def _running(self, held: bool) -> Iterator[None]:
        before = [config._attn_implementation for config in self._configs]
        active = dict(_ACTIVE)
        handles = [norm.register_forward_hook(self._on_norm) for norm in self._gains]
        self._held = held
        try:
            for part in self._model.modules() if self._configs else ():
                _ACTIVE[part] = self
            for config in self._configs:
                config._attn_implementation = _NAME
            yield
        finally:
            for config, one in zip(self._configs, before, strict=True):
                config._attn_implementation = one
            for handle in handles:
                handle.remove()
            _ACTIVE.clear()
            _ACTIVE.update(active)

    def _on_norm(self, norm: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor | None:
        gain, bias = (None if one is None else one.to(output.device) for one in self._gains[norm])
        assert gain is not None
        x = args[0].double()
        direction = (x if bias is None else x - x.mean(-1, keepdim=True)) * gain
        if not self._held:
            plain = output.detach().double() if bias is None else output.detach().double() - bias
            along = direction.detach()
            size = along.square().sum(-1, keepdim=True)
            self._scales[norm] = (plain * along).sum(-1, keepdim=True) / torch.where(size > 0, size, 1)
            return None
        scale = _fitting(self._scales.get(norm), direction.shape[:-1], "a norm's scale")
        out = direction * scale
        return (out if bias is None else out + bias).to(output.dtype)

    def pattern(self, module: nn.Module, scores: Tensor) -> Tensor:
        """[B, heads, S, S]: what attention weighs values by, of scores that the mask is in."""
        if self._held:
            return _fitting(self._patterns.get(module), scores.shape, "an attention pattern").to(scores.dtype)
        made = torch.softmax(scores, -1, dtype=torch.float32)
        self._patterns[module] = made.detach()
        return made.to(scores.dtype)


_ACTIVE: dict[nn.Module, Frozen] = {}


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **options: Any,
) -> tuple[Tensor, Tensor]:
    """As transformers' eager attention: query [B, heads, S, d], key and value of as many heads or a divisor."""
    unknown = [name for name, one in options.items() if one is not None and name not in _HONOURED + _WITHOUT_EFFECT]
    if unknown or dropout:
        raise InputError(
            f"attention: {type(module).__name__} uses {unknown[0] if unknown else 'dropout'}, not known here"
        )
    if attention_mask is None and query.shape[-2] > 1:
        raise InputError(f"attention: {type(module).__name__} was given no mask, so who sees whom is not known here")
    groups = query.shape[1] // key.shape[1]
    key, value = (one.repeat_interleave(groups, 1) for one in (key, value))
    scores = query @ key.transpose(2, 3) * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    if options.get("softcap") is not None:
        scores = options["softcap"] * torch.tanh(scores / options["softcap"])
    if attention_mask is not None:
        scores = scores + attention_mask[..., : key.shape[-2]]
    pattern = _ACTIVE[module].pattern(module, scores)
    return (pattern @ value).transpose(1, 2).contiguous(), pattern


def _configs(model: nn.Module) -> list[Any]:
    """The configs that say how attention is computed, each once, with our way known to transformers."""
    found = {id(part.config): part.config for part in model.modules() if hasattr(part, "config")}
    configs = [one for one in found.values() if getattr(one, "_attn_implementation", None) is not None]
    if configs:
        from transformers.masking_utils import AttentionMaskInterface, eager_mask
        from transformers.modeling_utils import AttentionInterface

        AttentionInterface.register(_NAME, _attention)
        AttentionMaskInterface.register(_NAME, eager_mask)
    return configs


def _norms(model: nn.Module) -> dict[str, nn.Module]:
    return {name: part for name, part in model.named_modules() if type(part).__name__.endswith("Norm")}


def _fitting(held: Tensor | None, shape: torch.Size, what: str) -> Tensor:
    lead = None if held is None else held.shape if held.shape == shape else held.shape[:-1]
    if held is None or lead != shape:
        got = "none" if held is None else f"one of {list(held.shape)}"
        raise InputError(f"{what}: this pass needs one for {list(shape)}, but {got} was recorded")
    return held
