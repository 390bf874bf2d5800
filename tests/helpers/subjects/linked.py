"""Two layers with known links: each later latent copies an earlier one, the same in all domains or not."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from saekernels.eval import Document
from saekernels.sae.activations import TopK
from saekernels.sae.module import SAE

DOMAINS = 3
SITES = ("early", "late")
LATENTS = 24
_TOKENS = 40  # of a domain
_ACTIVE = 4


class Linked(nn.Module):
    """Token -> four of the early latents, each 1 -> the late latents that copy them -> votes for the next token.

    common: how many of the late latents copy the same early one in all domains; each of the others copies another one
    in every domain. All latents are active in all domains.
    """

    def __init__(self, common: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(5)
        count = DOMAINS * _TOKENS
        codes = torch.zeros(_TOKENS, LATENTS)
        for token in codes:
            token[torch.randperm(LATENTS, generator=generator)[:_ACTIVE]] = 1
        self.embed = nn.Embedding.from_pretrained(codes.repeat(DOMAINS, 1), freeze=False)
        self.early, self.late = nn.Identity(), nn.Identity()
        self.votes = nn.Linear(LATENTS, count, bias=False)
        own = torch.arange(common, LATENTS)
        copies = [torch.cat([torch.arange(common), own.roll(domain * max(1, len(own) // DOMAINS))])
                  for domain in range(DOMAINS)]  # fmt: skip
        self.register_buffer("copies", torch.stack(copies))
        domain = torch.arange(count) // _TOKENS
        self.register_buffer("elsewhere", torch.where(domain[:, None] == domain, 0.0, -30.0))

    def forward(self, ids: Tensor) -> Tensor:
        """[B, S, V] for ids [B, S]."""
        early = self.early(self.embed(ids))
        late = self.late(early.gather(-1, self.copies[ids // _TOKENS]))
        return self.votes(late) + self.elsewhere[ids]

    def documents(self, each: int, length: int) -> list[Document]:
        """So many of each domain, tokens drawn at random."""
        generator = torch.Generator().manual_seed(0)
        found = []
        for domain in range(DOMAINS):
            drawn = torch.randint(_TOKENS, (each, length), generator=generator) + domain * _TOKENS
            found += [Document("", f"domain {domain}", ids=tuple(row)) for row in drawn.tolist()]
        return found


@torch.no_grad()
def saes() -> dict[str, SAE]:
    """Of both sites: latents are the coordinates, of which four are active."""
    made = {}
    for site in SITES:
        one = SAE(LATENTS, LATENTS, TopK(_ACTIVE), pre_bias="none")
        one.W_enc.copy_(torch.eye(LATENTS))
        one.W_dec.copy_(torch.eye(LATENTS))
        made[site] = one.eval()
    return made
