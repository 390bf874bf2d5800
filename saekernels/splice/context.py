"""Puts SAEs into a running model: activations at chosen sites are replaced by their reconstructions."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any, get_args

import torch
from torch import Tensor, nn

from saekernels.splice.attached import Hooks
from saekernels.splice.contradictions import OriginWarning, contradictions
from saekernels.splice.leave import Leave, LeftInPass
from saekernels.splice.mask import Given, Untouched
from saekernels.splice.replacement import Function, Mode, Replacement, plan_replacement, with_error
from saekernels.splice.sites import put_part
from saekernels.splice.taps import Taps

if TYPE_CHECKING:
    from saekernels.sae.codes import Codes
    from saekernels.sae.module import SAE

Observer = Callable[[str, Tensor, Tensor, Tensor, "Codes | None", Tensor], Any]


def splice(
    model: nn.Module,
    sites: Mapping[str, SAE | nn.Module | str | os.PathLike[str] | Function | None],
    *,
    replace: Mode | Mapping[str, Mode] = "sae",
    means: Mapping[str, Tensor] | None = None,
    untouched: Given = None,
    leave_first: int = 0,
    leave_norm: float | None = None,
    error_term: bool = False,
    observer: Observer | None = None,
) -> Splice:
    """Context manager that replaces the activations at ``sites`` in every forward pass of ``model`` inside it.

    The model keeps its dtype and device: an activation is moved to its SAE's device and dtype, reconstructed there
    with autocast off, and the result is rounded and moved back. Gradients flow through.

    Args:
        model: a transformers causal LM, a TransformerLens model, or any module whose submodules are called normally.
        sites: site -> SAE, applied in this order where several share a module. A site is the name of a module
            (``"model.layers.3"``: its output), ``"path@input"`` (its input), ``"path@module"`` (the SAE reads its
            input and replaces its output: a transcoder), or ``"READ -> WRITE"`` with any two of them
            (``"model.layers.3.mlp@input -> model.layers.3.post_feedforward_layernorm"``). ``"[head=2]"`` at the end
            of one means one attention head, ``"[stream=0]"`` one of several residual streams, ``"[batch=1]"`` an
            activation whose batch is the second dimension, [S, B, width]. In an SAE's place may stand a path or hub
            id, loaded to the site's device, or a live object of sae_lens, sparsify, dictionary_learning or sae_bench,
            or one that was accelerated by its weights' names: its weights are shared, so what is changed of it later
            counts from the next pass on, and gradients reach its parameters (a matrix whose latents are columns is
            copied, anew after a change, unless the object is accelerated). The SAE may be None where ``replace`` is
            not "sae".
        replace: "sae" puts in the reconstruction, "zero" zeros, "mean" the site's mean, "function" what the callable
            given in the SAE's place makes of (what is read, what is replaced); one for all, or site -> mode.
        means: site -> [d_out], needed where ``replace`` is "mean"; other sites are ignored.
        untouched: positions that keep their activation: a bool mask [B, S] (True = leave alone), a mapping from site
            to such masks (no mask, nothing left), or token ids, whose positions are then found in each forward pass.
            ``Splice.untouched`` may be set between passes.
        leave_first: also leave the first so many positions of each sequence (caches and left padding are seen), which
            are attention sinks in models whose tokenizer puts no BOS in front.
        leave_norm: also leave positions where the norm of what a site reads, or of what is replaced there, exceeds
            this many times its median over all positions seen since the splice was entered.
        error_term: add the reconstruction error back as a constant, so that the activations are again the clean
            ones (to rounding) and gradients reach them through the SAE alone.
        observer: called as ``observer(site, x, x_hat, target, codes, touched)`` at each splice: what the SAE reads
            [..., d_in] and what is replaced [..., d_out], both as the model had them (heads flattened where the SAE
            spans them); the replacement, not yet rounded to the model's dtype and without the error term; the codes
            (None unless "sae"); bool [...], True where replaced. It must not change them.

    Returns:
        A Splice, to be entered once at a time; it may be used again later.

    Raises:
        ValueError: here, for an unknown site (close names are listed), a missing mean or SAE, a checkpoint that
            cannot be loaded, an object whose maths is not known, or widths that cannot fit; in the forward pass, for
            widths or masks that turn out not to fit, or token ids without tokens.
        TypeError: for an argument of the wrong kind.

    Warns where the checkpoint of an SAE (``SAE.metadata``) was trained at another place that this model has, or on a
    model whose weights were changed otherwise. An SAE of one attention head replaces that head alone.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: needs a torch.nn.Module, got {type(model).__name__}")
    if not isinstance(sites, Mapping) or not sites:
        raise ValueError(f"sites: needs a non-empty mapping from site to SAE, got {sites!r:.80}")
    if observer is not None and not callable(observer):
        raise TypeError(f"observer: needs a callable or None, got {type(observer).__name__}")
    modes = _modes(replace, sites)
    if error_term and set(modes.values()) != {"sae"}:
        raise ValueError('error_term: undoes any ablation, so it needs replace="sae" at every site')
    plans = [plan_replacement(model, name, sae, modes[name], means or {}) for name, sae in sites.items()]
    for plan in plans:
        for told in contradictions(model, plan.site, getattr(plan.sae, "metadata", None)):
            warnings.warn(f"splice: {told}", OriginWarning, stacklevel=2)
    left = LeftInPass(model, [plan.site for plan in plans], Leave(leave_first, leave_norm))
    return Splice(model, plans, Untouched(model, untouched), left, bool(error_term), observer)


class Splice:
    """An SAE splice that can be switched on with ``with``; made by ``splice``.

    Attributes:
        sites: the names of the sites.
    """

    def __init__(
        self,
        model: nn.Module,
        plans: list[Replacement],
        untouched: Untouched,
        left: LeftInPass,
        error_term: bool,
        observer: Observer | None,
    ) -> None:
        self._model = model
        self._plans = plans
        self._untouched = untouched
        self._left = left
        self._taps = Taps(model, plans)
        self._error_term = error_term
        self._observer = observer
        self._hooks = Hooks()
        self._active = False
        self.sites = tuple(plan.site.name for plan in plans)
        self._forget()

    @property
    def untouched(self) -> Given:
        """The mask [B, S], masks by site, or token ids whose positions stay as they are; may be set between passes."""
        return self._untouched.value

    @untouched.setter
    def untouched(self, value: Given) -> None:
        self._untouched.set(value)
        if self._active:
            self._untouched.attach(self._hooks)

    def __enter__(self) -> Splice:
        if self._active:
            raise RuntimeError("this Splice is already active; make another with splice(...) to nest")
        self._active = True
        self._forget()
        try:
            self._hooks.after(self._model, self._count_pass)
            self._untouched.attach(self._hooks)
            self._left.attach(self._hooks)
            for plan in self._plans:
                self._hooks.at_site(plan.site, partial(self._replace, plan))
            self._taps.attach(self._hooks)
        except BaseException:
            self._remove()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._remove()
        missed = [name for name, count in self.calls.items() if not count]
        passes = self._passes or int(self._in_compiled[""].seen)
        if kind is None and missed and passes:
            warnings.warn(
                f"splice: nothing was replaced at {', '.join(missed)}: not called in {passes} forward passes",
                RuntimeWarning,
                stacklevel=2,
            )

    def _remove(self) -> None:
        self._active = False
        self._untouched.detach()
        self._left.detach()
        self._taps.clear()
        self._hooks.remove()

    def _forget(self) -> None:
        self._passes, self._calls = 0, dict.fromkeys(self.sites, 0)
        self._in_compiled = {name: _Seen() for name in ("", *self.sites)}  # "" is the model

    @property
    def calls(self) -> dict[str, int]:
        """Site -> how often its module was called since the splice was last entered; 1 for any number in compiled code.

        A count that compiled code kept would be a constant of it, so that every pass were compiled anew.
        """
        return {name: max(count, int(self._in_compiled[name].seen)) for name, count in self._calls.items()}

    def _count_pass(self, module: nn.Module, args: Any, output: Any) -> None:
        if torch.compiler.is_compiling():
            self._in_compiled[""].seen = True
        else:
            self._passes += 1

    def _count_call(self, name: str) -> None:
        if torch.compiler.is_compiling():
            self._in_compiled[name].seen = True
        else:
            self._calls[name] += 1

    def _replace(self, plan: Replacement, source: Tensor, whole: Tensor) -> Tensor:
        """What goes in the place of ``whole``, from what was read: same shape, dtype and device."""
        name = plan.site.name
        self._count_call(name)
        x, target = plan.fit(source, whole)
        stays = self._untouched.mask(name, target.shape[:-1], target.device)
        left = self._left.mask(name, x, target)
        if left is not None:
            stays = left if stays is None else stays | left
        x_hat, codes = plan.reconstruct(x, target)
        if self._observer is not None:
            touched = torch.ones((), dtype=torch.bool, device=target.device).expand(target.shape[:-1])
            self._observer(name, x, x_hat, target, codes, touched if stays is None else ~stays)
        if self._error_term:
            x_hat = with_error(x_hat, target)
        new = x_hat.to(target.dtype)
        if stays is not None:
            new = torch.where(stays.unsqueeze(-1), target, new)
        return put_part(plan.site, plan.site.write, whole, new)


class _Seen:
    """Whether compiled code came by: an attribute, for it may be written without a look at what it was."""

    seen = False


def _modes(replace: Mode | Mapping[str, Mode], sites: Mapping[str, Any]) -> dict[str, Mode]:
    modes = dict(replace) if isinstance(replace, Mapping) else dict.fromkeys(sites, replace)
    if modes.keys() != sites.keys():
        raise ValueError(f"replace: needs a mode for each of {sorted(sites)} and no others, got {sorted(modes)}")
    for mode in modes.values():
        if mode not in get_args(Mode):
            raise ValueError(f"replace: needs one of {', '.join(get_args(Mode))}, got {mode!r}")
    return modes
