"""Texts while they are written: to the terminal with marks at what fires, or as JSON lines."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

from saekernels.cli.commands.generation.prompts import Prompt
from saekernels.generation.texts import Generated
from saekernels.generation.watch import Fired, Watch

Show = Callable[[str], None]


class Text:
    """The text of one prompt as it grows: `added` gives what a new token adds, once that is whole characters."""

    def __init__(self, prompt: Prompt, tokenizer: Any) -> None:
        self._tokenizer, self._ids = tokenizer, list(prompt.ids)
        self._start = self._shown = self._decoded()

    def added(self, token: int) -> str:
        """The characters that this token completes."""
        self._ids.append(token)
        text = self._decoded()
        if text.endswith("\ufffd"):
            return ""
        new, self._shown = text[len(self._shown) :], text
        return new

    def rest(self) -> str:
        """What the last tokens left over: a character of which only a part was written, as the tokenizer shows it."""
        text = self._decoded()
        new, self._shown = text[len(self._shown) :], text
        return new

    @property
    def written(self) -> str:
        """All that was written after the prompt."""
        return self._decoded()[len(self._start) :]

    def _decoded(self) -> str:
        return str(self._tokenizer.decode(self._ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))


def marks(watches: Sequence[Watch]) -> dict[tuple[str, int], str]:
    """A letter for every latent that is watched by itself, the first 26."""
    named = dict.fromkeys((watch.site, watch.latent) for watch in watches if watch.latent is not None)
    return dict(zip(named, "abcdefghijklmnopqrstuvwxyz", strict=False))


class Streamed:
    """One text, shown as it is written; behind a token, in brackets, the letter and value of what fires there."""

    def __init__(self, prompt: Prompt, tokenizer: Any, letters: dict[tuple[str, int], str], show: Show) -> None:
        self._text, self._letters, self._show = Text(prompt, tokenizer), letters, show

    def token(self, row: int, token: int) -> None:
        """A new token."""
        if added := self._text.added(token):
            self._show(added)

    def event(self, event: Fired) -> None:
        """What fires at the token before."""
        letter = self._letters.get((event.site, event.latent))
        if letter and event.generated:
            self._show(f"[{letter} {event.value:.3g}]")

    def end(self) -> None:
        """The text goes on no further."""
        if rest := self._text.rest():
            self._show(rest)


class Lines:
    """Tokens, events and ends of a batch as JSON objects; `out` is handed each as one line."""

    def __init__(self, prompts: Sequence[Prompt], tokenizer: Any, edited: bool, out: Show) -> None:
        self._prompts, self._tokenizer, self._edited, self._out = prompts, tokenizer, edited, out
        self._next = [len(prompt.ids) for prompt in prompts]

    def token(self, row: int, token: int) -> None:
        """A new token of a row."""
        self._line("token", row, position=self._next[row], **self._token(token))
        self._next[row] += 1

    def event(self, event: Fired) -> None:
        """What fires."""
        self._line("fired", event.prompt, **fired(event), **self._token(event.token))

    def end(self, row: int, made: Generated, text: str) -> None:
        """A row that has ended."""
        stopped_by = None if made.stopped_by is None else fired(made.stopped_by)
        self._line("end", row, reason=made.reason, stopped_by=stopped_by, text=text)

    def _token(self, token: int) -> dict[str, Any]:
        return {"id": token, "text": self._tokenizer.decode([token])}

    def _line(self, kind: str, row: int, **fields: Any) -> None:
        told = {"kind": kind, "prompt": self._prompts[row].number, "edited": self._edited, **fields}
        self._out(json.dumps(told) + "\n")


def fired(event: Fired) -> dict[str, Any]:
    """The fields of an event, beside which prompt and token it is of."""
    return {
        "position": event.position,
        "generated": event.generated,
        "site": event.site,
        "latent": event.latent,
        "value": event.value,
    }
