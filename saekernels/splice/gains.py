"""Dictionaries that read a norm before its gain, as TransformerLens' `ln2.hook_normalized` has it.

No module of transformers gives that: its norms give the gain multiplied in, and a bias added. The encoders are changed
instead, so that they compute the same of what the norm gives.
"""

from __future__ import annotations

import copy
import re
from typing import TypeVar

import torch
from torch import Tensor, nn

from saekernels.crosslayer.transcoder import CrossLayerTranscoder
from saekernels.crosslayer.transcoders import TranscoderSet
from saekernels.errors import InputError
from saekernels.sae.module import SAE
from saekernels.splice.hooks import translated

Dictionary = TypeVar("Dictionary", CrossLayerTranscoder, TranscoderSet)
_NORMALIZED = re.compile(r"(?P<block>blocks\.\d+)\.ln2\.hook_normalized(?P<rest> -> .+)?")


@torch.no_grad()
def fold_norm_gains(dictionary: Dictionary, model: nn.Module) -> Dictionary:
    """The dictionary for sites that a model of transformers has, where it reads `blocks.N.ln2.hook_normalized`.

    With g the gain of the norm before the MLP and b its bias, the norm gives y = n * g + b for the normalised n that
    was read: encoders become W_enc / g, and b_enc - W_enc / g @ b; each is computed in float64 and rounded once.

    Args:
        dictionary: with `sites`. Other sites stay as they are.
        model: of transformers, of a family whose MLP has a norm of its own before it.

    Returns:
        A copy with other encoders and sites; decoders are shared. The same object where no site reads such a point.

    Raises:
        ValueError: no sites; a model without such a norm; a norm that is neither an RMSNorm, by its weight or by one
            plus its weight, nor a LayerNorm; a gain of 0, after which what was read cannot be told.
    """
    if dictionary.sites is None:
        raise ValueError("dictionary: its files do not say where it reads and writes; set its `sites`")
    found = [_NORMALIZED.fullmatch(site) for site in dictionary.sites]
    if not any(found):
        return dictionary
    made = copy.copy(dictionary)
    # The copies of the parts that are changed, and of the lists that they are in, are their own; tensors are shared.
    made._modules = dict(dictionary._modules)
    name = "sources" if isinstance(dictionary, CrossLayerTranscoder) else "transcoders"
    parts = list(getattr(dictionary, name))
    sites = list(dictionary.sites)
    for layer, match in enumerate(found):
        if match is not None:
            path, norm = _norm(model, f"{match['block']}.hook_resid_mid", sites[layer])
            parts[layer] = _after(parts[layer], *gain_and_bias(norm, path))
            sites[layer] = path + (match["rest"] or "")
    made._modules[name] = nn.ModuleList(parts)
    made.sites = tuple(sites)
    return made


def gain_and_bias(norm: nn.Module, name: str = "norm") -> tuple[Tensor, Tensor | None]:
    """(gain [d], bias [d] or None) of a norm in float64, told by what it gives for an input. Raises ValueError."""
    weight, bias = getattr(norm, "weight", None), getattr(norm, "bias", None)
    if not isinstance(weight, Tensor):
        raise ValueError(f"{name}: got {type(norm).__name__}, which has no weight, need an RMSNorm or a LayerNorm")
    own = weight.detach().double().cpu()
    x = 16 * torch.randn(8, len(own), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    got = copy.deepcopy(norm).to("cpu", torch.float64)(x).double()
    over_rms = x / x.square().mean(-1, keepdim=True).sqrt()
    centred = x - x.mean(-1, keepdim=True)
    ways: dict[tuple[Tensor, Tensor | None], Tensor]
    if isinstance(bias, Tensor):
        shift = bias.detach().double().cpu()
        ways = {(own, shift): centred / centred.square().mean(-1, keepdim=True).sqrt() * own + shift}
    else:
        ways = {(one, None): over_rms * one for one in (own, 1 + own)}
    fits = [way for way, wanted in ways.items() if torch.allclose(got, wanted, rtol=1e-3, atol=1e-3)]
    if len(fits) != 1:
        raise ValueError(f"{name}: {type(norm).__name__} is no RMSNorm or LayerNorm whose gain can be told")
    gain = fits[0][0]
    if bool((gain == 0).any()):
        raise ValueError(f"{name}: a gain is 0, after which what was read before it cannot be told")
    return fits[0]


def _norm(model: nn.Module, hook: str, site: str) -> tuple[str, nn.Module]:
    """The norm whose input is a hook point, and its name."""
    place = translated(model, hook, False)
    if place is None or not place[1]:
        raise InputError(
            f"site {site!r}: {type(model).__name__} has no module that is known as the norm before the MLP"
        )
    return place[0], model.get_submodule(place[0])


def _after(part: SAE, gain: Tensor, bias: Tensor | None) -> SAE:
    """A part that computes of n * gain + bias what `part` computes of n; only its encoder is new."""
    if part.normalization is not None or part.b_enc is None or part.pre_bias_kind == "b_dec":
        raise ValueError(f"dictionary: {part} normalises, is gated or subtracts b_dec, need none of them")
    made = copy.copy(part)
    made._parameters = dict(part._parameters)
    made._prepared, made._seen = None, None
    gain = gain.to(part.W_enc.device)
    W_enc = part.W_enc.double() / gain
    made.W_enc = nn.Parameter(W_enc.to(part.W_enc.dtype), part.W_enc.requires_grad)
    if bias is not None:
        shift = W_enc @ bias.to(W_enc.device)
        made.b_enc = nn.Parameter((part.b_enc.double() - shift).to(part.b_enc.dtype), part.b_enc.requires_grad)
    if part.b_pre is not None:
        made.b_pre = nn.Parameter((part.b_pre.double() * gain).to(part.b_pre.dtype), part.b_pre.requires_grad)
    return made
