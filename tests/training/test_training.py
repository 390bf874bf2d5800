"""The training losses against dense autograd, and that a training step never holds [tokens, latents]."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import saekernels as sk
from saekernels.training import DeadLatents, auxk_loss, encode_among, fvu_loss


def make(d: int = 12, F: int = 300, k: int = 8, **options: Any) -> sk.SAE:
    sae = sk.SAE(d, F, sk.TopK(k), **options)
    with torch.no_grad():
        for part in sae.parameters():
            part.copy_(torch.randn_like(part) * 0.3)
    return sae


def dense_loss(sae: sk.SAE, x: Tensor, dead: Tensor, k: int) -> Tensor:
    """The same losses with [tokens, latents] matrices."""
    pre = (x - sae.b_dec) @ sae.W_enc.T + sae.b_enc
    top = pre.topk(sae.activation.k)
    codes = torch.zeros_like(pre).scatter(1, top.indices, top.values.relu())
    x_hat = codes @ sae.W_dec + sae.b_dec
    error = (x - x_hat).detach()
    top = pre[:, dead].topk(k)
    aux = torch.zeros_like(pre[:, dead]).scatter(1, top.indices, top.values.relu()) @ sae.W_dec[dead]
    fvu = (x - x_hat).square().sum() / (x - x.mean(0)).square().sum()
    return fvu + (aux - error).square().sum() / error.square().sum() / 32


def step_loss(sae: sk.SAE, x: Tensor, dead: Tensor, k: int) -> Tensor:
    x_hat = sae(x)
    return fvu_loss(x, x_hat) + auxk_loss(sae, x, x_hat, dead, k) / 32


def test_losses_and_gradients_are_the_dense_ones() -> None:
    sae, x, dead = make(), torch.randn(40, 12), torch.randperm(300)[:70].sort().values
    grads = []
    for loss in (dense_loss, step_loss):
        sae.zero_grad()
        loss(sae, x, dead, 5).backward()
        grads.append([part.grad.clone() for part in sae.parameters()])
    torch.testing.assert_close(dense_loss(sae, x, dead, 5), step_loss(sae, x, dead, 5))
    for want, got in zip(*grads, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-6)


def test_a_transcoders_dead_latents_reconstruct_the_error_of_its_target() -> None:
    sae, x, dead = sk.SAE(12, 300, sk.TopK(6), d_out=7, pre_bias="none"), torch.randn(40, 12), torch.arange(70)
    target, x_hat = torch.randn(40, 7), torch.randn(40, 7)
    top = (x @ sae.W_enc.T)[:, dead].topk(5)
    guess = torch.zeros(40, 70).scatter(1, top.indices, top.values.relu()) @ sae.W_dec[dead]
    want = (guess - (target - x_hat)).square().sum() / (target - x_hat).square().sum()
    torch.testing.assert_close(auxk_loss(sae, x, x_hat, dead, 5, target=target), want)
    with pytest.raises(ValueError, match=r"^x_hat: got shape \[40, 6\], need \[40, 7\], the shape of target$"):
        auxk_loss(sae, x, x_hat[:, :6], dead, 5, target=target)


class Largest(TorchDispatchMode):
    """The largest number of elements of any tensor that an operation makes."""

    elements = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        for out in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(out, Tensor):
                self.elements = max(self.elements, out.numel())
        return result


def test_a_step_never_holds_tokens_by_latents() -> None:
    T, d, F, n = 500, 8, 1000, 600
    sae, x, dead = make(d, F), torch.randn(T, d), torch.arange(n)
    with Largest() as largest:
        step_loss(sae, x, dead, 4).backward()
    # The largest are the gradients of the weights and the codes.
    assert largest.elements <= max(F * d, T * 8) < T * n
    with Largest() as seen:
        dense_loss(sae, x, dead, 4)
    assert seen.elements == T * F, "the check sees a dense matrix"


@pytest.mark.parametrize("options", [{}, {"rescale_by_decoder_norm": True}, {"normalization": sk.LayerNorm()}])
def test_codes_among_all_latents_are_the_codes(options: dict[str, Any]) -> None:
    sae, x = make(**options), torch.randn(9, 12)
    whole, among = sae.encode(x), encode_among(sae, x, torch.arange(300), 8)
    assert torch.equal(whole.values, among.values)
    assert torch.equal(whole.indices, among.indices)
    assert torch.equal(sae.decode(whole), sae.decode(among))


def test_dead_latents_are_those_long_silent() -> None:
    sae, tracker = make(F=50, k=3), DeadLatents(50, after=25)
    fired = torch.full((50,), -1)
    for batch in range(6):
        codes = sae.encode(torch.randn(10, 12))
        tracker.update(codes)
        fired[codes.indices[codes.values != 0].long()] = batch
        want = (10 * (batch - fired) > 25).nonzero()[:, 0]
        assert torch.equal(tracker.indices(), want)
    revived = DeadLatents(50, after=25)
    revived.load_state_dict(tracker.state_dict())
    assert torch.equal(revived.indices(), tracker.indices())


def test_no_auxiliary_loss_without_enough_dead_latents() -> None:
    sae, x = make(), torch.randn(5, 12)
    assert auxk_loss(sae, x, sae(x), torch.arange(3), 4) == 0


def dead_after_training(auxiliary: float) -> list[int]:
    """How many latents are dead at each step, when half of them start with a bias that keeps them silent."""
    torch.manual_seed(1)
    basis = torch.nn.functional.normalize(torch.randn(30, 12))
    sae = sk.SAE(12, 60, sk.TopK(3))
    with torch.no_grad():
        sae.b_enc[30:] = -1.0
    tracker, optimizer = DeadLatents(60, after=300), torch.optim.Adam(sae.parameters(), lr=1e-2)
    dead = []
    for _ in range(400):
        x = torch.relu(torch.randn(100, 30) - 1) @ basis
        x_hat, codes = sae.forward_with_codes(x)
        (fvu_loss(x, x_hat) + auxiliary * auxk_loss(sae, x, x_hat, tracker.indices(), 6)).backward()
        optimizer.step()
        optimizer.zero_grad()
        tracker.update(codes)
        dead.append(tracker.indices().numel())
    return dead


def test_the_auxiliary_loss_revives_latents() -> None:
    without, with_it = dead_after_training(0.0), dead_after_training(1.0)
    assert max(with_it) >= 20, "there is something to revive"
    assert without[-1] >= 20
    assert with_it[-1] <= 10


def test_the_auxiliary_loss_divides_rescaled_codes_by_the_norms() -> None:
    sae, x = make(k=300, rescale_by_decoder_norm=True), torch.randn(5, 12)
    zero = torch.zeros(5, 12)
    codes = encode_among(sae, x, torch.arange(300), 300)
    guess = sae.decode(codes) - sae.b_dec
    want = (guess - x).square().sum() / x.square().sum()
    torch.testing.assert_close(auxk_loss(sae, x, zero, torch.arange(300), 300), want)


def test_half_precision_neither_overflows_nor_underflows() -> None:
    x = torch.randn(20_000, 64).half()
    assert float(fvu_loss(x, x * 0.5)) == pytest.approx(0.25, abs=1e-3)
    sae, tiny = sk.SAE(64, 100, sk.TopK(8)), torch.randn(64, 64).half() * 1e-3
    arguments = (tiny * 0.5, torch.arange(50), 4)
    half = auxk_loss(sae.half(), tiny, *arguments)
    whole = auxk_loss(sae.float(), tiny.float(), arguments[0].float(), *arguments[1:])
    assert float(half) == pytest.approx(float(whole), rel=2e-2)


def test_exact_reconstructions_leave_the_auxiliary_loss_finite() -> None:
    sae, x = make(), torch.randn(5, 12)
    some = x.clone()
    some[1:] += 1
    assert torch.isfinite(auxk_loss(sae, x, some, torch.arange(20), 4))
    for none in (x, x[:0]):
        loss = auxk_loss(sae, none, none.clone(), torch.arange(20), 4)
        loss.backward()
        assert loss == 0
        assert torch.isfinite(sae.W_enc.grad).all()
        assert torch.isfinite(sae.W_dec.grad).all()


def test_nan_is_no_sign_of_life() -> None:
    sae, tracker = make(F=50, k=3), DeadLatents(50, after=5)
    tracker.update(sae.encode(torch.full((10, 12), torch.nan)))
    assert tracker.indices().numel() == 50


def test_wrong_uses_are_named() -> None:
    sae, x = make(), torch.randn(5, 12)
    with pytest.raises(ValueError, match=r"x_hat: got shape \[4, 12\], need \[5, 12\]"):
        fvu_loss(x, x[:4])
    with pytest.raises(ValueError, match=r"latents: got torch.int32 of shape \[3\], need int64"):
        encode_among(sae, x, torch.arange(3, dtype=torch.int32), 2)
    with pytest.raises(ValueError, match=r"latents: must lie in \[0, 300\), but entry 1 is -1"):
        encode_among(sae, x, torch.tensor([3, -1]), 1)
    with pytest.raises(ValueError, match="latents: got some of them more than once"):
        encode_among(sae, x, torch.tensor([3, 3]), 1)
    with pytest.raises(ValueError, match=r"after: got 10.5, need an int of at least 0"):
        DeadLatents(100, 10.5)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="sae: got Gated"):
        encode_among(sk.SAE(12, 30, sk.Gated()), x, torch.arange(3), 2)
    with pytest.raises(ValueError, match="k: got 0, need at least 1"):
        auxk_loss(sae, x, x, torch.arange(3), 0)
    with pytest.raises(ValueError, match="codes: got n_latents = 300, need 50"):
        DeadLatents(50, 1).update(sae.encode(x))
