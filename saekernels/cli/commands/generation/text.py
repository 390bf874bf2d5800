"""Finished texts in words: why they ended, what fired in them, and two of them side by side."""

from __future__ import annotations

import itertools
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from saekernels.display.numbers import counted, number
from saekernels.display.tables import line_width, text_table
from saekernels.generation.texts import Generated
from saekernels.generation.watch import Fired, Watch

STRONGEST = 5
_HEADINGS = ("latent", "fires at", "strongest", "at token", "which is")


def legend(watches: Sequence[Watch], letters: Mapping[tuple[str, int], str]) -> str:
    """What the letters mean, a line each; "" without any."""
    lines = []
    for (site, latent), letter in letters.items():
        own = [watch for watch in watches if (watch.site, watch.latent) == (site, latent)]
        first = min(own, key=lambda one: one.threshold)
        end = min((watch.threshold for watch in own if watch.stop), default=None)
        ends = f", above {end:g} it ends the text" if end is not None and end > first.threshold else ""
        ends = ", which ends the text" if end == first.threshold else ends
        lines.append(f"{letter}: {first}{ends}\n")
    return "".join(lines)


def ending(made: Generated) -> str:
    """Why a text ended."""
    end = f"{counted(len(made.ids), 'token')}, "
    if made.stopped_by is not None:
        by = made.stopped_by
        return end + f"stopped: {by.site}:{by.latent} is {by.value:.3f} at token {by.position}"
    by_config = "ended by max_time, which the model's generation config sets"
    return end + {"eos": "ended by itself", "length": "ended by --max-new-tokens", "time": by_config}[made.reason]


def strongest(made: Generated, tokenizer: Any, tokens: int) -> str:
    """A table of the latents that fired: each that is watched, but at most STRONGEST of a site, by their peak.

    tokens: how many of the text the SAEs have read.
    """
    by_latent: dict[tuple[str, int], list[Fired]] = {}
    for event in made.events:
        by_latent.setdefault((event.site, event.latent), []).append(event)
    if not by_latent:
        return "No watched latent fired.\n"
    rows, sites = [], list(dict.fromkeys(site for site, _ in by_latent))
    for site in sites:
        peaks = [max(events, key=lambda one: one.value) for key, events in by_latent.items() if key[0] == site]
        for peak in sorted(peaks, key=lambda one: -one.value)[:STRONGEST]:
            count = len(by_latent[site, peak.latent])
            where = f"{peak.position}{'' if peak.generated else ' (prompt)'}"
            word = repr(tokenizer.decode([peak.token]))
            rows.append([f"{site}:{peak.latent}", f"{count} of {tokens}", number(peak.value), where, word])
    left = len(by_latent) - len(rows)
    after = f"The {STRONGEST} strongest of each site; {counted(left, 'further latent')} fired." if left else ""
    return text_table(_HEADINGS, rows, after=after)


def parting(plain: Sequence[int], edited: Sequence[int]) -> int | None:
    """The first new token at which two texts differ; None if they do not."""
    pairs = enumerate(itertools.zip_longest(plain, edited))
    return next((index for index, (one, other) in pairs if one != other), None)


def side_by_side(plain: str, edited: str, parts_at: int | None) -> str:
    """Both texts in two columns."""
    width = (line_width() - 3) // 2
    columns = [["without edits", "", *_folded(plain, width)], ["with edits", "", *_folded(edited, width)]]
    lines = [f"{one:{width}} | {other}".rstrip() for one, other in itertools.zip_longest(*columns, fillvalue="")]
    told = "The texts are the same." if parts_at is None else f"They part at new token {parts_at}."
    return "\n".join([*lines, "", told]) + "\n"


def _folded(text: str, width: int) -> list[str]:
    lines = text.expandtabs(4).split("\n")
    return [part for line in lines for part in textwrap.wrap(line, width, drop_whitespace=False) or [""]]
