"""Sites that are not there, SAEs that do not fit, and activations of other shapes, for every command that splices."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

import bad_inputs
import saekernels as sk
import tiny_lm
from cli import SITE, commands, complaint, put, run

SOURCES = ("eval", "breadth", "maps", "monitor", "reuse", "compat")


@pytest.mark.parametrize("command", SOURCES)
def test_a_site_that_is_not_there_or_does_not_fit(command: str, good: dict[str, Path], tmp_path: Path) -> None:
    failures = {}
    for site in bad_inputs.SITES:
        argv = put(commands(good, tmp_path)[command], command, "--sae", f"{site}={good[SITE]}")
        if command == "monitor":
            argv = put(argv, command, "--watch", f"{site}:3")
        failures[site] = complaint(argv, "" if "\0" in site else site.rpartition("> ")[2].partition("@")[0], tmp_path)
    assert {site: one for site, one in failures.items() if one} == {}


@pytest.mark.parametrize("command", SOURCES)
def test_an_sae_of_another_width_or_kind(command: str, good: dict[str, Path], tmp_path: Path) -> None:
    outputs = tmp_path / "outputs"
    outputs.mkdir()
    made = {
        "narrow": sk.SAE(16, 32, sk.TopK(4)),
        "transcoder": sk.SAE(32, 64, sk.ReLU(), d_out=16, pre_bias="none"),
    }
    for name, sae in made.items():
        sk.save(sae, tmp_path / name)
        argv = put(commands(good, outputs)[command], command, "--sae", f"{SITE}={tmp_path / name}")
        assert complaint(argv, SITE, outputs) is None, name


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_maps_of_saes_in_every_dtype(dtype: str, good: dict[str, Path], tmp_path: Path) -> None:
    found = run([*commands(good, tmp_path)["maps"], "--sae-dtype", dtype, "--json", str(tmp_path / "maps.json")])
    assert found.code == 0, found.err
    assert run([*commands(good, tmp_path)["maps"], "--json", str(tmp_path / "single.json")]).code == 0
    rows, single = (json.loads((tmp_path / f"{name}.json").read_text())["rows"] for name in ("maps", "single"))
    tolerance = {"float64": 1e-4, "float16": 0.02, "bfloat16": 0.1}[dtype]
    for one, other in zip(rows, single, strict=True):
        assert one["inside"] == pytest.approx(other["inside"], abs=tolerance)


@pytest.mark.parametrize("command", SOURCES)
def test_nan_in_the_weights_of_an_sae_is_no_traceback(command: str, good: dict[str, Path], tmp_path: Path) -> None:
    sae = sk.SAE(32, 64, sk.TopK(4))
    with torch.no_grad():
        sae.W_enc.fill_(float("nan"))
    sk.save(sae, tmp_path / "nan")
    found = run(put(commands(good, tmp_path)[command], command, "--sae", f"{SITE}={tmp_path / 'nan'}"))
    assert found.code in (0, 2), found
    told, *rest = found.err.splitlines()
    name = "eval" if command == "compat" else command
    place = tmp_path / "nan" / "cfg.json"
    assert told == f"saekernels {name}: warning: {place}: 'W_enc': values that are no finite numbers"
    assert len(rest) == (1 if command == "eval" or found.code else 0), found


def test_what_is_not_known_of_an_sae_is_told_once(good: dict[str, Path], tmp_path: Path) -> None:
    sk.save(sk.SAE(32, 64, sk.TopK(4)), tmp_path / "sae", metadata={"hook_name": SITE})
    config = tmp_path / "sae" / "cfg.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "twist": 0.5}))
    found = run(put(commands(good, tmp_path)["eval"], "eval", "--sae", str(tmp_path / "sae")))
    assert found.code == 0  # read for its site, and then whole
    told = [line for line in found.err.splitlines() if "twist" in line]
    assert told == [f"saekernels eval: warning: {config}: fields that are not known here were not used: 'twist' (0.5)"]


ENDS = {"vocab_size": 320, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}


def gpt2() -> tuple[Any, str, str]:
    config = transformers.GPT2Config(**ENDS, n_positions=24, n_embd=32, n_layer=2, n_head=4)
    return transformers.GPT2LMHeadModel(config), "transformer.wpe", "(2, 12), the activation's positions have shape (1,"


def gemma3n() -> tuple[Any, str, str]:
    config = transformers.Gemma3nTextConfig(
        **ENDS, hidden_size=32, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2, head_dim=8,
        intermediate_size=[48] * 4, vocab_size_per_layer_input=320, hidden_size_per_layer_input=8, laurel_rank=4,
        num_kv_shared_layers=2, altup_num_inputs=2, activation_sparsity_pattern=[0.0] * 4, sliding_window=8,
        layer_types=["sliding_attention", "full_attention"] * 2, max_position_embeddings=24,
    )  # fmt: skip
    return transformers.Gemma3nForCausalLM(config), "model.layers.1", "the activation's positions have shape (2, 2,"


def xlnet() -> tuple[Any, str, str]:
    config = transformers.XLNetConfig(**ENDS, d_model=32, n_layer=2, n_head=4, d_inner=48, attn_type="uni")
    return transformers.XLNetLMHeadModel(config), "transformer.layer.0", "the site is 'transformer.layer.0[batch=1]'"


@pytest.mark.parametrize("make", [gpt2, gemma3n, xlnet])
def test_positions_that_are_not_those_of_the_tokens(make: Any, good: dict[str, Path], tmp_path: Path) -> None:
    """[1, S, d], [streams, B, S, d] and [S, B, d]; eight windows of eight tokens, so that [S, B] is [B, S], too."""
    model, site, said = make()
    model.save_pretrained(tmp_path / "model")
    tiny_lm.tokenizer().save_pretrained(tmp_path / "model")
    outputs = tmp_path / "outputs"
    outputs.mkdir()
    for command in SOURCES:
        argv = put(commands(good, outputs)[command], command, "--model", str(tmp_path / "model"))
        argv = put(argv, command, "--sae", f"{site}={good[SITE]}")
        for option, value in (("--context", "8"), ("--batch-size", "8"), ("--tokens", "all")):
            argv = put(argv, command, option, value)
        if command == "monitor":
            argv = put(argv, command, "--watch", f"{site}:3")
        found = run(argv)
        assert complaint(argv, site, outputs) is None, command
        assert said.replace("12", "8") in found.err, command
