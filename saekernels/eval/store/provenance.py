"""What a report says of how a model's weights came about: quantised by what, adapted by what."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_BITS = ("bits", "nbits", "w_bit")
_KINDS = ("quant_type", "format", "fmt", "weights", "weight_dtype")


def provenance(model: Any) -> dict[str, str]:
    """ "weights" of a model that computes with quantised ones, "adapter" of one that peft has changed, in words."""
    found = {}
    quantised = getattr(getattr(model, "config", None), "quantization_config", None)
    if quantised is not None:
        found["weights"] = quantisation(quantised)
    adapters = getattr(model, "peft_config", None)
    if isinstance(adapters, Mapping) and adapters:
        found["adapter"] = "; ".join(adapter(one) for one in adapters.values())
    return found


def quantisation(config: Any) -> str:
    """What a `quantization_config` of transformers, or the same as a dict, says: "bitsandbytes 4-bit nf4"."""
    fields = config if isinstance(config, Mapping) else config.to_dict()
    method = fields.get("quant_method")
    told = [str(getattr(method, "value", method) or "quantised")]
    bits = next((fields[name] for name in _BITS if isinstance(fields.get(name), int)), None)
    kind = next((_name(fields[name]) for name in _KINDS if fields.get(name) is not None), None)
    if fields.get("load_in_8bit"):
        bits = 8
    elif fields.get("load_in_4bit"):
        bits, kind = 4, fields.get("bnb_4bit_quant_type")
    return " ".join([*told, *([f"{bits}-bit"] if bits else []), *([str(kind)] if kind else [])])


def _name(kind: Any) -> str | None:
    """ "Int8WeightOnlyConfig" of {"default": {"_type": "Int8WeightOnlyConfig", ...}}, as torchao writes it."""
    while isinstance(kind, Mapping):
        kind = kind.get("_type") or kind.get("default")
    return kind if isinstance(kind, str) else None


def adapter(config: Any) -> str:
    """What a peft config says: "LORA of rank 8"."""
    kind = getattr(config, "peft_type", None)
    rank = getattr(config, "r", None)
    return str(getattr(kind, "value", kind)) + (f" of rank {rank}" if isinstance(rank, int) else "")
