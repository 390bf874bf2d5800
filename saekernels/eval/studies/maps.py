"""Do the features of two layers compose? Downstream latents predicted from upstream ones, and what splicing them costs.

If upstream features are the variables of a causal model, a map from them to the downstream features that was fitted on
one distribution should hold on another. Maps are fitted on half of the documents and measured on the other half.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from saekernels.display.numbers import Interval
from saekernels.eval.passes.moments import fixed_k
from saekernels.eval.passes.two_passes import Advance, Progress
from saekernels.eval.studies.latent_maps import fit_map
from saekernels.eval.studies.map_passes import MapPasses
from saekernels.eval.sums.bootstrap import percentiles, resample_totals
from saekernels.eval.text.documents import Document, check_domains
from saekernels.eval.text.slices import alternate
from saekernels.eval.text.windows import Tokens, Window, chosen
from saekernels.sae.module import SAE
from saekernels.splice.leave import Leave

EVERYTHING = "everything"


@dataclass(frozen=True)
class MapFigures:
    """One map: what it was fitted on, and the ΔCE of its predictions inside that distribution and outside; nats.

    method: "N entries" per downstream latent, "mean latents", or "the SAE itself" (nothing is predicted).
    explained: share of the latents' variance, on the text it was fitted on.
    """

    fitted_on: str
    method: str
    explained: float | None
    inside: float | None
    inside_ci95: Interval | None
    outside: float | None
    outside_ci95: Interval | None


def measure_maps(
    model: Any,
    tokens: Tokens,
    upstream: tuple[str, SAE],
    downstream: tuple[str, SAE],
    documents: Iterable[Document],
    *,
    domain: str | None = None,
    entries: Sequence[int] = (1, 32),
    wanted: int | None = None,
    batch_size: int = 8,
    bootstrap: int = 1000,
    seed: int = 0,
    leave_first: int = 0,
    leave_norm: float | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Fit maps on one domain and on everything, splice their predictions at the downstream site, and measure.

    Args:
        upstream, downstream: (site, SAE); the upstream site comes first in the model, and nothing is changed there.
        domain: what is *inside*; default the domain with the most text.
        entries: upstream latents per downstream latent, one map for each; 1 is the degenerate control.
        leave_first, leave_norm: positions left as they are, as for `evaluate`; what is left at either site is not
            fitted on, and not replaced.

    Returns the figures JSON-ready. Raises InputError for sites in the wrong order or a domain without documents.
    """
    rule = Leave(leave_first, leave_norm)
    maps = MapPasses(model, upstream, downstream, tokens, batch_size, rule)
    with torch.inference_mode():
        maps.check()
        names: list[str] = []
        windows: list[Window] = []
        for document, own in chosen(documents, tokens, wanted, seed):
            names.append(document.domain)
            windows += own
        domain = domain or max(set(names), key=lambda name: sum(names[w.document] == name for w in windows))
        check_domains(names, [domain])
        half = alternate(names)
        fit = [w for w in windows if half[w.document]]
        test = [w for w in windows if not half[w.document]]
        inner = [w for w in fit if names[w.document] == domain]
        steps = Advance(progress, 2 * len(fit) + len(inner) + len(test) * (2 * len(entries) + 3))
        maps.find_medians(windows)
        sources, targets = maps.active(fit)
        steps(len(fit))
        k = fixed_k(maps.sae_b) or maps.mean_l0(fit)
        rows: list[MapFigures] = []
        own_domain = np.array([name == domain for name in names])
        for label, part in ((domain, inner), (EVERYTHING, fit)):
            moments = maps.moments(part, sources, targets)
            steps(len(part))
            for count in (0, *sorted(set(entries))) if label == domain else sorted(set(entries)):
                found = fit_map(moments, count)
                sums = maps.losses(test, found, len(names), k)
                steps(len(test))
                method = f"{count} {'entry' if count == 1 else 'entries'}" if count else "mean latents"
                rows.append(_row(label, method, found.explained, sums, own_domain, bootstrap, seed))
        sums = maps.losses(test, None, len(names), k)
        steps(len(test))
        rows.append(_row("-", "the SAE itself", None, sums, own_domain, bootstrap, seed))
    return {
        "upstream": upstream[0],
        "downstream": downstream[0],
        "domain": domain,
        "mask": {"leave_first": leave_first, "leave_norm": leave_norm},
        "latents": {"upstream": len(sources), "downstream": len(targets), "predicted_active": k},
        "rows": [asdict(row) for row in rows],
    }


def _row(
    fitted: str, method: str, explained: float | None, sums: np.ndarray, own: np.ndarray, samples: int, seed: int
) -> MapFigures:
    inside, outside = (_delta(sums[side], samples, seed) for side in (own, ~own))
    return MapFigures(fitted, method, explained, *inside, *outside)


def _delta(rows: np.ndarray, samples: int, seed: int) -> tuple[float | None, Interval | None]:
    rows = rows[rows[:, 0] > 0]
    if not len(rows):
        return None, None
    total = rows.sum(0)
    interval = None
    if samples and len(rows) > 1:
        drawn = resample_totals(rows, samples, (seed, 6))
        interval = percentiles((drawn[:, 2] - drawn[:, 1]) / drawn[:, 0])
    return float((total[2] - total[1]) / total[0]), interval
