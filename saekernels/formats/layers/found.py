"""From the tensors of a dictionary that spans layers to the module: the last step of every reader here."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from saekernels.crosslayer.transcoder import CrossLayerTranscoder
from saekernels.formats.checkpoint import Checkpoint
from saekernels.formats.files import FormatError, Tensors
from saekernels.formats.pickles import as_tensors, read_pt, tensors_of
from saekernels.sae.activations import Activation
from saekernels.sae.metadata import Metadata

_ROWS = 4096  # of a decoder at a time, while it is read and scaled


@dataclass(frozen=True)
class Layer:
    """One layer of a file: views of it, of which nothing has been read that is large.

    state: W_enc [F, d_in], b_enc, b_dec, and where the layer has them threshold and W_skip.
    decoders: [F, targets, d_out]; or a view [F, d_out] for each target, where they do not lie together.
    file: that the decoders lie in, if it is theirs to be mapped from.
    in_scale: what the input is multiplied by; out_scales: what is written is divided by, for each target.
    """

    state: Mapping[str, Tensor]
    decoders: Tensor | Sequence[Tensor]
    activation: Activation
    file: Path | None = None
    in_scale: float = 1.0
    out_scales: tuple[float, ...] | None = None

    @property
    def together(self) -> bool:
        """Whether the decoders can be used where they lie in the file."""
        return isinstance(self.decoders, Tensor) and self.out_scales is None

    def to(self, target: int) -> Tensor:
        """[F, d_out], a view: the decoder to one of the targets."""
        return self.decoders[:, target] if isinstance(self.decoders, Tensor) else self.decoders[target]

    @property
    def shape(self) -> tuple[int, int, int]:
        """[F, targets, d_out] of the decoders."""
        targets = self.decoders.shape[1] if isinstance(self.decoders, Tensor) else len(self.decoders)
        return len(self.state["b_enc"]), targets, self.to(0).shape[1]

    @property
    def stored(self) -> torch.dtype:
        """The dtype of the decoders in the file."""
        return self.to(0).dtype

    def read(self, dtype: torch.dtype, norms: Tensor | None) -> Tensor:
        """[F, targets * d_out]: read, scaled, and divided by norms [F], if there are any; rounded once."""
        n_latents, targets, d_out = self.shape
        made = torch.empty(n_latents, targets * d_out, dtype=dtype)
        divisors = self.out_scales or (1.0,) * targets
        for target, divisor in enumerate(divisors):
            columns = slice(target * d_out, (target + 1) * d_out)
            for start in range(0, n_latents, _ROWS):
                rows = slice(start, start + _ROWS)
                part = self.to(target)[rows]
                if divisor != 1.0 or norms is not None:
                    part = part.double() / (divisor if norms is None else divisor * norms[rows, None])
                made[rows, columns] = part.to(dtype)
        return made

    def norms(self) -> Tensor:
        """[F] in float64: of each latent's rows to all its targets, concatenated, as they are in the file."""
        squares = torch.zeros(self.shape[0], dtype=torch.float64)
        for target in range(self.shape[1]):
            squares += self.to(target).double().square().sum(-1)
        return squares.sqrt()


@dataclass(frozen=True)
class Layers:
    """A cross-layer transcoder in its files.

    sites: where each layer reads and writes, None where the files do not say.
    rescaled: whether pre-activations are multiplied by decoder norms, and codes divided by them.
    across: whether the layers' TopK chooses over all of them together.
    """

    path: Path
    layers: tuple[Layer, ...]
    metadata: Metadata
    sites: tuple[str, ...] | None
    rescaled: bool = False
    across: bool = False

    @property
    def dtype(self) -> torch.dtype:
        """The widest among the tensors, thresholds apart."""
        found = {value.dtype for one in self.layers for name, value in one.state.items() if name != "threshold"}
        return reduce(torch.promote_types, found | {one.stored for one in self.layers})

    @property
    def folds(self) -> bool:
        """Whether decoder norms have to be folded into the weights: what is scaled later has others."""
        return self.rescaled and any(one.out_scales is not None for one in self.layers)

    def mapped(self, layer: Layer, dtype: torch.dtype, device: torch.device) -> bool:
        """Whether a layer's decoders can be used where they lie in the file."""
        return layer.together and layer.stored == dtype and device.type == "cpu"

    def transcoder(self, dtype: torch.dtype | None, device: torch.device, lazy: bool) -> CrossLayerTranscoder:
        """The module, in eval mode. lazy: decoders that can be used where they lie in the file are left there."""
        dtype = dtype or self.dtype
        made = self._module()
        state: dict[str, Tensor] = {}
        for s, layer in enumerate(self.layers):
            norms = layer.norms() if self.folds else None
            if lazy and self.mapped(layer, dtype, device):
                state[f"sources.{s}.W_dec"] = cast(Tensor, layer.decoders).flatten(1)
            else:
                # A row of zeros stays one.
                divisors = None if norms is None else norms.where(norms > 0, 1.0)
                state[f"sources.{s}.W_dec"] = layer.read(dtype, divisors).to(device)
            for name, value in layer.state.items():
                key = f"{name}.{s}" if name in ("b_dec", "W_skip") else f"sources.{s}.{name}"
                if name == "W_enc" and layer.in_scale != 1.0:
                    value = value.double() * layer.in_scale
                if norms is not None and name in ("W_enc", "b_enc"):
                    value = value.double() * (norms[:, None] if name == "W_enc" else norms)
                precise = name == "threshold" and dtype in (torch.bfloat16, torch.float16)
                state[key] = value.to(device, torch.float32 if precise else dtype, copy=True).contiguous()
        made.load_state_dict({name: nn.Parameter(value) for name, value in state.items()}, assign=True)
        for s, layer in enumerate(self.layers):
            if lazy and layer.file is not None and self.mapped(layer, dtype, device):
                made.source(s).lies_in(layer.file)
        made.sites, made.metadata = self.sites, self.metadata
        return made.eval()

    def _module(self) -> CrossLayerTranscoder:
        """The module without values. Raises FormatError where the layers do not go together."""
        first = self.layers[0]
        skips = {"W_skip" in one.state for one in self.layers}
        if len(skips) > 1:
            raise FormatError(f"{self.path}: some layers have a skip connection and others have none, need the same")
        try:
            return CrossLayerTranscoder(
                first.state["W_enc"].shape[1],
                [one.shape[0] for one in self.layers],
                len(self.layers),
                first.activation if self.across else [one.activation for one in self.layers],
                d_out=first.shape[2],
                rescale_by_decoder_norm=self.rescaled and not self.folds,
                skip=skips == {True},
                across_layers=self.across,
                device="meta",
            )
        except ValueError as error:
            raise FormatError(f"{self.path}: {error}") from error


@dataclass(frozen=True)
class Apart:
    """A set of transcoders in its files, each of which writes at its own layer alone.

    sites: where each reads and writes, None where the files do not say.
    """

    path: Path
    checkpoints: tuple[Checkpoint, ...]
    metadata: Metadata
    sites: tuple[str, ...] | None


def tensors_at(path: Path) -> Tensors:
    """The tensors of a safetensors file, or of a torch file by the unpickler that makes nothing else."""
    return Tensors(path) if path.suffix == ".safetensors" else tensors_of(path, as_tensors(path, read_pt(path)))


def numbered(folder: Path, stem: str) -> list[Path]:
    """stem_0.safetensors, stem_1.safetensors and so on. Raises FormatError where one in between is missing."""
    found = {path.stem.rpartition("_")[2]: path for path in folder.glob(f"{stem}_*.safetensors")}
    numbers = sorted(int(number) for number in found if number.isdigit())
    if missing := sorted(set(range(len(numbers))) - set(numbers)):
        raise FormatError(f"{folder}: {stem}_{missing[0]}.safetensors is missing; there are those of layers {numbers}")
    return [found[str(number)] for number in numbers]


def positive_numbers(path: Path, name: str, values: Sequence[float]) -> tuple[float, ...]:
    """Factors. Raises FormatError for one that is not positive and finite."""
    if wrong := [value for value in values if not 0 < value < math.inf]:
        raise FormatError(f"{path}: {name!r} holds {wrong[0]:g}, need positive finite numbers")
    return tuple(float(value) for value in values)
