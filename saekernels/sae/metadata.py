"""What a checkpoint says of itself beside its function: which model, which hook points, which text."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Metadata:
    """What a checkpoint says of the model and the text that its SAE was trained on. None of it changes its function.

    format: the format that it was read from.
    model: the model's name, as the file has it.
    reads, writes: a hook point or module each, as the file spells them; equal where the SAE replaces what it reads.
    head: the one attention head that it reads and replaces, of activations [..., heads, d_head].
    prepend_bos: whether a BOS token stood in front of every training text.
    context: tokens per training window.
    dataset: the training text.
    model_options: how the model was changed when it was loaded (TransformerLens' folded norms, centred weights, ...).
    ignored: fields of the config that are not known here, and were not used.
    other: further fields that were kept, by the file's names.
    """

    format: str
    model: str | None = None
    reads: str | None = None
    writes: str | None = None
    head: int | None = None
    prepend_bos: bool | None = None
    context: int | None = None
    dataset: str | None = None
    model_options: Mapping[str, Any] = field(default_factory=dict)
    ignored: tuple[str, ...] = ()
    other: Mapping[str, Any] = field(default_factory=dict)

    @property
    def ends(self) -> tuple[tuple[str, str], ...]:
        """(what is read, what is replaced) where it was trained, in each of the names that the file has for it."""
        inward, outward = (self.other.get(name) for name in ("hf_hook_name", "hf_hook_name_out"))
        moves = self.writes not in (None, self.reads)
        named = [(inward, outward if isinstance(outward, str) else self.writes if moves else None)]
        # SAELens calls what transcoders of Gemma 3 read `hook_mlp_in`, a norm's input: they read the norm's output.
        if not (isinstance(inward, str) and (self.reads or "").endswith("hook_mlp_in")):
            named.append((self.reads, self.writes))
        return tuple((reads, writes or reads) for reads, writes in named if isinstance(reads, str))

    @property
    def sites(self) -> tuple[str, ...]:
        """`ends` as sites of a splice."""
        return tuple(reads if reads == writes else f"{reads} -> {writes}" for reads, writes in self.ends)
