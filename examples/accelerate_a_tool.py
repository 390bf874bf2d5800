"""One line makes an SAE of another tool fast: the same object, of the same type, with the same output.

    python examples/accelerate_a_tool.py              # sae-lens' own SAE where it is installed, else a plain module
    python examples/accelerate_a_tool.py --plain      # the plain module, by the names of its weights
    python examples/accelerate_a_tool.py --sae PATH   # a folder of sae-lens of yours

The bundled SAE of layer 2 reads the bundled model's own activations.
sparsify, dictionary_learning and SAEBench go like sae-lens: docs/how-to/accelerate.md.
"""

from __future__ import annotations

import argparse
import importlib.util
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer

import saekernels as sk
from saekernels import example

SITE = 2
SAE_DIR = example.SAE_DIRS[f"model.layers.{SITE}"]


class PlainSAE(nn.Module):
    """A TopK SAE as one writes it: dense latents [tokens, latents], most of them zero."""

    def __init__(self, d: int, latents: int, k: int) -> None:
        super().__init__()
        self.encoder, self.decoder, self.k = nn.Linear(d, latents), nn.Linear(latents, d), k

    def forward(self, x: Tensor) -> Tensor:
        latents = self.encoder(x - self.decoder.bias).relu()
        top = latents.topk(self.k)
        return self.decoder(torch.zeros_like(latents).scatter(-1, top.indices, top.values))


# What each weight is; b_pre is what is taken from the input.
NAMES = {
    "W_enc": "encoder.weight",
    "b_enc": "encoder.bias",
    "W_dec": "decoder.weight",
    "b_dec": "decoder.bias",
    "b_pre": "decoder.bias",
}


def plain_sae() -> PlainSAE:
    """With the bundled SAE's weights."""
    bundled = sk.load(SAE_DIR)
    module = PlainSAE(bundled.d_in, bundled.n_latents, bundled.activation.k)
    weights = {"encoder.weight": bundled.W_enc, "encoder.bias": bundled.b_enc,
               "decoder.weight": bundled.W_dec.T, "decoder.bias": bundled.b_dec}  # fmt: skip
    module.load_state_dict(weights)
    return module


@torch.inference_mode()
def activations(tokens: int) -> Tensor:
    """[tokens, 160]: outputs of layer 2 of the bundled model on the bundled text."""
    model = AutoModelForCausalLM.from_pretrained(example.MODEL_DIR).eval()
    tokenizer = AutoTokenizer.from_pretrained(example.MODEL_DIR)
    found: list[Tensor] = []
    for document in sk.load_documents([str(example.EVAL_DATA)]):
        ids = tokenizer(document.text, truncation=True, max_length=256, return_tensors="pt").input_ids
        found.append(model(ids, output_hidden_states=True).hidden_states[SITE + 1][0, 1:])
        if sum(map(len, found)) >= tokens:
            break
    return torch.cat(found)[:tokens]


@torch.inference_mode()
def timed(module: Callable[[Tensor], Tensor], x: Tensor, rounds: int = 7) -> tuple[Tensor, float]:
    """(output, median milliseconds of a call), after calls that lay weights out."""
    module(x), module(x)
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        out = module(x)
        times.append(1e3 * (time.perf_counter() - start))
    return out, statistics.median(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--plain", action="store_true")
    parser.add_argument("--sae", type=Path, default=SAE_DIR)
    parser.add_argument("--tokens", type=int, default=4096)
    args = parser.parse_args()

    x = activations(args.tokens)
    if args.plain or importlib.util.find_spec("sae_lens") is None:
        sae = plain_sae()
        before, before_ms = timed(sae, x)
        sk.accelerate(sae, activation=sk.TopK(sae.k), names=NAMES)
    else:
        from sae_lens import SAE

        sae = SAE.load_from_disk(str(args.sae))
        before, before_ms = timed(sae, x)
        sk.accelerate(sae)
    after, after_ms = timed(sae, x)
    difference = (after - before).norm() / before.norm()
    print(f"{type(sae).__name__}, {len(x)} tokens")
    print(f"before {before_ms:.1f} ms, after {after_ms:.1f} ms: {before_ms / after_ms:.1f}x")
    print(f"relative difference of the output: {difference:.1e}")


if __name__ == "__main__":
    main()
