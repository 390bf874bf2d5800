"""Train the demo's family: smaller models of the same kind, each on as many tokens per parameter as the main one.

    python tools/bundled_example/train_family.py --work WORK              # an hour on 2 cores, after train_demo.py
    saekernels scaling fit --model WORK/family/*/model saekernels/example/model --out saekernels/example/family.json \\
        --data saekernels/example/data/eval.jsonl.gz --tokens all --train-tokens WORK/family/train_tokens.json

The models lie in WORK/family/w<width>_l<layers>/model; only their losses are shipped.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path

import train_lm

SIZES = ((32, 2), (64, 2), (64, 4), (96, 4), (128, 4))
MAIN = train_lm.Plan()
MAIN_STEPS = 3713


def parameters(plan: train_lm.Plan, vocab: int) -> int:
    """All of a model's parameters; the tied embedding counts once."""
    return sum(parameter.numel() for parameter in train_lm.build(plan, vocab).parameters())


def plans(vocab: int) -> dict[str, train_lm.Plan]:
    """Name -> plan, small to large; steps in proportion to parameters, batches of the same size."""
    per_parameter = MAIN_STEPS / parameters(MAIN, vocab)
    sized = {f"w{width}_l{layers}": replace(MAIN, width=width, layers=layers) for width, layers in SIZES}
    return {name: replace(plan, steps=round(per_parameter * parameters(plan, vocab))) for name, plan in sized.items()}


def run(work: Path, threads: int) -> None:
    vocab = len(json.loads((work / "tokenizer/tokenizer.json").read_text())["model"]["vocab"])
    tokens = {}
    for name, plan in plans(vocab).items():
        out = work / "family" / name
        out.mkdir(parents=True, exist_ok=True)
        tokens[str(out / "model")] = plan.steps * plan.windows_per_step * plan.context
        if not (out / "model").exists():
            train_lm.train(work, plan, threads, out)
    (work / "family/train_tokens.json").write_text(json.dumps(tokens, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    run(args.work, args.threads)


if __name__ == "__main__":
    main()
