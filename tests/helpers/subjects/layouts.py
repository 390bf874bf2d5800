"""One cross-layer transcoder in the layout of each tool, exact in all of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

import saekernels as sk

IN, OUT = "hook_resid_mid", "hook_mlp_out"


@torch.no_grad()
def made(d: int, n_latents: int, n_layers: int, *, skip: bool = False) -> sk.CrossLayerTranscoder:
    """Weights that are small integers over 4, thresholds that are powers of two: exact in every layout."""
    clt = sk.CrossLayerTranscoder(d, n_latents, n_layers, sk.JumpReLU(), skip=skip)
    generator = torch.Generator().manual_seed(d + 10 * n_latents + 100 * n_layers)
    for name, value in clt.named_parameters():
        value.copy_(torch.randint(-8, 9, value.shape, generator=generator) / 4)
        if name.endswith("threshold"):
            value.copy_(2.0 ** torch.randint(-2, 1, value.shape, generator=generator))
    return clt


def decoder(clt: sk.CrossLayerTranscoder, s: int, t: int) -> Tensor:
    return clt.source(s).decoder_to(t - s).detach()


def circuit_tracer(clt: sk.CrossLayerTranscoder, folder: Path) -> None:
    for s in range(clt.n_layers):
        own = clt.source(s)
        encoder = {"W_enc": own.W_enc, "b_enc": own.b_enc, "b_dec": clt.b_dec[s], "threshold": own.threshold}
        save_file({f"{name}_{s}": value.detach() for name, value in encoder.items()}, folder / f"W_enc_{s}.safetensors")
        rows = own.W_dec.detach().view(own.n_latents, own.targets, clt.d_out)
        save_file({f"W_dec_{s}": rows}, folder / f"W_dec_{s}.safetensors")
    (folder / "config.yaml").write_text(
        f"model_name: m\nmodel_kind: cross_layer_transcoder\nfeature_input_hook: {IN}\nfeature_output_hook: {OUT}\n"
    )


def gemma_scope(clt: sk.CrossLayerTranscoder, folder: Path) -> None:
    for s in range(clt.n_layers):
        own = clt.source(s)
        square = torch.zeros(own.n_latents, clt.n_layers, clt.d_out)
        square[:, s:] = own.W_dec.detach().view(own.n_latents, own.targets, clt.d_out)
        tensors = {"w_enc": own.W_enc.T, "b_enc": own.b_enc, "threshold": own.threshold, "w_dec": square}
        tensors["b_dec"] = clt.b_dec[s]
        if clt.W_skip is not None:
            tensors["affine_skip_connection"] = clt.W_skip[s].T
        save(tensors, folder / f"params_layer_{s}.safetensors")


def llamascopium(clt: sk.CrossLayerTranscoder, folder: Path, *, norms: bool = False, scale: float = 1.0) -> None:
    L = range(clt.n_layers)
    hooks = {end: [f"blocks.{s}.{hook}" for s in L] for end, hook in (("in", IN), ("out", OUT))}
    tensors = {
        "W_E": torch.stack([clt.source(s).W_enc.T / scale for s in L]),
        "b_E": torch.stack([clt.source(s).b_enc for s in L]),
        "activation_function.log_jumprelu_threshold": torch.stack([clt.source(s).threshold.log() for s in L]),
        **{f"W_D.{t}": torch.stack([decoder(clt, s, t) * scale for s in range(t + 1)]) for t in L},
        **{f"b_D.{t}": clt.b_dec[t] * scale for t in L},
    }
    config: dict[str, object] = {"sae_type": "clt", "d_model": clt.d_in, "act_fn": "jumprelu",
              "norm_activation": "none", "sparsity_include_decoder_norm": norms}  # fmt: skip
    config |= {f"hook_points_{end}": own for end, own in hooks.items()}
    if scale != 1:
        config["norm_activation"] = "dataset-wise"
        norm = torch.tensor(clt.d_in**0.5 / scale)
        tensors |= {f"dataset_average_activation_norm.{hook}": norm for end in hooks.values() for hook in end}
    save(tensors, folder / "sae_weights.safetensors")
    (folder / "config.json").write_text(json.dumps(config))


def clt_forge(clt: sk.CrossLayerTranscoder, folder: Path, *, shards: int = 1, ins: float = 1.0) -> None:
    n, F = clt.n_layers, clt.source(0).n_latents
    pairs = list(zip(*torch.triu_indices(n, n).tolist(), strict=True))
    biases = torch.stack([clt.b_dec[t].detach() / (t + 1) for _, t in pairs]) * 2
    size = F // shards
    for rank in range(shards):
        own = slice(rank * size, (rank + 1) * size)
        tensors = {
            "W_enc": torch.stack([clt.source(s).W_enc[own].T / ins for s in range(n)]),
            "b_enc": torch.stack([clt.source(s).b_enc[own] for s in range(n)]),
            "log_threshold": torch.stack([clt.source(s).threshold[own].log() for s in range(n)]),
            "W_dec": torch.stack([decoder(clt, s, t)[own] * 2 for s, t in pairs]),
            "b_dec": biases,
            "estimated_norm_scaling_factor_in": torch.full((n,), ins),
            "estimated_norm_scaling_factor_out": torch.full((n,), 2.0),
            "layer_mask": torch.zeros(n, len(pairs)),
            "feature_count": torch.zeros(n, size, dtype=torch.long),
        }
        save(tensors, folder / (f"rank{rank}_" * (shards > 1) + "clt_weights.safetensors"))
    config = {"model_name": "gpt2", "d_in": clt.d_in, "d_latent": F, "n_layers": n, "cross_layer_decoders": True,
              "feature_sharding": shards > 1, "jumprelu_bandwidth": 1.0}  # fmt: skip
    (folder / "clt_cfg.json").write_text(json.dumps(config))


def crosslayer_coding(clt: sk.CrossLayerTranscoder, folder: Path, *, pt: bool = False) -> None:
    n = clt.n_layers
    tensors = {"theta_manager.log_threshold": torch.stack([clt.source(s).threshold.log() for s in range(n)])}
    for s in range(n):
        tensors[f"encoder_module.encoders.{s}.weight"] = clt.source(s).W_enc
        tensors[f"encoder_module.encoders.{s}.bias_param"] = clt.source(s).b_enc
        for t in range(s, n):
            tensors[f"decoder_module.decoders.{s}->{t}.weight"] = decoder(clt, s, t).T
            tensors[f"decoder_module.decoders.{s}->{t}.bias_param"] = clt.b_dec[t] / (t + 1)
    if pt:
        torch.save({name: value.detach() for name, value in tensors.items()}, folder / "clt.pt")
    else:
        save(tensors, folder / "model.safetensors")
    config = {"num_features": clt.source(0).n_latents, "num_layers": n, "d_model": clt.d_in,
              "activation_fn": "jumprelu", "tl_input_template": f"blocks.{{}}.{IN}",
              "tl_output_template": f"blocks.{{}}.{OUT}"}  # fmt: skip
    (folder / "cfg.json").write_text(json.dumps(config))


def save(tensors: dict[str, Tensor], path: Path) -> None:
    save_file({name: value.detach().contiguous().clone() for name, value in tensors.items()}, path)


WRITERS: dict[str, Callable[[sk.CrossLayerTranscoder, Path], None]] = {
    "circuit-tracer CLT": circuit_tracer,
    "Gemma Scope 2": gemma_scope,
    "Llamascopium CLT": llamascopium,
    "CLT-Forge": clt_forge,
    "crosslayer-coding": crosslayer_coding,
}
