"""An object of another tool as an `SAE`: the same weights, not a copy of them, and the object left as it is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

from saekernels.adapters import named_weights as plain
from saekernels.adapters import verify
from saekernels.adapters.errors import NotAccelerated
from saekernels.adapters.patch import state_of
from saekernels.adapters.tools import adapter_of
from saekernels.adapters.weights import LiveWeights, Settings
from saekernels.ops import PreparedWeights
from saekernels.sae.module import SAE

_METHODS = ("forward", "encode", "decode")


@dataclass(frozen=True)
class _Known:
    """How an object's weights are reached, and its settings told."""

    weights: LiveWeights
    settings: Callable[[Any], Settings]


class LiveSAE(SAE):
    """An SAE that is another tool's object: weights and settings are read from it at every pass.

    So what is changed of the object later counts from the next pass on: values changed in place, parameters that are
    replaced, another dtype or device, another k; hooks that are added are refused then. Gradients reach the object's
    own parameters. A matrix whose latents are columns is copied once, and again after a change; not of an accelerated
    object, which keeps it as a view of rows. Writes past torch's version counter (`W_enc.data[0] = ...`) are not seen.

    source: the object. config: what its tool would write of it, where that says more than `metadata`; else None.
    """

    source: nn.Module
    config: dict[str, Any] | None

    def __init__(self, source: nn.Module, known: _Known) -> None:
        nn.Module.__init__(self)
        self.source, self._known = source, known
        self._follow()
        told = known.settings(source)
        self.metadata, self.config = told.metadata, told.config

    def _follow(self) -> None:
        """Settings and sizes as they are now. NotAccelerated where the object now computes what is not known."""
        told, module = self._known.settings(self.source), self.source
        _refuse_changed(module)
        self.activation, self.normalization = told.activation, told.normalization
        self.rescale_by_decoder_norm, self.pre_bias_kind = told.rescale, told.pre_bias
        self._paths = {"W_skip": told.W_skip, "b_pre": told.b_pre}
        (self.n_latents, self.d_in), self.d_out = self.W_enc.shape, self.W_dec.shape[1]

    def __getattr__(self, name: str) -> Any:
        if name in ("W_enc", "W_dec"):
            return self._known.weights.rows(self.source, name)
        if name in ("W_skip", "b_pre"):
            path = self._paths[name]
            return None if path is None else plain.value_at(self.source, path)
        if name in ("b_enc", "b_dec", "threshold", "b_gate", "b_mag", "r_mag"):
            return self._known.weights.vector(self.source, name)
        return super().__getattr__(name)

    def prepared(self) -> PreparedWeights | None:
        """As `SAE.prepared`, of the object's matrix or of its copy."""
        return self._known.weights.prepared(self.W_enc)

    def encode(self, x: Any) -> Any:
        """As `SAE.encode`, by what the object holds now."""
        self._follow()
        return super().encode(x)


def live_sae(module: nn.Module) -> LiveSAE:
    """An object of a known tool, or one that was accelerated by its weights' names, as an SAE.

    Its own forward is not called, except once, on eight rows, of a version of its tool that is not known.

    Raises:
        NotAccelerated: a ValueError that says which object cannot be one and why.
    """
    inner = _unwrapped(module)
    tool, state = adapter_of(inner), state_of(inner)
    if tool is not None:
        sae = LiveSAE(inner, _Known(tool.plan(inner).weights, tool.settings))
        _check_version(sae, tool)
        return sae
    if state is not None and state.tool == "plain":
        return LiveSAE(inner, _Known(state.weights.again(), plain.settings))
    raise NotAccelerated(f"{type(inner).__name__}: not an SAE of a known tool")


def is_live(module: nn.Module) -> bool:
    """Whether this is an object of a known tool, or one that was accelerated, served or not."""
    inner = _unwrapped(module)
    return adapter_of(inner) is not None or state_of(inner) is not None


def _unwrapped(module: nn.Module) -> nn.Module:
    """What torch.compile and DataParallel have wrapped: the same parameters, computed in another way."""
    while (inner := module._modules.get("_orig_mod")) is not None or (
        isinstance(module, nn.DataParallel | nn.parallel.DistributedDataParallel)
        and (inner := module.module) is not None
    ):
        module = inner
    return module


def _refuse_changed(module: nn.Module) -> None:
    """NotAccelerated for hooks and replaced methods, which would not run."""
    name = type(module).__name__
    for path, part in module.named_modules():
        if part._forward_hooks or part._forward_pre_hooks or part._backward_hooks or part._backward_pre_hooks:
            raise NotAccelerated(f"{name}: it has hooks{f' at {path!r}' if path else ''}, which would not run")
    replaced = next((one for one in _METHODS if one in module.__dict__), None)
    if replaced is not None and state_of(module) is None:
        raise NotAccelerated(f"{name}: its {replaced!r} was replaced, so its maths is not known")


def _check_version(sae: LiveSAE, tool: Any) -> None:
    version = verify.installed(tool.PACKAGE)
    if verify.is_known(version, tool.VERSIONS) or sae.W_enc.is_meta:
        return
    verify.compare(sae.source, sae)
    verify.warn_of_version(tool.PACKAGE, version, tool.VERSIONS)
