"""The bundled example: a small trained language model, an SAE for every layer, held-out text, and labelled texts.

Everything is read through the code paths that a user's model takes; this module only says where the files lie.
Sources and licences: SOURCES.md beside this file. The scripts that made it: tools/bundled_example/ in the repository.
"""

from __future__ import annotations

from pathlib import Path

__all__ = [
    "CLT_DIR",
    "EVAL_DATA",
    "FAMILY",
    "LABELLED",
    "MISSING",
    "MODEL_DIR",
    "PLT_DIR",
    "ROOT",
    "SAE_DIRS",
    "SOURCES",
]

ROOT = Path(__file__).parent
MODEL_DIR = ROOT / "model"
"""A Hugging Face LlamaForCausalLM with its tokenizer."""
SAE_DIRS = {f"model.layers.{path.name.removeprefix('layer_')}": path for path in sorted(ROOT.glob("saes/layer_*"))}
"""Site -> SAELens checkpoint, in the order of the layers."""
CLT_DIR = ROOT / "clt"
"""A cross-layer transcoder of the model's MLPs (`saekernels.load_cross_layer`): TopK, k = 32, 640 latents a layer."""
PLT_DIR = ROOT / "plt"
"""Transcoders of each layer's MLP with as many parameters in all: TopK, k = 32, 1,120 latents a layer."""
EVAL_DATA = ROOT / "data" / "eval.jsonl.gz"
"""Held-out documents: one JSON object a line with text, domain and source."""
FAMILY = ROOT / "family.json"
"""Losses of smaller models of the same kind on EVAL_DATA: a table of `saekernels scaling fit`."""
LABELLED = sorted(ROOT.glob("labelled/*.jsonl.gz"))
"""Sets of labelled texts for `saekernels probe`; made by tools/labelled_texts/ in the repository."""
SOURCES = ROOT / "SOURCES.md"
MISSING = None if MODEL_DIR.is_dir() else "the bundled example is not installed (pip install 'saekernels[example]')"
"""None where its files are; else what to do. Published wheels leave them to the package saekernels-example."""
