"""What a notebook shows of codes: their sizes, and of the first tokens the largest entries; reads no others."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from torch import Tensor

from saekernels.display.card import card
from saekernels.display.html import html_table

_MOST_TOKENS, _MOST_ENTRIES = 5, 8


def codes_card(values: Tensor, indices: Tensor, offsets: Tensor | None, shape: Sequence[int], n_latents: int) -> str:
    """HTML, of the fields of `Codes`."""
    tokens = math.prod(shape)
    if offsets is None:
        entries = f"{values.shape[-1]} of each token"
    else:
        entries = f"{len(values):,}" + (f", {len(values) / tokens:.1f} of a token on average" if tokens else "")
    facts: dict[str, object] = {
        "tokens": " × ".join(f"{size:,}" for size in shape) or "1",
        "n_latents": f"{n_latents:,}",
        "entries": entries,
        "dtype": str(values.dtype).removeprefix("torch."),
        "device": values.device,
    }
    if values.is_meta or not tokens:
        return card("Codes", facts)
    rows = [_row(values, indices, offsets, shape, token) for token in range(min(tokens, _MOST_TOKENS))]
    facts["below"] = "of the first tokens the largest entries, as latent: value"
    headings = ["token", "L0", *map(str, range(1, max(map(len, rows)) - 1))]
    return card("Codes", facts, html_table(headings, [row + [""] * (len(headings) - len(row)) for row in rows]))


def _row(values: Tensor, indices: Tensor, offsets: Tensor | None, shape: Sequence[int], token: int) -> list[str]:
    """A token's place, its L0, and its entries of the largest magnitude, those that are zero left out."""
    place = tuple(int(at) for at in np.unravel_index(token, tuple(shape))) if shape else ()
    if offsets is None:
        values, indices = values[place], indices[place]
    else:
        start, end = offsets[token : token + 2].tolist()
        values, indices = values[start:end], indices[start:end]
    order = values.detach().abs().topk(min(len(values), _MOST_ENTRIES)).indices
    best = zip(indices[order].tolist(), values[order].tolist(), strict=True)
    entries = [f"{latent}: {value:.4g}" for latent, value in best if value != 0]
    return [", ".join(map(str, place)), str(int((values != 0).sum())), *entries]
