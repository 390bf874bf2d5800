"""evaluate() on a TransformerLens model, against full logits of the model itself."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import tiny_lm
from saekernels.eval import Document, evaluate

pytestmark = pytest.mark.peers
lens = pytest.importorskip("transformer_lens")

SITE = "blocks.0.hook_resid_post"


@torch.no_grad()
def test_losses_equal_those_of_the_models_own_logits() -> None:
    sizes = {
        "n_layers": 2,
        "d_model": tiny_lm.WIDTH,
        "n_ctx": 24,
        "d_head": 8,
        "n_heads": 4,
        "d_vocab": 320,
        "d_mlp": 48,
    }
    config = lens.HookedTransformerConfig(
        **sizes, act_fn="gelu", normalization_type="LNPre", output_logits_soft_cap=5.0
    )
    model = lens.HookedTransformer(config).eval()
    torch.manual_seed(0)
    for parameter in model.parameters():
        parameter.normal_(std=0.3)
    sae = tiny_lm.sae()
    report = evaluate(model, tiny_lm.tokenizer(), {SITE: sae}, [Document(tiny_lm.CODE)])

    def put(x: Tensor, hook: Any) -> Tensor:
        special = torch.isin(ids, torch.tensor([0, 1, 2]))
        return torch.where(special[..., None], x, sae(x))

    clean = spliced = count = 0
    body = tiny_lm.tokenizer()(tiny_lm.CODE, add_special_tokens=False)["input_ids"]
    for start in range(0, len(body), 23):
        ids = torch.tensor([[0, *body[start : start + 23]]])
        targets = ids[0, 2:]
        clean += float(F.cross_entropy(model(ids)[0, 1:-1].double(), targets, reduction="sum"))
        logits = model.run_with_hooks(ids, fwd_hooks=[(SITE, put)])
        spliced += float(F.cross_entropy(logits[0, 1:-1].double(), targets, reduction="sum"))
        count += len(targets)
    assert report.tokens == count
    assert report.sites[0].ce.clean == pytest.approx(clean / count, abs=2e-6)
    assert report.sites[0].ce.spliced == pytest.approx(spliced / count, abs=2e-6)
