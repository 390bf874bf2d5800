"""Data as people have it: compressed, tabular, nested, saved by `datasets`, tokenized, by pattern, with gaps."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

import tiny_lm
from saekernels.eval import Document, InputError, evaluate, load_documents
from saekernels.eval.text.sources import skipped_in
from saekernels.eval.text.windows import Tokens

RECORDS = [{"text": "first text", "domain": "a"}, {"text": None}, {"text": ""}, {"text": "second, text", "domain": "b"}]
FOUND = [("first text", "a"), ("second, text", "b")]


def found(path: Path | str, **options: str) -> list[tuple[str, str]]:
    return [(document.text, document.domain) for document in load_documents([path], **options)]


def lines(records: list[dict]) -> str:
    return "".join(json.dumps(record) + "\n" for record in records)


@pytest.mark.parametrize("name", ["x.json", "x.json.gz"])
@pytest.mark.parametrize("layout", ["array", "lines"])
def test_json_files_hold_an_array_or_a_record_in_each_line(name: str, layout: str, tmp_path: Path) -> None:
    content = (json.dumps(RECORDS, indent=1) if layout == "array" else lines(RECORDS)).encode()
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    assert found(tmp_path / name) == FOUND
    assert skipped_in(load_documents([tmp_path / name])) == 2


def test_arrays_of_texts_and_single_objects(tmp_path: Path) -> None:
    (tmp_path / "texts.json").write_text(json.dumps(["one", "", "two"]))
    assert found(tmp_path / "texts.json") == [("one", "texts"), ("two", "texts")]
    (tmp_path / "one.json").write_text(json.dumps({"text": "alone"}))
    assert found(tmp_path / "one.json") == [("alone", "one")]
    (tmp_path / "other.json").write_text(json.dumps({"rows": [{"text": "a"}]}))
    with pytest.raises(InputError, match=r"other\.json has no text in the field 'text'; its fields: 'rows'"):
        load_documents([tmp_path / "other.json"])


@pytest.mark.parametrize(("name", "delimiter"), [("x.csv", ","), ("x.tsv", "\t")])
def test_tables_with_a_row_of_names(name: str, delimiter: str, tmp_path: Path) -> None:
    rows = [["domain", "text"], ["a", "first text"], ["a", ""], ["b", '"second, text\nin two lines"']]
    (tmp_path / name).write_text("\n".join(delimiter.join(row) for row in rows) + "\n")
    assert found(tmp_path / name) == [("first text", "a"), ("second, text\nin two lines", "b")]
    (tmp_path / name).write_text(f"domain{delimiter}text\na\n")
    with pytest.raises(InputError, match="row 2 has another number of cells"):
        load_documents([tmp_path / name])


def test_zstandard(tmp_path: Path) -> None:
    zstandard = pytest.importorskip("zstandard")
    (tmp_path / "x.jsonl.zst").write_bytes(zstandard.ZstdCompressor().compress(lines(RECORDS).encode()))
    assert found(tmp_path / "x.jsonl.zst") == FOUND
    (tmp_path / "x.jsonl.zst").write_bytes(b"no such thing")
    with pytest.raises(InputError, match="cannot read"):
        load_documents([tmp_path / "x.jsonl.zst"])


def test_fields_inside_others(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text(lines([{"meta": {"text": "inner", "topic": "t"}}, {"meta.text": "own", "meta": {"topic": "u"}}]))
    assert found(path, text_field="meta.text", domain_field="meta.topic") == [("inner", "t"), ("own", "u")]
    with pytest.raises(InputError, match=r"no text in the field 'meta\.body'; its fields: 'meta'"):
        load_documents([path], text_field="meta.body")


def test_patterns_take_files_of_any_kind(tmp_path: Path) -> None:
    for name, content in (("a/x.py", "x = 1"), ("a/b/y.py", "y = 2"), ("a/z.md", "no"), ("w.txt", "words")):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)
    assert found(f"{tmp_path}/**/*.py") == [("y = 2", "py"), ("x = 1", "py")]
    assert found(f"{tmp_path}/*.txt") == [("words", "w")]
    with pytest.raises(InputError, match="does not exist, no file fits it"):
        load_documents([f"{tmp_path}/*.rs"])


def test_what_datasets_saved_to_the_disk(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    one = datasets.Dataset.from_list(RECORDS)
    one.save_to_disk(str(tmp_path / "one"))
    assert found(tmp_path / "one") == FOUND
    datasets.DatasetDict({"train": one.select([0]), "test": one.select([3])}).save_to_disk(str(tmp_path / "both"))
    assert found(tmp_path / "both") == FOUND[1:]
    assert found(f"{tmp_path}/both@train") == FOUND[:1]
    with pytest.raises(InputError, match="has no split 'dev'; it has train, test"):
        load_documents([f"{tmp_path}/both@dev"])


def test_records_that_were_left_out_are_told(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text(lines([{"text": document.text} for document in tiny_lm.documents()] + [{"text": None}]))
    report = evaluate(
        tiny_lm.model(), tiny_lm.tokenizer(), tiny_lm.saes(), load_documents([path]), bootstrap=0, baselines=()
    )
    assert "Left out: 1 record without text (empty or null)." in report.notes


def test_tokens_in_place_of_texts_give_the_same_losses_and_no_bytes(tmp_path: Path) -> None:
    tokenizer, texts = tiny_lm.tokenizer(), [document.text for document in tiny_lm.documents()]
    path = tmp_path / "x.jsonl"
    ids = [tokenizer(text, add_special_tokens=True)["input_ids"] for text in texts]
    path.write_text(lines([{"input_ids": one} for one in ids] + [{"input_ids": []}]))
    both = [
        evaluate(tiny_lm.model(), tokenizer, tiny_lm.saes(), list(documents), bootstrap=0, baselines=(), seed=3)
        for documents in ([Document(text) for text in texts], load_documents([path]))
    ]
    assert both[0].all_sites.ce == both[1].all_sites.ce
    assert both[0].tokens == both[1].tokens
    assert both[1].nbytes is None
    assert "Tokens were given in place of texts, so bits per byte are unknown." in both[1].notes


def test_tokens_are_checked_against_the_vocabulary() -> None:
    tokens = Tokens(tiny_lm.tokenizer(), 16, rows=50)
    with pytest.raises(InputError, match="token id 50"):
        tokens.cut_ids([3, 50], 0)
    with pytest.raises(InputError, match="need token ids"):
        Document("", ids=(1, -2))
