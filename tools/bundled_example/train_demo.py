"""Make the bundled example: corpus, tokenizer, evaluation set, language model, 5-gram comparison, SAEs,
transcoders, bundle.

    python tools/bundled_example/train_demo.py --work WORK          # hours on 2 cores, tens of MB from Debian mirrors
    python tools/bundled_example/train_demo.py --work WORK --toy    # seconds, no network, a toy of the same shape

Each stage is also a script of its own. A stage whose output is in WORK is skipped, so the command can be
repeated after an interruption; delete an output to make it again. The bundle goes to WORK/example, or to `--out`.

Everything is seeded, but the training of the model and of the SAEs is as long as the clock allows (`--lm-minutes`,
`--sae-minutes`): for a run of fixed length give `--steps` to train_lm.py and train_saes.py.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

import bundle
import corpus
import evalset
import ngram
import sources
import tokenizer
import toy
import train_clt
import train_lm
import train_saes


@dataclass(frozen=True)
class Sizes:
    """What differs between the real example and the toy."""

    vocab: int = 4096
    eval_tokens: int = 40_000
    longest: int = 8_000
    lm: train_lm.Plan = field(default_factory=train_lm.Plan)
    saes: train_saes.Plan = field(default_factory=train_saes.Plan)
    clt: train_clt.Plan = field(default_factory=lambda: train_clt.Plan(steps=1500))
    limit: float = 17.0


TOY = Sizes(
    vocab=512,
    eval_tokens=2_000,
    longest=2_000,
    lm=train_lm.Plan(width=32, layers=2, context=64, steps=12, windows_per_step=8),
    saes=train_saes.Plan(n_latents=64, k=8, steps=8, windows_per_step=8, dead_after=2_000, aux_k=8),
    clt=train_clt.Plan(n_latents=32, k=4, steps=4, windows_per_step=4, dead_after=2_000, aux_k=8),
)


def make_corpus(cache: Path, work: Path, is_toy: bool) -> None:
    if not is_toy:
        corpus.gather(cache, work)
        return
    corpus.build(work, toy.documents(), toy.CAPS, {})
    sources.write_licences(work / "licences", {"PSF-2.0.txt": "https://docs.python.org/3/license.html\n"})


def make_transcoders(work: Path, plan: train_clt.Plan) -> None:
    train_clt.write(work, train_clt.train(work, work / "model", np.load(work / "train.npy"), plan))


Stage = tuple[str, Path, Callable[[], object]]


def stages(work: Path, cache: Path, out: Path, sizes: Sizes, threads: int, is_toy: bool) -> list[Stage]:
    """(name, the file or folder that says the stage is done, what to run), in order."""
    context = sizes.lm.context
    return [
        ("corpus", work / "licences", lambda: make_corpus(cache, work, is_toy)),
        ("tokenizer", work / "train.npy", lambda: tokenizer.run(work, sizes.vocab, context)),
        ("evaluation set", work / "eval_documents.json", lambda: evalset.run(work, sizes.eval_tokens, sizes.longest)),
        ("language model", work / "model", lambda: train_lm.train(work, sizes.lm, threads)),
        ("5-gram", work / "ngram.json", lambda: ngram.run(work, 5, context)),
        ("SAEs", work / "saes", lambda: train_saes.train(work, sizes.saes, threads)),
        ("transcoders", work / "plt", lambda: make_transcoders(work, sizes.clt)),
        ("bundle", out / "SOURCES.md", lambda: bundle.run(work, out, sizes.limit)),
    ]


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for everything that is made")
    parser.add_argument("--cache", type=Path, help="folder for downloads (default: WORK/cache)")
    parser.add_argument("--out", type=Path, help="folder for the bundle (default: WORK/example)")
    parser.add_argument("--lm-minutes", type=float, default=train_lm.Plan.minutes)
    parser.add_argument("--sae-minutes", type=float, default=train_saes.Plan.minutes)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--toy", action="store_true")
    args = parser.parse_args(arguments)
    sizes = TOY if args.toy else Sizes(
        lm=train_lm.Plan(minutes=args.lm_minutes), saes=train_saes.Plan(minutes=args.sae_minutes)
    )  # fmt: skip
    args.work.mkdir(parents=True, exist_ok=True)
    cache, out = args.cache or args.work / "cache", args.out or args.work / "example"
    for name, done, run in stages(args.work, cache, out, sizes, args.threads, args.toy):
        if done.exists():
            print(f"{name}: {done} is there")
            continue
        print(f"{name} ...")
        run()


if __name__ == "__main__":
    main()
