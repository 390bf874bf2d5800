"""An attribution context whose rows come from one pass over the prompt and one product for each position.

The tool runs the prompt as often as a batch has rows, so as to have a graph for each, and its hooks copy the gradient
at every entry's position. The graph of one copy serves all rows: their gradients go through it together
(`torch.func.vmap` over `torch.autograd.grad`).
"""

from __future__ import annotations

import contextlib
import functools
import weakref
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from saekernels.ops import gather_matmul

LAYOUT = "_saekernels_layout"
# How many positions' gradients go through the graph at a time: as many as matrix products want.
_POSITIONS = {"cpu": 1024}
_ON_A_DEVICE = 8192


class _Layer(NamedTuple):
    """What writes to a layer: rows [m, d] by position, offsets [P+1], and which rows of the graph they are part of."""

    rows: Tensor
    offsets: Tensor
    nodes: Tensor


def take_over(context: Any, hooks: bool) -> None:
    """Have a context compute its rows here. hooks: it belongs to TransformerLens, and sees activations by hooks."""
    vars(context)[LAYOUT] = _layout(context)
    own = weakref.proxy(context)  # a context holds graphs: it must go when its last user goes
    vars(context)["compute_batch"] = functools.partial(_compute_batch, own)
    if hooks:
        vars(context)["install_hooks"] = functools.partial(_install_hooks, own)


def is_taken_over(context: Any) -> bool:
    """Whether `take_over` was called for this context."""
    return LAYOUT in vars(context)


def _layout(context: Any) -> list[_Layer]:
    """By layer that is written to. Rows that do not lie in that order are copied into it."""
    n_layers, n_pos, _ = context.activation_matrix.shape
    layer, position = context.decoder_locations
    rows, nodes, key = context.decoder_vecs, context.encoder_to_decoder_map, layer * n_pos + position
    if bool((key.diff() < 0).any()):
        order = key.argsort(stable=True)
        rows, nodes, key = rows[order], nodes[order], key[order]
    counts = torch.bincount(key, minlength=n_layers * n_pos)
    bounds = torch.cat((counts.new_zeros(1), counts.cumsum(0)))
    found = []
    for number in range(n_layers):
        offsets = bounds[number * n_pos : (number + 1) * n_pos + 1]
        begin, end = int(offsets[0]), int(offsets[-1])
        found.append(_Layer(rows[begin:end], offsets - begin, nodes[begin:end]))
    return found


@contextlib.contextmanager
def _install_hooks(context: Any, model: Any) -> Iterator[None]:
    """TransformerLens: keeps what is read and what is written, which gradients are asked of; no backward hooks."""
    written: list[Tensor | None] = [None] * (context.n_layers + 1)
    context._feature_output_activations = written

    def keep(acts: Tensor, hook: Any, *, at: int) -> None:
        written[at] = acts

    names = ["hook_embed", *(f"blocks.{layer}.{model.feature_output_hook}" for layer in range(context.n_layers))]
    ours = [(name, functools.partial(keep, at=number)) for number, name in enumerate(names)]
    with model.hooks(fwd_hooks=[*context._caching_hooks(model.feature_input_hook), *ours]):
        yield


def _compute_batch(
    context: Any, layers: Tensor, positions: Tensor, inject_values: Tensor, retain_graph: bool = True
) -> Tensor:
    """The tool's `compute_batch`: [batch, nodes], the direct effects on (layer, position) along `inject_values`."""
    read, written = context._resid_activations, context._feature_output_activations
    out = inject_values.new_zeros(context._row_size, len(layers))
    # By layer, as a row needs none of the layers above its own.
    rows = _POSITIONS.get(inject_values.device.type, _ON_A_DEVICE) // written[0].shape[1]
    chunks = layers.argsort(stable=True).split(max(1, rows))
    for number, chosen in enumerate(chunks):
        mine = layers[chosen]
        seeds = {
            layer: _seed(read[layer], mine == layer, positions[chosen], inject_values[chosen])
            for layer in mine.unique().tolist()
        }
        keep = retain_graph or number + 1 < len(chunks)
        below = written[: max(seeds) + 1]
        gradients = _gradients([read[layer] for layer in seeds], below, list(seeds.values()), keep)
        out[:, chosen] = _score(context, gradients, inject_values)
    return out.T


def _seed(read: Tensor, mine: Tensor, positions: Tensor, values: Tensor) -> Tensor:
    """[rows, 1, P, d]: the gradient of what is read, of those rows that begin here."""
    seed = read.new_zeros(len(mine), *read.shape)
    chosen = mine.nonzero()[:, 0]
    seed[chosen, 0, positions[chosen]] = values[chosen].to(seed.dtype)
    return seed


def _gradients(outputs: list[Tensor], inputs: list[Tensor], seeds: list[Tensor], keep: bool) -> tuple[Tensor, ...]:
    """Of each input, [rows, 1, P, d]."""

    def one(*seed: Tensor) -> tuple[Tensor, ...]:
        return torch.autograd.grad(outputs, inputs, seed, keep, allow_unused=True, materialize_grads=True)

    with torch.enable_grad():
        return torch.func.vmap(one)(*seeds)


def _score(context: Any, gradients: tuple[Tensor, ...], like: Tensor) -> Tensor:
    """[nodes, rows]: what latents, errors and tokens contribute to these rows of the graph."""
    n_layers, n_pos, _ = context.activation_matrix.shape
    embedded, *outputs = gradients
    out = like.new_zeros(context._row_size, len(embedded))
    start = context.activation_matrix._nnz()
    for layer, (gradient, own) in enumerate(zip(outputs, vars(context)[LAYOUT], strict=False)):
        g = gradient[:, 0]
        if len(own.rows):
            places = torch.arange(len(own.rows), dtype=torch.int32, device=g.device)
            products = gather_matmul(g.to(own.rows.dtype), own.rows, places, own.offsets)
            out.index_add_(0, own.nodes, products.to(out.dtype))
        begin = start + layer * n_pos
        out[begin : begin + n_pos] = _along(g, context.error_vectors[layer])
    begin = start + n_layers * n_pos
    out[begin : begin + n_pos] = _along(embedded[:, 0], context.token_vectors)
    return out


def _along(gradients: Tensor, vectors: Tensor) -> Tensor:
    """[P, rows]: gradients [rows, P, d] along vectors [P, d]."""
    return torch.einsum("bpd,pd->pb", gradients.to(vectors.dtype), vectors)
