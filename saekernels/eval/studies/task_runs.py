"""Runs narrow tasks on the clean and the spliced model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from saekernels.display.numbers import Interval
from saekernels.errors import InputError
from saekernels.eval.passes.head import find_head
from saekernels.eval.passes.left import SiteNorms
from saekernels.eval.passes.plan import site_of
from saekernels.eval.report.data import ReportData
from saekernels.eval.studies.tasks import Task
from saekernels.eval.sums.bootstrap import percentiles, resample_totals
from saekernels.eval.text.batches import Batch, make_batch
from saekernels.eval.text.windows import Tokens, Window, model_limit
from saekernels.parallel.devices import input_device
from saekernels.sae.module import SAE
from saekernels.splice.context import splice
from saekernels.splice.leave import Leave, Norms

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
    head = find_head(model)
    tokens = Tokens(tokenizer, 2**31, bos=bos)
    first = {site_of(entry): saes[entry] for entry in reversed(list(saes))}
    sites = {site: first[site] for site in map(site_of, saes)}
    left = SiteNorms(model, head, sites, Leave(leave_first, leave_norm))
    made = []
    with torch.inference_mode():
        for task in tasks:
            parts = list(_batches(task, tokens, model_limit(model), batch_size, leave_first))
            left.norms = {site: Norms() for site in sites}
            for batch, _ in parts if leave_norm is not None else ():
                left.add(batch)
            scores = [pair for batch, owner in parts for pair in _log_probabilities(left, batch, owner)]
            differences = [(a[0] - b[0], a[1] - b[1]) for a, b in zip(scores[::2], scores[1::2], strict=True)]
            made.append(_figures(task.name, np.array(differences), bootstrap, seed))
    return made


def _batches(
    task: Task, tokens: Tokens, limit: int | None, size: int, leave_first: int
) -> Iterator[tuple[Batch, Tensor]]:
    """Prompts with their answers and foils in turn, so many prompts at a time; and of each row the sequence it is of.

    The rows of a batch are the places that predict a continuation's tokens.
    """
    sequences = []
    for prompt in task.prompts:
        front = [*tokens.prefix, *tokens.tokenizer(prompt.text, add_special_tokens=False)["input_ids"]]
        for continuation in (prompt.answer, prompt.foil):
            ids = tokens.tokenizer(continuation, add_special_tokens=False)["input_ids"]
            if not front or not ids:
                raise InputError(f"tasks: {task.name}: {prompt.text + continuation!r:.60} gives no tokens")
            sequences.append((front, ids))
    longest = max(len(front) + len(ids) for front, ids in sequences)
    if limit is not None and longest > limit:
        raise InputError(f"tasks: {task.name}: a prompt has {longest} tokens, the model only {limit} positions")
    for start in range(0, len(sequences), 2 * size):
        chosen = sequences[start : start + 2 * size]
        whole = [np.asarray([*front, *ids], dtype=np.int32) for front, ids in chosen]
        windows = [Window(0, ids, np.isin(ids, tokens.special), np.zeros(len(ids), dtype=np.int64)) for ids in whole]
        batch = make_batch(windows, leave_first)
        width = batch.ids.shape[1]
        rows = [n * width + len(front) - 1 + i for n, (front, ids) in enumerate(chosen) for i in range(len(ids))]
        targets = [one for _, ids in chosen for one in ids]
        owner = torch.repeat_interleave(torch.tensor([len(ids) for _, ids in chosen]))
        yield replace(batch, rows=torch.tensor(rows), targets=torch.tensor(targets)), owner


def _log_probabilities(left: SiteNorms, batch: Batch, owner: Tensor) -> list[tuple[float, float]]:
    """(clean, spliced) log probability of each continuation after its front."""
    clean, masks = left.run_clean(batch)
    untouched = ~batch.touched if masks is None else {site: ~mask for site, mask in masks.items()}
    with splice(left.model, left.sites, untouched=untouched):
        spliced = left.head.hidden(batch.ids.to(input_device(left.model)), batch.rows)
    found = left.head.compare(clean, spliced, batch.targets)
    sums = torch.zeros(len(batch.windows), 2, dtype=torch.float64)
    pairs: Tensor = torch.stack([-found[0].double().cpu(), -found[1].double().cpu()], 1)
    sums.index_add_(0, owner, pairs)
    return [(float(a), float(b)) for a, b in sums]


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
