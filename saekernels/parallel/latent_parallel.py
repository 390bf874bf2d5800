"""One SAE over several processes: each encodes with its latents, the codes are merged exactly, the decodes summed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, distributed, nn

from saekernels.ops import _check, decode_csr, encode_topk
from saekernels.ops.sparse_maps import uniform_offsets
from saekernels.parallel.agree import REFUSALS, agree
from saekernels.parallel.collectives import (
    device_for,
    gathered,
    gathered_objects,
    gathered_ragged,
    summed,
    summed_backward,
)
from saekernels.parallel.merge import merge_topk
from saekernels.parallel.rows import most_codes
from saekernels.sae.activations import AbsTopK, Activation, GroupMax, TopK
from saekernels.sae.codes import Codes
from saekernels.sae.encoders import ENCODERS, scale_of, times
from saekernels.sae.entries import positive
from saekernels.sae.module import SAE

# Of this rank: values, latents of the shard, offsets, in CSR; and the codes of all ranks.
_Encoded = tuple[Tensor, Tensor, Tensor, Codes]
_Merged = tuple[Tensor, Tensor, Tensor, tuple[Tensor, Tensor, Tensor | None]]
_Numbers = tuple[int, int]


class LatentParallelSAE(nn.Module):
    """An SAE whose latents are spread over the ranks of a group; stands where an SAE stands (`splice`, `evaluate`).

    Every rank calls it with the same input and has the same result, bit for bit; what one of them refuses all refuse,
    and an x of other tokens or another dtype in one of them. The codes are those of the undivided
    SAE, to the bit; the reconstruction is summed shard by shard in float32 in the order of the ranks, so it differs
    from the undivided one's by rounding. Its parameters are fixed; gradients reach the input.

    Args:
        own: the SAE of this rank's latents.
        activation: of the whole SAE.
        n_latents: of the whole SAE.
        first: the latent of the whole SAE that is this rank's first.
        group: the ranks, in the order of their latents; None for the default group.
    """

    def __init__(self, own: SAE, activation: Activation, n_latents: int, first: int, group: Any = None) -> None:
        super().__init__()
        self.own = own.requires_grad_(False)
        self.activation, self.n_latents, self.first = activation, n_latents, first
        self._group = group
        self.d_in, self.d_out = own.d_in, own.d_out

    @property
    def architecture(self) -> str:
        """The activation's name."""
        return self.activation.name

    @property
    def W_dec(self) -> Tensor:
        """[this rank's latents, d_out]."""
        return self.own.W_dec

    def encode(self, x: Tensor) -> Codes:
        """Sparse codes of x [..., d_in], of the whole SAE, in every rank. They carry no gradient."""
        return self._encode(x)[-1]

    def decode(self, codes: Codes) -> Tensor:
        """[..., d_out] from codes of the whole SAE, which every rank has; the skip connection not added."""
        refusal = None
        try:
            if not isinstance(codes, Codes):
                raise TypeError(f"codes: got {type(codes).__name__}, need Codes")
            _check.dtype_in("codes", codes.values, _check.FLOATS)
            if codes.n_latents != self.n_latents:
                raise ValueError(f"codes: got n_latents = {codes.n_latents}, need {self.n_latents}")
        except REFUSALS as error:
            refusal = error
        same = ("the tokens of codes", "the dtype of codes")
        self._agree(refusal, same, lambda: (codes.tokens, _number(codes.values.dtype)))
        flat = codes.to_csr()
        assert flat.offsets is not None
        latents = flat.indices.long() - self.first
        held = (latents >= 0) & (latents < self.own.n_latents)
        offsets = nn.functional.pad(held.cumsum(0), (1, 0))[flat.offsets]
        return self._decode(flat.values[held], latents[held].int(), offsets, codes)

    def forward_with_codes(self, x: Tensor) -> tuple[Tensor, Codes]:
        """(the output of `forward`, the codes behind it, which carry no gradient) for x [..., d_in]."""
        values, latents, offsets, codes = self._encode(x)
        out = self._decode(values, latents, offsets, codes)
        if self.own.W_skip is not None:
            out = out + nn.functional.linear(x.to(self.own.W_skip.dtype), self.own.W_skip)
        return out.to(x.dtype), codes

    def forward(self, x: Tensor) -> Tensor:
        """The reconstruction (or a transcoder's output) of x [..., d_in], skip connection included: [..., d_out]."""
        return self.forward_with_codes(x)[0]

    def fingerprints(self, own: str) -> list[str]:
        """Every rank's `own`, in the order of the latents."""
        return gathered_objects(own, self._group)

    def _encode(self, x: Tensor) -> _Encoded:
        mine = refusal = None
        try:
            _check.tensor("x", x)
            _check.dtype_in("x", x, _check.FLOATS)
            if x.dim() < 1 or x.shape[-1] != self.d_in:
                raise ValueError(f"x: got shape {list(x.shape)}, need [..., d_in] with d_in = {self.d_in}")
            _check.in_one_place(W_enc=self.own.W_enc, x=x)
            mine = self._own_codes(x)
        except REFUSALS as error:
            refusal = error
        self._agree(refusal, ("the tokens of x", "the dtype of x"), lambda: (x.numel() // self.d_in, _number(x.dtype)))
        assert mine is not None
        values, latents, offsets, scale, shift = mine
        merge = self._best if self._ranks_codes else self._all
        values, latents, offsets, (every, names, bounds) = merge(values, latents, offsets)
        shape = x.shape[:-1]
        if bounds is None:
            every, names = (one.view(*shape, one.shape[-1]) for one in (every, names))
        return values, latents, offsets, Codes(every, names, bounds, shape, self.n_latents, scale, shift)

    def _agree(self, refusal: Exception | None, names: tuple[str, str], numbers: Callable[[], _Numbers]) -> None:
        """Nothing, or an error in every rank: what one of them refuses, or numbers that differ."""
        weights = self.W_dec
        agree(
            refusal,
            (*names, "the dtype of the SAE"),
            lambda: (*numbers(), _number(weights.dtype)),
            self._group,
            device_for(self._group, weights),
            lambda name, number: str(_check.FLOATS[number])[6:] if "dtype" in name else str(number),
        )

    @property
    def _ranks_codes(self) -> bool:
        """Whether latents of different shards displace each other."""
        return isinstance(self.activation, TopK | AbsTopK)

    def _own_codes(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None, Tensor | None]:
        """Values, latents and offsets of this rank's latents alone, and the scale and shift of a normalisation."""
        x = x.to(self.own.W_enc.dtype)
        norms = shift = None
        if self.own.normalization is not None:
            x, norms, shift = self.own.normalization.apply(x)
        rows = summed_backward(x.reshape(-1, self.d_in), self._group)
        if not self._ranks_codes:
            return *ENCODERS[type(self.own.activation)](self.own, rows, self.own.activation), norms, shift
        scale = scale_of(self.own)
        # Not rounded and, unless magnitudes order them, before the ReLU: what the undivided encoder selects by.
        mine = encode_topk(
            rows,
            self.own.W_enc,
            self.own.b_enc,
            k=min(self._offered(), self.own.n_latents),
            pre_bias=self.own.pre_bias,
            scale=scale,
            activation="abs" if isinstance(self.activation, AbsTopK) else "none",
            prepared=self.own.prepared(),
            wide=True,
        )
        return times(*mine, scale, mine.values.dtype), mine.indices, None, norms, shift

    def _offered(self) -> int:
        return most_codes(self.n_latents, self.activation, distributed.get_world_size(self._group))

    def _best(self, values: Tensor, latents: Tensor, _: Tensor | None) -> _Merged:
        """This rank's winners in CSR, and all of them, k for each row."""
        activation = self.activation
        assert isinstance(activation, TopK | AbsTopK)
        magnitude = isinstance(activation, AbsTopK)
        lacking = self._offered() - values.shape[1]
        if lacking:  # a shard with fewer latents offers as many codes, the last of them worse than any
            values = nn.functional.pad(values, (0, lacking), value=0.0 if magnitude else -torch.inf)
            latents = nn.functional.pad(latents, (0, lacking), value=-1)
        names = torch.where(latents < 0, self.n_latents, latents + self.first)
        every, chosen, won = merge_topk(values.detach(), names.int(), activation.k, magnitude, self._group)
        dtype = self.own.W_enc.dtype
        if isinstance(activation, TopK) and activation.relu:
            values, every = values.relu(), torch.where(every < 0, 0.0, every)
        offsets = nn.functional.pad(won.sum(1).cumsum(0), (1, 0))
        return values[won].to(dtype), latents[won], offsets, (every.to(dtype), chosen, None)

    def _all(self, values: Tensor, latents: Tensor, offsets: Tensor | None) -> _Merged:
        """This rank's codes in CSR, and those of all, in the order of the latents; each shard decides alone."""
        rows = len(values) if offsets is None else len(offsets) - 1
        width = self.activation.k if isinstance(self.activation, GroupMax) else None
        if offsets is None:
            offsets = uniform_offsets(rows, values.shape[-1], values.device)
            values, latents = values.reshape(-1), latents.reshape(-1)
        every, names, bounds = _side_by_side(values.detach(), latents + self.first, offsets, self._group)
        if width is None:
            return values, latents, offsets, (every, names, bounds)
        return values, latents, offsets, (every.view(rows, width), names.view(rows, width), None)

    def _decode(self, values: Tensor, latents: Tensor, offsets: Tensor, codes: Codes) -> Tensor:
        """The sum of all ranks' decodes of their own entries, biased, and the input's normalisation undone."""
        if self.own.rescale_by_decoder_norm:
            values = (values / positive(self.own.decoder_norms())[latents.long()]).to(values.dtype)
        part = decode_csr(values, latents, offsets, self.W_dec, wide=True)
        whole = summed(part, self._group)
        out = (whole + self.own.b_dec.to(whole.dtype)).to(self.W_dec.dtype).view(*codes.shape, self.d_out)
        if codes.scale is not None:
            out = out * codes.scale
        return out if codes.shift is None else out + codes.shift

    def extra_repr(self) -> str:
        """What repr() shows between the brackets: the sizes, and which latents are here."""
        last = self.first + self.own.n_latents - 1
        return f"d_in={self.d_in}, n_latents={self.n_latents}, {self.activation}, here {self.first}..{last}"


def _side_by_side(values: Tensor, latents: Tensor, offsets: Tensor, group: Any) -> tuple[Tensor, Tensor, Tensor]:
    """CSR codes whose rows are the rows of every rank's codes, one after the other."""
    counts = gathered(offsets.diff(), group)
    starts = nn.functional.pad(counts.sum(0).cumsum(0), (1, 0))
    before = counts.cumsum(0) - counts
    parts = zip(gathered_ragged(values, group), gathered_ragged(latents, group), counts, before, strict=True)
    total = int(starts[-1])
    every, names = values.new_empty(total), latents.new_empty(total)
    for part, named, own, skipped in parts:
        rows = torch.arange(len(own), device=own.device).repeat_interleave(own)
        within = torch.arange(len(rows), device=own.device) - (own.cumsum(0) - own)[rows]
        places = starts[rows] + skipped[rows] + within
        every[places], names[places] = part, named
    return every, names, starts


def _number(dtype: torch.dtype) -> int:
    return _check.FLOATS.index(dtype)
