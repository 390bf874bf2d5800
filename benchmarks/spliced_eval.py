"""Spliced evaluation against SAELens' own evaluator: same model, tokens and SAEs, one process, interleaved.

    pip install '.[eval,peers]'
    python benchmarks/spliced_eval.py                        # one site, then all 12; a quarter of an hour on 2 cores
    python benchmarks/spliced_eval.py --rounds 1 --sites 6   # shorter
    python benchmarks/spliced_eval.py --peak saelens         # peak memory of one contender, in a process of its own

The model has GPT-2 small's shape (12 layers, width 768, vocabulary 50,257) and random weights; SAEs are TopK with
24,576 latents, k = 32. Both compute what SAELens' `run_evals` reports with everything switched on; ours by
`saekernels.eval.compat` (`--compat saelens`). Prints medians of paired ratios, the largest difference of any figure,
and, from processes of their own, peak memory beyond model, SAE and imports.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import torch

WIDTH, LATENTS, K, CONTEXT, PROMPTS = 768, 24_576, 32, 128, 16


def make_model() -> Any:
    from transformer_lens import HookedTransformer, HookedTransformerConfig

    config = HookedTransformerConfig(
        n_layers=12, d_model=WIDTH, n_ctx=1024, d_head=64, n_heads=12, d_vocab=50_257, d_mlp=3072, act_fn="gelu_new",
        normalization_type="LN", seed=0, device="cpu",
    )  # fmt: skip
    model = HookedTransformer(config).eval().requires_grad_(False)

    class Special:
        bos_token_id = eos_token_id = pad_token_id = 50_256
        sep_token_id = decoder_start_token_id = None
        padding_side = "right"

    model.tokenizer = Special()
    return model


def hook(layer: int) -> str:
    return f"blocks.{layer}.hook_resid_post"


def make_saes(layer: int) -> tuple[Any, Any]:
    """SAELens' SAE and ours, of the same weights."""
    import sae_lens

    import saekernels as sk

    torch.manual_seed(layer)
    kind, config = sae_lens.registry.get_sae_class("topk")
    theirs = kind(config(d_in=WIDTH, d_sae=LATENTS, k=K)).eval()
    encoder = torch.randn(LATENTS, WIDTH) / WIDTH**0.5
    with torch.no_grad():
        theirs.W_enc.copy_(encoder.T)
        theirs.W_dec.copy_(encoder)
        theirs.b_enc.zero_()
        theirs.b_dec.zero_()
    theirs.cfg.metadata.hook_name = hook(layer)
    ours = sk.SAE(WIDTH, LATENTS, sk.TopK(K)).eval()
    with torch.no_grad():
        ours.W_enc.copy_(encoder)
        ours.W_dec.copy_(encoder)
        ours.b_enc.zero_()
        ours.b_dec.zero_()
    return theirs, ours


def make_batches(count: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    made = [torch.randint(0, 50_256, (PROMPTS, CONTEXT), generator=generator) for _ in range(count)]
    for batch in made:
        batch[:, 0] = 50_256
    return made


class Store:
    """The part of an ActivationsStore that the evaluator uses, with given tokens."""

    def __init__(self, batches: list[torch.Tensor]) -> None:
        self.batches, self.context_size, self.store_batch_size_prompts = batches, CONTEXT, PROMPTS
        self.reset_input_dataset()

    def reset_input_dataset(self) -> None:
        self.left = iter(self.batches)

    def get_batch_tokens(self, _: int | None = None) -> torch.Tensor:
        return next(self.left)


def saelens(model: Any, saes: dict[str, Any], batches: list[torch.Tensor]) -> list[dict[str, Any]]:
    from sae_lens.evals import get_eval_everything_config, run_evals
    from sae_lens.training.activation_scaler import ActivationScaler

    config = get_eval_everything_config(PROMPTS, len(batches), len(batches))
    return [run_evals(sae, Store(batches), model, ActivationScaler(), config)[0] for sae in saes.values()]


def ours(model: Any, saes: dict[str, Any], batches: list[torch.Tensor]) -> list[dict[str, Any]]:
    from saekernels.eval.compat import peer_metrics

    return [found.metrics for found in peer_metrics("saelens", model, saes, batches, ignore=[50_256])]


def timed(call: Callable[[], Any]) -> tuple[float, Any]:
    started = time.perf_counter()
    result = call()
    return time.perf_counter() - started, result


def largest_difference(ours_found: list[dict[str, Any]], theirs: list[dict[str, Any]]) -> tuple[float, str]:
    """The largest |difference| / max(1, |theirs|) of any figure, and its name."""
    worst = (0.0, "")
    for mine, other in zip(ours_found, theirs, strict=True):
        for group, named in mine.items():
            for name, value in named.items():
                want = other[group][name]
                worst = max(worst, (abs(value - want) / max(1.0, abs(want)), name))
    return worst


def compare(model: Any, layers: list[int], batches: list[torch.Tensor], rounds: int) -> dict[str, Any]:
    pairs = {hook(layer): make_saes(layer) for layer in layers}
    theirs, mine = ({name: pair[side] for name, pair in pairs.items()} for side in (0, 1))
    ours(model, mine, [batches[0][:2]])
    times: list[tuple[float, float]] = []
    found: Any = None
    for _ in range(rounds):
        other, expected = timed(lambda: saelens(model, theirs, batches))
        own, found = timed(lambda: ours(model, mine, batches))
        times.append((other, own))
    difference, name = largest_difference(found, expected)
    return {
        "sites": len(layers),
        "tokens": sum(batch.numel() for batch in batches),
        "saelens_s": round(statistics.median(t for t, _ in times), 2),
        "saekernels_s": round(statistics.median(t for _, t in times), 2),
        "ratio": round(statistics.median(a / b for a, b in times), 2),
        "largest_difference": difference,
        "in": name,
    }


def peak(which: str, layer: int, batches: list[torch.Tensor]) -> None:
    """Print the peak memory of one contender beyond what it starts with, in MiB."""
    model, (theirs, mine) = make_model(), make_saes(layer)
    saes = {hook(layer): theirs if which == "saelens" else mine}
    run = saelens if which == "saelens" else ours
    del theirs, mine
    run(model, saes, [batches[0][:1, :8]]) if which == "saekernels" else None
    start = high_water(reset=True)
    run(model, saes, batches)
    print(json.dumps({"peak_mib": (high_water() - start) // 1024}))


def high_water(reset: bool = False) -> int:
    """Peak resident memory of this process in KiB, from now on if `reset`."""
    if reset:
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("VmHWM"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batches", type=int, default=1, help=f"batches of {PROMPTS} prompts of {CONTEXT} tokens")
    parser.add_argument("--sites", type=int, default=12, help="sites of the sweep")
    parser.add_argument("--layer", type=int, default=6, help="the layer of the single site")
    parser.add_argument("--peak", choices=["saelens", "saekernels"])
    args = parser.parse_args()
    torch.set_grad_enabled(False)
    batches = make_batches(args.batches)
    if args.peak:
        peak(args.peak, args.layer, batches)
        return
    model = make_model()
    for layers in ([args.layer], list(range(args.sites))):
        print(json.dumps(compare(model, layers, batches, args.rounds)), flush=True)
    for which in ("saelens", "saekernels"):
        command = [sys.executable, __file__, "--peak", which, "--layer", str(args.layer)]
        out = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1]
        print(json.dumps({"contender": which, **json.loads(out)}), flush=True)


if __name__ == "__main__":
    main()
