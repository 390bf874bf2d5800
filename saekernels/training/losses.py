"""What a step makes small: the reconstruction's error, and that of the dead latents."""

from __future__ import annotations

import torch
from torch import Tensor

from saekernels.ops import _check, decode, encode_topk
from saekernels.sae.activations import Gated, GroupMax, TopK
from saekernels.sae.codes import Codes
from saekernels.sae.encoders import scale_of, times
from saekernels.sae.entries import positive
from saekernels.sae.module import SAE


def fvu_loss(x: Tensor, x_hat: Tensor) -> Tensor:
    """|x - x_hat|^2 over |x - mean(x)|^2, both summed over the batch, the mean over its tokens: a scalar.

    x, x_hat [..., d]. 1 is the loss of a constant; scale-free, so learning rates carry over between sites.
    """
    if x.shape != x_hat.shape:
        raise ValueError(f"x_hat: got shape {list(x_hat.shape)}, need {list(x.shape)}, the shape of x")
    x, x_hat = _wide(x), _wide(x_hat)
    rows = x.reshape(-1, x.shape[-1])
    return (x - x_hat).square().sum() / (rows - rows.mean(0)).square().sum()


def encode_among(sae: SAE, x: Tensor, latents: Tensor, k: int) -> Codes:
    """TopK codes of x [..., d_in] among some latents only, whatever the SAE's own activation: an auxiliary encoder.

    The ReLU behind the choice is left out where the SAE is a TopK without one.

    Args:
        latents: [n] int64, each once.
        k: 1 <= k <= n.

    Only the n rows of the encoder are read; nothing of size tokens x n exists. Indices are those of the whole SAE.
    """
    if isinstance(sae.activation, Gated | GroupMax):
        raise ValueError(
            f"sae: got {sae.activation}, need an SAE whose pre-activations are one affine map of its input"
        )
    if latents.dim() != 1 or latents.dtype != torch.int64:
        raise ValueError(f"latents: got {latents.dtype} of shape {list(latents.shape)}, need int64 [n]")
    _check.indices_in_range(latents, sae.n_latents, "latents")
    if latents.device.type == "cpu" and latents.unique().numel() != latents.numel():
        raise ValueError("latents: got some of them more than once, need each once")
    x = x.to(sae.W_enc.dtype)
    scale = shift = None
    if sae.normalization is not None:
        x, scale, shift = sae.normalization.apply(x)
    every = scale_of(sae)
    bias, of_rows = (None if one is None else one[latents] for one in (sae.b_enc, every))
    signed = isinstance(sae.activation, TopK) and not sae.activation.relu
    kept = "none" if signed else "relu"
    values, chosen = encode_topk(
        x,
        sae.W_enc[latents],
        bias,
        k=k,
        pre_bias=sae.pre_bias,
        scale=of_rows,
        activation=kept,
        wide=of_rows is not None,
    )
    values = times(values, chosen, of_rows, x.dtype)
    return Codes(values, latents[chosen.long()].int(), None, x.shape[:-1], sae.n_latents, scale, shift)


def auxk_loss(sae: SAE, x: Tensor, x_hat: Tensor, dead: Tensor, k: int, target: Tensor | None = None) -> Tensor:
    """How badly the dead latents reconstruct the error that the living ones leave (Gao et al. 2024, appendix A.2).

    With e = target - x_hat, held constant, and e_hat = the decoder's rows of the k dead latents with the largest
    pre-activations, times those: |e_hat - e|^2 over |e|^2, both summed over the batch in at least float32. Gradients
    revive dead latents and reach nothing else but the biases. 0 while fewer than k latents are dead, as there is
    nothing to choose then, and where there is no error.

    Args:
        sae: the SAE.
        x: [..., d_in], the input.
        x_hat: [..., d_out], the reconstruction.
        dead: [n] int64, e.g. `DeadLatents.indices()`.
        k: how many may help per token; Gao et al. take d / 2.
        target: [..., d_out], what a transcoder is to give; x where it is left out.
    """
    name, target = ("x", x) if target is None else ("target", target)
    if target.shape != x_hat.shape:
        raise ValueError(f"x_hat: got shape {list(x_hat.shape)}, need {list(target.shape)}, the shape of {name}")
    if k < 1:
        raise ValueError(f"k: got {k}, need at least 1")
    if dead.numel() < k:
        return x_hat.new_zeros(())
    codes = encode_among(sae, x, dead, k)
    values = codes.values
    if sae.rescale_by_decoder_norm:
        values = (values / positive(sae.decoder_norms())[codes.indices.long()]).to(values.dtype)
    guess = decode(values, codes.indices, sae.W_dec)
    if codes.scale is not None:
        guess = guess * codes.scale
    error = (_wide(target) - _wide(x_hat)).detach()
    size = error.square().sum()
    loss = (_wide(guess) - error).square().sum() / torch.where(size > 0, size, 1)
    return torch.where(size > 0, loss, 0)


def _wide(x: Tensor) -> Tensor:
    """Sums of squares need the range and the precision of float32."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
