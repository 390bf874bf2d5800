"""A module of unknown make, accelerated by the names of its weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import saekernels as sk
from live_saes import D, F, K, NothingWide, close
from saekernels.adapters import NotAccelerated


class Plain(nn.Module):
    """A reference SAE with nn.Linear layers, as people write them."""

    def __init__(self, topk: int | None = None) -> None:
        super().__init__()
        self.enc, self.dec, self.topk = nn.Linear(D, F), nn.Linear(F, D), topk

    def forward(self, x: Tensor) -> Tensor:
        z = torch.relu(self.enc(x - self.dec.bias))
        if self.topk is not None:
            top = z.topk(self.topk)
            z = torch.zeros_like(z).scatter(-1, top.indices, top.values)
        return self.dec(z)


NAMES = {"W_enc": "enc.weight", "b_enc": "enc.bias", "W_dec": "dec.weight", "b_dec": "dec.bias", "b_pre": "dec.bias"}


def test_a_module_of_unknown_make_by_its_names() -> None:
    torch.manual_seed(0)
    module, x = Plain(K), torch.randn(400, D)
    wanted = module(x)
    wanted.square().sum().backward()
    gradients = {path: value.grad.clone() for path, value in module.named_parameters() if value.grad is not None}
    module.zero_grad()
    sk.accelerate(module, activation=sk.TopK(K), names=NAMES)
    found = module(x)
    close(found, wanted)
    found.square().sum().backward()
    for path, value in module.named_parameters():
        assert value.grad is not None
        close(value.grad, gradients[path], atol=1e-3)
    with torch.no_grad(), NothingWide(400 * F):
        module(x)
    assert module.state_dict()["dec.weight"].is_contiguous()
    sk.restore(module)
    assert torch.equal(module(x), wanted)
    assert module.dec.weight.is_contiguous()


@pytest.mark.parametrize(
    ("activation", "names", "message"),
    [
        (sk.TopK(K + 1), NAMES, "differs from its own by"),
        (sk.TopK(K), {**NAMES, "W_enc": "enc.wight"}, "W_enc: Plain has no tensor 'enc.wight'"),
        (sk.TopK(K), {"W_enc": "enc.weight"}, "no name for 'W_dec'"),
        (sk.TopK(K), {**NAMES, "bias": "enc.bias"}, "unknown role 'bias'"),
        (sk.JumpReLU(), NAMES, "no name for 'threshold'"),
        ("topk", NAMES, "activation: got 'topk'"),
        (sk.TopK(K), None, "need both"),
        (None, NAMES, "need both"),
    ],
)
def test_names_that_do_not_fit(activation: Any, names: Any, message: str) -> None:
    torch.manual_seed(0)
    module = Plain(K)
    before = {path: value.stride() for path, value in module.named_parameters()}
    with pytest.raises(NotAccelerated, match=message):
        sk.accelerate(module, activation=activation, names=names)
    assert not sk.is_accelerated(module)
    assert {path: value.stride() for path, value in module.named_parameters()} == before
