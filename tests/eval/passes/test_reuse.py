"""Reuse of clean layers: the same bits with it and without, only the work that is needed, and off where it is wrong."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tiny_lm
from saekernels.eval import Document, evaluate
from saekernels.eval.passes.layer_reuse import LayerReuse, Start, check_reuse, find_reuse
from saekernels.eval.passes.plan import Run
from saekernels.sae.activations import TopK
from saekernels.sae.module import SAE
from splice_helpers import tiny_model

DOCUMENTS = [Document(tiny_lm.PARAGRAPH[i * 20 :], "prose") for i in range(3)] + [Document(tiny_lm.CODE, "code")]
MIXED = {
    "model.layers.1": lambda: tiny_lm.sae(1),
    "model.layers.0.mlp@module": lambda: SAE(32, 64, TopK(8), pre_bias="none"),
    "model.layers.1.self_attn.o_proj@input": lambda: tiny_lm.sae(2),
    "model.layers.1@input": lambda: tiny_lm.sae(3),
    "model.embed_tokens": lambda: tiny_lm.sae(4),
}


def run(model: nn.Module, saes: dict[str, SAE], **options: Any) -> dict[str, Any]:
    return evaluate(model, tiny_lm.tokenizer(), saes, DOCUMENTS, bootstrap=20, **options).to_dict()


@pytest.mark.parametrize("sites", [list(MIXED), *([site] for site in MIXED)])
def test_the_figures_have_the_same_bits(sites: list[str]) -> None:
    saes = {site: MIXED[site]() for site in sites}
    kept, computed = (run(tiny_lm.trained_model(), saes, reuse_layers=reuse) for reuse in (True, False))
    assert kept.pop("run")["layer_reuse"] == (
        "on" if sites != ["model.embed_tokens"] else "off: no site lies in a list of blocks"
    )
    assert computed.pop("run")["layer_reuse"] == "off: not asked for"
    assert kept == computed


def test_only_the_layers_from_the_first_site_on_are_computed() -> None:
    model = tiny_lm.model(num_hidden_layers=4)
    counts: Counter[int] = Counter()
    for index, layer in enumerate(model.model.layers):
        layer.mlp.register_forward_hook(lambda *_, index=index: counts.update([index]))
    saes = {f"model.layers.{index}": tiny_lm.sae(index) for index in (1, 2, 3)}

    def work(**options: Any) -> list[int]:
        counts.clear()
        run(model, saes, batch_size=1000, **options)
        return [counts[index] for index in range(4)]

    whole, reused = work(reuse_layers=False), work()
    # Trial runs: one per site, one of all for their order, and ten that find the head and check it.
    trial = 3 + 1 + 10
    # Ablations are found to be independent of the text by two trials each, and then not run.
    constant = 2 * 2 * 4
    # Means, clean, then splice, random and pca for each of 1, 2, 3 and all together, and the splice of 1 and 2.
    assert whole == [trial + constant + 2 + 3 * 4 + 1] * 4
    # Layer 2 is computed for the targets at 1 and for all together, layer 3 also for 2. The first two sites together
    # are the run of all up to what layer 3 gave it. The trial: a clean run, 5 runs in full, and 5 resumed twice.
    trial += constant + 1 + 5
    assert [got - trial - 2 for got in reused] == [0, 0, 2 * (2 + 3), 3 * (2 + 3)]


def sae_run(*entries: str) -> Run:
    return Run("sae", entries)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "neox", "gemma2"])
def test_models_of_transformers_allow_it(kind: str) -> None:
    model = tiny_model(kind)
    blocks = next(part for part in model.modules() if isinstance(part, nn.ModuleList))
    name = next(name for name, part in model.named_modules() if part is blocks)
    one, two, joint = (
        sae_run(f"{name}.2"),
        sae_run(f"{name}.0", f"{name}.1"),
        sae_run(*(f"{name}.{i}" for i in range(3))),
    )
    found = find_reuse(model, [joint, one, two], joint, {two})
    assert found.starts == {
        joint.name: Start("clean", 1),
        one.name: Start("clean", 3),
        two.name: Start(joint.name, 3, ()),
    }
    assert found.blocks == list(blocks)
    ids = torch.arange(12)[None] + 3

    def halved(module: nn.Module, args: Any, output: Any) -> Any:
        return (output[0] * 0.5, *output[1:]) if isinstance(output, tuple) else output * 0.5

    def ablated(run: Run, entries: tuple[str, ...]) -> Tensor:
        handles = [model.get_submodule(entry).register_forward_hook(halved) for entry in entries]
        try:
            return model(input_ids=ids, use_cache=False).logits
        finally:
            for handle in handles:
                handle.remove()

    def clean() -> Tensor:
        return model(input_ids=ids, use_cache=False).logits

    with torch.inference_mode():
        checked = check_reuse(found, [joint, one, two], clean, ablated)
    assert checked is found


@pytest.mark.parametrize(
    ("sites", "start"),
    [
        (["layers.0", "layers.1"], Start("joint", 2, ())),
        (["layers.0", "layers.1.mlp"], Start("joint", 1, ("layers.0",))),
        (["layers.0.mlp", "layers.1@input"], Start("joint", 1, ())),
        (["layers.0.self_attn", "layers.0.mlp"], Start("clean", 0)),
        (["layers.0.self_attn", "layers.0"], Start("joint", 1, ())),
        (["embed_tokens", "layers.2"], Start("joint", 3, ())),
    ],
)
def test_where_the_first_sites_go_on_from_the_run_of_all(sites: list[str], start: Start) -> None:
    model = tiny_model("llama")
    joint, first = sae_run(*(f"model.{site}" for site in sites)), sae_run(f"model.{sites[0]}")
    found = find_reuse(model, [joint, first], joint, {first}).starts[first.name]
    entries = None if start.entries is None else tuple(f"model.{entry}" for entry in start.entries)
    assert found == Start(joint.name if start.source == "joint" else "clean", start.depth, entries)


class Chain(nn.Module):
    """Blocks x + tanh(x W), with one of the habits that forbid reuse."""

    def __init__(self, habit: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.habit = habit
        self.layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        outputs = []
        for layer in self.layers:
            x = x + 0 if self.habit != "in place" or not outputs else x.mul_(0.5)
            x = layer(x)
            outputs.append(x)
        if self.habit == "skip":
            return x + outputs[0]
        if self.habit == "checks":
            assert not torch.equal(outputs[0] * 2, outputs[1]), "the first layer was not computed"
        return x.tanh()


@pytest.mark.parametrize(
    ("habit", "why"),
    [("none", ""), ("skip", "has other bits"), ("in place", "has other bits"), ("checks", "fails with AssertionError")],
)
def test_a_model_that_is_no_chain_computes_everything(habit: str, why: str) -> None:
    model, x = Chain(habit), torch.ones(2, 8)
    run = sae_run("layers.1")
    found = find_reuse(model, [run])

    def spliced(_: Run, entries: tuple[str, ...]) -> Tensor:
        handle = model.get_submodule(entries[0]).register_forward_hook(lambda module, args, output: output * 2)
        try:
            return model(x + 0)
        finally:
            handle.remove()

    with torch.inference_mode():
        checked = check_reuse(found, [run], lambda: model(x + 0), spliced)
    assert why in checked.why
    assert bool(checked.blocks) == (not why)


def test_forward_comes_back_after_an_exception() -> None:
    model = Chain("none")
    own = model.layers[1].forward
    model.layers[1].forward = own  # as wrappers such as accelerate's leave it
    run = sae_run("layers.1")
    reuse = LayerReuse(list(model.layers), {run.name: Start("clean", 2)})
    with reuse.recording("clean"):
        model(torch.ones(1, 8))
    with pytest.raises(KeyError), reuse.resuming(run):
        assert "forward" in vars(model.layers[0])
        raise KeyError
    assert "forward" not in vars(model.layers[0])
    assert vars(model.layers[1])["forward"] is own
    assert not any(layer._forward_hooks for layer in model.layers)


class HandsOn(nn.Module):
    """A block that gives what is set on it to the block within, as TransformerLens' bridges do."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def __setattr__(self, name: str, value: Any) -> None:
        within = self.__dict__.get("_modules", {}).get("inner")
        if name == "forward" and within is not None:
            setattr(within, name, value)
        else:
            super().__setattr__(name, value)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.inner(*args, **kwargs)


def test_a_block_that_hands_on_what_is_set_on_it_is_as_it_was_afterwards() -> None:
    model, plain = tiny_lm.model(), tiny_lm.model()
    model.model.layers = nn.ModuleList([HandsOn(layer) for layer in model.model.layers])
    saes = {"model.layers.1": tiny_lm.sae(1)}
    got, want = run(model, saes), run(plain, saes)
    assert got["all_sites"] == want["all_sites"]
    assert not any("forward" in vars(part) for part in model.modules())
    ids = torch.arange(9)[None]
    assert torch.equal(model(ids).logits, plain(ids).logits)
