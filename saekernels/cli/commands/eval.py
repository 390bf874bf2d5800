"""`saekernels eval`: what it costs to splice SAEs into a language model."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from saekernels import example
from saekernels.cli.commands.breadth import breadth_of, entry_of
from saekernels.cli.commands.compat import add_options, check_options, run_compat
from saekernels.cli.commands.replacement import command as replacement
from saekernels.cli.commands.reuse.command import reuse_of
from saekernels.cli.options.arguments import Parser, at_least, names_of, not_empty
from saekernels.cli.options.further_saes import edit, with_controls, with_edits
from saekernels.cli.options.inputs import pick_device
from saekernels.cli.options.leave import add_leave, leave_keywords
from saekernels.cli.options.processes import LATENTS, local_rank, one_process_only, processes
from saekernels.cli.options.report_files import check_outputs, deliver
from saekernels.cli.options.source import BOS, Source, add_source, fill_from_example, load_source
from saekernels.display.progress import progress_bar
from saekernels.errors import InputError
from saekernels.eval import Report, evaluate
from saekernels.eval.passes.plan import BASELINES
from saekernels.eval.store.ranks import Ranks
from saekernels.eval.studies.effective_compute import effective_compute
from saekernels.eval.studies.family import Family, read_family
from saekernels.eval.studies.task_runs import run_tasks, task_part
from saekernels.eval.studies.tasks import Task, load_tasks
from saekernels.eval.sums.bootstrap import MOST_REPLICATES
from saekernels.sae.controls import CONTROLS

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh


def add_parser(commands: Any) -> None:
    parser = commands.add_parser(
        "eval",
        help="splice SAEs into a language model and report what it costs",
        usage="saekernels eval [--model DIR --sae SITE=PATH ... --data FILE ...] [option ...]",
        description="Splice SAEs into a language model, each site alone and all together, and report the loss against "
        "the clean model, zero and mean ablation. Without --model, --sae and --data: the bundled example.",
        examples=(
            ("saekernels eval", "the bundled example"),
            ("saekernels eval --tokens 200_000 --json report.json --html page.html", "more of it, and files"),
            ("saekernels eval --model gpt2 --sae transformer.h.6=saes/h6 --data texts/*.jsonl", ""),
            ("saekernels eval --tasks ioi --breadth --checkpoint run", "a run that can be resumed"),
            ("saekernels eval --model gpt2 --clt clt/ --data texts/ --json clt.json", "layers replaced jointly"),
        ),
    )
    add_source(parser)
    add_leave(parser)
    _add_comparisons(parser)
    replacement.add_options(parser)
    _add_extras(parser)
    scale = parser.group("scale and resume")
    resume = "keep the run's state here; the same command goes on where a killed one stopped"
    scale.add_argument("--checkpoint", metavar="DIR", type=not_empty, help=resume)
    spread = "under torchrun: processes over which the latents of each SAE are spread; the others share the documents"
    scale.add_argument("--latent-parallel", metavar="N", type=at_least(1), default=1, help=spread)
    scale.add_argument("--no-reuse", action="store_true", help="compute layers before a run's first site every time")
    output = parser.group("output")
    output.add_argument("--json", metavar="PATH", type=not_empty, help="write the report as JSON")
    output.add_argument("--html", metavar="PATH", type=not_empty, help="write the report as one HTML page")
    parser.set_defaults(run=run)


def _add_comparisons(parser: Parser) -> None:
    group = parser.group("baselines and intervals")
    kinds = "what to compare with, comma-separated; none: nothing"
    group.add_argument("--baselines", metavar="KINDS", type=names_of(BASELINES), default=BASELINES, help=kinds)
    group.add_argument("--no-cumulative", action="store_true", help="leave out the splices of the first l sites")
    replicates = "bootstrap replicates for 95 %% intervals; 0: none"
    group.add_argument("--bootstrap", metavar="N", type=at_least(0, MOST_REPLICATES), default=2000, help=replicates)


def _add_extras(parser: Parser) -> None:
    extras = parser.group("extras")
    family = "a table of `saekernels scaling fit`: say what model of the family the spliced one is worth "
    family += "(default: the bundled example's, with nothing else given)"
    extras.add_argument("--family", metavar="TABLE", type=not_empty, help=family)
    tasks = "narrow tasks to set beside the whole: ioi, wh_question, or .yaml files of your own"
    extras.add_argument("--tasks", metavar="NAME|FILE", type=not_empty, nargs="+", action="extend", help=tasks)
    breadth = "also what narrow probes cost inside and outside of their slice, at this site or the middle one"
    extras.add_argument("--breadth", metavar="SITE", type=not_empty, nargs="?", const=True, help=breadth)
    reuse = "also how much of each SAE domains share, as `saekernels reuse` measures it"
    extras.add_argument("--reuse", action="store_true", help=reuse)
    controls = (
        "also every SAE with one part of it made random, as a further SAE of its site, compared with it by document"
    )
    extras.add_argument("--control", choices=CONTROLS, nargs="+", action="extend", default=[], help=controls)
    edits = "edit a latent while spliced, as a further SAE of its site: zero, scale:V, clamp:LOW:HIGH, set:V or add:V"
    extras.add_argument(
        "--edit", metavar="SITE:LATENT:OP", type=edit, nargs="+", action="extend", default=[], help=edits
    )
    extras.add_argument("--keep-error", action="store_true", help="edits: put the SAE's own error back in")
    add_options(extras)


def run(arguments: argparse.Namespace) -> int:
    """Evaluate, print the table, write the files."""
    if replacement.asked(arguments):
        one_process_only("--clt, --crosscoder and --transcoders")
        return replacement.run(arguments)
    all_example = fill_from_example(arguments)
    check_options(arguments)
    if arguments.compat:
        one_process_only("--compat")
        return run_compat(arguments, load_source(arguments))
    device = pick_device(arguments.device, local_rank())
    with processes(arguments.latent_parallel, device, arguments.checkpoint) as mesh:
        return _run(arguments, _table(arguments.family, all_example), device, mesh, Ranks(mesh))


def _table(family: str | None, all_example: bool) -> str | None:
    """Where a family's table is: what --family says, or the bundled one of the bundled example."""
    if family is None and all_example and example.FAMILY.is_file():
        return str(example.FAMILY)
    return family


@dataclass(frozen=True)
class _Given:
    """What the options name, loaded; a family with the place of its table."""

    source: Source
    saes: Mapping[str, Any]
    family: tuple[Family, str] | None
    tasks: Sequence[Task]


def _load(
    arguments: argparse.Namespace, table: str | None, device: torch.device, mesh: DeviceMesh | None, ranks: Ranks
) -> _Given:
    if ranks.first:
        check_outputs(arguments)
    if arguments.keep_error and not arguments.edit:
        raise InputError("--keep-error: needs --edit, whose edits it is about")
    if arguments.breadth is not None and any(leave_keywords(arguments).values()):
        raise InputError("--breadth: its probes touch every position; not with --leave-first or --leave-norm")
    family = (read_family(table), table) if table else None
    tasks = load_tasks(arguments.tasks) if arguments.tasks else []
    group = mesh.get_group(LATENTS) if mesh is not None and arguments.latent_parallel > 1 else None
    source = load_source(arguments, device, group, read=ranks.index == 0)
    if isinstance(arguments.breadth, str):
        entry_of(list(source.saes), arguments.breadth, "--breadth")
    saes = with_controls(source.saes, arguments.control, arguments.seed)
    saes = with_edits(saes, arguments.edit, arguments.keep_error)
    return _Given(source, saes, family, tasks)


def _run(
    arguments: argparse.Namespace, table: str | None, device: torch.device, mesh: DeviceMesh | None, ranks: Ranks
) -> int:
    given = ranks.together(lambda: _load(arguments, table, device, mesh, ranks))
    source = given.source
    with progress_bar(shown=ranks.first) as progress:
        report = evaluate(
            source.model,
            source.tokenizer,
            given.saes,
            source.documents,
            tokens=arguments.tokens,
            batch_size=arguments.batch_size,
            context=arguments.context,
            bootstrap=arguments.bootstrap,
            seed=arguments.seed,
            bos=BOS[arguments.bos],
            model_name=arguments.model_name,
            baselines=arguments.baselines,
            cumulative=not arguments.no_cumulative,
            reuse_layers=not arguments.no_reuse,
            checkpoint=arguments.checkpoint,
            mesh=mesh,
            progress=progress,
            **leave_keywords(arguments),
        )
    if ranks.index:
        return 0
    report.run.update(source.facts)
    report.run["command"] = shlex.join(["saekernels", *arguments.argv])
    failures = _add_parts(report, given, arguments)
    return deliver(report, failures, arguments) if ranks.first else 0


def _add_parts(report: Report, given: _Given, arguments: argparse.Namespace) -> list[str]:
    """What goes beside the splices; what cannot be measured is told, and must not cost the rest of the report.

    Returns what was asked for and failed: the bundled family, which nobody asks for, is left out with a note.
    """
    failures = []
    source, tasks = given.source, given.tasks

    def effective() -> None:
        assert given.family is not None
        report.extras["effective_compute"], notes = effective_compute(report, *given.family)
        report.notes.extend(notes)

    def narrow() -> None:
        options = {"bos": BOS[arguments.bos], "bootstrap": arguments.bootstrap, "seed": arguments.seed}
        figures = run_tasks(source.model, source.tokenizer, source.saes, tasks, **options, **leave_keywords(arguments))
        report.extras["tasks"] = task_part(report, figures)

    def breadth() -> None:
        site = None if arguments.breadth is True else arguments.breadth
        report.extras["breadth"] = breadth_of(source, arguments, site)

    def shared() -> None:
        report.extras["reuse"] = reuse_of(source, arguments)

    wanted = (
        (effective, given.family is not None),
        (narrow, bool(tasks)),
        (breadth, arguments.breadth is not None),
        (shared, arguments.reuse),
    )
    for part in (part for part, asked in wanted if asked):
        try:
            part()
        except InputError as error:
            report.notes.append(f"Left out: {error}.")
            if part is not effective or arguments.family is not None:
                failures.append(str(error))
    return failures
