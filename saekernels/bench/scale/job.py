"""An evaluation that is planned: sizes of model, SAEs and text, and over how many processes it is spread."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

import torch

from saekernels.eval.passes.plan import BASELINES, Plan, make_plan

_WHOLE = ("latents", "tokens", "sites", "width", "k", "parameters", "layers", "vocabulary", "context", "documents")
# More take the plan itself minutes.
MOST_SITES, MOST_PROCESSES = 1_024, 2**20


@dataclass(frozen=True)
class Job:
    """Sizes of an evaluation.

    Attributes:
        latents, k: of each SAE; sites: how many, evenly over the layers, in the residual stream.
        tokens: of the text; documents: how many they come in.
        width, layers, vocabulary, parameters: of the model; parameters with embedding and head.
        context, batch_size: tokens per window, windows per batch.
        dtype, sae_dtype: of the model and of the SAEs.
        baselines, cumulative: as of `evaluate`.
        processes: all of them; latent_parallel: over how many of them each SAE is spread.
    """

    latents: int
    tokens: int
    sites: int = 1
    width: int = 4096
    k: int = 64
    parameters: int = 8_030_000_000
    layers: int = 32
    vocabulary: int = 128_256
    context: int = 2048
    batch_size: int = 8
    documents: int = 0
    dtype: torch.dtype = torch.bfloat16
    sae_dtype: torch.dtype = torch.float32
    baselines: tuple[str, ...] = BASELINES
    cumulative: bool = True
    processes: int = 1
    latent_parallel: int = 1

    def __post_init__(self) -> None:
        """Raises ValueError for sizes that cannot be, by name."""
        least = {field.name: 0 if field.name == "documents" else 1 for field in fields(self)}
        for name in (*_WHOLE, "batch_size", "processes", "latent_parallel"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < least[name]:
                raise ValueError(f"{name}: got {value!r}, need an int of at least {least[name]}")
        if self.k > self.latents:
            raise ValueError(f"k: got {self.k}, need at most latents = {self.latents}")
        if self.sites > self.layers:
            raise ValueError(f"sites: got {self.sites}, need at most layers = {self.layers}")
        for name, most in (("sites", MOST_SITES), ("processes", MOST_PROCESSES)):
            if getattr(self, name) > most:
                raise ValueError(f"{name}: got {getattr(self, name)}, need at most {most}")
        if self.latent_parallel > self.latents:
            raise ValueError(f"latent_parallel: got {self.latent_parallel}, need at most latents = {self.latents}")
        if self.processes % self.latent_parallel:
            raise ValueError(
                f"latent_parallel: got {self.latent_parallel}, need a divisor of {self.processes} processes"
            )
        if self.body < 1:
            raise ValueError(
                f"parameters: got {self.parameters}, need more than the head's {self.vocabulary * self.width}"
            )

    @property
    def body(self) -> int:
        """Parameters that every token is multiplied with, embedding and head left out (tied ones are counted once)."""
        ends = self.vocabulary * self.width
        return self.parameters - (2 * ends if self.parameters > 4 * ends else ends)

    @property
    def data_parallel(self) -> int:
        return self.processes // self.latent_parallel

    def depth(self, site: int) -> int:
        """How many layers are done when a site's splice changes something."""
        return (site + 1) * self.layers // self.sites

    def plan(self) -> Plan:
        """The runs that the evaluator makes; sites are named by their number."""
        names = [str(site) for site in range(self.sites)]
        ranks = dict.fromkeys(names, self.k) if "pca" in self.baselines else {}
        return make_plan(names, {name: int(name) for name in names}, ranks, self.baselines, self.cumulative)

    def windows(self) -> int:
        return math.ceil(self.tokens / self.context)
