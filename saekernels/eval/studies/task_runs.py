"""Runs narrow tasks on the clean and the spliced model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from saekernels.display.numbers import Interval
from saekernels.errors import InputError
from saekernels.eval.passes.head import find_head
from saekernels.eval.passes.head_kinds import Head
from saekernels.eval.passes.plan import site_of
from saekernels.eval.report.data import ReportData
from saekernels.eval.studies.tasks import Task
from saekernels.eval.sums.bootstrap import percentiles, resample_totals
from saekernels.eval.text.windows import Tokens, model_limit
from saekernels.parallel.devices import input_device
from saekernels.sae.module import SAE
from saekernels.splice.context import splice

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
) -> list[TaskFigures]:
    """Each task with all SAEs spliced in together (the first of each site), against the clean model.

    Special tokens are left untouched, as in `evaluate`. Raises InputError for a prompt longer than the model's context.
    """
    head = find_head(model)
    tokens = Tokens(tokenizer, 2**31, bos=bos)
    device = input_device(model)
    first = {site_of(entry): saes[entry] for entry in reversed(list(saes))}
    sites = {site: first[site] for site in map(site_of, saes)}
    made = []
    with torch.inference_mode():
        for task in tasks:
            rows = np.array(_differences(model, head, tokens, sites, task, batch_size, device))
            made.append(_figures(task.name, rows, bootstrap, seed))
    return made


def _differences(
    model: Any, head: Head, tokens: Tokens, sites: Mapping[str, SAE], task: Task, size: int, device: torch.device
) -> list[tuple[float, float]]:
    """(clean, spliced) of each prompt."""
    sequences = []
    for prompt in task.prompts:
        front = [*tokens.prefix, *tokens.tokenizer(prompt.text, add_special_tokens=False)["input_ids"]]
        for continuation in (prompt.answer, prompt.foil):
            ids = tokens.tokenizer(continuation, add_special_tokens=False)["input_ids"]
            if not front or not ids:
                raise InputError(f"tasks: {task.name}: {prompt.text + continuation!r:.60} gives no tokens")
            sequences.append((front, ids))
    special = torch.from_numpy(tokens.special).long()
    limit = model_limit(model)
    longest = max(len(front) + len(ids) for front, ids in sequences)
    if limit is not None and longest > limit:
        raise InputError(f"tasks: {task.name}: a prompt has {longest} tokens, the model only {limit} positions")
    scores: list[tuple[float, float]] = []
    for start in range(0, len(sequences), 2 * size):
        scores += _log_probabilities(model, head, sites, sequences[start : start + 2 * size], special, device)
    return [(a[0] - b[0], a[1] - b[1]) for a, b in zip(scores[::2], scores[1::2], strict=True)]


def _log_probabilities(
    model: Any,
    head: Head,
    sites: Mapping[str, SAE],
    sequences: Sequence[tuple[list[int], list[int]]],
    special: Tensor,
    device: torch.device,
) -> list[tuple[float, float]]:
    """(clean, spliced) log probability of each continuation after its front."""
    width = max(len(front) + len(ids) for front, ids in sequences)
    ids = torch.zeros(len(sequences), width, dtype=torch.int64)
    real = torch.zeros(len(sequences), width, dtype=torch.bool)
    rows, targets, owner = [], [], []
    for number, (front, continuation) in enumerate(sequences):
        whole = [*front, *continuation]
        ids[number, : len(whole)] = torch.tensor(whole)
        real[number, : len(whole)] = True
        rows += [number * width + len(front) - 1 + i for i in range(len(continuation))]
        targets += continuation
        owner += [number] * len(continuation)
    at, wanted = torch.tensor(rows), torch.tensor(targets)
    untouched = ~real | torch.isin(ids, special)
    clean = head.hidden(ids.to(device), at)
    with splice(model, sites, untouched=untouched):
        spliced = head.hidden(ids.to(device), at)
    found = head.compare(clean, spliced, wanted)
    sums = torch.zeros(len(sequences), 2, dtype=torch.float64)
    pairs: Tensor = torch.stack([-found[0].double().cpu(), -found[1].double().cpu()], 1)
    sums.index_add_(0, torch.tensor(owner), pairs)
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
