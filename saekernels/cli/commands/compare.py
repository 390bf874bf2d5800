"""`saekernels compare A.json B.json`: paired differences between two reports."""

from __future__ import annotations

import argparse
from typing import Any

from saekernels.cli.options.arguments import at_least, not_empty
from saekernels.cli.options.output import show_written, shown, write_json
from saekernels.eval.report.compare import as_text, compare, read_report
from saekernels.eval.sums.bootstrap import MOST_REPLICATES
from saekernels.files.checked import check_writable


def add_parser(commands: Any) -> None:
    parser = commands.add_parser(
        "compare",
        help="paired differences between two reports",
        description="Compare two reports of `saekernels eval --json` document by document: B minus A.",
        examples=(("saekernels compare before.json after.json", ""),),
    )
    reports = parser.group("reports")
    reports.add_argument("a", metavar="A.json", type=not_empty, help="what is compared with")
    reports.add_argument("b", metavar="B.json", type=not_empty, help="what is compared")
    intervals = parser.group("baselines and intervals")
    replicates = "bootstrap replicates for 95 %% intervals; 0: none"
    intervals.add_argument("--bootstrap", metavar="N", type=at_least(0, MOST_REPLICATES), default=2000, help=replicates)
    intervals.add_argument("--seed", metavar="N", type=at_least(0), default=0, help="of the bootstrap")
    output = parser.group("output")
    output.add_argument("--json", metavar="PATH", type=not_empty, help="write the differences as JSON")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Compare, print, write."""
    if arguments.json:
        check_writable(arguments.json, "--json")
    first, second = read_report(arguments.a), read_report(arguments.b)
    found = compare(first, second, (arguments.a, arguments.b), arguments.bootstrap, arguments.seed)
    with shown(as_text(found)):
        write_json(arguments.json, found.to_dict())
    show_written([(arguments.json, "the figures")])
    return 0
