"""The model and its tokenizer by name: a directory, a hub id or a GGUF file. Every failure becomes one InputError."""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from saekernels.cli.options.adapter import add_adapter, holds_adapter
from saekernels.cli.options.gguf_model import check_rope, gguf_place, gguf_type, is_gguf, unpacked
from saekernels.cli.options.gguf_tokenizer import honour_fields
from saekernels.cli.options.inputs import DTYPES, first_reason, transformers
from saekernels.display.numbers import counted
from saekernels.errors import InputError, first_line
from saekernels.eval.store.provenance import quantisation


@dataclass(frozen=True)
class ModelNames:
    """What --model and the options beside it say.

    revision: of the model's repository on the hub, and of the tokenizer's where that is the same one. adapter: of peft,
    put over the model. trust_code: run the Python code that a checkpoint may bring, and not refuse it.
    """

    model: str
    tokenizer: str | None = None
    revision: str | None = None
    adapter: str | None = None
    trust_code: bool = False

    @classmethod
    def of(cls, arguments: argparse.Namespace) -> ModelNames:
        return cls(
            arguments.model, arguments.tokenizer, arguments.revision, arguments.adapter, arguments.trust_remote_code
        )


@dataclass(frozen=True)
class LoadedModel:
    """A causal LM in eval mode.

    facts: how its weights came about, for the report: "weights", "adapter" and "revision", those that there are.
    """

    model: Any
    facts: dict[str, str]


def load_model(
    names: ModelNames, device: torch.device, dtype: str, device_map: str | dict[str, Any] | None = None
) -> LoadedModel:
    """Load the model onto `device`; device_map: where its parts go instead, as transformers understands it."""
    _check_place(names.model, "--model")
    if names.revision is not None and os.path.exists(names.model):
        raise InputError(f"--revision: {names.model} is on this machine's disk, need a repository of the hub")
    base = holds_adapter(names.model, names.revision)
    if base is not None:
        of = base or "that it was made for"
        raise InputError(
            f"--model: {names.model} is a PEFT adapter; need --model with the model {of}, and --adapter {names.model}"
        )
    where = _where(names.model, names.revision)
    config = _config(names, where)
    quantised = getattr(config, "quantization_config", None)
    if quantised is not None and device_map is None and torch.cuda.is_available():
        device_map = {"": str(device)}  # quantised modules may not be moved once they are made
    options: dict[str, Any] = {"dtype": DTYPES.get(dtype, "auto")}
    if device_map is not None:
        options["device_map"] = device_map
    model = _model(names, config, {**where, **options})
    facts = {}
    if is_gguf(names.model):
        check_rope(names.model, model.config)
        facts["weights"] = gguf_type(names.model, model.dtype)
    elif quantised is not None:
        gone = getattr(model.config, "quantization_config", None) is None
        now = f", dequantised to {str(model.dtype).removeprefix('torch.')}" if gone else ""
        facts["weights"] = quantisation(quantised) + now
    if names.adapter is not None:
        model, facts["adapter"] = add_adapter(model, names.adapter)
    if names.revision is not None:
        facts["revision"] = _revision(names.model, names.revision)
    return LoadedModel((model.to(device) if device_map is None and quantised is None else model).eval(), facts)


def _revision(repository: str, name: str) -> str:
    """The name with the commit that it means now, which a branch does not always."""
    from huggingface_hub import try_to_load_from_cache

    path = try_to_load_from_cache(repository, "config.json", revision=name)
    commit = Path(path).parent.name if isinstance(path, str) else name
    return name if commit == name else f"{name} ({commit[:12]})"


def load_tokenizer(names: ModelNames) -> Any:
    """The tokenizer that --tokenizer names, else the model's own, a GGUF file's included."""
    name = names.tokenizer or names.model
    _check_place(name, "--tokenizer")
    where = _where(name, names.revision if name == names.model else None)
    try:
        tokenizer = transformers().AutoTokenizer.from_pretrained(**where, trust_remote_code=names.trust_code)
    except Exception as error:  # as for the model
        raise InputError(f"cannot load a tokenizer from {name!r}: {_own_code(error) or first_reason(error)}") from error
    if is_gguf(name):
        honour_fields(tokenizer, name, "--tokenizer" if names.tokenizer else "--model")
    return tokenizer


def _where(name: str, revision: str | None) -> dict[str, Any]:
    """The arguments of from_pretrained that say where the files are."""
    if is_gguf(name):
        return gguf_place(name)
    found = {"pretrained_model_name_or_path": name}
    return found if revision is None else {**found, "revision": revision}


def _config(names: ModelNames, where: dict[str, Any]) -> Any:
    try:
        return transformers().AutoConfig.from_pretrained(**where, trust_remote_code=names.trust_code)
    except Exception as error:  # a config with values that do not fit can fail anywhere, in any way
        raise _cannot_load(names.model, error) from error


def _model(names: ModelNames, config: Any, options: dict[str, Any]) -> Any:
    quiet: contextlib.AbstractContextManager[Any] = contextlib.nullcontext()
    if is_gguf(names.model):
        # Its bar of tensors ignores that bars are off.
        options, quiet = {**options, **unpacked()}, contextlib.redirect_stderr(io.StringIO())
    auto = _class_for(names.model, config)
    if hasattr(auto, "_model_mapping"):
        options = {**options, "trust_remote_code": names.trust_code}
    try:
        with quiet, warnings.catch_warnings():
            warnings.filterwarnings("error", message=".*device_map keys do not match")
            warnings.filterwarnings("ignore", message="Initializing zero-element tensors")
            # Shapes that do not fit are told below, by name; transformers would point to a report that nobody sees.
            model, found = auto.from_pretrained(**options, output_loading_info=True, ignore_mismatched_sizes=True)
    except UserWarning as error:
        raise InputError(f"--device-map: {first_line(error)}") from error
    except Exception as error:  # as for the config
        raise _cannot_load(names.model, error) from error
    _check_weights(names.model, model, found)
    return model


def _class_for(name: str, config: Any) -> Any:
    """The class of transformers that loads this checkpoint's model and gives logits for text.

    A model of images and text whose own checkpoint this is comes before a part of it that takes text alone: its weights
    would not all have a place.
    """
    hf = transformers()
    causal, wider = hf.MODEL_FOR_CAUSAL_LM_MAPPING, hf.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING
    saved = (getattr(config, "architectures", None) or [type(config).__name__])[0]
    known = type(config) in causal or "AutoModelForCausalLM" in (getattr(config, "auto_map", None) or {})
    wide = type(config) in wider and (not known or wider[type(config)].__name__ == saved)
    if known and not wide:
        return hf.AutoModelForCausalLM
    found = hf.AutoModelForImageTextToText if wide else getattr(hf, saved, None)
    if not wide and not getattr(found, "can_generate", bool)():
        raise InputError(f"--model: cannot load {name!r}: {saved} is no causal language model that transformers knows")
    if config.is_encoder_decoder:
        raise InputError(
            f"--model: cannot load {name!r}: {saved} is an encoder-decoder; from Python, evaluate takes encoder_ids"
        )
    return found


def _cannot_load(name: str, error: Exception) -> InputError:
    damaged = type(error).__name__ == "SafetensorError"
    what = f"the weights of {name!r} are damaged" if damaged else f"cannot load {name!r}"
    return InputError(f"--model: {what}: {_own_code(error) or first_reason(error)}")


def _check_weights(name: str, model: Any, found: dict[str, Any]) -> None:
    """InputError unless the checkpoint has the weights of the model and no others: it would be another model."""
    missing = sorted(found["missing_keys"])
    if missing:
        raise InputError(
            f"--model: the checkpoint {name!r} lacks {counted(len(missing), 'weight')}, such as {missing[0]!r}"
        )
    # What a class says may be there is already left out, but not old copies of what a module computes for itself.
    unknown = sorted(set(found["unexpected_keys"]) - {buffer for buffer, _ in model.named_buffers()})
    if unknown:
        raise InputError(
            f"--model: the checkpoint {name!r} has {counted(len(unknown), 'weight')} that its config has no place for, "
            f"such as {unknown[0]!r}"
        )
    other = sorted(found["mismatched_keys"])
    if other:
        key, got, needed = other[0]
        raise InputError(
            f"--model: the checkpoint {name!r} has {counted(len(other), 'weight')} of another shape than its config "
            f"says, such as {key!r}: got {list(got)}, need {list(needed)}"
        )


def _own_code(error: Exception) -> str | None:
    """What is to be said where transformers refuses to run a checkpoint's code."""
    wants = "it brings Python code of its own, which was not run; --trust-remote-code runs it, with your rights"
    return wants if "trust_remote_code" in str(error) else None


def _check_place(name: str, option: str) -> None:
    """A path that is not there would be asked of the hub, which takes long and says something else."""
    looks_like_path = name.startswith((".", "/", "~")) or name.count("/") > 1 or is_gguf(name)
    if looks_like_path and not os.path.exists(name):
        raise InputError(f"{option}: {name} does not exist")
    if os.path.isfile(name) and not is_gguf(name):
        raise InputError(f"{option}: {name} is a file; need a directory, a hub id or a .gguf file")
