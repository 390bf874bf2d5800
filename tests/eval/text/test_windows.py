"""Windows: what is in front, what is touched, what counts, how many bytes, and which documents are taken."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import tiny_lm
from interrupted import in_small_chunks
from saekernels.eval import Document, InputError
from saekernels.eval.store import window_files as spool
from saekernels.eval.store.window_files import Spool, all_windows, write_spool
from saekernels.eval.text.batches import batches, make_batch
from saekernels.eval.text.windows import Tokens, chosen, context_of, special_ids

TEXT = tiny_lm.PARAGRAPH + "日本 𝕏 <eos>" + tiny_lm.CODE


def spooled(folder: Path, documents: Any, wanted: int | None = None) -> Spool:
    tokens = Tokens(tiny_lm.tokenizer(), 24)
    return write_spool(folder, chosen(documents, tokens, wanted, 0), 24, True, 320)


def sources(documents: Any, wanted: int | None, seed: int) -> list[str]:
    return [document.source for document, _ in chosen(documents, Tokens(tiny_lm.tokenizer(), 24), wanted, seed)]


def cut(context: int = 24, bos: bool | None = None, text: str = TEXT, tokenizer_bos: bool = True) -> list:
    return Tokens(tiny_lm.tokenizer(tokenizer_bos), context, bos=bos).cut([text], 0)[0]


@pytest.mark.parametrize(("passes", "chunks"), [(1, 2), (24, 2), (48, 4), (2_400, 20)])
def test_what_many_passes_are_made_over_lies_in_smaller_chunks(
    passes: int, chunks: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spool, "_CONTEXTS", 0)
    monkeypatch.setattr(spool, "CHUNK_POSITIONS", 240)
    tokens, texts = Tokens(tiny_lm.tokenizer(), 24), [Document("light on " * 11, "prose")] * 20
    made = write_spool(tmp_path, chosen(iter(texts), tokens, None, 0), 24, True, 320, passes)
    size = sum(len(window.ids) for window in made.chunk(0)) // len({window.document for window in made.chunk(0)})
    assert made.chunks == math.ceil(20 / math.ceil(240 * min(24, passes) // passes / size)) == chunks
    assert made.early() == dict(enumerate(range(0, 20 * size, -(-20 // chunks) * size)))
    monkeypatch.setattr(spool, "FIRST_POSITIONS", 1)
    assert made.early() == {0: 0}


@pytest.mark.parametrize(
    ("tokenizer_bos", "bos", "prefix"),
    [(True, None, [0]), (False, None, []), (True, False, []), (False, True, [0])],
)
def test_prefix_follows_the_tokenizer_unless_told(tokenizer_bos: bool, bos: bool | None, prefix: list[int]) -> None:
    windows = cut(bos=bos, tokenizer_bos=tokenizer_bos)
    plain = tiny_lm.tokenizer(False)(TEXT)["input_ids"]
    assert all(window.ids[: len(prefix)].tolist() == prefix for window in windows)
    assert np.concatenate([window.ids[len(prefix) :] for window in windows]).tolist() == plain
    assert {len(window.ids) for window in windows[:-1]} == {24}


def test_mask_is_the_stated_one() -> None:
    special = {0, 1, 2}
    for window in cut():
        ids = window.ids.tolist()
        assert window.special.tolist() == [i in special for i in ids]
        want = [a not in special and b not in special for a, b in itertools.pairwise(ids)]
        assert window.counted.tolist() == want
    assert any(1 in window.ids for window in cut()), "the text holds <eos>"


def test_bytes_add_up_to_the_text() -> None:
    assert sum(int(window.nbytes.sum()) for window in cut()) == len(TEXT.encode())
    first = cut(text="日本 x")[0]
    assert first.nbytes[0] == 0
    assert first.nbytes.sum() == len("日本 x".encode())
    assert (first.nbytes >= 0).all()


def test_special_ids_include_added_special_tokens() -> None:
    import copy

    tokenizer = copy.deepcopy(tiny_lm.tokenizer())
    tokenizer.add_special_tokens({"additional_special_tokens": ["<tool>"]})
    assert special_ids(tokenizer).tolist() == [0, 1, 2, tokenizer.convert_tokens_to_ids("<tool>")]


def test_selection_stops_at_the_window_that_reaches_the_count(tmp_path: Path) -> None:
    documents = [Document(tiny_lm.PARAGRAPH, "d", str(i)) for i in range(5)]
    (tmp_path / "all").mkdir()
    everything, some = spooled(tmp_path / "all", documents), spooled(tmp_path, documents, 100)
    counts = [int(window.counted.sum()) for window in all_windows(some)]
    assert sum(counts) == some.tokens >= 100 > sum(counts[:-1])
    tokens = Tokens(tiny_lm.tokenizer(), 24)
    assert everything.tokens == 5 * sum(int(w.counted.sum()) for w in tokens.cut([tiny_lm.PARAGRAPH], 0)[0])
    table = everything.per_document()
    assert table[:, 0].sum() == everything.tokens
    # Every counted token's bytes: the text without the tokens that start a window.
    starts = sum(int(window.nbytes[1]) for window in all_windows(everything))
    assert table[:, 1].sum() == 5 * len(tiny_lm.PARAGRAPH.encode()) - starts


def test_documents_are_shuffled_by_seed_and_repeatable() -> None:
    documents = [Document(tiny_lm.PARAGRAPH[i:], "d", str(i)) for i in range(20)]
    orders = {seed: sources(documents, 300, seed) for seed in (0, 1, 2)}
    assert orders[0] == sources(documents, 300, 0)
    assert orders[0] != orders[1] != orders[2]
    in_order = sources(iter(documents), 300, 7)
    assert in_order == [str(i) for i in range(len(in_order))]


def test_an_iterator_is_read_no_further_than_needed() -> None:
    read = []

    def endless():  # type: ignore[no-untyped-def]
        while True:
            read.append(1)
            yield Document(tiny_lm.PARAGRAPH)

    assert sources(endless(), 50, 0)
    assert len(read) <= 64


def test_documents_without_a_countable_token_are_left_out() -> None:
    documents = [Document("e"), Document(""), Document("<eos><eos>"), Document(tiny_lm.CODE, source="code")]
    assert sources(documents, None, 0) == ["code"]
    with pytest.raises(InputError, match="nothing to evaluate"):
        sources(documents[:3], None, 0)


@pytest.mark.parametrize("positions", [1, 100, 10**6])
def test_the_spool_gives_back_what_was_written(positions: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    in_small_chunks(positions, monkeypatch.setattr)
    documents = [replace(one, labels={"kind": one.domain[0]}) for one in tiny_lm.documents()]
    want = [w for _, windows in chosen(documents, Tokens(tiny_lm.tokenizer(), 24), None, 0) for w in windows]
    made = spooled(tmp_path, documents)
    again = spool.read_spool(tmp_path)
    assert again is not None
    assert {1: made.chunks > 3, 100: made.chunks > 1, 10**6: made.chunks == 1}[positions]
    got = list(all_windows(again))
    assert [(w.document, w.start, w.ids.tolist()) for w in got] == [(w.document, w.start, w.ids.tolist()) for w in want]
    for name in ("special", "nbytes"):
        assert all(np.array_equal(getattr(a, name), getattr(b, name)) for a, b in zip(got, want, strict=True))
    assert again.domains == made.domains
    assert again.labels == made.labels
    assert again.counts == made.counts
    assert np.array_equal(again.frequencies, made.frequencies)
    assert again.frequencies.sum() == made.tokens
    for number in range(made.chunks):
        first = made.chunk(number)[0]
        assert number == 0 or made.chunk(number - 1)[-1].document + 1 == first.document, "a document is in one chunk"


def test_a_tokenizer_that_does_not_fit_is_refused() -> None:
    with pytest.raises(InputError, match=r"token id \d+, but the model has only 100 embedding rows"):
        Tokens(tiny_lm.tokenizer(), 24, rows=100).cut([TEXT], 0)
    with pytest.raises(InputError, match="token id 0, but the model has only 0"):
        Tokens(tiny_lm.tokenizer(), 24, rows=0)


def test_bad_context_and_bos_are_refused() -> None:
    with pytest.raises(InputError, match="at least 3"):
        Tokens(tiny_lm.tokenizer(), 2)
    tokenizer = tiny_lm.tokenizer(False)
    without_bos = type(tokenizer)(tokenizer_object=tokenizer.backend_tokenizer)
    with pytest.raises(InputError, match="no BOS"):
        Tokens(without_bos, 24, bos=True)


def test_batches_hold_every_window_once_and_padding_never_counts(tmp_path: Path) -> None:
    windows = list(all_windows(spooled(tmp_path, tiny_lm.documents())))
    for size in (1, 3, 8):
        made = list(batches(windows, size, 24))
        assert sum(batch.positions for batch in made) == sum(len(window.ids) for window in windows)
        assert all(batch.ids.numel() <= size * 24 for batch in made)
        pairs = []
        for batch in made:
            flat = batch.ids.reshape(-1)
            assert torch.equal(flat[batch.rows + 1], batch.targets)
            assert bool(batch.touched.reshape(-1)[batch.rows].all() and batch.touched.reshape(-1)[batch.rows + 1].all())
            pairs += zip(batch.documents.tolist(), batch.targets.tolist(), strict=True)
        want = [(w.document, int(t)) for w in windows for t in w.ids[1:][w.counted]]
        assert sorted(pairs) == sorted(want)


def test_padding_is_on_the_right_and_untouched() -> None:
    long, short = cut()[0], cut(text="the café owner")[0]
    batch = make_batch([long, short])
    assert batch.ids[1, len(short.ids) :].tolist() == [0] * (24 - len(short.ids))
    assert not batch.touched[1, len(short.ids) :].any()


def test_default_context_is_the_models_and_bounded() -> None:
    assert context_of(tiny_lm.model(), tiny_lm.tokenizer(), None) == 24
    assert context_of(tiny_lm.model(max_position_embeddings=9000), tiny_lm.tokenizer(), None) == 2048
