"""A language with known latents: domains share as many of them as one says, and the model's SAE is its dictionary."""

from __future__ import annotations

import functools

import torch
from torch import Tensor, nn

from saekernels.eval import Document
from saekernels.eval.text.windows import Tokens
from saekernels.sae.activations import TopK
from saekernels.sae.module import SAE

DOMAINS = 3
SITE = "layer"
ACTIVE = 4
_SET = 12  # latents of a set, and tokens of a domain
_OFFSETS = (0, 1, 3, 7)
LATENTS = (1 + DOMAINS) * _SET


class Language(nn.Module):
    """Token -> four of the latents, each 1 -> votes for the next token of its domain, past which the site is not.

    shared: of the four latents of each token, how many are of the _SET that all domains have; the others are of the
    token's domain. Texts are drawn from the model, so every latent lowers the loss where it is active.
    """

    def __init__(self, shared: int) -> None:
        super().__init__()
        count = DOMAINS * _SET
        self.embed = nn.Embedding.from_pretrained(torch.zeros(count, LATENTS), freeze=False)
        self.layer = nn.Identity()
        self.votes = nn.Linear(LATENTS, count, bias=False)
        domain = torch.arange(count) // _SET
        self.register_buffer("elsewhere", torch.where(domain[:, None] == domain, 0.0, -30.0))
        with torch.no_grad():
            for token in range(count):
                for number, offset in enumerate(_OFFSETS):
                    start = 0 if number < shared else (1 + token // _SET) * _SET
                    self.embed.weight[token, start + (token + offset) % _SET] = 1
            votes = torch.randn(_SET, LATENTS, generator=torch.Generator().manual_seed(3))
            # A latent votes for what its role follows in any domain; in each set some say more than others.
            strength = torch.linspace(0.2, 2.0, _SET).repeat(1 + DOMAINS)
            self.votes.weight.copy_((votes * strength).repeat(DOMAINS, 1))

    def forward(self, ids: Tensor) -> Tensor:
        """[B, S, V] for ids [B, S]."""
        return self.votes(self.layer(self.embed(ids))) + self.elsewhere[ids]

    @torch.no_grad()
    def documents(self, each: int, length: int, seed: int = 0) -> list[Document]:
        """So many of each domain, drawn from the model's own predictions."""
        generator = torch.Generator().manual_seed(seed)
        chances = self(torch.arange(DOMAINS * _SET)[None])[0].softmax(-1)
        domain = torch.arange(DOMAINS).repeat_interleave(each)
        drawn = [domain * _SET + torch.randint(_SET, domain.shape, generator=generator)]
        for _ in range(length - 1):
            drawn.append(torch.multinomial(chances[drawn[-1]], 1, generator=generator)[:, 0])
        rows = torch.stack(drawn, 1).tolist()
        return [Document("", f"domain {int(number)}", ids=tuple(row)) for number, row in zip(domain, rows, strict=True)]


@functools.cache
def language(shared: int) -> Language:
    return Language(shared).eval()


@torch.no_grad()
def sae() -> SAE:
    """The model's own dictionary: its latents are the coordinates, of which four are active."""
    made = SAE(LATENTS, LATENTS, TopK(ACTIVE), pre_bias="none")
    made.W_enc.copy_(torch.eye(LATENTS))
    made.W_dec.copy_(torch.eye(LATENTS))
    return made.eval()


def tokens() -> Tokens:
    return Tokens(None, 20)
