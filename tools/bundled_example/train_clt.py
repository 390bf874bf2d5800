"""Stage 6: a cross-layer transcoder of the demo's MLPs, and transcoders of each layer with as many parameters.

    python tools/bundled_example/train_clt.py --work WORK --steps 3000

Both read the input of every MLP and give its output, in one pass over the training text that corpus.py left in WORK,
on the model that is shipped (or `--model`). TopK with k of its own in each layer, so that the cross-layer one runs in a
forward pass; k is the same for both, and so is the number of parameters: (L + 3) / 4 times as many latents where no row
writes at other layers. Loss: squared error over variance, summed over layers, and AuxK for latents that have not fired
for a while, whose rows reconstruct the errors of all their targets. Adam; the rows of a decoder, all targets side by
side, are kept at unit norm. What is read and written is scaled to a mean square of 1 a feature while training; the
scales are folded into the weights at the end.

A step is a number of windows that their number and `--seed` choose, on one thread, so the same command makes the same
bits; WORK/clt_checkpoint.pt lets a killed run go on with them. Writes WORK/clt and WORK/plt, circuit-tracer's layouts
in float16, and WORK/clt.log.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer

import saekernels as sk
from corpus import read_documents
from progress import bar
from saekernels.example import MODEL_DIR
from saekernels.optim import Adam
from saekernels.training import DeadLatents, auxk_loss
from saekernels.training.activations import SiteActivations
from tokenizer import encode, save_array
from train_saes import factor_at
from windows import PAD_ID, TrainingWindows


@dataclass(frozen=True)
class Plan:
    """Everything that decides a run."""

    n_latents: int = 640
    k: int = 32
    lr: float = 3e-3
    windows_per_step: int = 8
    steps: int = 3000
    warmup: float = 0.02
    decay: float = 0.3
    dead_after: int = 200_000
    aux_k: int = 64
    aux_weight: float = 1 / 32
    seed: int = 1


class Trainer:
    """Transcoders in training, of layers `first`, `first` + 1, ...: one that spans them all, or one of one layer."""

    def __init__(self, first: int, samples: Sequence[tuple[Tensor, Tensor]], n_latents: int, plan: Plan) -> None:
        self.plan, self.layers = plan, range(first, first + len(samples))
        torch.manual_seed(plan.seed + first)
        width = samples[0][0].shape[1]
        self.clt = sk.CrossLayerTranscoder(width, n_latents, len(samples), sk.TopK(plan.k))
        self.scales = [tuple(_scale(one) for one in pair) for pair in samples]
        with torch.no_grad():
            for layer, (x, y) in enumerate(samples):
                source, (of_x, of_y) = self.clt.source(layer), self.scales[layer]
                source.W_enc.normal_(std=width**-0.5)
                source.b_enc.copy_(-source.W_enc @ x.mean(0) * of_x)  # type: ignore[union-attr]
                self.clt.b_dec[layer].copy_(y.mean(0) * of_y)
        decoders = [self.clt.source(layer).W_dec for layer in range(len(samples))]
        others = [one for one in self.clt.parameters() if not any(one is decoder for decoder in decoders)]
        groups = [{"params": others}, {"params": decoders, "project": True, "unit_norm": True}]
        self.optimizer = Adam(groups, lr=plan.lr)
        self.dead = nn.ModuleList(DeadLatents(n_latents, plan.dead_after) for _ in samples)
        self.fvu = [1.0] * len(samples)

    def step(self, pairs: Sequence[tuple[Tensor, Tensor]], factor: float) -> None:
        """One step on (what is read, what is written) [T, d] of each layer."""
        scaled = zip(pairs, self.scales, strict=True)
        xs, ys = zip(*((x * of_x, y * of_y) for (x, y), (of_x, of_y) in scaled), strict=True)
        codes = self.clt.encode(xs)
        outs = self.clt.decode_all(codes)
        fvus = [(out - y).square().sum() / (y - y.mean(0)).square().sum() for out, y in zip(outs, ys, strict=True)]
        loss = torch.stack(fvus).sum()
        for layer, x in enumerate(xs):
            dead = self.dead[layer].indices()  # type: ignore[operator]
            out, y = torch.cat(outs[layer:], 1).detach(), torch.cat(ys[layer:], 1)
            loss = loss + self.plan.aux_weight * auxk_loss(self.clt.source(layer), x, out, dead, self.plan.aux_k, y)
        loss.backward()
        for group in self.optimizer.param_groups:
            group["lr"] = self.plan.lr * factor
        self.optimizer.step()
        self.optimizer.zero_grad()
        for layer, one in enumerate(codes):
            self.dead[layer].update(one)  # type: ignore[operator]
            self.fvu[layer] = 0.98 * self.fvu[layer] + 0.02 * fvus[layer].item()

    @torch.no_grad()
    def folded(self) -> sk.CrossLayerTranscoder:
        """The transcoder for what the model itself reads and writes.

        With the selection that circuit-tracer's files mean, which keeps what is chosen as it is: the same where k
        pre-activations are positive.
        """
        chosen = sk.TopK(self.plan.k, relu=False)
        made = sk.CrossLayerTranscoder(self.clt.d_in, self.clt.source(0).n_latents, len(self.layers), chosen)
        made.load_state_dict(self.clt.state_dict())
        for layer, (of_x, of_y) in enumerate(self.scales):
            made.source(layer).W_enc.mul_(of_x)
            made.b_dec[layer].div_(of_y)
            for target in range(layer, len(self.layers)):
                made.source(layer).decoder_to(target - layer).div_(self.scales[target][1])
        return made

    def state(self) -> dict[str, object]:
        """Everything that changes."""
        return {
            "clt": self.clt.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "dead": self.dead.state_dict(),
            "fvu": self.fvu,
        }

    def load(self, state: dict[str, object]) -> None:
        """Go on from a `state`."""
        self.clt.load_state_dict(state["clt"])  # type: ignore[arg-type]
        self.optimizer.load_state_dict(state["optimizer"])  # type: ignore[arg-type]
        self.dead.load_state_dict(state["dead"])  # type: ignore[arg-type]
        self.fvu = list(state["fvu"])  # type: ignore[call-overload]


def _scale(sample: Tensor) -> float:
    return float((sample - sample.mean(0)).square().mean() ** -0.5)


def write(work: Path, trainers: Sequence[Trainer]) -> None:
    """WORK/clt and WORK/plt, in float16."""
    clt = trainers[0].folded().half()
    layers = range(clt.n_layers)
    clt.sites = sites = tuple(f"blocks.{layer}.mlp.hook_in -> blocks.{layer}.mlp.hook_out" for layer in layers)
    apart = []
    for trainer in trainers[1:]:
        one = trainer.folded()
        sae = sk.SAE(one.d_in, one.source(0).n_latents, one.source(0).activation, pre_bias="none")
        sae.load_state_dict({**one.source(0).state_dict(), "b_dec": one.b_dec[0].detach()})
        apart.append(sae.half())
    for name, made in (("clt", clt), ("plt", sk.TranscoderSet(apart, sites))):
        shutil.rmtree(work / name, ignore_errors=True)
        sk.save_cross_layer(made, work / name, metadata={"model_name": "saekernels example"})


def plt_latents(n_latents: int, layers: int) -> int:
    """Latents of a layer's own transcoder for as many parameters as a cross-layer one of `n_latents` has a layer."""
    return n_latents * (layers + 3) // 4


def tokens_of(work: Path, model: Path) -> np.ndarray:
    """The training text as the model's own tokenizer cuts it, made once."""
    path = work / "clt_train.npy"
    if not path.exists():
        texts = [document["text"] for document in read_documents(work / "train.jsonl.gz")]
        save_array(path, np.concatenate(encode(AutoTokenizer.from_pretrained(model), texts, "training tokens")))
    return np.load(path)


def train(work: Path, model_dir: Path, tokens: np.ndarray, plan: Plan, save_every: int = 100) -> list[Trainer]:
    """Train from the checkpoint, if there is one, to the end of the plan: the cross-layer one, then one per layer.

    tokens: the training text, as the model's tokenizer cuts it.
    """
    torch.set_num_threads(1)
    model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32).eval()
    layers = model.config.num_hidden_layers
    read = SiteActivations(model, [f"model.layers.{layer}.mlp@module" for layer in range(layers)])
    windows = TrainingWindows(tokens, model.config.max_position_embeddings, plan.seed)
    count = plan.windows_per_step

    def batch(number: int) -> list[tuple[Tensor, Tensor]]:
        ids = torch.from_numpy(windows.batch(number * count, count))
        return read([(ids, ids > PAD_ID)])

    sample = batch(0)
    wide = plt_latents(plan.n_latents, layers)
    trainers = [Trainer(0, sample, plan.n_latents, plan)]
    trainers += [Trainer(layer, [pair], wide, plan) for layer, pair in enumerate(sample)]
    step, checkpoint = 0, work / "clt_checkpoint.pt"
    if checkpoint.exists():
        saved = torch.load(checkpoint, weights_only=True)
        if saved["plan"] != asdict(plan):
            raise SystemExit(f"{checkpoint}: of another plan, {saved['plan']}; delete it to begin anew")
        step = saved["step"]
        for trainer, state in zip(trainers, saved["trainers"], strict=True):
            trainer.load(state)
    with bar() as progress:
        task = progress.add_task("transcoders", total=plan.steps, completed=step, note="")
        while step < plan.steps:
            pairs = batch(step)
            for trainer in trainers:
                trainer.step([pairs[layer] for layer in trainer.layers], factor_at(step / plan.steps, plan))
            step += 1
            note = " ".join(f"{sum(group) / layers:.4f}" for group in _fvus(trainers))
            progress.update(task, completed=step, note=f"FVU {note}")
            if step % save_every == 0 or step == plan.steps:
                _save(checkpoint, trainers, step, plan)
                _log(work, trainers, step)
    return trainers


def _fvus(trainers: Sequence[Trainer]) -> tuple[list[float], list[float]]:
    """Of each layer: by the cross-layer transcoder, and by its own."""
    return trainers[0].fvu, [trainer.fvu[0] for trainer in trainers[1:]]


def _save(path: Path, trainers: Sequence[Trainer], step: int, plan: Plan) -> None:
    part = path.with_suffix(".part")
    torch.save({"plan": asdict(plan), "step": step, "trainers": [one.state() for one in trainers]}, part)
    os.replace(part, path)


def _log(work: Path, trainers: Sequence[Trainer], step: int) -> None:
    clt, plt = _fvus(trainers)
    dead = [len(one.indices()) for trainer in trainers for one in trainer.dead]  # type: ignore[operator]
    record = {"step": step, "clt_fvu": [round(one, 5) for one in clt], "plt_fvu": [round(one, 5) for one in plt]}
    with open(work / "clt.log", "a") as file:
        file.write(json.dumps({**record, "dead": dead}) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--model", type=Path, default=MODEL_DIR)
    parser.add_argument("--steps", type=int, default=Plan.steps)
    parser.add_argument("--latents", type=int, default=Plan.n_latents)
    parser.add_argument("--k", type=int, default=Plan.k)
    parser.add_argument("--seed", type=int, default=Plan.seed)
    args = parser.parse_args()
    plan = Plan(n_latents=args.latents, k=args.k, steps=args.steps, seed=args.seed)
    write(args.work, train(args.work, args.model, tokens_of(args.work, args.model), plan))


if __name__ == "__main__":
    main()
