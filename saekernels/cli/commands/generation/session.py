"""What `saekernels generate` has at hand while it writes: model, SAEs, watches, edits, and what was told so far."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

import torch

from saekernels.cli.commands.generation.live import Lines, Show, Streamed, Text, fired, marks
from saekernels.cli.commands.generation.prompts import Prompt, padded
from saekernels.cli.commands.generation.text import ending, parting, side_by_side, strongest
from saekernels.cli.options.leave import leave_keywords
from saekernels.cli.options.source import Source
from saekernels.errors import InputError
from saekernels.eval.text.windows import special_ids
from saekernels.generation.texts import Generated
from saekernels.generation.watch import Watch
from saekernels.generation.watching import watching
from saekernels.parallel.devices import input_device
from saekernels.sae.edits import Edit


class Session:
    """A loaded model, what is watched and edited, and what was told so far; show: to where texts go."""

    def __init__(self, arguments: argparse.Namespace, source: Source, show: Show) -> None:
        self.show = show
        self.arguments, self.model, self.tokenizer = arguments, source.model, source.tokenizer
        self.saes = _chosen(source.saes, arguments.sites)
        stops = [Watch(one.site, one.latent, one.threshold, stop=True) for one in arguments.stop or ()]
        self.watches = [*(arguments.watch or ()), *stops] or [Watch(site) for site in self.saes]
        self.edits: dict[str, list[Edit]] = {}
        for site, one in arguments.edit:
            self.edits.setdefault(site, []).append(one)
        self.letters = marks(self.watches)
        self.lines: list[str] = []
        self.pad = source.tokenizer.pad_token_id
        self.pad = self.pad if self.pad is not None else source.tokenizer.eos_token_id or 0
        torch.manual_seed(arguments.seed)
        with self._watching(self.edits, None):
            pass  # what does not fit is told before anything is shown

    def write(self, batch: Sequence[Prompt]) -> list[dict[str, Any]]:
        """Let the model go on from each prompt, without and with the edits; show that, and return it as data."""
        live, streams = self.arguments.events == "-", len(batch) == 1 and not self.edits
        # With edits the same random numbers once more; the next batch has others, or a prompt given twice had one text.
        with torch.random.fork_rng(enabled=bool(self.edits)):
            versions = [self._version(batch, False, streams and not live)]
        if self.edits:
            versions.append(self._version(batch, True, False))
        records = []
        for row, prompt in enumerate(batch):
            made = [version[row] for version in versions]
            written = [self._written(prompt, one) for one in made]
            parts_at = parting(made[0].ids, made[1].ids) if self.edits else None
            if not live:
                self._show(prompt, made, written, parts_at, streams)
            records.append(
                {"prompt": prompt.text, "tokens": len(prompt.ids), "parts_at": parts_at,
                 "texts": [self._record(*one) for one in zip(made, written, (False, True), strict=False)]}
            )  # fmt: skip
        return records

    def _version(self, batch: Sequence[Prompt], edited: bool, streams: bool) -> list[Generated]:
        live = self.arguments.events == "-"
        lines = Lines(batch, self.tokenizer, edited, self.show if live else self.lines.append)
        told: list[Any] = [lines] if self.arguments.events else []
        streamed = Streamed(batch[0], self.tokenizer, self.letters, self.show) if streams else None
        if streamed is not None:
            self.show(f"\n{batch[0].text}")
            told.append(streamed)

        def on_token(row: int, token: int) -> None:
            for one in told:
                one.token(row, token)

        def on_event(event: Any) -> None:
            for one in told:
                one.event(event)

        arguments = self.arguments
        options: dict[str, Any] = {"max_new_tokens": arguments.max_new_tokens, "do_sample": arguments.temperature > 0}
        if arguments.temperature > 0:
            options |= {"temperature": arguments.temperature, "top_p": arguments.top_p, "top_k": 0}
        if arguments.cache == "static":
            options["cache_implementation"] = "static"
        inputs = padded(batch, self.pad, input_device(self.model))
        with self._watching(self.edits if edited else {}, on_event) as watched:
            made = watched.generate(**inputs, on_token=on_token, use_cache=True, pad_token_id=self.pad, **options)
        if streamed is not None:
            streamed.end()
        if arguments.events:
            for row, prompt in enumerate(batch):
                lines.end(row, made[row], self._written(prompt, made[row]))
        return made

    def _watching(self, edits: Any, on_event: Any) -> Any:
        options = {"keep_error": self.arguments.keep_error, "untouched": special_ids(self.tokenizer).tolist()}
        options |= leave_keywords(self.arguments)
        return watching(self.model, self.saes, self.watches, edits=edits, on_event=on_event, **options)

    def _written(self, prompt: Prompt, made: Generated) -> str:
        text = Text(prompt, self.tokenizer)
        for token in made.ids:
            text.added(token)
        return text.written

    def _show(
        self, prompt: Prompt, made: Sequence[Generated], written: Sequence[str], parts_at: int | None, streamed: bool
    ) -> None:
        if self.edits:
            self.show(f"\n{prompt.text}\n\n" + side_by_side(written[0], written[1], parts_at))
        elif not streamed:
            self.show(f"\n{prompt.text}{written[0]}")
        read = len(prompt.ids) + len(made[-1].ids) - (made[-1].stopped_by is None)
        self.show(f"\n\n{ending(made[-1])}\n\n{strongest(made[-1], self.tokenizer, read)}")

    def _record(self, made: Generated, text: str, edited: bool) -> dict[str, Any]:
        stopped_by = None if made.stopped_by is None else fired(made.stopped_by)
        told = {"edited": edited, "text": text, "ids": made.ids, "reason": made.reason, "stopped_by": stopped_by}
        return {**told, "events": [{**fired(event), "id": event.token} for event in made.events]}


def _chosen(saes: dict[str, Any], sites: Sequence[str] | None) -> dict[str, Any]:
    """The SAEs of these sites, in the order of the model's; all for None."""
    several = [entry for entry in saes if "#" in entry]
    if several:
        raise InputError(f"--sae: {several[0]} is a further SAE of its site, need one for each")
    for site in sites or ():
        if site not in saes:
            raise InputError(f"--sites: there is no SAE {site!r}; there are {', '.join(saes)}")
    return {site: sae for site, sae in saes.items() if sites is None or site in sites}
