"""`saekernels bench gpu`: the scorecard of the GPU kernels; `saekernels bench check`: whether the ops are right."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import torch

from saekernels.bench.gpu import cards, checks, forecast, plots, runner
from saekernels.bench.gpu.cases import Settings
from saekernels.bench.gpu.contenders import OPS
from saekernels.bench.gpu.record import OtherRecordError, Record, default_path, read
from saekernels.cli.options.arguments import at_least, not_empty, seconds
from saekernels.cli.options.output import show
from saekernels.errors import InputError
from saekernels.files.checked import check_writable, make_folder, write_whole

WRONG = 1
TUNABLE = ("screen", "decode", "linear_ce_kl", "segment")


def add_parsers(devices: Any) -> None:
    """The commands `gpu` and `check`."""
    parser = devices.add_parser(
        "gpu",
        help="the GPU kernels: scorecard, predictions, tuning",
        description="Check every op on the GPU, then time it against torch, its peers, the card's ceilings, the cost "
        "model and the project's targets. Nothing is timed while a check fails.",
        examples=(
            ("saekernels bench gpu --quick --json gpu.json", ""),
            ("saekernels bench gpu --quick --json gpu.json --resume", "where a run was cut off"),
            ("saekernels bench gpu --dry-run --card H100", "needs no GPU"),
        ),
    )
    what = parser.group("what is timed")
    what.add_argument("--ops", metavar="NAME,...", type=op_names, help=f"of {', '.join(OPS)} (default: all)")
    what.add_argument("--quick", action="store_true", help="six cases in two minutes, of eight for all")
    what.add_argument("--dry-run", action="store_true", help="print the plan and the predictions; needs no GPU")
    what.add_argument("--card", choices=tuple(cards.CARDS), default="H200", help="whose predictions")
    tuning = parser.group("tuning")
    tuning.add_argument("--tune", action="store_true", help="search kernel configurations; print a patch for the table")
    kernels = f"to tune, of {', '.join(TUNABLE)} (default: all)"
    tuning.add_argument("--kernels", metavar="NAME,...", type=kernel_names, help=kernels)
    how = parser.group("scale")
    how.add_argument("--rounds", metavar="N", type=at_least(3), default=20, help="at most, per contender")
    how.add_argument("--budget", metavar="SECONDS", type=seconds, default=4.0, help="of timed calls per case")
    output = parser.group("output")
    where = "the record, as JSON (default: benchmarks/results/GPU/DATE-COMMIT.json)"
    output.add_argument("--json", metavar="PATH", type=not_empty, help=where)
    output.add_argument("--resume", action="store_true", help="keep what the record at --json has, and time the rest")
    output.add_argument("--no-plots", action="store_true", help="write the record alone")
    parser.set_defaults(run=run)
    _add_check(devices)


def _add_check(devices: Any) -> None:
    check = devices.add_parser(
        "check",
        help="whether every op is right here, forward and backward",
        description="Run the checks that a scorecard begins with: every op and dtype against float64, ties, NaN, "
        "infinities, batch invariance, gradients, graphs and streams. Exit code 1 if any fails.",
        examples=(("saekernels bench check", ""), ("saekernels bench check --device cpu --checks encode,topk", "")),
    )
    what = check.group("what is checked")
    there = "cuda" if torch.cuda.is_available() else "cpu"
    what.add_argument("--device", choices=("cpu", "cuda"), default=there, help="where")
    known = ", ".join(checks.CHECKS)
    what.add_argument("--checks", metavar="NAME,...", type=check_names, help=f"of {known} (default: all)")
    check.set_defaults(run=run_check)


def _names(allowed: tuple[str, ...], kind: str, text: str) -> tuple[str, ...]:
    for name in text.split(","):
        if name not in allowed:
            raise argparse.ArgumentTypeError(f"no {kind} {name!r}; need some of {', '.join(allowed)}")
    return tuple(dict.fromkeys(text.split(",")))


def op_names(text: str) -> tuple[str, ...]:
    """Some of OPS, each once."""
    return _names(tuple(OPS), "op", text)


def kernel_names(text: str) -> tuple[str, ...]:
    """Some of TUNABLE, each once."""
    return _names(TUNABLE, "kernel", text)


def check_names(text: str) -> tuple[str, ...]:
    """Some of CHECKS, each once."""
    return _names(tuple(checks.CHECKS), "check", text)


def say(line: str) -> None:
    """Progress goes to stderr."""
    print(line, file=sys.stderr, flush=True)


def device_of(name: str) -> torch.device:
    """The device, if it is there. Raises InputError."""
    if name == "cuda" and not torch.cuda.is_available():
        raise InputError("no CUDA device is here; --dry-run prints the plan and the predictions without one")
    return torch.device(name, torch.cuda.current_device()) if name == "cuda" else torch.device(name)


def run_check(arguments: argparse.Namespace) -> int:
    """All checks, a line each."""
    if arguments.device == "cuda" and not torch.cuda.is_available():
        raise InputError("--device: got 'cuda', and no CUDA device is here")
    outcomes = checks.gate(device_of(arguments.device), only=arguments.checks)
    lines = [
        f"{outcome.name:14}{'right' if outcome.wrong is None else 'WRONG: ' + outcome.wrong}" for outcome in outcomes
    ]
    show("\n".join(lines) + "\n")
    return WRONG if any(outcome.wrong for outcome in outcomes) else 0


def run(arguments: argparse.Namespace) -> int:
    """The scorecard, its predictions alone, or the search."""
    settings = Settings(arguments.rounds, arguments.budget, arguments.quick, arguments.ops)
    if not settings.cases():
        raise InputError(f"--ops: no case of {', '.join(arguments.ops)} is among those of --quick")
    if arguments.dry_run:
        given = {"--json": arguments.json, "--resume": arguments.resume}
        if unused := [name for name, value in given.items() if value]:
            raise InputError(f"{unused[0]}: got it beside --dry-run, which times nothing and writes no record")
        card = cards.CARDS[arguments.card]
        show("\n".join(forecast.lines(settings, card)) + "\n")
        return 0
    if arguments.tune:
        return _tune(arguments.kernels or TUNABLE, device_of("cuda"))
    if arguments.resume and not arguments.json:
        raise InputError("--resume: need --json PATH, the record to go on with")
    if arguments.json:
        check_writable(arguments.json, "--json")
    return scorecard(settings, arguments.json, with_plots=not arguments.no_plots, resume=arguments.resume)


def scorecard(settings: Settings, json: str | None, with_plots: bool = True, resume: bool = False) -> int:
    """Check, time, print the record, and write it after every case, to a name of its own for None; the exit code.

    resume: go on with the record at `json`, if there is one.
    """
    device = device_of("cuda")
    places = [Path(json)] if json else []

    def keep(made: Record) -> None:
        if not places:
            places.append(default_path(made.hardware["gpu"], made.date, made.commit))
        make_folder(places[0].parent, "--json")
        write_whole(places[0], made.to_json())

    try:
        before = read(str(json)) if resume and places[0].exists() else None
        made = runner.run(settings, device, say, keep, before)
    except OtherRecordError as error:
        raise InputError(f"--resume: {error}") from error
    except KeyboardInterrupt:
        kept = places and places[0].exists()
        raise KeyboardInterrupt(f"{places[0]} has what was measured; --resume goes on" if kept else "") from None
    except runner.GateClosed as closed:
        say(f"saekernels: {closed}")
        return WRONG
    keep(made)
    drawn = plots.draw(made, places[0]) if with_plots else []
    show("\n".join(lines(made)) + "\n")
    say(f"written: {', '.join(str(name) for name in (places[0], *drawn))}")
    return 0


def _tune(kernels: tuple[str, ...], device: torch.device) -> int:
    from saekernels.bench.gpu import tune

    for choice in tune.search(kernels, device, say):
        show(tune.patch(choice) + "\n")
    return 0


def lines(made: Record) -> list[str]:
    """The record as text: rows by case, then the targets."""
    text = [f"{made.hardware['gpu']}, {made.date}, commit {made.commit or 'none'}, kernels {made.kernel_hash[:12]}"]
    text += [", ".join(f"{name} {value:,.0f}" for name, value in made.ceilings.items()), ""]
    case = None
    for row in made.rows:
        if row.case() != case:
            case = row.case()
            text.append(" ".join((case[0], case[1], case[2])))
        text.append(f"    {row.contender:36}" + _figures(row))
    text += ["", "targets:"]
    for target in made.targets:
        verdict = "unknown" if target.ratio is None else f"{target.ratio:.3f} {'met' if target.met else 'MISSED'}"
        text.append(f"    {target.case}: {target.target} ({target.limit:g}): {verdict}")
    return [*text, f"{made.seconds:.0f} s in all"]


def _figures(row: Any) -> str:
    if row.median_ms is None:
        return str(row.status)
    share = "" if row.share_of_bound is None else f"{row.share_of_bound:6.0%} of bound"
    ratio = "" if row.paired_ratio_to_ours is None else f"{row.paired_ratio_to_ours:7.2f}x ours"
    peak = "" if row.peak_mib is None else f"{row.peak_mib:9.0f} MiB"
    eager = "" if row.eager_ms is None else f"{row.eager_ms:10.4f} ms without a graph"
    fell = f", {row.fallback_rows} fallback rows" if row.fallback_rows else ""
    return f"{row.median_ms:10.4f} ms{ratio}{share}{peak}{eager}  {row.detail}{fell}".rstrip()
