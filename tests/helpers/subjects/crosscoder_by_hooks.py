"""A crosscoder in the tiny model, and its runs by hooks and principal components that know nothing of the library."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import saekernels as sk
import tiny_lm
from saekernels.eval.text.slices import alternate

LATENTS, LENGTH, D = 48, 22, tiny_lm.WIDTH
SITES = [f"model.layers.{layer}.mlp" for layer in range(2)]
FAST: dict[str, Any] = {"context": 24, "bootstrap": 20, "tokenizer": None}


def crosscoder() -> sk.Crosscoder:
    """Heads select for themselves, so that what is active differs between them; a row of each head is 0."""
    torch.manual_seed(1)
    found = sk.Crosscoder(D, LATENTS, 2, sk.BatchTopK(), norms="per_head", input_scale=[3.0, 2.0])
    with torch.no_grad():
        for parameter in found.parameters():
            parameter.normal_(std=0.2)
        found.W_dec.view(LATENTS, 2, D)[0, 0] = found.W_dec.view(LATENTS, 2, D)[1, 1] = 0
        found.threshold.copy_(torch.tensor([0.6, 0.4]))  # type: ignore[union-attr]
    found.sites = tuple(SITES)
    return found.eval()


def documents() -> list[sk.Document]:
    ids = torch.randint(3, 320, (12, LENGTH), generator=torch.Generator().manual_seed(3)).tolist()
    return [sk.Document(str(i), "aab"[i % 3], ids=tuple(row)) for i, row in enumerate(ids)]


class ByHand:
    """The tiny model, with what its MLPs give exchanged by hooks, one document after another."""

    def __init__(self, model: Any, coder: sk.Crosscoder, given: list[sk.Document]) -> None:
        self.model, self.coder = model, coder
        read = [given[i] for i in np.random.default_rng(0).permutation(len(given))]
        half = alternate([one.domain for one in read])
        self.fitted = [one for one, own in zip(read, half, strict=True) if own]
        self.measured = [one for one, own in zip(read, half, strict=True) if not own]

    @torch.no_grad()
    def logits(self, document: sk.Document, written: dict[int, Tensor]) -> tuple[Tensor, list[Tensor]]:
        """Logits [S - 1, V], and what both MLPs gave [S, d]."""
        gave: list[Tensor] = []

        def hook(layer: int) -> Any:
            def put(module: nn.Module, args: Any, out: Tensor) -> Tensor:
                gave.append(out[0])
                return written[layer][None].to(out) if layer in written else out

            return put

        handles = [block.mlp.register_forward_hook(hook(i)) for i, block in enumerate(self.model.model.layers)]
        logits = self.model(torch.tensor([document.ids])).logits[0, :-1].double()
        for handle in handles:
            handle.remove()
        return logits, gave

    def clean(self, document: sk.Document) -> list[Tensor]:
        return self.logits(document, {})[1]

    def codes(self, gave: list[Tensor]) -> list[Tensor]:
        """[S, F] of each head."""
        W_enc, W_dec = self.coder.W_enc.view(LATENTS, 2, D), self.coder.W_dec.view(LATENTS, 2, D)
        scaled = [gave[0] * 3, gave[1] * 2]
        h = (sum(x @ W_enc[:, i].T for i, x in enumerate(scaled)) + self.coder.b_enc).relu()
        return [(h * (h * W_dec[:, i].norm(dim=1) > (0.6, 0.4)[i])).detach() for i in range(2)]

    def rows(self, codes: list[Tensor], order: Tensor | None = None) -> list[Tensor]:
        """What they write; order: in the directions of other latents, with the norms of their own."""
        made = []
        for i, own in enumerate(codes):
            W = self.coder.W_dec.view(LATENTS, 2, D)[:, i].detach()
            if order is not None:
                W = nn.functional.normalize(W[order], dim=1) * W.norm(dim=1, keepdim=True)
            made.append((own @ W + self.coder.b_dec[i].detach()) / (3, 2)[i])
        return made

    def ce(self, write: Any, layers: tuple[int, ...] = (0, 1), domain: str = "ab") -> float:
        losses = []
        for one in self.measured:
            if one.domain in domain:
                written = write(self.clean(one))
                logits, _ = self.logits(one, {layer: written[layer] for layer in layers})
                losses.append(nn.functional.cross_entropy(logits, torch.tensor(one.ids)[1:], reduction="none"))
        return float(torch.cat(losses).mean())

    def principal(self, rank: int, shared: bool, domain: str = "ab") -> Any:
        """Each head's own first principal components, or those of both side by side, of equal spread."""
        own = [self.clean(one) for one in self.fitted if one.domain in domain]
        x = [torch.cat([gave[i] for gave in own]).double() for i in range(2)]
        scales = [1 / one.var(0, correction=0).sum().sqrt() for one in x]
        sides = [torch.cat([a * s for a, s in zip(x, scales, strict=True)], 1)] if shared else x
        means = [one.mean(0) for one in sides]
        found = [torch.linalg.svd(one - m)[2][:rank] for one, m in zip(sides, means, strict=True)]

        def write(gave: list[Tensor]) -> list[Tensor]:
            wide = [one.double() for one in gave]
            if not shared:
                return [(one - m) @ v.T @ v + m for one, m, v in zip(wide, means, found, strict=True)]
            joined = torch.cat([a * s for a, s in zip(wide, scales, strict=True)], 1)
            out = (joined - means[0]) @ found[0].T @ found[0] + means[0]
            return [out[:, i * D : (i + 1) * D] / scales[i] for i in range(2)]

        return write
