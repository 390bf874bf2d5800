"""Stage 3: train the demo's language model, a small Llama with tied embeddings.

    python tools/bundled_example/train_lm.py --work WORK --minutes 65
    python tools/bundled_example/train_lm.py --work WORK --width 64 --steps 898 --snapshots    # for `saekernels over`

The schedule follows the clock: linear warm-up, constant, linear decay over the last 40 % of `--minutes`, so a slow
machine gives a shorter run, not an unfinished one (`--steps N` fixes the number of steps instead). Muon trains the
matrices of the blocks, AdamW the embedding and the norms. A checkpoint is written every few minutes; the same command
goes on from it. The log line (WORK/lm.log) has the held-out CE of every domain in nats per token.
The finished model lies in WORK/model. `--snapshots` also keeps the model as it was after 0, 1, 2, 4, 8, ... steps and
at the end, in WORK/snapshots/step-N.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from muon import Muon
from parallel import Workers
from progress import bar
from windows import BOS_ID, EOS_ID, PAD_ID, HeldOut, TrainingWindows, held_out


@dataclass(frozen=True)
class Plan:
    """Everything that decides a run."""

    width: int = 160
    layers: int = 4
    context: int = 256
    windows_per_step: int = 16
    windows_at_once: int = 4
    lr_muon: float = 0.02
    lr_adam: float = 4e-3
    minutes: float = 65.0
    steps: int | None = None
    warmup: float = 0.01
    decay: float = 0.4
    seed: int = 0


def build(plan: Plan, vocab: int) -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=vocab, hidden_size=plan.width, intermediate_size=plan.width * 8 // 3 // 32 * 32,
        num_hidden_layers=plan.layers, num_attention_heads=plan.width // 32, num_key_value_heads=plan.width // 32,
        max_position_embeddings=plan.context, tie_word_embeddings=True, bos_token_id=BOS_ID, eos_token_id=EOS_ID,
        pad_token_id=PAD_ID, use_cache=False,
    )  # fmt: skip
    torch.manual_seed(plan.seed)
    return LlamaForCausalLM(config)


def optimizers(model: LlamaForCausalLM, plan: Plan) -> list[torch.optim.Optimizer]:
    blocks = [p for name, p in model.named_parameters() if p.ndim == 2 and ".layers." in name]
    chosen = {id(p) for p in blocks}
    rest = [p for p in model.parameters() if id(p) not in chosen]
    return [
        Muon(blocks, lr=plan.lr_muon, weight_decay=0.1),
        torch.optim.AdamW(rest, lr=plan.lr_adam, betas=(0.9, 0.95), weight_decay=0.01, fused=True),
    ]


def schedule(done: float, plan: Plan) -> float:
    """Learning-rate factor when the share `done` of the run is over."""
    return min(1.0, done / plan.warmup, max(0.0, (1 - done) / plan.decay)) if plan.warmup else 1.0


@torch.no_grad()
def domain_ce(model: LlamaForCausalLM, held: HeldOut, batch: int = 8) -> dict[str, tuple[float, int]]:
    """Domain -> (mean CE in nats, predictions), over predictions between text tokens."""
    sums: dict[str, list[float]] = {}
    counted = torch.from_numpy(held.counted())
    for start in range(0, len(held.ids), batch):
        ids = torch.from_numpy(held.ids[start : start + batch])
        logits = model(input_ids=ids).logits[:, :-1]
        ce = F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none").view(len(ids), -1)
        keep = counted[start : start + batch]
        for row, name in enumerate(held.domain[start : start + batch]):
            total = sums.setdefault(str(name), [0.0, 0])
            total[0] += ce[row][keep[row]].double().sum().item()
            total[1] += int(keep[row].sum())
    return {name: (total / max(count, 1), count) for name, (total, count) in sorted(sums.items())}


class Run:
    """The state of a run: model, optimizers, how far it has come."""

    def __init__(self, work: Path, out: Path, plan: Plan, threads: int) -> None:
        self.out, self.plan = out, plan
        self.model = build(plan, len(json.loads((work / "tokenizer/tokenizer.json").read_text())["model"]["vocab"]))
        self.optimizers = optimizers(self.model, plan)
        self.workers = Workers(self.model, threads)
        self.step, self.seconds = 0, 0.0
        self.checkpoint = out / "lm_checkpoint.pt"
        if self.checkpoint.exists():
            state = torch.load(self.checkpoint, weights_only=True)
            self.model.load_state_dict(state["model"])
            for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
                optimizer.load_state_dict(saved)
            self.step, self.seconds = state["step"], state["seconds"]

    def save(self) -> None:
        part = self.checkpoint.with_suffix(".part")
        torch.save({
            "model": self.model.state_dict(), "optimizers": [o.state_dict() for o in self.optimizers],
            "step": self.step, "seconds": self.seconds,
        }, part)  # fmt: skip
        os.replace(part, self.checkpoint)

    @property
    def done(self) -> float:
        if self.plan.steps is not None:
            return self.step / self.plan.steps
        return self.seconds / (60 * self.plan.minutes)

    def train_step(self, windows: TrainingWindows) -> float:
        plan, started = self.plan, time.monotonic()
        factor = max(schedule(self.done, plan), 1e-3)
        ids = torch.from_numpy(windows.batch(self.step * plan.windows_per_step, plan.windows_per_step))
        loss = self.workers.gradients(ids.split(plan.windows_at_once))
        torch.nn.utils.clip_grad_norm_(self.optimizers[1].param_groups[0]["params"], 1.0)
        for optimizer, rate in zip(self.optimizers, (plan.lr_muon, plan.lr_adam), strict=True):
            optimizer.param_groups[0]["lr"] = rate * factor
            optimizer.step()
            optimizer.zero_grad()
        self.step += 1
        self.seconds += time.monotonic() - started
        return loss

    def log(self, loss: float, held: HeldOut) -> None:
        self.model.eval()
        scores = domain_ce(self.model, held)
        self.model.train()
        whole = sum(ce * n for ce, n in scores.values()) / sum(n for _, n in scores.values())
        tokens = self.step * self.plan.windows_per_step * self.plan.context
        record = {
            "step": self.step, "tokens": tokens, "minutes": round(self.seconds / 60, 2),
            "tokens_per_second": round(tokens / max(self.seconds, 1e-9)), "loss": round(loss, 4),
            "heldout": round(whole, 4), **{name: round(ce, 4) for name, (ce, _) in scores.items()},
        }  # fmt: skip
        with open(self.out / "lm.log", "a") as log:
            log.write(json.dumps(record) + "\n")


def write_model(model: LlamaForCausalLM, plan: Plan, folder: Path) -> None:
    """The folder of a model, whole or not at all."""
    part = folder.with_name(folder.name + ".part")
    model.save_pretrained(part)
    (part / "plan.json").write_text(json.dumps(asdict(plan), indent=1) + "\n")
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(part, folder)


def write_snapshot(run: Run, work: Path) -> None:
    """OUT/snapshots/step-N, with the tokenizer, so that the folder is a model of its own."""
    folder = run.out / "snapshots" / f"step-{run.step}"
    folder.parent.mkdir(exist_ok=True)
    write_model(run.model, run.plan, folder)
    AutoTokenizer.from_pretrained(work / "tokenizer").save_pretrained(folder)


def train(
    work: Path, plan: Plan, threads: int, out: Path | None = None, save_every: float = 240.0, snapshots: bool = False
) -> None:
    """Train on the tokens in `work`, from the checkpoint if there is one, to the end of the plan; writes OUT/model.

    out: folder for checkpoint, log, model and snapshots; default `work`. snapshots: at step 0, powers of two, the end.
    """
    out = out or work
    run = Run(work, out, plan, threads)
    windows = TrainingWindows(np.load(work / "train.npy"), plan.context, plan.seed)
    held = held_out(work, plan.context).subset(16, seed=plan.seed)
    run.model.train()
    saved, loss = time.monotonic(), float("nan")
    if snapshots and run.step == 0:
        write_snapshot(run, work)
    with bar() as progress:
        task = progress.add_task("language model", total=1000, note="")
        while run.done < 1:
            step_loss = run.train_step(windows)
            loss = step_loss if loss != loss else 0.95 * loss + 0.05 * step_loss
            progress.update(task, completed=int(1000 * min(run.done, 1)), note=f"step {run.step} loss {loss:.3f}")
            if snapshots and run.step & (run.step - 1) == 0:
                write_snapshot(run, work)
            if time.monotonic() - saved > save_every:
                run.save()
                run.log(loss, held)
                saved = time.monotonic()
    run.save()
    run.log(loss, held)
    run.model.eval()
    if snapshots:
        write_snapshot(run, work)
    write_model(run.model, plan, out / "model")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=Plan.minutes)
    parser.add_argument("--steps", type=int, default=None)
    parser.add_argument("--width", type=int, default=Plan.width)
    parser.add_argument("--seed", type=int, default=Plan.seed)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--snapshots", action="store_true", help="keep the model at steps 0, 1, 2, 4, ... and the end")
    args = parser.parse_args()
    plan = Plan(width=args.width, minutes=args.minutes, steps=args.steps, seed=args.seed)
    train(args.work, plan, args.threads, snapshots=args.snapshots)


if __name__ == "__main__":
    main()
