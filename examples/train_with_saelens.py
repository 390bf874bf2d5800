"""SAELens' own trainer on one site of the bundled model: its own steps first, then the same ones accelerated.

    pip install '.[eval,peers]'
    python examples/train_with_saelens.py                                    # a BatchTopK SAE of 5,120 latents
    python examples/train_with_saelens.py --model PATH --data PATH --site model.layers.3 --documents 5000 \\
        --latents 24576 --steps 5000 --own-steps 20 --out my_sae
    saekernels eval --sae model.layers.2=trained_saelens  # on all of the bundled text

Prints seconds per step before and after, and what the model loses on text that was held out.
"""

from __future__ import annotations

from sae_lens import BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig, LoggingConfig, SAETrainer
from sae_lens.config import SAETrainerConfig

import saekernels as sk
from bundled_text import Text, arguments, batches, say_seconds


def main() -> None:
    args = arguments(__doc__, "saelens")
    text = Text(args)
    x = text.activations(args.site)
    config = BatchTopKTrainingSAEConfig(d_in=x.shape[1], d_sae=args.latents, k=args.k)
    config.topk_threshold_lr = max(0.01, 10 / args.steps)  # its default follows the threshold for hundreds of steps
    sae = BatchTopKTrainingSAE(config)
    sae.b_dec.data.copy_(x.mean(0))
    settings = SAETrainerConfig(
        total_training_samples=args.steps * args.batch,
        train_batch_size_samples=args.batch,
        lr=args.lr,
        lr_end=args.lr / 10,
        logger=LoggingConfig(log_to_wandb=False),
    )
    starts: list[float] = []
    trainer = SAETrainer(settings, sae, batches(x, args.batch, starts))
    for _ in range(args.own_steps):  # only to time them: `fit` alone does all that follows
        trainer.step(next(trainer.data_provider))
        trainer.n_training_steps += 1

    sk.accelerate(trainer, optimizer=True)
    trainer.fit()

    say_seconds(starts, args.own_steps, sk.step_counts(trainer))
    sae.save_inference_model(str(args.out))
    text.evaluate(args.site, args.out, args.eval_tokens)


if __name__ == "__main__":
    main()
