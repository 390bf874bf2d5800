"""--sae with a site, with a head or two ends in it, and without one."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pytest

import saekernels.example as example
from cli import fails
from saekernels.cli import main
from saekernels.cli.options.arguments import site_and_path
from saekernels.sae.metadata import Metadata


@pytest.mark.parametrize(
    ("text", "pair"),
    [
        ("model.layers.3=a/b=c", ("model.layers.3", "a/b=c")),
        ("blocks.0.attn.hook_z[head=2]=a", ("blocks.0.attn.hook_z[head=2]", "a")),
        ("a@input -> b[stream=1]=c", ("a@input -> b[stream=1]", "c")),
        ("a#one=b", ("a#one", "b")),
        ("owner/name/folder", ("", "owner/name/folder")),
        ("./there", ("", "./there")),
    ],
)
def test_sites_and_paths(text: str, pair: tuple[str, str]) -> None:
    assert site_and_path(text) == pair


@pytest.mark.parametrize("text", ["", "nowhere", "=a", "a=", "a[head=2]"])
def test_neither_a_site_nor_a_path(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="need SITE=PATH"):
        site_and_path(text)


def test_a_file_that_says_its_site_goes_there(tmp_path: Path) -> None:
    folder = example.SAE_DIRS["model.layers.2"]
    found = []
    for number, value in enumerate((str(folder), f"model.layers.2={folder}")):
        out = tmp_path / f"{number}.json"
        small = ["--tokens", "200", "--context", "64", "--bootstrap", "0", "--baselines", "none"]
        assert main(["eval", "--sae", value, *small, "--json", str(out)]) == 0
        found.append(json.loads(out.read_text())["sites"])
    assert found[0] == found[1]
    assert found[0][0]["site"] == "model.layers.2"


def test_names_that_the_model_does_not_have_are_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "sae"
    folder.mkdir()
    own = example.SAE_DIRS["model.layers.2"]
    (folder / "sae_weights.safetensors").symlink_to(own / "sae_weights.safetensors")
    config = json.loads((own / "cfg.json").read_text())
    for about, message in (
        ({"hook_name": "blocks.9.hook_resid_post"}, "its files say 'blocks.9.hook_resid_post'; give SITE="),
        ({"model_name": "x"}, "its files do not say where; give SITE="),
    ):
        (folder / "cfg.json").write_text(json.dumps({**config, "metadata": about}))
        assert message in fails(capsys, ["eval", "--sae", str(folder), "--tokens", "100"])


def test_the_places_of_a_checkpoint_in_its_own_names() -> None:
    both = {"hf_hook_name": "a@input", "hf_hook_name_out": "b"}
    assert Metadata("x", reads="r", writes="w", other=both).sites == ("a@input -> b", "r -> w")
    assert Metadata("x", reads="r", writes="r").sites == ("r",)
    assert Metadata("x").sites == ()
