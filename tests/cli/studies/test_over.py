"""`saekernels over` on some checkpoints: its figures are those of the commands for each alone; what it refuses."""

from __future__ import annotations

import json
import math
import re
from html import unescape
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from transformers import AutoModelForCausalLM

import tiny_lm
from cli import fails, run
from saekernels.cli.commands.over.command import gathered_notes
from saekernels.cli.commands.over.places import Place, places_of
from saekernels.display.numbers import percent, with_interval
from saekernels.errors import InputError
from saekernels.eval import load_documents
from saekernels.eval.report.over.series import charts
from saekernels.eval.studies.family import Family, Member
from saekernels.eval.studies.family_losses import measure_losses
from subjects import trajectory

SITE = tiny_lm.SITES[1]


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return trajectory.write(tmp_path_factory.mktemp("training"))


@pytest.mark.slow
def test_every_point_has_the_figures_of_the_commands_for_it_alone(paths: dict[str, Path], tmp_path: Path) -> None:
    argv = [*trajectory.command(paths, ["step-0", "step-64"], [SITE]), "--tokens-per-step", "100"]
    argv += ["--checkpoint", str(tmp_path / "run"), "--json", str(tmp_path / "over.json")]
    done = run([*argv, "--html", str(tmp_path / "over.html")])
    assert (done.code, done.err) == (0, "")
    found = json.loads((tmp_path / "over.json").read_text())
    rows = found["checkpoints"]
    assert [(row["name"], row["step"], row["seen"]) for row in rows] == [
        ("step-0", 0, 0), ("step-64", 64, 6400),
    ]  # fmt: skip
    assert found["axis"] == "tokens seen"
    last = rows[-1]
    sae = f"{SITE}={paths['text'].parent}/saes/step-64/{SITE}"
    same = ["--model", str(paths["step-64"]), "--sae", sae, "--data", str(paths["text"]), "--tokens", "all"]

    def alone(command: str, *options: str) -> dict:
        assert run([command, *same, *options, "--json", str(tmp_path / "one.json")]).code == 0
        return json.loads((tmp_path / "one.json").read_text())

    report = alone("eval", "--bootstrap", "50", "--baselines", "mean", "--no-cumulative")
    assert last["losses"]["clean_ce"] == report["all_sites"]["ce"]["clean"]
    row, target = report["sites"][0], last["losses"]["targets"][SITE]
    assert target == {
        "spliced_ce": row["ce"]["spliced"],
        "delta_ce": {"value": row["delta_ce"]["nats"], "ci95": row["delta_ce"]["ci95"]},
        "recovered": {"value": row["loss_recovered"]["mean"], "ci95": row["loss_recovered"]["mean_ci95"]},
        "kl": {"value": row["kl"], "ci95": row["kl_ci95"]},
        "ablated_delta_ce": row["baselines"]["mean"]["delta_ce"],
        **{name: row[name] for name in ("fvu", "l0", "dead_fraction")},
    }
    reuse = alone("reuse", "--parts", "sharing")["sites"][0]
    for kind in ("effect", "mass"):
        for name in ("general", "ceiling", "chance", "distinct", "effective", "carriers"):
            assert last["reuse"][SITE][kind][name] == reuse[kind][name]
    assert last["reuse"][SITE]["approximation_error"] == reuse["removal"]["effect"]["error"]
    assert last["breadth"]["levels"] == alone("breadth", "--bootstrap", "50")["levels"]
    cost = last["losses"]["targets"][SITE]["delta_ce"]
    html = unescape(re.sub(r"<[^>]+>", "", (tmp_path / "over.html").read_text()))
    for shown in (done.out, html):
        assert with_interval(cost["value"], cost["ci95"]) in shown
    assert run(argv).code == 0
    assert json.loads((tmp_path / "over.json").read_text())["checkpoints"] == rows
    changed = run([*argv, "--seed", "1"])
    assert "step-0/losses belongs to another evaluation: seed" in changed.err, changed.err


def test_losses_alone_for_one_sae_that_stays(paths: dict[str, Path], tmp_path: Path) -> None:
    """Against steps, with a task; the same SAE at every checkpoint, beside one of each checkpoint's own."""
    tasks = tmp_path / "tasks.yaml"
    tasks.write_text('{name: x, template: "the {w}", answer: " light", foil: " coal", product: {w: [a, old, wind]}}')
    sae = f"{SITE}#stays={paths['text'].parent}/saes/step-8/{SITE}"
    argv = [*trajectory.command(paths), "--sae", sae, "--parts", "none"]
    done = run([*argv, "--tasks", str(tasks), "--json", str(tmp_path / "over.json")])
    assert (done.code, done.err) == (0, "")
    found = json.loads((tmp_path / "over.json").read_text())
    assert (found["axis"], [row["seen"] for row in found["checkpoints"]]) == ("steps", [0, 8, 64])
    for row in found["checkpoints"]:
        assert list(row["losses"]["targets"]) == [*tiny_lm.SITES, f"{SITE}#stays", "all"]
        of_site, stays = (row["losses"]["targets"][entry]["spliced_ce"] for entry in (SITE, f"{SITE}#stays"))
        assert of_site == pytest.approx(stays, rel=1e-6), "the helper's SAEs are alike at all checkpoints"
        assert row["tasks"][0]["prompts"] == 3
        assert not {"reuse", "breadth"} & row.keys()
    # As where the loss that mean ablation adds is that of chance: any number, and no interval.
    costs = found["checkpoints"][0]["losses"]["targets"]
    costs[SITE]["recovered"], costs[f"{SITE}#stays"]["recovered"] = (
        {"value": -8.09, "ci95": ci} for ci in (None, [-9, -8])
    )
    recovered = next(chart for chart in charts(found) if chart.heading == "Loss recovered")
    cells = dict(zip(recovered.lines, recovered.cells(0), strict=True))
    assert [cell for name, cell in cells.items() if name in ("1", "layers.1", SITE)] == ["-"], cells
    assert sum("-809" in cell for cell in cells.values()) == 1


def test_notes_name_the_checkpoints_that_they_are_of() -> None:
    places = [Place(name, name, None, step) for step, name in enumerate(("step-0", "step-1", "step-2"))]
    told = [["of all", "of two"], ["of all"], ["of all", "of two", "of two"]]
    measured = [SimpleNamespace(notes=notes) for notes in told]
    assert gathered_notes(places, measured) == ["of all", "step-0, step-2: of two"]


def test_what_the_losses_are_worth_in_a_family(paths: dict[str, Path], tmp_path: Path) -> None:
    """Read off by hand: between two members, in the logarithm of compute, at the losses' token-weighted means."""
    first, last = (
        measure_losses(
            AutoModelForCausalLM.from_pretrained(paths[name]).eval(), tiny_lm.tokenizer(),
            load_documents([str(paths["text"])]),
        )
        for name in ("step-0", "step-64")
    )  # fmt: skip
    curves = [first.losses, last.losses, [loss - 1 for loss in last.losses]]
    means = [float(np.average(losses, weights=last.tokens)) for losses in curves]
    assert means[0] > means[1], "the curve falls"
    sizes = [(10, 100), (20, 400), (40, 3000)]
    members = [
        Member(str(size), size, size, trained, mean, losses)
        for (size, trained), mean, losses in zip(sizes, means, curves, strict=True)
    ]
    Family(members, last.ids, last.tokens, last.context, 320).write(tmp_path / "family.json")
    argv = [*trajectory.command(paths, ["step-0", "step-64"], [SITE]), "--parts", "none"]
    argv += ["--family", str(tmp_path / "family.json"), "--html", str(tmp_path / "over.html")]
    done = run([*argv, "--json", str(tmp_path / "over.json")])
    assert (done.code, done.err) == (0, "")
    found = json.loads((tmp_path / "over.json").read_text())
    assert found["family"] == "family.json"
    start, end = (row["family_share"] for row in found["checkpoints"])
    compute = [6 * size * trained for size, trained in sizes]
    assert start["clean"]["value"] == pytest.approx(compute[0] / compute[2], rel=1e-4)
    assert start[SITE] == {"value": None, "ci95": None, "outside": "worse than the smallest member"}
    assert end["clean"]["value"] == pytest.approx(compute[1] / compute[2], rel=1e-4)
    spliced = found["checkpoints"][1]["losses"]["targets"][SITE]["spliced_ce"]
    assert means[1] < spliced < means[0]
    way = (means[0] - spliced) / (means[0] - means[1])
    expected = math.exp(math.log(compute[0]) + way * math.log(compute[1] / compute[0])) / compute[2]
    assert end[SITE]["value"] == pytest.approx(expected, rel=1e-3)
    low, high = end[SITE]["ci95"]
    assert low <= end[SITE]["value"] <= high
    page = unescape(re.sub(r"<[^>]+>", "", (tmp_path / "over.html").read_text()))
    assert all(percent(end[SITE]["value"]) in shown for shown in (done.out, page))
    other = Family(members, last.ids, last.tokens, last.context - 1, 320)
    other.write(tmp_path / "family.json")
    refused = run(argv)
    message = f"family: measured with windows of {last.context - 1} tokens, the evaluation has {last.context}"
    assert (refused.code, message in refused.err) == (2, True)


def test_where_a_checkpoint_stands(tmp_path: Path) -> None:
    (tmp_path / "step_4" / "model").mkdir(parents=True)
    (tmp_path / "step_4" / "model" / "config.json").touch()
    hub = "EleutherAI/pythia-70m@step"
    found = places_of([f"{hub}512", str(tmp_path / "step_4" / "model"), "allenai/OLMo-1B@step1000-tokens4B"])
    assert [(place.name, place.revision, place.step) for place in found] == [
        ("step_4", None, 4), ("step512", "step512", 512), ("step1000-tokens4B",) * 2 + (1000,),
    ]  # fmt: skip
    with pytest.raises(InputError, match="MODEL: step8 and step8 are both of step 8"):
        places_of([f"{hub}8", "other/one@step8"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            ["--sae", "model.layers.0={}/sae", "--parts", "reuse", "--site", SITE],
            "--site: it is about the part breadth",
        ),
        (["--leave-first", "1"], "--parts: probes of breadth touch every position; not with --leave-first"),
        (["--tokens-per-step", "0"], "--tokens-per-step: need at least 1, got 0"),
        (["--sae", "{gone}"], "is not there, other checkpoints' are"),
    ],
)
def test_one_clear_line(
    changes: list[str], message: str, paths: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    gone = f"{SITE}#other={paths['text'].parent}/{{}}/plan.json"
    (paths["step-8"] / "plan.json").touch()
    argv = [*trajectory.command(paths), *(gone if change == "{gone}" else change for change in changes)]
    assert message in fails(capsys, argv)


@pytest.mark.parametrize(
    ("models", "message"),
    [
        (["step-8"], "MODEL: a training needs at least two checkpoints, got 1"),
        (["step-8", "saes/step-8"], "holds no checkpoint: it has no config.json"),
        (["step-8", "nowhere"], "is no folder here, and a repository of the hub needs HUB_ID@REVISION"),
        (["step-8", "org/name@main"], "MODEL: main says no step; need a name such as step512"),
    ],
)
def test_what_is_no_checkpoint(
    models: list[str], message: str, paths: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    argv = trajectory.command(paths)
    folder = paths["text"].parent
    given = [str(folder / model) if (folder / model).exists() else model for model in models]
    assert message in fails(capsys, ["over", *given, *argv[argv.index("--sae") :]])


def test_a_later_checkpoint_that_does_not_fit_is_named(paths: dict[str, Path], tmp_path: Path) -> None:
    """Its model is narrower than its SAE; what came before it is shown, and no file is written."""
    narrow = tmp_path / "step-99"
    tiny_lm.model(hidden_size=16).save_pretrained(narrow)
    tiny_lm.tokenizer().save_pretrained(narrow)
    sae = f"{SITE}={paths['text'].parent}/saes/step-8/{SITE}"
    argv = ["over", str(paths["step-0"]), str(narrow), "--sae", sae, "--data", str(paths["text"]), "--tokens", "60"]
    argv += ["--parts", "none", "--bootstrap", "0"]
    done = run([*argv, "--json", str(tmp_path / "over.json")])
    assert done.out.startswith("step-0: clean CE ")
    (line,) = done.err.splitlines()
    assert (done.code, line.partition(":")[0]) == (2, "saekernels over")
    assert f"error: MODEL step-99: site '{SITE}': expected width 32" in line
    assert not (tmp_path / "over.json").exists()
