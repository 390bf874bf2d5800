"""`save_cross_layer`: a cross-layer transcoder, or one of each layer, as a folder of circuit-tracer's."""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from torch import Tensor

from saekernels.crosslayer.transcoder import CrossLayerTranscoder
from saekernels.crosslayer.transcoders import TranscoderSet
from saekernels.files.atomic import TEMPORARIES
from saekernels.formats.files import FormatError, write_safetensors
from saekernels.formats.layers.circuit_tracer import KIND
from saekernels.formats.layers.transcoder_set import KIND as SET_KIND
from saekernels.sae.activations import BatchTopK, JumpReLU, ReLU, TopK
from saekernels.sae.module import SAE

_SITE = re.compile(r"blocks\.(?P<layer>\d+)\.(?P<reads>[\w.]+)( -> blocks\.(?P=layer)\.(?P<writes>[\w.]+))?")


def save_cross_layer(
    transcoder: CrossLayerTranscoder | TranscoderSet, path: str | Path, *, metadata: Mapping[str, object] | None = None
) -> None:
    """Write `transcoder` as a folder of circuit-tracer.

    Holds W_enc_N.safetensors and W_dec_N.safetensors of each layer, or layer_N.safetensors of a set, and config.yaml.
    Each tensor has the dtype and the bits that it has in memory. A layer at a time is in memory; the folder appears
    whole or not at all.

    Args:
        transcoder: of ReLU, JumpReLU, TopK(relu=False), or BatchTopK, which is written as JumpReLU with equal
            thresholds.
        path: the folder; it must not be there, or be empty.
        metadata: further fields of config.yaml, such as {"model_name": ..., "feature_input_hook": "hook_resid_mid"},
            before what `transcoder.sites` and `transcoder.metadata` say.

    Raises:
        TypeError: anything but a `CrossLayerTranscoder` or a `TranscoderSet`.
        FormatError: what the format has no place for (another activation, a pre-bias, decoder norms, a normalised
            input; of a cross-layer one a skip connection, layers of different sizes, another width out than in), or
            metadata that is not JSON. Nothing is written then.
        FileExistsError: something lies in the folder.
    """
    given: object = transcoder
    if not isinstance(given, CrossLayerTranscoder | TranscoderSet):
        kind = type(given).__name__
        raise TypeError(f"transcoder: got {kind}, need a saekernels.CrossLayerTranscoder or TranscoderSet")
    layers = _layers(transcoder)
    _refuse(transcoder, layers)
    config = _config(transcoder, layers[0], metadata or {})
    files = _cross_layer(transcoder) if isinstance(transcoder, CrossLayerTranscoder) else _apart(layers)
    folder = Path(path)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(f"path: {folder} is there, need a new or empty folder")
    folder.parent.mkdir(parents=True, exist_ok=True)
    prefix, suffix = TEMPORARIES.split("*")
    made = Path(tempfile.mkdtemp(prefix=prefix, suffix=suffix, dir=folder.parent))
    try:
        for name, tensors in files:
            write_safetensors(made / f"{name}.safetensors", tensors)
        (made / "config.yaml").write_text(config, encoding="utf-8")
        umask = os.umask(0)
        os.umask(umask)
        made.chmod(0o777 & ~umask)  # temporary folders are private
        os.replace(made, folder)
    except BaseException:
        shutil.rmtree(made, ignore_errors=True)
        raise


def _layers(transcoder: CrossLayerTranscoder | TranscoderSet) -> list[SAE]:
    if isinstance(transcoder, TranscoderSet):
        return [transcoder.transcoder(layer) for layer in range(transcoder.n_layers)]
    return [transcoder.source(layer) for layer in range(transcoder.n_layers)]


def _refuse(transcoder: CrossLayerTranscoder | TranscoderSet, layers: Sequence[SAE]) -> None:
    """FormatError for what circuit-tracer's files have no place for."""
    first = layers[0]
    lacks = {
        "a pre-bias": any(one.pre_bias is not None for one in layers),
        "decoder norms": any(one.rescale_by_decoder_norm for one in layers),
        "a normalised input": any(one.normalization is not None for one in layers),
        "no values, as it is on the meta device": any(value.is_meta for value in transcoder.parameters()),
    }
    if isinstance(transcoder, CrossLayerTranscoder):
        lacks |= {
            "a choice over all layers": transcoder.k_across is not None,
            "a skip connection": transcoder.W_skip is not None,
            "another width out than in": transcoder.d_in != transcoder.d_out,
            "layers of different sizes": any(one.n_latents != first.n_latents for one in layers),
        }
    if found := [name for name, there in lacks.items() if there]:
        raise FormatError(f"transcoder: it has {found[0]}, which circuit-tracer's files have no place for")
    kinds = {one.activation for one in layers}
    by_threshold = all(isinstance(one, JumpReLU | BatchTopK) for one in kinds)
    if not by_threshold and kinds != {ReLU()} and not (len(kinds) == 1 and _is_topk(first)):
        raise FormatError(
            f"transcoder: got {first.activation}, need ReLU, JumpReLU, BatchTopK or TopK(k, relu=False) in all layers"
        )


def _is_topk(sae: SAE) -> bool:
    return isinstance(sae.activation, TopK) and not sae.activation.relu


def _cross_layer(transcoder: CrossLayerTranscoder) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """(file, what it holds) of each layer's encoder and decoders."""
    for s in range(transcoder.n_layers):
        source = transcoder.source(s)
        held = {"W_enc": source.W_enc, "b_enc": source.b_enc, "b_dec": transcoder.b_dec[s]}
        held["threshold"] = _threshold(source)
        yield f"W_enc_{s}", {f"{name}_{s}": one.detach() for name, one in held.items() if one is not None}
        rows = source.W_dec.detach().view(source.n_latents, source.targets, source.d_target)
        yield f"W_dec_{s}", {f"W_dec_{s}": rows}


def _apart(layers: Sequence[SAE]) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """(file, what it holds) of each layer's transcoder."""
    for s, sae in enumerate(layers):
        held = {"W_enc": sae.W_enc, "b_enc": sae.b_enc, "W_dec": sae.W_dec, "b_dec": sae.b_dec, "W_skip": sae.W_skip}
        held["activation_function.threshold"] = _threshold(sae)
        yield f"layer_{s}", {name: one.detach() for name, one in held.items() if one is not None}


def _threshold(sae: SAE) -> Tensor | None:
    # There, unlike here, a negative threshold would let negative values through.
    return None if sae.threshold is None else sae.threshold.detach().clamp(min=0).expand(sae.n_latents)


def _config(transcoder: CrossLayerTranscoder | TranscoderSet, first: SAE, metadata: Mapping[str, object]) -> str:
    """config.yaml, whose values are JSON, which is YAML."""
    told = transcoder.metadata
    fields: dict[str, object] = {"model_kind": KIND if isinstance(transcoder, CrossLayerTranscoder) else SET_KIND}
    if isinstance(first.activation, TopK):
        fields |= {"activation": "topk", "k": first.activation.k}
    if told is not None and told.model is not None:
        fields["model_name"] = told.model
    ends = [_SITE.fullmatch(site) for site in transcoder.sites or ()]
    hooks = {(end["reads"], end["writes"] or end["reads"]) for end in ends if end is not None}
    in_order = [int(end["layer"]) for end in ends if end is not None] == list(range(transcoder.n_layers))
    if in_order and len(hooks) == 1:
        fields["feature_input_hook"], fields["feature_output_hook"] = hooks.pop()
    try:
        return "".join(
            f"{key}: {json.dumps(value, allow_nan=False)}\n" for key, value in {**fields, **metadata}.items()
        )
    except (TypeError, ValueError, RecursionError) as error:
        raise FormatError(f"metadata: cannot be written as JSON: {error}") from error
