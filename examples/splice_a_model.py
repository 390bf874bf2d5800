"""What SAEs cost the model they explain: its cross-entropy with each one spliced in, and with all of them together.

    pip install '.[eval]'
    python examples/splice_a_model.py                    # the bundled model, its four SAEs, three documents; seconds
    python examples/splice_a_model.py --model EleutherAI/pythia-160m --sae gpt_neox.layers.6=path/to/sae

The whole method is in `cross_entropy`. `saekernels eval` does the same at scale, with intervals and baselines.
"""

from __future__ import annotations

import argparse
import itertools

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy as mean_nats
from transformers import AutoModelForCausalLM, AutoTokenizer

import saekernels as sk
from saekernels import example


@torch.inference_mode()
def cross_entropy(model: nn.Module, texts: list[Tensor]) -> float:
    """Nats per predicted token, over texts of ids [1, S]."""
    total, count = 0.0, 0
    for ids in texts:
        logits = model(ids).logits[0, :-1]  # [S-1, vocabulary]
        total += mean_nats(logits.float(), ids[0, 1:], reduction="sum").item()
        count += ids.shape[1] - 1
    return total / count


def site_and_path(text: str) -> tuple[str, str]:
    site, _, path = text.partition("=")
    return site, path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(example.MODEL_DIR))
    parser.add_argument(
        "--sae", nargs="+", type=site_and_path, metavar="SITE=PATH", default=list(example.SAE_DIRS.items())
    )
    parser.add_argument("--data", default=str(example.EVAL_DATA), help="texts: .jsonl, .jsonl.gz or .txt")
    parser.add_argument("--documents", type=int, default=3)
    parser.add_argument("--context", type=int, default=256, help="tokens read of each document")
    args = parser.parse_args()

    model = AutoModelForCausalLM.from_pretrained(args.model).eval()
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    saes = {site: sk.load(path, dtype=model.dtype) for site, path in args.sae}
    documents = itertools.islice(sk.load_documents([args.data]), args.documents)
    cut = {"truncation": True, "max_length": args.context, "return_tensors": "pt"}
    texts = [tokenizer(document.text, **cut).input_ids for document in documents]

    clean = cross_entropy(model, texts)
    print(f"clean: {clean:.4f} nats per token")
    chosen = {**{site: {site: sae} for site, sae in saes.items()}, "all together": saes}
    for name, sites in chosen.items():
        # <bos> keeps its activation: these SAEs were trained without it.
        with sk.splice(model, sites, untouched=tokenizer.all_special_ids):
            spliced = cross_entropy(model, texts)
        print(f"{name}: {spliced - clean:+.4f}")


if __name__ == "__main__":
    main()
