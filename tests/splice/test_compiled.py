"""A splice in a compiled model: one compilation for all batch sizes, the same bits, and never one that goes unseen."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import saekernels as sk
from blocks import Blocks
from saekernels.errors import InputError

SITE = "layers.0"


class Counting:
    """A backend of torch.compile that runs graphs as they are, and keeps them."""

    def __init__(self) -> None:
        self.graphs: list[torch.fx.GraphModule] = []

    def __call__(self, graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., Any]:
        self.graphs.append(graph)
        return graph.forward


@pytest.fixture(autouse=True)
def fresh() -> None:
    torch._dynamo.reset()


def batches(*sizes: int) -> list[Tensor]:
    return [torch.randint(0, 50, (size, 5)) for size in sizes]


@torch.no_grad()
def test_one_graph_serves_all_batches_and_no_other_splice() -> None:
    """Compiled before, inside and after: what comes out is what the model gives without compilation, each time."""
    model, made = Blocks().eval(), Counting()
    compiled = torch.compile(model, backend=made, fullgraph=True, dynamic=True)
    first, *others = batches(2, 4, 6)
    clean = model(first)
    assert torch.equal(compiled(first), clean)
    sites = {SITE: sk.SAE(16, 64, sk.TopK(4)), "layers.1.mlp": sk.SAE(16, 64, sk.JumpReLU())}
    splice = sk.splice(model, sites, untouched=[0, 7, 9])
    with splice:
        eager = [model(ids) for ids in (first, *others)]
    assert not torch.equal(eager[0], clean)
    before = len(made.graphs)
    with splice:
        for ids, want in zip((first, *others), eager, strict=True):
            assert torch.equal(compiled(ids), want)
        assert splice.calls == {SITE: 1, "layers.1.mlp": 1}
    assert len(made.graphs) == before + 1
    targets = [str(node.target).removesuffix(".default") for node in made.graphs[-1].graph.nodes]
    assert [targets.count(f"saekernels.{op}") for op in ("encode_topk", "encode_threshold")] == [1, 1]
    assert torch.equal(compiled(first), clean)
    with sk.splice(model, {SITE: None}, replace="zero"):
        assert torch.equal(compiled(first), model(first))
    with splice:
        assert torch.equal(compiled(others[0]), eager[1])
    assert not any("forward" in vars(module) for module in model.modules())


@torch.no_grad()
def test_a_running_median_cuts_the_graph_and_says_so() -> None:
    model, (ids,) = Blocks(layers=1).eval(), batches(2)
    splice = sk.splice(model, {SITE: sk.SAE(16, 64, sk.TopK(4))}, leave_norm=1.2)
    with splice:
        want = model(ids)
    with splice, pytest.raises(torch._dynamo.exc.Unsupported, match="leave_norm: its median is kept on the host"):
        torch.compile(model, backend="eager", fullgraph=True)(ids)
    torch._dynamo.reset()
    with splice:
        assert torch.equal(torch.compile(model, backend="eager")(ids), want)
    with splice, pytest.raises(InputError, match="leave_norm: its median is that of running text"):
        torch.export.export(model, (ids,))


@torch.no_grad()
def test_a_site_that_compiled_code_never_reaches_is_told_of() -> None:
    class Half(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.unused = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.used(x)

    model = Half()
    told = pytest.warns(RuntimeWarning, match="nothing was replaced at unused: not called in 1 forward passes")
    with told, sk.splice(model, {"unused": None}, replace="zero"):
        torch.compile(lambda x: model(x), backend="eager")(torch.randn(2, 4))


@torch.no_grad()
def test_modules_whose_forward_somebody_had_patched_are_seen_and_left_so() -> None:
    model, (ids,) = Blocks(layers=1).eval(), batches(2)
    layer, own = model.layers[0], model.layers[0].forward
    layer.forward = patched = lambda x: own(x) * 2
    compiled = torch.compile(model, backend="eager")
    clean = compiled(ids)
    outer, inner = (sk.splice(model, {SITE: None}, replace="zero") for _ in range(2))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        outer.__enter__()
        inner.__enter__()
        outer.__exit__(None, None, None)  # not in the order in which they came
        assert torch.equal(compiled(ids), model(ids))
        assert not torch.equal(compiled(ids), clean)
        inner.__exit__(None, None, None)
    assert vars(layer)["forward"] is patched
    assert "forward" not in vars(model)
    assert torch.equal(compiled(ids), clean)


@torch.no_grad()
@pytest.mark.slow
@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
def test_modes_of_inductor(mode: str) -> None:
    """A minute or more of g++. Sums of the model's own layers may differ in their last bits; the codes' do not."""
    model, (ids, more) = Blocks(layers=1).eval(), batches(3, 8)
    splice = sk.splice(model, {SITE: sk.SAE(16, 64, sk.TopK(4))})
    with splice:
        want = [model(ids), model(more)]
        compiled = torch.compile(model, mode=mode, fullgraph=True, dynamic=True)
        for given, expected in zip((ids, more), want, strict=True):
            torch.testing.assert_close(compiled(given), expected, rtol=1e-5, atol=1e-5)
