"""What an evaluation is of, as short digests: a run goes on only in a folder that was begun with the same.

Everything that changes a figure belongs in here: weights, but also what is no tensor (an SAE's k, an edit, the
tokenizer's merges, a model's soft-cap).
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from saekernels.crosslayer.head_site import HeadSite
from saekernels.crosslayer.site import LayerSite
from saekernels.crosslayer.source import SourceLayer
from saekernels.files.sampled import sampled
from saekernels.parallel import LatentParallelSAE
from saekernels.parallel.devices import whole

_PLAIN = (bool, int, float, str, tuple, type(None))
# Of a model's config: where it lies and what wrote it, which change no figure.
_NAMES = ("_name_or_path", "transformers_version", "architectures", "torch_dtype", "dtype")
# Likewise, of an adapter's.
_PEFT_NAMES = ("base_model_name_or_path", "revision", "inference_mode", "peft_version", "auto_mapping")


def fingerprint(module: nn.Module, settings: bool = False) -> str:
    """A short digest of a module's parameters and buffers: all names, shapes, types and values.

    settings: also of its parts' attributes that are numbers, texts or dataclasses, as an SAE's activation is. Of an
    SAE that is spread over processes, of all its parts; every process must then ask. Of decoders that are mapped from a
    file its size, time and a sample.
    """
    digest = hashlib.sha256()
    spread: list[str] = []
    for name, part in module.named_modules():
        if any(name.startswith(prefix) for prefix in spread):
            continue
        if isinstance(part, LatentParallelSAE):
            spread.append(f"{name}." if name else "")
            parts = part.fingerprints(fingerprint(part.own, settings))
            digest.update(repr((name, part.activation, part.n_latents, parts)).encode())
            continue
        if settings:
            digest.update(f"{name} {type(part).__name__} {_settings(part)}".encode())
        for own, value in (*part.named_parameters(recurse=False), *part.named_buffers(recurse=False)):
            digest.update(f"{name}.{own} {tuple(value.shape)} {value.dtype}".encode())
            if isinstance(part, SourceLayer) and own == "W_dec" and part.file is not None:
                digest.update(sampled(part.file).encode())  # to read all of it is what mapping it was to spare
                continue
            _feed(digest, whole(part, own).detach())
    return _short(digest)


def of_model(model: nn.Module) -> str:
    """A model's dtype and a digest of its weights, its transformers config and the code that its checkpoint brought."""
    to_dict = getattr(getattr(model, "config", None), "to_dict", None)
    config = {key: value for key, value in to_dict().items() if key not in _NAMES} if callable(to_dict) else {}
    content = json.dumps(config, sort_keys=True, default=str) + "".join(_adapters(model))
    # A plain module has its settings in its parts alone.
    weights = fingerprint(model, settings=not callable(to_dict))
    code = _own_code(*(type(part) for part in model.modules()))
    dtype = str(getattr(model, "dtype", "")).removeprefix("torch.")
    return f"{dtype} {_short(hashlib.sha256(f'{weights} {content} {code}'.encode()))}".strip()


def _adapters(model: nn.Module) -> list[str]:
    """What peft's layers do with their weights: of which kind they are, which of them count, by how much."""
    names = ("scaling", "active_adapters", "disable_adapters", "merged_adapters")
    found = [
        repr((name, *(getattr(part, one, None) for one in names)))
        for name, part in model.named_modules()
        if isinstance(getattr(part, "disable_adapters", None), bool)  # a method of models of transformers
    ]
    configs = getattr(model, "peft_config", None) or {}
    for name, config in configs.items() if found else ():
        fields = {key: value for key, value in config.to_dict().items() if key not in _PEFT_NAMES}
        found.append(json.dumps({name: fields}, sort_keys=True, default=_in_order))
    return found


def _in_order(value: Any) -> Any:
    return sorted(map(str, value)) if isinstance(value, set | frozenset) else str(value)


def of_sae(sae: nn.Module) -> str:
    """What an SAE selects by and how it is edited, for people, and its fingerprint."""
    if isinstance(sae, HeadSite):
        raise ValueError(
            f"{sae}: its codes are those of passes of its own, over one text; give the whole crosscoder to "
            "saekernels.evaluate_replacement"
        )
    settings = [getattr(sae, name, None) for name in ("activation", "edits", "keep_error")]
    if isinstance(sae, LayerSite) and (sae.given is not None or sae.error is not None):
        raise ValueError(
            f"{sae}: codes and errors that are given belong to one text, and cannot be evaluated on others"
        )
    told = [repr(one) for one in settings if one and (dataclasses.is_dataclass(one) or isinstance(one, tuple | bool))]
    return " ".join([*told, fingerprint(sae, settings=True)])


def of_saes(saes: Mapping[str, Any]) -> dict[str, str]:
    """Entry -> `of_sae`, and under their sites those of layers that are only read, for others to write with."""
    found = {entry: of_sae(sae) for entry, sae in saes.items()}
    for sae in saes.values():
        for site, layer in sae.before.items() if isinstance(sae, LayerSite) else ():
            if not any(layer is other for other in saes.values()):
                found.setdefault(f"{site} is read", of_sae(layer))
    return found


def of_tokenizer(tokenizer: Any) -> str:
    """A digest of what a tokenizer does: its whole pipeline if it is a fast one, else its vocabulary; its own code."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        content = json.loads(backend.to_str())
        # Calls set and unset these.
        content = {key: value for key, value in content.items() if key not in ("truncation", "padding")}
    else:
        vocabulary = getattr(tokenizer, "get_vocab", dict)
        content = {"class": type(tokenizer).__name__, "vocabulary": vocabulary()}
    code = _own_code(type(tokenizer))
    return _short(hashlib.sha256(f"{json.dumps(content, sort_keys=True)} {code}".encode()))


def _own_code(*kinds: type) -> list[str]:
    """Digests of the files of classes that transformers has loaded from a checkpoint."""
    modules = {kind.__module__ for kind in kinds if kind.__module__.startswith("transformers_modules")}
    files = {getattr(sys.modules.get(name), "__file__", None) for name in modules}
    return sorted(_short(hashlib.sha256(Path(file).read_bytes())) for file in files if file)


def _settings(part: nn.Module) -> str:
    found = {
        name: value
        for name, value in sorted(vars(part).items())
        if not name.startswith("_")
        and name not in ("training", "metadata")
        and (isinstance(value, _PLAIN) or dataclasses.is_dataclass(value))
    }
    return repr(found)


def _feed(digest: Any, value: Tensor) -> None:
    """All bytes, a piece at a time on the CPU; of a tensor made of others, as torchao's are, all of those."""
    if hasattr(value, "__tensor_flatten__"):
        names, rest = value.__tensor_flatten__()
        digest.update(repr((type(value).__name__, names, rest)).encode())
        for name in names:
            _feed(digest, getattr(value, name))
        return
    for piece in value.reshape(-1).split(1 << 24):
        digest.update(piece.to("cpu").contiguous().view(torch.uint8).numpy())


def _short(digest: Any) -> str:
    return str(digest.hexdigest()[:16])
