"""Sites of two ends, heads and streams, and what a checkpoint says of where it was trained, against hooks by hand."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import Gemma2Config, Gemma2ForCausalLM

import saekernels as sk
import tiny_lm
from saekernels.eval import evaluate
from saekernels.sae.metadata import Metadata
from saekernels.splice.sites import resolve_site

IDS = torch.tensor([[5, 9, 30, 2, 17, 44], [3, 8, 8, 21, 6, 1]])
LAYER = "model.layers.0"


@pytest.fixture
def gemma() -> Gemma2ForCausalLM:
    """A Gemma 2, whose MLP reads after one norm and writes before another."""
    torch.manual_seed(0)
    sizes = {"vocab_size": 64, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8, "max_position_embeddings": 64}
    model = Gemma2ForCausalLM(Gemma2Config(**sizes, **heads, pad_token_id=0)).eval()
    for norm in (module for name, module in model.named_modules() if name.endswith("layernorm")):
        nn.init.normal_(norm.weight)
    return model


def sae(width: int = 16, width_out: int | None = None) -> sk.SAE:
    torch.manual_seed(1)
    made = sk.SAE(width, 48, sk.ReLU(), d_out=width_out, pre_bias="none").eval()
    nn.init.normal_(made.b_dec)
    return made


def logits(model: nn.Module) -> Tensor:
    with torch.no_grad():
        return model(IDS).logits


def with_hooks(model: nn.Module, hooks: list[tuple[str, str, Callable[..., Any]]]) -> Tensor:
    """Logits with these hooks: (module, "in" or "out", hook)."""
    handles = []
    for path, side, hook in hooks:
        module = model.get_submodule(path)
        made = module.register_forward_pre_hook(hook) if side == "in" else module.register_forward_hook(hook)
        handles.append(made)
    try:
        return logits(model)
    finally:
        for handle in handles:
            handle.remove()


READS = {
    f"{LAYER}.pre_feedforward_layernorm": ("out", lambda module, args, out: out),
    f"{LAYER}.mlp@input": ("in", lambda module, args: args[0]),
    f"{LAYER}.post_feedforward_layernorm@input": ("in", lambda module, args: args[0]),
}


WRITES = (f"{LAYER}.post_feedforward_layernorm", f"{LAYER}@output", "model.layers.1.mlp@input")


@pytest.mark.parametrize("read", list(READS))
@pytest.mark.parametrize("write", WRITES)
def test_an_activation_is_read_at_one_end_and_replaced_at_another(
    read: str, write: str, gemma: Gemma2ForCausalLM
) -> None:
    transcoder, seen = sae(), {}
    side, take = READS[read]
    path, _, end = write.partition("@")

    def replace(module: nn.Module, args: Any, out: Any = None) -> Any:
        made = transcoder(seen["x"])
        return (made,) if end == "input" else made

    read_hook = (read.partition("@")[0], side, lambda *given: seen.update(x=take(*given)))
    right = with_hooks(gemma, [read_hook, (path, "in" if end == "input" else "out", replace)])
    with sk.splice(gemma, {f"{read} -> {write}": transcoder}) as splice, torch.no_grad():
        got = gemma(IDS).logits
    torch.testing.assert_close(got, right, rtol=0, atol=1e-6)
    assert (got - logits(gemma)).abs().max() > 1e-3
    assert splice.calls == {f"{read} -> {write}": 1}


def test_the_short_spellings_are_two_ends_of_one_module(gemma: Gemma2ForCausalLM) -> None:
    transcoder = sae()
    for short, long in ((f"{LAYER}.mlp@module", f"{LAYER}.mlp@input -> {LAYER}.mlp"), (LAYER, f"{LAYER}@output")):
        found = []
        for site in (short, long):
            with sk.splice(gemma, {site: transcoder}), torch.no_grad():
                found.append(gemma(IDS).logits)
        assert torch.equal(*found)


@pytest.mark.parametrize(
    ("site", "message"),
    [
        ("a -> b -> c", "'a -> b -> c' is not a site"),
        (f"{LAYER}.mlp@module -> {LAYER}", "is not a site"),
        (f"{LAYER}.mlp -> ", "is not a site"),
        (f"{LAYER}[expert=1]", "is not a site"),
        (f"{LAYER}.mlp -> {LAYER}.mlp@input", "reads what a module gives and replaces what it is given"),
        (f"{LAYER}.mlp -> {LAYER}.nlp", "has no module 'model.layers.0.nlp'; close names"),
    ],
)
def test_ends_that_cannot_be(site: str, message: str, gemma: Gemma2ForCausalLM) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        resolve_site(gemma, site)
    assert message in str(caught.value)


def test_what_is_read_too_late_is_told(gemma: Gemma2ForCausalLM) -> None:
    with (
        sk.splice(gemma, {f"model.layers.1.mlp -> {LAYER}.mlp": sae()}),
        pytest.raises(ValueError, match=r"'model\.layers\.0\.mlp' came before 'model\.layers\.1\.mlp' in this forward"),
    ):
        gemma(IDS)


@pytest.mark.parametrize("head", [0, 1])
def test_one_head_of_heads_side_by_side(head: int, gemma: Gemma2ForCausalLM) -> None:
    """o_proj takes [B, S, heads * head_width]; which head is which, the width of the SAE says."""
    path, one = f"{LAYER}.self_attn.o_proj", sae(8)

    def by_hand(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor]:
        z = args[0].clone()
        z[..., 8 * head : 8 * (head + 1)] = one(z[..., 8 * head : 8 * (head + 1)])
        return (z,)

    right = with_hooks(gemma, [(path, "in", by_hand)])
    with sk.splice(gemma, {f"{path}@input[head={head}]": one}), torch.no_grad():
        torch.testing.assert_close(gemma(IDS).logits, right, rtol=0, atol=1e-6)
    one.metadata = Metadata("made here", head=head)
    with sk.splice(gemma, {f"{path}@input": one}), torch.no_grad():
        torch.testing.assert_close(gemma(IDS).logits, right, rtol=0, atol=1e-6)
    with pytest.raises(ValueError, match=f"names head {1 - head}, but the SAE there was trained on head {head}"):
        sk.splice(gemma, {f"{path}@input[head={1 - head}]": one})
    with (
        sk.splice(gemma, {f"{path}@input[head=2]": sae(8)}),
        pytest.raises(ValueError, match="has no head 2 of width 8"),
    ):
        gemma(IDS)


class Streams(nn.Module):
    """Two residual streams, [streams, B, S, d]."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.block, self.head = nn.Embedding(64, 6), nn.Linear(6, 6), nn.Linear(6, 64)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.block(torch.stack([self.embed(ids), -self.embed(ids)])).sum(0))


@pytest.mark.parametrize("stream", [0, 1])
def test_one_of_several_streams(stream: int) -> None:
    torch.manual_seed(0)
    model, one = Streams(), sae(6)

    def by_hand(module: nn.Module, args: Any, out: Tensor) -> Tensor:
        out = out.clone()
        out[stream] = one(out[stream])
        return out

    handle = model.block.register_forward_hook(by_hand)
    right = model(IDS)
    handle.remove()
    stays = torch.zeros(2, 6, dtype=torch.bool)
    with sk.splice(model, {f"block[stream={stream}]": one}, untouched=stays):
        torch.testing.assert_close(model(IDS), right, rtol=0, atol=1e-6)
    with sk.splice(model, {"block[stream=2]": one}), pytest.raises(ValueError, match="has no stream 2"):
        model(IDS)
    with sk.splice(model, {"block": one}, untouched=stays), pytest.raises(ValueError, match="must agree"):
        model(IDS)


def saelens(folder: Path, **about: Any) -> Path:
    weights = {
        "W_enc": torch.randn(16, 48),
        "W_dec": torch.randn(48, 16),
        "b_enc": torch.zeros(48),
        "b_dec": torch.zeros(16),
    }
    folder.mkdir()
    save_file(weights, folder / "sae_weights.safetensors")
    config = {"architecture": "standard", "d_in": 16, "d_sae": 48, "metadata": about}
    (folder / "cfg.json").write_text(json.dumps(config))
    return folder


def test_a_place_or_a_model_that_the_checkpoint_contradicts_is_told(gemma: Gemma2ForCausalLM, tmp_path: Path) -> None:
    elsewhere = sk.load(saelens(tmp_path / "a", hook_name="model.layers.1"))
    with pytest.warns(UserWarning, match=r"trained at 'model\.layers\.1', which is another place in this model"):
        sk.splice(gemma, {LAYER: elsewhere})
    centred = sk.load(saelens(tmp_path / "b", model_from_pretrained_kwargs={"center_writing_weights": True}))
    with pytest.warns(UserWarning, match="trained on a model with centred writing weights"):
        sk.splice(gemma, {LAYER: centred})
    folded = sk.load(saelens(tmp_path / "c", model_from_pretrained_kwargs={"fold_ln": True, "dtype": "bfloat16"}))
    with pytest.warns(UserWarning, match="loaded with fold_ln=True; this one was not"):
        sk.splice(gemma, {LAYER: folded})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sk.splice(gemma, {"model.layers.1": elsewhere})
        weight = gemma.get_input_embeddings().weight
        weight.data -= weight.data.mean(-1, keepdim=True)
        sk.splice(gemma, {LAYER: centred})


def test_the_report_tells_what_the_checkpoint_contradicts() -> None:
    saes = tiny_lm.saes()
    first = next(iter(saes))
    saes[first].metadata = Metadata(
        "made here", reads="model.layers.1", writes="model.layers.1", prepend_bos=False, context=8
    )
    made = evaluate(
        tiny_lm.model(), tiny_lm.tokenizer(), saes, tiny_lm.documents(), bootstrap=0, baselines=(), context=24
    )
    notes = "\n".join(made.notes)
    assert f"At {first!r}: the SAE was trained at 'model.layers.1', which is another place in this model." in notes
    assert f"At {first!r}: the SAE was trained without a BOS token before each text, and is run with." in notes
    assert f"At {first!r}: the SAE was trained on windows of 8 tokens, and is run on windows of 24." in notes
