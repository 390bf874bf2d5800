"""The result of an evaluation: typed, and as JSON by the schema shipped beside this file."""

from __future__ import annotations

import json
import platform
from dataclasses import asdict, dataclass, field
from importlib import metadata, resources
from typing import Any

import numpy as np
import torch

from saekernels._version import __version__
from saekernels.display.numbers import Interval
from saekernels.eval.sums.accumulate import KlHistogram

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class CrossEntropy:
    """Mean next-token cross-entropy in nats; None where it is not finite."""

    clean: float | None
    spliced: float | None
    zero: float | None
    mean: float | None


@dataclass(frozen=True)
class DeltaCE:
    """CE spliced minus CE clean, with 95 % intervals; bits_per_byte is None when the tokenizer gives no offsets."""

    nats: float | None
    ci95: Interval | None
    bits_per_byte: float | None
    bits_per_byte_ci95: Interval | None


@dataclass(frozen=True)
class LossRecovered:
    """(CE ablated - CE spliced) / (CE ablated - CE clean); None where the ablation does not raise the loss."""

    zero: float | None
    mean: float | None
    zero_ci95: Interval | None
    mean_ci95: Interval | None


@dataclass(frozen=True)
class BaselineFigures:
    """One baseline: its CE, its ΔCE, and by how much the spliced CE exceeds its CE (paired); nats per token.

    rank: of the probes of "pca", one for each site of the target.
    """

    ce: float | None
    delta_ce: float | None
    delta_ce_ci95: Interval | None
    spliced_minus: float | None
    spliced_minus_ci95: Interval | None
    rank: list[int] | None = None


@dataclass(frozen=True)
class Worst:
    """The stratum with the largest ΔCE among those of at least 1 % of the tokens, over all axes."""

    axis: str
    stratum: str
    delta_ce: float


@dataclass(frozen=True)
class CumulativeFigures:
    """The first sites spliced together, up to and with `site`."""

    site: str
    sites: int
    ce: float | None
    delta_ce: DeltaCE
    kl: float | None


@dataclass(frozen=True)
class DomainFigures:
    """The figures of one stratum alone: a domain's documents, a range of positions, ..."""

    tokens: int
    documents: int
    ce: CrossEntropy
    delta_ce: DeltaCE
    kl: float | None
    top1_agreement: float | None
    loss_recovered: LossRecovered


@dataclass(frozen=True)
class SiteFigures:
    """What splicing one site, or all sites together (site "all", architecture "joint"), costs.

    For all sites together, l0, fvu and dead_fraction are means over the sites within the joint run.
    """

    site: str
    architecture: str
    n_latents: int
    l0: float | None
    fvu: float | None
    dead_fraction: float | None
    ce: CrossEntropy
    delta_ce: DeltaCE
    kl: float | None
    kl_ci95: Interval | None
    top1_agreement: float | None
    top1_agreement_ci95: Interval | None
    loss_recovered: LossRecovered
    domains: dict[str, DomainFigures]
    baselines: dict[str, BaselineFigures] = field(default_factory=dict)
    strata: dict[str, dict[str, DomainFigures]] = field(default_factory=dict)
    worst: Worst | None = None
    kl_histogram: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class Documents:
    """Per document: what `saekernels compare` pairs. Means in nats per token; ids are digests of the text."""

    ids: list[str]
    domains: list[str]
    tokens: list[int]
    bytes: list[int]
    clean: list[float | None]
    spliced: dict[str, list[float | None]]
    kl: dict[str, list[float | None]]


@dataclass(frozen=True)
class ReportData:
    """A finished evaluation as numbers. `tokens` counts predictions in the metrics; `nbytes` the UTF-8 bytes of these.

    extras: results of further parts by name (effective compute, tasks, breadth, ...), JSON-ready.
    """

    model: str
    tokens: int
    documents: int
    nbytes: int | None
    sites: list[SiteFigures]
    all_sites: SiteFigures
    context: int
    prefix: list[int]
    mask: str
    seed: int
    bootstrap: int
    notes: list[str]
    cumulative: list[CumulativeFigures] = field(default_factory=list)
    documents_table: Documents | None = None
    extras: dict[str, Any] = field(default_factory=dict)
    run: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=lambda: versions())

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON-ready data (schema 1): finite numbers, or None."""
        data = asdict(self)
        sites, everything, nbytes = data.pop("sites"), data.pop("all_sites"), data.pop("nbytes")
        data["bytes"] = nbytes
        data["kl_edges"] = KlHistogram.edges()
        data["bootstrap"] = {"samples": self.bootstrap, "unit": "document", "level": 0.95}
        return json.loads(
            json.dumps({"schema": SCHEMA_VERSION, **data, "sites": sites, "all_sites": everything}, allow_nan=False)
        )

    def to_json(self) -> str:
        """The text of the JSON report."""
        return json.dumps(self.to_dict(), indent=2, allow_nan=False) + "\n"


def schema() -> dict[str, Any]:
    """The JSON schema (draft 2020-12) of `Report.to_dict()`."""
    return json.loads(resources.files(__package__).joinpath("schema.json").read_text(encoding="utf-8"))


def versions() -> dict[str, str]:
    """Versions of what computed the result; packages that are not installed are left out."""
    found = {
        "saekernels": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
    }
    for package in ("transformers", "tokenizers", "datasets"):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found
