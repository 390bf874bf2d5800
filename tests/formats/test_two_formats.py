"""Files and folders that fit two formats: the same function is taken, two functions are refused with both names."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import saekernels as sk
from zoo import D, F, K, check, dictionary, gemma, jump, llama, random, randomised, sparsify_folder

X = random(9, D, seed=5)
SAID = {"activation": "relu", "apply_b_dec_to_input": True}


def refused(path: Path, *words: str, **options: Any) -> None:
    with pytest.raises(sk.FormatError) as caught:
        sk.load(path, **options)
    for word in words:
        assert word in str(caught.value)
    assert "\n" not in str(caught.value)


def saelens(folder: Path, seed: int = 0) -> sk.SAE:
    torch.manual_seed(seed)
    sae = randomised(sk.SAE(D, F, sk.TopK(K)))
    sk.save(sae, folder)
    return sae


def test_saelens_beside_dictionary_learning(tmp_path: Path) -> None:
    sae = saelens(tmp_path)
    w = {"encoder.weight": sae.W_enc.detach(), "encoder.bias": sae.b_enc.detach(),
         "decoder.weight": sae.W_dec.detach().T, "b_dec": sae.b_dec.detach()}  # fmt: skip
    dictionary(tmp_path, {**w, "k": torch.tensor(K)}, {"dict_class": "AutoEncoderTopK"})
    assert torch.equal(sk.load(tmp_path)(X), sae(X)), "the same tensors, used in the same way"
    dictionary(tmp_path, {**w, "k": torch.tensor(K + 1)}, {"dict_class": "AutoEncoderTopK"})
    refused(tmp_path, f"{tmp_path}: fits 'SAELens' ", "and 'dictionary_learning' (ae.pt)", "other functions", "format=")
    assert sk.load(tmp_path, format="SAELens").activation == sk.TopK(K)
    assert sk.load(tmp_path, format="dictionary_learning").activation == sk.TopK(K + 1)
    assert sk.load(tmp_path / "ae.pt").activation == sk.TopK(K + 1)
    assert sk.load(tmp_path / "sae_weights.safetensors").activation == sk.TopK(K)
    weights = tmp_path / "sae_weights.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:100])
    refused(tmp_path, "sae_weights.safetensors: damaged")
    weights.write_bytes(whole)
    torch.save({"step": 3}, tmp_path / "training.pt")
    (tmp_path / "ae.pt").unlink()
    assert sk.load(tmp_path).activation == sk.TopK(K), "a torch file by no format's name says nothing"
    refused(tmp_path / "training.pt", "no known format has the entries ['step']")


def test_saelens_beside_sparsify(tmp_path: Path) -> None:
    """One cfg.json for two files of weights: the one that it fits is meant."""
    sae = saelens(tmp_path / "a")
    sparsify_folder(tmp_path / "b", D, F)
    (tmp_path / "b" / "sae.safetensors").rename(tmp_path / "a" / "sae.safetensors")
    assert torch.equal(sk.load(tmp_path / "a")(X), sae(X))
    config = json.loads((tmp_path / "a" / "cfg.json").read_text())
    (tmp_path / "a" / "cfg.json").write_text(json.dumps({**config, "num_latents": F}))
    refused(tmp_path / "a", "fits 'SAELens' (a) and 'sparsify' (a), which are other functions")
    sk.load(tmp_path / "a", format="sparsify")


def test_two_files_of_gemma_scope(tmp_path: Path) -> None:
    w = gemma(tmp_path)
    gemma(tmp_path, suffix="safetensors")

    def formula(x: torch.Tensor) -> torch.Tensor:
        return jump(x @ w["W_enc"] + w["b_enc"], w["threshold"]) @ w["W_dec"] + w["b_dec"]

    check(tmp_path, formula)
    gemma(tmp_path, suffix="safetensors", threshold=random(F, seed=8).abs())
    refused(tmp_path, "fits 'Gemma Scope' (params.npz) and 'Gemma Scope' (params.safetensors), which are other")
    check(tmp_path / "params.npz", formula)
    assert torch.equal(sk.load(tmp_path / "params.safetensors").threshold, random(F, seed=8).abs())


def test_a_file_that_was_named_is_the_one_that_is_read(tmp_path: Path) -> None:
    config = {"d_sae": F, "jump_relu_threshold": 0.4}
    llama(tmp_path, config)
    final = tmp_path / "checkpoints" / "final.safetensors"
    pruned = {n: v + 1 if n == "decoder.bias" else v for n, v in load_file(final).items()}
    save_file(pruned, tmp_path / "checkpoints" / "pruned.safetensors")
    with pytest.warns(UserWarning, match="average norm"):
        by_name, by_folder = sk.load(final), sk.load(tmp_path)
    torch.testing.assert_close(by_folder.b_dec, by_name.b_dec + 1)
    torch.save(random(3), tmp_path / "other.pt")
    refused(tmp_path / "other.pt", "need a dictionary of tensors by name")
    saelens(tmp_path / "lens")
    save_file({"x": random(3)}, tmp_path / "lens" / "sparsity.safetensors")
    refused(tmp_path / "lens" / "sparsity.safetensors", "sparsity.safetensors")


def test_a_llama_scope_file_is_no_dictionary(tmp_path: Path) -> None:
    """Its tensors have the names of dictionary_learning's AutoEncoderNew; the config beside it says more."""
    llama(tmp_path, {"act_fn": "jumprelu", "jump_relu_threshold": 0.4, "norm_activation": "token-wise"})
    tensors = load_file(tmp_path / "sae_weights.safetensors")
    (tmp_path / "sae_weights.safetensors").unlink()
    torch.save(tensors, tmp_path / "sae_weights.pt")
    for path in (tmp_path, tmp_path / "sae_weights.pt"):
        sae = sk.load(path)
        assert (sae.metadata.format, sae.architecture) == ("Llama Scope", "jumprelu")


def test_names_that_anyone_gives_are_not_dictionary_learnings(tmp_path: Path) -> None:
    linear = {"encoder.weight": random(F, D), "encoder.bias": random(F), "decoder.weight": random(D, F),
              "decoder.bias": random(D)}  # fmt: skip
    jumps = {"W_enc": random(D, F), "W_dec": random(F, D), "b_enc": random(F), "b_dec": random(D),
             "threshold": random(F).abs()}  # fmt: skip
    classes = {"standard": "AutoEncoderNew", "jumprelu": "JumpReluAutoEncoder"}
    for tensors, architecture in ((linear, "standard"), (jumps, "jumprelu")):
        torch.save(tensors, tmp_path / "mine.pt")
        refused(tmp_path / "mine.pt", "whether b_dec is taken from the input", "by format=...")
        assert sk.load(tmp_path / "mine.pt", format="dictionary_learning").pre_bias is None
        said = SAID if tensors is linear else {"apply_b_dec_to_input": True}
        assert sk.load(tmp_path / "mine.pt", config=said).pre_bias_kind == "b_dec"
        torch.save(tensors, tmp_path / "ae.pt")
        assert sk.load(tmp_path / "ae.pt").architecture == architecture
        (tmp_path / "ae.pt").unlink()
        (tmp_path / "config.json").write_text(json.dumps({"trainer": {"dict_class": classes[architecture]}}))
        assert sk.load(tmp_path / "mine.pt").metadata.format == "dictionary_learning"
        (tmp_path / "config.json").unlink()


@pytest.mark.parametrize(("suffix", "rows"), [(".pt", "Qwen Scope"), (".safetensors", "circuit-tracer")])
def test_square_matrices_are_decided_by_the_named_format_alone(suffix: str, rows: str, tmp_path: Path) -> None:
    w = {"W_enc": random(D, D), "W_dec": random(D, D, seed=1), "b_enc": random(D) * 0.2, "b_dec": random(D, seed=2)}
    path = tmp_path / f"layer_3{suffix}"
    (torch.save if suffix == ".pt" else save_file)(w, path)
    for options in ({}, {"k": K}, {"config": SAID}):
        sides = (f"format='{rows}' where rows", "format='state dict' where columns")
        refused(path, "which side of W_enc is the latents'", *sides, **options)
    columns = ((X - w["b_dec"]) @ w["W_enc"] + w["b_enc"]).relu() @ w["W_dec"] + w["b_dec"]
    torch.testing.assert_close(sk.load(path, format="state dict", config=SAID)(X).detach(), columns)
    pre = X @ w["W_enc"].T + w["b_enc"]
    best = pre.topk(K, dim=-1)  # as they are: Qwen Scope has no ReLU
    signed = torch.zeros_like(pre).scatter(-1, best.indices, best.values)
    by_rows = signed @ w["W_dec"].T if suffix == ".pt" else pre.relu() @ w["W_dec"]
    found = sk.load(path, format=rows, **({"k": K} if suffix == ".pt" else {}))
    torch.testing.assert_close(found(X).detach(), by_rows + w["b_dec"])
    (torch.save if suffix == ".pt" else save_file)({n: w[n] for n in ("W_enc", "W_dec")}, path)
    refused(path, "which side of W_enc is the latents'")


def test_a_state_dict_is_no_transcoder_of_circuit_tracer(tmp_path: Path) -> None:
    """The same names; columns are latents, or a config says what the other format would not look at."""
    w = {"W_enc": random(D, F), "W_dec": random(F, D), "b_enc": random(F) * 0.2, "b_dec": random(D)}
    save_file(w, tmp_path / "layer_3.safetensors")
    refused(tmp_path / "layer_3.safetensors", "no file says what is selected")
    rows = {**w, "W_enc": w["W_enc"].T.contiguous()}
    save_file(rows, tmp_path / "layer_3.safetensors")
    assert sk.load(tmp_path / "layer_3.safetensors").metadata.format == "circuit-tracer"
    save_file(rows, tmp_path / "mine.safetensors")
    refused(tmp_path / "mine.safetensors", "no file says what is selected")
    (tmp_path / "cfg.json").write_text(json.dumps({"activation": "topk", "k": K, "apply_b_dec_to_input": True}))
    assert sk.load(tmp_path / "mine.safetensors").activation == sk.TopK(K)
    refused(tmp_path / "layer_3.safetensors", "fits 'circuit-tracer' (layer_3.safetensors) and 'state dict'")
    (tmp_path / "cfg.json").write_text(json.dumps({"activation": "relu", "apply_b_dec_to_input": False}))
    assert sk.load(tmp_path / "layer_3.safetensors").activation == sk.ReLU()


def test_formats_are_named_as_the_table_names_them(tmp_path: Path) -> None:
    saelens(tmp_path)
    assert sk.load(tmp_path, format="saelens").activation == sk.TopK(K)
    with pytest.raises(ValueError, match=re.escape("format: got 'sae-lens', need one of 'SAELens', 'sparsify'")):
        sk.load(tmp_path, format="sae-lens")
    with pytest.raises(ValueError, match="format: got 3, need one of"):
        sk.load(tmp_path, format=3)  # type: ignore[arg-type]
    refused(tmp_path, "format: got 'Gemma Scope'", "has none of its files: params.npz", format="Gemma Scope")
    refused(tmp_path, "tensor 'encoder_linear.weight' is missing", format="Goodfire")
    refused(tmp_path, "config: got ['k']", "'SAELens'", "which has its own: cfg.json", config={"k": 3})
