"""From documents to windows of tokens: what the model reads, what is touched, what counts, and for how many bytes."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from saekernels.errors import InputError
from saekernels.eval.text.documents import Document, check_document

DEFAULT_CONTEXT = 2048
_GROUP = 64
_GROUP_CHARACTERS = 100_000

MASK = (
    "A position is touched (replaced) iff its token is real and not special (bos, eos, pad, ...). "
    "A prediction at t counts iff token t and token t+1 are both real and not special."
)


@dataclass(frozen=True)
class Window:
    """One piece of one document as the model sees it.

    ids [S] int32; special [S] bool; nbytes [S] int64, the UTF-8 bytes of the document between the end of the token
    before and the end of this one (their sum over a document is its length); start: where in the document it begins.
    """

    document: int
    ids: np.ndarray
    special: np.ndarray
    nbytes: np.ndarray
    start: int = 0

    @property
    def counted(self) -> np.ndarray:
        """[S-1] bool: predictions at t (of token t+1) that count."""
        return ~self.special[:-1] & ~self.special[1:]


class Tokens:
    """Cuts documents into windows of at most `context` tokens, each starting with what the tokenizer puts in front.

    bos: None follows the tokenizer, True forces its BOS token in front, False leaves everything out. What a tokenizer
    appends at the end is left off: a special token is never touched and never counted. tokenizer: None for documents
    that were all tokenized before; nothing is then put in front, and no token is special.
    """

    def __init__(self, tokenizer: Any, context: int, *, bos: bool | None = None, rows: int | None = None) -> None:
        self.tokenizer = tokenizer
        self.prefix = _prefix(tokenizer, bos)
        self.special = np.zeros(0, dtype=np.int32) if tokenizer is None else special_ids(tokenizer)
        self.rows = rows
        self.has_bytes = bool(getattr(tokenizer, "is_fast", False))
        self._check_ids(np.asarray(self.prefix))
        if context < len(self.prefix) + 2:
            raise InputError(f"context must be at least {len(self.prefix) + 2} tokens, got {context}")
        self.context = context

    def cut(self, texts: Sequence[str], first_document: int) -> list[list[Window]]:
        """The windows of each text, in order; documents are numbered from `first_document`."""
        if not texts:
            return []
        if self.tokenizer is None:
            raise InputError("tokenizer: got None, but a document has no ids; it is needed to cut texts into tokens")
        encoded = self.tokenizer(
            list(texts),
            add_special_tokens=False,
            return_attention_mask=False,
            return_token_type_ids=False,
            return_offsets_mapping=self.has_bytes,
            verbose=False,
        )
        offsets = encoded["offset_mapping"] if self.has_bytes else itertools.repeat(None)
        return [
            self._cut_one(first_document + i, text, ids, spans)
            for i, (text, ids, spans) in enumerate(zip(texts, encoded["input_ids"], offsets, strict=False))
        ]

    def cut_ids(self, ids: Sequence[int], document: int) -> list[Window]:
        """The windows of a text that was tokenized before; what the tokenizer puts in front is not put there twice."""
        front = len(self.prefix) if list(ids[: len(self.prefix)]) == list(self.prefix) else 0
        return self._cut_one(document, "", list(ids[front:]), None)

    def _cut_one(self, document: int, text: str, ids: list[int], spans: list[tuple[int, int]] | None) -> list[Window]:
        body = np.asarray(ids, dtype=np.int32)
        self._check_ids(body)
        nbytes = _bytes_per_token(text, spans) if spans is not None else np.zeros(len(body), dtype=np.int64)
        prefix = np.asarray(self.prefix, dtype=np.int32)
        step = self.context - len(prefix)
        windows = []
        for start in range(0, len(body), step):
            all_ids = np.concatenate([prefix, body[start : start + step]])
            window = Window(
                document,
                all_ids,
                np.isin(all_ids, self.special),
                np.concatenate([np.zeros(len(prefix), dtype=np.int64), nbytes[start : start + step]]),
                start,
            )
            if window.counted.any():
                windows.append(window)
        return windows

    def _check_ids(self, ids: np.ndarray) -> None:
        if self.rows is not None and ids.size and int(ids.max()) >= self.rows:
            raise InputError(
                f"the tokenizer does not fit the model: it gives token id {int(ids.max())}, "
                f"but the model has only {self.rows} embedding rows"
            )


def special_ids(tokenizer: Any) -> np.ndarray:
    """All ids that the tokenizer calls special: the named ones and added tokens with the special flag, sorted."""
    ids = set(tokenizer.all_special_ids)
    for index, token in getattr(tokenizer, "added_tokens_decoder", {}).items():
        if getattr(token, "special", False):
            ids.add(index)
    return np.asarray(sorted(i for i in ids if i is not None), dtype=np.int32)


def _prefix(tokenizer: Any, bos: bool | None) -> list[int]:
    if bos is True and tokenizer is None:
        raise InputError("bos: there is no tokenizer whose BOS token could be put in front")
    if bos is False or tokenizer is None:
        return []
    if bos is True:
        if tokenizer.bos_token_id is None:
            raise InputError("bos: this tokenizer has no BOS token to put in front")
        return [tokenizer.bos_token_id]
    probe = "a"
    plain = list(tokenizer(probe, add_special_tokens=False)["input_ids"])
    full = list(tokenizer(probe, add_special_tokens=True)["input_ids"])
    starts = (i for i in range(len(full) - len(plain) + 1) if full[i : i + len(plain)] == plain)
    return full[: next(starts, 0)]


def _bytes_per_token(text: str, spans: list[tuple[int, int]]) -> np.ndarray:
    # A character may be split over several tokens and some tokenizers leave spaces out of the spans, so bytes are taken
    # from the furthest end so far to this token's end: nothing is counted twice or lost.
    if not spans:
        return np.zeros(0, dtype=np.int64)
    ends = np.maximum.accumulate(np.asarray(spans, dtype=np.int64)[:, 1])
    widths = np.fromiter((_utf8_width(c) for c in text), dtype=np.int64, count=len(text))
    at = np.concatenate([[0], np.cumsum(widths)])[ends]
    return np.diff(at, prepend=0)


def _utf8_width(character: str) -> int:
    code = ord(character)
    return 1 if code < 0x80 else 2 if code < 0x800 else 3 if code < 0x10000 else 4


def chosen(
    documents: Iterable[Document], tokens: Tokens, wanted: int | None, seed: int
) -> Iterator[tuple[Document, list[Window]]]:
    """Documents with their windows, numbered from 0, until at least `wanted` predictions count (all of them if None).

    A sequence is shuffled by `seed`; any other iterable is read in its own order, and no further than needed. The last
    document is cut at the end of the window that reaches `wanted`. Documents without a counted prediction are left out.
    """
    iterator = _shuffled(documents, seed) if isinstance(documents, Sequence) else iter(documents)
    found = taken = 0
    for group in _groups(iterator):
        for document, windows in zip(group, _windows(tokens, group), strict=True):
            kept = []
            for window in windows:
                kept.append(replace(window, document=taken))
                found += int(window.counted.sum())
                if wanted is not None and found >= wanted:
                    yield document, kept
                    return
            if kept:
                yield document, kept
                taken += 1
    if not taken:
        raise InputError("data: nothing to evaluate: no document has two successive tokens that are not special")


def _windows(tokens: Tokens, group: list[Document]) -> list[list[Window]]:
    """The windows of each, texts tokenized together."""
    texts = iter(tokens.cut([document.text for document in group if document.ids is None], 0))
    return [next(texts) if one.ids is None else tokens.cut_ids(one.ids, 0) for one in group]


def _groups(documents: Iterator[Document]) -> Iterator[list[Document]]:
    """Some documents at a time, for the tokenizer: few enough that what it makes of them stays small."""
    group: list[Document] = []
    characters = 0
    for number, document in enumerate(documents):
        check_document(document, number)
        group.append(document)
        characters += len(document.ids or document.text)
        if len(group) == _GROUP or characters >= _GROUP_CHARACTERS:
            yield group
            group, characters = [], 0
    if group:
        yield group


def _shuffled(documents: Sequence[Document], seed: int) -> Iterator[Document]:
    return (documents[i] for i in np.random.default_rng(seed).permutation(len(documents)))


def context_of(model: Any, tokenizer: Any, context: int | None, default: int = DEFAULT_CONTEXT) -> int:
    """That window length; for None the model's own context, at most `default` tokens.

    Raises InputError for more tokens than the model has positions.
    """
    limit = model_limit(model)
    if context is None:
        limits = [default, limit, getattr(tokenizer, "model_max_length", None)]
        return min(limit for limit in limits if isinstance(limit, int) and limit > 0)
    if limit is not None and context > limit:
        raise InputError(f"context: got {context} tokens, but the model has only {limit} positions")
    return context


def model_limit(model: Any) -> int | None:
    """The number of positions the model's configuration allows, or None if it does not say."""
    config: Any = getattr(model, "config", None) or getattr(model, "cfg", None)
    config = config.get_text_config() if hasattr(config, "get_text_config") else config
    for name in ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "block_size"):
        value = getattr(config, name, None)
        if isinstance(value, int) and value > 0:
            return value
    return None
