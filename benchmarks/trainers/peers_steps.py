"""Single steps of dictionary_learning's trainers and of sparsify's coder, for `peers_trainers.py`, which times them."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

import saekernels as sk
from saekernels.bench.measure import trainers
from saekernels.optim import Adam

KINDS = {"batchtopk": "batch_topk", "matryoshka_batchtopk": "matryoshka"}
Step = Callable[[int], float]


def dictionary_step(args: argparse.Namespace, fast: bool) -> Step:
    """One `update` of dictionary_learning's trainer, by number: the loss. The same for the same arguments."""
    torch.manual_seed(0)
    kind = KINDS.get(args.architecture, args.architecture)
    trainer = trainers.dictionary_trainer(kind, args.synthetic, args.latents, args.k, args.lr)
    data = _rows(trainer.ae, args)
    _kill(trainer, args)
    if fast:
        sk.accelerate(trainer, optimizer=args.our_optimizer)
    losses = trainers.losses_of(trainer)

    def step(number: int) -> float:
        # From step 1 on: step 0 starts with a geometric median, which is no part of the others.
        trainer.update(number + 1, data[number % len(data)])
        return losses[-1]

    return step


def sparsify_step(args: argparse.Namespace, fast: bool) -> Step:
    """What sparsify's Trainer does with the activations of one batch, by number: the FVU."""
    from sparsify import SparseCoder, SparseCoderConfig

    torch.manual_seed(0)
    coder = SparseCoder(
        args.synthetic, SparseCoderConfig(num_latents=args.latents, k=args.k, multi_topk=args.multi_topk)
    )
    data = _rows(coder, args)
    dead = torch.rand(args.latents) < args.dead if args.dead else None
    if fast:
        sk.accelerate(coder)
    kind = Adam if fast and args.our_optimizer else torch.optim.Adam
    optimizer = kind(coder.parameters(), lr=args.lr)

    def step(number: int) -> float:
        coder.set_decoder_norm_to_unit_norm()
        out = coder(data[number % len(data)], dead_mask=dead)
        (out.fvu + out.auxk_loss / 32 + out.multi_topk_fvu / 8).backward()
        coder.remove_gradient_parallel_to_decoder_directions()
        optimizer.step()
        optimizer.zero_grad()
        return float(out.fvu.detach())

    return step


@torch.no_grad()
def _rows(ae: Any, args: argparse.Namespace) -> list[Tensor]:
    """8 batches: Gaussian rows, or sums of 20 latents each that encoder and decoder know, as after training."""
    if not args.late:
        return [torch.randn(args.batch, args.synthetic) for _ in range(8)]
    atoms = normalize(torch.randn(args.latents, args.synthetic), dim=1)
    for path, value in ae.named_parameters():
        if path in ("encoder.weight", "W_enc", "decoder.weight", "W_dec"):
            value.copy_(atoms if value.shape == atoms.shape else atoms.t())
        elif path in ("encoder.bias", "gate_bias") and args.architecture in ("standard", "gated"):
            value.fill_(-0.5)
        elif path == "threshold":
            value.fill_(0.5)
    return [atoms[torch.randint(args.latents, (args.batch, 20))].sum(1) for _ in range(8)]


def _kill(trainer: Any, args: argparse.Namespace) -> None:
    """Latents that are dead for AuxK, and stay so."""
    if args.dead and hasattr(trainer, "top_k_aux"):
        trainer.num_tokens_since_fired[torch.rand(args.latents) < args.dead] += 10**9
