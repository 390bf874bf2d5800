"""circuit-tracer's per-layer transcoder sets: layer_N.safetensors, or the files that the set's config.yaml lists.

A file that the config lists may lie in another repository, and be of another format: "hf://owner/name/file", perhaps
with "?revision=".
"""

from __future__ import annotations

from pathlib import Path

from saekernels.formats import hub
from saekernels.formats.checkpoint import Checkpoint
from saekernels.formats.config import Config, told
from saekernels.formats.files import FormatError
from saekernels.formats.layers.circuit_tracer import WITHOUT_EFFECT, sites_of
from saekernels.formats.layers.found import Apart, numbered
from saekernels.formats.load import open_checkpoint
from saekernels.formats.readers.circuit_tracer import CONFIGS, config_beside
from saekernels.sae.metadata import Metadata

NAME = "circuit-tracer set"
FILES = "several layer_N.safetensors, or config.yaml with 'transcoders'"
KIND = "transcoder_set"


def find(folder: Path) -> bool:
    """Whether a folder is of this format; one file alone is a transcoder, which `load` reads."""
    said = any((folder / name).is_file() for name in CONFIGS)
    config = config_beside(folder / "layer_0.safetensors") if said else {}
    listed = config.get("model_kind") == KIND and bool(config.get("transcoders"))
    return listed or len(list(folder.glob("layer_*.safetensors"))) > 1


def read(folder: Path, k: int | None = None) -> Apart:
    """The transcoders of a folder, in the order of the layers."""
    config = config_beside(folder / "layer_0.safetensors")
    if config.get("model_kind", KIND) != KIND:
        raise FormatError(f"{config.path}: 'model_kind' is {config['model_kind']!r:.40}, need {KIND!r}")
    files = _listed(folder, config) or numbered(folder, "layer")
    if not files:
        raise FormatError(f"{folder}: neither layer_N.safetensors nor a list 'transcoders' in its config")
    # Of a set's own files its config counts; of those elsewhere what lies beside them.
    made = tuple(_open(file, k) for file in files)
    same_widths(made, files)
    config.kept("activation", "activation_fn", "k")
    ends = [told(config, f"feature_{end}_hook", str) for end in ("input", "output")]
    metadata = Metadata(NAME, model=told(config, "model_name", str), ignored=config.unknown(WITHOUT_EFFECT))
    return Apart(folder, made, metadata, sites_of(ends[0], ends[1], len(made)))


def _open(file: Path, k: int | None) -> Checkpoint:
    return open_checkpoint(file, dtype=None, input_scale=None, k=k, revision=None)


def same_widths(made: tuple[Checkpoint, ...], files: list[Path]) -> None:
    """FormatError where layers have other widths than the first."""
    widths = [(one.state["W_enc"].shape[1], one.state["W_dec"].shape[1]) for one in made]
    for file, width in zip(files, widths, strict=True):
        if width != widths[0]:
            raise FormatError(f"{file}: reads {width[0]} and writes {width[1]}, but {files[0].name} {widths[0]}")


def _listed(folder: Path, config: Config) -> list[Path]:
    """The files that the config lists, each downloaded where it lies elsewhere."""
    listed = config.get("transcoders") or []
    if not isinstance(listed, list) or not all(isinstance(one, str) for one in listed):
        raise FormatError(f"{config.path}: 'transcoders' is {listed!r:.60}, need a list of files")
    found = []
    for one in listed:
        name, _, options = one.removeprefix("hf://").partition("?")
        revision = options.removeprefix("revision=") or None
        if options and not options.startswith("revision="):
            raise FormatError(f"{config.path}: 'transcoders' has {one!r:.80}, need hf://owner/name/file?revision=NAME")
        found.append(hub.fetch(name, revision) if one.startswith("hf://") else folder / name)
        if not found[-1].is_file():
            raise FormatError(f"{config.path}: 'transcoders' has {one!r:.80}, need a file that is there")
    return found
