"""SAELens' and sparsify's own trainers, plain and on this library's kernels: the same losses, step by step, and faster.

    pip install '.[eval,peers]'
    python benchmarks/peers_trainers.py sae_lens                   # TopK SAE on the bundled model's activations
    python benchmarks/peers_trainers.py sparsify                   # their Trainer on the bundled model and its text
    python benchmarks/peers_trainers.py sae_lens --synthetic 768 --latents 24576 --batch 1024 --steps 6

The only change is one line, `saekernels.accelerate(sae)`. Runs go first one way and then the other with the same seed;
printed are both loss curves, their largest relative difference, and the median time of a step.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import tempfile
import time
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

import saekernels as sk
from saekernels import example

SITE_LAYER, K = 2, 32


def activations(tokens: int) -> Tensor:
    """[n, 160]: the bundled model's outputs of one layer on the bundled text."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(example.MODEL_DIR).eval()
    tokenizer = AutoTokenizer.from_pretrained(example.MODEL_DIR)
    found: list[Tensor] = []
    count = 0
    for document in sk.load_documents([str(example.EVAL_DATA)]):
        ids = tokenizer(document.text, return_tensors="pt").input_ids[:, :256]
        with torch.inference_mode():
            found.append(model(ids, output_hidden_states=True).hidden_states[SITE_LAYER + 1][0, 1:].clone())
        count += len(found[-1])
        if count >= tokens:
            break
    return torch.cat(found)


def run_sae_lens(args: argparse.Namespace, fast: bool) -> tuple[list[float], list[float]]:
    """(loss, seconds) of every step of SAELens' SAETrainer."""
    from sae_lens import SAETrainer, TopKTrainingSAE, TopKTrainingSAEConfig
    from sae_lens.config import LoggingConfig, SAETrainerConfig

    torch.manual_seed(0)
    data = torch.randn(8 * args.batch, args.synthetic) if args.synthetic else activations(8 * args.batch)
    sae = TopKTrainingSAE(TopKTrainingSAEConfig(d_in=data.shape[1], d_sae=args.latents, k=K))
    if fast:
        sk.accelerate(sae)

    def batches() -> Iterator[Tensor]:
        for step in itertools.count():
            yield data[torch.randperm(len(data), generator=torch.Generator().manual_seed(step))[: args.batch]]

    config = SAETrainerConfig(
        total_training_samples=args.steps * args.batch, train_batch_size_samples=args.batch, lr=args.lr, lr_end=args.lr,
        dead_feature_window=args.steps // 2, logger=LoggingConfig(log_to_wandb=False),
    )  # fmt: skip
    trainer = SAETrainer(config, sae, batches())
    losses, times = [], []
    own_step = trainer.step

    def step(batch: Tensor) -> Any:
        start = time.perf_counter()
        out = own_step(batch)
        times.append(time.perf_counter() - start)
        losses.append(float(out.loss.detach()))
        return out

    trainer.step = step  # type: ignore[method-assign]
    trainer.fit()
    return losses, times


def run_sparsify(args: argparse.Namespace, fast: bool) -> tuple[list[float], list[float]]:
    """(FVU, seconds of the SAE's forward and backward) of every step of sparsify's Trainer."""
    from datasets import Dataset
    from sparsify import SparseCoderConfig, TrainConfig, Trainer
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(example.MODEL_DIR)
    tokenizer = AutoTokenizer.from_pretrained(example.MODEL_DIR)
    texts = (document.text for document in sk.load_documents([str(example.EVAL_DATA)]))
    ids = list(itertools.chain.from_iterable(tokenizer(text).input_ids for text in itertools.islice(texts, 60)))
    rows = max(1, args.batch // 128)
    windows = [ids[i : i + 128] for i in range(0, min(len(ids), args.steps * rows * 128) - 127, 128)]
    dataset = Dataset.from_dict({"input_ids": windows}).with_format("torch")
    with tempfile.TemporaryDirectory() as folder:
        config = TrainConfig(
            SparseCoderConfig(num_latents=args.latents, k=K), batch_size=rows, grad_acc_steps=1, layers=[SITE_LAYER],
            log_to_wandb=False, save_dir=folder, save_every=10**9, auxk_alpha=0.0,
            optimizer=args.optimizer,
        )  # fmt: skip
        trainer = Trainer(config, dataset, model)
        (coder,) = trainer.saes.values()
        if fast:
            sk.accelerate(coder)
        losses, times = [], []
        coder.register_forward_hook(lambda module, given, out: losses.append(float(out.fvu.detach())))
        starts: list[float] = []
        coder.register_forward_pre_hook(lambda module, given: starts.append(time.perf_counter()))
        coder.W_dec.register_post_accumulate_grad_hook(lambda _: times.append(time.perf_counter() - starts[-1]))
        trainer.fit()
    return losses, times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tool", choices=["sae_lens", "sparsify"])
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--batch", type=int, default=1024, help="tokens per step")
    parser.add_argument("--latents", type=int, default=5120)
    about = "sparsify's; signum takes only signs of gradients, so rounding near 0 shows in the loss after some steps"
    parser.add_argument("--optimizer", choices=["adam", "signum", "muon"], default="adam", help=about)
    parser.add_argument("--lr", type=float, default=3e-4)
    parser.add_argument("--synthetic", type=int, default=0, metavar="WIDTH", help="Gaussian rows of this width instead")
    args = parser.parse_args()
    run = run_sae_lens if args.tool == "sae_lens" else run_sparsify
    plain, plain_times = run(args, fast=False)
    fast, fast_times = run(args, fast=True)
    for step in sorted({*range(0, len(plain), max(1, len(plain) // 10)), len(plain) - 1}):
        print(f"step {step:4}: plain {plain[step]:.6f}, accelerated {fast[step]:.6f}")
    worst = max(abs(a - b) / abs(a) for a, b in zip(plain, fast, strict=True))
    own, ours = statistics.median(plain_times[1:]), statistics.median(fast_times[1:])
    print(f"{len(plain)} steps, largest relative difference of the loss {worst:.1e}")
    print(f"median step: plain {1e3 * own:.1f} ms, accelerated {1e3 * ours:.1f} ms, {own / ours:.2f}x")


if __name__ == "__main__":
    main()
