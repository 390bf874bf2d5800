"""The options for positions that keep their activation: attention sinks."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from functools import partial
from typing import Any

from saekernels.cli.options.arguments import Parser, at_least, positive
from saekernels.eval.passes.left import rule_text
from saekernels.splice.leave import Leave


def add_leave(parser: Parser) -> None:
    """--leave-first and --leave-norm."""
    group = parser.group("positions left as they are")
    first = "the first N positions of each window (1 where the tokenizer puts no BOS in front: attention sinks)"
    group.add_argument("--leave-first", metavar="N", type=at_least(0), default=0, help=first)
    norm = (
        "positions whose norm at a site exceeds R times its median in the clean run (10 finds sinks; default: no limit)"
    )
    group.add_argument("--leave-norm", metavar="R", type=partial(positive, least=1.0), help=norm)


def leave_keywords(arguments: argparse.Namespace) -> dict[str, Any]:
    """What both options say, as keywords of `evaluate` and `splice`."""
    return {"leave_first": arguments.leave_first, "leave_norm": arguments.leave_norm}


def left_line(mask: Mapping[str, Any]) -> str:
    """The rule as a further line of what is shown, "" for none; mask: `leave_keywords`."""
    return rule_text(Leave(mask["leave_first"], mask["leave_norm"])).replace(" ", "\n", 1)
