"""Models that are not whole on one device: offloaded, FSDP, tensor parallelism; the splice goes where they are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

import ranks
import tiny_lm
from places import SCRIPTS
from saekernels.cli import main
from saekernels.eval import evaluate
from saekernels.parallel.devices import device_of, input_device, whole

SCRIPT = str(SCRIPTS / "placement_script.py")
OFFLOADED = {
    "model.embed_tokens": "cpu",
    "model.rotary_emb": "cpu",
    "model.layers.0": "cpu",
    "model.layers.1": "disk",
    "model.norm": "disk",
    "lm_head": "disk",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return tiny_lm.save(tmp_path_factory.mktemp("tiny"))


def report_of(model: Any) -> dict[str, Any]:
    found = evaluate(model, tiny_lm.tokenizer(), tiny_lm.saes(), tiny_lm.few_documents(), bootstrap=5).to_dict()
    return {**found, "run": found["run"]["layer_reuse"]}


def offloaded(folder: dict[str, Path], place: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder["model"], device_map=OFFLOADED, offload_folder=str(place)).eval()


def test_parts_on_disk_give_the_same_bits(folder: dict[str, Path], tmp_path: Path) -> None:
    want = report_of(AutoModelForCausalLM.from_pretrained(folder["model"]).eval())
    model = offloaded(folder, tmp_path)
    assert model.lm_head.weight.is_meta
    assert model.model.layers[1].mlp.up_proj.weight.is_meta
    assert report_of(model) == want
    assert input_device(model) == device_of(model.lm_head) == torch.device("cpu")


@pytest.mark.parametrize("kind", ["fsdp", "tp"])
def test_models_cut_over_processes(kind: str, folder: dict[str, Path]) -> None:
    want = report_of(AutoModelForCausalLM.from_pretrained(folder["model"]).eval())
    got = json.loads(ranks.check(2, SCRIPT, kind, str(folder["model"])).splitlines()[-1])
    assert got["run"] == "on", "layers are reused there, too"
    if kind == "fsdp":
        for key in ("sites", "all_sites", "documents_table"):
            assert got[key] == json.loads(json.dumps(want[key])), "to the bit: parameters are gathered, not sums split"
    for a, b in zip([*want["sites"], want["all_sites"]], [*got["sites"], got["all_sites"]], strict=True):
        assert b["delta_ce"]["nats"] == pytest.approx(a["delta_ce"]["nats"], abs=1e-6)
        assert b["l0"] == pytest.approx(a["l0"], abs=1e-3)
        assert b["fvu"] == pytest.approx(a["fvu"], rel=1e-5)


def test_values_that_nobody_has_are_refused() -> None:
    linear = torch.nn.Linear(2, 3, device="meta")
    with pytest.raises(ValueError, match=r"Linear\.weight: it is on the meta device"):
        whole(linear, "weight")
    assert device_of(linear) == torch.device("cpu") == device_of(torch.nn.Identity())
    held = torch.nn.Linear(2, 3)
    assert whole(held, "bias") is held.bias


def options(folder: dict[str, Path], tmp_path: Path) -> list[str]:
    (tmp_path / "text.txt").write_text(tiny_lm.PARAGRAPH)
    saes = [f"{site}={folder[site]}" for site in tiny_lm.SITES]
    model = ["eval", "--model", str(folder["model"]), "--sae", *saes, "--data", str(tmp_path / "text.txt")]
    return [*model, "--bootstrap", "0", "--json", str(tmp_path / "report.json")]


def test_a_device_map_of_the_command_line(folder: dict[str, Path], tmp_path: Path) -> None:
    assert main(options(folder, tmp_path)) == 0
    want = json.loads((tmp_path / "report.json").read_text())["sites"]
    (tmp_path / "map.json").write_text(json.dumps({"": "cpu"}))
    for place in ("auto", str(tmp_path / "map.json")):
        assert main([*options(folder, tmp_path), "--device-map", place]) == 0
        assert json.loads((tmp_path / "report.json").read_text())["sites"] == want


@pytest.mark.parametrize(("text", "message"), [("[1]", "need"), ("{", "need auto"), ('{"a": [1]}', "for each module")])
def test_a_device_map_that_is_none(
    text: str, message: str, folder: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "map.json").write_text(text)
    assert main([*options(folder, tmp_path), "--device-map", str(tmp_path / "map.json")]) == 2
    told = capsys.readouterr().err
    assert "--device-map" in told
    assert message in told
