"""The weights and settings of a live object of another tool, as the encoders and the decoder of this library want them.

Latents have to be rows. Where a tool keeps a matrix the other way round, its storage is laid out anew once and the
tool's parameter becomes a view of it: same shape, same values, other strides, no second copy. In a process group
nothing is laid out anew: DDP and FSDP note how a parameter lies, and would go on with gradients or values of the old
place. Columns are copied at every use then.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, distributed, nn

from saekernels.ops import PreparedWeights, decode, decode_csr
from saekernels.ops.prepare import usable
from saekernels.sae.activations import Activation, Normalization
from saekernels.sae.codes import Codes
from saekernels.sae.encoders import ENCODERS
from saekernels.sae.entries import positive
from saekernels.sae.metadata import Metadata


@dataclass(frozen=True)
class Settings:
    """What an object of another tool computes beside its weights, as it is now, in the terms of `SAE`.

    pre_bias: "none", "b_dec" or "separate", then of the parameter at the path b_pre. W_skip: the path of the skip
    connection [d_out, d_in]. rescale: pre-activations are multiplied by the decoder's norms. metadata: what the object
    says of the model that it was trained on. config: the same as its tool would write it, where a reader knows more.
    """

    activation: Activation
    pre_bias: str = "b_dec"
    normalization: Normalization | None = None
    rescale: bool = False
    W_skip: str | None = None
    b_pre: str | None = None
    metadata: Metadata | None = None
    config: dict[str, Any] | None = None


class Rows:
    """One weight matrix, latents as rows. path: "W_enc" or "decoder.weight"; turned: the tool has them as columns."""

    def __init__(self, path: str, turned: bool) -> None:
        self.path, self.turned = path, turned
        self._seen: tuple[Any, ...] | None = None
        self._prepared_for: tuple[Any, ...] | None = None
        self._view: Tensor | None = None
        self._prepared: PreparedWeights | None = None
        self._refilled = False  # FSDP writes gathered values past the version counter

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_seen": None, "_prepared_for": None, "_view": None, "_prepared": None}

    def owner(self, module: nn.Module) -> tuple[nn.Module, str]:
        """The module that holds the parameter, and its name there."""
        parent, _, name = self.path.rpartition(".")
        return (module.get_submodule(parent) if parent else module), name

    def lay(self, module: nn.Module) -> None:
        """Make the parameter one whose latents are contiguous rows, if it is not yet and may be moved."""
        owner, name = self.owner(module)
        parameter = owner._parameters.get(name)
        if type(parameter) is not nn.Parameter or parameter.device.type == "meta" or _shared():
            return
        if self.turned and not parameter.t().is_contiguous():
            parameter.data = parameter.data.t().contiguous().t()
        elif not self.turned and not parameter.is_contiguous():
            parameter.data = parameter.data.contiguous()

    def restore(self, module: nn.Module) -> None:
        """Give the parameter its own contiguous storage back."""
        owner, name = self.owner(module)
        parameter = owner._parameters.get(name)
        if self.turned and parameter is not None and not parameter.is_contiguous() and not _shared():
            parameter.data = parameter.data.contiguous()

    def look(self, module: nn.Module) -> tuple[Any, int]:
        """(the tool's own parameter, d); nothing is moved or copied."""
        owner, name = self.owner(module)
        parameter = getattr(owner, name)
        return parameter, parameter.shape[0 if self.turned else 1]

    def get(self, module: nn.Module) -> Tensor:
        """[F, d], differentiable where the parameter is."""
        owner, name = self.owner(module)
        if not torch.compiler.is_compiling():
            self.lay(module)
        parameter = getattr(owner, name)
        self._refilled = "_is_fsdp_managed_module" in vars(owner)
        if not self.turned:
            return parameter
        rows = parameter.t()
        if (torch.is_grad_enabled() and parameter.requires_grad) or not rows.is_contiguous():
            return rows.contiguous()
        now = (id(parameter), parameter.data_ptr(), parameter.stride(), parameter.dtype)
        if self._view is None or now != self._seen or torch.compiler.is_compiling():
            self._seen, self._view, self._prepared = now, parameter.detach().t(), None
        return self._view

    def read(self, module: nn.Module) -> Tensor:
        """[F, d] as `get`, and the parameter left as it lies: columns are copied, and again after a change."""
        owner, name = self.owner(module)
        parameter = getattr(owner, name)
        if not self.turned:
            return parameter
        if torch.is_grad_enabled() and parameter.requires_grad:
            return parameter.t()
        version = None if parameter.is_inference() else parameter._version
        now = (id(parameter), version, parameter.data_ptr(), parameter.stride(), parameter.dtype, parameter.device)
        if self._view is None or now != self._seen or version is None:
            # An inference tensor could not be used where gradients pass to the input.
            with torch.inference_mode(False):
                self._seen, self._view, self._prepared = now, parameter.detach().t().contiguous(), None
        return self._view

    def prepared(self, rows: Tensor) -> PreparedWeights | None:
        """`saekernels.prepare` of what `get` gave, from its second use without a change on; as `SAE.prepared`."""
        if (torch.is_grad_enabled() and rows.requires_grad) or self._refilled or not usable(rows):
            return None
        if self.turned and rows is not self._view:
            return None
        now = (id(rows), rows._version, rows.data_ptr())
        if self._prepared_for != now:
            self._prepared_for, self._prepared = now, None
        elif self._prepared is None:
            self._prepared = PreparedWeights(rows)
        return self._prepared


def _shared() -> bool:
    """Whether there is a process group, so that a parameter's place may be noted elsewhere."""
    return distributed.is_available() and distributed.is_initialized()


class LiveWeights:
    """What `saekernels.sae.encoders` and the decoders need, read from the live object at every use.

    biases: role -> path, of b_enc, b_dec, threshold, b_gate, b_mag, r_mag; what is not there is None.
    """

    def __init__(self, W_enc: Rows, W_dec: Rows, biases: dict[str, str]) -> None:
        self._enc, self._dec, self._biases = W_enc, W_dec, biases

    def lay(self, module: nn.Module) -> None:
        """Lay out both matrices with latents as rows; parameters become views where they were not."""
        for rows in (self._enc, self._dec):
            rows.lay(module)

    def restore(self, module: nn.Module) -> None:
        """Undo `lay`: both matrices are contiguous again, as the tool had them."""
        for rows in (self._enc, self._dec):
            rows.restore(module)

    @property
    def turned(self) -> list[str]:
        """Paths of the parameters that became views."""
        return [rows.path for rows in (self._enc, self._dec) if rows.turned]

    def again(self) -> LiveWeights:
        """The same paths, with nothing remembered."""
        enc, dec = (Rows(rows.path, rows.turned) for rows in (self._enc, self._dec))
        return LiveWeights(enc, dec, self._biases)

    def look(self, module: nn.Module) -> tuple[Any, int]:
        """(the tool's own parameter of the encoder, d_in); nothing is moved or copied."""
        return self._enc.look(module)

    def rows(self, module: nn.Module, name: str) -> Tensor:
        """W_enc [F, d_in] or W_dec [F, d_out], by that name, and the object left as it is."""
        return (self._enc if name == "W_enc" else self._dec).read(module)

    def vector(self, module: nn.Module, role: str) -> Tensor | None:
        """A bias or threshold; None where the object has none in that role."""
        path = self._biases.get(role)
        value: Any = module
        for part in path.split(".") if path else ():
            value = getattr(value, part)
        return value if path else None

    def prepared(self, W_enc: Tensor) -> PreparedWeights | None:
        """W_enc prepared for the encoders, from its second use without a change on, or None."""
        return self._enc.prepared(W_enc)

    def of(self, module: nn.Module, rescale: bool = False) -> CurrentWeights:
        """The weights as they are now."""
        return CurrentWeights(self, module, rescale)


class CurrentWeights:
    """Weights at one call; what `saekernels.sae.encoders` reads."""

    pre_bias: Tensor | None = None
    # Read at the first use, by __getattr__.
    W_dec: Tensor
    b_enc: Tensor | None
    b_dec: Tensor | None
    threshold: Tensor | None
    b_gate: Tensor
    b_mag: Tensor
    r_mag: Tensor

    def __init__(self, live: LiveWeights, module: nn.Module, rescale: bool) -> None:
        self.live, self.module, self.rescale_by_decoder_norm = live, module, rescale
        self.W_enc = live._enc.get(module)
        self.n_latents, self.d_in = self.W_enc.shape

    def __getattr__(self, name: str) -> Any:
        if name == "W_dec":
            self.W_dec = self.live._dec.get(self.module)
            return self.W_dec
        if name not in ("b_enc", "b_dec", "threshold", "b_gate", "b_mag", "r_mag"):
            raise AttributeError(name)
        return self.live.vector(self.module, name)

    def decoder_norms(self) -> Tensor:
        """[F], the Euclidean norms of the decoder's rows."""
        norms: Tensor = self.W_dec.norm(dim=1)
        return norms

    def prepared(self) -> PreparedWeights | None:
        """W_enc prepared for the encoders, from its second use without a change on, or None; as `SAE.prepared`."""
        return self.live.prepared(self.W_enc)

    def encode(self, x: Tensor, activation: Activation) -> Codes:
        """Codes of x [..., d_in], from which the tool has taken its biases already."""
        values, indices, offsets = ENCODERS[type(activation)](self, x, activation)
        return Codes(values, indices, offsets, x.shape[:-1], self.n_latents)

    def decode(self, codes: Codes, bias: Tensor | None = None) -> Tensor:
        """[..., d_out]: the active rows of W_dec summed, and the bias."""
        values = codes.values
        if self.rescale_by_decoder_norm:
            values = (values / positive(self.decoder_norms())[codes.indices.long()]).to(values.dtype)
        if codes.offsets is None:
            return decode(values, codes.indices, self.W_dec, bias)
        out = decode_csr(values, codes.indices, codes.offsets, self.W_dec, bias)
        return out.view(*codes.shape, out.shape[-1])
