"""Cross-layer transcoders of circuit-tracer: W_enc_N.safetensors and W_dec_N.safetensors of every layer, config.yaml.

A row of W_dec_N [F, L - N, d] holds what a latent writes at layers N to L - 1, so decoders are used where they lie.
JumpReLU there is x * (x > threshold), which lets negative values through where a threshold is below 0: refused.
"""

from __future__ import annotations

from pathlib import Path

from saekernels.formats.config import told
from saekernels.formats.files import FormatError, Tensors
from saekernels.formats.layers.found import Layer, Layers, numbered
from saekernels.formats.readers.circuit_tracer import CONFIGS, activation_of, config_beside
from saekernels.sae.metadata import Metadata

NAME = "circuit-tracer CLT"
FILES = "W_enc_N.safetensors + W_dec_N.safetensors (+ config.yaml)"
KIND = "cross_layer_transcoder"
WITHOUT_EFFECT = ("scan", "features", "repo_id", "revision", "id", "n_layers", "d_model", "license", "transcoders")


def find(folder: Path) -> bool:
    """Whether a folder is of this format."""
    return any(folder.glob("W_enc_*.safetensors")) or (
        any((folder / name).is_file() for name in CONFIGS)
        and config_beside(folder / "W_enc_0.safetensors").get("model_kind") == KIND
    )


def read(folder: Path, k: int | None = None) -> Layers:
    """The transcoder of a folder."""
    encoders, decoders = numbered(folder, "W_enc"), numbered(folder, "W_dec")
    if not encoders or len(encoders) != len(decoders):
        raise FormatError(
            f"{folder}: {len(encoders)} files W_enc_N and {len(decoders)} files W_dec_N, need one of each"
        )
    config = config_beside(encoders[0])
    if config.get("model_kind", KIND) != KIND:
        raise FormatError(f"{config.path}: 'model_kind' is {config['model_kind']!r:.40}, need {KIND!r}")
    layers: list[Layer] = []
    sizes: tuple[int, ...] | None = None
    for s, (encoder, decoder) in enumerate(zip(encoders, decoders, strict=True)):
        tensors, rows = Tensors(encoder), Tensors(decoder)
        sizes = sizes or tensors.shape(f"W_enc_{s}")
        n_latents, d = sizes
        state = {
            "W_enc": tensors.take(f"W_enc_{s}", n_latents, d),
            "b_enc": tensors.take(f"b_enc_{s}", n_latents),
            "b_dec": tensors.take(f"b_dec_{s}", d),
        }
        activation = activation_of(config, tensors, state, k, (f"threshold_{s}",))
        tensors.done()
        matrices = rows.take(f"W_dec_{s}", n_latents, len(encoders) - s, d)
        layers.append(Layer(state, matrices, activation, decoder))
        rows.done()
    if mixed := [one.activation for one in layers if one.activation != layers[0].activation]:
        raise FormatError(f"{folder}: layer 0 is {layers[0].activation}, another is {mixed[0]}, need the same")
    ends = [told(config, f"feature_{end}_hook", str) for end in ("input", "output")]
    metadata = Metadata(
        NAME,
        model=told(config, "model_name", str),
        ignored=config.unknown(WITHOUT_EFFECT),
        other=config.kept("feature_input_hook", "feature_output_hook"),
    )
    return Layers(folder, tuple(layers), metadata, sites_of(ends[0], ends[1], len(layers)))


def sites_of(reads: str | None, writes: str | None, n_layers: int) -> tuple[str, ...] | None:
    """Sites of all layers of hook points within a block, "hook_resid_mid"; None where one is not known."""
    if reads is None or writes is None:
        return None
    if reads == writes:
        return tuple(f"blocks.{layer}.{reads}" for layer in range(n_layers))
    return tuple(f"blocks.{layer}.{reads} -> blocks.{layer}.{writes}" for layer in range(n_layers))
