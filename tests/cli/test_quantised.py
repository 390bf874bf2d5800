"""Quantised checkpoints: figures of the model's own logits, what the report says of them, missing packages."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import nn

import tiny_lm
from cli import arguments, fails
from saekernels.cli import main
from saekernels.cli.options.models import ModelNames, load_model
from saekernels.eval import evaluate
from saekernels.eval.store.fingerprints import fingerprint, of_model
from saekernels.eval.store.provenance import quantisation
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


def quantised(folder: Path, quantization: dict[str, Any], change: Callable[[dict[str, Any]], Any] = dict) -> Path:
    """The tiny model with a quantization_config; `change`: of its tensors."""
    tiny_lm.model().save_pretrained(folder)
    tiny_lm.tokenizer().save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": quantization}))
    tensors = change(load_file(folder / "model.safetensors"))
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


MISSING = {
    "bitsandbytes": {"load_in_4bit": True},
    "gptq": {"bits": 4, "group_size": 32},
    "awq": {"bits": 4, "group_size": 32},
    "compressed-tensors": {"format": "pack-quantized"},
    "torchao": {"quant_type": {"default": {"_type": "Int8WeightOnlyConfig", "_data": {}, "_version": 1}}},
    "hqq": {"quant_config": {}},
    "quanto": {"weights": "int8"},
    "aqlm": {},
}


@pytest.mark.parametrize("method", MISSING)
def test_a_quantised_checkpoint_whose_package_is_missing_is_one_line(
    method: str, files: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = quantised(tmp_path / "model", {"quant_method": method, **MISSING[method]})
    capsys.readouterr()
    line = fails(capsys, arguments(files, model=[folder]))
    package = {"gptq": "optimum", "awq": "gptqmodel"}.get(method, method)
    assert f"--model: cannot load {str(folder)!r}: " in line
    assert package in line.partition(repr(str(folder)))[2].lower(), line


def test_an_fp8_checkpoint_is_dequantised_where_nothing_multiplies_fp8_and_the_report_says_so(
    files: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Weights in e4m3 with a scale for each block of 16 by 16, as DeepSeek's."""
    want = tiny_lm.model()

    def in_fp8(tensors: dict[str, Any]) -> dict[str, Any]:
        made = {}
        for name, value in tensors.items():
            if "_proj" not in name:
                made[name] = value
                continue
            tall, wide = (size // 16 for size in value.shape)
            blocks = value.reshape(tall, 16, wide, 16)
            scale = blocks.abs().amax((1, 3)) / 448
            made[name] = (blocks / scale[:, None, :, None]).reshape(value.shape).to(torch.float8_e4m3fn)
            made[f"{name}_scale_inv"] = scale
            exact = made[name].float().reshape(blocks.shape) * scale[:, None, :, None]
            want.get_parameter(name).data.copy_(exact.reshape(value.shape))
        return made

    options = {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [16, 16], "fmt": "e4m3"}
    folder = quantised(tmp_path / "model", options, in_fp8)
    found = load_model(ModelNames(str(folder)), torch.device("cpu"), "float32")
    ids = torch.arange(3, 27)[None]
    torch.testing.assert_close(found.model(ids).logits, want(ids).logits, rtol=0, atol=1e-5)
    assert (want(ids).logits - tiny_lm.model()(ids).logits).abs().max() > 1e-2
    assert found.facts == {"weights": "fp8 e4m3, dequantised to float32"}
    capsys.readouterr()
    assert main([*arguments(files, model=[folder])]) == 0
    assert "weights: fp8 e4m3, dequantised to float32" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    ("config", "told"),
    [
        (
            {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
            "bitsandbytes 4-bit nf4",
        ),
        ({"quant_method": "bitsandbytes", "load_in_8bit": True, "bnb_4bit_quant_type": "fp4"}, "bitsandbytes 8-bit"),
        ({"quant_method": "gptq", "bits": 4, "group_size": 128}, "gptq 4-bit"),
        ({"quant_method": "compressed-tensors", "format": "pack-quantized"}, "compressed-tensors pack-quantized"),
        ({"quant_method": "torchao", **MISSING["torchao"]}, "torchao Int8WeightOnlyConfig"),
        ({"quant_method": "quanto", "weights": "int8"}, "quanto int8"),
    ],
)
def test_what_is_said_of_a_quantisation(config: dict[str, Any], told: str) -> None:
    assert quantisation(config) == told


def test_evaluate_says_what_the_models_config_says_of_its_weights() -> None:
    model = tiny_lm.model()
    model.config.quantization_config = transformers.BitsAndBytesConfig(load_in_8bit=True)
    report = evaluate(model, tiny_lm.tokenizer(), tiny_lm.saes(), tiny_lm.documents(), bootstrap=0)
    assert report.run["weights"] == "bitsandbytes 8-bit"
    assert "weights: bitsandbytes 8-bit" in " ".join(str(report).split())
