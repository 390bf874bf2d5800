"""`saekernels controls` and `eval --control` from the command line."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tiny_lm
from cli import arguments, fails, run
from saekernels.cli import main
from saekernels.cli.commands.controls.text import as_text
from saekernels.cli.options.further_saes import with_controls
from saekernels.errors import InputError
from saekernels.eval import evaluate, load_documents
from saekernels.sae.controls import control_of
from saekernels.sae.edits import Edit, EditedSAE
from tiny_lm import SITES

Files = dict[str, Path]


def base(files: Files, **changes: Any) -> list[str]:
    return ["controls", *arguments(files, bootstrap=["20"], **changes)[1:]]


def test_controls_from_the_command_line(files: Files, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "c.json"
    pair = [f"{SITES[0]}#a={files[SITES[0]]}", f"{SITES[0]}#b={files[SITES[1]]}"]
    argv = [*base(files, sae=pair, json=[out]), "--off-data", str(files["data"]), "--leave-first", "1"]
    assert main(argv) == 0
    told, data = capsys.readouterr().out, json.loads(out.read_text())
    assert [row["site"] for row in data["sites"]] == [f"{SITES[0]}#a", f"{SITES[0]}#b"]
    assert data["mask"] == {"leave_first": 1, "leave_norm": None}
    assert data["run"]["command"].startswith("saekernels controls --model ")
    (group,) = data["seeds"]
    assert group["site"] == SITES[0]
    deltas = [group["delta_ce"][row["site"]]["nats"] for row in data["sites"]]
    assert deltas == [row["runs"]["sae"]["delta_ce"] for row in data["sites"]]
    assert group["range"] == pytest.approx(max(deltas) - min(deltas))
    assert group["sd"] == pytest.approx(float(np.std(deltas, ddof=1)))
    widths = [row["runs"]["sae"]["ci95"][1] - row["runs"]["sae"]["ci95"][0] for row in data["sites"]]
    assert group["interval_width"] == pytest.approx(sum(widths) / 2)
    (both,) = group["pairs"]
    assert both["b_minus_a"] == pytest.approx(deltas[1] - deltas[0])
    assert both["ci95"][0] <= both["b_minus_a"] <= both["ci95"][1]
    assert set(both["activity"]) == {"on", "off"}
    # The other text is both halves of the same, so it has more positions.
    assert both["activity"]["off"]["positions"] == sum(data["positions"].values())
    assert both["activity"]["on"]["positions"] == data["positions"]["measured"]
    assert as_text(data) in told
    for heading in ("predicted [95 %]", "bits/token", "one to one", "IoU off", "the first 1 of each window left alone"):
        assert heading in told


def test_the_same_bits_twice_and_only_the_parts_that_are_asked_for(files: Files, tmp_path: Path) -> None:
    paths = [tmp_path / name for name in ("a.json", "b.json")]
    for path in paths:
        assert main([*base(files, json=[path]), "--parts", "bits", "--leave-norm", "1.5"]) == 0
    first, second = (json.loads(path.read_text()) for path in paths)
    assert first["run"].pop("command") != second["run"].pop("command")
    assert first == second
    assert [set(row["runs"]) for row in first["sites"]] == [{"sae", "quantised", "pca"}] * 2
    assert "seeds" not in first
    assert first["mask"]["leave_norm"] == 1.5


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--parts", "luck"], "argument --parts: need some of error, seeds, bits, got 'luck'"),
        (["--parts", "none"], "--parts: need some of error, seeds, bits, got 'none'"),
        (["--parts", "seeds"], "parts: seeds is for several SAEs of one site (SITE#LABEL), and every site has one"),
        (["--leave-norm", "0.5"], "argument --leave-norm: need a number above 1, got '0.5'"),
        (["--leave-first", "-1"], "argument --leave-first: need at least 0, got -1"),
        (["--leave-first", "24"], "no position of the half that is fitted on is touched; leave fewer alone"),
        (["--rise", "0"], "argument --rise: need a positive number, got '0'"),
        (["--family", "missing.json"], "cannot read missing.json"),
        (["--off-data", "missing.txt"], "error: --off-data: missing.txt does not exist"),
        (["--off-data", "DATA"], "--off-data: a further text is for several SAEs of one site (SITE#LABEL)"),
        (["--off-data", "DATA", "--parts", "bits"], "is for the part seeds, and parts are bits"),
        (["--context", "25"], "got 25 tokens, but the model has only 24 positions"),
        (["--tokens", "1"], "one half of the documents is fitted on and the other measured, but there is only one"),
    ],
)
def test_what_the_command_refuses(
    extra: list[str], message: str, files: Files, capsys: pytest.CaptureFixture[str]
) -> None:
    extra = [str(files["data"]) if one == "DATA" else one for one in extra]
    assert message in fails(capsys, [*base(files), *extra])


def test_smaller_models_stand_beside_the_losses(files: Files, tmp_path: Path) -> None:
    family, out = tmp_path / "family.json", tmp_path / "c.json"
    data = ["--data", str(files["data"])]
    sizes = tmp_path / "sizes.json"
    sizes.write_text(json.dumps({str(files["model"]): 1000}))
    fit = ["scaling", "fit", "--model", str(files["model"]), str(files["model"]), *data, "--tokens", "all"]
    assert run([*fit, "--train-tokens", str(sizes), "--out", str(family)]).code == 0
    done = run([*base(files, json=[out]), "--parts", "bits", "--family", str(family)])
    assert done.code == 0, done.err
    found = json.loads(out.read_text())
    assert "of training" in done.out
    for row in found["sites"]:
        assert set(row["worth"]) == {"sae", "quantised", "pca"}
        for run_name, one in row["worth"].items():
            assert one["loss"] == pytest.approx(row["runs"][run_name]["ce"], rel=1e-6)


def test_control_makes_further_saes_of_every_site(files: Files, tmp_path: Path) -> None:
    out = tmp_path / "r.json"
    argv = [*arguments(files, json=[out]), "--control", "shuffled_decoder", "random_encoder", "--seed", "3"]
    assert main(argv) == 0
    data = json.loads(out.read_text())
    kinds = ("shuffled_decoder", "random_encoder")
    names = [f"{site}#{kind}" for site in SITES for kind in kinds]
    assert [row["site"] for row in data["sites"]] == [*SITES, *names]
    rows = {row["site"]: row for row in data["sites"]}
    direct = evaluate(
        tiny_lm.model(), tiny_lm.tokenizer(), {SITES[1]: control_of(tiny_lm.sae(1), "shuffled_decoder", 3)},
        load_documents([files["data"]]), bootstrap=0, seed=3,
    )  # fmt: skip
    ours = rows[f"{SITES[1]}#shuffled_decoder"]["delta_ce"]["nats"]
    assert ours == pytest.approx(direct.sites[0].delta_ce.nats, abs=1e-5)
    paired = data["extras"]["paired"]
    assert list(paired) == names
    table = data["documents_table"]
    tokens = np.array(table["tokens"])
    for name, one in paired.items():
        site = name.partition("#")[0]
        assert one["beside"] == site
        by_hand = np.dot(np.subtract(table["spliced"][name], table["spliced"][site]), tokens) / tokens.sum()
        assert one["difference"] == pytest.approx(by_hand)
        assert one["difference"] == pytest.approx(rows[name]["ce"]["spliced"] - rows[site]["ce"]["spliced"])
        assert one["ci95"][0] <= one["difference"] <= one["ci95"][1]


def test_the_interval_is_paired(files: Files, tmp_path: Path) -> None:
    """An SAE beside itself differs by nothing in every replicate, however much documents differ."""
    out, page = tmp_path / "r.json", tmp_path / "r.html"
    shutil.copytree(files[SITES[0]], tmp_path / "copy")
    twice = [f"{SITES[0]}={files[SITES[0]]}", f"{SITES[0]}#twin={tmp_path / 'copy'}"]
    done = run(arguments(files, sae=twice, json=[out], html=[page]))
    assert done.code == 0, done.err
    found = json.loads(out.read_text())
    assert found["extras"]["paired"] == {
        f"{SITES[0]}#twin": {"beside": SITES[0], "difference": 0.0, "ci95": [0.0, 0.0]}
    }
    low, high = found["sites"][0]["delta_ce"]["ci95"]
    assert high - low > 0.01
    assert "ΔCE more than that [95 %]" in done.out
    section = page.read_text().partition('<section id="saes-of-one-site">')[2].partition("</section>")[0]
    assert "layers.0#twin" in section
    assert section.count("+0.000") == 3
    assert done.out.startswith(f"Splicing {SITES[0]} raises the loss")


def test_without_several_saes_of_a_site_there_is_no_such_part(files: Files, tmp_path: Path) -> None:
    out = tmp_path / "r.json"
    done = run(arguments(files, json=[out]))
    assert "paired" not in json.loads(out.read_text())["extras"]
    assert done.out.startswith("Splicing all 2 SAEs together")
    with_them = run([*arguments(files), "--control", "random_decoder"])
    assert with_them.out.startswith("Splicing all 2 SAEs together")
    assert with_them.out.splitlines()[:2] == done.out.splitlines()[:2]


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--control", "frozen"], "argument --control: invalid choice: 'frozen'"),
        (["--control", "random_decoder", "--compat", "saelens"], "--control: not with --compat"),
    ],
)
def test_what_control_refuses(extra: list[str], message: str, files: Files, capsys: pytest.CaptureFixture[str]) -> None:
    assert message in fails(capsys, [*arguments(files), *extra])


def test_names_of_controls() -> None:
    sae = tiny_lm.sae(0)
    made = with_controls({"s": sae, "s#b": sae}, ["random_decoder", "random_decoder"], 0)
    assert list(made) == ["s", "s#b", "s#random_decoder", "s#b-random_decoder"]
    assert with_controls({"s": sae}, [], 0) == {"s": sae}
    with pytest.raises(InputError, match=r"^--control: there is an SAE 's#random_decoder' already; give it another"):
        with_controls({"s": sae, "s#random_decoder": sae}, ["random_decoder"], 0)
    with pytest.raises(InputError, match=r"^--control: s is EditedSAE, not one whole SAE \(see --latent-parallel\)$"):
        with_controls({"s": EditedSAE(sae, [Edit(0, "zero")])}, ["random_decoder"], 0)
