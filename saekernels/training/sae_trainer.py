"""One SAE in training: its input's scale and mask, its loss, its optimizer, and its state to go on from."""

from __future__ import annotations

import hashlib
from typing import Any

import torch
from torch import Tensor

from saekernels.errors import InputError
from saekernels.optim import Adam
from saekernels.sae.activations import Scale
from saekernels.sae.batch_topk import encode_batch_topk
from saekernels.sae.codes import Codes
from saekernels.sae.jumprelu import encode_jumprelu
from saekernels.sae.module import SAE
from saekernels.splice.leave import Norms
from saekernels.training.dead import DeadLatents
from saekernels.training.losses import auxk_loss, fvu_loss
from saekernels.training.recipe import Recipe

_SMOOTH = 0.95  # of the running means that are told
_THRESHOLD_SMOOTH = 0.95  # of BatchTopK's threshold
_THRESHOLD_RATE = 10.0  # Adam's steps are of one size, and thresholds are some times as large as weights


class SAETrainer:
    """Trains one SAE, or one transcoder, on batches of activations.

    Both ends are multiplied by a number each, by which the first tokens that pass the mask have a mean square of 1 a
    feature about their mean; the decoder's bias begins at that mean. `trained()` has the numbers folded in.

    Args:
        name: whose random numbers these are, with the seed.
        x: [n, d_in], the first activations that are read; n at least F for decoder="activations".
        y: [n, d_out], those that are to be given; x itself for an SAE that reads what it replaces.
        variant: the recipe's name among several of a run.

    Attributes:
        sae: the SAE of scaled activations. scales: those two numbers. fvu, l0: running means over the last batches.
    """

    def __init__(self, name: str, recipe: Recipe, seed: int, x: Tensor, y: Tensor, *, variant: str = "") -> None:
        self.name, self.recipe, self.seed, self.variant = name, recipe, seed, variant
        self.norms = Norms()
        self.transcodes = y is not x
        x, y = self._masked(x, y)
        self.norms = Norms()  # the same tokens come again as the first batch
        if len(x) < 2 or (recipe.decoder == "activations" and len(x) < recipe.n_latents):
            need = recipe.n_latents if recipe.decoder == "activations" else 2
            raise InputError(f"{name}: got {len(x)} first activations that pass the mask, need at least {need}")
        means = (x.double().mean(0), y.double().mean(0))
        centred = (x - means[0].float(), y - means[1].float())
        self.scales = tuple(float(one.double().square().mean()) ** -0.5 for one in centred)
        self.dead = DeadLatents(recipe.n_latents, recipe.dead_after)
        self.fvu: float | None = None
        self.l0: float | None = None
        self.least: float | None = None
        pre_bias = "separate" if self.transcodes else "b_dec"
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(_number(name, seed))
            self.sae = SAE(x.shape[1], recipe.n_latents, recipe.kind, d_out=y.shape[1], pre_bias=pre_bias)
            rows = torch.randperm(len(x))[: recipe.n_latents]
        with torch.no_grad():
            self.sae.b_dec.copy_(means[1] * self.scales[1])
            if self.sae.b_pre is not None:
                self.sae.b_pre.copy_(means[0] * self.scales[0])
            if recipe.decoder == "activations":
                for matrix, values in ((self.sae.W_enc, centred[0]), (self.sae.W_dec, centred[1])):
                    matrix.copy_(torch.nn.functional.normalize(values[rows], dim=1))
            self._begin(*self._scaled(x, y))
        self.optimizer = self._optimizer()

    def _begin(self, x: Tensor, y: Tensor) -> None:
        """Thresholds that let k latents a token through; with both matrices frozen, a decoder of the best scale."""
        sae, recipe = self.sae, self.recipe
        codes = sae.encode(x) if recipe.activation == "topk" else self._top_of_batch(x)
        if recipe.activation != "topk":
            self._threshold.fill_(codes.values.min())
        if recipe.freeze == "both":
            guess = sae.decode(codes) - sae.b_dec
            centred = y - sae.b_dec
            sae.W_dec.mul_((guess * centred).sum() / guess.square().sum().clamp(min=1e-12))

    def _optimizer(self) -> torch.optim.Optimizer:
        frozen = {"none": (), "decoder": (self.sae.W_dec,), "encoder": (self.sae.W_enc,)}
        for matrix in frozen.get(self.recipe.freeze, (self.sae.W_dec, self.sae.W_enc)):
            matrix.requires_grad_(False)
        unit_rows = self.recipe.freeze == "none"
        own: dict[str, dict[str, Any]] = {
            "W_dec": {"project": unit_rows, "unit_norm": unit_rows},
            "threshold": {"relative": _THRESHOLD_RATE},
        }
        groups = [
            {"params": [one], "relative": 1.0, **own.get(name, {})}
            for name, one in self.sae.named_parameters()
            if one.requires_grad
        ]
        return Adam(groups, lr=self.recipe.lr)

    @property
    def label(self) -> str:
        """The site, the recipe's name where there are several, and the seed."""
        return ", ".join(part for part in (self.name, self.variant, f"seed {self.seed}") if part)

    @property
    def _threshold(self) -> Tensor:
        assert self.sae.threshold is not None
        return self.sae.threshold

    def step(self, x: Tensor, y: Tensor, rate: float) -> None:
        """One batch, x [n, d_in] and y [n, d_out] as the model has them; rate: the share of the learning rate."""
        x, y = self._masked(x, y)
        if len(x) < 2:
            return
        x, y = self._scaled(x, y)
        codes, penalty = self._encode(x)
        out = self.sae.decode(codes)
        fvu = fvu_loss(y, out)
        loss = fvu + penalty
        if self.recipe.aux_weight:
            dead = self.dead.indices()
            loss = loss + self.recipe.aux_weight * auxk_loss(self.sae, x, out, dead, self.recipe.aux_k, target=y)
        loss.backward()
        self._update(rate)
        self.dead.update(codes)
        self.fvu = _smoothed(self.fvu, fvu.item())
        self.l0 = _smoothed(self.l0, float((codes.values.detach() > 0).sum()) / len(x))

    def _masked(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        ratio = self.recipe.leave_norm
        if ratio is None:
            return x, y
        self.norms.add(x, y)
        wanted = ~self.norms.outlying(x, y, ratio)
        return (x, y) if bool(wanted.all()) else (x[wanted], y[wanted])

    def _scaled(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        scaled = x * self.scales[0]
        return scaled, y * self.scales[1] if self.transcodes else scaled

    def _encode(self, x: Tensor) -> tuple[Codes, Tensor | float]:
        """Codes with gradients, and what the loss says of their number."""
        sae, recipe = self.sae, self.recipe
        if recipe.activation == "topk":
            return sae.encode(x), 0.0
        if recipe.activation == "batch_topk":
            codes = self._top_of_batch(x)
            self.least = float(codes.values.detach().min()) if codes.values.numel() else 0.0
            with torch.no_grad():
                self._threshold.mul_(_THRESHOLD_SMOOTH).add_((1 - _THRESHOLD_SMOOTH) * self.least)
            return codes, 0.0
        found = encode_jumprelu(
            x, sae.W_enc, sae.b_enc, self._threshold, bandwidth=recipe.bandwidth, pre_bias=sae.pre_bias
        )
        codes = Codes(*found.codes, x.shape[:-1], sae.n_latents)
        return codes, recipe.l0_weight * (found.l0 / recipe.k - 1).square()

    def _top_of_batch(self, x: Tensor) -> Codes:
        sae = self.sae
        n, guess = self.recipe.k * len(x), self.least
        found = encode_batch_topk(x, sae.W_enc, sae.b_enc, n=n, pre_bias=sae.pre_bias, guess=guess)
        return Codes(*found, x.shape[:-1], sae.n_latents)

    @torch.no_grad()
    def _update(self, rate: float) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = self.recipe.lr * group["relative"] * rate
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.recipe.activation == "jumprelu":
            self._threshold.clamp_(min=0)

    @torch.no_grad()
    def trained(self) -> SAE:
        """The SAE of activations as the model has them; the input's scale is its normalization, which `save` folds."""
        own = self.sae
        made = SAE(own.d_in, own.n_latents, own.activation, d_out=own.d_out, pre_bias=own.pre_bias_kind)
        made.load_state_dict(own.state_dict())
        ratio = self.scales[0] / self.scales[1]
        if ratio != 1:
            made.W_dec.mul_(ratio)
            made.b_dec.mul_(ratio)
        made.normalization = Scale(self.scales[0])
        return made

    def state(self) -> dict[str, Any]:
        """Everything that `load` needs to go on with the same bits."""
        return {
            "sae": self.sae.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "silent": self.dead.silent,
            "norms": self.norms.state(),
            "numbers": {"scales": list(self.scales), "fvu": self.fvu, "l0": self.l0, "least": self.least},
        }

    def load(self, state: dict[str, Any]) -> None:
        """Go on from a `state` of a trainer that was made with the same arguments."""
        self.sae.load_state_dict(state["sae"])
        # Groups follow from the recipe; those of older checkpoints held several parameters each, in the same order.
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": state["optimizer"]["state"]})
        self.dead.silent.copy_(state["silent"])
        self.norms = Norms()
        self.norms.merge(state["norms"])  # which copies: more is added to what is here
        numbers = state["numbers"]
        self.scales, self.fvu, self.l0 = tuple(numbers["scales"]), numbers["fvu"], numbers["l0"]
        self.least = numbers["least"]


def _smoothed(mean: float | None, new: float) -> float:
    return new if mean is None else _SMOOTH * mean + (1 - _SMOOTH) * new


def _number(name: str, seed: int) -> int:
    """A seed of its own for each name."""
    return int.from_bytes(hashlib.sha256(f"{seed} {name}".encode()).digest()[:7], "big")
