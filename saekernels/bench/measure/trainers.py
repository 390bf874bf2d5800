"""Other tools' own trainers, of each class that they train, as the tool makes them. NotInstalled where one is not."""

from __future__ import annotations

import importlib
from typing import Any

from saekernels.bench.measure import peers

# The class as it is called here: what SAELens calls it; dictionary_learning's file and trainer.
CLASSES = ("topk", "batch_topk", "matryoshka", "jumprelu", "standard", "gated")
_SAELENS = {"batch_topk": "batchtopk", "matryoshka": "matryoshka_batchtopk"}
_DICTIONARY = {
    "topk": ("top_k", "TopKTrainer"),
    "batch_topk": ("batch_top_k", "BatchTopKTrainer"),
    "matryoshka": ("matryoshka_batch_top_k", "MatryoshkaBatchTopKTrainer"),
    "jumprelu": ("jumprelu", "JumpReluTrainer"),
    "standard": ("standard", "StandardTrainer"),
    "gated": ("gdm", "GatedSAETrainer"),
}


def widths(latents: int) -> list[int]:
    """Matryoshka's five prefixes: F / 16, F / 8, F / 4, F / 2 and F."""
    return [latents // 2**at for at in (4, 3, 2, 1, 0)]


def saelens_sae(kind: str, width: int, latents: int, k: int, **options: Any) -> Any:
    """SAELens' training SAE of a class, with the options of its config."""
    peers.load("sae_lens")
    registry = importlib.import_module("sae_lens.registry")
    own: dict[str, Any] = {"k": k} if kind in ("topk", "abstopk", "batch_topk", "matryoshka") else {}
    if kind == "matryoshka":
        own["matryoshka_widths"] = widths(latents)
    module, config = registry.get_sae_training_class(_SAELENS.get(kind, kind))
    return module(config(d_in=width, d_sae=latents, **{**own, **options}))


def saelens_trainer(sae: Any, batches: Any, *, batch: int, steps: int, lr: float, dead_after: int = 1000) -> Any:
    """Its SAETrainer of a training SAE: constant learning rate, nothing logged."""
    library, configs = peers.load("sae_lens"), importlib.import_module("sae_lens.config")
    settings = configs.SAETrainerConfig(
        total_training_samples=steps * batch, train_batch_size_samples=batch, lr=lr, lr_end=lr,
        dead_feature_window=dead_after, logger=configs.LoggingConfig(log_to_wandb=False),
    )  # fmt: skip
    return library.SAETrainer(settings, sae, batches)


def dictionary_trainer(kind: str, width: int, latents: int, k: int, lr: float) -> Any:
    """dictionary_learning's trainer of a class."""
    peers.load("dictionary_learning")
    file, name = _DICTIONARY[kind]
    options: dict[str, Any] = {
        "steps": 10**6, "activation_dim": width, "dict_size": latents, "layer": 0, "lm_name": "none",
        "device": "cpu", "lr": lr, "warmup_steps": 1,
    }  # fmt: skip
    options |= {"k": k} if "topk" in kind or kind == "matryoshka" else {"sparsity_warmup_steps": 1}
    if kind == "matryoshka":
        options["group_fractions"] = [1 / 16, 1 / 16, 1 / 8, 1 / 4, 1 / 2]
    return getattr(importlib.import_module(f"dictionary_learning.trainers.{file}"), name)(**options)


def losses_of(trainer: Any) -> list[float]:
    """What `trainer.loss` of dictionary_learning returns from now on."""
    losses: list[float] = []
    own_loss = trainer.loss

    def loss(*given: Any, **options: Any) -> Any:
        found = own_loss(*given, **options)
        losses.append(float(found.detach()))
        return found

    trainer.loss = loss
    return losses
