"""Narrow tasks: log probabilities against full logits, the YAML files, what is said of them."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import tiny_lm
from cli import arguments, fails
from places import EXAMPLES
from saekernels.cli import main
from saekernels.eval import InputError
from saekernels.eval.studies.task_runs import TaskFigures, run_tasks, task_part
from saekernels.eval.studies.tasks import Prompt, Task, built_in, load_tasks
from saekernels.splice.context import splice

EXAMPLE = EXAMPLES / "tasks" / "brackets.yaml"
TASK = Task(
    "keeper",
    (
        Prompt("asked why he", " did it", " — she"),
        Prompt("    while light", ".on:", "("),
        Prompt("The old lighthouse", " keeper wrote", " café"),
        Prompt("log(light<eos>", ".read()", ","),
    ),
)


def difference(prompt: Prompt, saes: dict[str, Any] | None) -> float:
    """log p(answer) - log p(foil) from full logits, one sequence at a time."""
    model, tokenizer, scores = tiny_lm.trained_model(), tiny_lm.tokenizer(), []
    for continuation in (prompt.answer, prompt.foil):
        front = [0, *tokenizer(prompt.text, add_special_tokens=False)["input_ids"]]
        ids = tokenizer(continuation, add_special_tokens=False)["input_ids"]
        whole = torch.tensor([front + ids])
        untouched = torch.isin(whole, torch.tensor([0, 1, 2]))
        spliced = splice(model, saes, untouched=untouched) if saes else contextlib.nullcontext()
        with torch.inference_mode(), spliced:
            logp = model(whole).logits[0].double().log_softmax(-1)
        scores.append(sum(float(logp[len(front) - 1 + i, token]) for i, token in enumerate(ids)))
    return scores[0] - scores[1]


@pytest.mark.parametrize("batch_size", [1, 3, 16])
def test_differences_are_those_of_full_logits(batch_size: int) -> None:
    saes = tiny_lm.saes()
    (found,) = run_tasks(
        tiny_lm.trained_model(), tiny_lm.tokenizer(), saes, [TASK], batch_size=batch_size, bootstrap=200
    )
    clean = np.array([difference(prompt, None) for prompt in TASK.prompts])
    spliced = np.array([difference(prompt, saes) for prompt in TASK.prompts])
    assert found.clean == pytest.approx(clean.mean(), abs=1e-4)
    assert found.spliced == pytest.approx(spliced.mean(), abs=1e-4)
    assert found.clean_accuracy == (clean > 0).mean()
    assert found.spliced_accuracy == (spliced > 0).mean()
    assert found.prompts == 4


def test_recovered_only_where_the_clean_model_does_the_task() -> None:
    model, tokenizer, saes = tiny_lm.trained_model(), tiny_lm.tokenizer(), tiny_lm.saes()
    easy = Task("easy", tuple(Prompt(p.text, p.answer, p.foil) for p in TASK.prompts[1:3]))
    turned = Task("turned", tuple(Prompt(p.text, p.foil, p.answer) for p in easy.prompts))
    found, other = run_tasks(model, tokenizer, saes, [easy, turned], bootstrap=100)
    assert found.clean > 0
    assert found.recovered == pytest.approx(found.spliced / found.clean)
    assert found.recovered_ci95 is not None
    assert found.recovered_ci95[0] <= found.recovered <= found.recovered_ci95[1]
    assert other.recovered is None
    assert other.recovered_ci95 is None
    assert other.clean == pytest.approx(-found.clean, abs=1e-5)


def test_the_first_sae_of_a_site_is_the_one_spliced_in() -> None:
    saes = {"model.layers.0": tiny_lm.sae(0), "model.layers.0#other": tiny_lm.sae(5)}
    model, tokenizer = tiny_lm.trained_model(), tiny_lm.tokenizer()
    both = run_tasks(model, tokenizer, saes, [TASK], bootstrap=0)
    alone = run_tasks(model, tokenizer, {"model.layers.0": tiny_lm.sae(0)}, [TASK], bootstrap=0)
    assert both == alone


def test_prompts_that_cannot_be_run() -> None:
    model, tokenizer, saes = tiny_lm.trained_model(), tiny_lm.tokenizer(), tiny_lm.saes()
    with pytest.raises(InputError, match=r"long: a prompt has \d+ tokens, the model only 24 positions"):
        run_tasks(model, tokenizer, saes, [Task("long", (Prompt(tiny_lm.PARAGRAPH, "a", "b"),))])
    plain = tiny_lm.tokenizer(False)
    with pytest.raises(InputError, match="'a' gives no tokens"):
        run_tasks(model, plain, saes, [Task("bare", (Prompt("", "a", "b"),))], bos=False)


def test_the_built_in_tasks_break_their_own_heuristics() -> None:
    ioi, questions = built_in()["ioi"], built_in()["wh_question"]
    assert len(ioi) == 5
    assert all(len(task.prompts) == 200 for task in ioi)
    for task in ioi:
        for prompt in task.prompts:
            answer, foil = prompt.answer.strip(), prompt.foil.strip()
            assert answer != foil
            assert answer in prompt.text
            assert prompt.text.endswith(" to")
    counts = {t.name: (t.prompts[0].text.count(t.prompts[0].answer), t.prompts[0].text.count(t.prompts[0].foil))
              for t in ioi}  # fmt: skip
    assert counts["ioi"] == (1, 2)
    assert counts["ioi (receiver named twice)"] == (2, 2), "counting names no longer tells"
    assert counts["ioi (giver named thrice)"] == (1, 3)
    assert [t.prompts[0].answer for t in questions] == ["?", "."]
    asks = {"What", "Where", "Who", "When", "Why", "How", "Which"}
    assert {p.text.split()[0] for p in questions[0].prompts} == asks
    assert load_tasks(["ioi", "wh_question"]) == [*ioi, *questions]


def test_the_example_file() -> None:
    tasks = load_tasks([EXAMPLE])
    assert [len(task.prompts) for task in tasks] == [18, 18, 4]
    for task in tasks:
        assert all("{" not in p.text + p.answer + p.foil or "brackets" in str(EXAMPLE) for p in task.prompts)


GOOD = {"name": "n", "template": "a {x}", "answer": "{x}", "foil": "no", "fill": [{"x": "1"}, {"x": "2"}]}


def written(tmp_path: Path, content: Any) -> Path:
    path = tmp_path / "tasks.yaml"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def test_fill_product_and_several_templates(tmp_path: Path) -> None:
    (one,) = load_tasks([written(tmp_path, GOOD)])
    assert one.prompts == (Prompt("a 1", "1", "no"), Prompt("a 2", "2", "no"))
    made = {**GOOD, "template": ["{x} {y}", "{y}, {x}"], "product": {"x": ["p", "q"], "y": ["q", "r"]}}
    del made["fill"]
    (one,) = load_tasks([written(tmp_path, made)])
    assert [p.text for p in one.prompts] == ["p q", "q, p", "p r", "r, p", "q r", "r, q"], "never the same word twice"
    plain = {"name": "n", "template": "a", "answer": "b", "foil": "c"}
    assert load_tasks([written(tmp_path, [plain, GOOD])])[0].prompts == (Prompt("a", "b", "c"),)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[1", "cannot read"),
        ("- 3", "task 1 is int, need a mapping"),
        ({**GOOD, "colour": 1}, "unknown key 'colour'"),
        ({k: v for k, v in GOOD.items() if k != "foil"}, "lacks 'foil'"),
        ({**GOOD, "product": {"x": ["1"]}}, "has both fill and product"),
        ({**GOOD, "fill": []}, "fill needs a list of mappings"),
        ({**GOOD, "fill": ["x"]}, "fill needs a list of mappings"),
        ({**GOOD, "fill": [{"x": 1}, {"y": 1}]}, "every entry of fill needs the same names"),
        ({**GOOD, "fill": None, "product": {"x": "abc"}}, "product needs a list"),
        ({**GOOD, "template": "a {z}"}, "{z}, which fill or product does not give"),
        ({**GOOD, "template": "a {x"}, "expected '}'"),
        ({**GOOD, "answer": 3}, "3 is int, need text in quotes"),
        ({**GOOD, "foil": "{x}"}, "an answer is empty or the same as its foil"),
        ({**GOOD, "answer": ""}, "an answer is empty"),
    ],
)
def test_bad_files(content: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="tasks: ") as caught:
        load_tasks([written(tmp_path, content)])
    assert message in str(caught.value)


def test_bad_names(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"'magic' is neither of ioi, wh_question nor a \.yaml file"):
        load_tasks(["magic"])
    with pytest.raises(InputError, match="cannot read"):
        load_tasks([tmp_path / "missing.yaml"])
    (tmp_path / "bytes.yaml").write_bytes(b"\xff\xfe\xff")
    with pytest.raises(InputError, match="cannot read"):
        load_tasks([tmp_path / "bytes.yaml"])


def test_the_sentence_sets_narrow_beside_broad() -> None:
    kept = TaskFigures("a", 4, 2.0, 1.9, 1.0, 1.0, 0.95, (0.9, 1.0))
    lost = dataclasses.replace(kept, name="b", recovered=0.5)
    undone = dataclasses.replace(kept, name="c", recovered=None)
    report: Any = SimpleNamespace(
        all_sites=SimpleNamespace(site="all", delta_ce=SimpleNamespace(nats=0.5)),
        extras={"effective_compute": {"targets": {"all": {"share": 0.25}}}},
    )
    part = task_part(report, [kept, lost, undone])
    assert part["reading"] == (
        "Of 3 tasks the clean model does 2; on 1 of these the splice keeps at least 90% of the logit difference, while "
        "over the whole distribution it costs +0.500 nats per token. A narrow success thus stands beside a loss of "
        "75 % of the training compute."
    )
    assert part["tasks"][2]["recovered"] is None
    assert "narrow success" not in task_part(report, [lost])["reading"]


def test_tasks_within_a_report(
    files: dict[str, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out, page = tmp_path / "r.json", tmp_path / "r.html"
    path = written(tmp_path, GOOD)
    assert main(arguments(files, tasks=[path], json=[out], html=[page])) == 0
    told = capsys.readouterr().out
    assert "Of 1 tasks" in told.replace("\n", " ")
    assert json.loads(out.read_text())["extras"]["tasks"]["tasks"][0]["prompts"] == 2
    assert "Narrow tasks beside the full distribution" in page.read_text()
    assert "neither of ioi, wh_question" in fails(capsys, arguments(files, tasks=["magic"]))
