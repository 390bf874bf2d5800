"""A training in three checkpoints: folders of models on the way from some weights to others, and their SAEs."""

from __future__ import annotations

import gzip
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

import saekernels
import tiny_lm
from tiny_lm import SITES

STEPS = {"step-0": 0.0, "step-8": 0.9, "step-64": 1.0}
"""Name -> how much of the way it has come."""


def write(folder: Path) -> dict[str, Path]:
    """FOLDER/step-N, FOLDER/saes/step-N/SITE, and FOLDER/text.jsonl.gz; the models by name, and "text"."""
    start, end = (tiny_lm.model(seed).state_dict() for seed in (1, 2))
    paths = {}
    for name, share in STEPS.items():
        model = tiny_lm.model()
        model.load_state_dict({key: torch.lerp(start[key], end[key], share) for key in start})
        paths[name] = folder / name
        model.save_pretrained(paths[name])
        tiny_lm.tokenizer().save_pretrained(paths[name])
        for number, site in enumerate(SITES):
            saekernels.save(tiny_lm.sae(number), folder / "saes" / name / site)
    paths["text"] = folder / "text.jsonl.gz"
    records = [{"text": one.text, "domain": one.domain, "source": one.source} for one in tiny_lm.texts()]
    paths["text"].write_bytes(gzip.compress("".join(json.dumps(record) + "\n" for record in records).encode()))
    return paths


def command(paths: Mapping[str, Path], names: Sequence[str] = tuple(STEPS), sites: Sequence[str] = SITES) -> list[str]:
    """`saekernels over` of them, the last checkpoint first."""
    models = [str(paths[name]) for name in reversed(names)]
    saes = [f"{site}={paths['text'].parent}/saes/{{}}/{site}" for site in sites]
    return ["over", *models, "--sae", *saes, "--data", str(paths["text"]), "--tokens", "all", "--bootstrap", "50"]
