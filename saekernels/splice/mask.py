"""The positions that a splice leaves as they are: a mask, or token ids looked up in the running forward pass."""

from __future__ import annotations

import operator
from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from saekernels.errors import InputError
from saekernels.splice.attached import Hooks

Given = Tensor | Mapping[str, Tensor] | Collection[int] | None
_INT64 = torch.iinfo(torch.int64)


class Untouched:
    """Bool mask of untouched positions for one splice.

    Args:
        model: the spliced model; its embedding is where token ids are seen.
        value: bool tensor [B, S], True = leave alone; or a mapping from site to such tensors; or the token ids (ints,
            or an integer tensor [N]) whose positions are left alone; or None.
    """

    def __init__(self, model: nn.Module, value: Given) -> None:
        self._tokens = _RunningTokens(model)
        self.set(value)

    def set(self, value: Given) -> None:
        """Replace the masks or the ids; a bad value raises and leaves the old one."""
        by_site = {site: _needed_mask(site, one) for site, one in value.items()} if isinstance(value, Mapping) else None
        mask = _as_mask(value)
        ids = None if mask is not None or by_site is not None or value is None else _as_ids(value)
        if ids is not None:
            self._tokens.find_embedding()
        self.value, self._mask, self._by_site, self._ids = value, mask, by_site, ids

    def attach(self, hooks: Hooks) -> None:
        """Start to watch the embedding if token ids are in use."""
        if self._ids is not None:
            self._tokens.attach(hooks)

    def detach(self) -> None:
        """Forget the forward pass; the owner of the hooks removes them."""
        self._tokens.reset()

    def mask(self, site: str, lead: torch.Size, device: torch.device) -> Tensor | None:
        """True where the activation of shape [*lead, width] at ``site`` stays; None if it is replaced everywhere.

        Raises ValueError if the mask does not fit, or if ids were given and no tokens reached the embedding.
        """
        mask = self._mask if self._by_site is None else self._by_site.get(site)
        if mask is not None:
            return fit_mask(mask, site, lead).to(device)
        if self._ids is None:
            return None
        tokens = self._tokens.ids
        if tokens is None:
            raise InputError(
                f"site {site!r}: untouched is a set of token ids, but no tokens reached the model's embedding in this "
                "forward pass (was it given inputs_embeds, or a layer to start at?); give a bool mask [B, S] instead"
            )
        return fit_mask(torch.isin(tokens, self._ids.to(tokens.device)), site, lead).to(device)


def _as_mask(value: Any) -> Tensor | None:
    if not isinstance(value, Tensor) or value.dtype != torch.bool:
        return None
    if value.ndim != 2:
        raise ValueError(f"untouched: a mask has shape [B, S], got {tuple(value.shape)}")
    return value


def _needed_mask(site: str, value: Any) -> Tensor:
    mask = _as_mask(value)
    if mask is None:
        raise TypeError(f"untouched: {site!r}: got {value!r:.80}, need a bool tensor [B, S]")
    return mask


def _as_ids(value: Any) -> Tensor | None:
    """The ids as an int64 tensor; None for no ids at all."""
    if isinstance(value, Tensor):
        if value.is_floating_point() or value.is_complex() or value.ndim != 1:
            raise TypeError(
                "untouched: a tensor is a bool mask [B, S] or integer token ids [N], "
                f"got {value.dtype} of shape {tuple(value.shape)}"
            )
        value = value.tolist()
    try:
        items = list(value)
        if isinstance(value, str) or any(isinstance(item, bool) for item in items):
            raise TypeError
        ids = [operator.index(item) for item in items]
    except TypeError:
        raise TypeError(
            f"untouched: needs a bool tensor [B, S] or a collection of int token ids, got {value!r:.80}"
        ) from None
    too_large = [id_ for id_ in ids if not _INT64.min <= id_ <= _INT64.max]
    if too_large:
        raise ValueError(f"untouched: token ids are 64-bit integers, got {too_large[0]}")
    return torch.tensor(ids, dtype=torch.int64) if ids else None


def fit_mask(mask: Tensor, site: str, lead: torch.Size) -> Tensor:
    """The mask [B, S] in the shape of an activation's leading dimensions: [B, S], [B * S] or [B, S, heads]."""
    if mask.shape == lead:
        return mask
    if len(lead) == 1 and lead[0] == mask.numel():
        return mask.reshape(-1)
    if len(lead) == 3 and mask.shape == lead[:2]:
        return mask.unsqueeze(-1).expand(lead)
    advice = "for generate(), give untouched as token ids"
    if mask.shape == lead[::-1]:
        advice = f"where the batch is the second dimension, the site is '{site}[batch=1]'"
    raise InputError(
        f"site {site!r}: the untouched mask has shape {tuple(mask.shape)}, the activation's positions have shape "
        f"{tuple(lead)}; they must agree ({advice})"
    )


class _RunningTokens:
    """The token ids of the forward pass under way, read at the input of the model's embedding.

    A pass begins and ends with the outermost call of a module that holds the embedding: the model itself, or its
    base model when that is called directly. Ids never outlive their pass, so they cannot leak into a later one that
    has none.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._attached = False
        self.reset()

    def reset(self) -> None:
        self._running: list[nn.Module] = []
        self.ids: Tensor | None = None
        self._attached = False

    def find_embedding(self) -> tuple[nn.Module, str]:
        """The module that reads token ids, and its name in the model."""
        try:
            embedding = self._model.get_input_embeddings()  # type: ignore[operator]
        except (AttributeError, NotImplementedError):
            embedding = getattr(self._model, "embed", None)
        names = (name for name, module in self._model.named_modules() if module is embedding)
        name = next(names, None)
        if not isinstance(embedding, nn.Module) or not name:
            raise ValueError(
                f"untouched: token ids need a model with get_input_embeddings() or .embed, which "
                f"{type(self._model).__name__} lacks; give a bool mask [B, S] instead"
            )
        return embedding, name

    def attach(self, hooks: Hooks) -> None:
        if self._attached:
            return
        embedding, name = self.find_embedding()
        parts = name.split(".")
        for end in range(len(parts)):
            holder = self._model.get_submodule(".".join(parts[:end]))
            hooks.before(holder, self._begin)
            hooks.after(holder, self._end, always_call=True)
        hooks.before(embedding, self._see, with_kwargs=True)
        self._attached = True

    def _begin(self, module: nn.Module, args: Any) -> None:
        # an interrupt can leave modules of a dead pass on the stack
        if module in self._running:
            del self._running[self._running.index(module) :]
            self.ids = None
        self._running.append(module)

    def _end(self, module: nn.Module, args: Any, output: Any) -> None:
        if self._running and self._running[-1] is module:
            self._running.pop()
        if not self._running:
            self.ids = None

    def _see(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        # the first call is the tokens': GPT-2 sends token_type_ids through the same embedding afterwards
        if self._running and self.ids is None:
            self.ids = args[0] if args else next(iter(kwargs.values()))
