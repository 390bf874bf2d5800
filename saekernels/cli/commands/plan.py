"""`saekernels plan`: what a spliced evaluation will take where it cannot be tried."""

from __future__ import annotations

import argparse
from dataclasses import replace
from typing import Any

from saekernels.bench.scale import Job, Prediction, predict
from saekernels.bench.scale.machine import GPUS, here
from saekernels.cli.options.arguments import at_least, count, names_of, not_empty
from saekernels.cli.options.inputs import DTYPES
from saekernels.cli.options.output import show_written, shown, write_json
from saekernels.errors import InputError
from saekernels.eval.passes.plan import BASELINES
from saekernels.files.checked import check_writable

_SIZES = {
    "model": {
        "width": ("4096", "of the residual stream"),
        "layers": ("32", "of the model"),
        "parameters": ("8.03e9", "of the model, embedding and head included"),
        "vocabulary": ("128256", "of the model"),
        "latents": (None, "of each SAE, such as 16e6"),
        "k": ("64", "active latents of each SAE"),
        "sites": ("1", "SAEs, evenly over the layers of the residual stream"),
    },
    "text": {
        "tokens": (None, "of the text, such as 1e10"),
        "documents": ("0", "that the text comes in, which take disk; 0: left out"),
        "context": ("2048", "tokens per window"),
    },
}
_SIZE_NAMES = ("batch_size", *(name for sizes in _SIZES.values() for name in sizes))


def add_parser(commands: Any) -> None:
    parser = commands.add_parser(
        "plan",
        help="predict time, memory and traffic of an evaluation at scale",
        usage="saekernels plan --latents N --tokens N [option ...]",
        description="Predict what `saekernels eval` takes, from a cost model of its kernels (docs/how-to/scale.md). "
        "The defaults are those of an 8-billion-parameter Llama. Nothing is run but, for --gpu here, a measurement of "
        "this CPU's ceilings.",
        examples=(
            ("saekernels plan --latents 16e6 --tokens 1e10 --gpu H200 --processes 64", ""),
            ("saekernels plan --latents 24576 --tokens 1e6 --width 768 --layers 12 --gpu here", ""),
        ),
    )
    for title, sizes in _SIZES.items():
        group = parser.group(title)
        for name, (default, text) in sizes.items():
            required = default is None
            group.add_argument(f"--{name}", metavar="N", type=count, default=default, required=required, help=text)
    how = parser.group("precision and device")
    how.add_argument("--dtype", choices=list(DTYPES), default="bfloat16", help="of the model")
    how.add_argument("--sae-dtype", choices=list(DTYPES), default="float32", help="of the SAEs")
    how.add_argument("--gpu", choices=[*GPUS, "here"], default="H200", help="what each process computes on")
    how.add_argument("--batch-size", metavar="N", type=count, default="8", help="windows per batch")
    kinds = parser.group("baselines and intervals")
    kinds.add_argument("--baselines", metavar="KINDS", type=names_of(BASELINES), default=BASELINES, help="as of eval")
    kinds.add_argument("--no-cumulative", action="store_true", help="as of eval")
    scale = parser.group("scale")
    scale.add_argument("--processes", metavar="N", type=at_least(1), default=1, help="of torchrun, all together")
    spread = "processes over which each SAE's latents are spread; auto: as few as memory allows"
    scale.add_argument("--latent-parallel", metavar="N|auto", type=_spread, default="auto", help=spread)
    output = parser.group("output")
    output.add_argument("--json", metavar="PATH", type=not_empty, help="write the prediction as JSON")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Predict, print, write."""
    if arguments.json:
        check_writable(arguments.json, "--json")
    sizes = {name: getattr(arguments, name) for name in _SIZE_NAMES}
    machine = here() if arguments.gpu == "here" else GPUS[arguments.gpu]
    try:
        job = Job(
            **sizes,
            dtype=DTYPES[arguments.dtype],
            sae_dtype=DTYPES[arguments.sae_dtype],
            baselines=tuple(arguments.baselines),
            cumulative=not arguments.no_cumulative,
            processes=arguments.processes,
            latent_parallel=1 if arguments.latent_parallel == "auto" else arguments.latent_parallel,
        )
    except ValueError as error:
        raise InputError(f"--{str(error).replace('_', '-')}") from error
    if arguments.latent_parallel == "auto":
        divisors = (n for n in range(1, job.processes + 1) if job.processes % n == 0 and n <= job.latents)
        choices = [replace(job, latent_parallel=n) for n in divisors]
        job = next((one for one in choices if predict(one, machine).fits), choices[-1])
    found = predict(job, machine)
    settings = {**vars(job), "dtype": arguments.dtype, "sae_dtype": arguments.sae_dtype}
    with shown(_text(job, machine.card.name, found)):
        write_json(arguments.json, {"machine": machine.card.name, "job": settings, "prediction": found.to_dict()})
    show_written([(arguments.json, "the figures")])
    return 0


def _spread(text: str) -> int | str:
    return text if text == "auto" else at_least(1)(text)


def _text(job: Job, name: str, found: Prediction) -> str:
    processes = f"{job.processes} x {name}" if job.processes > 1 else name
    lines = [
        f"prediction for {processes}; nothing here was measured",
        f"{job.tokens:,} tokens, {job.sites} SAEs of {job.latents:,} latents, {len(job.plan().runs) + 2} passes; "
        f"documents over {job.data_parallel}, latents over {job.latent_parallel} processes",
        "",
        f"time         {duration(found.total_seconds)}, {job.tokens / found.total_seconds:,.0f} tokens/s",
        *_parts(found.seconds, found.total_seconds, duration),
        "",
        f"memory       {size(found.total_memory)} per process" + _room(job, found),
        *_parts(found.memory, found.total_memory, size),
        f"host memory  {size(found.host)} per process",
        f"disk         {size(found.disk)}, shared",
        f"received     {size(sum(found.received.values()))} per process",
        *_parts(found.received, sum(found.received.values()), size),
    ]
    return "\n".join(lines) + "\n"


def _parts(parts: dict[str, float], total: float, show_one: Any) -> list[str]:
    return [f"  {name:32}{show_one(value):>12}{value / total:8.1%}" for name, value in parts.items() if value and total]


def _room(job: Job, found: Prediction) -> str:
    if found.room == float("inf"):
        return ""
    if found.fits:
        return f" of {size(found.room)}"
    return f", which does NOT fit {size(found.room)}: more processes and --latent-parallel, half-precision, fewer sites"


def duration(seconds: float) -> str:
    """In the unit that fits."""
    for unit, length in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:,.1f} {unit}"
    return f"{seconds:.3g} s"


def size(number: float) -> str:
    """Bytes in the decimal unit that fits."""
    for unit, length in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if number >= length:
            return f"{number / length:,.1f} {unit}"
    return f"{number / 1e3:,.1f} kB"
