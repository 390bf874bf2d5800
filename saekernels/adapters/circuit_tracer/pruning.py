"""Functions of circuit_tracer.graph with the same results, without sorting n^2 entries and with fewer copies of them.

They are functions of a module, so that they are put in place for the process while some model is accelerated.
"""

from __future__ import annotations

import weakref
from typing import Any

import circuit_tracer.attribution.attribute as attribution
import circuit_tracer.graph as graph
import torch
from torch import Tensor

_OWN = {
    "find_threshold": graph.find_threshold,
    "prune_graph": graph.prune_graph,
    "compute_partial_influences": graph.compute_partial_influences,
}
_HOLDERS: weakref.WeakValueDictionary[int, Any] = weakref.WeakValueDictionary()
_BINS = 2**16
_CHUNK = 2**20  # entries


def hold(model: object) -> None:
    """Put ours in place, until the last of these models is let go of."""
    _HOLDERS[id(model)] = model
    ours = (find_threshold, prune_graph, compute_partial_influences)
    _put({one.__name__: one for one in ours})


def release(model: object) -> None:
    """Undo `hold`."""
    _HOLDERS.pop(id(model), None)
    if not _HOLDERS:
        _put(_OWN)


def _put(functions: dict[str, Any]) -> None:
    for name, function in functions.items():
        setattr(graph, name, function)
    attribution.compute_partial_influences = functions["compute_partial_influences"]


def find_threshold(scores: Tensor, threshold: float) -> Tensor:
    """The score from which on the largest ones make up a fraction of the sum: the tool's number, without its sort.

    The upper halves of the numbers' bits are counted and weighed, then the lower halves of those in the bin where the
    sum passes the fraction, each bin of which is one number. Sums are float64, as torch's cumulative sum on the CPU.
    """
    total = torch.sum(scores)
    served = scores.dtype == torch.float32 and bool((total > 0) & total.isfinite() & (scores.min() >= 0))
    if not served:
        return _OWN["find_threshold"](scores, threshold)
    flat = scores.reshape(-1)
    nothing = torch.zeros((), dtype=torch.float64, device=scores.device)
    high, above = _passing(flat, None, nothing, total, threshold)
    low, _ = _passing(flat, high, above, total, threshold)
    return torch.tensor([high << 16 | low], dtype=torch.int32, device=scores.device).view(torch.float32)[0]


def _passing(flat: Tensor, high: int | None, above: Tensor, total: Tensor, threshold: float) -> tuple[int, Tensor]:
    """(the bin, from the largest down, in which the sum passes the fraction, or the last with anything in it; the sum
    of what lies above that bin)."""
    counts, weights = _histogram(flat, high)
    holds = counts.flip(0) > 0
    passed = holds & ((above + weights.flip(0).cumsum(0)).float() / total >= threshold)
    place = int(passed.nonzero()[0]) if bool(passed.any()) else int(holds.nonzero()[-1])
    chosen = _BINS - 1 - place
    return chosen, above + weights[chosen + 1 :].sum()


def _histogram(flat: Tensor, high: int | None) -> tuple[Tensor, Tensor]:
    """(how many, their sum) by the upper 16 bits; or of those whose upper bits are `high`, by the lower ones."""
    counts = torch.zeros(_BINS, dtype=torch.int64, device=flat.device)
    weights = torch.zeros(_BINS, dtype=torch.float64, device=flat.device)
    for part in flat.split(_CHUNK):
        bits = part.view(torch.int32) & 0x7FFFFFFF  # a zero may have a sign
        if high is not None:
            mine = (bits >> 16) == high
            bits, part = bits[mine] & 0xFFFF, part[mine]
        else:
            bits = bits >> 16
        bins = bits.long()
        counts += torch.bincount(bins, minlength=_BINS)
        weights += torch.bincount(bins, part.double(), minlength=_BINS)
    return counts, weights


def prune_graph(given: Any, node_threshold: float = 0.8, edge_threshold: float = 0.98) -> Any:
    """The tool's, with one copy of the adjacency, which becomes the edges' scores in place."""
    for name, value in (("node_threshold", node_threshold), ("edge_threshold", edge_threshold)):
        if value > 1.0 or value < 0.0:
            raise ValueError(f"{name} must be between 0.0 and 1.0")
    adjacency = given.adjacency_matrix
    n_logits, n_features = len(given.logit_targets), len(given.selected_features)
    inner = adjacency.shape[0] - n_logits - len(given.input_tokens)  # tokens and logits are always kept
    logit_weights = torch.zeros(adjacency.shape[0], device=adjacency.device)
    logit_weights[-n_logits:] = given.logit_probabilities
    scores = _normalise(adjacency.abs())
    influence = graph.compute_influence(scores, logit_weights)
    nodes = influence >= find_threshold(influence, node_threshold)
    nodes[inner:] = True
    torch.abs(adjacency, out=scores)
    scores[~nodes] = 0
    scores[:, ~nodes] = 0
    through = graph.compute_influence(_normalise(scores), logit_weights)
    through += logit_weights
    scores *= through[:, None]
    edges = scores >= find_threshold(scores, edge_threshold)
    del scores
    _drop_ends(nodes, edges, inner, n_features)
    ordered, order = torch.sort(influence, descending=True)
    cumulative = torch.zeros_like(influence)
    cumulative[order] = torch.cumsum(ordered, dim=0) / torch.sum(ordered)
    return graph.PruneResult(nodes, edges, cumulative)


def _normalise(magnitudes: Tensor) -> Tensor:
    """Rows divided by their sums, in place."""
    magnitudes /= magnitudes.sum(dim=1, keepdim=True).clamp(min=1e-10)
    return magnitudes


def _drop_ends(nodes: Tensor, edges: Tensor, inner: int, n_features: int) -> None:
    """Take out nodes that nothing leaves or, of latents, nothing enters, and their edges, until there are none."""
    while True:
        before = nodes.clone()
        nodes[:inner] &= edges[:, :inner].any(0)
        nodes[:n_features] &= edges[:n_features].any(1)
        if bool((nodes == before).all()):
            return
        edges[~nodes] = False
        edges[:, ~nodes] = False


def compute_partial_influences(
    edge_matrix: Tensor, logit_p: Tensor, row_to_node_index: Tensor, max_iter: int = 128, device: Any = None
) -> Tensor:
    """The tool's, [nodes], without a normalised copy of the matrix; on a device it is the tool's own."""
    device = torch.device(device or graph.get_default_device())
    if device.type != "cpu" or edge_matrix.device.type != "cpu":
        return _OWN["compute_partial_influences"](edge_matrix, logit_p, row_to_node_index, max_iter, device)
    at_a_time = max(1, _CHUNK // edge_matrix.shape[1])
    sums = torch.cat([part.abs().sum(dim=1) for part in edge_matrix.split(at_a_time)]).clamp(min=1e-8)
    influences = torch.zeros(edge_matrix.shape[1])
    reached = torch.zeros(edge_matrix.shape[1])
    reached[-len(logit_p) :] = logit_p
    for _ in range(max_iter):
        weights = reached[row_to_node_index] / sums
        reached = torch.zeros_like(reached)
        for part in weights.nonzero()[:, 0].split(at_a_time):
            reached += weights[part] @ edge_matrix[part].abs_()
        if not reached.any():
            return influences
        influences += reached
    raise RuntimeError("Failed to converge")
