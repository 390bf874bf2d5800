"""Each section of docs/results.md shows its record's figures; the records are those that the commands write."""

from __future__ import annotations

import copy
import json
import math
import re
import runpy
import shlex
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from places import ROOT
from tiny_lm import SITES

Records = dict[str, dict[str, Any]]


def section(page: str, heading: str) -> tuple[list[list[str]], str]:
    """(cells of the rows of its tables without their heads, its text)."""
    text = page.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    assert text, heading
    lines = [line.strip("| ").split(" | ") for line in re.sub(r"\|.*\n\|---.*", "", text).splitlines() if "|" in line]
    return lines, text


def interval(value: float, ci95: list[float]) -> str:
    return f"{value:+.3f} [{ci95[0]:+.3f}, {ci95[1]:+.3f}]"


def delta(row: dict[str, Any]) -> str:
    return interval(row["delta_ce"]["nats"], row["delta_ce"]["ci95"])


def run_of(row: dict[str, Any], run: str) -> str:
    return interval(row["runs"][run]["delta_ce"], row["runs"][run]["ci95"])


def test_baselines_stand_beside_the_saes(records: Records, written: Callable[[Records], str]) -> None:
    rows, text = section(written(records), "What else could stand there")
    report = records["baselines"]
    for row, site in zip(rows, [*report["sites"], report["all_sites"]], strict=True):
        found = site["baselines"]
        assert row[1] == delta(site)
        assert row[2] == interval(found["pca"]["spliced_minus"], found["pca"]["spliced_minus_ci95"])
        assert row[3:7] == [f"{found[kind]['delta_ce']:+.3f}" for kind in ("pca", "random", "mean", "zero")]
        recovered = site["loss_recovered"]["mean"]
        assert row[7] == ("–" if recovered is None else f"{100 * recovered:.1f} %")
    less = sum(site["baselines"]["pca"]["spliced_minus_ci95"][1] < 0 for site in report["sites"])
    assert f"at {less} of 2 layers" in text


def test_baselines_are_lines_of_the_chart(records: Records, written: Callable[[Records], str]) -> None:
    """Where the record has them at every site of the chart, on the same scale as the SAEs."""
    from drawing import LIGHT
    from sites import BOTTOM, TOP, sites

    report, beside = records["sites"], records["baselines"]
    paths = re.findall(r'<path d="(M[^"]*)"[^>]*stroke-width="1.5"', sites(report, LIGHT, beside))
    found = {kind: [site["baselines"][kind]["delta_ce"] for site in beside["sites"]] for kind in ("pca", "mean")}
    own = [row["delta_ce"]["nats"] for row in [*report["sites"], *report["cumulative"]]]
    every = [*own, *found["pca"], *found["mean"]]
    low = math.floor(math.log10(min(value for value in every if value > 0)))
    high = math.ceil(math.log10(max(every)))
    for path, values in zip(paths, found.values(), strict=True):
        places = [float(y) for y in re.findall(r"[ML][\d.]+ ([\d.]+)", path)]
        for place, value in zip(places, values, strict=True):
            share = (math.log10(max(value, 10.0**low)) - low) / (high - low)
            assert place == pytest.approx(BOTTOM - share * (BOTTOM - TOP), abs=0.06)
    assert 'stroke-width="1.5"' not in re.sub("<line.*", "", sites(report, LIGHT))


def test_more_text_stands_beside_less(records: Records, written: Callable[[Records], str]) -> None:
    rows, text = section(written(records), "More text")
    more, less = records["head50k"], records["sites"]
    assert f"On {more['tokens']} tokens of {more['documents']} documents" in text
    assert f"all together cost {delta(more['all_sites'])} nats" in text
    middle = statistics.median(site["delta_ce"]["nats"] for site in more["sites"])
    assert f"{middle:+.3f} in the median" in text
    pairs = zip([*more["sites"], more["all_sites"]], [*less["sites"], less["all_sites"]], strict=True)
    for row, (site, before) in zip(rows, pairs, strict=True):
        assert row[1:3] == [delta(site), f"{before['delta_ce']['nats']:+.3f}"]
        assert row[3:] == [f"{site['kl']:.3f}", f"{100 * site['top1_agreement']:.1f} %"]


def test_the_answer_has_the_baselines_at_all_layers(records: Records, written: Callable[[Records], str]) -> None:
    top = written(records).partition("<picture>")[0]
    found = records["baselines"]["all_sites"]["baselines"]
    shown = [f"{found[kind]['delta_ce']:+.3f}" for kind in ("mean", "pca", "random")]
    sentence = top[top.index("At all 2 layers at once") :]
    assert re.findall(r"[+-]\d+\.\d{3}", sentence) == shown


def test_models_that_only_count_stand_beside(records: Records, written: Callable[[Records], str]) -> None:
    """Their losses, the paired difference, and the layer from which on SAEs up to it are worse."""
    rows, text = section(written(records), "Beside models that only count")
    report, record = records["sites"], records["ngrams"]
    assert [row[0] for row in rows] == ["all tokens alike", "frequencies", "2-grams"]
    joint = report["documents_table"]["spliced"]["all"]
    tokens = report["documents_table"]["tokens"]
    for row, model in zip(rows, record["models"], strict=True):
        differences = [a - b for a, b in zip(joint, model["documents"], strict=True)]
        value = sum(d * n for d, n in zip(differences, tokens, strict=True)) / sum(tokens)
        assert value == pytest.approx(report["all_sites"]["ce"]["spliced"] - model["loss"], abs=1e-9)
        low, high = model["all_minus"]["ci95"]
        assert low <= value <= high
        assert row[2:4] == [f"{model['loss']:.3f}", interval(value, [low, high])]
        worse = [step["ce"] > model["loss"] for step in report["cumulative"]]
        assert row[4] == ("–" if not worse[-1] else str(len(worse) - [*worse[::-1], False].index(False)))
    assert record["models"][0]["loss"] == pytest.approx(math.log(record["vocabulary"]), rel=1e-12)
    assert f"The model itself has {report['all_sites']['ce']['clean']:.3f} nats" in text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ids": ["0"]}, "need the same tokens of the same documents"),
        ({"spliced": {}}, "need a report of `saekernels eval` of several sites together"),
    ],
)
def test_n_grams_of_other_text_than_the_reports_are_refused(
    records: Records, change: dict[str, Any], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also where it has as many tokens in as many documents."""
    words = shlex.split(records["ngrams"]["command"])[2:]
    report = json.loads(json.dumps(records["sites"]))
    report["documents_table"] |= change
    path, out = tmp_path / "report.json", tmp_path / "out.json"
    path.write_text(json.dumps(report))
    words[words.index("--report") + 1], words[words.index("--json") + 1] = str(path), str(out)
    with pytest.raises(SystemExit):
        runpy.run_path(str(ROOT / "tools" / "real_model" / "ngrams.py"))["main"](words)
    assert message in capsys.readouterr().err
    assert not out.exists()


def test_strata_are_those_of_the_report(records: Records, written: Callable[[Records], str]) -> None:
    rows, _ = section(written(records), "Where in the text")
    report = records["sites"]
    found = [(axis, name) for axis, parts in report["all_sites"]["strata"].items() for name in parts]
    assert {axis for axis, _ in found} == {"position", "frequency"}
    for row, (axis, name) in zip(rows, found, strict=True):
        part = report["all_sites"]["strata"][axis][name]
        alone = statistics.median(site["strata"][axis][name]["delta_ce"]["nats"] for site in report["sites"])
        assert row == [name, f"{part['tokens']:,}", f"{part['ce']['clean']:.3f}", delta(part), f"{alone:+.3f}"]


def test_the_curve_has_bits_and_pca(records: Records, written: Callable[[Records], str]) -> None:
    rows, text = section(written(records), "More latents, and the bits that they take")
    assert len(rows) == 2
    for row, site in zip(rows, records["curve"]["sites"], strict=True):
        sae, pca = site["bits"]["sae"], site["bits"]["pca"]
        assert row[1:4] == [f"{site['l0']:.0f}", f"{site['fvu']:.3f}", run_of(site, "sae")]
        assert row[4:6] == [f"{sae['bits']['total']:.0f}", f"{site['runs']['quantised']['delta_ce']:+.3f}"]
        assert row[6:] == [str(pca["numbers"]), f"{pca['bits']['total']:.0f}", run_of(site, "pca")]
    assert "No smaller model of this family was measured" in text


def test_controls_are_paired_with_the_trained_one(records: Records, written: Callable[[Records], str]) -> None:
    rows, text = section(written(records), "Parts that never learned")
    frozen, shuffled = records["controls"], records["shuffled"]
    trained, first, second = frozen["sites"]
    assert [row[0] for row in rows] == ["trained", "decoder frozen at random", "trained, then its decoder shuffled"]
    assert rows[0][1:] == [
        f"{trained['delta_ce']['nats']:+.3f}", f"{trained['fvu']:.3f}", f"{trained['l0']:.0f}",
        f"{100 * trained['dead_fraction']:.0f} %", "–",
    ]  # fmt: skip
    assert rows[1][1] == f"{first['delta_ce']['nats']:+.3f}, {second['delta_ce']['nats']:+.3f}"
    for row, report, entry in ((rows[1], frozen, "decoder-0"), (rows[2], shuffled, "none-0-shuffled_decoder")):
        one = report["extras"]["paired"][f"{SITES[1]}#{entry}"]
        assert row[-1] == interval(one["difference"], one["ci95"])
    again = f"costs\n{trained['delta_ce']['nats']:+.3f} and {records['sites']['sites'][1]['delta_ce']['nats']:+.3f}: "
    assert f"{again}the same to the last digit." in text
    moved = copy.deepcopy(records)
    moved["controls"]["sites"][0]["delta_ce"]["nats"] += 0.25
    assert ": 2.5e-01 apart." in section(written(moved), "Parts that never learned")[1]
    moved["controls"]["tokens"] += 1
    assert " apart." not in section(written(moved), "Parts that never learned")[1]


def test_seeds_share_what_the_record_says(records: Records, written: Callable[[Records], str]) -> None:
    rows, text = section(written(records), "Seeds")
    (group,) = records["seeds"]["seeds"]
    assert f"range {group['range']:.3f}, standard deviation\n{group['sd']:.3f}" in text
    assert f"interval over documents is {group['interval_width']:.3f} wide" in text
    assert [row[0] for row in rows] == ["0 and 1", "0 and 2", "1 and 2"]
    for row, pair in zip(rows, group["pairs"], strict=True):
        shares = pair["decoder"]["a_in_b"]["active"]
        assert row[1] == interval(pair["b_minus_a"], pair["ci95"])
        assert row[2:5] == [*(f"{100 * shares[at]:.1f} %" for at in ("0.7", "0.9")),
                            f"{pair['decoder']['one_to_one']['0.7']}"]  # fmt: skip
        for place, which in ((5, "on"), (7, "off")):
            one = pair["activity"][which]
            shown = [one["iou"]["a_in_b"]["mean"], one["matched"]["iou"]]
            assert row[place : place + 2] == ["–" if value is None else f"{value:.2f}" for value in shown]


def test_the_error_has_its_linear_part_and_the_rest(records: Records, written: Callable[[Records], str]) -> None:
    rows, _ = section(written(records), "What is in the error")
    for row, site in zip(rows, records["error"]["sites"], strict=True):
        low, high = site["error"]["explained_ci95"]
        shares = [100 * share for share in (site["error"]["explained"], low, high)]
        assert row[1] == "{:.1f} % [{:.1f} %, {:.1f} %]".format(*shares)
        assert row[2] == f"{100 * site['error']['norm_explained']:.1f} %"
        assert row[3:6] == [run_of(site, run) for run in ("sae", "linear", "remainder")]
        assert row[6] == f"{site['runs']['whole']['delta_ce']:+.3f}"


def test_tasks_and_probes_stand_beside_the_whole(records: Records, written: Callable[[Records], str]) -> None:
    page = written(records)
    (row,), text = section(page, "Narrow tasks beside the whole")
    for place, name in ((2, "baselines"), (4, "tasks")):
        (one,) = records[name]["extras"]["tasks"]["tasks"]
        assert row[0] == one["name"]
        assert row[1] == f"{one['clean']:+.3f} ({100 * one['clean_accuracy']:.0f} %)"
        assert row[place] == f"{one['spliced']:+.3f} ({100 * one['spliced_accuracy']:.0f} %)"
        assert f"{'2 layers' if place == 2 else 'layer 0'} cost {delta(records[name]['all_sites'])}" in text
    rows, text = section(page, "Probes")
    costs = [f"{delta(site)} at layer {number}" for number, site in enumerate(records["sites"]["sites"])]
    assert f"Over all text the same SAEs cost {costs[0]}, {costs[1]}." in text
    (found,) = records["probe"]["sets"]
    figures = [method for site in found["sites"] for method in site["methods"]]
    answers = found["answers"]
    assert len(rows) == len(figures) + len(answers) > len(answers) > 0
    for row, method in zip(rows, figures, strict=False):
        inside, outside = method["in"], method["out"]["language"]
        assert row[1] == method["method"]
        for shown, one in zip(row[2:], (inside, outside), strict=True):
            assert shown == f"{one['value']:.3f} [{one['ci95'][0]:.3f}, {one['ci95'][1]:.3f}]"
    for row, one in zip(rows[len(figures) :], answers, strict=True):
        assert row[1] == interval(one["logit_difference"]["value"], one["logit_difference"]["ci95"])
        assert row[2] == f"{100 * one['accuracy']['value']:.1f} %"
    assert [row[0] for row in rows[len(figures) :]] == ["nothing", "layer 0", "layer 1", "all of these"]


def test_transcoders_alone_and_together(records: Records, written: Callable[[Records], str]) -> None:
    rows, text = section(written(records), "Transcoders")
    report = records["transcoders"]
    for row, site in zip(rows, [*report["sites"], report["all_sites"]], strict=True):
        assert row[1:3] == [delta(site), f"{site['kl']:.3f}"]
        assert row[-3:-1] == [f"{site['baselines'][kind]['delta_ce']:+.3f}" for kind in ("mean", "zero")]
        recovered = site["loss_recovered"]["mean"]
        assert row[-1] == ("–" if recovered is None else f"{100 * recovered:.1f} %")
    assert [row[0] for row in rows] == ["0", "1", "all"]
    assert f"{delta(report['all_sites'])} all together" in text


def test_what_it_cost_is_in_the_records(records: Records, written: Callable[[Records], str]) -> None:
    rows, text = section(written(records), "What it cost to measure")
    timed = {row[0].strip("`").removesuffix(".json"): row for row in rows}
    assert set(timed) == set(records) - {"probe", "floor", "train", "ngrams"}
    run = records["baselines"]["run"]
    per_token = 1e6 * run["seconds"] / (run["passes"] * records["baselines"]["tokens"])
    assert timed["baselines"][2:] == [str(run["passes"]), f"{run['seconds'] / 60:.0f}", f"{per_token:.0f}"]
    assert timed["seeds"][3:] == ["–", "–"]
    floor = records["floor"]
    # means, clean, both sites alone, both together; the cumulative splice of the first is the first alone
    assert floor["passes"] == 5
    assert floor["ratio"] == statistics.median(floor["ratios"])
    assert f"{floor['ratio']:.2f} times as long as that many forwards" in text


def test_bfloat16_says_what_it_moves_and_what_it_saves(records: Records, written: Callable[[Records], str]) -> None:
    rows, text = section(written(records), "In bfloat16")
    wide, narrow = records["sites"], records["bfloat16"]
    assert [row[0] for row in rows] == ["ΔCE", "KL", "top-1", "FVU", "L0"]
    paths = (("delta_ce", "nats"), ("kl",), ("top1_agreement",), ("fvu",), ("l0",))
    moved = []
    for path in paths:
        found = []
        for mine, its in zip([*narrow["sites"], narrow["all_sites"]], [*wide["sites"], wide["all_sites"]], strict=True):
            for key in path:
                mine, its = mine[key], its[key]
            found.append(mine - its)
        moved.append((max(found[:-1], key=abs), found[-1]))
    assert max(abs(value) for value, _ in moved[:2]) > 0
    for place, (row, values) in enumerate(zip(rows, moved, strict=True)):
        assert row[1:] == [f"{100 * value:.1f} %" if place == 2 else f"{value:+.3f}" for value in values]
    beside = records["floor"]["beside"]
    assert beside["ratio"] == statistics.median(beside["ratios"])
    assert f"{beside['evaluate_seconds']:.1f} s in bfloat16,\n{beside['ratio']:.2f} times as fast" in text


def test_a_section_is_there_with_its_record_alone(records: Records, written: Callable[[Records], str]) -> None:
    """Without further records the page has what the first one says, and every record's command is shown."""
    few = {name: records[name] for name in ("sites", "train")}
    headings = re.findall(r"^## (.*)$", written(few), re.MULTILINE)
    assert headings == ["Every layer", "Every domain", "Where in the text", "What it cost to measure", "What was run"]
    page = written(records)
    assert len(re.findall(r"^## ", page, re.MULTILINE)) == len(headings) + 11
    commands = page.rpartition("```bash")[2].replace(" \\\n    ", " ")
    for name in set(records) - {"train", "sites"}:
        run = records[name].get("run", records[name])
        assert run["command"] in commands, name
    prose = [line for line in page.partition("```bash")[0].splitlines() if line[:1] != "|"]
    assert max(map(len, prose)) <= 120
