"""What the layers of a cross-layer dictionary hold in a pass that changes nothing, for runs that take it as given."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from saekernels.crosslayer.site import LayerSite
from saekernels.sae.codes import Codes
from saekernels.splice.context import splice
from saekernels.splice.replacement import autocast_off


@dataclass
class Recorded:
    """Of the last pass.

    codes: of each layer; None where it is switched off. errors: layer -> what the model wrote there minus what these
    codes write, [..., d_out] in at least float32. Both as `saekernels.layer_sites` takes them.
    """

    codes: list[Codes | None] = field(default_factory=list)
    errors: dict[int, Tensor] = field(default_factory=dict)


@contextlib.contextmanager
def recording(model: nn.Module, sites: Mapping[str, LayerSite]) -> Iterator[Recorded]:
    """Passes of `model` in this block are its own, bit for bit, and leave what each layer holds in the `Recorded`.

    Args:
        sites: all layers of one dictionary (`saekernels.layer_sites`).

    Raises as `saekernels.splice`.
    """
    found = Recorded([None] * len(sites))

    def look(layer: LayerSite) -> Callable[[Tensor, Tensor], Tensor]:
        def look_on(x: Tensor, y: Tensor) -> Tensor:
            device = layer.W_dec.device
            with autocast_off(device.type):
                x_hat, codes = layer.forward_with_codes(x.to(device, layer.W_dec.dtype))
            wide = torch.promote_types(torch.promote_types(x_hat.dtype, y.dtype), torch.float32)
            found.codes[layer.layer] = codes
            found.errors[layer.layer] = y.to(wide) - x_hat.to(y.device, wide)
            return y

        return look_on

    layers = list(sites.values())
    for layer in layers:
        layer.running.last = len(layers) - 1
    try:
        with splice(model, {name: look(layer) for name, layer in sites.items()}, replace="function"):
            yield found
    finally:
        for layer in layers:
            layer.running.clear()
