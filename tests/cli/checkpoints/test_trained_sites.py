"""--sae PATH goes where its files say that it was trained, by numbers: ends of modules in every spelling."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as T
from safetensors.torch import save_file
from torch import Tensor, nn

import saekernels as sk
import zoo
from saekernels.cli.options.inputs import load_saes
from saekernels.errors import InputError
from saekernels.sae.metadata import Metadata
from saekernels.splice.contradictions import contradictions
from saekernels.splice.sites import resolve_site

D, F = 16, 48
IDS = torch.tensor([[5, 9, 30, 2, 17, 44], [3, 8, 8, 21, 6, 1]])
SIZES = {"vocab_size": 64, "hidden_size": D, "intermediate_size": 24, "num_hidden_layers": 3, "num_attention_heads": 2,
         "num_key_value_heads": 1, "head_dim": 8, "max_position_embeddings": 64, "pad_token_id": 0,
         "bos_token_id": 1, "eos_token_id": 2}  # fmt: skip
W = {"W_enc": zoo.random(D, F) / 4, "W_dec": zoo.random(F, D) / 7, "b_enc": zoo.random(F) / 3,
     "b_dec": zoo.random(D) / 3, "threshold": zoo.random(F).abs() / 3}  # fmt: skip
UNTOLD: dict[str, Any] = {"input_scale": None, "k": None, "revision": None, "format": None, "config": None}
LAYER = "model.layers.1"
NORMS = (f"{LAYER}.pre_feedforward_layernorm.output", f"{LAYER}.post_feedforward_layernorm.output")


def model_of(kind: str) -> Any:
    """A tiny random model, its norms not the identity."""
    torch.manual_seed(0)
    model = T.AutoModelForCausalLM.from_config(T.AutoConfig.for_model(kind, **SIZES)).eval()
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1:
            parameter.data.mul_(8)
        if "norm" in name:
            parameter.data.normal_()
    return model


def jump(x: Tensor) -> Tensor:
    return zoo.jump(x @ W["W_enc"] + W["b_enc"], W["threshold"]) @ W["W_dec"] + W["b_dec"]


def relu(x: Tensor) -> Tensor:
    return ((x - W["b_dec"]) @ W["W_enc"] + W["b_enc"]).relu() @ W["W_dec"] + W["b_dec"]


def on_output(module: nn.Module, by: Callable[[Tensor], Tensor]) -> Any:
    def hook(module: Any, given: Any, out: Any) -> Any:
        return (by(out[0]), *out[1:]) if isinstance(out, tuple) else by(out)

    return module.register_forward_hook(hook)


def on_input(module: nn.Module, by: Callable[[Tensor], Tensor]) -> Any:
    return module.register_forward_pre_hook(lambda module, given: (by(given[0]), *given[1:]))


@torch.no_grad()
def logits(model: nn.Module, *hooks: Any) -> Tensor:
    found = model(IDS).logits
    for hook in hooks:
        hook.remove()
    return found


@torch.no_grad()
def placed(model: nn.Module, value: str) -> tuple[str, Tensor]:
    """Where `--sae VALUE` goes, and the logits of the spliced model."""
    site, _, path = value.rpartition("=")
    saes: Any = load_saes([(site, path)], model, lambda site: torch.device("cpu"), "float32", UNTOLD)
    with sk.splice(model, saes):
        return next(iter(saes)), model(IDS).logits


def dictionary(folder: Path, **buffer: Any) -> str:
    linear = {
        "encoder.weight": W["W_enc"].T,
        "encoder.bias": W["b_enc"],
        "decoder.weight": W["W_dec"].T,
        "bias": W["b_dec"],
    }
    zoo.dictionary(folder, linear, {"dict_class": "AutoEncoder"})
    trainer = {"dict_class": "AutoEncoder", "activation_dim": D, "dict_size": F, "submodule_name": "mlp_layer_1"}
    config = {"trainer": trainer, "buffer": {"d_submodule": D, "ctx_len": 128, "n_ctxs": 10, **buffer}}
    (folder / "config.json").write_text(json.dumps(config))
    return str(folder)


@pytest.mark.parametrize("kind", ["gpt_neox", "llama"])
@pytest.mark.parametrize("io", ["in", "out", "in_and_out", None])
def test_dictionary_learnings_io_is_the_end_of_the_module(kind: str, io: str | None, tmp_path: Path) -> None:
    model = model_of(kind)
    mlp = (model.gpt_neox if kind == "gpt_neox" else model.model).layers[1].mlp
    path = dictionary(tmp_path / "ae", **({} if io is None else {"io": io}))
    site, got = placed(model, path)
    kept: list[Tensor] = []
    if io == "in":
        hooks = [on_input(mlp, relu)]
    elif io == "in_and_out":
        hooks = [on_input(mlp, lambda x: kept.append(x) or x), on_output(mlp, lambda _: relu(kept[-1]))]  # type: ignore[func-returns-value]
    else:
        hooks = [on_output(mlp, relu)]
    torch.testing.assert_close(got, logits(model, *hooks), rtol=1e-4, atol=1e-4)
    assert (got - logits(model)).abs().max() > 0.1
    other = on_output(mlp, relu) if io == "in" else on_input(mlp, relu)
    assert (got - logits(model, other)).abs().max() > 0.1, "the other end gives other numbers"
    named = {"in": "mlp_layer_1@input", "in_and_out": "mlp_layer_1@input -> mlp_layer_1"}
    assert site == named.get(io or "out", "mlp_layer_1")
    assert sk.load(path).metadata.context == 128  # type: ignore[union-attr]


def test_an_io_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(sk.FormatError, match="'io' is 'outside', need 'in', 'out' or 'in_and_out'"):
        sk.load(dictionary(tmp_path / "ae", io="outside"))


def gemma_scope_2(folder: Path, inward: str, outward: str) -> str:
    folder.mkdir()
    names = {"W_enc": "w_enc", "W_dec": "w_dec"}
    save_file({names.get(name, name): value for name, value in W.items()}, folder / "params.safetensors")
    config = {"architecture": "jump_relu", "hf_hook_point_in": inward, "hf_hook_point_out": outward, "width": F}
    (folder / "config.json").write_text(json.dumps(config))
    return str(folder)


@pytest.mark.parametrize("end", ["output", "self_attn.o_proj.input"])
def test_gemma_scope_2_goes_where_it_says(end: str, tmp_path: Path) -> None:
    model = model_of("gemma3_text")
    hook = f"{LAYER}.{end}"
    path = gemma_scope_2(tmp_path / "sae", hook, hook)
    layer = model.model.layers[1]
    expected = logits(model, on_output(layer, jump) if end == "output" else on_input(layer.self_attn.o_proj, jump))
    assert (expected - logits(model)).abs().max() > 0.1
    for value in (path, f"{hook}={path}", f"{hook.replace('.output', '').replace('.input', '@input')}={path}"):
        torch.testing.assert_close(placed(model, value)[1], expected, rtol=1e-4, atol=1e-4)


def saelens(folder: Path, **metadata: str) -> str:
    folder.mkdir()
    save_file(W, folder / "sae_weights.safetensors")
    config = {"architecture": "jumprelu_transcoder", "d_in": D, "d_sae": F, "d_out": D, "dtype": "float32",
              "apply_b_dec_to_input": False, "metadata": {"sae_lens_version": "6.0.0", **metadata}}  # fmt: skip
    (folder / "cfg.json").write_text(json.dumps(config))
    return str(folder)


HOOKS = {"hook_name": "blocks.1.hook_mlp_in", "hook_name_out": "blocks.1.hook_mlp_out"}


def test_a_transcoder_of_gemma_3_reads_the_norms_output_however_it_was_saved(tmp_path: Path) -> None:
    """SAELens calls the place hook_mlp_in, which is the norm's input; Gemma Scope 2's own config says its output."""
    model, kept = model_of("gemma3_text"), []
    own = gemma_scope_2(tmp_path / "own", *NORMS)
    theirs = saelens(tmp_path / "theirs", **HOOKS, hf_hook_name=NORMS[0], hf_hook_name_out=NORMS[1])
    before, after = model.model.layers[1].pre_feedforward_layernorm, model.model.layers[1].post_feedforward_layernorm
    hooks = [on_output(before, lambda x: kept.append(x) or x), on_output(after, lambda _: jump(kept[-1]))]  # type: ignore[func-returns-value]
    expected = logits(model, *hooks)
    for path in (own, theirs):
        site, got = placed(model, path)
        assert site == " -> ".join(NORMS)
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)
        told = sk.load(path).metadata
        assert contradictions(model, resolve_site(model, site), told) == []
    named = placed(model, saelens(tmp_path / "named", **HOOKS))
    assert named[0] == "blocks.1.hook_mlp_in -> blocks.1.hook_mlp_out"
    assert (named[1] - expected).abs().max() > 0.1


def test_two_names_of_two_places_are_refused(tmp_path: Path) -> None:
    model = model_of("llama")
    path = saelens(tmp_path / "sae", hook_name="blocks.1.hook_resid_pre", hf_hook_name=LAYER)
    with pytest.raises(InputError) as caught:
        placed(model, path)
    assert str(caught.value) == (
        f"--sae {path}: its files say '{LAYER}' and 'blocks.1.hook_resid_pre', which are two places in this model; "
        f"give SITE={path}"
    )
    same = saelens(tmp_path / "same", hook_name="blocks.1.hook_resid_post", hf_hook_name=LAYER)
    assert placed(model, same)[0] == LAYER


def test_a_name_of_what_is_read_alone_keeps_what_is_replaced() -> None:
    told = Metadata("x", reads="r", writes="w", other={"hf_hook_name": "a"})
    assert told.sites == ("a -> w", "r -> w")
