"""How long `evaluate` takes beside the least that it could: as many of the model's own forward passes as it makes runs.

    python benchmarks/eval_floor.py --tokens 4000 --rounds 5                     # the bundled example
    python benchmarks/eval_floor.py --model MODEL --data TEXTS --sae SITE=PATH ... --leave-first 1 --tokens 1000

In one process and in turns: `model(ids)` over all windows in the batches that the evaluation has, then the evaluation.
The ratio is that of the evaluation's time to runs times the forward's; it may be below 1, as runs begin at their first
site. Prints the median of the rounds' ratios; `--json` writes it.
"""

from __future__ import annotations

import json
import shlex
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import torch

from saekernels.cli.options.arguments import Parser, at_least, names_of, not_empty
from saekernels.cli.options.leave import add_leave, leave_keywords
from saekernels.cli.options.source import BOS, add_source, fill_from_example, load_source
from saekernels.eval import evaluate
from saekernels.eval.passes.plan import BASELINES
from saekernels.eval.text.batches import batches
from saekernels.eval.text.windows import Tokens, chosen, context_of
from saekernels.files.atomic import write_whole


def main(argv: list[str]) -> dict[str, Any]:
    arguments = _parser().parse_args(argv)
    fill_from_example(arguments)
    source = load_source(arguments)
    documents = list(source.documents)
    context = context_of(source.model, source.tokenizer, arguments.context)
    tokens = Tokens(source.tokenizer, context, bos=BOS[arguments.bos])
    windows = [one for _, own in chosen(documents, tokens, arguments.tokens, arguments.seed) for one in own]
    parts = list(batches(windows, arguments.batch_size, max(len(one.ids) for one in windows), 0))

    def forward() -> None:
        with torch.inference_mode():
            for batch in parts:
                source.model(batch.ids)

    def whole() -> Any:
        options = {"tokens": arguments.tokens, "batch_size": arguments.batch_size, "context": context, "bootstrap": 0}
        options |= {"seed": arguments.seed, "bos": BOS[arguments.bos], "baselines": arguments.baselines}
        return evaluate(source.model, source.tokenizer, source.saes, documents, **options, **leave_keywords(arguments))

    rounds = [(*_timed(forward), *_timed(whole)) for _ in range(arguments.rounds)]
    report = rounds[0][3]
    ratios = [spliced / (report.run["passes"] * plain) for plain, _, spliced, _ in rounds]
    found = {
        "model": arguments.model_name,
        "sites": list(source.saes),
        "baselines": list(arguments.baselines),
        "tokens": report.tokens,
        "passes": report.run["passes"],
        "rounds": len(rounds),
        "forward_seconds": statistics.median(one[0] for one in rounds),
        "evaluate_seconds": statistics.median(one[2] for one in rounds),
        "ratios": ratios,
        "ratio": statistics.median(ratios),
        "threads": torch.get_num_threads(),
        "command": shlex.join(["python", "benchmarks/eval_floor.py", *argv]),
    }
    print(f"{found['passes']} runs over {found['tokens']:,} tokens: {found['evaluate_seconds']:.2f} s, one forward "
          f"{found['forward_seconds']:.2f} s; {found['ratio']:.2f} times as long as as many forwards")  # fmt: skip
    if arguments.json:
        write_whole(arguments.json, (json.dumps(found, indent=1) + "\n").encode())
    return found


def _parser() -> Parser:
    parser = Parser(description=__doc__)
    add_source(parser)
    add_leave(parser)
    group = parser.group("how")
    group.add_argument(
        "--baselines", metavar="KINDS", type=names_of(BASELINES), default=(), help="of `saekernels eval`"
    )
    group.add_argument("--rounds", metavar="N", type=at_least(1), default=3, help="of both, in turns")
    group.add_argument("--json", metavar="PATH", type=not_empty, help="write the figures")
    parser.set_defaults(command="eval_floor")
    return parser


def _timed(call: Callable[[], Any]) -> tuple[float, Any]:
    started = time.perf_counter()
    found = call()
    return time.perf_counter() - started, found


if __name__ == "__main__":
    main(sys.argv[1:])
