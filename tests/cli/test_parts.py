"""`saekernels eval` with edits, labels, families and other tools' metrics, from the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import tiny_lm
from cli import arguments, fails
from saekernels.cli import main
from saekernels.eval import evaluate, load_documents
from saekernels.formats import save
from saekernels.sae.activations import TopK
from saekernels.sae.edits import Edit, EditedSAE
from saekernels.sae.module import SAE
from tiny_lm import SITES

Files = dict[str, Path]


def report(files: Files, out: Path, *extra: str, **changes: Any) -> Any:
    assert main([*arguments(files, json=[out], **changes), *extra]) == 0
    return json.loads(out.read_text())


def test_edits_are_further_saes_of_their_site(files: Files, tmp_path: Path) -> None:
    edits = [f"{SITES[0]}:3:scale:2.5", f"{SITES[0]}:4:clamp:-1:1", f"{SITES[1]}:7:zero"]
    found = report(files, tmp_path / "r.json", "--edit", *edits)
    rows = {row["site"]: row for row in found["sites"]}
    assert list(rows) == [*SITES, f"{SITES[0]}#edited", f"{SITES[1]}#edited"]
    model, sae = tiny_lm.model(), tiny_lm.sae(0)
    edited = EditedSAE(sae, [Edit(3, "scale", (2.5,)), Edit(4, "clamp", (-1.0, 1.0))])
    documents = load_documents([files["data"]])
    direct = evaluate(model, tiny_lm.tokenizer(), {SITES[0]: edited}, documents, bootstrap=0)
    ours = rows[f"{SITES[0]}#edited"]["delta_ce"]["nats"]
    assert ours == pytest.approx(direct.sites[0].delta_ce.nats, abs=1e-5)
    assert ours != pytest.approx(rows[SITES[0]]["delta_ce"]["nats"], abs=1e-4)
    assert found["all_sites"]["delta_ce"] == report(files, tmp_path / "s.json")["all_sites"]["delta_ce"]
    kept = report(files, tmp_path / "k.json", "--edit", f"{SITES[0]}:3:scale:1", "--keep-error")
    assert {row["site"]: row for row in kept["sites"]}[f"{SITES[0]}#edited"]["delta_ce"]["nats"] == pytest.approx(
        0, abs=1e-5
    )


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--keep-error"], "--keep-error: needs --edit"),
        (["--edit", "x"], "need SITE:LATENT:OP"),
        (["--edit", f"{SITES[0]}:3:double"], "need SITE:LATENT:OP"),
        (["--edit", f"{SITES[0]}:3:scale"], "scale needs a tuple of 1 finite number"),
        (["--edit", f"{SITES[0]}:3:scale:much"], "could not convert"),
        (["--edit", f"{SITES[0]}:3:scale:nan"], "scale needs a tuple of 1 finite number"),
        (["--edit", f"{SITES[0]}:64:zero"], "latent 64 is not among the 64 of the SAE"),
        (["--edit", "model.layers.9:1:zero"], "--edit: no SAE was given for 'model.layers.9'"),
        (["--family", "missing.json"], "cannot read missing.json"),
        (["--baselines", "zero,best"], "need some of zero, mean, random, pca"),
        (["--label-field", "author"], "author"),
        (["--format", "saebench"], "is a file"),
        (["--compat", "saelens", "--format", "saebench"], "needs --compat saebench, got saelens"),
        (["--compat", "saelens", "--tasks", "ioi"], "--tasks: not with --compat"),
        (["--compat", "saelens", "--breadth"], "--breadth: not with --compat"),
        (["--compat", "neuronpedia"], "--compat: invalid choice"),
        (["--compat", "saelens", "--context", "25"], "got 25 tokens, but the model has only 24 positions"),
        (["--compat", "saelens", "--tokens", "1", "--batch-size", "5000"], "see --batch-size, --context"),
    ],
)
def test_options_that_cannot_be(
    extra: list[str],
    message: str,
    files: Files,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "o.json"
    if "is a file" in message:
        out.write_text("mine")
    assert message in fails(capsys, [*arguments(files, json=[out]), *extra])
    assert not out.exists() or out.read_text() == "mine"


@pytest.mark.parametrize("site", [f"{SITES[0]}.mlp@module", f"{SITES[0]}.mlp@input -> {SITES[0]}.mlp"])
def test_the_error_of_a_transcoder_cannot_be_kept(
    site: str, files: Files, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save(SAE(32, 64, TopK(8), pre_bias="none"), tmp_path / "mlp")
    edit = ["--edit", f"{site}:3:zero", "--keep-error"]
    message = fails(capsys, [*arguments(files), "--sae", f"{site}={tmp_path / 'mlp'}", *edit])
    assert "keep_error=True need a site that reads what it replaces" in message


def test_labels_are_strata(files: Files, tmp_path: Path) -> None:
    data = tmp_path / "labelled.jsonl"
    records = [{"text": d.text, "author": "us" if i % 2 else "them"} for i, d in enumerate(tiny_lm.documents())]
    data.write_text("".join(json.dumps(record) + "\n" for record in records))
    found = report(files, tmp_path / "r.json", "--label-field", "author", data=[data])
    parts = found["all_sites"]["strata"]["author"]
    assert set(parts) == {"us", "them"}
    assert sum(part["tokens"] for part in parts.values()) == found["tokens"]
    halves = [d for i, d in enumerate(tiny_lm.documents()) if i % 2]
    direct = evaluate(
        tiny_lm.model(), tiny_lm.tokenizer(), {s: tiny_lm.sae(i) for i, s in enumerate(SITES)}, halves, bootstrap=0
    )
    assert parts["us"]["delta_ce"]["nats"] == pytest.approx(direct.all_sites.delta_ce.nats, abs=1e-5)


@pytest.mark.parametrize("peer", ["saelens", "saebench", "dictionary_learning"])
def test_other_tools_metrics_are_printed_and_written(
    peer: str,
    files: Files,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    found = report(files, tmp_path / "p.json", "--batch-size", "4", "--context", "12", "--compat", peer, tokens=["200"])
    assert found["compat"] == peer
    assert found["tokens"] % 48 == 0
    assert 0 < found["tokens"] <= 288
    assert [row["site"] for row in found["results"]] == list(SITES)
    names = {name for group in found["results"][0]["metrics"].values() for name in group}
    told = capsys.readouterr().out
    assert peer in told
    assert all(name in told for name in names)
    assert len(names) > 4


def test_saebench_files(files: Files, tmp_path: Path) -> None:
    folder = tmp_path / "results"
    argv = [*arguments(files, json=[folder], tokens=["200"]), "--batch-size", "4", "--context", "12"]
    assert main([*argv, "--format", "saebench"]) == 0
    found = sorted(path.name for path in folder.iterdir())
    assert found == [f"model_{site}_eval_results.json" for site in SITES]
    data = json.loads((folder / found[0]).read_text())
    assert data["eval_type_id"] == "core"
    assert data["sae_lens_id"] == SITES[0]
    assert data["eval_config"]["context_size"] == 12
    assert len(data["eval_result_details"]) == 64
