"""The cut into body and linear head: the kinds of head that transformers has; what it cannot describe is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
import transformers
from torch import Tensor, nn

import tiny_lm
from saekernels.eval import Document, InputError, evaluate
from saekernels.eval.passes import head_kinds
from saekernels.eval.passes.head import check_head, find_head
from saekernels.eval.passes.head_kinds import LinearHead, Together, WholeHead

SMALL = {"vocab_size": 61, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
MODELS: dict[str, dict[str, Any]] = {
    "Llama": {**SMALL, "intermediate_size": 24},
    "GPT2": {"vocab_size": 61, "n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 32},
    "GPTNeoX": {**SMALL, "intermediate_size": 24},
    "Gemma2": {
        **SMALL,
        "intermediate_size": 24,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "final_logit_softcapping": 0.5,
    },
    "Cohere": {**SMALL, "intermediate_size": 24, "logit_scale": 0.0625},
    "Granite": {**SMALL, "intermediate_size": 24, "logits_scaling": 8.0},
    "OPT": {**SMALL, "ffn_dim": 24, "word_embed_proj_dim": 8, "max_position_embeddings": 32},
    "Phi": {**SMALL, "intermediate_size": 24},
}


def make(name: str) -> Any:
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(
        **MODELS[name], bos_token_id=0, eos_token_id=1, pad_token_id=2, initializer_range=0.3
    )
    model = transformers.AutoModelForCausalLM.from_config(config).eval().requires_grad_(False)
    output = model.get_output_embeddings()
    if getattr(output, "bias", None) is not None:
        output.bias.normal_()
    return model


@pytest.mark.parametrize("name", MODELS)
def test_losses_equal_those_of_the_models_own_logits(name: str) -> None:
    model = make(name)
    ids = torch.randint(3, 61, (3, 12))
    head = find_head(model)
    with torch.inference_mode():
        check_head(model, head, ids)
        rows = torch.tensor([0, 5, 11, 12, 30, 35])
        targets = torch.randint(61, (6,))
        hidden = head.hidden(ids, rows)
        got = head.compare(hidden, hidden.flip(0), targets)
        z = model(ids).logits.reshape(-1, 61)[rows].double()
    assert got.ce_p.double() == pytest.approx(F.cross_entropy(z, targets, reduction="none"), abs=1e-5)
    want = F.kl_div(z.flip(0).log_softmax(-1), z.log_softmax(-1), log_target=True, reduction="none").sum(-1)
    assert got.kl.double() == pytest.approx(want, abs=1e-5)


class Squared(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).square()


def test_a_head_that_is_not_linear_gives_its_own_logits_a_few_rows_at_a_time() -> None:
    model = make("Llama")
    model.lm_head = Squared(16, 61, bias=False)
    ids = torch.arange(8)[None]
    head = find_head(model)
    assert head.kind == "module"
    with torch.inference_mode():
        check_head(model, head, ids)
        z = model(ids).logits[0].double()
        hidden, targets = head.hidden(ids, torch.arange(8)), torch.arange(8)
        got = head.compare(hidden, hidden.flip(0), targets)
    assert got.ce_p.double() == pytest.approx(F.cross_entropy(z, targets, reduction="none"), abs=1e-5)
    want = F.kl_div(z.flip(0).log_softmax(-1), z.log_softmax(-1), log_target=True, reduction="none").sum(-1)
    assert got.kl.double() == pytest.approx(want, abs=1e-5)


def test_a_head_that_does_not_give_the_models_logits_is_refused() -> None:
    model = make("Llama")
    head = find_head(model)
    model.lm_head.weight = nn.Parameter(model.lm_head.weight * 1.5)
    with pytest.raises(InputError, match=r"the linear head found for LlamaForCausalLM does not give its logits.*by"):
        check_head(model, head, torch.arange(8)[None])


def test_a_model_without_a_head_is_refused() -> None:
    with pytest.raises(InputError, match="LlamaModel is no causal language model"):
        find_head(make("Llama").model)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_dtypes_pass_the_check_and_evaluate(dtype: torch.dtype) -> None:
    model = tiny_lm.model().to(dtype)
    saes = {tiny_lm.SITES[0]: tiny_lm.sae()}
    documents = [Document(tiny_lm.PARAGRAPH), Document(tiny_lm.CODE)]
    got = evaluate(model, tiny_lm.tokenizer(), saes, documents, bootstrap=0)
    want = evaluate(tiny_lm.model(), tiny_lm.tokenizer(), saes, documents, bootstrap=0)
    assert got.run["dtype"] == str(dtype).removeprefix("torch.")
    assert model.dtype == dtype
    tolerance = {torch.bfloat16: 0.1, torch.float16: 0.02, torch.float64: 1e-4}[dtype]
    assert got.all_sites.ce.clean == pytest.approx(want.all_sites.ce.clean, abs=tolerance)
    assert got.all_sites.ce.spliced == pytest.approx(want.all_sites.ce.spliced, abs=tolerance)


@pytest.mark.parametrize("kind", ["linear", "whole"])
@pytest.mark.parametrize(("count", "held", "calls"), [(1, 8, 1), (8, 8, 1), (20, 8, 3), (5, 2, 3)])
def test_streams_of_a_batch_share_their_clean_logits(
    kind: str, count: int, held: int, calls: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each has the figures of a comparison of its own, in order; `held` streams wait at most, by number or by bytes."""
    states, targets = torch.randn(count, 6, 12), torch.randint(0, 12, (6,))
    clean = torch.randn(6, 12)

    def nothing(ids: Tensor) -> Tensor:
        raise AssertionError

    head = LinearHead(nothing, nothing, torch.randn(12, 12))
    if kind == "whole":
        head = WholeHead(nothing, nothing, 12, torch.float32)
    expected = [head.compare(clean, one, targets) for one in states]
    seen: list[int] = []
    compare = type(head).compare

    def counting(self: Any, p: Tensor, q: Tensor, t: Tensor) -> Any:
        seen.append(len(q))
        return compare(self, p, q, t)

    monkeypatch.setattr(type(head), "compare", counting)
    monkeypatch.setattr(head_kinds, "_BYTES", held * clean.nbytes)
    got: dict[int, Any] = {}
    together = Together(head, clean, targets, got.__setitem__)
    for number, one in enumerate(states):
        together.add(number, one)
    together.flush()
    assert len(seen) == calls
    assert max(seen) <= held
    assert list(got) == list(range(count))
    for number, figures in got.items():
        torch.testing.assert_close(figures, expected[number], rtol=0, atol=0)
