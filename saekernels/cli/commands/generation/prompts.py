"""The prompts of `saekernels generate`, as text and as padded batches of token ids."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from saekernels.errors import InputError, first_line
from saekernels.eval.text.records import kind
from saekernels.eval.text.sources import load_documents
from saekernels.eval.text.windows import Tokens, model_limit


@dataclass(frozen=True)
class Prompt:
    """A prompt, its number, and the token ids that the model reads, BOS included."""

    number: int
    text: str
    ids: list[int]


def read_prompts(given: Sequence[str], source: str | None) -> list[str]:
    """The prompts that were typed, then those of a file or of stdin ("-"). InputError without any."""
    texts = [*given, *(_read(source) if source is not None else ())]
    if not texts:
        raise InputError(
            "prompt: got none, need a PROMPT in front of the options, --prompts FILE, or --prompts - for stdin"
        )
    return texts


def _read(source: str) -> list[str]:
    """A prompt in each line of stdin or of a text file; in each record of files of other kinds."""
    try:
        if source == "-":
            lines = sys.stdin.read().splitlines() if sys.stdin is not None else []
        elif kind(Path(source)) in ("", ".txt"):
            lines = Path(source).read_text(encoding="utf-8-sig").splitlines()
        else:
            return [_text_of(document) for document in load_documents([source])]
    except InputError as error:
        raise InputError(f"--prompts: {str(error).removeprefix('data: ')}") from error
    except (OSError, ValueError) as error:
        raise InputError(f"--prompts: cannot read {source!r}: {first_line(error)}") from error
    found = [line for line in lines if line.strip()]
    if not found:
        raise InputError(f"--prompts: {'stdin' if source == '-' else source} holds no prompt")
    return found


def _text_of(document: Any) -> str:
    if document.ids is not None:
        raise InputError(f"{document.source} holds token ids, need texts")
    return str(document.text)


def encode(texts: Sequence[str], model: Any, tokenizer: Any, bos: bool | None, new: int) -> list[Prompt]:
    """The prompts in tokens, BOS in front as `bos` says. InputError for one without tokens, or too long to go on."""
    limit = model_limit(model)
    cut = Tokens(tokenizer, 2**31, bos=bos, rows=model.get_input_embeddings().num_embeddings)
    made = []
    for number, text in enumerate(texts):
        try:
            ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
            begun = ids[: len(cut.prefix)] == cut.prefix  # a chat's template writes BOS itself
            ids = ids if begun else [*cut.prefix, *ids]
        except (TypeError, ValueError) as error:  # a lone surrogate
            raise InputError(f"prompt {number}: the tokenizer cannot read it: {first_line(error)}") from error
        if not ids:
            raise InputError(f"prompt {number}: got {text!r:.40}, which has no token, need at least one")
        if limit is not None and len(ids) + new > limit:
            what = f"{len(ids)} tokens, and --max-new-tokens is {new}"
            raise InputError(f"prompt {number}: got {what}, need at most {limit} together, the model's positions")
        made.append(Prompt(number, text, ids))
    return made


def batched(prompts: Sequence[Prompt], size: int) -> Iterator[Sequence[Prompt]]:
    """So many at a time, in order."""
    for start in range(0, len(prompts), size):
        yield prompts[start : start + size]


def padded(prompts: Sequence[Prompt], pad: int, device: torch.device) -> dict[str, Tensor]:
    """input_ids and attention_mask [B, P], padded on the left."""
    longest = max(len(prompt.ids) for prompt in prompts)
    ids = [[pad] * (longest - len(prompt.ids)) + prompt.ids for prompt in prompts]
    mask = [[0] * (longest - len(prompt.ids)) + [1] * len(prompt.ids) for prompt in prompts]
    return {"input_ids": torch.tensor(ids, device=device), "attention_mask": torch.tensor(mask, device=device)}
