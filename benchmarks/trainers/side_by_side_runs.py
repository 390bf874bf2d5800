"""Runs of other tools' trainers that can be stopped and resumed from the tool's own files, for `train_side_by_side.py`.

Rows are the bundled model's activations. A quarter of the latents begins out of their reach, so that it dies; classes
with a threshold begin where 1 entry in 40 is above it.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import itertools
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

import saekernels as sk
from peers_trainers import SITE_LAYER, activations
from saekernels import example
from saekernels.bench.measure import peers, trainers

BATCHES = 64  # that rows are drawn from


class Size(NamedTuple):
    """Of a run: tokens a step, latents, k of TopK, steps, and after how many a silent latent is dead."""

    tokens: int
    latents: int
    k: int
    steps: int
    dead_after: int


class Step(NamedTuple):
    """Its loss, and how many latents were dead when it began; None where the trainer does not count them."""

    loss: float
    dead: int | None


class LensRun:
    """SAELens' SAETrainer; a checkpoint is all it needs."""

    KINDS: ClassVar[dict[str, dict[str, Any]]] = {
        "topk": {},
        "abstopk": {},
        "batch_topk": {},
        "matryoshka": {"use_matryoshka_aux_loss": True},
        # Such that entries stay sparse; with the coefficients there are by default all are dense within ten steps.
        "jumprelu": {"pre_act_loss_coefficient": 1e-3, "decoder_init_norm": 1.0},
        "standard": {"l1_coefficient": 6.5},
        "gated": {"l1_coefficient": 13.0},
    }

    def __init__(self, kind: str, rows: Tensor, size: Size) -> None:
        self.module = trainers.saelens_sae(kind, rows.shape[1], size.latents, size.k, **self.KINDS[kind])
        name = {"jumprelu": "threshold", "gated": "b_gate"}.get(kind, "b_enc")
        _set_apart(self.module.W_enc.t(), getattr(self.module, name), rows, kind)
        self.batches = batches(rows, size)
        self.trainer = trainers.saelens_trainer(
            self.module, iter(()), batch=size.tokens, steps=size.steps, lr=1e-3, dead_after=size.dead_after
        )

    def go(self, first: int, last: int) -> list[Step]:
        found = []
        for x in self.batches[first:last]:
            dead = int(self.trainer.dead_neurons.sum())
            found.append(Step(self.trainer.step(x).loss.item(), dead))
            self.trainer.n_training_steps += 1
        return found

    def save(self, folder: Path) -> None:
        self.trainer.save_checkpoint("half", folder)

    def resume(self, folder: Path) -> None:
        self.module.load_weights_from_checkpoint(folder / "half")
        self.trainer.load_trainer_state(folder / "half")


class DictionaryRun:
    """dictionary_learning's trainers; what `trainSAE` saves is the dictionary, so moments and counts begin anew."""

    ANNEALED = ("p_anneal", "gated_anneal")
    # Penalties such that entries stay sparse, as above.
    PENALTIES: ClassVar[dict[str, float]] = {"standard": 4.0, "gated": 4.0, "p_anneal": 5.0, "gated_anneal": 5.0}
    KINDS = dict.fromkeys((*trainers.CLASSES, *ANNEALED))

    def __init__(self, kind: str, rows: Tensor, size: Size) -> None:
        peers.load("dictionary_learning")
        if kind in self.ANNEALED:
            self.trainer = self._annealed(kind, rows.shape[1], size)
        else:
            self.trainer = trainers.dictionary_trainer(kind, rows.shape[1], size.latents, size.k, 1e-3)
            if kind in self.PENALTIES:
                self.trainer.l1_penalty = self.PENALTIES[kind]
        self.module = ae = self.trainer.ae
        self.trainer.dead_feature_threshold = size.dead_after * size.tokens
        encoder = ae.encoder.weight if hasattr(ae, "encoder") else ae.W_enc.t()
        names = ("threshold",) if kind == "jumprelu" else ("gate_bias", "b_enc", "encoder.bias")
        named = dict(ae.named_parameters())
        _set_apart(encoder, next(named[name] for name in names if name in named), rows, kind)
        self.batches = batches(rows, size)

    @classmethod
    def _annealed(cls, kind: str, width: int, size: Size) -> Any:
        """Its power falls three times."""
        name = {"p_anneal": "PAnnealTrainer", "gated_anneal": "GatedAnnealTrainer"}[kind]
        module = importlib.import_module(f"dictionary_learning.trainers.{kind}")
        return getattr(module, name)(
            steps=size.steps, activation_dim=width, dict_size=size.latents, layer=0, lm_name="none", warmup_steps=1,
            device="cpu", seed=0, lr=1e-3, sparsity_warmup_steps=3, anneal_start=size.steps // 4, n_sparsity_updates=4,
            sparsity_function="Lp^p", p_start=0.8, p_end=0.4, initial_sparsity_penalty=cls.PENALTIES[kind],
        )  # fmt: skip

    def go(self, first: int, last: int) -> list[Step]:
        found = []
        losses = trainers.losses_of(self.trainer)
        for number in range(first, last):
            silent = getattr(self.trainer, "num_tokens_since_fired", None)
            dead = None if silent is None else int((silent >= self.trainer.dead_feature_threshold).sum())
            self.trainer.update(number, self.batches[number])
            found.append(Step(losses[-1], dead))
        return found

    def save(self, folder: Path) -> None:
        torch.save({name: value.cpu() for name, value in self.trainer.ae.state_dict().items()}, folder / "ae_half.pt")

    def resume(self, folder: Path) -> None:
        self.trainer.ae.load_state_dict(torch.load(folder / "ae_half.pt"))


class _Killed(Exception):
    """In the middle of a step."""


class SparsifyRun:
    """sparsify's Trainer, from the model and its texts; it saves what it needs, and repeats a batch when it resumes."""

    KINDS: ClassVar[dict[str, dict[str, Any]]] = {
        "topk": {},
        "multi_topk": {"multi_topk": True},
        "groupmax": {"activation": "groupmax"},
        "transcoder": {"transcode": True},
    }

    def __init__(self, kind: str, rows: Tensor, size: Size, folder: Path) -> None:
        sparsify = peers.load("sparsify")
        from transformers import AutoModelForCausalLM

        self.half, self.folder = size.steps // 2, folder
        config = sparsify.TrainConfig(
            sparsify.SparseCoderConfig(num_latents=size.latents, k=size.k, **self.KINDS[kind]),
            batch_size=size.tokens // 128, layers=[SITE_LAYER], lr=1e-3, log_to_wandb=False, save_dir=str(folder),
            save_every=self.half + 1, auxk_alpha=1 / 32, optimizer="adam",
            dead_feature_threshold=size.dead_after * size.tokens, lr_warmup_steps=2,
        )  # fmt: skip
        self.trainer = sparsify.Trainer(config, windows(size), AutoModelForCausalLM.from_pretrained(example.MODEL_DIR))
        (self.module,) = self.trainer.saes.values()
        self.steps: list[Step] = []
        self.last = size.steps
        with torch.no_grad():
            self.module.encoder.weight[::4] *= 1e-3
        self.module.register_forward_hook(self._note, with_kwargs=True)

    def _note(self, module: Any, given: Any, named: dict[str, Any], out: Any) -> None:
        if len(self.steps) == self.last:
            raise _Killed
        loss = float((out.fvu + out.auxk_loss / 32 + out.multi_topk_fvu / 8).detach())
        self.steps.append(Step(loss, int(named["dead_mask"].sum())))

    def go(self, first: int, last: int) -> list[Step]:
        """Killed where that is not the end; the file of the half is there by then."""
        self.last = last - first + bool(first)
        with contextlib.suppress(_Killed), contextlib.redirect_stdout(sys.stderr):
            self.trainer.fit()
        return self.steps

    def save(self, folder: Path) -> None:
        """Its `fit` did."""

    def resume(self, folder: Path) -> None:
        with contextlib.redirect_stdout(sys.stderr):
            self.trainer.load_state(str(folder / "unnamed"))


TOOLS: dict[str, Any] = {"sae_lens": LensRun, "dictionary_learning": DictionaryRun, "sparsify": SparsifyRun}


def made(tool: str, kind: str, rows: Tensor, size: Size, folder: Path, *, fast: bool, nudge: float = 0.0) -> Any:
    """A run, the same for the same arguments; nudge: the relative size of a random change of its weights."""
    torch.manual_seed(0)
    run = TOOLS[tool](kind, rows, size, *([folder] if tool == "sparsify" else []))
    change(run.module, nudge)
    if fast:
        sk.accelerate(run.trainer)
    return run


@torch.no_grad()
def change(module: torch.nn.Module, nudge: float) -> None:
    """Every weight by so much of itself, up or down."""
    if nudge:
        for value in module.parameters():
            value.mul_(1 + nudge * torch.randn_like(value).sign())


def rows_of(size: Size) -> Tensor:
    """[n, 160]: what the bundled model has at one site, with a mean square of 1."""
    found = activations(BATCHES * size.tokens)[: BATCHES * size.tokens]
    return found / found.square().mean().sqrt()


def batches(rows: Tensor, size: Size) -> list[Tensor]:
    """One for each step, drawn from all rows."""
    generator = torch.Generator().manual_seed(1)
    return [rows[torch.randperm(len(rows), generator=generator)[: size.tokens]] for _ in range(size.steps)]


@functools.cache
def windows(size: Size) -> Any:
    """A dataset of the bundled text, 128 tokens a row, as many as the steps take, from the start again at its end."""
    from datasets import Dataset
    from transformers import AutoTokenizer

    tokenizer, ids = AutoTokenizer.from_pretrained(example.MODEL_DIR), []
    for document in sk.load_documents([str(example.EVAL_DATA)]):
        ids += tokenizer(document.text).input_ids
        if len(ids) >= BATCHES * size.tokens:
            break
    whole: Iterator[list[int]] = (ids[at : at + 128] for at in itertools.cycle(range(0, len(ids) - 127, 128)))
    taken = list(itertools.islice(whole, size.steps * (size.tokens // 128)))
    return Dataset.from_dict({"input_ids": taken}).with_format("torch")


@torch.no_grad()
def _set_apart(encoder: Tensor, bias: Tensor, rows: Tensor, kind: str) -> None:
    """The encoder's rows [F, d] and the bias or threshold [F] that decides what is active, of a new SAE."""
    products = rows[:2048] @ encoder.t()
    silent = torch.arange(len(bias)) % 4 == 0
    spread = products.std(0) * 8
    if kind.endswith("topk") or kind == "matryoshka":
        bias[silent] -= spread[silent]
        return
    level = products.sort(0, descending=True).values[len(products) // 40] + silent * spread
    bias.copy_(level.clamp(min=0.01) if kind == "jumprelu" else -level)
