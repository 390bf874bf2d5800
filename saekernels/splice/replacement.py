"""What goes in at one site of a splice: a reconstruction, zeros, a mean or a function's value, checked to fit."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Literal, cast

import torch
from torch import Tensor, nn

from saekernels.errors import InputError
from saekernels.splice.given import as_sae
from saekernels.splice.sites import Site, module_widths, part_of, require_width, resolve_site

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
        return (width if self.site.same else None), width

    def check_widths(self, width_in: int | None, width_out: int | None, where: str) -> None:
        """InputError unless the widths of what is read and what is replaced, where known, are those needed here."""
        d_in, d_out = self.widths()
        given = "the mean" if self.sae is None else "the SAE"
        require_width(self.site, f"what {given} reads", d_in, width_in, where)
        require_width(self.site, f"what {given} gives", d_out, width_out, where)

    def check_modules(self) -> None:
        """As `check_widths`, by what the modules' classes say of their widths; heads and streams say nothing there."""
        for end, width, what in zip((self.site.read, self.site.write), self.widths(), ("reads", "gives"), strict=True):
            own = None if end.part else module_widths(end.module)[0 if end.is_input else 1]
            given = "the mean" if self.sae is None else "the SAE"
            require_width(self.site, f"what {given} {what}", width, own, f"the {type(end.module).__name__} there")

    def fit(self, x: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """What is read and what is replaced, as [..., width] each; InputError if they do not fit."""
        d_in, d_out = self.widths()
        read, written = part_of(self.site, self.site.read, x, d_in), part_of(self.site, self.site.write, target, d_out)
        where = f"activation of shape {tuple(target.shape)}"
        if not self.site.same:
            where = f"input of shape {tuple(read.shape)}, output of shape {tuple(written.shape)}"
        self.check_widths(read.shape[-1], written.shape[-1], where)
        if read.shape[:-1] != written.shape[:-1]:
            raise InputError(
                f"site {self.site.name!r}: the input has shape {tuple(read.shape)} but the output "
                f"{tuple(written.shape)}; their positions must agree"
            )
        return read, written

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
                raise InputError(f"site {self.site.name!r}: its function gave {got}, need shape {tuple(target.shape)}")
            return made.to(target.device), None
        sae = cast("SAE", self.sae)
        device = sae.W_dec.device
        with autocast_off(device.type):
            x_hat, codes = sae.forward_with_codes(x.to(device, sae.W_dec.dtype))
        return x_hat.to(target.device), codes


def with_error(x_hat: Tensor, target: Tensor) -> Tensor:
    """x_hat + (target - x_hat) in at least fp32, the error being a constant for autograd."""
    wide = torch.promote_types(torch.promote_types(x_hat.dtype, target.dtype), torch.float32)
    x_hat = x_hat.to(wide)
    return x_hat + (target.to(wide) - x_hat).detach()


def autocast_off(device_type: str) -> contextlib.AbstractContextManager[Any]:
    """SAEs compute in their own dtype, whatever the model around them does."""
    # Compiled code of torch 2.11 cannot ask; a device that has no autocast is then told of by torch itself.
    compiled = torch.compiler.is_compiling()
    known = (device_type != "meta") if compiled else torch.amp.is_autocast_available(device_type)
    return torch.autocast(device_type, enabled=False) if known else contextlib.nullcontext()


def plan_replacement(model: nn.Module, name: str, sae: Any, mode: Mode, means: Mapping[str, Tensor]) -> Replacement:
    """The replacement for one site, with everything checked that can be known before a forward pass."""
    site = resolve_site(model, name)
    if mode == "function":
        if not callable(sae):
            raise TypeError(f"sites: {name!r} needs a function (x, target) -> tensor, got {type(sae).__name__}")
        return Replacement(site, None, mode, None, sae)
    if sae is None and mode == "sae":
        raise ValueError(f'sites: {name!r} has no SAE, which replace="sae" needs')
    sae = cast("SAE | None", as_sae(sae, model, name, "sites"))
    site = _at_its_head(site, sae)
    if sae is not None and sae.d_in != sae.d_out and site.same:
        raise ValueError(
            f"site {name!r}: an SAE that reads and replaces the same activation needs d_in == d_out, got {sae.d_in} "
            f"and {sae.d_out}; a transcoder goes to 'path@module' or 'READ -> WRITE'"
        )
    if mode == "sae" and getattr(sae, "keep_error", False) and not site.same:
        raise ValueError(f"site {name!r}: edits with keep_error=True need a site that reads what it replaces")
    mean = _mean(name, means) if mode == "mean" else None
    if sae is not None and mean is not None:
        require_width(site, "d_out of the SAE", sae.d_out, mean.shape[0], "its mean")
    replacement = Replacement(site, sae, mode, mean)
    replacement.check_modules()
    return replacement


def _at_its_head(site: Site, sae: SAE | None) -> Site:
    """The site at the one attention head that the checkpoint of the SAE was trained on, if it says so."""
    head = getattr(getattr(sae, "metadata", None), "head", None)
    if head is None:
        return site
    named = {end.number for end in (site.read, site.write) if end.part == "head"}
    if named - {head}:
        raise ValueError(f"sites: {site.name!r} names head {named.pop()}, but the SAE there was trained on head {head}")
    at_head = [
        end if end.part else dataclasses.replace(end, part="head", number=head) for end in (site.read, site.write)
    ]
    return Site(site.name, *at_head)


def _mean(name: str, means: Mapping[str, Tensor]) -> Tensor:
    if name not in means:
        raise ValueError(f"means: no mean for site {name!r}; got {sorted(means)}")
    mean = means[name]
    if not isinstance(mean, Tensor) or not mean.is_floating_point():
        raise TypeError(f"means: {name!r} needs a floating-point tensor, got {getattr(mean, 'dtype', type(mean))}")
    if mean.ndim != 1:
        raise ValueError(f"means: {name!r} needs shape [d_out], got {tuple(mean.shape)}")
    return mean
