"""A folder for each transcoder of a set, each in a format of its own: what `examples/train_saes.py` leaves behind."""

from __future__ import annotations

import re
from pathlib import Path

from saekernels.formats.files import FormatError
from saekernels.formats.layers.found import Apart
from saekernels.formats.layers.transcoder_set import same_widths
from saekernels.formats.load import open_checkpoint
from saekernels.sae.metadata import Metadata

NAME = "folders of transcoders"
FILES = "two or more folders with the cfg.json of a transcoder each"


def find(folder: Path) -> bool:
    """Whether a folder is of this format."""
    return len(_folders(folder)) > 1


def read(folder: Path, k: int | None = None) -> Apart:
    """The transcoders of a folder, in the order of the numbers in their folders' names."""
    folders = _folders(folder)
    made = tuple(open_checkpoint(one, dtype=None, input_scale=None, k=k, revision=None) for one in folders)
    same_widths(made, folders)
    sites = [one.metadata.sites for one in made]
    for one, checkpoint in zip(folders, made, strict=True):
        for reads, writes in checkpoint.metadata.ends[:1]:
            if reads == writes:
                raise FormatError(
                    f"{one}: an SAE that replaces what it reads, {reads}; a set takes transcoders alone, "
                    "and --sae takes SAEs"
                )
    said = tuple(names[0] for names in sites if names)
    models = {one.metadata.model for one in made}
    metadata = Metadata(NAME, model=models.pop() if len(models) == 1 else None)
    return Apart(folder, made, metadata, said if len(said) == len(made) else None)


def _folders(folder: Path) -> list[Path]:
    found = [one for one in folder.iterdir() if (one / "cfg.json").is_file()]
    return sorted(found, key=lambda one: [int(part) if part.isdigit() else part for part in _parts(one)])


def _parts(folder: Path) -> list[str]:
    return re.split(r"(\d+)", folder.name)  # words and numbers by turns
