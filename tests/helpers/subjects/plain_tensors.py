"""The tensors of a plain state dict, how programs save them, and what they compute by each of its formulas."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from zoo import D, F, random, topk

W = {"W_enc": random(D, F), "W_dec": random(F, D), "b_enc": random(F) * 0.2, "b_dec": random(D)}
WRITERS: dict[str, Callable[[Any, Path], None]] = {".pt": torch.save, ".pth": torch.save, ".safetensors": save_file}


def pre(x: Tensor, shift: bool = True) -> Tensor:
    return (x - W["b_dec"] * shift) @ W["W_enc"] + W["b_enc"]


def relu(x: Tensor, shift: bool = True) -> Tensor:
    return pre(x, shift).relu() @ W["W_dec"] + W["b_dec"]


def top(x: Tensor, shift: bool = True) -> Tensor:
    return topk(pre(x, shift)) @ W["W_dec"] + W["b_dec"]
