"""State dicts go both ways between `saekernels.optim.Adam` and `torch.optim.Adam`; what cannot be served is named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from oracle import same_bits
from saekernels.optim import Adam

Optimizer = torch.optim.Optimizer


def parameter(values: Tensor | None = None) -> torch.nn.Parameter:
    made = torch.randn(7, 12, generator=torch.Generator().manual_seed(1))
    return torch.nn.Parameter(made if values is None else values.detach().clone())


def steps(optimizer: Optimizer, first: int, last: int) -> None:
    for step in range(first, last):
        for param in optimizer.param_groups[0]["params"]:
            param.grad = torch.randn(7, 12, generator=torch.Generator().manual_seed(100 + step)).to(param.dtype)
        optimizer.step()


MAKERS: dict[str, Any] = {
    "ours": Adam,
    "torch": torch.optim.Adam,
    "torch, fused": lambda params, **options: torch.optim.Adam(params, fused=True, **options),
}


@pytest.mark.parametrize("after", MAKERS)
@pytest.mark.parametrize("before", MAKERS)
def test_a_state_goes_on_in_the_other(before: str, after: str, tmp_path: Path) -> None:
    options = {"lr": 0.05, "betas": (0.8, 0.95), "eps": 1e-6, "weight_decay": 0.01, "decoupled_weight_decay": True}
    p, whole = parameter(), parameter()
    first = MAKERS[before]([p], **options)
    steps(first, 0, 3)
    torch.save(first.state_dict(), tmp_path / "state.pt")
    q = parameter(p)
    second = MAKERS[after]([q])
    second.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert {name: second.param_groups[0][name] for name in options} == options
    steps(second, 3, 6)
    uninterrupted = MAKERS[after]([whole], **options)
    steps(uninterrupted, 0, 6)
    if before == after:
        assert same_bits((q,), (whole,))
    torch.testing.assert_close(q, whole, rtol=1e-6, atol=1e-6)
    assert set(second.state[q]) == {"step", "exp_avg", "exp_avg_sq"}
    assert second.state[q]["step"] == 6


def test_groups_have_the_names_of_torchs() -> None:
    theirs = torch.optim.Adam([parameter()]).state_dict()["param_groups"][0]
    ours = Adam([parameter()]).state_dict()["param_groups"][0]
    assert {name: ours[name] for name in theirs} == theirs
    assert set(ours) - set(theirs) == {"project", "unit_norm", "dim"}


def test_what_a_state_of_torchs_does_not_say_stays() -> None:
    p = parameter()
    theirs = torch.optim.Adam([parameter()], lr=0.2)
    steps(theirs, 0, 1)
    ours = Adam([p], unit_norm=True)
    ours.load_state_dict(theirs.state_dict())
    assert ours.param_groups[0]["unit_norm"] is True
    assert ours.param_groups[0]["lr"] == 0.2
    steps(ours, 1, 2)
    torch.testing.assert_close(p.norm(dim=1), torch.ones(7))


def test_moments_of_another_layout_are_laid_out_anew() -> None:
    """Once, when they are loaded, so that no step has to copy them."""
    turned = torch.nn.Parameter(parameter().detach().T.contiguous().T)
    first = Adam([turned])
    steps(first, 0, 2)
    assert first.state[turned]["exp_avg"].stride() == (1, 7)
    p = parameter(turned.contiguous())
    second = Adam([p])
    second.load_state_dict(first.state_dict())
    assert second.state[p]["exp_avg"].stride() == second.state[p]["exp_avg_sq"].stride() == (12, 1)
    steps(first, 2, 4)
    steps(second, 2, 4)
    assert same_bits((p,), (turned,))


def test_states_that_are_not_adams_are_refused_and_nothing_is_changed() -> None:
    p = parameter()
    ours = Adam([p])
    steps(ours, 0, 1)
    before = (ours.state[p]["exp_avg"].clone(), ours.param_groups[0]["lr"])
    sgd, amsgrad = torch.optim.SGD([parameter()], momentum=0.9), torch.optim.Adam([parameter()], amsgrad=True)
    smaller = torch.optim.Adam([torch.nn.Parameter(torch.ones(3))])
    steps(sgd, 0, 1)
    steps(amsgrad, 0, 1)
    smaller.param_groups[0]["params"][0].grad = torch.ones(3)
    smaller.step()
    for other, message in (
        (sgd, r"^state: got momentum_buffer, need step, exp_avg, exp_avg_sq, as of Adam$"),
        (amsgrad, r"^amsgrad: got True, need False; torch.optim.Adam has it$"),
        (smaller, r"^exp_avg: got shape \[3\], need \[7, 12\], the parameter's$"),
    ):
        with pytest.raises(ValueError, match=message):
            ours.load_state_dict(other.state_dict())
        assert torch.equal(ours.state[p]["exp_avg"], before[0])
        assert ours.param_groups[0]["lr"] == before[1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr": -1.0}, r"^lr: got -1.0, need a finite number of at least 0$"),
        ({"lr": "fast"}, r"^lr: got 'fast', need a number$"),
        ({"lr": torch.tensor(float("nan"))}, r"^lr: got nan, need a finite number of at least 0$"),
        ({"eps": -1e-8}, r"^eps: got -1e-08, need a finite number of at least 0$"),
        ({"weight_decay": float("inf")}, r"^weight_decay: got inf, need a finite number of at least 0$"),
        ({"betas": (0.9, 1.0)}, r"^betas: got \(0.9, 1.0\), need two numbers of at least 0 and below 1$"),
        ({"amsgrad": True}, r"^amsgrad: got True, need False; torch.optim.Adam has it$"),
        ({"project": 1}, r"^project: got 1, need bool$"),
        ({"dim": 2}, r"^dim: got 2, need 0 or 1$"),
    ],
)
def test_options_out_of_range_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        Adam([parameter()], **options)


def test_parameters_that_cannot_be_stepped_are_named() -> None:
    row = torch.nn.Parameter(torch.ones(3))
    with pytest.raises(ValueError, match=r"^unit_norm: got a parameter of shape \[3\], need \[n, d\]$"):
        Adam([row], unit_norm=True)
    with pytest.raises(TypeError, match=r"^params: got dtype complex64, need one of float32, bfloat16, float16"):
        Adam([torch.nn.Parameter(torch.ones(3, dtype=torch.complex64))])
    optimizer = Adam([row])
    with pytest.raises(ValueError, match=r"^project: got a parameter of shape \[\], need \[n, d\]$"):
        optimizer.add_param_group({"params": [torch.nn.Parameter(torch.tensor(1.0))], "project": True})
    assert len(optimizer.param_groups) == 1


def test_what_cannot_be_stepped_with_is_named_and_nothing_is_changed() -> None:
    p, q = parameter(), parameter()
    optimizer = Adam([p, q])
    p.grad = torch.ones_like(p)
    before = p.detach().clone()
    q.grad = torch.ones(7, 12).to_sparse()
    need = r"need a dense \(strided\) tensor; torch.optim.SparseAdam takes sparse ones"
    with pytest.raises(
        TypeError, match=rf"^grad: got layout torch.sparse_coo for a parameter of shape \[7, 12\], {need}$"
    ):
        optimizer.step()
    q.grad = None
    optimizer.state[q] = {"step": torch.tensor(1.0), "exp_avg": torch.ones(7, 11), "exp_avg_sq": torch.ones(7, 12)}
    q.grad = torch.ones_like(q)
    with pytest.raises(ValueError, match=r"^exp_avg: got shape \[7, 11\], need \[7, 12\], the parameter's$"):
        optimizer.step()
    for clip in (-1.0, float("nan"), torch.tensor(float("inf"))):
        with pytest.raises(ValueError, match=rf"^clip: got {float(clip)}, need a finite number of at least 0$"):
            optimizer.step(clip=clip)
    assert torch.equal(p, before)
