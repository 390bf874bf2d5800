"""What is read at sites: what plain hooks see, at the wanted positions, in a pass that ends at the last site."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import tiny_lm
from saekernels.training import SiteActivations, matching_sites


def pieces() -> list[tuple[Tensor, Tensor]]:
    torch.manual_seed(0)
    made = [torch.randint(3, 320, (3, 9)), torch.randint(3, 320, (2, 14))]
    return [(ids, torch.rand(ids.shape) < 0.7) for ids in made]


def hooked(name: str, side: str) -> Tensor:
    """[n, d] with plain hooks of torch and whole forward passes."""
    model, seen = tiny_lm.model(), []

    def look(module: Any, args: Any, kwargs: Any, output: Any) -> None:
        given = args[0] if args else kwargs["hidden_states"]
        seen.append(given if side == "input" else output[0] if isinstance(output, tuple) else output)

    model.get_submodule(name).register_forward_hook(look, with_kwargs=True)
    for ids, _ in pieces():
        with torch.no_grad():
            model(ids)
    return torch.cat([value[wanted] for value, (_, wanted) in zip(seen, pieces(), strict=True)])


def test_activations_are_those_that_plain_hooks_see() -> None:
    sites = {
        "model.layers.0": (("model.layers.0", "output"), ("model.layers.0", "output")),
        "model.layers.1@input": (("model.layers.1", "input"), ("model.layers.1", "input")),
        "model.layers.0.mlp@module": (("model.layers.0.mlp", "input"), ("model.layers.0.mlp", "output")),
        "model.layers.0.mlp@input -> model.layers.1.mlp": (
            ("model.layers.0.mlp", "input"),
            ("model.layers.1.mlp", "output"),
        ),
    }
    found = SiteActivations(tiny_lm.model(), list(sites))(pieces())
    for (x, y), (site, (read, write)) in zip(found, sites.items(), strict=True):
        torch.testing.assert_close(x, hooked(*read), msg=site)
        torch.testing.assert_close(y, hooked(*write), msg=site)
        assert (x is y) == (read == write)


def test_the_pass_ends_at_the_last_site_and_leaves_no_hook() -> None:
    model = tiny_lm.model()
    called = []
    for name in ("model.layers.0.mlp", "model.layers.1.self_attn", "model.layers.1.mlp", "lm_head"):
        model.get_submodule(name).register_forward_hook(lambda *_, name=name: called.append(name))
    activations = SiteActivations(model, ["model.layers.1@input", "model.layers.0.mlp@module"])
    activations(pieces())
    assert called == ["model.layers.0.mlp"] * 2
    called.clear()
    with torch.no_grad():
        model(pieces()[0][0])
    assert called == ["model.layers.0.mlp", "model.layers.1.self_attn", "model.layers.1.mlp", "lm_head"]


def test_stars_stand_for_parts_of_names_in_the_models_order() -> None:
    model = tiny_lm.model(num_hidden_layers=11)
    layers = [f"model.layers.{number}" for number in range(11)]
    assert matching_sites(model, ["model.layers.*"]) == layers
    assert matching_sites(model, ["model.layers.?"]) == layers[:10]
    assert matching_sites(model, ["model.layers.1*"]) == [layers[1], layers[10]]
    assert matching_sites(model, ["lm_head", "model.layers.*.mlp@module"])[:2] == [
        "lm_head",
        "model.layers.0.mlp@module",
    ]
    assert matching_sites(model, ["model.layers.?.mlp@input -> model.layers.?.mlp.down_proj@input"])[9] == (
        "model.layers.9.mlp@input -> model.layers.9.mlp.down_proj@input"
    )
    assert matching_sites(model, [layers[3], layers[2]]) == [layers[3], layers[2]]


def test_sites_that_cannot_be_read_are_named() -> None:
    model = tiny_lm.model()
    with pytest.raises(ValueError, match=r"^sites: no module of LlamaForCausalLM fits 'model\.blocks\.\*'$"):
        matching_sites(model, ["model.blocks.*"])
    with pytest.raises(ValueError, match=r"^sites: 'model.layers.\*@' is not a site with \* in its paths"):
        matching_sites(model, ["model.layers.*@"])
    for names in (["model.layers.*", "model.layers.1"], ["model.layers.1@output", "model.layers.1"]):
        with pytest.raises(
            ValueError, match=r"^sites: 'model.layers.1.*' and 'model.layers.1' are one, need each site"
        ):
            matching_sites(model, names)
    late = "model.layers.1 -> model.layers.0.mlp"
    with pytest.raises(ValueError, match=rf"^site '{late}': 'model.layers.0.mlp' came before 'model.layers.1' in"):
        SiteActivations(model, [late])(pieces())
    with pytest.raises(ValueError, match=r"^sites: LlamaForCausalLM has no module 'layers.9'"):
        SiteActivations(model, ["layers.9"])
    with pytest.raises(ValueError, match=r"need \[B, S, width\] with \[B, S\] = \[3, 9\]$"):
        SiteActivations(model, ["model.rotary_emb"])(pieces())
