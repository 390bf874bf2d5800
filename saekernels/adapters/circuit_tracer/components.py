"""What attribution needs of the transcoders: codes, scaled decoder rows and the reconstruction, from sparse entries.

No [positions, latents] is made. Decoder rows come in the order of where they write, (layer, position), so that those of
one layer are a slice of them; for a cross-layer transcoder that is another order than the tool's, of the same rows.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from circuit_tracer.transcoder import TranscoderSet
from circuit_tracer.transcoder.activation_functions import JumpReLU, TopK
from torch import Tensor, nn

from saekernels.adapters.errors import NotAccelerated
from saekernels.ops import decode_csr, encode_threshold, encode_topk

_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
_FIRST = slice(0, 1)


class Written(NamedTuple):
    """Decoder rows in the order of (layer, position) that they are written to.

    rows: [m, d], times the latent's value. entry: [m] int64, which entry of the codes each is of. layer, position: [m]
    int64. offsets: [layers * positions + 1] int64: where the rows of a layer and position begin.
    """

    rows: Tensor
    entry: Tensor
    layer: Tensor
    position: Tensor
    offsets: Tensor


def reason_against(transcoders: Any) -> str | None:
    """Why these transcoders are not served, or None."""
    if transcoders.b_enc.dtype not in _DTYPES if _crosses(transcoders) else transcoders[0].dtype not in _DTYPES:
        return "weights of a dtype that the kernels do not serve"
    for layer in range(transcoders.n_layers):
        activation = _activation(transcoders, layer)
        if not (_is_relu(activation) or isinstance(activation, JumpReLU | TopK)):
            return f"the activation of layer {layer}, {activation!r}, is not known"
    return None


def components(transcoders: Any, inputs: Tensor, zero_positions: slice = _FIRST) -> dict[str, Tensor]:
    """The tool's `compute_attribution_components`: inputs [layers, positions, d]; a dict of what a context is made of.

    Decoder rows and what says where they belong are in the order of `Written`.
    """
    if reason_against(transcoders) is not None:
        return type(transcoders).compute_attribution_components(transcoders, inputs, zero_positions)
    codes, encoders = _encode(transcoders, inputs, zero_positions)
    written = write(transcoders, codes)
    return {
        "activation_matrix": codes,
        "reconstruction": _reconstruction(transcoders, written, inputs.shape, inputs),
        "encoder_vecs": encoders,
        "decoder_vecs": written.rows,
        "encoder_to_decoder_map": written.entry,
        "decoder_locations": torch.stack((written.layer, written.position)),
    }


def decode(clt: Any, features: Tensor, input_acts: Tensor | None = None) -> Tensor:
    """A cross-layer transcoder's `decode`, [layers, positions, d] from features [layers, positions, latents].

    There is a row for every position: the tool's own leaves out those after the last active one, and has none to give
    where no latent is active.
    """
    if clt.W_skip is not None and input_acts is None:
        return type(clt).decode(clt, features, input_acts)  # the tool's own error
    codes = (features if features.is_sparse else features.to_sparse()).coalesce()
    shape = torch.Size((*codes.shape[:2], clt.d_model))
    return _reconstruction(clt, write(clt, codes), shape, input_acts)


def write(transcoders: Any, codes: Tensor) -> Written:
    """The decoder rows of all entries; codes: coalesced COO [layers, positions, latents]."""
    n_layers, n_pos, _ = codes.shape
    layer, position, latent = codes.indices()
    values, crosses = codes.values(), _crosses(transcoders)
    targets = n_layers - layer if crosses else torch.ones_like(layer)
    entry = torch.repeat_interleave(torch.arange(len(layer), device=layer.device), targets)
    first = targets.cumsum(0) - targets
    target = layer[entry] + torch.arange(len(entry), device=layer.device) - first[entry]
    key = target * n_pos + position[entry]
    order = key.argsort(stable=True)
    entry, target, key = entry[order], target[order], key[order]
    counts = torch.bincount(key, minlength=n_layers * n_pos)
    rows = values.new_empty(len(entry), _width(transcoders))
    sources = torch.bincount(layer, minlength=n_layers).tolist()
    source, begin = layer[entry], 0
    for number, count in enumerate(sources):
        if count:
            mine = slice(begin, begin + count)
            # In the order of its targets, and for each in the order of the entries.
            places = (source == number).nonzero()[:, 0].view(-1, count)
            _fill(rows, places, transcoders, number, latent[mine], values[mine])
        begin += count
    offsets = torch.cat((counts.new_zeros(1), counts.cumsum(0)))
    return Written(rows, entry, target, position[entry], offsets)


def _fill(rows: Tensor, places: Tensor, transcoders: Any, layer: int, latent: Tensor, values: Tensor) -> None:
    """rows[places[i]] = values times the rows that these latents of a layer write to its i-th target."""
    if not _crosses(transcoders):
        # Fresh, and as the tool reads them, so that a decoder that lies in a file is read by rows.
        vectors = transcoders._get_decoder_vectors(layer, latent)
        rows.index_copy_(0, places[0], (vectors * values[:, None]).to(rows.dtype))
        return
    if transcoders.lazy_decoder:
        unique, latent = latent.unique(return_inverse=True)
        decoder = transcoders._get_decoder_vectors(layer, unique.cpu())
    else:
        decoder = transcoders.W_dec[layer].detach()
    for number, place in enumerate(places):
        rows.index_copy_(0, place, decoder[:, number].index_select(0, latent).mul_(values[:, None]))


def _encode(transcoders: Any, inputs: Tensor, zero_positions: slice) -> tuple[Tensor, Tensor]:
    """(codes, coalesced COO [layers, positions, latents], encoder rows of the entries [n, d])."""
    found, values, encoders = [], [], []
    kept = torch.ones(inputs.shape[1], dtype=torch.bool, device=inputs.device)
    kept[zero_positions] = False
    for layer, x in enumerate(inputs):
        W_enc, bias = _encoder(transcoders, layer)  # bound once: one that lies in a file is read at every look
        value, position, latent = _entries(x.to(W_enc.dtype), W_enc, bias, _activation(transcoders, layer), layer)
        keep = kept[position] & (value != 0)
        value, position, latent = value[keep], position[keep], latent[keep]
        found.append(torch.stack((torch.full_like(position, layer), position, latent)))
        values.append(value)
        encoders.append(W_enc.detach().index_select(0, latent))
    size = (*inputs.shape[:2], transcoders.d_transcoder)
    codes = torch.sparse_coo_tensor(torch.cat(found, 1), torch.cat(values), size, is_coalesced=True)
    return codes, torch.cat(encoders)


def _entries(x: Tensor, W_enc: Tensor, bias: Tensor, activation: Any, layer: int) -> tuple[Tensor, Tensor, Tensor]:
    """(values, positions, latents) of x [positions, d], by position, then by latent."""
    places = torch.arange(len(x), device=x.device)
    if isinstance(activation, TopK):
        top = encode_topk(x, W_enc, bias, k=activation.k)
        latents, order = top.indices.long().sort(dim=1)
        return top.values.gather(1, order).flatten(), places.repeat_interleave(activation.k), latents.flatten()
    codes = encode_threshold(x, W_enc, bias, _threshold(activation, layer, len(W_enc)))
    return codes.values, places.repeat_interleave(codes.offsets.diff()), codes.indices.long()


def _reconstruction(transcoders: Any, written: Written, shape: torch.Size, inputs: Tensor | None) -> Tensor:
    """[layers, positions, d]: the rows of each layer and position summed, and what does not depend on codes."""
    rows = written.rows
    if len(rows):
        places = torch.arange(len(rows), dtype=torch.int32, device=rows.device)
        out = decode_csr(rows.new_ones(len(rows)), places, written.offsets, rows).view(shape)
    else:
        out = rows.new_zeros(shape)
    if _crosses(transcoders):
        out += transcoders.b_dec[:, None]
    else:
        out += torch.stack([transcoder.b_dec for transcoder in transcoders])[:, None]
    if transcoders.skip_connection and inputs is not None:
        for layer, x in enumerate(inputs):
            out[layer] += transcoders.compute_skip(layer, x)
    return out


def _crosses(transcoders: Any) -> bool:
    """Whether this is a cross-layer transcoder, and not a set of one for each layer."""
    return not isinstance(transcoders, TranscoderSet)


def _width(transcoders: Any) -> int:
    width: int = transcoders.d_model if _crosses(transcoders) else transcoders[0].d_model
    return width


def _encoder(transcoders: Any, layer: int) -> tuple[Tensor, Tensor]:
    if _crosses(transcoders):
        return transcoders._get_encoder_weights(layer), transcoders.b_enc[layer]
    return transcoders[layer].W_enc, transcoders[layer].b_enc


def _activation(transcoders: Any, layer: int) -> Any:
    return transcoders.activation_function if _crosses(transcoders) else transcoders[layer].activation_function


def _is_relu(activation: Any) -> bool:
    return activation in (torch.relu, nn.functional.relu) or type(activation) is nn.ReLU


def _threshold(activation: Any, layer: int, latents: int) -> float | Tensor:
    """0 for ReLU; else a scalar or [latents] of a layer."""
    if not isinstance(activation, JumpReLU):
        return 0.0
    found = activation.threshold.detach()
    if found.dim() == 3:  # of all layers of a cross-layer transcoder
        found = found[layer]
    if found.numel() not in (1, latents):
        raise NotAccelerated(f"threshold: got {list(found.shape)} for {latents} latents, need one for each or for all")
    return found.reshape(()) if found.numel() == 1 else found.reshape(latents)
