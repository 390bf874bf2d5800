"""The same figures for the same command: to the bit where the model's own forward has them, and how near elsewhere."""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest
import torch
from torch import Tensor

import tiny_lm
from interrupted import in_small_chunks
from saekernels.backends.reference.rows import linear_rows
from saekernels.eval import Document, evaluate
from saekernels.eval.sums.row_groups import RowGroups, add_rows

LENGTH = 23


@pytest.fixture
def one_row_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Matrix products whose rows do not depend on each other, which BLAS does not promise."""
    tiny_lm.trained_model()  # which is not trained like that: other tests of this process share it

    def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        return linear_rows(x.reshape(-1, x.shape[-1]), weight, bias).view(*x.shape[:-1], -1)

    monkeypatch.setattr(torch.nn.functional, "linear", linear)


def equal_windows() -> list[Document]:
    """Documents of as many tokens each, so that no window is padded."""
    tokenizer = tiny_lm.tokenizer()
    ids = tokenizer((tiny_lm.PARAGRAPH + tiny_lm.CODE) * 3, add_special_tokens=False)["input_ids"]
    texts = [tokenizer.decode(ids[i : i + LENGTH]) for i in range(0, len(ids) - LENGTH, 11)]
    fitting = [text for text in texts if len(tokenizer(text, add_special_tokens=False)["input_ids"]) == LENGTH]
    assert len(fitting) > 12
    return [Document(text, "ab"[i % 2]) for i, text in enumerate(fitting)]


def report(documents: list[Document], batch_size: int) -> dict[str, Any]:
    made = evaluate(
        tiny_lm.trained_model(), tiny_lm.tokenizer(), tiny_lm.saes(), documents, bootstrap=20, batch_size=batch_size
    )
    return {**made.to_dict(), "run": None}


@pytest.mark.slow
@pytest.mark.usefixtures("one_row_at_a_time")
def test_bits_do_not_depend_on_the_batch_where_the_model_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    in_small_chunks(200, monkeypatch.setattr)
    documents = equal_windows()
    want = json.dumps(report(documents, 8))
    for batch_size in (1, 3):
        assert json.dumps(report(documents, batch_size)) == want


def test_figures_hardly_depend_on_the_batch_elsewhere() -> None:
    """A float32 model whose products are summed in another order: a document's loss moves by some 1e-7 of itself."""
    want = report(tiny_lm.documents(), 8)["documents_table"]
    for batch_size in (1, 2, 64):
        got = report(tiny_lm.documents(), batch_size)["documents_table"]
        for key in ("clean", *want["spliced"]):
            a, b = ((t["clean"] if key == "clean" else t["spliced"][key]) for t in (want, got))
            torch.testing.assert_close(torch.tensor(a), torch.tensor(b), rtol=3e-6, atol=3e-6)


@pytest.mark.parametrize("cuts", [[], [1], [3, 4, 5], [1000], [1024, 1024], [1500, 2000]])
def test_row_groups_have_one_size_however_rows_come(cuts: list[int]) -> None:
    rows, others = torch.arange(2500.0)[:, None], torch.arange(2500.0)[:, None] * 2
    seen: list[tuple[Tensor, Tensor]] = []
    groups = RowGroups(lambda a, b: seen.append((a.clone(), b.clone())), size=1024)
    edges = [0, *sorted(cuts), 2500]
    for start, stop in itertools.pairwise(edges):
        groups.add(rows[start:stop], others[start:stop])
    groups.flush()
    groups.flush()
    assert [len(a) for a, _ in seen] == [1024, 1024, 452]
    assert torch.equal(torch.cat([a for a, _ in seen]), rows)
    assert torch.equal(torch.cat([b for _, b in seen]), others)


@pytest.mark.parametrize("width", [2, 3, 40])
def test_sums_of_rows_have_the_same_bits_in_parts(width: int) -> None:
    rows = torch.randn(3000, width) * 10.0 ** torch.randint(-6, 6, (3000, 1))
    zero = torch.zeros(width, dtype=torch.float64)
    whole = add_rows(zero, rows)
    torch.testing.assert_close(whole, rows.double().sum(0), rtol=1e-9, atol=1e-9)
    for size in (1, 7, 1024):
        total = zero
        for part in rows.split(size):
            total = add_rows(total, part)
        assert torch.equal(total, whole)
