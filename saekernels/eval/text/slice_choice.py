"""Which slices a text allows: the narrowest with enough positions to fit a probe on and to measure it."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from saekernels.errors import InputError
from saekernels.eval.text.slice_counts import Counts, Minimum, Sample, Table, count, table_of
from saekernels.eval.text.slices import Slices
from saekernels.eval.text.windows import Tokens

_SORTS = (("domain", "template", "token"), ("domain", "template"), ("domain", "token"), ("token",), ("domain",))
"""What confines the narrowest slice, by preference."""


def choose_slices(
    sample: Sample,
    tokens: Tokens,
    least: Minimum,
    domain: str | None = None,
    template: str | None = None,
    token: str | None = None,
) -> tuple[Slices, list[str]]:
    """The slices, and what there is to say about the choice. What is not given is chosen, so that it has `least`.

    First choice is one token in the lines that begin with one word, in one domain; then such lines whatever the token;
    one token in one domain; one token anywhere; one domain. Of each sort: the one with most positions in its smaller
    half (`alternate`). What is measured in two documents, so that it has an interval, comes before what is not.

    Raises InputError where no slice has enough, with what there is and what is needed; for a domain with fewer than two
    documents, a template that is no regular expression, and a token that is not one.
    """
    _check_domain(sample, domain)
    given = Slices(None if token is None else _id_of(tokens, token), template, domain)
    table = table_of(sample, tokens, template)
    only = {} if given.token is None else {"token": given.token}
    if domain is not None:
        only["domain"] = table.domains.index(domain)
    sorts = [count(table, sort, only) for sort in _SORTS if set(given.levels) <= {*sort, "everything"}]
    for documents in (2, 1):
        for number, counts in enumerate(sorts):
            best = counts.best(least, documents)
            if best is not None:
                slices = _slices(table, counts, best, template)
                return slices, _notes(_name(slices, tokens), number > 0, documents == 1, least)
    raise InputError(_refusal(sample, tokens, table, sorts, least, given))


def _check_domain(sample: Sample, domain: str | None) -> None:
    domains = [document.domain for document, _ in sample]
    if domain is not None and domain not in domains:
        names = ", ".join(sorted(set(domains)))
        raise InputError(f"domain: none of the documents is of {domain!r}; they are of {names}")
    if all(domains.count(name) < 2 for name in ({domain} if domain is not None else set(domains))):
        which = "every domain" if domain is None else repr(domain)
        need = f"need one to fit on and one to test; there are {_total(sample):,} tokens in {len(sample):,} documents"
        raise InputError(f"domain: {which} has one document here; {need}")


def _id_of(tokens: Tokens, token: str) -> int:
    ids = tokens.tokenizer(token, add_special_tokens=False)["input_ids"]
    if len(ids) != 1:
        raise InputError(f"token: {token!r} is {len(ids)} tokens of this tokenizer, need one")
    return int(ids[0])


def _slices(table: Table, counts: Counts, which: int, template: str | None) -> Slices:
    found = {name: int(table.columns[name][counts.row[which]]) for name in counts.sort}
    begins = None
    if "template" in found and template is None:
        begins = table.words[found["template"]]
        template = rf"(?m)^[ \t]*{re.escape(begins)}\b.*$"
    domain = table.domains[found["domain"]] if "domain" in found else None
    return Slices(found.get("token"), template if "template" in found else None, domain, begins)


def _name(slices: Slices, tokens: Tokens) -> str:
    return slices.names(tokens.tokenizer)[slices.levels[0]]


def _notes(name: str, widened: bool, alone: bool, least: Minimum) -> list[str]:
    notes = []
    if widened:
        notes.append(
            f"No narrower slice has {least.fitted} positions to fit a probe of rank {least.rank} on and "
            f"{least.measured} predictions to measure it on, so the narrowest is {name}."
        )
    if alone:
        notes.append("The narrowest slice is measured in one document, so it has no interval.")
    return notes


def _refusal(
    sample: Sample, tokens: Tokens, table: Table, sorts: Sequence[Counts], least: Minimum, given: Slices
) -> str:
    """What there is of the slice that lacks least, and how much text might give enough."""
    times, counts = min(((one.nearest(least)[0], one) for one in sorts), key=lambda pair: pair[0])
    which = counts.nearest(least)[1]
    if which is None:
        name, have = _name(given, tokens), [0, 0, int(table.measured.sum())]
    else:
        name = _name(_slices(table, counts, which, given.template), tokens)
        have = [int(column[which]) for column in (counts.fitted, counts.measured, counts.outside)]
    argument = given.levels[0]
    if argument == "everything":
        argument, name = "tokens", f"no slice for breadth has enough positions; the nearest to it, {name},"
    more = "" if math.isinf(times) else f"; about {_rounded_up(times * _total(sample)):,} tokens might do"
    return (
        f"{argument}: {name} has {have[0]} positions to fit on, {have[1]} predictions to measure inside and {have[2]} "
        f"outside; a probe of rank {least.rank} needs {least.fitted}, {least.measured} and {least.measured}; "
        f"there are {_total(sample):,} tokens in {len(sample):,} documents{more}"
    )


def _total(sample: Sample) -> int:
    return sum(int(window.counted.sum()) for _, windows in sample for window in windows)


def _rounded_up(value: float) -> int:
    """To two significant digits."""
    step = 10 ** max(0, math.floor(math.log10(value)) - 1)
    return math.ceil(value / step) * step
