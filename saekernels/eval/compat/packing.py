"""Token batches as SAELens and SAEBench pack them: whole windows of concatenated documents."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor


def packed(
    documents: Iterable[str], tokenizer: Any, context: int, batch_size: int, bos: int | None
) -> Iterator[Tensor]:
    """Batches [batch_size, context] int64: every window begins with `bos`, which also stands between documents.

    What does not fill a window, or a batch, is left out. None for `bos`: nothing in front and nothing between.
    """
    batch: list[Tensor] = []
    for window in _windows(documents, tokenizer, context, bos):
        batch.append(window)
        if len(batch) == batch_size:
            yield torch.stack(batch)
            batch = []


def _windows(documents: Iterable[str], tokenizer: Any, context: int, bos: int | None) -> Iterator[Tensor]:
    window: list[int] = []
    for text in documents:
        ids = list(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
        if bos is not None and ids and ids[0] != bos:
            ids = [bos, *ids]
        while ids:
            if not window and bos is not None and ids[0] != bos:
                window.append(bos)
            take = context - len(window)
            window, ids = window + ids[:take], ids[take:]
            if len(window) == context:
                yield torch.tensor(window, dtype=torch.int64)
                window = []
