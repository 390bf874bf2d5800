"""circuit-tracer's sets of transcoders, a file for each layer, at the sites of a running model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import saekernels as sk
from saekernels.example import MODEL_DIR
from saekernels.formats.layers.describe import describe_cross_layer
from saekernels.sae.metadata import Metadata

CONFIG = "model_kind: transcoder_set\nfeature_input_hook: mlp.hook_in\nfeature_output_hook: mlp.hook_out\n"


def written(folder: Path, width: int, n_layers: int, config: str = CONFIG) -> list[dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    layers = []
    for layer in range(n_layers):
        shapes = {"W_enc": (12, width), "W_dec": (12, width), "b_enc": (12,), "b_dec": (width,)}
        layers.append({name: torch.randn(shape, generator=generator) for name, shape in shapes.items()})
        save_file(layers[-1], folder / f"layer_{layer}.safetensors")
    (folder / "config.yaml").write_text(config)
    return layers


@pytest.mark.parametrize(("said", "k"), [("", 3), ("activation: topk\nk: 3\n", None)])
@pytest.mark.parametrize("lazy", [True, False])
def test_topk_is_told(said: str, k: int | None, lazy: bool, tmp_path: Path) -> None:
    layers = written(tmp_path, 4, 2, CONFIG + said)
    found = sk.load_cross_layer(tmp_path, k=k, lazy=lazy)
    assert isinstance(found, sk.TranscoderSet)
    x = torch.randn(5, 4, generator=torch.Generator().manual_seed(1))
    for layer, w in enumerate(layers):
        pre = x @ w["W_enc"].T + w["b_enc"]
        kept = torch.zeros_like(pre).scatter(1, pre.topk(3).indices, pre.topk(3).values)
        torch.testing.assert_close(found.transcoder(layer)(x), kept @ w["W_dec"] + w["b_dec"])
    facts = describe_cross_layer(tmp_path, k=k)
    assert facts is not None
    assert (facts["class"], facts["layers"], facts["activation"][1]) == ("transcoder set", 2, "TopK(k=3, relu=False)")
    assert facts["parameters"] == sum(value.numel() for w in layers for value in w.values())


def test_a_set_is_spliced(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(MODEL_DIR)
    layers = written(tmp_path, model.config.hidden_size, model.config.num_hidden_layers)
    found = sk.load_cross_layer(tmp_path)
    assert isinstance(found, sk.TranscoderSet)
    mlp = model.model.layers[1].mlp
    seen: dict[str, torch.Tensor] = {}
    mlp.register_forward_hook(lambda _, args, out: seen.update(x=args[0], y=out))
    with torch.no_grad(), sk.splice(model, found.at_sites()):
        mlp_out: list[torch.Tensor] = []
        mlp.register_forward_hook(lambda _, args, out: mlp_out.append(out))
        model(torch.arange(5, 20)[None])
    w = layers[1]
    wanted = (seen["x"] @ w["W_enc"].T + w["b_enc"]).relu() @ w["W_dec"] + w["b_dec"]
    torch.testing.assert_close(mlp_out[0], wanted, rtol=1e-4, atol=1e-3)


def test_files_may_be_listed(tmp_path: Path) -> None:
    layers = written(tmp_path, 4, 2, CONFIG + "transcoders: [layer_1.safetensors, layer_0.safetensors]\n")
    found = sk.load_cross_layer(tmp_path)
    assert isinstance(found, sk.TranscoderSet)
    assert torch.equal(found.transcoder(0).W_enc, layers[1]["W_enc"])
    for said, message in (("[gone.safetensors]", "need a file that is there"), ("5", "need a list of files")):
        (tmp_path / "config.yaml").write_text(f"{CONFIG}transcoders: {said}\n")
        with pytest.raises(sk.FormatError, match=message):
            sk.load_cross_layer(tmp_path)


def test_layers_have_one_width(tmp_path: Path) -> None:
    written(tmp_path, 4, 2)
    shapes = {"W_enc": (12, 5), "W_dec": (12, 5), "b_enc": (12,), "b_dec": (5,)}
    save_file({name: torch.ones(shape) for name, shape in shapes.items()}, tmp_path / "layer_1.safetensors")
    with pytest.raises(sk.FormatError, match=r"layer_1.safetensors: reads 5 and writes 5, but layer_0"):
        sk.load_cross_layer(tmp_path)


def test_sites_are_asked_for() -> None:
    one = sk.SAE(3, 4, sk.ReLU())
    with pytest.raises(ValueError, match="give one for each"):
        sk.TranscoderSet([one, one]).at_sites()
    with pytest.raises(ValueError, match="need one for each of 2 layers, all different"):
        sk.TranscoderSet([one, one]).at_sites(["a", "a"])
    with pytest.raises(ValueError, match="got 1 sites for 2 of them"):
        sk.TranscoderSet([one, one], ["a"])


def test_one_file_is_a_transcoder(tmp_path: Path) -> None:
    written(tmp_path, 4, 2)
    (tmp_path / "layer_0.safetensors").unlink()
    assert describe_cross_layer(tmp_path) is None
    assert sk.load(tmp_path).metadata.reads == "blocks.1.mlp.hook_in"  # type: ignore[union-attr]


def saved(folder: Path, reads: str, writes: str) -> sk.SAE:
    sae = sk.SAE(4, 12, sk.TopK(3))
    with torch.no_grad():
        for value in sae.parameters():
            value.normal_()
    sae.metadata = Metadata("", "toy", reads, writes)
    sk.save(sae, folder)
    return sae.eval()


def test_a_folder_for_each_transcoder(tmp_path: Path) -> None:
    places = {layer: f"model.layers.{layer}.mlp" for layer in (10, 2)}
    made = {layer: saved(tmp_path / place, f"{place}@input", place) for layer, place in places.items()}
    found = sk.load_cross_layer(tmp_path)
    assert isinstance(found, sk.TranscoderSet)
    assert found.metadata is not None
    assert found.sites == tuple(f"{places[layer]}@input -> {places[layer]}" for layer in (2, 10))
    assert found.metadata.model == "toy"
    x = torch.randn(5, 4)
    for number, layer in enumerate((2, 10)):
        assert torch.equal(found.transcoder(number)(x), made[layer](x))


def test_an_sae_is_no_transcoder_of_a_set(tmp_path: Path) -> None:
    for layer in range(2):
        saved(tmp_path / str(layer), "blocks.0", "blocks.0")
    with pytest.raises(ValueError, match=r"0: an SAE that replaces what it reads, blocks\.0; a set takes transcoders"):
        sk.load_cross_layer(tmp_path)
