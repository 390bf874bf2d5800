"""`saekernels.optim.Adam` takes the steps of `torch.optim.Adam`, and those that SAEs take by hand beside it."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

from oracle import same_bits
from saekernels.backends import registry
from saekernels.optim import Adam, clip_factor

OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "L2": {"weight_decay": 0.1},
    "AdamW": {"weight_decay": 0.1, "decoupled_weight_decay": True},
    "maximize": {"maximize": True, "weight_decay": 0.1},
    "no first moment": {"betas": (0.0, 0.999)},
    "other numbers": {"betas": (0.8, 0.95), "eps": 1e-3, "lr": torch.tensor(0.03, dtype=torch.float64)},
}


def parameters(*shapes: tuple[int, ...], dtype: torch.dtype = torch.float32, seed: int = 0) -> list[torch.nn.Parameter]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.nn.Parameter(torch.randn(shape, generator=generator).to(dtype)) for shape in shapes]


def steps(optimizer: torch.optim.Optimizer, params: list[torch.nn.Parameter], first: int, last: int) -> None:
    """Steps with gradients that depend on the number of the step alone."""
    for step in range(first, last):
        for param, grad in zip(params, parameters(*(one.shape for one in params), seed=100 + step), strict=True):
            param.grad = torch.empty_like(param).copy_(grad.detach())
        optimizer.step()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_steps_are_those_of_torch(options: dict[str, Any], dtype: torch.dtype) -> None:
    ours, theirs = (parameters((7, 33), (5,), (), (2, 3, 4), dtype=dtype) for _ in range(2))
    a = Adam(ours, **{"lr": 1e-2, **options})
    b = torch.optim.Adam(theirs, **{"lr": 1e-2, **options})
    steps(a, ours, 0, 20)
    steps(b, theirs, 0, 20)
    near = {torch.float32: 2e-6, torch.float64: 1e-13}[dtype]
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=near, atol=near)
        for name in ("exp_avg", "exp_avg_sq"):
            torch.testing.assert_close(a.state[one][name], b.state[other][name], rtol=near, atol=near)
        assert a.state[one]["step"] == 20


@pytest.mark.parametrize("dim", [1, 0])
def test_rows_are_projected_and_normalised_as_by_hand(dim: int) -> None:
    shape = (40, 33) if dim == 1 else (33, 40)
    (ours,), (theirs,) = parameters(shape), parameters(shape)
    a = Adam([ours], lr=1e-2, project=True, unit_norm=True, dim=dim)
    b = torch.optim.Adam([theirs], lr=1e-2)
    for step in range(10):
        (grad,) = parameters(shape, seed=100 + step)
        ours.grad, theirs.grad = grad.detach().clone(), grad.detach().clone()
        with torch.no_grad():
            directions = torch.nn.functional.normalize(theirs, dim=dim)
            theirs.grad -= (theirs.grad * directions).sum(dim, keepdim=True) * directions
            theirs.grad *= 0.5
        a.step(clip=0.5)
        b.step()
        with torch.no_grad():
            theirs.copy_(torch.nn.functional.normalize(theirs, dim=dim))
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(ours.norm(dim=dim), torch.ones(40))


def test_groups_have_options_of_their_own() -> None:
    first, second = parameters((4, 6), (4, 6))
    optimizer = Adam([{"params": [first], "unit_norm": True}, {"params": [second], "lr": 0.0}], lr=0.1)
    before = second.detach().clone()
    steps(optimizer, [first, second], 0, 1)
    torch.testing.assert_close(first.norm(dim=1), torch.ones(4))
    assert torch.equal(second, before)


def test_a_clip_factor_is_clip_grad_norm() -> None:
    """To the bit: clipped first, or in the step."""
    for max_norm in (0.5, 1e3):
        ours, theirs = (parameters((7, 33), (5,)) for _ in range(2))
        a, b = Adam(ours, lr=1e-2), Adam(theirs, lr=1e-2)
        for one in (*ours, *theirs):
            one.grad = one.detach().clone()
        ours.append(torch.nn.Parameter(torch.ones(2)))  # has no gradient
        kept = [one.grad.clone() for one in ours[:2] if one.grad is not None]
        a.step(clip=clip_factor(ours, max_norm))
        torch.nn.utils.clip_grad_norm_(theirs, max_norm)
        b.step()
        assert same_bits(tuple(ours[:2]), tuple(theirs))
        assert same_bits(tuple(one.grad for one in ours[:2] if one.grad is not None), tuple(kept))
    with pytest.raises(ValueError, match=r"^max_norm: got 0, need a number above 0$"):
        clip_factor(ours, 0)


def with_strides(kind: str, value: Tensor) -> Tensor:
    """The same values, otherwise laid out."""
    if kind == "transposed":
        return value.T.contiguous().T
    if kind == "with gaps":
        return torch.full((value.shape[0], 2 * value.shape[1]), torch.nan)[:, ::2].copy_(value)
    if kind == "negated lazily":
        return torch._neg_view(-value)
    return value.contiguous()


KINDS = ("rows", "transposed", "with gaps")


@pytest.mark.parametrize("of_grad", [*KINDS, "negated lazily"])
@pytest.mark.parametrize("of_param", KINDS)
@pytest.mark.parametrize("unit_norm", [False, True])
def test_strides_change_nothing(of_param: str, of_grad: str, unit_norm: bool) -> None:
    def run(param: str, grad: str) -> tuple[Tensor, ...]:
        p = torch.nn.Parameter(with_strides(param, parameters((37, 70))[0].detach()))
        optimizer = Adam([p], lr=0.1, project=unit_norm, unit_norm=unit_norm)
        for step in range(3):
            p.grad = with_strides(grad, parameters((37, 70), seed=100 + step)[0].detach())
            optimizer.step()
        return p, optimizer.state[p]["exp_avg"], optimizer.state[p]["exp_avg_sq"]

    assert same_bits(run(of_param, of_grad), run("rows", "rows"))


def test_the_fused_adam_of_torch_is_wrong_where_strides_differ_and_ours_is_not() -> None:
    """What the copy is for: torch's takes a gradient's memory in the parameter's order."""

    def run(make: Callable[..., torch.optim.Optimizer], kind: str) -> Tensor:
        p = torch.nn.Parameter(parameters((37, 70))[0].detach())
        optimizer = make([p], lr=0.1)
        for step in range(3):
            p.grad = with_strides(kind, parameters((37, 70), seed=100 + step)[0].detach())
            optimizer.step()
        return p.detach()

    def fused(params: Any, lr: float) -> torch.optim.Optimizer:
        return torch.optim.Adam(params, lr=lr, fused=True)

    right = run(torch.optim.Adam, "transposed")
    torch.testing.assert_close(run(fused, "rows"), right, rtol=2e-6, atol=2e-6)
    assert float((run(fused, "transposed") - right).abs().max()) > 0.3
    torch.testing.assert_close(run(Adam, "transposed"), right, rtol=2e-6, atol=2e-6)


def test_memory_is_seen_to_change() -> None:
    """A graph that saved the parameter notices, as after a step of torch's."""
    (p,) = parameters((4, 6))
    p.grad = torch.ones_like(p)
    before = p._version
    loss = (p * p).sum()
    Adam([p]).step()
    assert p._version > before
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_a_closure_is_called_with_gradients_and_what_has_none_is_left() -> None:
    p, q, empty = parameters((4, 6), (3,), (0, 5))
    empty.grad = torch.zeros(0, 5)
    optimizer = Adam([p, q, empty], lr=0.1)
    before = q.detach().clone()

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = p.square().sum()
        loss.backward()
        return loss

    losses = [optimizer.step(closure).item() for _ in range(3)]
    assert losses == sorted(losses, reverse=True)
    assert torch.equal(q, before)
    assert q not in optimizer.state


def test_schedulers_hooks_copies_and_pickles_work() -> None:
    (ours,), (theirs,) = parameters((4, 6)), parameters((4, 6))
    a, b = Adam([ours], lr=0.1), torch.optim.Adam([theirs], lr=0.1)
    called = []
    a.register_step_post_hook(lambda *_: called.append(1))
    for optimizer, param in ((a, ours), (b, theirs)):
        schedule = torch.optim.lr_scheduler.StepLR(optimizer, 2, 0.1)
        for step in range(5):
            steps(optimizer, [param], step, step + 1)
            schedule.step()
    torch.testing.assert_close(ours, theirs, rtol=2e-6, atol=2e-6)
    assert len(called) == 5
    for other in (copy.deepcopy(a), pickle.loads(pickle.dumps(a))):
        (param,) = other.param_groups[0]["params"]
        steps(other, [param], 5, 7)
        again = copy.deepcopy(a)
        steps(again, again.param_groups[0]["params"], 5, 7)
        assert torch.equal(param, again.param_groups[0]["params"][0])


def test_a_backend_without_a_step_of_its_own_leaves_it_to_the_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    (forced,), (free,) = parameters((7, 12)), parameters((7, 12))
    steps(Adam([free], unit_norm=True), [free], 0, 2)
    monkeypatch.setattr(registry, "ENVIRONMENT_CHOICE", "triton")
    for asked in (registry.select, registry.serves):
        asked.cache_clear()
    try:
        steps(Adam([forced], unit_norm=True), [forced], 0, 2)
    finally:
        monkeypatch.undo()
        for asked in (registry.select, registry.serves):
            asked.cache_clear()
    torch.testing.assert_close(forced, free, rtol=1e-6, atol=1e-6)


def test_sharded_parameters_are_stepped_without_addresses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A DTensor, as FSDP makes them, is larger than the memory that it has here."""

    def refuse(*_: object) -> None:
        raise AssertionError("a DTensor came to native code")

    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        mesh = init_device_mesh("cpu", (1,))
        (plain,), (grad,) = parameters((7, 12)), parameters((7, 12), seed=1)
        sharded = torch.nn.Parameter(distribute_tensor(plain.detach().clone(), mesh, [Shard(1)]))
        plain.grad, sharded.grad = grad.detach().clone(), distribute_tensor(grad.detach(), mesh, [Shard(1)])
        for param in (plain, sharded):
            Adam([param], lr=0.1, project=True, unit_norm=True).step(clip=clip_factor([param], 1.0))
            monkeypatch.setattr(registry.load("cpu"), "adam_step", refuse)
        torch.testing.assert_close(sharded.full_tensor(), plain, rtol=1e-6, atol=1e-6)
    finally:
        torch.distributed.destroy_process_group()
