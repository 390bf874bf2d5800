"""What will be run: targets (which SAEs go in together), the runs that each needs, and the figures of each run.

Runs are shared: SAEs of one site have the same ablations, and every SAE of one rank the same probe.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from saekernels.errors import InputError

ALL = "all"
BASELINES = ("zero", "mean", "random", "pca")
Kind = Literal["sae", "zero", "mean", "random", "pca"]


@dataclass(frozen=True)
class Run:
    """One way to run the model: `kind` of replacement at the sites of these entries, in the model's order.

    ranks: of the probes, for kind "pca". entries: keys of the SAEs; zero, mean and pca name one of each site's.
    """

    kind: Kind
    entries: tuple[str, ...]
    ranks: tuple[int, ...] = ()

    @property
    def name(self) -> str:
        """The run's key in sums and files: its kind, its ranks, and its SAEs or sites."""
        places = " ".join(self.entries if self.kind in ("sae", "random") else map(site_of, self.entries))
        return " ".join([self.kind, *map(str, self.ranks), places])

    @property
    def compared(self) -> bool:
        """Whether KL and agreement with the clean run are figures of this run, and not its CE alone."""
        return self.kind == "sae"

    @property
    def sites(self) -> tuple[str, ...]:
        """The site of each entry."""
        return tuple(site_of(entry) for entry in self.entries)


@dataclass(frozen=True)
class Target:
    """SAEs that go in together, and the run of each kind that tells about them."""

    name: str
    entries: tuple[str, ...]
    runs: dict[str, Run] = field(default_factory=dict)


@dataclass(frozen=True)
class Plan:
    """targets: each SAE alone, then all sites; cumulative: the first sites, one more each time; runs: each once."""

    targets: list[Target]
    cumulative: list[Target]
    runs: list[Run]
    notes: list[str]

    @property
    def joint(self) -> Run | None:
        """The run of all sites together, if there are several."""
        return self.targets[-1].runs["sae"] if self.targets[-1].name == ALL else None

    @property
    def columns(self) -> list[tuple[str, str]]:
        """(run name, figure) of each column of per-token figures; the first is the clean run's CE."""
        made = [("clean", "ce")]
        for run in self.runs:
            made += [(run.name, figure) for figure in (("ce", "kl", "agree") if run.compared else ("ce",))]
        return made


def site_of(entry: str) -> str:
    """The site of an entry "SITE" or "SITE#LABEL"."""
    return entry.partition("#")[0]


def first_of_each_site(saes: Mapping[str, Any]) -> dict[str, Any]:
    """site -> the first of its SAEs, in the order given."""
    found: dict[str, Any] = {}
    for entry, sae in saes.items():
        found.setdefault(site_of(entry), sae)
    return found


def make_plan(
    entries: Sequence[str],
    order: Mapping[str, int],
    ranks: Mapping[str, int],
    baselines: Sequence[str],
    cumulative: bool,
) -> Plan:
    """Every entry alone, all sites together, and, if asked for, the first l sites together for every l.

    Args:
        entries: keys of the SAEs as the user gave them.
        order: site -> when the model comes to it.
        ranks: entry -> rank of its probe (only where "pca" is among the baselines).
        baselines: which of BASELINES each target is compared with.
    """
    check_baselines(baselines)
    pool: dict[str, Run] = {}

    def target(name: str, chosen: tuple[str, ...], kinds: Sequence[str]) -> Target:
        runs = {}
        kind: Any
        for kind in ("sae", *(kind for kind in BASELINES if kind in kinds)):
            run = Run(kind, chosen, tuple(ranks[e] for e in chosen) if kind == "pca" else ())
            runs[kind] = pool.setdefault(run.name, run)
        return Target(name, chosen, runs)

    first = {site_of(entry): entry for entry in reversed(entries)}
    joint = tuple(first[site] for site in sorted(first, key=lambda site: order[site]))
    targets = [target(entry, (entry,), baselines) for entry in entries]
    if len(joint) > 1:
        targets.append(target(ALL, joint, baselines))
    curve = []
    if cumulative and len(joint) > 1:
        curve = [target(joint[i], joint[: i + 1], ()) for i in range(len(joint))]
    notes = []
    if 1 < len(joint) < len(entries):
        notes.append(f"All sites together: the first SAE given for each site, {', '.join(joint)}.")
    # The run of all sites is first, because others go on from it.
    return Plan(targets, curve, sorted(pool.values(), key=lambda run: run != targets[-1].runs["sae"]), notes)


def check_baselines(baselines: Sequence[str]) -> None:
    """InputError unless each is one of BASELINES."""
    for kind in baselines:
        if kind not in BASELINES:
            raise InputError(f"baselines: got {kind!r}, need some of {', '.join(BASELINES)}")
