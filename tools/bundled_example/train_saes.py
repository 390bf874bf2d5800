"""Stage 5: train a TopK SAE on the output of every layer of the demo's model, all in one pass over training text.

    python tools/bundled_example/train_saes.py --work WORK --minutes 14

The SAEs are `saekernels.SAE` modules, trained through the library's own sparse ops. Loss: squared error over variance,
and for latents that have not fired for a while the AuxK term of Gao et al. 2024 (arXiv 2406.04093): the dead latents
reconstruct the residual. Adam; decoder rows are kept at unit norm and their gradient at right angles to them.
Inputs are scaled to a mean square of 1 a feature while training; the scale is folded into the weights at the end.
Special tokens are left out. The schedule follows the clock as in `train_lm.py`; checkpoints make it resumable.
Writes WORK/saes/layer_{i}/ in the SAELens format and WORK/saes.log.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from itertools import repeat
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

import saekernels
from progress import bar
from saekernels import SAE, TopK
from windows import PAD_ID, TrainingWindows


@dataclass(frozen=True)
class Plan:
    """Everything that decides a run."""

    n_latents: int = 2560
    k: int = 32
    lr: float = 3e-3
    windows_per_step: int = 8
    minutes: float = 14.0
    steps: int | None = None
    warmup: float = 0.02
    decay: float = 0.3
    dead_after: int = 200_000
    aux_k: int = 64
    aux_weight: float = 1 / 32
    seed: int = 1


class Activations:
    """The outputs of all layers of a model for a batch of windows, at text tokens only."""

    def __init__(self, model: torch.nn.Module) -> None:
        self.model, self.kept = model, {}
        for number, layer in enumerate(model.model.layers):
            layer.register_forward_hook(self._hook(number))

    def _hook(self, number: int):  # type: ignore[no-untyped-def]
        def hook(_module: object, _args: object, output: Tensor | tuple[Tensor, ...]) -> None:
            self.kept[number] = output if isinstance(output, Tensor) else output[0]

        return hook

    @torch.no_grad()
    def __call__(self, ids: Tensor) -> list[Tensor]:
        """Layer -> [tokens, d]."""
        self.model.model(input_ids=ids)
        return [self.kept[number][ids > PAD_ID] for number in range(len(self.kept))]


class Trainer:
    """One SAE in training: module, optimizer, input scale, and when each latent last fired."""

    def __init__(self, sample: Tensor, plan: Plan, seed: int) -> None:
        self.plan = plan
        torch.manual_seed(seed)
        self.sae = SAE(sample.size(1), plan.n_latents, TopK(plan.k))
        centre = sample.mean(0)
        self.scale = float(((sample - centre).square().mean()) ** -0.5)
        with torch.no_grad():
            self.sae.b_dec.copy_(centre * self.scale)
        self.optimizer = torch.optim.Adam(self.sae.parameters(), lr=plan.lr, betas=(0.9, 0.999), eps=1e-8)
        self.idle = torch.zeros(plan.n_latents, dtype=torch.int64)
        self.fvu = 1.0

    def _aux(self, x: Tensor, error: Tensor) -> Tensor:
        """How badly the dead latents reconstruct the error that the living ones leave."""
        dead = torch.nonzero(self.idle > self.plan.dead_after).squeeze(1)
        if len(dead) < self.plan.k:
            return error.new_zeros(())
        sae, k = self.sae, min(self.plan.aux_k, len(dead))
        codes = saekernels.encode_topk(x, sae.W_enc[dead], sae.b_enc[dead], k=k, pre_bias=sae.b_dec.detach())
        guess = saekernels.decode(codes.values, codes.indices, sae.W_dec[dead])
        return (guess - error).square().mean() / error.square().mean().clamp_min(1e-12)

    def step(self, raw: Tensor, factor: float) -> None:
        x = raw * self.scale
        out, codes = self.sae.forward_with_codes(x)
        error = x - out
        fvu = error.square().mean() / (x - x.mean(0)).square().mean()
        (fvu + self.plan.aux_weight * self._aux(x, error.detach())).backward()
        self._update(factor)
        self.idle += len(x)
        self.idle[codes.indices[codes.values > 0].long()] = 0
        self.fvu = 0.95 * self.fvu + 0.05 * fvu.item()

    @torch.no_grad()
    def _update(self, factor: float) -> None:
        rows, gradient = self.sae.W_dec, self.sae.W_dec.grad
        gradient.sub_((gradient * rows).sum(1, keepdim=True) * rows)
        self.optimizer.param_groups[0]["lr"] = self.plan.lr * factor
        self.optimizer.step()
        self.optimizer.zero_grad()
        rows.div_(rows.norm(dim=1, keepdim=True))

    @torch.no_grad()
    def folded(self) -> SAE:
        """The SAE for unscaled inputs: codes scale with the input, so only the biases change."""
        plain = SAE(self.sae.d_in, self.sae.n_latents, TopK(self.plan.k))
        plain.load_state_dict(self.sae.state_dict())
        plain.b_enc.div_(self.scale)
        plain.b_dec.div_(self.scale)
        return plain

    def state(self) -> dict[str, object]:
        return {"sae": self.sae.state_dict(), "optimizer": self.optimizer.state_dict(), "idle": self.idle,
                "scale": self.scale, "fvu": self.fvu}  # fmt: skip

    def load(self, state: dict[str, object]) -> None:
        self.sae.load_state_dict(state["sae"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.idle, self.scale, self.fvu = state["idle"], state["scale"], state["fvu"]


def save_checkpoint(path: Path, trainers: list[Trainer], step: int, seconds: float) -> None:
    part = path.with_suffix(".part")
    torch.save({"trainers": [t.state() for t in trainers], "step": step, "seconds": seconds}, part)
    os.replace(part, path)


def factor_at(done: float, plan: Plan) -> float:
    return max(1e-3, min(1.0, done / plan.warmup, (1 - done) / plan.decay))


def train(work: Path, plan: Plan, threads: int, save_every: float = 120.0) -> None:
    """Train from the checkpoint, if there is one, to the end of the plan; writes WORK/saes."""
    model = AutoModelForCausalLM.from_pretrained(work / "model", dtype=torch.float32).eval()
    activations = Activations(model)
    windows = TrainingWindows(np.load(work / "train.npy"), model.config.max_position_embeddings, plan.seed)
    count = plan.windows_per_step
    trainers = [
        Trainer(sample, plan, plan.seed + layer)
        for layer, sample in enumerate(activations(torch.from_numpy(windows.batch(0, 2 * count))))
    ]
    step, seconds, checkpoint = 0, 0.0, work / "saes_checkpoint.pt"
    if checkpoint.exists():
        saved = torch.load(checkpoint, weights_only=True)
        step, seconds = saved["step"], saved["seconds"]
        for trainer, state in zip(trainers, saved["trainers"], strict=True):
            trainer.load(state)
    torch.set_num_threads(1)
    last = time.monotonic()
    with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool, bar() as progress:
        task = progress.add_task("sparse autoencoders", total=1000, note="")
        upcoming = pool.submit(activations, torch.from_numpy(windows.batch(step * count, count)))
        while (done := step / plan.steps if plan.steps else seconds / (60 * plan.minutes)) < 1:
            started = time.monotonic()
            inputs = upcoming.result()
            upcoming = pool.submit(activations, torch.from_numpy(windows.batch((step + 1) * count, count)))
            list(pool.map(Trainer.step, trainers, inputs, repeat(factor_at(done, plan))))
            step += 1
            seconds += time.monotonic() - started
            progress.update(task, completed=int(1000 * done), note=f"step {step} FVU {trainers[-1].fvu:.4f}")
            if time.monotonic() - last > save_every:
                save_checkpoint(checkpoint, trainers, step, seconds)
                log(work, trainers, step, seconds, plan)
                last = time.monotonic()
    save_checkpoint(checkpoint, trainers, step, seconds)
    log(work, trainers, step, seconds, plan)
    write(work, trainers, plan)


def log(work: Path, trainers: list[Trainer], step: int, seconds: float, plan: Plan) -> None:
    record = {
        "step": step, "minutes": round(seconds / 60, 2), "fvu": [round(t.fvu, 5) for t in trainers],
        "dead": [round(float((t.idle > plan.dead_after).float().mean()), 4) for t in trainers],
    }  # fmt: skip
    with open(work / "saes.log", "a") as file:
        file.write(json.dumps(record) + "\n")


def write(work: Path, trainers: list[Trainer], plan: Plan) -> None:
    part = work / "saes.part"
    shutil.rmtree(part, ignore_errors=True)
    for layer, trainer in enumerate(trainers):
        saekernels.save(trainer.folded(), part / f"layer_{layer}")
    (part / "plan.json").write_text(json.dumps(asdict(plan), indent=1) + "\n")
    shutil.rmtree(work / "saes", ignore_errors=True)
    os.replace(part, work / "saes")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=Plan.minutes)
    parser.add_argument("--steps", type=int, default=None)
    parser.add_argument("--latents", type=int, default=Plan.n_latents)
    parser.add_argument("--k", type=int, default=Plan.k)
    parser.add_argument("--seed", type=int, default=Plan.seed)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    plan = Plan(n_latents=args.latents, k=args.k, minutes=args.minutes, steps=args.steps, seed=args.seed)
    train(args.work, plan, args.threads)


if __name__ == "__main__":
    main()
