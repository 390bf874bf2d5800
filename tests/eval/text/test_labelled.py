"""Labelled texts from files: fields, classes, groups, and what cannot be read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from saekernels import example
from saekernels.errors import InputError
from saekernels.eval.text.labelled import Completion, LabelFields, LabelledText, read_labelled

GOOD = [{"text": "a b", "label": True, "n": 1}, {"text": "c d", "label": False, "n": 2}]


def written(folder: Path, records: list[Any], name: str = "set.jsonl") -> Path:
    path = folder / name
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def test_records_of_csv_and_json_lines(tmp_path: Path) -> None:
    one = read_labelled(written(tmp_path, GOOD), LabelFields())
    assert (one.name, one.positive, one.shifts) == ("set", "true", ())
    assert [(text.text, text.label) for text in one.texts] == [("a b", "true"), ("c d", "false")]
    assert len({text.group for text in one.texts}) == 2, "without a field every text is alone"
    path = tmp_path / "other.csv"
    path.write_text('what,toxic,who,template,language\n"a, b",0,x,p,en\nc,1,x,q,en\nd,1,y,p,en\n')
    fields = LabelFields("what", "toxic", "who")
    other = read_labelled(path, fields)
    assert other.positive == "1"
    assert other.shifts == ("template",), "a language that all texts share is no distribution to be out of"
    assert other.texts[0] == LabelledText("a, b", "0", "x", {"template": "p", "language": "en"}, None, f"{path}, row 2")
    assert read_labelled(path, fields, "0").positive == "0"


def test_completions_and_inner_fields(tmp_path: Path) -> None:
    records = [
        {"text": "the sky is blue.", "label": "t", "prompt": "the sky is", "answer": " blue", "foil": " red"},
        {"text": "the sky is red.", "label": "f", "prompt": "the sky is", "answer": " blue", "foil": " red",
         "group": "sky", "template": ""},
    ]  # fmt: skip
    one = read_labelled(written(tmp_path, records), LabelFields())
    assert [text.completion for text in one.texts] == [
        Completion("the sky is", " blue", " red", True), Completion("the sky is", " blue", " red", False),
    ]  # fmt: skip
    assert one.texts[1].group == "sky"
    inner = [{"meta": {"text": "a b", "ok": 1.5}}, {"meta": {"text": "c d", "ok": 2}}]
    fields = LabelFields("meta.text", "meta.ok", shifts=("meta.ok",))
    assert [text.label for text in read_labelled(written(tmp_path, inner), fields).texts] == ["1.5", "2"]


BAD: list[tuple[str, list[Any], LabelFields, str | None, str]] = [
    ("no label", [{"text": "a"}], LabelFields(), None,
     "line 1 has nothing in the field 'label' (--label-field); its fields: 'text'"),
    ("a null", [{"text": "a", "label": None}], LabelFields(), None, "line 1 has nothing in the field 'label'"),
    ("a list", [{"text": "a", "label": [1]}], LabelFields(), None, "line 1 has a list in the field 'label'"),
    ("no text", [{"label": 1}], LabelFields(), None, "line 1 has no text in the field 'text'; its fields: 'label'"),
    ("blank", [{"text": " ", "label": 1}], LabelFields(), None, "line 1 has no text in the field 'text'"),
    ("a number", [7], LabelFields(), None, "line 1 is a int; need an object with a text and a label"),
    ("surrogates", [{"text": "\ud800", "label": 1}], LabelFields(), None, "line 1 is not valid Unicode"),
    ("one class", [GOOD[0], GOOD[0]], LabelFields(), None, "the field 'label' has one value alone, 'true'; need two"),
    ("many", [{"text": "a", "label": c} for c in "abcdefg"], LabelFields(), None,
     "the field 'label' has 7 values, 'a', 'b', 'c', 'd', 'e', ...; say which is positive (--positive)"),
    ("not there", GOOD, LabelFields(), "maybe",
     "the field 'label' has no value 'maybe' (--positive); it has 'false', 'true'"),
    ("unknown field", GOOD, LabelFields(shifts=("mood",)), None,
     "line 1 has nothing in the field 'mood' (--by); its fields"),
    ("constant field", [{**one, "n": 1} for one in GOOD], LabelFields(shifts=("n",)), None,
     "the field 'n' (--by) has one value alone, '1'"),
    ("unknown group", GOOD, LabelFields(group="who"), None,
     "line 1 has nothing in the field 'who' (--group-field); its"),
    ("half a completion", [{**GOOD[0], "prompt": "a"}], LabelFields(), None,
     "line 1 has no text in the field 'answer', but others of ('prompt', 'answer', 'foil')"),
    ("another completion", [{**GOOD[0], "prompt": "a", "answer": " x", "foil": " y"}], LabelFields(), None,
     "line 1: the text must begin with its prompt and either the answer or the foil"),
    ("both", [{**GOOD[0], "prompt": "a", "answer": " b", "foil": " "}], LabelFields(), None,
     "line 1: the text must begin with its prompt and either the answer or the foil"),
    ("empty", [], LabelFields(), None, "holds no text"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("records", "fields", "positive", "message"), [one[1:] for one in BAD], ids=[b[0] for b in BAD]
)
def test_what_cannot_be_used(
    records: list[Any], fields: LabelFields, positive: str | None, message: str, tmp_path: Path
) -> None:
    path = written(tmp_path, records)
    with pytest.raises(InputError, match=r"^labels: ") as caught:
        read_labelled(path, fields, positive)
    assert message in str(caught.value)
    assert str(path) in str(caught.value)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "bad.jsonl").write_bytes(b"\xff\xfe")
    for path, message in ((tmp_path / "bad.jsonl", "cannot read"), (tmp_path / "none.csv", "No such file")):
        with pytest.raises(InputError, match=r"^labels: ") as caught:
            read_labelled(path, LabelFields())
        assert message in str(caught.value)


def test_the_bundled_sets_are_balanced_within_every_group() -> None:
    sets = {one.name: one for one in (read_labelled(path, LabelFields()) for path in example.LABELLED)}
    assert {name: (one.positive, one.shifts) for name, one in sets.items()} == {
        "code": ("prose", ("domain",)),
        "english": ("english", ("domain",)),
        "truth": ("true", ("template", "language")),
    }
    endings: dict[tuple[str, str, str], list[int]] = {}
    for text in sets["truth"].texts:
        done = text.completion
        assert done is not None
        assert done.is_answer == (text.label == "true")
        word = done.answer if done.is_answer else done.foil
        endings.setdefault((text.group, text.fields["language"], word), [0, 0])[done.is_answer] += 1
    assert all(false == true for false, true in endings.values()), "an ending tells true from false within a group"
    assert sum(path.stat().st_size for path in example.LABELLED) < 100_000
