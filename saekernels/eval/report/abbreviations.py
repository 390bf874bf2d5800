"""What the abbreviations of the pages mean, and texts and tables that say so on hover."""

from __future__ import annotations

from collections.abc import Sequence

from saekernels.display.html import Cell, abbreviated, html_table

ABBREVIATIONS = {
    "ΔCE": "cross-entropy of the spliced model minus that of the clean one, nats per token",
    "CE": "cross-entropy of the next token, nats",
    "KL": "Kullback-Leibler divergence of the spliced model's next-token distribution from the clean one's, nats",
    "FVU": "fraction of variance unexplained: squared error of the reconstruction over the variance of its target",
    "L0": "latents active per token, on average",
    "PCA": "principal component analysis",
    "SAE": "sparse autoencoder",
    "SAEs": "sparse autoencoders",
    "top-1": "share of tokens at which the spliced and the clean model put the same token first",
    "rec.": "loss recovered: (CE ablated - CE spliced) / (CE ablated - CE clean)",
    "dead": "share of latents that were active at no token of this text",
    "bits/byte": "ΔCE in bits per byte of UTF-8 text: comparable between tokenizers",
}


def marked(text: str) -> str:
    """Plain text as HTML with its abbreviations explained."""
    return abbreviated(text.replace(" %", "\u00a0%"), ABBREVIATIONS)


def note(text: str) -> str:
    """A paragraph in soft type, of plain text."""
    return f'<p class="soft">{marked(text)}</p>'


def table(headings: Sequence[str | Cell], rows: Sequence[Sequence[str | Cell]], last_is_joint: bool = False) -> str:
    """As `html_table`, with the abbreviations of plain headings explained."""
    return html_table([one if isinstance(one, Cell) else Cell(marked(one)) for one in headings], rows, last_is_joint)
