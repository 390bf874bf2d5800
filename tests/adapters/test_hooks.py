"""Hooks, error terms and latents changed by hand on accelerated objects: what they see and do is as without."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import saekernels as sk
from live_saes import D, F, NothingWide, close, made

pytestmark = pytest.mark.peers


LENS = ["lens topk", "lens jumprelu", "lens standard", "lens gated", "lens topk, constant norm"]


@pytest.mark.parametrize("name", LENS)
def test_hooks_on_latents_get_and_may_change_them(name: str) -> None:
    theirs, ours = made(name), sk.accelerate(made(name))
    x = torch.randn(6, D)
    found = []
    for module in (theirs, ours):
        seen: list[Tensor] = []

        def keep(value: Tensor, hook: Any, seen: list[Tensor] = seen) -> None:
            seen.append(value.detach().clone())

        def change(value: Tensor, hook: Any) -> Tensor:
            return value * 2.0

        with torch.no_grad():
            hooks = [("hook_sae_acts_pre", keep), ("hook_sae_acts_post", keep), ("hook_sae_recons", keep)]
            out = module.run_with_hooks(x, fwd_hooks=hooks)
            changed = module.run_with_hooks(x, fwd_hooks=[("hook_sae_acts_post", change)])
            _, cache = module.run_with_cache(x)
        found.append([out, changed, *seen, *(cache[key] for key in sorted(cache))])
    for ours_found, want in zip(found[1], found[0], strict=True):
        close(ours_found, want)


@pytest.mark.parametrize("name", LENS)
def test_hooks_around_the_latents_stay_on_the_fast_way(name: str) -> None:
    theirs, ours = made(name), sk.accelerate(made(name))
    x = torch.randn(400, D)
    hooks = [(at, lambda value, hook: value + 0.1) for at in ("hook_sae_input", "hook_sae_recons", "hook_sae_output")]
    with torch.no_grad():
        wanted = theirs.run_with_hooks(x, fwd_hooks=hooks)
        ours.run_with_hooks(x, fwd_hooks=hooks)
        with NothingWide(400 * F):
            found = ours.run_with_hooks(x, fwd_hooks=hooks)
    close(found, wanted)


@pytest.mark.parametrize("hooked", [False, True])
@pytest.mark.parametrize("name", LENS)
def test_the_error_term(name: str, hooked: bool) -> None:
    theirs, ours = made(name), sk.accelerate(made(name))
    x = torch.randn(6, D)
    found = []
    for module in (theirs, ours):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            module.use_error_term = True
        hooks = [("hook_sae_recons", lambda value, hook: value * 0.5)] if hooked else []
        with torch.no_grad():
            found.append(module.run_with_hooks(x, fwd_hooks=hooks))
    close(found[1], found[0])
    if not hooked:
        close(found[1], x)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
@pytest.mark.parametrize("name", ["lens topk", "lens jumprelu", "dictionary TopK", "dictionary JumpReLU", "bench topk"])
def test_latents_changed_by_hand_are_decoded_as_changed(name: str, mode: Any) -> None:
    theirs, ours = made(name), sk.accelerate(made(name))
    x = torch.randn(6, D)
    with mode():
        changes: list[Callable[[Tensor], Any]] = [
            lambda z: z,
            lambda z: z.mul_(2.0) if not z.requires_grad else z * 2.0,
            lambda z: z.index_fill(-1, torch.tensor([3]), 4.0),
            lambda z: z[:2],
            lambda z: z.clone(),
            lambda z: torch.zeros_like(z),
        ]
        for change in changes:
            own, other = ours.encode(x), theirs.encode(x)
            first, second = change(own), change(other)
            close(ours.decode(first), theirs.decode(second))
        own = ours.encode(x).detach()
        own[:, 5] = 1.0
        other = theirs.encode(x).detach()
        other[:, 5] = 1.0
        close(ours.decode(own), theirs.decode(other))


def test_gradients_of_latents_are_there_for_who_asks() -> None:
    for name in ("lens topk", "lens jumprelu", "dictionary TopK", "bench gated"):
        found = []
        for module in (made(name), sk.accelerate(made(name))):
            latents = module.encode(torch.ones(4, D) * 0.7)
            latents.retain_grad()
            module.decode(latents).square().sum().backward()
            found.append(latents.grad)
        close(found[1], found[0], atol=1e-4)
