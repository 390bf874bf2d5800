"""Effective compute: interpolation, intervals, and `saekernels scaling fit`."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import saekernels.example as example
import tiny_lm
from saekernels.cli import main
from saekernels.display.numbers import readable
from saekernels.eval import InputError, evaluate
from saekernels.eval.report.reading import worth
from saekernels.eval.studies.effective_compute import effective_compute
from saekernels.eval.studies.family import (
    Family,
    Member,
    equivalents,
    interpolate,
    make_family,
    monotone,
    parametric_share,
    read_family,
)
from saekernels.eval.studies.family_losses import make_member, measure_losses

IDS, TOKENS = ["a", "b", "c", "d"], [10, 20, 30, 40]


def member(name: str, size: int, losses: list[float], trained: int | None = 1000) -> Member:
    return Member(name, size, size // 2, trained, float(np.average(losses, weights=TOKENS)), losses)


def family(*rows: tuple[int, float], trained: int | None = 1000) -> Family:
    """Members of these sizes whose documents all have this loss."""
    made = [member(f"m{size}", size, [loss] * 4, trained) for size, loss in rows]
    return make_family(made, IDS, TOKENS, 24, 320)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.floats(0, 10), min_size=1, max_size=8))
def test_monotone_is_the_nearest_falling_sequence(values: list[float]) -> None:
    losses = np.array(values)
    found = monotone(losses)
    assert len(found) == len(losses)
    assert (np.diff(found) <= 1e-12).all()
    if (np.diff(losses) <= 0).all():
        np.testing.assert_allclose(found, losses)
    np.testing.assert_allclose(found.mean(), losses.mean(), atol=1e-9)
    for step in np.random.default_rng(0).normal(size=(20, len(losses))):
        other = np.minimum.accumulate(found + 0.1 * step)
        assert ((found - losses) ** 2).sum() <= ((other - losses) ** 2).sum() + 1e-9


def test_interpolation_is_linear_in_log_scale() -> None:
    losses, scale = np.array([4.0, 3.0, 2.0]), np.array([1.0, 100.0, 1e6])
    assert interpolate(losses, scale, 3.5) == pytest.approx(10.0)
    assert interpolate(losses, scale, 2.25) == pytest.approx(1e5)
    assert interpolate(losses, scale, 3.0) == pytest.approx(100.0)
    assert interpolate(losses, scale, 9.0) == pytest.approx(1.0)
    assert interpolate(losses, scale, 0.0) == pytest.approx(1e6)
    flat = np.array([4.0, 3.0, 3.0, 2.0])
    assert interpolate(flat, np.array([1.0, 10.0, 100.0, 1000.0]), 3.0) == pytest.approx(10.0)


def test_what_a_loss_is_worth() -> None:
    found, notes = equivalents(
        family((100, 4.0), (10_000, 2.0)), {"x": [3.0] * 4, "low": [1.9] * 4, "high": [4.1] * 4}, IDS, TOKENS, 100, 0
    )
    x = found["x"]
    assert x.parameters == pytest.approx(1000)
    assert x.compute == pytest.approx(6e6)
    assert x.share == pytest.approx(0.1)
    assert x.share_ci95 == pytest.approx((0.1, 0.1)), "all documents alike: no spread"
    assert found["low"].outside == "better than the largest member"
    assert found["low"].share is None
    assert found["high"].outside == "worse than the smallest member"
    assert found["high"].parameters is None
    assert notes == []
    assert (
        worth(dataclasses.asdict(x))
        == "predicts like a model of 1.0 k parameters, 10 % of the training compute [10, 10]"
    )
    assert worth(dataclasses.asdict(found["low"])) == "predicts better than the largest member of the family"


def test_family_and_target_see_the_same_documents() -> None:
    """Documents differ much in loss, but in the same way everywhere: paired intervals stay a point."""
    hard = np.array([1.0, 5.0, 2.0, 0.5])
    rows = [member(f"m{n}", n, list(hard + extra)) for n, extra in ((100, 2.0), (10_000, 0.0))]
    found, _ = equivalents(make_family(rows, IDS, TOKENS, 24, 320), {"x": list(hard + 1)}, IDS, TOKENS, 200, 0)
    assert found["x"].share_ci95 == pytest.approx((0.1, 0.1))


def test_only_shared_documents_count_and_are_weighed_by_tokens() -> None:
    rows = [member("small", 100, [4.0, 4.0, 9.0, 9.0]), member("large", 10_000, [2.0, 2.0, 0.0, 0.0])]
    made = make_family(rows, IDS, TOKENS, 24, 320)
    found, notes = equivalents(made, {"x": [9.9, 4.0, 2.5]}, ["z", "a", "b"], [10, 10, 20], 0, 0)
    assert found["x"].loss == pytest.approx((4.0 * 10 + 2.5 * 20) / 30)
    assert found["x"].parameters == pytest.approx(1000.0)
    assert notes == ["Effective compute is read from 2 of 3 documents: the family's."]
    with pytest.raises(InputError, match="none of the evaluated ones"):
        equivalents(made, {"x": [1.0]}, ["a"], [11], 0, 0)


def test_a_family_that_does_not_fall_is_said() -> None:
    _, notes = equivalents(family((1, 3.0), (10, 3.5), (100, 2.0)), {"x": [2.5] * 4}, IDS, TOKENS, 0, 0)
    assert "made monotone (isotonic)" in notes[0]


def test_without_training_tokens_there_is_no_compute() -> None:
    found, _ = equivalents(family((100, 4.0), (10_000, 2.0), trained=None), {"x": [3.0] * 4}, IDS, TOKENS, 10, 0)
    assert found["x"].share is None
    assert found["x"].parameters == pytest.approx(1000)
    assert worth(dataclasses.asdict(found["x"])) == "predicts like a model of 1.0 k parameters [1.0 k, 1.0 k]"


def test_parametric_laws_by_hand() -> None:
    laws = parametric_share(3.0, 3.3)
    assert laws["kaplan_2020"]["share"] == pytest.approx((3.0 / 3.3) ** 20)
    assert laws["chinchilla_2022"]["share"] == pytest.approx(((3.0 - 1.69) / (3.3 - 1.69)) ** (1 / 0.1535))
    assert "differ" in laws["warning"]["text"]
    assert parametric_share(1.6, 3.0)["chinchilla_2022"]["share"] is None


def test_readable_numbers() -> None:
    assert [readable(n) for n in (7, 940_000, 1_900_000, 12_345_678, 7e9, 2e12)] == [
        "7", "940 k", "1.9 M", "12 M", "7.0 B", "2.0 T",
    ]  # fmt: skip
    assert [readable(n) for n in (999, 999.9999999, 999_960, 999_400)] == ["999", "1.0 k", "1.0 M", "999 k"]


def test_tables_are_read_as_they_were_written_and_nothing_else(tmp_path: Path) -> None:
    made = family((100, 4.0), (10_000, 2.0))
    made.write(tmp_path / "family.json")
    assert read_family(tmp_path / "family.json") == made
    good = json.loads(made.to_json())
    for change, message in (
        ({"format": "other"}, "its format is not"),
        ({"members": good["members"][:1]}, "at least two models"),
        ({"ids": ["a"]}, "a loss for each document"),
        ({"members": [{"name": "x"}] * 2}, "cannot read"),
        ({"extra": 1}, "cannot read"),
        ({"members": [{**good["members"][0], "train_tokens": []}, good["members"][1]]}, "name or sizes are wrong"),
        ({"members": [{**good["members"][0], "parameters": 0}, good["members"][1]]}, "name or sizes are wrong"),
        ({"members": [{**good["members"][0], "documents": 3}, good["members"][1]]}, "must be finite numbers"),
        ({"members": [{**good["members"][0], "loss": -1}, good["members"][1]]}, "must be finite numbers"),
        ({"tokens": [1.5] * len(good["tokens"])}, "must be whole numbers"),
    ):
        (tmp_path / "bad.json").write_text(json.dumps({**good, **change}))
        with pytest.raises(InputError, match=message):
            read_family(tmp_path / "bad.json")
    for text, message in (("[]", "its format is not"), ("null", "its format is not"), ("[" * 10**5, "nested too deep")):
        (tmp_path / "bad.json").write_text(text)
        with pytest.raises(InputError, match=f"cannot read .*{message}"):
            read_family(tmp_path / "bad.json")
    with pytest.raises(InputError, match="cannot read"):
        read_family(tmp_path / "missing.json")
    with pytest.raises(InputError, match="at least two models, got 1"):
        make_family(made.members[:1], IDS, TOKENS, 24, 320)


def measured(model: Any) -> Any:
    return measure_losses(model, tiny_lm.tokenizer(), tiny_lm.documents())


def test_a_member_has_the_clean_loss_of_the_evaluation() -> None:
    model = tiny_lm.trained_model()
    report = evaluate(model, tiny_lm.tokenizer(), tiny_lm.saes(), tiny_lm.documents(), bootstrap=0)
    found = measured(model)
    table = report.documents_table
    assert table is not None
    assert found.ids == table.ids
    assert found.tokens == table.tokens
    np.testing.assert_allclose(found.losses, np.array(table.clean, dtype=float), atol=1e-6)
    row = make_member("m", model, found, 7)
    assert row.loss == pytest.approx(report.all_sites.ce.clean, abs=1e-6)
    assert row.parameters == sum(p.numel() for p in model.parameters())
    assert row.non_embedding == row.parameters - 2 * 320 * tiny_lm.WIDTH
    assert row.compute == 6.0 * row.parameters * 7


def test_the_clean_model_is_worth_itself() -> None:
    model = tiny_lm.trained_model()
    small = measured(tiny_lm.model(hidden_size=16, intermediate_size=16, num_hidden_layers=1))
    large = measured(model)
    members = [make_member("small", tiny_lm.model(hidden_size=16), small, 100), make_member("l", model, large, 1000)]
    made = make_family(members, large.ids, large.tokens, large.context, 320)
    report = evaluate(model, tiny_lm.tokenizer(), tiny_lm.saes(), tiny_lm.documents(), bootstrap=20)
    section, _ = effective_compute(report, made, "here")
    clean, joint = section["targets"]["clean"], section["targets"]["all"]
    assert clean["share"] == pytest.approx(1.0)
    assert clean["outside"] == ""
    assert clean["share_ci95"] == pytest.approx((1.0, 1.0))
    assert joint["outside"] or joint["share"] < 1.0
    assert section["parametric_laws"]["all"]["kaplan_2020"]["share"] < 1.0
    with pytest.raises(InputError, match="windows of 12 tokens, the evaluation has 24"):
        effective_compute(report, dataclasses.replace(made, context=12), "here")


def test_scaling_fit_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = tiny_lm.save(tmp_path)
    small = tmp_path / "small"
    tiny_lm.model(hidden_size=16).save_pretrained(small)
    data, trained, out = tmp_path / "x.txt", tmp_path / "trained.json", tmp_path / "family.json"
    data.write_text(tiny_lm.PARAGRAPH)
    trained.write_text(json.dumps({str(small): 500, str(paths["model"]): 1000}))
    models = [str(small), str(paths["model"])]
    argv = ["scaling", "fit", "--model", *models, "--data", str(data), "--out", str(out)]
    assert main([*argv, "--train-tokens", str(trained)]) == 0
    told = capsys.readouterr().out
    assert "nats per token" in told
    assert told.count("parameters") == 2
    made = read_family(out)
    assert [m.train_tokens for m in made.members] == [500, 1000]
    assert made.members[0].name == "small"
    direct = measure_losses(tiny_lm.model(), tiny_lm.tokenizer(), [tiny_lm.Document(tiny_lm.PARAGRAPH, "x", "x")])
    np.testing.assert_allclose(made.members[1].documents, direct.losses, atol=1e-6)
    out.unlink()
    for text, message in (("[1]", "need an object"), ('{"x": 1}', "'x' is none of the models"), ("{", "cannot read")):
        trained.write_text(text)
        assert main([*argv, "--train-tokens", str(trained)]) == 2
        assert message in capsys.readouterr().err
        assert not out.exists()
    assert main(["scaling", "fit", "--model", str(small), "--data", str(data), "--tokenizer", models[1],
                 "--out", str(out)]) == 2  # fmt: skip
    assert "at least two models, got 1" in capsys.readouterr().err
    assert not out.exists()


def test_the_bundled_family_fits_the_bundled_model() -> None:
    made = read_family(example.FAMILY)
    assert len(made.members) >= 5
    assert made.context == 256
    losses = [m.loss for m in made.members]
    assert losses == sorted(losses, reverse=True), "more compute, less loss"
    assert all(m.train_tokens and m.parameters for m in made.members)
    for one in made.members:
        assert one.loss == pytest.approx(np.average(one.documents, weights=made.tokens), abs=1e-6)
        assert math.isfinite(one.loss)
