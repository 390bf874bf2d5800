"""What goes in at one site of a splice: a reconstruction, zeros, a mean or a function's value, checked to fit."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Literal, cast

import torch
from torch import Tensor, nn

from saekernels.splice.sites import Site, fold_heads, module_widths, require_width, resolve_site

if TYPE_CHECKING:
    from saekernels.sae.codes import Codes
    from saekernels.sae.module import SAE

Mode = Literal["sae", "zero", "mean", "function"]
Function = Callable[["Tensor", "Tensor"], "Tensor"]


@dataclasses.dataclass(frozen=True)
class Replacement:
    """What happens at one site."""

    site: Site
    sae: SAE | None
    mode: Mode
    mean: Tensor | None
    function: Function | None = None

    def widths(self) -> tuple[int | None, int | None]:
        """Width that is read and width that is replaced, where the SAE or the mean fixes them."""
        if self.sae is not None:
            return self.sae.d_in, self.sae.d_out
        width = None if self.mean is None else self.mean.shape[0]
        return (None if self.site.reads_input and not self.site.writes_input else width), width

    def check_widths(self, width_in: int | None, width_out: int | None, where: str) -> None:
        """ValueError unless the widths of the module's input and output, where known, are those needed here."""
        d_in, d_out = self.widths()
        given = "the mean" if self.sae is None else "the SAE"
        require_width(self.site, f"what {given} reads", d_in, width_in if self.site.reads_input else width_out, where)
        require_width(self.site, f"what {given} gives", d_out, width_in if self.site.writes_input else width_out, where)

    def fit(self, x: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """The activations with attention heads folded where the SAE needs it; ValueError if they do not fit."""
        d_in, d_out = self.widths()
        x, target = fold_heads(x, d_in), fold_heads(target, d_out)
        where = f"activation of shape {tuple(target.shape)}"
        if self.site.reads_input and not self.site.writes_input:
            where = f"input of shape {tuple(x.shape)}, output of shape {tuple(target.shape)}"
        self.check_widths(x.shape[-1], target.shape[-1], where)
        if x.shape[:-1] != target.shape[:-1]:
            raise ValueError(
                f"site {self.site.name!r}: the input has shape {tuple(x.shape)} but the output {tuple(target.shape)}; "
                "their positions must agree"
            )
        return x, target

    def reconstruct(self, x: Tensor, target: Tensor) -> tuple[Tensor, Codes | None]:
        """The replacement on ``target``'s device, in the SAE's or the mean's dtype, and the codes."""
        if self.mode == "zero":
            return torch.zeros_like(target), None
        if self.mode == "mean":
            mean = cast(Tensor, self.mean).to(target.device)
            return mean.expand(target.shape).contiguous(), None
        if self.function is not None:
            made = self.function(x, target)
            if not isinstance(made, Tensor) or made.shape != target.shape:
                got = tuple(made.shape) if isinstance(made, Tensor) else type(made).__name__
                raise ValueError(f"site {self.site.name!r}: its function gave {got}, need shape {tuple(target.shape)}")
            return made.to(target.device), None
        sae = cast("SAE", self.sae)
        device = sae.W_dec.device
        with _autocast_off(device.type):
            x_hat, codes = sae.forward_with_codes(x.to(device, sae.W_dec.dtype))
        return x_hat.to(target.device), codes


def with_error(x_hat: Tensor, target: Tensor) -> Tensor:
    """x_hat + (target - x_hat) in at least fp32, the error being a constant for autograd."""
    wide = torch.promote_types(torch.promote_types(x_hat.dtype, target.dtype), torch.float32)
    x_hat = x_hat.to(wide)
    return x_hat + (target.to(wide) - x_hat).detach()


def _autocast_off(device_type: str) -> contextlib.AbstractContextManager[Any]:
    if torch.amp.is_autocast_available(device_type):
        return torch.autocast(device_type, enabled=False)
    return contextlib.nullcontext()


def plan_replacement(
    model: nn.Module, name: str, sae: SAE | Function | None, mode: Mode, means: Mapping[str, Tensor]
) -> Replacement:
    """The replacement for one site, with everything checked that can be known before a forward pass."""
    site = resolve_site(model, name)
    if mode == "function":
        if not callable(sae):
            raise TypeError(f"sites: {name!r} needs a function (x, target) -> tensor, got {type(sae).__name__}")
        return Replacement(site, None, mode, None, sae)
    if sae is None and mode == "sae":
        raise ValueError(f'sites: {name!r} has no SAE, which replace="sae" needs')
    missing = [key for key in ("d_in", "d_out", "W_dec", "forward_with_codes") if not hasattr(sae, key)]
    if sae is not None and missing:
        raise TypeError(f"sites: {name!r} needs a saekernels.SAE, got {type(sae).__name__} without {missing[0]}")
    sae = cast("SAE | None", sae)
    if sae is not None and sae.d_in != sae.d_out and site.reads_input == site.writes_input:
        raise ValueError(
            f"site {name!r}: an SAE that reads and replaces the same activation needs d_in == d_out, got {sae.d_in} "
            f"and {sae.d_out}; a transcoder goes to 'path@module'"
        )
    mean = _mean(name, means) if mode == "mean" else None
    if sae is not None and mean is not None:
        require_width(site, "d_out of the SAE", sae.d_out, mean.shape[0], "its mean")
    replacement = Replacement(site, sae, mode, mean)
    replacement.check_widths(*module_widths(site.module), f"the {type(site.module).__name__} there")
    return replacement


def _mean(name: str, means: Mapping[str, Tensor]) -> Tensor:
    if name not in means:
        raise ValueError(f"means: no mean for site {name!r}; got {sorted(means)}")
    mean = means[name]
    if not isinstance(mean, Tensor) or not mean.is_floating_point():
        raise TypeError(f"means: {name!r} needs a floating-point tensor, got {getattr(mean, 'dtype', type(mean))}")
    if mean.ndim != 1:
        raise ValueError(f"means: {name!r} needs shape [d_out], got {tuple(mean.shape)}")
    return mean
