"""Edits of latents while an SAE is spliced in: zero, scale, clamp, set, add. On the sparse codes; for steering."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from numbers import Real
from typing import Any, Literal

import torch
from torch import Tensor, nn

from saekernels.display.numbers import counted
from saekernels.errors import InputError, check_each
from saekernels.ops import _check
from saekernels.sae.cards.modules import module_card
from saekernels.sae.codes import Codes
from saekernels.sae.module import SAE

Operation = Literal["zero", "scale", "clamp", "set", "add"]
_VALUES: dict[str, int] = {"zero": 0, "scale": 1, "clamp": 2, "set": 1, "add": 1}


@dataclass(frozen=True)
class Edit:
    """What happens to one latent: z -> 0, z * v, min(max(z, v), w), v, or z + v.

    only_active: leave tokens alone at which the latent is zero (for set, add and clamp; the others do so anyway).

    Raises ValueError for an unknown operation, a negative latent, the wrong number of values or one that is not finite.
    """

    latent: int
    operation: Operation
    values: tuple[float, ...] = ()
    only_active: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.operation, str) or self.operation not in _VALUES:
            raise ValueError(f"operation: got {self.operation!r}, need one of {', '.join(_VALUES)}")
        latent = _check.integer(self.latent)
        if latent is None or latent < 0:
            raise ValueError(f"latent: got {self.latent!r}, need an index from 0")
        object.__setattr__(self, "latent", latent)
        wanted = _VALUES[self.operation]
        if not _are_numbers(self.values) or len(self.values) != wanted:
            needs = f"a tuple of {counted(wanted, 'finite number')}"
            raise ValueError(f"values: {self.operation} needs {needs}, got {self.values!r:.80}")
        object.__setattr__(self, "values", tuple(self.values))
        if self.operation == "clamp" and self.values[0] > self.values[1]:
            raise ValueError(f"values: clamp needs a low and a high value, got {self.values!r}")

    def apply(self, z: Tensor) -> Tensor:
        """The latent's new values; z [T] its old ones, 0 where it is not active."""
        new = {
            "zero": lambda: torch.zeros_like(z),
            "scale": lambda: z * self.values[0],
            "clamp": lambda: z.clamp(*self.values),
            "set": lambda: torch.full_like(z, self.values[0]),
            "add": lambda: z + self.values[0],
        }[self.operation]()
        return torch.where(z != 0, new, z) if self.only_active else new


def _are_numbers(values: object) -> bool:
    return isinstance(values, Sequence) and all(
        isinstance(value, Real | Tensor) and math.isfinite(value) for value in values
    )


def check_edits(edits: Sequence[Edit], n_latents: int, dtype: torch.dtype, of: str = "the SAE") -> None:
    """InputError for a latent that is not there, or a value that codes of this dtype do not hold; of: whose edits.

    InputTypeError (a TypeError) for anything but a sequence of `Edit`.
    """
    check_each("edits", edits, Edit)
    for edit in edits:
        if edit.latent >= n_latents:
            raise InputError(f"edits: latent {edit.latent} is not among the {n_latents} of {of}")
        if any(abs(value) > torch.finfo(dtype).max for value in edit.values):
            kind = str(dtype).removeprefix("torch.")
            raise InputError(f"edits: latent {edit.latent} gets {edit.values!r}, which {kind} does not hold")


def edit_codes(codes: Codes, edits: Sequence[Edit]) -> Codes:
    """The codes with edits applied in order; tokens gain one entry for every edited latent. Differentiable.

    No tensor of size tokens x latents is made. Raises as `EditedSAE`.
    """
    check_edits(edits, codes.n_latents, codes.values.dtype)
    latents = list(dict.fromkeys(edit.latent for edit in edits))
    if not latents:
        return codes
    values = codes.values
    columns = []
    for latent in latents:
        own = codes.indices == latent
        z = _per_token(torch.where(own, values, 0), codes)
        for edit in edits:
            if edit.latent == latent:
                z = edit.apply(z)
        columns.append(z)
        values = torch.where(own, 0, values)
    return _append(replace(codes, values=values), torch.stack(columns, -1), latents)


def _per_token(values: Tensor, codes: Codes) -> Tensor:
    """[T]: sums of the entries of each token."""
    if codes.offsets is None:
        return values.reshape(-1, values.shape[-1]).sum(-1)
    rows = torch.arange(codes.tokens, device=values.device).repeat_interleave(codes.offsets.diff())
    return values.new_zeros(codes.tokens).index_add(0, rows, values)


def _append(codes: Codes, new: Tensor, latents: list[int]) -> Codes:
    """The codes with entries new [T, E] for these latents at every token."""
    added = torch.tensor(latents, dtype=codes.indices.dtype, device=codes.indices.device).expand(new.shape)
    if codes.offsets is None:
        shape = (*codes.shape, new.shape[-1])
        values = torch.cat([codes.values, new.view(shape)], -1)
        return replace(codes, values=values, indices=torch.cat([codes.indices, added.reshape(shape)], -1).contiguous())
    tokens = torch.arange(codes.tokens, device=new.device)
    rows = torch.cat([tokens.repeat_interleave(codes.offsets.diff()), tokens.repeat_interleave(new.shape[-1])])
    order = rows.argsort(stable=True)
    offsets = codes.offsets + tokens.new_tensor(range(codes.tokens + 1)) * new.shape[-1]
    values = torch.cat([codes.values, new.reshape(-1)])[order]
    return replace(codes, values=values, indices=torch.cat([codes.indices, added.reshape(-1)])[order], offsets=offsets)


class EditedSAE(nn.Module):
    """An SAE whose latents are edited between encoder and decoder; stands where the SAE stands (`splice`, `evaluate`).

    Args:
        sae: the SAE; its parameters are shared.
        edits: applied in order.
        keep_error: add what the unedited SAE gets wrong back in, so that only the edit changes anything:
            x + decode(edited) - decode(codes). For SAEs that read and replace one activation.

    Raises ValueError for a latent that the SAE does not have, a value that its dtype does not hold, or `keep_error`
    with a transcoder; TypeError for edits that are no sequence of `Edit`.
    """

    def __init__(self, sae: SAE, edits: Sequence[Edit], keep_error: bool = False) -> None:
        super().__init__()
        check_edits(edits, sae.n_latents, sae.W_dec.dtype)
        if keep_error and sae.d_in != sae.d_out:
            raise ValueError(f"keep_error: needs an SAE of one activation, got d_in {sae.d_in} and d_out {sae.d_out}")
        self.sae, self.edits, self.keep_error = sae, tuple(edits), keep_error

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("sae"), name)

    def encode(self, x: Tensor) -> Codes:
        """The edited codes of x [..., d_in]."""
        return edit_codes(self.sae.encode(x), self.edits)

    def forward_with_codes(self, x: Tensor) -> tuple[Tensor, Codes]:
        """(what is put in, the edited codes)."""
        return self.edited(x, *self.sae.forward_with_codes(x))

    def edited(self, x: Tensor, out: Tensor, codes: Codes) -> tuple[Tensor, Codes]:
        """`forward_with_codes`, from what the SAE makes of x: its output and its codes."""
        edited = edit_codes(codes, self.edits)
        changed = self.sae.decode(edited) - self.sae.decode(codes)
        return ((x if self.keep_error else out) + changed).to(x.dtype), edited

    def forward(self, x: Tensor) -> Tensor:
        """What is put in for x [..., d_in]: [..., d_out] in the dtype of x."""
        return self.forward_with_codes(x)[0]

    def extra_repr(self) -> str:
        """What repr() shows between the brackets: the edits, and whether the error is kept."""
        return f"{len(self.edits)} edits, keep_error={self.keep_error}"

    def _repr_html_(self) -> str:
        edits = "; ".join(map(repr, self.edits))
        facts = {"of": f"SAE({self.sae.extra_repr()})", "edits": edits, "keep_error": self.keep_error}
        return module_card(self, facts, self.sae.metadata)
