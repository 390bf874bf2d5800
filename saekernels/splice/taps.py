"""Reading a site without replacing anything there: layers whose codes a replaced one needs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from saekernels.crosslayer.running import RunningSums
from saekernels.crosslayer.site import LayerSite
from saekernels.splice.attached import Hooks
from saekernels.splice.replacement import Replacement, autocast_off
from saekernels.splice.sites import Site, part_of, require_width, resolve_site, take_input, take_output


class Taps:
    """Sites of cross-layer dictionaries that are read and not replaced, and the codes of each pass.

    plans: all that is replaced. Layers that these need and that are not among them get a tap.
    """

    def __init__(self, model: nn.Module, plans: Sequence[Replacement]) -> None:
        self._model = model
        # Compared as objects: those made together share one.
        saes: list[Any] = [plan.sae for plan in plans if plan.mode == "sae"]
        self._layers = layers = [one for one in saes if isinstance(one, LayerSite)]
        self._running: list[RunningSums] = list({id(one.running): one.running for one in layers}.values())
        read = {(id(one.running), one.layer) for one in layers if one.reads}
        self._taps: list[tuple[Site, LayerSite]] = []
        for one in layers:
            for name, other in one.before.items() if one.given is None else ():
                if (id(other.running), other.layer) not in read:
                    read.add((id(other.running), other.layer))
                    self._taps.append((resolve_site(model, name), other))

    def attach(self, hooks: Hooks) -> None:
        """Read from now on; after `hooks` of what is replaced at the same modules."""
        if not self._running:
            return
        for one in self._layers:
            one.running.last = max(other.layer for other in self._layers if other.running is one.running)
        for site, layer in self._taps:
            _tap(hooks, site, layer)
        hooks.before(self._model, lambda *_: self.clear())
        hooks.after(self._model, self._end, always_call=True)

    def clear(self) -> None:
        """Let go of all codes."""
        for one in self._running:
            one.clear()

    def _end(self, module: nn.Module, args: Any, output: Any) -> None:
        # With gradients, a block that is recomputed in the backward pass needs them still.
        if not torch.is_grad_enabled():
            self.clear()


def _tap(hooks: Hooks, site: Site, layer: LayerSite) -> None:
    end = site.read

    def read(x: Tensor) -> None:
        x = part_of(site, end, x, layer.d_in)
        require_width(site, "what the layer reads", layer.d_in, x.shape[-1], f"activation of shape {tuple(x.shape)}")
        device = layer.W_dec.device
        with autocast_off(device.type):
            layer.read(x.to(device, layer.W_dec.dtype))

    if end.is_input:

        def see_input(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            read(take_input(site, end, args, kwargs)[0])

        hooks.before(end.module, see_input, with_kwargs=True)
        return

    def see_output(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        read(take_output(site, end, output)[0])

    hooks.after(end.module, see_output)
