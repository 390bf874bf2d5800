"""Checkpoints on the Hugging Face hub: "owner/name/folder/in/it"."""

from __future__ import annotations

import re
from pathlib import Path

_WEIGHTS = (".pt", ".pth", ".npz", ".safetensors")
_CONFIGS = ("cfg.json", "config.json", "config.yaml", "config.yml", "hyperparams.json")
_ID = re.compile(r"(?P<repo>[\w.-]+/[\w.-]+)(/(?P<inside>[^\\]+))?")


def fetch(name: str, revision: str | None = None) -> Path:
    """Download what is under that id and return where it lies. Code of a repository is never run.

    Raises FileNotFoundError for a name that is no id (a path that is not there), or where the hub has nothing by it.
    """
    match = _ID.fullmatch(name.rstrip("/"))
    inside = (match["inside"] or "") if match else ""
    if match is None or name.startswith((".", "/", "~")) or ".." in inside.split("/"):
        raise FileNotFoundError(f"path: got {name!r}, which does not exist")
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise FileNotFoundError(
            f"path: got {name!r}, which does not exist here; as a hub id it needs huggingface_hub: "
            "pip install 'saekernels[eval]'"
        ) from error
    patterns = [inside, f"{inside}/*", *_beside(inside)] if inside else None
    try:
        root = snapshot_download(match["repo"], revision=revision, allow_patterns=patterns)
    except Exception as error:  # no network, no such repository, no permission: the hub has an exception for each
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise FileNotFoundError(
            f"path: got {name!r}, which does not exist here, and the hub gives nothing by that id: {reason}"
        ) from error
    place = Path(root, inside)
    if not place.exists():
        raise FileNotFoundError(f"path: the repository {match['repo']!r} has no {inside!r}")
    return place


def _beside(inside: str) -> list[str]:
    """The configs that may lie beside a file: without them it could be read as something else."""
    if not inside.endswith(_WEIGHTS):
        return []
    folder, _, name = inside.rpartition("/")
    own = f"{name.rpartition('.')[0]}_cfg.json"
    return [f"{folder}/{config}" if folder else config for config in (*_CONFIGS, own)]
