"""Quantised checkpoints, where the packages that read them are installed: figures of the model's own logits."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import nn

import tiny_lm
from saekernels.cli.options.models import ModelNames, load_model
from saekernels.eval import evaluate
from saekernels.eval.store.fingerprints import fingerprint, of_model
from saekernels.sae.activations import TopK
from saekernels.sae.module import SAE
from splice_helpers import own_losses, token_documents

WIDTH, SITE = 64, "model.layers.0"


def nf4() -> Any:
    pytest.importorskip("bitsandbytes", reason="the package bitsandbytes is not installed")
    return transformers.BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")


def int8() -> Any:
    pytest.importorskip("torchao", reason="the package torchao is not installed")
    from torchao.quantization import Int8WeightOnlyConfig

    return transformers.TorchAoConfig(Int8WeightOnlyConfig())


@pytest.mark.parametrize(
    ("config", "told"), [(nf4, "bitsandbytes 4-bit nf4"), (int8, "torchao Int8WeightOnlyConfig")], ids=["nf4", "int8"]
)
def test_losses_are_those_of_the_quantised_models_own_logits(
    config: Callable[[], Any], told: str, tmp_path: Path
) -> None:
    options = {"quantization_config": config(), "device_map": {"": "cpu"}, "dtype": torch.float32}
    plain = tiny_lm.model(hidden_size=WIDTH, intermediate_size=2 * WIDTH)
    plain.save_pretrained(tmp_path / "plain")
    made = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "plain", **options).eval()
    made.save_pretrained(tmp_path / "quantised")
    found = load_model(ModelNames(str(tmp_path / "quantised")), torch.device("cpu"), "float32")
    ids = torch.arange(3, 27)[None]
    assert torch.equal(found.model(ids).logits, made(ids).logits)
    assert (made(ids).logits - plain(ids).logits).abs().max() > 1e-3
    assert found.facts == {"weights": told}
    torch.manual_seed(0)
    sae = SAE(WIDTH, 128, TopK(8)).eval()
    documents = token_documents(320)
    report = evaluate(found.model, None, {SITE: sae}, documents, context=24, bootstrap=0)
    assert report.run["weights"] == told
    clean, spliced = own_losses(lambda ids: made(ids).logits, made.get_submodule(SITE), sae, documents, 24)
    # Rows of a batch and rows alone differ by the kernels' rounding.
    assert report.sites[0].ce.clean == pytest.approx(clean, abs=1e-4)
    assert report.sites[0].ce.spliced == pytest.approx(spliced, abs=1e-4)


def test_a_fingerprint_is_of_all_parts_of_a_tensor_made_of_several() -> None:
    """torchao's have a scale beside the values, and no bytes of their own."""
    from torch.testing._internal.two_tensor import TwoTensor

    def made(first: float, second: float) -> nn.Module:
        model = nn.Linear(2, 2, bias=False)
        parts = torch.full((2, 2), first), torch.full((2, 2), second)
        model.weight = nn.Parameter(TwoTensor(*parts), requires_grad=False)
        return model

    assert fingerprint(made(1, 2)) == fingerprint(made(1, 2))
    assert len({fingerprint(made(*parts)) for parts in ((1, 2), (1, 3), (4, 2))}) == 3
    assert of_model(made(1, 2)) != of_model(made(1, 3))
