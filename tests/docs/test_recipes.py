"""The recipes for models of other tools, and that what they report is what the model's own logits and hooks give."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM, AutoTokenizer

import saekernels as sk
from places import ROOT
from saekernels.example import EVAL_DATA, MODEL_DIR, SAE_DIRS

pytestmark = pytest.mark.peers
SITE = "model.layers.1"


def run(name: str) -> dict[str, Any]:
    """What a page's blocks leave behind."""
    state: dict[str, Any] = {"__name__": name}
    for block in re.findall(r"^```python\n(.*?)^```$", (ROOT / "docs/how-to" / name).read_text(), re.M | re.S):
        path = ROOT / "docs/how-to" / name
        # nnsight reads the source of a trace from the file that its frame names.
        page = path.read_text()
        lines = page[: page.index(block)].count("\n")
        exec(compile("\n" * lines + block, str(path), "exec"), state)
    return state


@torch.no_grad()
def logits_by_a_hook(text: str) -> torch.Tensor:
    model = AutoModelForCausalLM.from_pretrained(MODEL_DIR).eval()
    sae = sk.load(SAE_DIRS[SITE])

    def put(module: Any, args: Any, output: Any) -> Any:
        return (sae(output[0]), *output[1:]) if isinstance(output, tuple) else sae(output)

    model.get_submodule(SITE).register_forward_hook(put)
    return model(AutoTokenizer.from_pretrained(MODEL_DIR)(text, return_tensors="pt")["input_ids"]).logits


def check(state: dict[str, Any]) -> None:
    documents = sk.load_documents([str(EVAL_DATA)])
    model, tokenizer = AutoModelForCausalLM.from_pretrained(MODEL_DIR), AutoTokenizer.from_pretrained(MODEL_DIR)
    want = sk.evaluate(model, tokenizer, {SITE: sk.load(SAE_DIRS[SITE])}, documents, tokens=500, bootstrap=0).sites[0]
    got = state["report"].sites[0]
    assert got.ce.clean == pytest.approx(want.ce.clean, abs=2e-6)
    assert got.ce.spliced == pytest.approx(want.ce.spliced, abs=2e-6)
    assert got.kl == pytest.approx(want.kl, abs=2e-6)
    spliced = logits_by_a_hook("The light went out")
    torch.testing.assert_close(state["logits"], spliced, rtol=1e-5, atol=1e-5)
    assert F.cross_entropy(spliced[0, :-1], state["ids"][0, 1:]).isfinite()


def test_nnsight() -> None:
    tool = pytest.importorskip("nnsight", minversion="0.8", reason="nnsight 0.8 is not installed")
    state = run("nnsight.md")
    check(state)
    assert state["traced"].model is not None
    assert tool.__version__


def test_transformer_lens() -> None:
    pytest.importorskip("transformer_lens.model_bridge", reason="TransformerLens 3 or 4 is not installed")
    check(run("transformer_lens.md"))
