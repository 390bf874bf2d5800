"""dictionary_learning's own trainer on one site of the bundled model: its own steps first, then accelerated ones.

    pip install '.[eval]' dictionary_learning==0.1.0 nnsight
    python examples/train_with_dictionary_learning.py                        # a BatchTopK SAE of 5,120 latents
    python examples/train_with_dictionary_learning.py --model PATH --data PATH --site model.layers.3 \\
        --documents 5000 --latents 24576 --steps 5000 --own-steps 20 --out my_sae
    saekernels eval --sae model.layers.2=trained_dictionary_learning  # on all of the bundled text

Prints seconds per step before and after, and what the model loses on text that was held out.
"""

from __future__ import annotations

import json

import torch
from dictionary_learning.trainers.batch_top_k import BatchTopKTrainer

import saekernels as sk
from bundled_text import Text, arguments, batches, say_seconds


def main() -> None:
    args = arguments(__doc__, "dictionary_learning")
    text = Text(args)
    x = text.activations(args.site)
    trainer = BatchTopKTrainer(
        steps=args.steps,
        activation_dim=x.shape[1],
        dict_size=args.latents,
        k=args.k,
        lr=args.lr,
        warmup_steps=args.steps // 20,
        threshold_start_step=args.steps // 4,
        threshold_beta=0.9,
        layer=0,
        lm_name=args.model,
        submodule_name=args.site,
        device="cpu",
    )
    starts: list[float] = []
    # What `trainSAE` does with each batch; made inside `sk.swapped()`, it trains accelerated from the first step on.
    for step, rows in zip(range(args.steps), batches(x, args.batch, starts), strict=False):
        if step == args.own_steps:
            sk.accelerate(trainer, optimizer=True)
        trainer.update(step, rows)

    say_seconds(starts, args.own_steps, sk.step_counts(trainer))
    args.out.mkdir(parents=True, exist_ok=True)
    torch.save(trainer.ae.state_dict(), args.out / "ae.pt")
    (args.out / "config.json").write_text(json.dumps({"trainer": trainer.config}))
    text.evaluate(args.site, args.out, args.eval_tokens)


if __name__ == "__main__":
    main()
