"""Which slices of a text are chosen: such as can be fitted and measured; what can not is refused with its counts."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

import tiny_lm
from saekernels import example
from saekernels.eval import Document, InputError, load_documents
from saekernels.eval.text.slice_choice import choose_slices
from saekernels.eval.text.slice_counts import Minimum
from saekernels.eval.text.slices import LEVELS, Slices, alternate, levels_of
from saekernels.eval.text.windows import Tokens, chosen
from saekernels.sae.probes import Moments, fit_probes
from tiny_lm import counted, sample, slices, texts, tokens


def test_levels_are_nested_and_found_by_characters() -> None:
    found, cut = slices(), tokens()
    assert found.domain == "code"
    assert found.begins is None
    for document, windows in chosen(iter(texts()), cut, None, 0):
        inside: list[int] = []
        for window, level in zip(windows, levels_of(document, windows, found, cut), strict=True):
            assert level.shape == window.ids.shape
            assert (level <= 2).all() if document.domain == "code" else (level == 3).all()
            inside += window.ids[level <= 1].tolist()
            assert (window.ids[level == 0] == found.token).all()
            assert not ((window.ids == found.token) & (level == 1)).any()
        wanted = "".join(re.findall(r"while .*", document.text)) if document.domain == "code" else ""
        assert cut.tokenizer.decode(inside).replace(" ", "") == wanted.replace(" ", "")


def test_what_is_not_given_is_the_commonest_of_both_halves() -> None:
    documents = [
        Document("return a, b, c\nreturn d, e\n", "x", "0"),
        Document("return f, g\nwhile h\nreturn i\n", "x", "1"),
        Document("once\n" * 50, "y", "2"),
    ]
    found, notes = choose_slices(sample(documents), tokens(), Minimum(0, 1))
    assert notes == ["The narrowest slice is measured in one document, so it has no interval."]
    assert found.domain == "x"
    assert found.begins == "return"
    assert re.findall(found.template, "  return q, r\nno\n")
    assert found.names(tiny_lm.tokenizer())["template"] == "lines that begin with 'return' in x"
    counts = [tiny_lm.tokenizer()(t)["input_ids"] for t in ("return a, b, c\nreturn d, e", "return f, g\nreturn i")]
    assert found.token in counts[0]
    assert found.token in counts[1]
    assert alternate(["x", "y", "x", "x", "y"]) == [True, True, False, True, False]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("law", None, None), "domain: none of the documents is of 'law'; they are of code, prose"),
        (("code", "(", None), r"template: '\(' is no regular expression"),
        (("code", "xyzzy", None), "template: matches of xyzzy in code has 0 positions to fit on, 0 predictions"),
        (("code", "while .*", "the quick brown"), "token: 'the quick brown' is .* tokens of this tokenizer"),
        (("code", "while .*", "é"), "token: 'é' is .*"),
        (("code", "while .*", "COMMON"), None),
    ],
)
def test_bad_slices(given: Any, message: str | None) -> None:
    if message is None:
        common = tiny_lm.tokenizer().decode([slices().token])
        assert choose_slices(sample(texts()), tokens(), Minimum(0, 1), *given[:2], common)[0] == slices()
        return
    with pytest.raises(InputError, match=message):
        choose_slices(sample(texts()), tokens(), Minimum(0, 1), *given)


def test_one_document_cannot_be_both_fitted_and_tested() -> None:
    one_each = sample([Document("def a", "x", "0"), Document("def a", "y", "1")])
    with pytest.raises(InputError, match=r"every domain has one document here; .*; there are 6 tokens in 2 documents"):
        choose_slices(one_each, tokens(), Minimum(0, 1))
    numbers = sample([Document("1 1", "x", "0"), Document("2 2", "x", "1")])
    with pytest.raises(InputError, match=r"tokens: no slice for breadth has enough positions; .* in 2 documents"):
        choose_slices(numbers, tokens(), Minimum(0, 1))


WORDS = ("the", "old", "keeper", "light", "log", ",", "(", ".", "é", "\n", "\n", "\ndef", "\n    while", "\nreturn")
corpora = st.lists(
    st.tuples(st.sampled_from(["x", "y"]), st.lists(st.sampled_from(WORDS), min_size=2, max_size=60)),
    min_size=2, max_size=7,
)  # fmt: skip


@settings(max_examples=150, deadline=None)
@given(corpora, st.integers(0, 6), st.integers(1, 8))
def test_chosen_slices_have_the_minimum_and_refused_texts_have_none(corpus: Any, rank: int, measured: int) -> None:
    documents = [Document(" ".join(words), domain, str(i)) for i, (domain, words) in enumerate(corpus)]
    text, least = sample(documents), Minimum(rank, measured)
    try:
        found, notes = choose_slices(text, tokens(), least)
    except InputError:
        every = {int(i) for _, windows in text for window in windows for i in window.ids[~window.special]}
        candidates = [Slices(token, None, name) for token in every for name in ("x", "y", None)]
        candidates += [Slices(None, None, name) for name in ("x", "y")]
        for fitted, inside, outside, _ in (counted(text, one) for one in candidates):
            assert fitted < rank + 2 or min(inside, outside) < measured
        return
    fitted, inside, outside, owners = counted(text, found)
    assert fitted >= rank + 2
    assert min(inside, outside) >= measured
    assert (owners == 1) == any("no interval" in note for note in notes)
    assert (len(found.levels) < 4) == any("No narrower slice" in note for note in notes)


@pytest.mark.parametrize("rank", [1, 5, 8])
def test_below_the_minimum_a_probe_goes_through_every_position(rank: int) -> None:
    torch.manual_seed(rank)
    for count in (Minimum(rank).fitted - 1, Minimum(rank).fitted):
        rows = torch.randn(count, tiny_lm.WIDTH)
        moments = Moments(tiny_lm.WIDTH)
        moments.add(rows)
        probes = fit_probes(moments, [rank, rank + 1])
        left = (probes[rank](rows) - rows).norm() / rows.norm()
        apart = (probes[rank](rows) - probes[rank + 1](rows)).norm() / rows.norm()
        if count < Minimum(rank).fitted:
            assert left < 1e-5
            assert apart < 1e-5
        else:
            assert left > 0.02
            assert apart > 0.02


@pytest.mark.parametrize(
    ("least", "named", "levels", "note"),
    [
        (Minimum(8), (None, None, None), LEVELS, None),
        (Minimum(8), ("code", "while .*", None), LEVELS[1:], "so the narrowest is matches of while .* in code."),
        (Minimum(12), (None, None, None), LEVELS[1:], "so the narrowest is lines that begin with 'log' in code."),
        (Minimum(40), (None, None, "e"), (), None),
        (
            Minimum(12),
            ("code", None, " "),
            ("token", "domain", "everything"),
            "the narrowest is the token ' ' in code.",
        ),
        (Minimum(20, 25), (None, None, " "), ("token", "everything"), "the narrowest is the token ' ' anywhere."),
        (Minimum(200), (None, None, None), ("domain", "everything"), "the narrowest is prose."),
        (Minimum(270), (None, None, None), (), None),
    ],
)
def test_what_has_too_few_positions_is_widened_and_said(
    least: Minimum, named: Any, levels: tuple[str, ...], note: str | None
) -> None:
    if not levels:
        with pytest.raises(InputError, match="positions to fit on"):
            choose_slices(sample(texts()), tokens(), least, *named)
        return
    found, notes = choose_slices(sample(texts()), tokens(), least, *named)
    assert found.levels == levels
    assert [one.endswith(note or "") for one in notes] == [True] * (note is not None)
    assert counted(sample(texts()), found)[0] >= least.fitted


def test_a_named_slice_with_too_few_positions_is_refused_with_its_counts() -> None:
    where = slices()
    name = where.names(tiny_lm.tokenizer())["token"]
    token = tiny_lm.tokenizer().decode([where.token])
    assert counted(sample(texts()), where) == (4, 4, 496, 2)
    wanted = (
        f"token: {name} has 4 positions to fit on, 4 predictions to measure inside and 496 outside; a probe of rank 32 "
        "needs 34, 10 and 10; there are TOTAL tokens in 10 documents; about TIMES tokens might do"
    )
    total = sum(int(window.counted.sum()) for _, windows in sample(texts()) for window in windows)
    with pytest.raises(InputError) as caught:
        choose_slices(sample(texts()), tokens(), Minimum(32), "code", "while .*", token)
    told = re.fullmatch(
        re.escape(wanted).replace("TOTAL", r"([\d,]+)").replace("TIMES", r"([\d,]+)"), str(caught.value)
    )
    assert told
    there, more = (int(number.replace(",", "")) for number in told.groups())
    assert there == total
    assert 0 <= more - total * 34 / 4 < 100


def test_the_bundled_example_says_how_much_text_would_do_and_it_does() -> None:
    tokenizer = AutoTokenizer.from_pretrained(example.MODEL_DIR)
    cut, documents = Tokens(tokenizer, 256), load_documents([str(example.EVAL_DATA)])
    found: dict[int, Slices] = {}
    with pytest.raises(InputError, match=r"needs 34, 10 and 10; there are 1,013 tokens in 2 documents") as caught:
        choose_slices(list(chosen(documents, cut, 1000, 0)), cut, Minimum(32))
    told = re.search(r"about ([\d,]+) tokens might do", str(caught.value))
    assert told
    for wanted in (int(told[1].replace(",", "")), 3000, 50_000):
        text = list(chosen(documents, cut, wanted, 0))
        found[wanted] = choose_slices(text, cut, Minimum(32))[0]
        fitted, inside, outside, _ = counted(text, found[wanted], cut)
        assert fitted >= 34
        assert min(inside, outside) >= 10
    assert found[3000].levels == ("token", "everything")
    assert found[50_000].names(tokenizer)["token"] == "the token ',' in lines that begin with 'def' in python_source"
