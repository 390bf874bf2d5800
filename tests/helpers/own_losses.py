"""Cross-entropies of a model from its own full logits, with and without an SAE put in by a plain hook."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from saekernels.eval import Document


def token_documents(vocabulary: int, count: int = 4) -> list[Document]:
    """Documents of random ids from 3 on."""
    rng = np.random.default_rng(0)
    return [Document("", ids=tuple(int(i) for i in rng.integers(3, vocabulary, n))) for n in rng.integers(5, 40, count)]


@torch.no_grad()
def own_losses(
    run: Callable[[Tensor], Tensor], module: nn.Module, sae: nn.Module, documents: list[Document], context: int
) -> tuple[float, float]:
    """Mean next-token cross-entropy, clean and with the SAE in the place of the module's output; every window alone.

    run: ids [1, S] -> logits [1, S, V].
    """

    def put(_: Any, args: Any, output: Any) -> Any:
        return (sae(output[0]), *output[1:]) if isinstance(output, tuple) else sae(output)

    def loss(ids: Tensor) -> Tensor:
        return F.cross_entropy(run(ids)[0, :-1].double(), ids[0, 1:], reduction="sum")

    clean, spliced, count = 0.0, 0.0, 0
    for document in documents:
        for start in range(0, len(document.ids or ()), context):
            ids = torch.tensor([document.ids[start : start + context]])  # type: ignore[index]
            if ids.shape[1] < 2:
                continue
            count += ids.shape[1] - 1
            clean += float(loss(ids))
            handle = module.register_forward_hook(put)
            spliced += float(loss(ids))
            handle.remove()
    return clean / count, spliced / count
