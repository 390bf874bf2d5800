"""Runs narrow tasks on the clean and the spliced model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from saekernels.display.numbers import Interval
from saekernels.eval.passes.continuations import log_probabilities, tokenized
from saekernels.eval.passes.head import find_head
from saekernels.eval.passes.left import SiteNorms
from saekernels.eval.passes.plan import first_of_each_site
from saekernels.eval.report.data import ReportData
from saekernels.eval.studies.tasks import Task
from saekernels.eval.sums.bootstrap import percentiles, resample_totals
from saekernels.eval.text.windows import Tokens, model_limit
from saekernels.sae.module import SAE
from saekernels.splice.leave import Leave

_KEPT = 0.9


@dataclass(frozen=True)
class TaskFigures:
    """Mean logit differences in nats, and shares of prompts whose difference is positive.

    The logit difference of a prompt is log p(answer) - log p(foil) of the whole continuations; for single tokens that
    is the difference of their logits. recovered: spliced over clean, a ratio of means; None where the clean model does
    not prefer the answers, or so little that the 95 % interval of its mean reaches zero.
    """

    name: str
    prompts: int
    clean: float
    spliced: float
    clean_accuracy: float
    spliced_accuracy: float
    recovered: float | None
    recovered_ci95: Interval | None


def run_tasks(
    model: Any,
    tokenizer: Any,
    saes: Mapping[str, SAE],
    tasks: Sequence[Task],
    *,
    bos: bool | None = None,
    batch_size: int = 16,
    bootstrap: int = 2000,
    seed: int = 0,
    leave_first: int = 0,
    leave_norm: float | None = None,
) -> list[TaskFigures]:
    """Each task with all SAEs spliced in together (the first of each site), against the clean model.

    Special tokens are left untouched, as in `evaluate`, and what `leave_first` and `leave_norm` say, by the clean run
    and the median of a site's norms over the task. Raises InputError for a prompt longer than the model's context.
    """
    tokens = Tokens(tokenizer, 2**31, bos=bos)
    sites = first_of_each_site(saes)
    left = SiteNorms(model, find_head(model), sites, Leave(leave_first, leave_norm))
    made = []
    with torch.inference_mode():
        for task in tasks:
            texts = [(one.text, continuation) for one in task.prompts for continuation in (one.answer, one.foil)]
            sequences = tokenized(tokens, texts, f"tasks: {task.name}", model_limit(model))
            found = log_probabilities(left, [sites], sequences, tokens, batch_size=2 * batch_size)
            made.append(_figures(task.name, found[::2] - found[1::2], bootstrap, seed))
    return made


def _figures(name: str, rows: np.ndarray, samples: int, seed: int) -> TaskFigures:
    """rows [prompts, 2]: clean and spliced difference."""
    clean, spliced = rows.mean(0)
    recovered = interval = None
    drawn = resample_totals(rows, samples, (seed, 9)) if samples and len(rows) > 1 else rows.sum(0, keepdims=True)
    if np.percentile(drawn[:, 0], 2.5) > 0:
        recovered = float(spliced / clean)
        if len(drawn) > 1:
            interval = percentiles(drawn[:, 1] / np.where(drawn[:, 0] > 0, drawn[:, 0], np.nan))
    share = (rows > 0).mean(0)
    return TaskFigures(
        name, len(rows), float(clean), float(spliced), float(share[0]), float(share[1]), recovered, interval
    )


def task_part(report: ReportData, figures: Sequence[TaskFigures]) -> dict[str, Any]:
    """The part "tasks" of a report: the figures, and one sentence that sets them beside the full distribution."""
    able = [one for one in figures if one.recovered is not None]
    kept = [one for one in able if one.recovered is not None and one.recovered >= _KEPT]
    delta = report.all_sites.delta_ce.nats
    cost = "an unknown loss" if delta is None else f"{delta:+.3f} nats per token"
    reading = (
        f"Of {len(figures)} tasks the clean model does {len(able)}; on {len(kept)} of these the splice keeps at least "
        f"{_KEPT:.0%} of the logit difference, while over the whole distribution it costs {cost}."
    )
    worth = report.extras.get("effective_compute", {}).get("targets", {}).get(report.all_sites.site)
    if kept and worth and worth["share"] is not None:
        lost = f"{100 * (1 - worth['share']):.0f} %"
        reading += f" A narrow success thus stands beside a loss of {lost} of the training compute."
    return {"reading": reading, "tasks": [asdict(one) for one in figures]}
