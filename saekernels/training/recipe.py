"""How an SAE is trained, as data: what it is to become, its losses, what stays frozen, and the learning rate."""

from __future__ import annotations

from dataclasses import dataclass

from saekernels.errors import InputError
from saekernels.sae.activations import Activation, BatchTopK, JumpReLU, TopK
from saekernels.splice.leave import Leave

ACTIVATIONS = ("topk", "batch_topk", "jumprelu")
FREEZES = ("none", "decoder", "encoder", "both")
DECODERS = ("random", "activations")


@dataclass(frozen=True)
class Recipe:
    """How an SAE is trained.

    Attributes:
        n_latents: F.
        k: active latents per token: exactly (topk), on average (batch_topk), as the aim of the loss (jumprelu).
        activation: "topk", "batch_topk" or "jumprelu".
        lr: Adam's largest learning rate.
        dead_after: tokens of silence after which a latent is dead.
        aux_k, aux_weight: of the auxiliary loss that revives dead latents; a weight of 0 leaves it out.
        leave_norm: positions whose norm exceeds this times the running median are left out; None: none are.
        freeze: which matrices stay as they were made: "none", "decoder", "encoder" or "both"; biases and thresholds are
            trained all the same. Decoder rows have unit norm, but beside a frozen encoder, where only they can scale.
        decoder: "random" rows on the sphere, or "activations": those of the first tokens, centred, of unit norm.
        bandwidth, l0_weight: jumprelu's; thresholds' gradients come from so near, in units of a normalised
            pre-activation, and the loss has l0_weight * (L0 / k - 1)^2 added.
    """

    n_latents: int
    k: int
    activation: str = "topk"
    lr: float = 2e-3
    dead_after: int = 50_000
    aux_k: int = 64
    aux_weight: float = 1 / 32
    leave_norm: float | None = None
    freeze: str = "none"
    decoder: str = "random"
    bandwidth: float = 0.5
    l0_weight: float = 3.0

    def __post_init__(self) -> None:
        for name, value, known in (
            ("activation", self.activation, ACTIVATIONS),
            ("freeze", self.freeze, FREEZES),
            ("decoder", self.decoder, DECODERS),
        ):
            if value not in known:
                raise InputError(f"{name}: got {value!r}, need one of {', '.join(known)}")
        Leave(norm=self.leave_norm)  # which says what is wrong with it
        if not 1 <= self.k <= self.n_latents:
            raise InputError(f"k: got {self.k}, need 1 to {self.n_latents}, the number of latents")

    @property
    def kind(self) -> Activation:
        """The activation of the SAE that comes of it."""
        kinds: dict[str, Activation] = {"topk": TopK(self.k), "batch_topk": BatchTopK(self.k), "jumprelu": JumpReLU()}
        return kinds[self.activation]


@dataclass(frozen=True)
class Schedule:
    """warmup, decay: shares of the steps in which the learning rate rises from 0, and at last falls to 0, linearly."""

    warmup: float = 0.02
    decay: float = 0.3

    def __post_init__(self) -> None:
        for name, value in (("warmup", self.warmup), ("decay", self.decay)):
            if not 0 <= value <= 1:
                raise InputError(f"{name}: got {value}, need a share of the steps, from 0 to 1")

    def rate(self, step: int, steps: int) -> float:
        """The share of the learning rate at a step, from 0, of so many."""
        rising = (step + 1) / max(1.0, self.warmup * steps)
        falling = (steps - step) / max(1.0, self.decay * steps)
        return min(1.0, rising, falling)
