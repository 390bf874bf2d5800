"""The model cut in two: a body that gives final hidden states, and the linear head that turns them into logits.

The cut keeps logits out of memory: the loss kernel takes hidden states and the head's weights.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from saekernels.errors import InputError, first_line
from saekernels.ops import LinearCeKl, linear_ce_kl
from saekernels.parallel.devices import whole

_ROWS_AT_ONCE = 1024


@dataclass(frozen=True)
class Head:
    """logits = softcap(scale * (hidden @ weight.T + bias)); `body` maps ids [B, S] to hidden [B, S, d].

    weight [V, d]; bias [V] or None; softcap(z) = c * tanh(z / c), or the identity when `softcap` is None.
    """

    body: Callable[[Tensor], Tensor]
    weight: Tensor
    bias: Tensor | None = None
    softcap: float | None = None
    scale: float = 1.0

    def hidden(self, ids: Tensor, rows: Tensor) -> Tensor:
        """Final hidden states [n, d] at the flat positions `rows` [n] of ids [B, S], on the head's device."""
        hidden = self.body(ids)
        picked = hidden.reshape(-1, hidden.shape[-1]).index_select(0, rows.to(hidden.device))
        return picked.to(self.weight)

    def compare(self, hidden_p: Tensor, hidden_q: Tensor, targets: Tensor) -> LinearCeKl:
        """Cross-entropy of both streams, KL(p || q) and top-1 agreement, each [n]."""
        bias = self.bias
        if self.scale != 1.0:
            hidden_p, hidden_q = hidden_p * self.scale, hidden_q * self.scale
            bias = None if bias is None else bias * self.scale
        targets = targets.to(self.weight.device)
        return linear_ce_kl(hidden_p, hidden_q, self.weight, targets, bias=bias, softcap=self.softcap)

    def target_logits(self, hidden: Tensor, targets: Tensor) -> Tensor:
        """[n] fp32: the logit of each row's own target; hidden [n, d], targets [n]."""
        targets = targets.to(self.weight.device)
        parts = zip(hidden.split(_ROWS_AT_ONCE), targets.split(_ROWS_AT_ONCE), strict=True)
        z = torch.cat([(rows.float() * self.weight[own].float()).sum(-1) for rows, own in parts])
        z = self.scale * (z if self.bias is None else z + self.bias[targets].float())
        return z if self.softcap is None else self.softcap * torch.tanh(z / self.softcap)

    def logits(self, hidden: Tensor) -> Tensor:
        """[n, V] fp32 logits of a few rows, to check the cut against the model's own."""
        z = hidden.float() @ self.weight.float().T
        if self.bias is not None:
            z = z + self.bias.float()
        z = z * self.scale
        return z if self.softcap is None else self.softcap * torch.tanh(z / self.softcap)


def find_head(model: Any) -> Head:
    """The cut of a `transformers` causal LM or a TransformerLens HookedTransformer.

    Raises InputError if the model has no output embedding or no separate body.
    """
    if hasattr(model, "unembed") and hasattr(model, "W_U"):
        return _transformer_lens_head(model)
    try:
        output = model.get_output_embeddings()
    except (AttributeError, NotImplementedError):
        output = None
    body = getattr(model, "base_model", model)
    if not isinstance(getattr(output, "weight", None), Tensor) or body is model:
        raise InputError(
            f"model: {type(model).__name__} is no causal language model with a body and an output embedding"
        )

    def run(ids: Tensor) -> Tensor:
        return body(input_ids=ids, use_cache=False).last_hidden_state

    config = model.config.get_text_config() if hasattr(model.config, "get_text_config") else model.config
    softcap = getattr(config, "final_logit_softcapping", None)
    # Once for all: on the device that computes it, and in every process of a model that is cut.
    weight = whole(output, "weight")
    bias = None if getattr(output, "bias", None) is None else whole(output, "bias")
    return Head(run, weight, bias, softcap or None, _scale(config))


def _scale(config: Any) -> float:
    # The names that transformers' own models use: Cohere multiplies, Granite divides, Falcon-H1 multiplies.
    scale = 1.0
    for name, power in (("logit_scale", 1), ("logits_scaling", -1), ("lm_head_multiplier", 1)):
        value = getattr(config, name, None)
        if isinstance(value, (int, float)) and value:
            scale *= float(value) ** power
    return scale


def _transformer_lens_head(model: Any) -> Head:
    layers = model.cfg.n_layers

    def run(ids: Tensor) -> Tensor:
        residual = model(ids, stop_at_layer=layers)
        return residual if model.cfg.normalization_type is None else model.ln_final(residual)

    softcap = getattr(model.cfg, "output_logits_soft_cap", -1.0)
    return Head(run, model.W_U.T.contiguous(), model.b_U, softcap if softcap > 0 else None)


def check_head(model: Any, head: Head, ids: Tensor) -> None:
    """Compare the cut with the model's own logits on a few tokens, ids [B, S].

    Raises InputError if they differ by more than rounding: the head is not linear plus softcap, or a step is missed.
    """
    try:
        output = model(ids)
        expected = (output if isinstance(output, Tensor) else output.logits).float()
        got = head.logits(head.hidden(ids, torch.arange(ids.numel()))).view(*ids.shape, -1).to(expected.device)
    except Exception as error:  # whatever a model of any kind may raise, for a config that does not fit itself, say
        raise InputError(f"model: a trial run on {ids.numel()} tokens failed: {first_line(error)}") from error
    if got.shape != expected.shape:
        raise InputError(
            f"model: its logits have shape {list(expected.shape)}, its output embedding gives {list(got.shape)}"
        )
    eps = torch.finfo(head.weight.dtype).eps
    tolerance = max(1e-4, 8 * eps) * expected.abs().max().item()
    difference = (got - expected).abs().max().item()
    if not difference <= tolerance and bool(torch.isfinite(expected).all()):
        raise InputError(
            f"model: the head of {type(model).__name__} is not its output embedding applied to the final hidden state "
            f"(plus bias, scale and softcap): logits differ by {difference:.3g}, more than rounding ({tolerance:.3g})"
        )
