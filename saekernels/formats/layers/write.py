"""`save_cross_layer`: a cross-layer transcoder as a folder of circuit-tracer's."""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from saekernels.crosslayer.source import SourceLayer
from saekernels.crosslayer.transcoder import CrossLayerTranscoder
from saekernels.files.atomic import TEMPORARIES
from saekernels.formats.files import FormatError, write_safetensors
from saekernels.formats.layers.circuit_tracer import KIND
from saekernels.sae.activations import BatchTopK, JumpReLU, ReLU

_SITE = re.compile(r"blocks\.(?P<layer>\d+)\.(?P<reads>[\w.]+)( -> blocks\.(?P=layer)\.(?P<writes>[\w.]+))?")


def save_cross_layer(
    transcoder: CrossLayerTranscoder, path: str | Path, *, metadata: Mapping[str, object] | None = None
) -> None:
    """Write `transcoder` as a cross-layer transcoder folder of circuit-tracer.

    Holds W_enc_N.safetensors and W_dec_N.safetensors of each layer and config.yaml. Each tensor has the dtype and the
    bits that it has in memory. A layer at a time is in memory; the folder appears whole or not at all.

    Args:
        transcoder: of ReLU, JumpReLU or BatchTopK, which is written as JumpReLU with equal thresholds.
        path: the folder; it must not be there, or be empty.
        metadata: further fields of config.yaml, such as {"model_name": ..., "feature_input_hook": "hook_resid_mid"},
            before what `transcoder.sites` and `transcoder.metadata` say.

    Raises:
        TypeError: anything but a `CrossLayerTranscoder`.
        FormatError: what the format has no place for (another activation, a skip connection, a pre-bias, decoder
            norms, layers of different sizes, another width out than in), or metadata that is not JSON. Nothing is
            written then.
        FileExistsError: something lies in the folder.
    """
    if not isinstance(transcoder, CrossLayerTranscoder):
        raise TypeError(f"transcoder: got {type(transcoder).__name__}, need a saekernels.CrossLayerTranscoder")
    _refuse(transcoder)
    config = _config(transcoder, metadata or {})
    folder = Path(path)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(f"path: {folder} is there, need a new or empty folder")
    folder.parent.mkdir(parents=True, exist_ok=True)
    prefix, suffix = TEMPORARIES.split("*")
    made = Path(tempfile.mkdtemp(prefix=prefix, suffix=suffix, dir=folder.parent))
    try:
        for s in range(transcoder.n_layers):
            source = transcoder.source(s)
            write_safetensors(made / f"W_enc_{s}.safetensors", _encoder(transcoder, source, s))
            rows = source.W_dec.detach().view(source.n_latents, source.targets, source.d_target)
            write_safetensors(made / f"W_dec_{s}.safetensors", {f"W_dec_{s}": rows})
        (made / "config.yaml").write_text(config, encoding="utf-8")
        umask = os.umask(0)
        os.umask(umask)
        made.chmod(0o777 & ~umask)  # temporary folders are private
        os.replace(made, folder)
    except BaseException:
        shutil.rmtree(made, ignore_errors=True)
        raise


def _refuse(transcoder: CrossLayerTranscoder) -> None:
    """FormatError for what circuit-tracer's files have no place for."""
    sources = [transcoder.source(s) for s in range(transcoder.n_layers)]
    first = sources[0]
    lacks = {
        "a skip connection": transcoder.W_skip is not None,
        "another width out than in": transcoder.d_in != transcoder.d_out,
        "layers of different sizes": any(one.n_latents != first.n_latents for one in sources),
        "a pre-bias": any(one.pre_bias is not None for one in sources),
        "decoder norms": any(one.rescale_by_decoder_norm for one in sources),
        "no values, as it is on the meta device": any(value.is_meta for value in transcoder.parameters()),
    }
    if found := [name for name, there in lacks.items() if there]:
        raise FormatError(f"transcoder: it has {found[0]}, which circuit-tracer's files have no place for")
    kinds = {type(one.activation) for one in sources}
    if not (kinds <= {JumpReLU, BatchTopK} or kinds == {ReLU}):
        raise FormatError(f"transcoder: got {first.activation}, need ReLU, JumpReLU or BatchTopK in all layers")


def _encoder(transcoder: CrossLayerTranscoder, source: SourceLayer, s: int) -> dict[str, Tensor]:
    assert source.b_enc is not None
    state = {
        f"W_enc_{s}": source.W_enc,
        f"b_enc_{s}": source.b_enc,
        f"b_dec_{s}": transcoder.b_dec[s],
    }
    if source.threshold is not None:
        # There, unlike here, a negative threshold would let negative values through.
        state[f"threshold_{s}"] = source.threshold.detach().clamp(min=0).expand(source.n_latents)
    return {name: value.detach() for name, value in state.items()}


def _config(transcoder: CrossLayerTranscoder, metadata: Mapping[str, object]) -> str:
    """config.yaml, whose values are JSON, which is YAML."""
    told = transcoder.metadata
    fields: dict[str, object] = {"model_kind": KIND}
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
