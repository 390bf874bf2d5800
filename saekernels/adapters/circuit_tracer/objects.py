"""circuit-tracer's ReplacementModel, of either backend: how it is known, patched and restored."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from typing import Any

import torch
from circuit_tracer.transcoder import TranscoderSet
from circuit_tracer.transcoder.cross_layer_transcoder import CrossLayerTranscoder
from torch import Tensor, nn

from saekernels.adapters.circuit_tracer import backward, components, pruning
from saekernels.adapters.errors import NotAccelerated
from saekernels.adapters.optimizers import Held
from saekernels.adapters.patch import State, install, kind_of, uninstall
from saekernels.adapters.weights import LiveWeights, Rows

PACKAGE, VERSIONS = "circuit-tracer", ("0.5",)
_LOG = logging.getLogger("saekernels")
# Neither backend is imported for the sake of the other: each needs a package that the other does not.
_KINDS = {
    "circuit_tracer.replacement_model.replacement_model_transformerlens": "TransformerLensReplacementModel",
    "circuit_tracer.replacement_model.replacement_model_nnsight": "NNSightReplacementModel",
}


class _Replacement(State):
    """What a replacement model carries; its transcoders carry a state of their own."""

    def attach(self, target: Any) -> None:
        """Patch its transcoders, and the functions that its graphs are pruned with."""
        transcoders = self.sae_of(target)
        methods: dict[str, Any] = {"compute_attribution_components": components.components}
        if isinstance(transcoders, CrossLayerTranscoder):
            methods["decode"] = components.decode
        install(transcoders, State("circuit_tracer", self.weights, methods))
        pruning.hold(target)

    def detach(self, target: Any) -> None:
        """Undo `attach`."""
        uninstall(self.sae_of(target))
        pruning.release(target)

    def sae_of(self, target: Any) -> nn.Module:
        """Its transcoders, out of nnsight's wrapper."""
        found = target.transcoders
        return found if isinstance(found, nn.Module) else found._module

    def trial(self, target: Any) -> Tensor:
        """Token ids, in the dtype that says how near results have to be."""
        return torch.arange(1, 9).to(target.unembed_proj)


def known(module: object) -> bool:
    """Whether this is a replacement model."""
    return any(isinstance(module, kind) for kind in _kinds())


def _kinds() -> Iterator[type]:
    for path, name in _KINDS.items():
        if path in sys.modules:
            yield getattr(sys.modules[path], name)


def classes() -> list[type]:
    """None: a replacement model has its transcoders only after it was made."""
    return []


def held(model: Any) -> Held | None:
    """The model itself, where it is no module of torch's."""
    return None if isinstance(model, nn.Module) else Held([model], [], lambda _: None, [])


def trials(width: int, latents: int, k: int) -> list[Any]:
    """It trains nothing."""
    return []


def settings(module: Any) -> Any:
    """Raises NotAccelerated: it is no SAE."""
    raise NotAccelerated(
        f"{type(module).__name__}: a replacement model is no SAE; read its transcoders from their files"
    )


def plan(module: Any) -> State:
    """How to patch this object. Raises NotAccelerated with the reason where it cannot be."""
    state = _Replacement(
        "circuit_tracer",
        LiveWeights(Rows("W_enc", turned=False), Rows("W_dec", turned=False), {}),
        {"setup_attribution": _setup_attribution, "run_forward_pass": _run_forward_pass},
        _sample,
    )
    if kind_of(module) not in tuple(_kinds()):
        raise NotAccelerated(f"{type(module).__name__}: it is a class of its own, whose maths is not known")
    transcoders = state.sae_of(module)
    if type(transcoders) not in (TranscoderSet, CrossLayerTranscoder):
        raise NotAccelerated(f"transcoders: {type(transcoders).__name__} is not known")
    reason = components.reason_against(transcoders)
    if reason is not None:
        raise NotAccelerated(f"transcoders: {reason}")
    return state


def _setup_attribution(model: Any, inputs: Any) -> Any:
    """The tool's own, on our components, with a context that computes its rows here."""
    own: Any = kind_of(model)
    context = own.setup_attribution(model, inputs)
    hooked = _hooked(model)
    if hooked is not None:
        _LOG.warning("%s: attribution runs the tool's own code: %s", type(model).__name__, hooked)
        return context
    backward.take_over(context, hooks=isinstance(model, nn.Module))
    return context


def _run_forward_pass(model: Any, input_ids: Tensor, batch_size: int, ctx: Any) -> None:
    """One copy of the prompt, where the context is ours."""
    own: Any = kind_of(model)
    own.run_forward_pass(model, input_ids, 1 if backward.is_taken_over(ctx) else batch_size, ctx)


def _hooked(model: Any) -> str | None:
    """Backward hooks of one's own would see gradients of all rows at once. nnsight's models have none."""
    points = vars(model)["hook_dict"].items() if isinstance(model, nn.Module) else ()
    return next((f"a backward hook at {name!r}" for name, point in points if point.bwd_hooks), None)


def _sample(model: Any, ids: Tensor) -> Tensor:
    """Rows of the graph of a few tokens: the effects on what the model predicts after the last and the third."""
    ids = ids.long()
    with torch.enable_grad():
        context = model.setup_attribution(ids)
        model.run_forward_pass(ids, 2, context)
        seeds = model.unembed_proj.reshape(-1)[: 2 * context.token_vectors.shape[1]]
        layers = torch.full((2,), context.n_layers, device=ids.device)
        return context.compute_batch(layers, torch.tensor([7, 2], device=ids.device), seeds.view(2, -1))
