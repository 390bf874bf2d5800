"""Finds a model's head by trial runs: linear where the logits allow it, else a module, else the logits themselves.

The cut keeps logits out of memory: the loss kernel takes hidden states and a linear head's weights. Any other head
costs time and memory, and no accuracy.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from saekernels.errors import InputError, first_line
from saekernels.eval.passes.calls import Call, eval_mode, find_call, output_embedding, trial_ids
from saekernels.eval.passes.capture import (
    Seen,
    calls_to_width,
    input_of,
    may_end,
    planted,
    precision,
    rows_of,
    whole_tensor,
)
from saekernels.eval.passes.curve import Curve, measure_curve
from saekernels.eval.passes.head_kinds import Head, LinearHead, ModuleHead, WholeHead
from saekernels.parallel.collectives import RankLostError
from saekernels.parallel.devices import whole

Body = Callable[[Tensor], Tensor]
_RULED_OUT = -1e4


def find_head(model: nn.Module, encoder_ids: Sequence[int] | None = None, most: int | None = None) -> Head:
    """The cut of any module that gives logits for token ids, found by a few runs on at most 16 tokens.

    Args:
        model: it takes ids [B, S] and gives logits [B, S, V]: itself, as `.logits`, or in a tuple or dict.
        encoder_ids: tokens for the encoder of an encoder-decoder, the same for every row; ids are then the decoder's.
        most: the longest row that it will be given, if that is less than 16.

    Raises InputError if it gives no such logits.
    """
    with eval_mode(model), torch.no_grad():
        call, width = find_call(model, trial_ids(model, most=most), encoder_ids)
        ids = trial_ids(model, width, most)
        logits = whole_tensor(call.logits(ids))
        seen = calls_to_width(model, lambda: call.run(ids), logits.shape[-1], ids.numel())
        guesses: list[Callable[[], Head | None]] = [
            lambda: _transformer_lens_head(call),
            lambda: _linear_head(call, ids, seen, logits),
            lambda: _module_head(call, seen, logits),
        ]
        for guess in guesses:
            head = _tried(guess, ids, logits, precision(model))
            if head is not None:
                return head
        return WholeHead(call.logits, call.logits, logits.shape[-1], precision(model))


def _tried(guess: Callable[[], Head | None], ids: Tensor, logits: Tensor, dtype: torch.dtype) -> Head | None:
    """The head that guess() makes if it gives the model's own logits [B, S, V] for ids [B, S]."""
    try:
        head = guess()
        if head is None:
            return None
        got = head.logits(head.hidden(ids, torch.arange(ids.numel())))
    except RankLostError:
        raise
    except Exception:  # whatever a module of any kind may raise when it is called alone
        return None
    return head if _difference(got, logits, dtype) is None else None


def _difference(got: Tensor, expected: Tensor, dtype: torch.dtype) -> tuple[float, float] | None:
    """By how much they differ and how much rounding allows, if that is less; None where they agree."""
    expected = expected.float().reshape(-1, expected.shape[-1])
    if got.shape != expected.shape:
        return float("inf"), 0.0
    got = got.to(expected)
    # Where a model rules tokens out, by -inf or a large number, they must be ruled out; how large says nothing of the
    # rounding of the others.
    masked = expected.isinf() | (expected <= _RULED_OUT)
    if bool((masked & (got != expected) & (got > _RULED_OUT)).any()):
        return float("inf"), 0.0
    got, expected = got[~masked], expected[~masked]
    if not len(expected) or not bool(torch.isfinite(expected).all()):
        return None
    tolerance = max(1e-4, 8 * torch.finfo(dtype).eps) * expected.abs().max().item()
    difference = (got - expected).abs().max().item()
    return None if difference <= tolerance else (difference, tolerance)


def _linear_head(call: Call, ids: Tensor, seen: list[Seen], logits: Tensor) -> Head | None:
    """A product with a matrix [V, d], and a curve that is the same for every logit."""
    adapted = _adapted(seen)
    for one in reversed(seen):
        weight = None if one.module in adapted else getattr(one.module, "weight", None)
        if isinstance(weight, Tensor) and tuple(weight.shape) == (logits.shape[-1], one.given.shape[-1]):

            def plant(values: Tensor, one: Seen = one) -> Tensor | None:
                return planted(one.module, lambda: call.logits(ids), values)

            curve = measure_curve(plant, one.gave, getattr(call.model, "config", None))
            if curve is not None:
                return _linear(call, one.module, _body_to(call, ids, one), curve)
    # Some multiply with the embedding's weight itself, so that no module shows the product.
    output, body = output_embedding(call.model), getattr(call.model, "base_model", None)
    if output is None or body is None or body is call.model or any(one.module is output for one in seen):
        return None
    return _linear(call, output, _base(body), Curve())


def _adapted(seen: list[Seen]) -> set[nn.Module]:
    """Layers whose output an adapter of peft changes, with all that is in them.

    Such a layer shows the weight that it had before, and a small change passes for rounding.
    """
    gave = {one.module: one.gave for one in seen}
    found: set[nn.Module] = set()
    for module, output in gave.items():
        inner = getattr(module, "base_layer", None)
        if isinstance(inner, nn.Module) and not (inner in gave and torch.equal(gave[inner], output)):
            found.update(module.modules())
    return found


def _linear(call: Call, module: nn.Module, body: Body, curve: Curve) -> LinearHead:
    # Once for all: on the device that computes it, and in every process of a model that is cut.
    weight = whole(module, "weight")
    bias = None if getattr(module, "bias", None) is None else whole(module, "bias")
    if curve.offset is not None:
        further = (curve.offset / curve.scale).to(weight.device)
        bias = further if bias is None else bias + further
        bias = bias.to(weight.dtype) if weight.dtype == torch.float64 else bias.float()
    return LinearHead(call.logits, body, weight, bias, curve.softcap, curve.scale)


def _body_to(call: Call, ids: Tensor, one: Seen) -> Body:
    """What the module of `one` is given: by the model's base model alone if that gives it, else by an ended pass."""
    ended = _input_to(call, one.module)
    base = getattr(call.model, "base_model", call.model)
    if not isinstance(base, nn.Module) or base is call.model or call.encoder_ids is not None:
        return ended
    try:
        same = torch.equal(whole_tensor(_base(base)(ids)).reshape(one.given.shape), one.given)
    except RankLostError:
        raise
    except Exception:  # a base model may need what only the model around it gives
        return ended
    return _base(base) if same else ended


def _input_to(call: Call, module: nn.Module) -> Body:
    ends = may_end(call.model)

    def body(ids: Tensor) -> Tensor:
        given = input_of(module, lambda: call.run(ids), ends)
        return given.reshape(*ids.shape, given.shape[-1])

    return body


def _base(base: nn.Module) -> Body:
    return lambda ids: base(input_ids=ids, use_cache=False).last_hidden_state


def _module_head(call: Call, seen: list[Seen], logits: Tensor) -> Head | None:
    """The module with the narrowest input whose output is the logits."""
    fitting = [
        one
        for one in seen
        if one.given.shape[-1] < logits.shape[-1] and torch.equal(one.gave.to(logits).reshape(logits.shape), logits)
    ]
    if not fitting:
        return None
    one = min(fitting, key=lambda one: one.given.shape[-1])
    body = _input_to(call, one.module)
    flat = one.given.ndim == 2
    head = ModuleHead(call.logits, body, one.module, logits.shape[-1], flat, precision(call.model))
    # A module that looks from one row to another gives other logits where a row is alone.
    alone = torch.cat([head.logits(row) for row in one.given.reshape(-1, one.given.shape[-1]).split(1)])
    together = logits.reshape(rows_of(logits), -1)
    return head if _difference(alone, together, head.dtype) is None else None


def _transformer_lens_head(call: Call) -> Head | None:
    model: Any = call.model
    if not hasattr(model, "unembed") or not hasattr(model, "W_U") or not hasattr(model, "cfg"):
        return None
    layers = model.cfg.n_layers

    def run(ids: Tensor) -> Tensor:
        residual = model(ids, stop_at_layer=layers)
        return residual if model.cfg.normalization_type is None else model.ln_final(residual)

    softcap = getattr(model.cfg, "output_logits_soft_cap", -1.0)
    softcap = softcap if softcap is not None and softcap > 0 else None
    return LinearHead(call.logits, run, model.W_U.T.contiguous(), model.b_U, softcap)


def check_head(model: nn.Module, head: Head, ids: Tensor) -> str | None:
    """Compare the cut with the model's own logits on a few tokens, ids [B, S], and see that the model is causal.

    Returns a note where a row's logits hang on what shares its batch, as those of bitsandbytes' 8-bit products do.

    Raises InputError if they differ by more than rounding, or if a later token moves an earlier logit: what is put
    behind a shorter text to fill a batch would change its losses.
    """
    try:
        expected = whole_tensor(head.own(ids))
        got = head.logits(head.hidden(ids, torch.arange(ids.numel())))
        later = ids.clone()
        later[:, -1] = (later[:, -1] + 1) % int(ids.max() + 1)
        moved = whole_tensor(head.own(torch.cat([ids, later, ids.flip(1)])))
    except RankLostError:
        raise
    except Exception as error:  # whatever a model of any kind may raise, for a config that does not fit itself, say
        raise InputError(f"model: a trial run on {ids.numel()} tokens failed: {first_line(error)}") from error
    kind = type(model).__name__
    differ = _difference(got, expected, head.dtype)
    if differ is not None:
        raise InputError(
            f"model: the {head.kind} head found for {kind} does not give its logits: they differ by {differ[0]:.3g}, "
            f"more than rounding ({differ[1]:.3g})"
        )
    shared = _difference(moved[: len(ids)].reshape(-1, moved.shape[-1]), expected, head.dtype)
    before, after, _ = (part[:, :-1].float() for part in moved.split(len(ids)))
    differ = _difference(after.reshape(-1, after.shape[-1]), before, head.dtype)
    if differ is not None:
        raise InputError(
            f"model: {kind} is not causal: another last token moves earlier logits by {differ[0]:.3g}, more than "
            f"rounding ({differ[1]:.3g}), so a text's losses would hang on what shares its batch"
        )
    return shared and (
        f"Logits of {kind} hang on what shares a text's batch: in a trial they moved by {shared[0]:.3g}, more than "
        f"rounding ({shared[1]:.3g}), so another batch size gives other figures."
    )
