"""What a spliced model is worth in training: the earlier checkpoint of the same run that predicts as well.

The checkpoints up to one's own are a family, as those of `saekernels scaling fit` are, with tokens seen for their size.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from saekernels.errors import InputError
from saekernels.eval.report.data import Documents
from saekernels.eval.studies.family import Family, Member, equivalents


def training_shares(
    seen: Sequence[int], tables: Sequence[Documents], context: int, samples: int, seed: int
) -> list[dict[str, Any]]:
    """For each checkpoint: target -> value, ci95 and outside, the share of its own training that the splice leaves.

    seen: what each checkpoint has seen, ascending, in tokens or steps; one that has seen nothing has no place on a
    scale of shares. tables: losses of the same documents. outside: "" or why there is no value (`Equivalent`).

    Raises InputError if two checkpoints were measured on other documents.
    """
    first = tables[0]
    for number, table in enumerate(tables):
        if (table.ids, table.tokens) != (first.ids, first.tokens):
            raise InputError(f"checkpoint {number + 1}: its text has other tokens than that of the first one")
    members = [
        Member(str(number), 1, 1, size, 0.0, [float(loss) for loss in table.clean if loss is not None])
        for number, (size, table) in enumerate(zip(seen, tables, strict=True))
        if size > 0 and None not in table.clean
    ]
    found: list[dict[str, Any]] = []
    for number, table in enumerate(tables):
        own = [member for member in members if int(member.name) <= number]
        if len(own) < 2 or own[-1].name != str(number):
            found.append({})
            continue
        family = Family(own, first.ids, first.tokens, context, 0)
        usable: dict[str, Any] = {key: values for key, values in table.spliced.items() if None not in values}
        worth, _ = equivalents(family, usable, first.ids, first.tokens, samples, seed)
        found.append(
            {key: {"value": one.share, "ci95": one.share_ci95, "outside": one.outside} for key, one in worth.items()}
        )
    return found
