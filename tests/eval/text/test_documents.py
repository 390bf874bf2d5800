"""Loading documents from every kind of source, and the messages when one cannot be read."""

from __future__ import annotations

import gzip
import json
import sys
import types
from pathlib import Path

import pytest

from saekernels.eval import Document, InputError, load_documents


def write_jsonl(path: Path, records: list[dict]) -> Path:
    text = "".join(json.dumps(record) + "\n" for record in records)
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(text.encode()))
    else:
        path.write_text(text, encoding="utf-8")
    return path


def test_txt_is_one_document_named_by_its_stem(tmp_path: Path) -> None:
    path = tmp_path / "notes.v2.txt"
    path.write_text("héllo\nworld", encoding="utf-8")
    assert load_documents([path]) == [Document("héllo\nworld", "notes.v2", str(path))]


@pytest.mark.parametrize("name", ["web.jsonl", "web.jsonl.gz"])
def test_jsonl_takes_domain_and_source_or_the_files_name(tmp_path: Path, name: str) -> None:
    path = write_jsonl(tmp_path / name, [{"text": "a", "domain": "code", "source": "x"}, {"text": "b"}, {"text": ""}])
    assert load_documents([path]) == [Document("a", "code", "x"), Document("b", "web", f"{path}, line 2")]


def test_parquet_and_named_fields(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = tmp_path / "rows.parquet"
    pq.write_table(pa.table({"body": ["one", "two"], "kind": ["x", None]}), path)
    loaded = load_documents([path], text_field="body", domain_field="kind")
    assert [(d.text, d.domain) for d in loaded] == [("one", "x"), ("two", "rows")]


def test_directory_is_walked_in_order(tmp_path: Path) -> None:
    for name in ("law/b.txt", "law/a.txt", "code/c.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    write_jsonl(tmp_path / "web.jsonl", [{"text": "w"}])
    (tmp_path / "readme.md").write_text("not data")
    loaded = load_documents([tmp_path])
    assert [(d.text, d.domain) for d in loaded] == [
        ("code/c.txt", "code"),
        ("law/a.txt", "law"),
        ("law/b.txt", "law"),
        ("w", "web"),
    ]


def test_dataset_id_is_streamed_shuffled_and_labelled(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple] = []

    class Stream(list):
        def shuffle(self, seed: int, buffer_size: int) -> Stream:
            calls.append(("shuffle", seed, buffer_size))
            return self

    def load_dataset(name: str, config: str | None, split: str, streaming: bool) -> Stream:
        calls.append((name, config, split, streaming))
        return Stream([{"text": "a"}, {"text": "b", "domain": "d"}])

    fake = types.SimpleNamespace(load_dataset=load_dataset, get_dataset_split_names=lambda *_: ["train", "validation"])
    monkeypatch.setitem(sys.modules, "datasets", fake)
    assert [d.domain for d in load_documents(["owner/set:en"], seed=3)] == ["owner/set@validation", "d"]
    assert [d.domain for d in load_documents(["owner/set@train[:5]"])] == ["owner/set@train[:5]", "d"]
    assert calls[:2] == [("owner/set", "en", "validation", True), ("shuffle", 3, 10_000)]
    assert calls[2] == ("owner/set", None, "train[:5]", True)


def broken_gzip(folder: Path) -> Path:
    path = write_jsonl(folder / "broken.jsonl.gz", [{"text": "a" * 5000}])
    path.write_bytes(path.read_bytes()[:30])
    return path


def binary(folder: Path) -> Path:
    path = folder / "binary.txt"
    path.write_bytes(b"\xff\xfe\x00")
    return path


def named(name: str, content: str) -> object:
    def make(folder: Path) -> Path:
        (folder / name).write_text(content)
        return folder / name

    return make


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: folder / "missing.txt", "missing.txt does not exist"),
        (lambda folder: folder, "holds no .txt"),
        (broken_gzip, "cannot read .*broken.jsonl.gz"),
        (binary, "cannot read .*binary.txt"),
        (named("notes.md", "x"), "unknown kind"),
        (named("empty.txt", ""), "no text in"),
        (named("empty.jsonl", "\n"), "no text in"),
        (named("bad.jsonl", '{"text": "a"}\n{"text": '), "bad.jsonl, line 2 is not JSON"),
        (
            named("deep.jsonl", '{"text": ' + "[" * 100_000),
            "deep.jsonl, line 1 is not JSON .*recursion",
        ),
        (named("digits.jsonl", '{"text": "a", "n": ' + "9" * 5000 + "}"), "digits.jsonl, line 1 is not JSON .*4300"),
        (lambda folder: folder / ("n" * 300 + ".txt"), "cannot read .*File name too long"),
        (lambda folder: folder / "a\0b.txt", "does not exist"),
        (named("list.jsonl", '["a"]'), "line 1 is a list"),
        (named("field.jsonl", '{"content": "a"}'), "no text in the field 'text'; its fields: 'content'"),
        (named("surrogate.jsonl", '{"text": "a \\ud800 b"}'), "line 1 .*not valid Unicode"),
        (named("not.parquet", "x"), "cannot read .*not.parquet"),
        (named("not.jsonl.gz", "x"), "cannot read .*not.jsonl.gz"),
    ],
)
def test_what_cannot_be_read_is_named(tmp_path: Path, make: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        load_documents([make(tmp_path)])  # type: ignore[operator]


def test_a_domain_field_that_is_asked_for_must_exist(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [{"text": "a", "domain": "d"}])
    with pytest.raises(InputError, match="no field 'topic'"):
        load_documents([path], domain_field="topic")


def test_a_dataset_cannot_be_mixed_with_files(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [{"text": "a"}])
    with pytest.raises(InputError, match="only source"):
        load_documents([path, "owner/set"])
    with pytest.raises(InputError, match="no source"):
        load_documents([])


@pytest.mark.parametrize("name", ["web.jsonl", "web.jsonl.gz", "web.JSONL", "WEB.Jsonl.GZ"])
def test_a_byte_order_mark_and_capitals_do_not_matter(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    content = b'\xef\xbb\xbf{"text": "a"}\n{"text": "b"}\n'
    path.write_bytes(gzip.compress(content) if name.lower().endswith(".gz") else content)
    assert [(d.text, d.domain.lower()) for d in load_documents([path])] == [("a", "web"), ("b", "web")]
    assert [d.text for d in load_documents([tmp_path])] == ["a", "b"]


def test_a_text_file_in_capitals_with_a_byte_order_mark(tmp_path: Path) -> None:
    (tmp_path / "law").mkdir()
    (tmp_path / "law" / "A.TXT").write_bytes("\ufeffé".encode())
    assert [(d.text, d.domain) for d in load_documents([tmp_path])] == [("é", "law")]
    assert [(d.text, d.domain) for d in load_documents([tmp_path / "law" / "A.TXT"])] == [("é", "A")]


def test_a_document_checks_its_fields() -> None:
    for fields, name in (((b"a",), "text"), (("a", 3), "domain"), (("a", "b", None), "source")):
        with pytest.raises(TypeError, match=f"Document: {name} is .*, need a str"):
            Document(*fields)  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"Document: text is not valid Unicode: .*surrogates not allowed"):
        Document("a \ud800 b")
