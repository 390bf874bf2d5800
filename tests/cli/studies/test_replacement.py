"""`saekernels eval --clt`, `--crosscoder`, `--transcoders`: what is printed is what is written; what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import torch
from safetensors.torch import save_file

import layouts
import saekernels as sk
import tiny_lm
from cli import fails, run
from reports import Page
from saekernels.cli.commands.replacement import command as replacement
from saekernels.cli.commands.replacement.crosscoder import load_heads
from saekernels.display.numbers import percent, signed
from saekernels.errors import InputError
from saekernels.eval import replacement_schema

SITES = tuple(f"model.layers.{layer}.mlp@module" for layer in range(2))


def dictionary(path: Any, **options: Any) -> Any:
    """What the name says, without a file."""
    torch.manual_seed(1)
    if "plt" not in str(path):
        clt = sk.CrossLayerTranscoder(tiny_lm.WIDTH, 16, 2, sk.TopK(4))
        clt.sites = SITES
        return clt
    made = {site: sk.SAE(tiny_lm.WIDTH, 16, sk.TopK(4)) for site in SITES}
    return sk.TranscoderSet(list(made.values()), list(made))


@pytest.fixture
def command(good: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setattr(replacement, "load_cross_layer", dictionary)
    return ["eval", "--model", str(good["model"]), "--data", str(good["data"]), "--bootstrap", "3", "--context", "12"]


def test_the_tables_show_the_figures_of_the_file(command: list[str], tmp_path: Path) -> None:
    out = tmp_path / "o.json"
    argv = [*command, "--clt", "clt", "--beside", "plt", "--json", str(out), "--leave-first", "1", "--leave-norm", "9"]
    argv += ["--domain", "all", "--sources", "--html", str(tmp_path / "o.html")]
    done = run(argv)
    assert done.code == 0, done.err
    found = json.loads(out.read_text())
    jsonschema.validate(found, replacement_schema())
    page = Page((tmp_path / "o.html").read_text())
    assert json.loads(page.scripts[0]) == found
    cells = page.column("joint-beside-teacher-forced", "ΔCE nats")
    assert cells[0].text.startswith(signed(found["runs"][0]["delta_ce"]["value"]))
    runs = [row["run"] for row in found["runs"]]
    assert f"clean and {len(runs)} runs, 6 of them for 2 domains to fit or select on" in done.err
    assert found["run"]["passes"] == 2 + len(runs)
    assert found["run"]["command"] == f"saekernels {' '.join(argv)}"
    assert "Left as they are, in every run: the first of each window" in found["mask"]
    lines = [line.split() for line in done.out.splitlines()]
    for row in found["runs"]:
        line = next(line for line in lines if line[:2] == [row["run"], signed(row["delta_ce"]["value"])])
        assert percent(row["top1"]["value"]) in line
    assert [row["name"] for row in found["strata"]["domain"]] == ["code", "prose"]
    first, second = (row["l0_joint"] for row in found["layers"])
    assert found["l0"]["joint"] == pytest.approx({"latents": first + second, "pairs": 2 * first + second})
    assert 0 < found["l0"]["beside"]["latents"] == found["l0"]["beside"]["pairs"] <= 8
    assert found["accounting"]["beside"]["parameters"] == 2 * (2 * 16 * 32 + 16 + 32)
    assert "affine_across@prose" in done.out


def test_transcoders_alone_have_no_parts(command: list[str], tmp_path: Path) -> None:
    done = run([*command, "--transcoders", "plt", "--no-affine", "--json", str(tmp_path / "o.json")])
    assert done.code == 0, done.err
    found = json.loads((tmp_path / "o.json").read_text())
    whole = ["joint", "teacher_forced", "error", "zero", "mean", "permuted"]
    assert [row["run"] for row in found["runs"]] == [*whole, "joint@prose"]


def crosscoder(folder: Path, **changes: Any) -> Path:
    """A crosscoder of dictionary_learning's fork, of two heads."""
    made = torch.Generator().manual_seed(0)
    F, d = 16, tiny_lm.WIDTH
    shapes = {"encoder.weight": (2, d, F), "encoder.bias": (F,), "decoder.weight": (2, F, d), "decoder.bias": (2, d)}
    tensors = {name: torch.randn(shape, generator=made) for name, shape in shapes.items()}
    tensors |= {"threshold": torch.tensor(0.5), "k": torch.tensor(4), "code_normalization_id": torch.tensor(2)}
    folder.mkdir()
    save_file({**tensors, **changes}, folder / "model.safetensors")
    return folder


def test_a_crosscoder_of_files(good: dict[str, Path], tmp_path: Path) -> None:
    out, sites = tmp_path / "o.json", [site.removesuffix("@module") for site in SITES]
    argv = ["eval", "--model", str(good["model"]), "--data", str(good["data"]), "--bootstrap", "3", "--context", "12"]
    argv += ["--crosscoder", str(crosscoder(tmp_path / "cc")), "--sites", *sites, "--json", str(out)]
    done = run(argv)
    assert done.code == 0, done.err
    found = json.loads(out.read_text())
    assert (found["replacement"], found["causal"]) == ("crosscoder", False)
    lines = [line.split() for line in done.out.splitlines()]
    for row in found["runs"]:
        line = next(line for line in lines if line[:2] == [row["run"], signed(row["delta_ce"]["value"])])
        assert percent(row["top1"]["value"]) in line
    words = " ".join(done.out.split())
    assert "2 layers replaced by a crosscoder, codes of clean passes" in words
    assert f"at any layer {found['used']}" in words
    assert "more than teacher_forced" in done.out
    assert "Compounding" not in done.out


def test_what_a_path_holds(tmp_path: Path) -> None:
    def load(folder: Path, scales: Any = None) -> Any:
        return load_heads(str(folder), torch.device("cpu"), torch.float32, scales)

    def folder(name: str) -> Path:
        (tmp_path / name).mkdir()
        return tmp_path / name

    gemma, tracer, apart, kissane = (folder(name) for name in ("g", "t", "p", "k"))
    layouts.gemma_scope(layouts.made(3, 4, 2), gemma)
    assert isinstance(load(gemma), sk.CrossLayerTranscoder)
    with pytest.raises(InputError, match="--head-scale: the files of a weakly causal crosscoder hold all of it"):
        load(gemma, [1.0])
    layouts.circuit_tracer(layouts.made(3, 4, 2), tracer)
    with pytest.raises(InputError, match="it holds a cross-layer transcoder; give --clt"):
        load(tracer)
    saes = [sk.SAE(3, 4, sk.ReLU(), pre_bias="none") for _ in range(2)]
    sites = [f"blocks.{s}.mlp.hook_in -> blocks.{s}.mlp.hook_out" for s in range(2)]
    sk.save_cross_layer(sk.TranscoderSet(saes, sites), apart)
    with pytest.raises(InputError, match="one for each layer; give --transcoders"):
        load(apart)
    tensors = {"W_enc": torch.ones(2, 3, 4), "W_dec": torch.ones(4, 2, 3), "b_enc": torch.ones(4)}
    torch.save({**tensors, "b_dec": torch.ones(2, 3)}, kissane / "cc_weights.pt")
    (kissane / "cfg.json").write_text(json.dumps({"d_in": 3, "dict_size": 4}))
    with pytest.raises(InputError, match=r"--crosscoder .*/k: --head-scale: .* which is in no file; need 2 numbers"):
        load(kissane)
    assert load(kissane, [0.5, 2.0]).input_scale.flatten().tolist() == [0.5, 2.0]
    with pytest.raises(InputError, match=r"--crosscoder .*/e: "):
        load(folder("e"))


def test_reuse_takes_it_for_one_dictionary(
    good: dict[str, Path], command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["reuse", *command[1:5], "--clt", "clt", "--latents", "4"]
    done = run([*argv, "--json", str(tmp_path / "o.json"), "--html", str(tmp_path / "o.html")])
    assert done.code == 0, done.err
    found = json.loads((tmp_path / "o.json").read_text())
    (row,) = found["sites"]
    assert (row["site"], row["n_latents"], [one["n_latents"] for one in row["layers"]]) == ("clt", 32, [16, 16])
    lines = [line.split() for line in done.out.splitlines()]
    for name, one in (("clt", row), ("layer 0", row["layers"][0]), ("layer 1", row["layers"][1])):
        line = next(line for line in lines if line[: len(name.split()) + 1] == [*name.split(), "effect"])
        assert percent(one["effect"]["general"]["value"]) in line
    assert any(line[:4] == ["layer", "0", "->", "layer"] for line in lines)
    assert "layer 1" in (tmp_path / "o.html").read_text()
    assert "--sae: not with --clt, whose layers are one dictionary" in fails(capsys, [*argv, "--sae", "x=y"])
    assert "--device-map: not with --clt, whose layers" in fails(capsys, [*argv, "--device-map", "auto"])
    assert "--clt plt: it holds transcoders, one for each layer" in fails(capsys, [*argv[:-3], "plt", *argv[-2:]])
    without = [*argv[:5], "--sae", "x=y", "--sites", "x"]
    assert "--sites: needs --clt" in fails(capsys, without)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["--clt", "plt"], "--clt plt: it holds transcoders, one for each layer; give --transcoders"),
        (["--clt", "a", "--transcoders", "plt"], "--clt, --crosscoder and --transcoders: one is replaced at a time"),
        (["--clt", "a", "--head-scale", "2"], "--head-scale: not with --clt, which has no heads"),
        (["--clt", "a", "--tasks", "ioi"], "--tasks: not with --clt, whose layers are replaced together"),
        (["--clt", "a", "--baselines", "zero"], "--baselines: not with --clt"),
        (["--clt", "a", "--control", "random_decoder"], "--control: not with --clt"),
        (["--clt", "a", "--sae-k", "3"], "--sae-k: it is about the checkpoints of --sae, which are not here"),
        (
            ["--clt", "a", "--domain", "nowhere"],
            "--domain: 'nowhere' has 0 documents here, need two or more; there are",
        ),
        (["--clt", "a", "--domain", "all", "code"], "--domain: got all code, need all alone, or names"),
        (["--sources"], "--sources: needs --clt, --crosscoder or --transcoders"),
        (["--clt", "a", "--sites", SITES[0]], "need one for each of 2 layers"),
    ],
)
def test_refused(changes: list[str], message: str, command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert message in fails(capsys, [*command, *changes])
