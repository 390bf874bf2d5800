"""Other tools' own trainers, plain and on this library's kernels: the same losses, step by step, and faster.

    pip install '.[eval,peers]'
    python benchmarks/trainers/peers_trainers.py sae_lens  # TopK SAE on the bundled model's activations
    python benchmarks/trainers/peers_trainers.py sparsify  # their Trainer on the bundled model and its text
    python benchmarks/trainers/peers_trainers.py sae_lens --synthetic 768 --latents 24576 --batch 1024 --steps 6
    python benchmarks/trainers/peers_trainers.py sae_lens --architecture jumprelu --late --synthetic 768 --latents 24576
    python benchmarks/trainers/peers_trainers.py dictionary_learning --architecture batchtopk --synthetic 768
    python benchmarks/trainers/peers_trainers.py sparsify --synthetic 768 --multi-topk --dead 0.1 --cpu-time

The only change is one line, `saekernels.accelerate(...)`. Both ways have the same seed and go in turns, step by step;
sparsify's Trainer, which takes no single steps, goes first one way and then the other, unless rows are synthetic: then
its coder steps as the Trainer has it step. Printed are both loss curves, their largest relative difference, the median
times of a step and the median of the ratios of steps.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

import saekernels as sk
from peers_steps import KINDS, dictionary_step, sparsify_step
from saekernels import example
from saekernels.bench.measure import trainers

SITE_LAYER = 2


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


def lens_trainer(args: argparse.Namespace, fast: bool) -> Any:
    """SAELens' SAETrainer of a training SAE, the same for the same arguments, and the batches that it reads."""
    torch.manual_seed(0)
    data = torch.randn(8 * args.batch, args.synthetic) if args.synthetic else activations(8 * args.batch)
    kind = KINDS.get(args.architecture, args.architecture)
    options = {"jumprelu_init_threshold": 0.5} if args.late and kind == "jumprelu" else {}
    sae = trainers.saelens_sae(kind, data.shape[1], args.latents, args.k, **options)
    if args.late:
        data = late(sae, len(data))

    def batches() -> Iterator[Tensor]:
        for step in itertools.count():
            yield data[torch.randperm(len(data), generator=torch.Generator().manual_seed(step))[: args.batch]]

    dead_after = args.dead_after or args.steps // 2
    trainer = trainers.saelens_trainer(
        sae, batches(), batch=args.batch, steps=args.steps, lr=args.lr, dead_after=dead_after
    )
    return sk.accelerate(trainer, optimizer=args.our_optimizer) if fast else trainer


@torch.no_grad()
def late(sae: Any, rows: int) -> Tensor:
    """Rows that are sums of 20 of the SAE's latents each, whose encoder and decoder know them: as after training."""
    sae.W_dec.data = torch.nn.functional.normalize(torch.randn_like(sae.W_dec), dim=1)
    sae.W_enc.data = sae.W_dec.data.t().clone(memory_format=torch.contiguous_format)
    for name in {"standard": ["b_enc"], "gated": ["b_gate"]}.get(sae.cfg.architecture(), []):
        getattr(sae, name).fill_(-0.5)
    return torch.stack([sae.W_dec[torch.randint(len(sae.W_dec), (20,))].sum(0) for _ in range(rows)])


def timed(trainer: Any, clock: Callable[[], float] = time.perf_counter) -> tuple[list[float], list[float]]:
    """(losses, seconds), which every step of the trainer adds to from now on."""
    losses, times = [], []
    own_step = trainer.step

    def step(batch: Tensor) -> Any:
        start = clock()
        out = own_step(batch)
        times.append(clock() - start)
        losses.append(float(out.loss.detach()))
        return out

    trainer.step = step
    return losses, times


def run_sae_lens(args: argparse.Namespace, fast: bool) -> tuple[list[float], list[float]]:
    """(loss, seconds) of every step of SAELens' SAETrainer."""
    trainer = lens_trainer(args, fast)
    found = timed(trainer)
    trainer.fit()
    return found


def in_turns(args: argparse.Namespace) -> list[tuple[list[float], list[float]]]:
    """(loss, seconds) of every step, plain and accelerated, of two of SAELens' trainers that step in turns."""
    trainers = [lens_trainer(args, fast) for fast in (False, True)]
    found = [timed(trainer, clock_of(args)) for trainer in trainers]
    for _ in range(args.steps):
        for trainer in trainers:
            trainer.step(next(trainer.data_provider))
            trainer.n_training_steps += 1
    return found


def clock_of(args: argparse.Namespace) -> Callable[[], float]:
    """Wall-clock seconds, or those that all threads computed, which others on the machine leave alone."""
    return time.process_time if args.cpu_time else time.perf_counter


def steps_in_turns(args: argparse.Namespace) -> list[tuple[list[float], list[float]]]:
    """(loss, seconds) of every step, plain and accelerated, of dictionary_learning's trainers or sparsify's coders."""
    make = dictionary_step if args.tool == "dictionary_learning" else sparsify_step
    steps = [make(args, fast) for fast in (False, True)]
    found: list[tuple[list[float], list[float]]] = [([], []), ([], [])]
    clock = clock_of(args)
    for number in range(args.steps):
        for step, (losses, times) in zip(steps, found, strict=True):
            start = clock()
            losses.append(step(number))
            times.append(clock() - start)
    return found


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
            SparseCoderConfig(num_latents=args.latents, k=args.k), batch_size=rows, grad_acc_steps=1,
            layers=[SITE_LAYER], log_to_wandb=False, save_dir=folder, save_every=10**9, auxk_alpha=0.0,
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
    parser.add_argument("tool", choices=["sae_lens", "sparsify", "dictionary_learning"])
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--batch", type=int, default=1024, help="tokens per step")
    parser.add_argument("--latents", type=int, default=5120)
    parser.add_argument("--k", type=int, default=32, help="active latents of a token")
    kinds = ["topk", "batchtopk", "matryoshka_batchtopk", "jumprelu", "standard", "gated"]
    parser.add_argument("--architecture", choices=kinds, default="topk", help="what is trained")
    about = "sparsify's; signum takes only signs of gradients, so rounding near 0 shows in the loss after some steps"
    parser.add_argument("--optimizer", choices=["adam", "signum", "muon"], default="adam", help=about)
    parser.add_argument("--lr", type=float, default=3e-4)
    parser.add_argument("--dead-after", type=int, metavar="STEPS", help="SAELens: of silence; by default half of all")
    parser.add_argument("--synthetic", type=int, default=0, metavar="WIDTH", help="Gaussian rows of this width instead")
    parser.add_argument("--late", action="store_true", help="rows are sums of 20 latents, as after training")
    parser.add_argument("--dead", type=float, default=0.0, metavar="SHARE", help="of latents, for AuxK; not SAELens'")
    parser.add_argument("--multi-topk", action="store_true", help="sparsify's, with --synthetic")
    parser.add_argument("--our-optimizer", action="store_true", help="the accelerated one steps with our Adam")
    parser.add_argument("--cpu-time", action="store_true", help="CPU seconds of all threads, not the clock on the wall")
    args = parser.parse_args()
    if not args.synthetic and (args.late or args.tool == "dictionary_learning"):
        parser.error(f"{'--late' if args.late else args.tool}: needs --synthetic WIDTH")
    if args.tool == "sae_lens":
        runs = in_turns(args)
    elif args.synthetic:
        runs = steps_in_turns(args)
    else:
        runs = [run_sparsify(args, fast) for fast in (False, True)]
    (plain, plain_times), (fast, fast_times) = runs
    for step in sorted({*range(0, len(plain), max(1, len(plain) // 10)), len(plain) - 1}):
        print(f"step {step:4}: plain {plain[step]:.6f}, accelerated {fast[step]:.6f}")
    worst = max(abs(a - b) / abs(a) for a, b in zip(plain, fast, strict=True))
    own, ours = statistics.median(plain_times[1:]), statistics.median(fast_times[1:])
    ratio = statistics.median(a / b for a, b in zip(plain_times[1:], fast_times[1:], strict=True))
    print(f"{len(plain)} steps, largest relative difference of the loss {worst:.1e}")
    print(f"median step: plain {1e3 * own:.1f} ms, accelerated {1e3 * ours:.1f} ms, paired {ratio:.2f}x")


if __name__ == "__main__":
    main()
