"""What a replacement costs beside what it replaces: parameters, and flops per token."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from saekernels.eval.passes.head_kinds import Head
from saekernels.eval.studies.crosslayer.subject import Subject
from saekernels.splice.sites import Site, resolve_site


def replaced(model: nn.Module, head: Head, sites: Sequence[str], ids: Tensor) -> dict[str, int]:
    """Parameters and flops per token of the modules that run between what is read and what is written at each site.

    Flops are two for each number of a weight of two dimensions or more, as if each token met all of it.
    """
    places = [resolve_site(model, site) for site in sites]
    open_now: set[str] = set()
    met: dict[int, nn.Module] = {}

    def leaf(module: nn.Module, args: Any, output: Any) -> None:
        if open_now:
            met[id(module)] = module

    holds = [one for one in model.modules() if not list(one.children()) and list(one.parameters(recurse=False))]
    handles = [module.register_forward_hook(leaf) for module in holds]
    for site in places:
        handles += _open_and_close(site, open_now)
    try:
        head.body(ids)
    finally:
        for handle in handles:
            handle.remove()
    parameters = {id(one): one for module in met.values() for one in module.parameters(recurse=False)}
    return {
        "parameters": sum(one.numel() for one in parameters.values()),
        "flops_per_token": 2 * sum(one.numel() for one in parameters.values() if one.ndim > 1),
    }


def _open_and_close(site: Site, open_now: set[str]) -> list[Any]:
    handles = []
    for end, act in ((site.read, open_now.add), (site.write, open_now.discard)):

        def come(*_: Any, act: Any = act) -> None:
            act(site.name)

        # Behind the hooks of the modules themselves: one whose output is read is not replaced, one whose output is
        # written is.
        register = end.module.register_forward_pre_hook if end.is_input else end.module.register_forward_hook
        handles.append(register(come))
    return handles


def replacement(subject: Subject, l0: Sequence[float]) -> dict[str, float]:
    """Parameters and flops per token of a replacement whose layers have `l0` active latents: encoders dense."""
    flops = 0.0
    for number, (d_in, d_out) in enumerate(subject.widths()):
        flops += 2 * subject.layer(number).n_latents * d_in
        flops += 2 * l0[number] * sum(one for _, one in subject.widths()[number : number + subject.targets(number)])
        flops += 2 * d_in * d_out if subject.has_skip else 0
    return {"parameters": sum(one.numel() for one in subject.module.parameters()), "flops_per_token": flops}


def affine(subject: Subject, ranks: Sequence[int], run: str) -> dict[str, int]:
    """Parameters and flops per token of affine maps of these ranks, of the run of that name."""
    parameters = flops = width = 0
    across = "across" in run
    if "shared" in run:
        whole = sum(d_in + d_out for d_in, d_out in subject.widths())
        biases = sum(d_out for _, d_out in subject.widths())
        return {"parameters": ranks[0] * whole + biases, "flops_per_token": 2 * ranks[0] * whole}
    for (d_in, d_out), rank in zip(subject.widths(), ranks, strict=True):
        width = width + d_in if across else d_in
        parameters += rank * (width + d_out) + d_out
        flops += 2 * rank * (width + d_out)
    return {"parameters": parameters, "flops_per_token": flops}


def equal_ranks(subject: Subject) -> list[int]:
    """Of each layer the rank of an affine map with its share of the replacement's parameters, full rank at most."""
    total = sum(one.numel() for one in subject.module.parameters())
    widths = subject.widths()
    whole = sum(d_in + d_out for d_in, d_out in widths)
    return [max(1, min(total // whole, d_in, d_out)) for d_in, d_out in widths]
