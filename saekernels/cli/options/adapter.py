"""Adapters of PEFT: put into the modules of a model, whose names and class stay what they were."""

from __future__ import annotations

import json
import os
import re
import warnings
from pathlib import Path
from typing import Any

import torch

from saekernels.cli.options.inputs import first_reason, transformers
from saekernels.errors import InputError, missing_extra
from saekernels.eval.passes.calls import trial_ids
from saekernels.eval.store import provenance


def holds_adapter(name: str, revision: str | None) -> str | None:
    """The model of the adapter in that directory or repository, "" for an unknown one; None if there is no adapter.

    transformers would put it over a model without a word where peft is installed, and leave it out elsewhere.
    """
    if os.path.isfile(name):
        return None
    try:
        path = transformers().utils.peft_utils.find_adapter_config_file(name, revision=revision)
    except (OSError, ValueError):  # of a repository that cannot be had, which is told when its model is loaded
        return None
    if path is None:
        return None
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))["base_model_name_or_path"] or ""
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return ""


def add_adapter(model: Any, name: str) -> tuple[Any, str]:
    """The model with the adapter of that directory or hub id in its modules, not merged; and what to report of it.

    Raises InputError for an adapter that cannot be loaded whole, or that acts outside of the model's modules.
    """
    peft = _peft()
    if (name.startswith((".", "/", "~")) or name.count("/") > 1) and not os.path.exists(name):
        raise InputError(f"--adapter: {name} does not exist")
    if os.path.isfile(name):
        raise InputError(f"--adapter: {name} is a file; need a directory or a hub id")
    try:
        config = peft.PeftConfig.from_pretrained(name)
        inside = not config.is_prompt_learning and getattr(config, "alora_invocation_tokens", None) is None
        if inside:
            wrapped, problem = _wrapped(peft, model, name)
            inside = _acts_inside(wrapped)
    except Exception as error:  # whatever a damaged or foreign adapter may raise
        raise InputError(f"--adapter: cannot load {name!r}: {first_reason(error)}") from error
    kind = provenance.adapter(config)
    if not inside:
        what = f"{kind}, which does more than the model's modules do"
        raise InputError(f"--adapter: {name!r} is {what}; need one that lies within them, such as LoRA")
    if problem is not None:
        raise InputError(f"--adapter: {name!r} does not fit the model: {problem}")
    return wrapped.get_base_model(), f"{name} ({kind}), not merged"


def _wrapped(peft: Any, model: Any, name: str) -> tuple[Any, str | None]:
    """The model within peft's, and which weight is missing or has no place."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        wrapped = peft.PeftModel.from_pretrained(model, name).eval()
        # from_pretrained tells of missing weights alone, and only so; loading them once more tells of the others.
        unknown = sorted(wrapped.load_adapter(name, "default").unexpected_keys)
    for one in caught:
        if missing := re.search(r"missing adapter keys.*?'([^']+)'", str(one.message)):
            return wrapped, f"it lacks {missing[1]!r}"
    return wrapped, f"the model has no place for its weight {unknown[0]!r}" if unknown else None


@torch.no_grad()
def _acts_inside(wrapped: Any) -> bool:
    """Whether the model alone, with what was put into its modules, gives the logits of peft's model around it."""
    model = wrapped.get_base_model()
    ids = trial_ids(model)
    alone, around = model(input_ids=ids).logits, wrapped.eval()(input_ids=ids).logits
    return alone.shape == around.shape and torch.allclose(
        alone, around, rtol=1e-4, atol=1e-4 * float(around.abs().max())
    )


def _peft() -> Any:
    try:
        import peft
    except ImportError as error:
        raise missing_extra("peft", "--adapter", extra="models") from error
    return peft
