"""sparsify's own Trainer on one site of the bundled model: its own steps first, then the same ones accelerated.

    pip install '.[eval,peers]'
    python examples/train_with_sparsify.py                                   # a TopK SAE of 5,120 latents
    python examples/train_with_sparsify.py --model PATH --data PATH --site model.layers.3 --documents 5000 \\
        --latents 24576 --steps 5000 --own-steps 20 --out my_sae
    saekernels eval --sae model.layers.2=trained_sparsify/unnamed/layers.2  # on all of the bundled text

Prints seconds per step before and after, the model's forward pass in both, and what the model loses on text that was
held out.
"""

from __future__ import annotations

import os
import time

import torch
from datasets import Dataset

import saekernels as sk
from bundled_text import Text, arguments, say_seconds

if not torch.cuda.is_available():  # sparsify decodes with Triton wherever that is installed, and fails on the CPU
    os.environ.setdefault("SPARSIFY_DISABLE_TRITON", "1")
from sparsify import SparseCoderConfig, TrainConfig, Trainer

CONTEXT = 128


def main() -> None:
    args = arguments(__doc__, "sparsify")
    text = Text(args)
    rows = max(1, args.batch // CONTEXT)
    ids = torch.cat([one[0] for one in text.ids()])
    windows = ids.unfold(0, CONTEXT, CONTEXT)
    chosen = windows[torch.randint(len(windows), (rows * args.steps,))]
    data = Dataset.from_dict({"input_ids": chosen.tolist()}).with_format("torch")
    hookpoint = args.site.removeprefix(f"{text.model.base_model_prefix}.")
    config = TrainConfig(
        SparseCoderConfig(num_latents=args.latents, k=args.k),
        batch_size=rows,
        optimizer="adam",
        lr=args.lr,
        lr_warmup_steps=args.steps // 20,
        exclude_tokens=text.tokenizer.all_special_ids,
        hookpoints=[hookpoint],
        log_to_wandb=False,
        save_dir=str(args.out),
    )
    trainer = Trainer(config, data, text.model)
    starts: list[float] = []
    handle = text.model.register_forward_pre_hook(lambda *_: starts.append(time.perf_counter()))
    trainer.dataset = data.select(range(rows * args.own_steps))  # only to time them: `fit` goes on where it was
    trainer.fit()

    sk.accelerate(trainer, optimizer=True)
    trainer.dataset = data
    trainer.fit()

    handle.remove()
    say_seconds(starts, args.own_steps, sk.step_counts(trainer))
    text.evaluate(args.site, args.out / "unnamed" / hookpoint, args.eval_tokens)


if __name__ == "__main__":
    main()
