"""Slices of a text, and what probes and SAEs cost inside and outside of them: against plain hooks and full logits."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import tiny_lm
from cli import arguments, fails
from saekernels.cli import main
from saekernels.eval import Document, InputError
from saekernels.eval.report.breadth_text import gap_sentence
from saekernels.eval.studies.breadth import Breadth, measure_breadth
from saekernels.eval.text.slices import LEVELS, Slices, alternate, choose_slices, levels_of
from saekernels.eval.text.windows import Tokens, chosen
from tiny_lm import SITES

CONTEXT = 24


@functools.cache
def texts() -> tuple[Document, ...]:
    words = tiny_lm.PARAGRAPH.split(" ")
    prose = [Document(" ".join(words[i : i + 30]), "prose", str(i)) for i in range(6)]
    code = [Document(tiny_lm.CODE.replace("light", f"light{'s' * i}") * 2, "code", str(i)) for i in range(4)]
    return (*prose, *code)


def tokens() -> Tokens:
    return Tokens(tiny_lm.tokenizer(), CONTEXT)


@functools.cache
def slices() -> Slices:
    return choose_slices(texts(), tokens(), "code", r"while .*", None)


@functools.cache
def measured(ranks: tuple[int, ...] = (1, 8), bootstrap: int = 50) -> Breadth:
    return measure_breadth(
        tiny_lm.trained_model(), tokens(), SITES[1], tiny_lm.sae(1), iter(texts()), slices(),
        ranks=ranks, bootstrap=bootstrap, batch_size=3,
    )  # fmt: skip


def test_levels_are_nested_and_found_by_characters() -> None:
    found, cut = slices(), tokens()
    assert found.domain == "code"
    assert found.begins is None
    for document, windows in chosen(iter(texts()), cut, None, 0):
        inside: list[int] = []
        for window, level in zip(windows, levels_of(document, windows, found, cut), strict=True):
            assert level.shape == window.ids.shape
            assert (level <= 2).all() if document.domain == "code" else (level == 3).all()
            inside += window.ids[level <= 1].tolist()
            assert (window.ids[level == 0] == found.token).all()
            assert not ((window.ids == found.token) & (level == 1)).any()
        wanted = "".join(re.findall(r"while .*", document.text)) if document.domain == "code" else ""
        assert cut.tokenizer.decode(inside).replace(" ", "") == wanted.replace(" ", "")


def test_what_is_not_given_is_the_commonest_of_both_halves() -> None:
    documents = [
        Document("return a, b, c\nreturn d, e\n", "x", "0"),
        Document("return f, g\nwhile h\nreturn i\n", "x", "1"),
        Document("once\n" * 50, "y", "2"),
    ]
    found = choose_slices(documents, tokens(), None, None, None)
    assert found.domain == "x"
    assert found.begins == "return"
    assert re.findall(found.template, "  return q, r\nno\n")
    assert found.names(tiny_lm.tokenizer())["template"] == "lines that begin with 'return' in x"
    counts = [tiny_lm.tokenizer()(t)["input_ids"] for t in ("return a, b, c\nreturn d, e", "return f, g\nreturn i")]
    assert found.token in counts[0]
    assert found.token in counts[1]
    assert alternate(["x", "y", "x", "x", "y"]) == [True, True, False, True, False]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("law", None, None), "domain: none of the documents is of 'law'; they are of code, prose"),
        (("code", "(", None), r"template: '\(' is no regular expression"),
        (("code", "xyzzy", None), "template: 'xyzzy' has no token in both halves"),
        (("code", "while .*", "the quick brown"), "token: 'the quick brown' is .* tokens of this tokenizer"),
        (("code", "while .*", "é"), "token: 'é' is .*"),
        (("code", "while .*", "COMMON"), None),
    ],
)
def test_bad_slices(given: Any, message: str | None) -> None:
    if message is None:
        common = tiny_lm.tokenizer().decode([slices().token])
        assert choose_slices(texts(), tokens(), *given[:2], common).token == slices().token
        return
    with pytest.raises(InputError, match=message):
        choose_slices(texts(), tokens(), *given)


def test_one_document_cannot_be_both_fitted_and_tested() -> None:
    with pytest.raises(InputError, match="every domain has one document here"):
        choose_slices([Document("def a", "x", "0"), Document("def a", "y", "1")], tokens(), None, None, None)
    with pytest.raises(InputError, match="no word begins lines"):
        choose_slices([Document("1", "x", "0"), Document("2", "x", "1")], tokens(), None, None, None)


def hooked(ids: Tensor, replace: Any = None) -> tuple[Tensor, Tensor]:
    """(logits, the site's output), the output changed by replace(output)."""
    seen: list[Tensor] = []

    def hook(module: Any, given: Any, out: Tensor) -> Tensor | None:
        seen.append(out)
        return None if replace is None else replace(out)

    handle = tiny_lm.trained_model().get_submodule(SITES[1]).register_forward_hook(hook)
    with torch.inference_mode():
        logits = tiny_lm.trained_model()(ids).logits
    handle.remove()
    return logits[0].double(), seen[0][0].double()


def halves() -> tuple[list[Any], list[Any]]:
    cut, parts = tokens(), ([], [])
    many = list(chosen(iter(texts()), cut, None, 0))
    half = alternate([document.domain for document, _ in many])
    for number, (document, windows) in enumerate(many):
        for window, level in zip(windows, levels_of(document, windows, slices(), cut), strict=True):
            parts[0 if half[number] else 1].append((document.domain, window, level))
    return parts


def principal(rows: Sequence[Tensor], rank: int) -> Any:
    x = torch.cat(list(rows))
    mean = x.mean(0)
    _, sizes, basis = torch.linalg.svd(x - mean, full_matrices=False)
    basis = basis[sizes > 1e-5 * sizes[0]][:rank]
    return lambda out: ((out.double() - mean) @ basis.T @ basis + mean).float()


def expected(rank: int | None, fitted: Any, spliced: Any, measured_on: Any) -> float | None:
    """ΔCE by full logits: probe of `rank` (None: the SAE) fitted where fitted(domain, level), and so on."""
    fit, test = halves()
    rows = [hooked(torch.from_numpy(w.ids).long()[None])[1][torch.from_numpy(fitted(d, lv) & ~w.special)]
            for d, w, lv in fit]  # fmt: skip
    replace = tiny_lm.sae(1) if rank is None else principal(rows, rank)
    total = count = 0.0
    for domain, window, level in test:
        ids = torch.from_numpy(window.ids).long()[None]
        at = torch.from_numpy(spliced(domain, level) & ~window.special)

        def change(out: Tensor, at: Tensor = at) -> Tensor:
            return torch.where(at[None, :, None], replace(out), out)

        with torch.inference_mode():
            clean, other = hooked(ids)[0], hooked(ids, change)[0]
        keep = torch.from_numpy(window.counted & measured_on(domain, level)[:-1] & at.numpy()[:-1])
        ce = [F.cross_entropy(logits[:-1], ids[0, 1:], reduction="none")[keep].sum() for logits in (clean, other)]
        total, count = total + float(ce[1] - ce[0]), count + float(keep.sum())
    return total / count if count else None


def inside(number: int) -> Any:
    return lambda domain, level: level <= number


def outside(number: int) -> Any:
    return lambda domain, level: level > number


@pytest.mark.parametrize("number", range(4))
@pytest.mark.parametrize("method", ["rank 1", "rank 8", "sae"])
def test_the_levels_by_hooks_and_full_logits(number: int, method: str) -> None:
    rank = int(method[5:]) if method != "sae" else None
    found = measured().figures
    sides = {"inside": inside, "outside": outside} if number < 3 else {"inside": inside}
    for side, make in sides.items():
        want = expected(rank, inside(number), make(number), make(number))
        assert want is not None
        assert found[LEVELS[number], method, side]["delta_ce"] == pytest.approx(want, abs=2e-4)
    assert ("everything", method, "outside") not in found


@pytest.mark.parametrize("source", ["code", "prose", "everything"])
@pytest.mark.parametrize("target", ["code", "prose"])
def test_the_transfer_matrix_by_hooks(source: str, target: str) -> None:
    def of(name: str) -> Any:
        return lambda domain, level: np.full(len(level), name in ("everything", domain))

    want = expected(8, of(source), of("everything"), of(target))
    result = measured().to_dict(slices().names(tiny_lm.tokenizer()))["transfer"]
    row, column = result["fitted_on"].index(source), result["measured_on"].index(target)
    assert result["delta_ce"][row][column] == pytest.approx(want, abs=2e-4)
    assert result["sae"][column] == pytest.approx(expected(None, of("x"), of("everything"), of(target)), abs=2e-4)


def test_the_dictionary_has_gaps_counts_and_the_same_numbers() -> None:
    data = measured().to_dict(slices().names(tiny_lm.tokenizer()))
    json.dumps(data, allow_nan=False)
    assert [level["level"] for level in data["levels"]] == list(LEVELS)
    fitted = [level["fitted_on"] for level in data["levels"]]
    assert fitted == sorted(fitted)
    assert fitted[0] > 0
    for level in data["levels"][:3]:
        for one in level["methods"].values():
            assert one["extrapolation_gap"] == one["outside"]["delta_ce"] - one["inside"]["delta_ce"]
            assert one["inside"]["tokens"] > 0
    assert data["levels"][3]["methods"]["sae"]["outside"] is None
    narrow = data["levels"][0]["methods"]["rank 8"]
    assert f"{narrow['extrapolation_gap']:+.3f}" in gap_sentence({**data, "model": "m"})


def test_ranks_above_the_width_are_the_identity_on_everything() -> None:
    found = measured((99,), 0)
    assert found.ranks == [tiny_lm.WIDTH]
    figure = found.figures["everything", f"rank {tiny_lm.WIDTH}", "inside"]
    assert abs(figure["delta_ce"]) < 1e-3
    assert figure["ci95"] is None


def test_a_slice_without_positions_is_refused() -> None:
    nowhere = Slices(slices().token, "while .*", "no such domain")
    with pytest.raises(InputError, match="slice 'token' has no position in the half that probes are fitted on"):
        measure_breadth(
            tiny_lm.trained_model(), tokens(), SITES[1], tiny_lm.sae(1), iter(texts()), nowhere, ranks=[1]
        )  # fmt: skip


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "text.jsonl"
    path.write_text("".join(json.dumps({"text": d.text, "domain": d.domain}) + "\n" for d in texts()))
    return path


def test_breadth_from_the_command_line(
    files: dict[str, Path],
    data: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    base = ["breadth", *arguments(files, data=[data], bootstrap=["20"])[1:]]
    out, page = tmp_path / "b.json", tmp_path / "b.html"
    argv = [*base, "--ranks", "1", "4", "--domain", "code", "--template", "while .*", "--site", SITES[0]]
    assert main([*argv, "--json", str(out), "--html", str(page)]) == 0
    told = capsys.readouterr().out
    result = json.loads(out.read_text())
    assert result["site"] == SITES[0]
    assert result["ranks"] == [1, 4]
    assert gap_sentence(result).split(",")[0] in told.replace("\n", " ")
    assert page.read_text().count("<svg") == 1
    assert "From domain to domain" in page.read_text()
    for extra, message in (
        (["--site", "model.layers.9"], "--site: no SAE was given for 'model.layers.9'"),
        (["--ranks", "0"], "--ranks: need at least 1"),
        (["--domain", "law"], "domain: none of the documents"),
        (["--html", str(tmp_path / "no" / "b.html")], "no does not exist"),
    ):
        assert message in fails(capsys, [*base, *extra])


def test_breadth_within_a_report(
    files: dict[str, Path],
    data: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out, page = tmp_path / "r.json", tmp_path / "r.html"
    argv = arguments(files, data=[data], json=[out], html=[page], bootstrap=["10"])
    assert main([*argv, "--breadth", SITES[1]]) == 0
    told = capsys.readouterr().out
    found = json.loads(out.read_text())["extras"]["breadth"]
    assert found["site"] == SITES[1]
    assert "extrapolation gap" in told
    assert "ΔCE against breadth" in page.read_text()
    assert "--breadth: no SAE was given for 'x'" in fails(capsys, [*argv, "--breadth", "x"])


def test_a_part_that_fails_does_not_cost_the_report(
    files: dict[str, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    text, out = tmp_path / "one.txt", tmp_path / "r.json"
    text.write_text(tiny_lm.PARAGRAPH)
    assert main([*arguments(files, data=[text], json=[out], bootstrap=["0"]), "--breadth"]) == 2
    told = capsys.readouterr()
    assert "every domain has one document here" in told.err
    assert "the report is without that part" in told.err
    notes = json.loads(out.read_text())["notes"]
    assert any(note.startswith("Left out: domain: every domain") for note in notes)
