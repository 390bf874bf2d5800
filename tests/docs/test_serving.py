"""examples/serve_with_saes.py on the server's own ModelManager, examples/vllm_saes.py on a stand-in for vLLM.

The stand-in has what vLLM documents: a registry that takes "module:Class", a model made with `vllm_config`, decoder
layers that return (hidden_states, residual), a body that is compiled as one graph, a worker with an extension class.
"""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import saekernels as sk
import tiny_lm
from places import ROOT
from tiny_lm import SITES, WIDTH


class Layer(nn.Module):
    """As vLLM's: the norm of a layer adds what the one before has returned."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.mlp = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, hidden: Tensor, residual: Tensor | None) -> tuple[Tensor, Tensor]:
        residual = hidden if residual is None else hidden + residual
        return self.mlp(self.norm(residual)), residual


class Body(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer() for _ in SITES)

    def forward(self, hidden: Tensor) -> Tensor:
        residual = None
        for layer in self.layers:
            hidden, residual = layer(hidden, residual)
        assert residual is not None
        return hidden + residual


class Llama(nn.Module):
    def __init__(self, *, vllm_config: Any, prefix: str = "") -> None:
        super().__init__()
        torch.manual_seed(0)
        self.model = Body()
        self.compiled = torch.compile(self.model, fullgraph=True, dynamic=True, backend="aot_eager")


def by_hand(model: Any, x: Tensor, saes: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
    """The stream after each layer replaced by what its SAE makes of it; and what each SAE read."""
    read = {}
    for site, layer in zip(SITES, model.model.layers, strict=True):
        x = x + layer.mlp(layer.norm(x))
        if site in saes:
            read[site], x = x, saes[site](x)
    return x, read


@pytest.fixture
def vllm(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """The stand-in's registry."""
    registry: dict[str, str] = {}
    names = ("vllm", "vllm.model_executor", "vllm.model_executor.models", "vllm.model_executor.models.llama")
    modules: dict[str, Any] = {name: ModuleType(name) for name in names}
    modules["vllm"].ModelRegistry = SimpleNamespace(register_model=registry.__setitem__)
    modules[names[-1]].LlamaForCausalLM = Llama
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    return registry


def test_saes_are_in_vllms_graph(vllm: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plugin = importlib.import_module("vllm_saes")
    saes = {SITES[0]: tiny_lm.sae(0)}
    sk.save(saes[SITES[0]], str(tmp_path / "sae"))
    monkeypatch.setenv("SAEKERNELS_VLLM", json.dumps({SITES[0]: str(tmp_path / "sae")}))
    for _ in range(2):
        plugin.register()
    assert vllm == {"LlamaForCausalLM": "vllm_saes:LlamaWithSAEs"}
    config = SimpleNamespace(
        scheduler_config=SimpleNamespace(max_num_batched_tokens=16), device_config=SimpleNamespace(device="cpu")
    )
    model = plugin.LlamaWithSAEs(vllm_config=config)
    assert sorted(name for name, _ in model.named_parameters()) == sorted(
        name for name, _ in Llama(vllm_config=config).named_parameters()
    )
    worker = type("Worker", (plugin.SeenCodes,), {})()
    for tokens in (5, 9, 16):
        x = torch.randn(tokens, WIDTH)
        with torch.inference_mode():
            found = model.compiled(x)
            expected, read = by_hand(model, x, saes)
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
            codes = saes[SITES[0]].encode(read[SITES[0]])
        values, indices = worker.seen_codes(tokens)[SITES[0]]
        assert indices == codes.indices.tolist()
        torch.testing.assert_close(torch.tensor(values), codes.values, rtol=1e-4, atol=1e-5)
    sk.save(tiny_lm.sae(1, jump=True), str(tmp_path / "jump"))
    with pytest.raises(AttributeError, match="7"):
        plugin.attach(model, {"model.layers.7": "sae"}, 16, "cpu")
    with pytest.raises(ValueError, match=r"model.layers.1: needs a TopK SAE, got .*jump"):
        plugin.attach(model, {SITES[1]: str(tmp_path / "jump")}, 16, "cpu")


def test_transformers_server_loads_a_spliced_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    made = importlib.import_module("serve_with_saes").spliced_manager({SITES[0]: tiny_lm.sae(0)})
    tiny_lm.model().save_pretrained(tmp_path)
    tiny_lm.tokenizer().save_pretrained(tmp_path)
    manager = made(device="cpu", force_model=str(tmp_path))
    served, tokenizer = manager.load_model_and_processor(manager.process_model_name(str(tmp_path)))
    ids = tokenizer("Some days", return_tensors="pt").input_ids
    model = tiny_lm.model()
    with torch.no_grad(), sk.splice(model, {SITES[0]: tiny_lm.sae(0)}, untouched=tokenizer.all_special_ids):
        expected = model.generate(ids, max_new_tokens=5, do_sample=False)
    assert torch.equal(served.generate(ids, max_new_tokens=5, do_sample=False), expected)
    assert not torch.equal(model.generate(ids, max_new_tokens=5, do_sample=False), expected)
    assert served.sae_splice.calls[SITES[0]] == 5
    manager.shutdown()
