"""What `saekernels over` measures at one checkpoint; parts that are done stay in the folder of a run."""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from saekernels.cli.commands.breadth import breadth_of
from saekernels.cli.commands.over.places import Place, saes_at
from saekernels.cli.options.leave import leave_keywords
from saekernels.cli.options.source import BOS, Source, load_source
from saekernels.display.numbers import number, with_interval
from saekernels.display.progress import progress_bar
from saekernels.eval import Report, evaluate
from saekernels.eval.report.data import Documents
from saekernels.eval.store import fingerprints as identity
from saekernels.eval.store.run_folder import Workspace, open_workspace
from saekernels.eval.studies.effective_compute import effective_compute
from saekernels.eval.studies.family import Family
from saekernels.eval.studies.over import points
from saekernels.eval.studies.reuse.measure import measure_reuse
from saekernels.eval.studies.reuse.options import Options
from saekernels.eval.studies.task_runs import run_tasks
from saekernels.eval.studies.tasks import Task
from saekernels.eval.text.windows import Tokens, context_of
from saekernels.splice.leave import Leave

PARTS = ("reuse", "breadth")
# Of the files of a checkpoint's folder.
LAYOUT = 1


@dataclass(frozen=True)
class Measured:
    """One checkpoint: its point, what it was measured on, the losses per document, a line for people, notes."""

    point: dict[str, Any]
    text: dict[str, Any]
    table: Documents
    told: str
    notes: list[str]


def measure_one(
    arguments: argparse.Namespace, place: Place, family: tuple[Family, str] | None, tasks: Sequence[Task]
) -> Measured:
    """Load one checkpoint and measure it, what its folder holds already left out."""
    own = copy.copy(arguments)
    own.model, own.revision, own.adapter = place.model, place.revision, None
    own.model_name, own.sae = place.name, saes_at(arguments.sae, place)
    source = load_source(own)
    folder = Path(arguments.checkpoint) / place.name if arguments.checkpoint else None
    report = _losses(own, source, folder)
    point: dict[str, Any] = {"revision": source.facts.get("revision"), "losses": points.losses(report)}
    notes = [*report.notes]
    if family is not None:
        section, more = effective_compute(report, *family)
        point["family_share"], notes = points.worth(section), notes + more
    with open_workspace(folder and folder / "parts", _question(own, source, tasks)) as workspace:
        for name, measure in _parts(own, source, tasks).items():
            point[name] = _once(workspace, name, measure)
    table = report.documents_table
    assert table is not None
    joint = report.all_sites
    cost = with_interval(joint.delta_ce.nats, joint.delta_ce.ci95)
    told = f"{place.name}: clean CE {number(joint.ce.clean)}, ΔCE {cost}"
    text = {"tokens": report.tokens, "documents": report.documents, "context": report.context, "mask": report.mask}
    return Measured(point, text, table, told, notes)


def _losses(own: argparse.Namespace, source: Source, folder: Path | None) -> Report:
    with progress_bar() as progress:
        return evaluate(
            source.model,
            source.tokenizer,
            source.saes,
            source.documents,
            tokens=own.tokens,
            batch_size=own.batch_size,
            context=own.context,
            baselines=[points.BASELINE],
            cumulative=False,
            bootstrap=own.bootstrap,
            seed=own.seed,
            bos=BOS[own.bos],
            model_name=own.model_name,
            checkpoint=folder and folder / "losses",
            progress=progress,
            **leave_keywords(own),
        )


def _question(own: argparse.Namespace, source: Source, tasks: Sequence[Task]) -> dict[str, Any]:
    """What the parts' figures depend on."""
    return {
        "layout": LAYOUT,
        "model": identity.of_model(source.model),
        "tokenizer": identity.of_tokenizer(source.tokenizer),
        "saes": identity.of_saes(source.saes),
        "data": [*own.data, own.text_field, own.domain_field],
        "site": own.site,
        "tasks": [asdict(task) for task in tasks],
        **{name: getattr(own, name) for name in ("tokens", "context", "bos", "seed", "bootstrap")},
        "leave": [own.leave_first, own.leave_norm],
    }


def _parts(own: argparse.Namespace, source: Source, tasks: Sequence[Task]) -> dict[str, Callable[[], Any]]:
    """Name -> what measures it, of the parts that are asked for."""

    def reuse() -> dict[str, Any]:
        tokens = Tokens(source.tokenizer, context_of(source.model, source.tokenizer, own.context), bos=BOS[own.bos])
        rule = Leave(own.leave_first, own.leave_norm)
        sizes = {"wanted": own.tokens, "batch_size": own.batch_size, "seed": own.seed}
        options = Options(parts=("sharing",), rule=rule, **sizes)
        with progress_bar() as progress:
            found = measure_reuse(source.model, tokens, source.saes, source.documents, options, progress=progress)
        return points.reuse(found)

    def narrow() -> list[dict[str, Any]]:
        how = {"bos": BOS[own.bos], "bootstrap": own.bootstrap, "seed": own.seed, **leave_keywords(own)}
        return [asdict(one) for one in run_tasks(source.model, source.tokenizer, source.saes, tasks, **how)]

    every: dict[str, Callable[[], Any]] = {
        "reuse": reuse,
        "breadth": lambda: points.breadth(breadth_of(source, own, own.site)),
        "tasks": narrow,
    }
    asked = (*own.parts, *(["tasks"] if tasks else []))
    return {name: every[name] for name in asked}


def _once(workspace: Workspace, name: str, measure: Callable[[], Any]) -> Any:
    """What the folder holds, else measured and put there."""
    path = workspace.folder / f"{name}.pt"
    if not path.exists():
        workspace.save(path, {"found": measure()})
    return workspace.load(path)["found"]
