"""An SAE in the form that SAELens (>= 6) has: what can be folded exactly is, what cannot is refused by name.

Exactly means that codes and outputs are the same functions of the input in exact arithmetic. Folding is done in float64
and rounded once, to the dtype of each tensor.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from saekernels.formats.files import FormatError
from saekernels.formats.readers.saelens_config import ARCHITECTURES, LAYER_NORM
from saekernels.sae.activations import (
    AbsTopK,
    Activation,
    BatchTopK,
    Gated,
    GroupMax,
    JumpReLU,
    LayerNorm,
    ReLU,
    Scale,
    TopK,
)
from saekernels.sae.module import SAE

_ROWS = 4096  # of a matrix at a time in float64
_TENSORS = ("W_enc", "b_enc", "W_dec", "b_dec", "b_pre", "threshold", "b_gate", "b_mag", "r_mag", "W_skip")


@dataclass(frozen=True)
class SaeLensForm:
    """What SAELens can hold of an SAE.

    activation: one that SAELens has. tensors: by SAELens' names, but W_enc as here, [F, d_in].
    reads_b_dec: whether b_dec is taken from the input. rescaled: whether decoder norms are left to SAELens.
    notes: a sentence for everything that was folded, or is written as something else.
    """

    architecture: str
    activation: Activation
    tensors: dict[str, Tensor]
    reads_b_dec: bool
    rescaled: bool
    notes: tuple[str, ...]


def fold(sae: SAE) -> SaeLensForm:
    """The form of an SAE. Raises FormatError, which says why, where SAELens has none."""
    notes: list[str] = []
    skip = sae.W_skip is not None
    transcoder = skip or sae.d_in != sae.d_out
    activation = _activation(sae, transcoder, notes)
    row = (type(activation), transcoder, skip)
    architecture = next((name for name, one in ARCHITECTURES.items() if one == row), None)
    signed = isinstance(activation, TopK) and not activation.relu
    if architecture is None or signed:
        lacks = "TopK without a ReLU" if signed else type(activation).__name__
        lacks += " transcoders" if transcoder and not signed else ""
        raise FormatError(
            f"sae: got {sae}, need an architecture of SAELens, which has none for {lacks}: {', '.join(ARCHITECTURES)}"
        )
    _check_normalization(sae, transcoder)
    told = sae.metadata
    moves = told is not None and None not in (told.reads, told.writes) and told.reads != told.writes
    if moves and not transcoder:
        notes.append(f"a transcoder of equal widths is written as {architecture!r}: the same function of what it reads")
    factor = sae.normalization.factor if isinstance(sae.normalization, Scale) else 1.0
    # Its classes with a k rescale themselves, but by the norms of a W_dec that our scale is folded into.
    rescaled = sae.rescale_by_decoder_norm and isinstance(activation, TopK | AbsTopK) and factor == 1.0
    reads_b_dec = sae.pre_bias_kind == "b_dec" and not transcoder
    work = _Folding(sae, notes)
    if sae.pre_bias is not None and not reads_b_dec:
        work.pre_bias(sae.pre_bias)
    if sae.rescale_by_decoder_norm and not rescaled:
        work.decoder_norms()
    if isinstance(sae.activation, Gated) and not isinstance(activation, Gated):
        work.gates()
    if factor != 1.0:
        work.scale(factor)
    return SaeLensForm(architecture, activation, work.tensors(), reads_b_dec, rescaled, tuple(notes))


def _activation(sae: SAE, transcoder: bool, notes: list[str]) -> Activation:
    """The same function by a name that SAELens has, if there is one."""
    own = sae.activation
    k, all_of_them = getattr(own, "k", None), sae.n_latents
    same: Activation = own
    if isinstance(own, BatchTopK) or (isinstance(own, Gated) and transcoder):
        same = JumpReLU()
    elif isinstance(own, GroupMax) and k in (1, all_of_them):
        same = ReLU() if k == all_of_them else TopK(1)
    elif isinstance(own, TopK) and k == all_of_them and not (own.relu and not transcoder):
        same = ReLU() if own.relu else AbsTopK(own.k)
    if same != own:
        lost = f"; its k, {own.k:g}, is a record and is not kept" if isinstance(own, BatchTopK) and own.k else ""
        notes.append(f"{own} is written as {same}, here the same function{lost}")
    return same


def _check_normalization(sae: SAE, transcoder: bool) -> None:
    if isinstance(sae.normalization, LayerNorm) and sae.normalization != LAYER_NORM:
        raise FormatError(f"sae: got {sae.normalization}, need {LAYER_NORM}: SAELens' config has no field for eps")
    if transcoder and sae.normalization is not None and not isinstance(sae.normalization, Scale):
        raise FormatError(
            f"sae: got {sae.normalization} in a transcoder, need none: SAELens does not undo it on its outputs"
        )


class _Folding:
    """An SAE's tensors on their way: vectors in float64, matrices with what their rows are yet to be multiplied by."""

    def __init__(self, sae: SAE, notes: list[str]) -> None:
        self.sae, self.notes = sae, notes
        # By attribute, not from the state_dict: a live SAE has its object's.
        found = {name: getattr(sae, name, None) for name in _TENSORS}
        self._state = {name: value.detach() for name, value in found.items() if value is not None}
        self._vectors = {name: value.double() for name, value in self._state.items() if value.dim() < 2}
        self._vectors.pop("b_pre", None)
        if isinstance(sae.activation, BatchTopK):
            self._vectors["threshold"] = self._vectors["threshold"].expand(sae.n_latents)
        self._encoder: Tensor | float = 1.0
        self._decoder: Tensor | float = 1.0

    def pre_bias(self, bias: Tensor) -> None:
        """(x - bias) W + b = x W + (b - bias W)."""
        rows = self._state["W_enc"].split(_ROWS)
        shift = torch.cat([part.double() @ bias.detach().double() for part in rows])
        names = ("b_gate", "b_mag") if isinstance(self.sae.activation, Gated) else ("b_enc",)
        for name in names:
            gain = self._vectors["r_mag"].exp() if name == "b_mag" else 1.0
            self._vectors[name] = self._vectors[name] - gain * shift
        what = "b_pre" if self.sae.b_pre is not None else "b_dec, which SAELens' transcoders do not subtract,"
        self.notes.append(f"{what} is folded into {' and '.join(names)}")

    def decoder_norms(self) -> None:
        """Pre-activations times the norms, codes divided by them: rows of the encoder, and rows of norm 1 to decode."""
        norms = torch.cat([part.double().norm(dim=1) for part in self._state["W_dec"].split(_ROWS)])
        self._vectors["b_enc"] = self._vectors["b_enc"] * norms
        self._encoder = norms
        self._decoder = torch.where(norms > 0, norms, 1.0)  # a row of zeros stays one
        self.notes.append("decoder norms are folded into W_enc, b_enc and W_dec")

    def gates(self) -> None:
        """s + b_gate > 0 where exp(r_mag) s + b_mag > b_mag - exp(r_mag) b_gate, as exp(r_mag) > 0."""
        gains = self._vectors.pop("r_mag").exp()
        gate, magnitude = self._vectors.pop("b_gate"), self._vectors.pop("b_mag")
        if not bool(((gains > 0) & gains.isfinite()).all()):
            raise FormatError("sae: exp(r_mag) of a latent is 0 or infinite, need a finite one to fold the gates")
        self._vectors["b_enc"], self._vectors["threshold"] = magnitude, magnitude - gains * gate
        self._encoder = gains
        self.notes.append("gates are folded into W_enc, b_enc and threshold")

    def scale(self, factor: float) -> None:
        """The input times a factor, the output divided by it."""
        self._encoder, self._decoder = self._encoder * factor, self._decoder * factor
        self._vectors["b_dec"] = self._vectors["b_dec"] / factor
        self.notes.append(f"the scale of the input, {factor:g}, is folded into W_enc, W_dec and b_dec")

    def tensors(self) -> dict[str, Tensor]:
        """Rounded to the dtype that each had; what was not folded is as it was. Raises FormatError for an overflow."""
        dtype = self._state["W_enc"].dtype
        made = {name: value for name, value in self._state.items() if value.dim() == 2}
        for name, value in self._vectors.items():
            # Thresholds beside half weights stay in float32, as in files that are read.
            new = torch.promote_types(dtype, torch.float32) if name == "threshold" else dtype
            made[name] = value.to(self._state[name].dtype if name in self._state else new)
        made["W_enc"] = _rows(made["W_enc"], lambda part, by: part * by, self._encoder)
        made["W_dec"] = _rows(made["W_dec"], lambda part, by: part / by, self._decoder)
        for name, value in made.items():
            if not bool(value.isfinite().all()) and bool(self._state.get(name, value.new_zeros(1)).isfinite().all()):
                raise FormatError(f"sae: {name} does not fit into {value.dtype} once it is folded; give another dtype")
        if self.notes and dtype.itemsize < 4:
            self.notes.append(f"what is folded is rounded to {str(dtype).removeprefix('torch.')}")
        return made


def _rows(matrix: Tensor, operation: Callable[[Tensor, Tensor | float], Tensor], by: Tensor | float) -> Tensor:
    """The matrix after an operation with a number, or one for each row, in float64, some rows at a time."""
    if isinstance(by, float) and by == 1.0:
        return matrix
    made = torch.empty_like(matrix)
    for start in range(0, len(matrix), _ROWS):
        rows = slice(start, start + _ROWS)
        made[rows] = operation(matrix[rows].double(), by if isinstance(by, float) else by[rows, None]).to(matrix.dtype)
    return made
