"""What splicing an SAE costs, in plain torch and transformers: no op, no splice and no evaluator of this library.

    python tests/helpers/scripts/independent_spliced_ce.py REPORT.json MODEL_DIR EVAL.jsonl.gz SITE=SAE_DIR ...

Reads a report of `saekernels eval --json` and reproduces the ΔCE of every site alone from the same documents (the same
seed, number of tokens and context): full logits, `F.cross_entropy`, hooks on the layers, top-k SAEs in SAELens' format
read with safetensors. Prints the differences; exit code 1 if one is above 1e-4 nats.
"""

from __future__ import annotations

import gzip
import itertools
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

TOLERANCE = 1e-4


def read_texts(path: Path) -> list[str]:
    """The texts of a .jsonl.gz file that are not empty."""
    with gzip.open(path, "rt", encoding="utf-8") as stream:
        return [text for line in stream if line.strip() and (text := json.loads(line)["text"])]


def windows(texts: list[str], tokenizer: Any, context: int, tokens: int, seed: int) -> list[list[int]]:
    """Windows of `context` ids, <bos> in front, from documents in shuffled order, until `tokens` predictions count."""
    special = set(tokenizer.all_special_ids)
    found, counted = [], 0
    for index in np.random.default_rng(seed).permutation(len(texts)):
        ids = tokenizer(texts[index], add_special_tokens=False)["input_ids"]
        for start in range(0, len(ids), context - 1):
            window = [tokenizer.bos_token_id, *ids[start : start + context - 1]]
            count = sum(a not in special and b not in special for a, b in itertools.pairwise(window))
            if count:
                found.append(window)
                counted += count
            if counted >= tokens:
                return found
    return found


def read_topk_sae(folder: Path) -> Any:
    """The function of a SAELens top-k checkpoint: [..., d] -> [..., d]."""
    config = json.loads((folder / "cfg.json").read_text())
    if config["architecture"] != "topk" or config.get("normalize_activations", "none") != "none":
        raise SystemExit(f"{folder}: only plain top-k SAEs are read here")
    weights = {name: value.float() for name, value in load_file(folder / "sae_weights.safetensors").items()}
    k = config["k"]
    shift = weights["b_dec"] if config.get("apply_b_dec_to_input") else torch.zeros_like(weights["b_dec"])
    norms = weights["W_dec"].norm(dim=-1) if config.get("rescale_acts_by_decoder_norm") else torch.ones(())

    def reconstruct(x: Tensor) -> Tensor:
        scores = ((x - shift) @ weights["W_enc"] + weights["b_enc"]) * norms
        top = scores.topk(k, dim=-1)
        codes = torch.zeros_like(scores).scatter_(-1, top.indices, top.values.relu()) / norms
        return codes @ weights["W_dec"] + weights["b_dec"]

    return reconstruct


@torch.inference_mode()
def loss_sum(model: Any, special: Tensor, window: list[int], site: str | None = None, sae: Any = None) -> float:
    """Summed cross-entropy of the predictions that count; the output is replaced where tokens are not special."""
    ids = torch.tensor([window])
    real = ~torch.isin(ids, special)
    handle = None
    if site is not None:

        def replace(module: Any, args: Any, output: Any) -> Any:
            old = output[0] if isinstance(output, tuple) else output
            new = torch.where(real[..., None], sae(old), old)
            return (new, *output[1:]) if isinstance(output, tuple) else new

        handle = model.get_submodule(site).register_forward_hook(replace)
    try:
        logits = model(input_ids=ids).logits[0, :-1].double()
    finally:
        if handle is not None:
            handle.remove()
    keep = real[0, :-1] & real[0, 1:]
    return float(F.cross_entropy(logits[keep], ids[0, 1:][keep], reduction="sum"))


def deltas(
    model_dir: Path, data: Path, saes: dict[str, Path], tokens: int, context: int, seed: int
) -> dict[str, float]:
    """ΔCE in nats of every site alone, and the clean CE under the name "clean"."""
    model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(model_dir)
    special = torch.tensor(sorted(tokenizer.all_special_ids))
    chosen = windows(read_texts(data), tokenizer, context, tokens, seed)
    count = 0
    for window in chosen:
        real = ~torch.isin(torch.tensor(window), special)
        count += int((real[:-1] & real[1:]).sum())
    clean = sum(loss_sum(model, special, window) for window in chosen)
    found = {"clean": clean / count}
    for site, folder in saes.items():
        sae = read_topk_sae(folder)
        found[site] = (sum(loss_sum(model, special, window, site, sae) for window in chosen) - clean) / count
    return found


def compare(
    report: dict[str, Any], model_dir: Path, data: Path, saes: dict[str, Path]
) -> dict[str, tuple[float, float]]:
    """Per site: the report's ΔCE and the one found here."""
    found = deltas(model_dir, data, saes, report["tokens"], report["context"], report["seed"])
    rows = {row["site"]: row for row in report["sites"]}
    return {
        "clean": (report["sites"][0]["ce"]["clean"], found["clean"]),
        **{site: (rows[site]["delta_ce"]["nats"], found[site]) for site in saes},
    }


def main() -> int:
    report, model_dir, data, *pairs = sys.argv[1:]
    saes = {site: Path(path) for site, path in (pair.split("=", 1) for pair in pairs)}
    rows = compare(json.loads(Path(report).read_text()), Path(model_dir), Path(data), saes)
    for name, (theirs, ours) in rows.items():
        print(f"{name:24} report {theirs:+.6f}  here {ours:+.6f}  difference {abs(theirs - ours):.1e}")
    return int(any(abs(theirs - ours) > TOLERANCE for theirs, ours in rows.values()))


if __name__ == "__main__":
    raise SystemExit(main())
