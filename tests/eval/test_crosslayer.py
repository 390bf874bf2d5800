"""Cross-layer transcoders through the evaluator, against a dense loop that knows nothing of it."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import saekernels as sk
import tiny_lm

READS = [f"model.layers.{layer}.mlp@input" for layer in range(2)]
SITES = tuple(f"model.layers.{layer}.mlp@module" for layer in range(2))


def transcoder() -> sk.CrossLayerTranscoder:
    torch.manual_seed(1)
    clt = sk.CrossLayerTranscoder(tiny_lm.WIDTH, 64, 2, sk.JumpReLU(), skip=True)
    with torch.no_grad():
        for parameter in clt.parameters():
            parameter.normal_(std=0.2)
        for source in clt.sources:
            source.threshold.fill_(0.1)  # type: ignore[operator,union-attr]
    clt.sites = SITES
    return clt


class Dense(nn.Module):
    """An MLP's replacement: every layer's dense codes go into a list that the layers share."""

    def __init__(self, clt: sk.CrossLayerTranscoder, layer: int, codes: list[Tensor], mlp: nn.Module | None) -> None:
        super().__init__()
        self.clt, self.layer, self.codes, self.mlp = clt, layer, codes, mlp

    def forward(self, x: Tensor) -> Tensor:
        source = self.clt.source(self.layer)
        pre = x @ source.W_enc.T + source.b_enc
        del self.codes[self.layer :]
        self.codes.append(pre * (pre > source.threshold))  # type: ignore[operator]
        if self.mlp is not None:
            return self.mlp(x)  # type: ignore[no-any-return]
        out = self.clt.b_dec[self.layer] + x @ self.clt.W_skip[self.layer].T  # type: ignore[index]
        for s, codes in enumerate(self.codes):
            out = out + codes @ self.clt.source(s).W_dec.view(64, 2 - s, -1)[:, self.layer - s]
        return out


def dense_ce(model: Any, clt: sk.CrossLayerTranscoder, replaced: set[int], ids: Tensor) -> float:
    """Mean cross-entropy of the tokens after the first."""
    model, codes = copy.deepcopy(model), []  # type: ignore[var-annotated]
    for layer, block in enumerate(model.model.layers):
        block.mlp = Dense(clt, layer, codes, None if layer in replaced else block.mlp)
    with torch.no_grad():
        logits = model(ids).logits[0, :-1].double()
    return float(nn.functional.cross_entropy(logits, ids[0, 1:]))


def test_every_target_against_a_dense_loop(tmp_path: Path) -> None:
    model, clt = tiny_lm.model(), transcoder()
    ids = torch.randint(3, 320, (1, 24), generator=torch.Generator().manual_seed(0))
    # Positions that no run touches would keep their codes; here there are none.
    document = sk.Document("text", domain="d", ids=ids[0].tolist())
    sites = sk.layer_sites(clt)

    def run(**options: Any) -> sk.Report:
        return sk.evaluate(model, None, sites, [document], context=24, bootstrap=0, batch_size=1, **options)

    report = run(checkpoint=tmp_path / "run")
    assert report.run["layer_reuse"] != "", report.run
    joint = report.all_sites
    assert joint is not None
    assert joint.ce.clean == pytest.approx(dense_ce(model, clt, set(), ids), abs=1e-5)
    for row, layer in zip(report.sites, range(2), strict=True):
        assert row.ce.spliced == pytest.approx(dense_ce(model, clt, {layer}, ids), abs=1e-5)
    assert joint.ce.spliced == pytest.approx(dense_ce(model, clt, {0, 1}, ids), abs=1e-5)
    slow = run(reuse_layers=False)
    assert [one.ce.spliced for one in slow.sites] == [one.ce.spliced for one in report.sites]
