"""`saekernels plan` held against evaluations that can be run here: predicted and measured time of each.

    python benchmarks/plan_check.py            # five cases, some three minutes on 2 cores
    python benchmarks/plan_check.py --rounds 3

Models have the shapes of small GPT-2s and random weights, SAEs are TopK with random weights, texts are random words.
Prints, for each case, what `saekernels.bench.scale.predict` says for this CPU (whose ceilings are measured first), what
`evaluate` took (the best of the rounds), and their ratio; and the same for the bytes of the SAEs and of the sums.
"""

from __future__ import annotations

import argparse
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

import saekernels as sk
from saekernels.bench.scale import Job, predict
from saekernels.bench.scale.machine import here
from saekernels.bench.scale.predict import sae_bytes
from saekernels.eval import Document, evaluate

CONTEXT, DOCUMENT = 128, 254
SHAPES = {"small": (768, 12, 50_257), "tiny": (256, 4, 8_192)}
CASES = (
    ("small", 1, 24_576, 32, 4_096),
    ("small", 4, 24_576, 32, 2_048),
    ("tiny", 1, 16_384, 32, 32_768),
    ("tiny", 2, 131_072, 64, 8_192),
    ("tiny", 4, 4_096, 16, 32_768),
)


def make(shape: str) -> tuple[Any, Any]:
    """A model with random weights, and a tokenizer of words "0", "1", ..."""
    width, layers, vocabulary = SHAPES[shape]
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=vocabulary,
        n_positions=CONTEXT,
        n_embd=width,
        n_layer=layers,
        n_head=width // 64,
        bos_token_id=0,
        eos_token_id=0,
    )
    words = Tokenizer(models.WordLevel({str(i): i for i in range(vocabulary)}, unk_token="0"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    return GPT2LMHeadModel(config).eval(), PreTrainedTokenizerFast(tokenizer_object=words)


@torch.no_grad()
def make_sae(width: int, latents: int, k: int, seed: int) -> sk.SAE:
    torch.manual_seed(seed)
    sae = sk.SAE(width, latents, sk.TopK(k)).eval()
    sae.W_enc.normal_(std=width**-0.5)
    sae.W_dec.copy_(sae.W_enc)
    return sae


def texts(vocabulary: int, tokens: int) -> list[Document]:
    """Documents of two full windows each, in which all but each window's first token count."""
    drawn = torch.randint(
        0, vocabulary, (tokens // DOCUMENT + 1, 2 * CONTEXT), generator=torch.Generator().manual_seed(1)
    )
    return [Document(" ".join(map(str, row))) for row in drawn.tolist()]


def job_of(shape: str, sites: int, latents: int, k: int, tokens: int, model: Any) -> Job:
    width, layers, vocabulary = SHAPES[shape]
    return Job(
        latents, tokens, sites, width, k, model.num_parameters(), layers, vocabulary, CONTEXT,
        dtype=torch.float32,
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=1)
    rounds = parser.parse_args().rounds
    machine = here()
    print(f"{machine.card.name}: {machine.card.fp32 * 1e3:.0f} GFLOP/s float32, {machine.card.memory:.0f} GB/s\n")
    print("model  sites  latents   tokens   predicted   measured   measured / predicted   SAEs' bytes, ratio")
    for shape, sites, latents, k, tokens in CASES:
        model, tokenizer = make(shape)
        job = job_of(shape, sites, latents, k, tokens, model)
        saes = {f"transformer.h.{job.depth(i) - 1}": make_sae(job.width, latents, k, i) for i in range(sites)}
        held = sum(value.numel() * value.element_size() for sae in saes.values() for value in sae.parameters())
        documents = texts(job.vocabulary, tokens)
        seconds = min(
            evaluate(model, tokenizer, saes, documents, tokens=tokens, bootstrap=0).run["seconds"]
            for _ in range(rounds)
        )
        expected = predict(job, machine).total_seconds
        print(
            f"{shape:6}{sites:6}{latents:9,}{tokens:9,}{expected:10.1f} s{seconds:9.1f} s{seconds / expected:23.2f}"
            f"{sae_bytes(job) / held:21.4f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
