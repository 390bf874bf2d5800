"""Tokenizers in GGUF files: what the file says of them, and transformers' loader leaves out or reads otherwise."""

from __future__ import annotations

from typing import Any, NoReturn

from saekernels.cli.options.gguf_model import gguf_header
from saekernels.cli.options.gguf_splits import SPLITS
from saekernels.errors import InputError

_KEY = "tokenizer.ggml."
_BLANK = "▁"


def honour_fields(tokenizer: Any, path: str, option: str = "--model") -> None:
    """Make the tokenizer that transformers read from a GGUF file do what the file's fields say, in place.

    Those are, under `tokenizer.ggml.`: pre (how text is split), add_bos_token, add_eos_token, add_space_prefix.
    Raises InputError, which begins with `option`, for one that cannot be honoured, and names it.
    """
    fields = gguf_header(path).fields

    def refuse(name: str, why: str) -> NoReturn:
        key = _KEY + name
        said = f"says {key!r} is {fields[key]!r}" if key in fields else f"does not say {key!r}"
        raise InputError(
            f"{option}: {path} {said}: {why}; need --tokenizer with the tokenizer that the model was trained with"
        )

    backend, kind = tokenizer.backend_tokenizer, fields.get(_KEY + "model")
    if kind == "gpt2":
        splits = SPLITS.get(str(fields.get(_KEY + "pre")))
        if splits is None:
            refuse("pre", "how its text is split into words is not known")
        splits.install(backend)
        bos = splits.bos
    elif kind in ("llama", "gemma4"):
        if fields.get(_KEY + "pre", "default") not in ("default", kind):
            refuse("pre", f"how a tokenizer of the kind {kind!r} splits text so is not known")
        bos = kind == "llama" or tokenizer.add_bos_token
        prefix = fields.get(_KEY + "add_space_prefix")
        if prefix is not None and not _set_blank(backend, prefix):
            refuse("add_space_prefix", "transformers' loader puts no blank in front")
    else:
        refuse("model", "transformers' loader reads too little of such a tokenizer")
    if fields.get(_KEY + "add_sep_token", False):
        refuse("add_sep_token", "transformers' loader adds none")
    for end, default in (("bos", bos), ("eos", False)):
        given, wanted = fields.get(f"{_KEY}{end}_token_id"), bool(fields.get(f"{_KEY}add_{end}_token", default))
        found = getattr(tokenizer, f"{end}_token_id")
        if given is not None and found != given:
            refuse(f"{end}_token_id", f"transformers' loader takes {found}")
        if wanted and given is None:
            refuse(f"{end}_token_id", "texts begin or end with that token")
        setattr(tokenizer, f"add_{end}_token", wanted)


def _set_blank(backend: Any, wanted: bool) -> bool:
    """Whether text gets a blank in front now as wanted, which is made so if it is one too many."""
    from tokenizers import normalizers

    text = "a" if backend.normalizer is None else backend.normalizer.normalize_str("a")
    if backend.pre_tokenizer is not None:
        text = backend.pre_tokenizer.pre_tokenize_str(text)[0][0]
    found = text.startswith(_BLANK)
    if found and not wanted:
        backend.normalizer, backend.pre_tokenizer = normalizers.Replace(" ", _BLANK), None
    return found or not wanted
