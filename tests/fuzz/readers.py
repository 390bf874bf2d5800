"""Everything else that is read: texts, tasks, families, reports, folders of runs, the command line."""

from __future__ import annotations

import contextlib
import functools
import gzip
import io
import json
import random
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

import tiny_lm
from fuzz import mutate
from fuzz.engine import ACCEPTED, Rejected
from places import ROOT
from saekernels import example
from saekernels.backends import registry
from saekernels.cli.entry import build_parser
from saekernels.cli.options.arguments import Parser
from saekernels.eval import Document, InputError, evaluate, load_documents
from saekernels.eval.report.compare import compare, read_report
from saekernels.eval.studies.family import read_family
from saekernels.eval.studies.tasks import load_tasks

RECORDS = [{"text": "a b c", "domain": "x", "language": "de"}, {"text": "ü" * 40, "n": 3}]


@contextlib.contextmanager
def folder() -> Iterator[Path]:
    made = Path(tempfile.mkdtemp(prefix="saekernels-fuzz-"))
    try:
        yield made
    finally:
        shutil.rmtree(made, ignore_errors=True)


@contextlib.contextmanager
def only_input_errors() -> Iterator[None]:
    """An InputError, which says something, is a rejection."""
    try:
        yield
    except InputError as error:
        assert str(error).strip(), "says nothing"
        raise Rejected from error


@functools.cache
def parquet() -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    out = io.BytesIO()
    pq.write_table(pa.table({"text": ["a b", "c"], "domain": ["x", "y"]}), out)
    return out.getvalue()


def text(rng: random.Random) -> str:
    """Files of text in every kind, with damage to bytes or to records."""
    kind = rng.choice([".txt", ".jsonl", ".jsonl.gz", ".parquet"])
    if kind == ".parquet":
        content = mutate.data(rng, parquet())
    elif kind == ".txt":
        content = mutate.data(rng, "Some text, ü 🙂.\r\n".encode() * 3)
    else:
        content = b"\n".join(mutate.text(rng, record) for record in RECORDS)
        content = mutate.data(rng, content) if rng.random() < 0.3 else content
        if kind == ".jsonl.gz":
            content = gzip.compress(content)
            content = mutate.data(rng, content) if rng.random() < 0.5 else content
    with folder() as place, only_input_errors():
        (place / f"data{kind}").write_bytes(content)
        fields = {"label_fields": rng.choice([[], ["language"]]), "domain_field": rng.choice([None, "domain", "n"])}
        for document in load_documents([place / f"data{kind}"], **fields):
            assert isinstance(document, Document)
            assert document.text
    return ACCEPTED


def tasks(rng: random.Random) -> str:
    """YAML of tasks, with tags that would make objects."""
    import yaml

    content = yaml.safe_load((ROOT / "examples/tasks/brackets.yaml").read_text())
    made = yaml.safe_dump(_plain(mutate.structure(rng, content))).encode()
    if rng.random() < 0.3:
        made = mutate.data(rng, made)
    with folder() as place, only_input_errors():
        if rng.random() < 0.1:
            made += f"\n- !!python/object/apply:os.mknod [{place}/canary]\n".encode()
        if rng.random() < 0.02:
            made = b"[" * 5_000  # YAML's parser needs seconds for more
        (place / "tasks.yaml").write_bytes(made)
        try:
            load_tasks([str(place / "tasks.yaml")])
        finally:
            assert not (place / "canary").exists(), "YAML was run"
    return ACCEPTED


def _plain(value: Any) -> Any:
    """Without what YAML cannot write."""
    if isinstance(value, dict):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_plain(one) for one in value]
    return value.encode("utf-8", "replace").decode() if isinstance(value, str) else value


def families(rng: random.Random) -> str:
    """Tables of `saekernels scaling fit`."""
    with folder() as place, only_input_errors():
        (place / "family.json").write_bytes(mutate.text(rng, json.loads(example.FAMILY.read_text())))
        read_family(place / "family.json")
    return ACCEPTED


def evaluated(checkpoint: Path | None) -> dict[str, Any]:
    torch.set_num_threads(1)
    native = registry.load("cpu")
    if native.available() is None:
        native.set_simd_level("auto")  # which another case may have set; sums of a loss depend on it
        native.set_screening("auto")
    given = tiny_lm.model(), tiny_lm.tokenizer(), tiny_lm.saes(), tiny_lm.documents()
    return json.loads(evaluate(*given, bootstrap=4, checkpoint=checkpoint).to_json())  # type: ignore[no-any-return]


@functools.cache
def report() -> dict[str, Any]:
    return evaluated(None)


def reports(rng: random.Random) -> str:
    """Two reports that are compared, one of them damaged."""
    with folder() as place, only_input_errors():
        (place / "a.json").write_text(json.dumps(report()))
        (place / "b.json").write_bytes(mutate.text(rng, report()))
        found = [read_report(place / name) for name in ("a.json", "b.json")]
        compare(found[0], found[1], ("a.json", "b.json"))
    return ACCEPTED


@functools.cache
def finished() -> dict[str, bytes]:
    with folder() as place:
        evaluated(place / "run")
        return {path.name: path.read_bytes() for path in (place / "run").iterdir()}


def workspaces(rng: random.Random) -> str:
    """The folder of a run with a damaged file, from which the run goes on: to the same figures, if at all."""
    with folder() as place, only_input_errors():
        spoilt = rng.choice([name for name, content in finished().items() if content])
        (place / "run").mkdir()
        for name, content in finished().items():
            (place / "run" / name).write_bytes(mutate.data(rng, content) if name == spoilt else content)
        if rng.random() < 0.5:
            (place / "run" / rng.choice(["figures.pt", "moments.pt"])).unlink(missing_ok=True)
        assert {**evaluated(place / "run"), "run": None} == {**report(), "run": None}, "other figures"
    return ACCEPTED


_LINE = (
    "eval maps breadth monitor plan compare convert scaling fit bench info --tokens --context --batch-size --sae a=b = "
    "--edit s:1:zero s:1:clamp:2:1 s:x:set --watch m:3>0.5 --latents 1e9 1e999 -1 all --dtype float32 --baselines "
    "zero,,mean none --seed --checkpoint --json /dev/null \x00 ü --help --version --shapes 1,2,3 --processes "
)
WORDS = _LINE.split(" ")


def command_line(rng: random.Random) -> str:
    """Words in any order: parsed, or one line and exit code 2."""
    parser: Parser = build_parser()
    words = [rng.choice(WORDS) for _ in range(rng.randint(0, 7))]
    told = io.StringIO()
    try:
        with contextlib.redirect_stderr(told), contextlib.redirect_stdout(io.StringIO()):
            parser.parse_args(words)
    except SystemExit as stop:
        if stop.code in (0, None):
            return ACCEPTED
        assert stop.code == 2
        assert "error:" in told.getvalue()
        raise Rejected from stop
    return ACCEPTED
