"""How long `evaluate` takes beside the least that it could: as many of the model's own forward passes as it makes runs.

    python benchmarks/eval_floor.py --tokens 4000 --rounds 5                     # the bundled example
    python benchmarks/eval_floor.py --model MODEL --data TEXTS --sae SITE=PATH ... --leave-first 1 --tokens 1000
    python benchmarks/eval_floor.py --beside bfloat16                                # and how much faster that is

In one process and in turns: `model(ids)` over all windows in the batches that the evaluation has, then the evaluation.
The ratio is that of the evaluation's time to runs times the forward's; it may be below 1, as runs begin at their first
site. Prints the median of the rounds' ratios; `--json` writes it.
"""

from __future__ import annotations

import argparse
import json
import shlex
import statistics
import sys
import time
from typing import Any

import torch

from saekernels.cli.options.arguments import Parser, at_least, names_of, not_empty
from saekernels.cli.options.inputs import DTYPES
from saekernels.cli.options.leave import add_leave, leave_keywords
from saekernels.cli.options.source import BOS, add_source, fill_from_example, load_source
from saekernels.errors import InputError
from saekernels.eval import evaluate
from saekernels.eval.passes.plan import BASELINES
from saekernels.eval.text.batches import batches
from saekernels.eval.text.windows import Tokens, chosen, context_of
from saekernels.files.atomic import write_whole
from saekernels.files.checked import check_writable


def main(argv: list[str]) -> dict[str, Any]:
    arguments = _parser().parse_args(argv)
    fill_from_example(arguments)
    if arguments.json:
        check_writable(arguments.json, "--json")
    contenders = [_Contender(arguments)]
    if arguments.beside:
        contenders.append(_Contender(argparse.Namespace(**{**vars(arguments), "dtype": arguments.beside})))
    rounds = [[one.timed() for one in contenders] for _ in range(arguments.rounds)]
    report = contenders[0].report
    assert report is not None
    times = [(statistics.median(one[n][0] for one in rounds), statistics.median(one[n][1] for one in rounds))
             for n in range(len(contenders))]  # fmt: skip
    ratios = [spliced / (report.run["passes"] * plain) for (plain, spliced), *_ in rounds]
    found = {
        "model": arguments.model_name,
        "dtype": arguments.dtype,
        "sites": list(contenders[0].source.saes),
        "baselines": list(arguments.baselines),
        "tokens": report.tokens,
        "passes": report.run["passes"],
        "rounds": len(rounds),
        "forward_seconds": times[0][0],
        "evaluate_seconds": times[0][1],
        "ratios": ratios,
        "ratio": statistics.median(ratios),
        "threads": torch.get_num_threads(),
        "command": shlex.join(["python", "benchmarks/eval_floor.py", *argv]),
    }
    print(f"{found['passes']} runs over {found['tokens']:,} tokens: {found['evaluate_seconds']:.2f} s, one forward "
          f"{found['forward_seconds']:.2f} s; {found['ratio']:.2f} times as long as as many forwards")  # fmt: skip
    if arguments.beside:
        faster = [one[0][1] / one[1][1] for one in rounds]
        forward, evaluate_ = times[1]
        beside = {"dtype": arguments.beside, "forward_seconds": forward, "evaluate_seconds": evaluate_}
        found["beside"] = {**beside, "ratios": faster, "ratio": statistics.median(faster)}
        print(f"in {arguments.beside} {evaluate_:.2f} s, one forward {forward:.2f} s: "
              f"{found['beside']['ratio']:.2f} times as fast")  # fmt: skip
    if arguments.json:
        write_whole(arguments.json, (json.dumps(found, indent=1) + "\n").encode())
    return found


class _Contender:
    """A model in one dtype, with what is asked of it."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments, self.source, self.report = arguments, load_source(arguments), None
        self.documents = list(self.source.documents)
        self.context = context_of(self.source.model, self.source.tokenizer, arguments.context)
        cutter = Tokens(self.source.tokenizer, self.context, bos=BOS[arguments.bos])
        found = chosen(self.documents, cutter, arguments.tokens, arguments.seed)
        windows = [one for _, own in found for one in own]
        self.batches = list(batches(windows, arguments.batch_size, max(len(one.ids) for one in windows), 0))

    def timed(self) -> tuple[float, float]:
        """Seconds of the model's own forward over all windows, and of the evaluation."""
        started = time.perf_counter()
        with torch.inference_mode():
            for batch in self.batches:
                self.source.model(batch.ids)
        between = time.perf_counter()
        self.report = self._evaluate()
        return between - started, time.perf_counter() - between

    def _evaluate(self) -> Any:
        given, source = self.arguments, self.source
        options = {"tokens": given.tokens, "batch_size": given.batch_size, "context": self.context, "bootstrap": 0}
        options |= {"seed": given.seed, "bos": BOS[given.bos], "baselines": given.baselines}
        options |= {"cumulative": not given.no_cumulative, **leave_keywords(given)}
        return evaluate(source.model, source.tokenizer, source.saes, self.documents, **options)


def _parser() -> Parser:
    parser = Parser(description=__doc__)
    add_source(parser)
    add_leave(parser)
    group = parser.group("how")
    group.add_argument(
        "--baselines", metavar="KINDS", type=names_of(BASELINES), default=(), help="of `saekernels eval`"
    )
    group.add_argument("--no-cumulative", action="store_true", help="as of `saekernels eval`")
    beside = "evaluate in this dtype, too, in turns"
    group.add_argument("--beside", choices=DTYPES, help=beside)
    group.add_argument("--rounds", metavar="N", type=at_least(1), default=3, help="of both, in turns")
    group.add_argument("--json", metavar="PATH", type=not_empty, help="write the figures")
    parser.set_defaults(command="eval_floor")
    return parser


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except InputError as error:
        sys.exit(f"eval_floor.py: error: {error}")
