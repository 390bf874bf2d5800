"""Adapters of PEFT over a model: what is evaluated is the adapted model, at sites with the model's own names."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import tiny_lm
from checkpoints import write_adapter
from cli import arguments, fails
from saekernels.cli import main
from saekernels.cli.options.models import ModelNames, load_model
from saekernels.eval import evaluate
from saekernels.eval.store.fingerprints import of_model
from splice_helpers import own_losses, token_documents

peft = pytest.importorskip("peft", reason="the package peft is not installed")
CPU = torch.device("cpu")
SITE = "model.layers.1"


def base(folder: Path) -> Path:
    tiny_lm.model().save_pretrained(folder)
    tiny_lm.tokenizer().save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("options", "head"),
    [
        ({}, "linear"),
        ({"use_dora": True}, "linear"),
        ({"target_modules": ["q_proj", "lm_head"]}, "module"),
        ({"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}, "linear"),
    ],
    ids=["lora", "dora", "on the head", "a head of its own"],
)
def test_losses_are_those_of_the_adapted_models_own_logits(options: dict[str, Any], head: str, tmp_path: Path) -> None:
    wrapped = write_adapter(tmp_path / "adapter", tiny_lm.model(), **options)
    if "modules_to_save" in options:
        with torch.no_grad():
            wrapped.get_base_model().lm_head.modules_to_save["default"].weight.mul_(1.5)
        wrapped.save_pretrained(tmp_path / "adapter")
    found = load_model(ModelNames(str(base(tmp_path / "base")), adapter=str(tmp_path / "adapter")), CPU, "float32")
    ids = torch.arange(3, 27)[None]
    assert torch.equal(found.model(ids).logits, wrapped(ids).logits)
    assert (wrapped(ids).logits - tiny_lm.model()(ids).logits).abs().max() > 0.1
    assert found.facts == {"adapter": f"{tmp_path / 'adapter'} (LORA of rank 4), not merged"}

    documents, sae = token_documents(320), tiny_lm.sae()
    report = evaluate(found.model, None, {SITE: sae}, documents, context=24, bootstrap=0)
    module = wrapped.get_base_model().get_submodule(SITE)
    clean, spliced = own_losses(lambda ids: wrapped(ids).logits, module, sae, documents, 24)
    assert report.sites[0].ce.clean == pytest.approx(clean, abs=2e-6)
    assert report.sites[0].ce.spliced == pytest.approx(spliced, abs=2e-6)
    assert report.run["head"] == head
    assert report.run["adapter"] == "LORA of rank 4"


def test_a_small_adapter_of_the_head_is_not_lost_in_rounding(tmp_path: Path) -> None:
    """Its layer shows the head's own weight, whose logits differ by less than a trial of the head allows."""
    wrapped = write_adapter(tmp_path, tiny_lm.model(), target_modules=["lm_head"])
    with torch.no_grad():
        wrapped.get_base_model().lm_head.lora_B["default"].weight.mul_(1e-4)
    documents, sae = token_documents(320), tiny_lm.sae()
    model = wrapped.get_base_model()
    report = evaluate(model, None, {SITE: sae}, documents, context=24, bootstrap=0)
    clean, _ = own_losses(lambda ids: model(ids).logits, model.get_submodule(SITE), sae, documents, 24)
    assert report.sites[0].ce.clean == pytest.approx(clean, abs=2e-7)
    assert report.run["head"] == "module"
    with wrapped.disable_adapter():
        plain, _ = own_losses(lambda ids: model(ids).logits, model.get_submodule(SITE), sae, documents, 24)
        report = evaluate(model, None, {SITE: sae}, documents, context=24, bootstrap=0)
    assert report.run["head"] == "linear"
    assert report.sites[0].ce.clean == pytest.approx(plain, abs=2e-7)
    assert abs(plain - clean) > 1e-6


def test_the_command_evaluates_the_adapted_model_and_says_so(
    files: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wrapped = write_adapter(tmp_path / "adapter", tiny_lm.model())
    capsys.readouterr()
    out = tmp_path / "report.json"
    argv = [*arguments(files, adapter=[tmp_path / "adapter"]), "--json", str(out), "--html", str(tmp_path / "r.html")]
    assert main(argv) == 0
    found = json.loads(out.read_text())
    told = f"{tmp_path / 'adapter'} (LORA of rank 4), not merged"
    assert found["run"]["adapter"] == told
    assert f"adapter: {told}" in " ".join(capsys.readouterr().out.split())
    assert told in (tmp_path / "r.html").read_text()
    saes = {site: tiny_lm.sae(number) for number, site in enumerate(tiny_lm.SITES)}
    want = evaluate(wrapped.get_base_model(), tiny_lm.tokenizer(), saes, tiny_lm.documents(), bootstrap=0)
    assert found["all_sites"]["ce"]["clean"] == pytest.approx(want.all_sites.ce.clean, abs=1e-9)
    assert found["all_sites"]["ce"]["spliced"] == pytest.approx(want.all_sites.ce.spliced, abs=1e-9)


def test_pefts_own_model_has_the_same_figures_at_its_longer_names(tmp_path: Path) -> None:
    wrapped = write_adapter(tmp_path, tiny_lm.model())
    documents, sae = token_documents(320), tiny_lm.sae()
    short, long = (
        evaluate(model, None, {site: sae}, documents, context=24, bootstrap=0).sites[0].ce
        for model, site in ((wrapped.get_base_model(), SITE), (wrapped, f"base_model.model.{SITE}"))
    )
    assert (long.clean, long.spliced) == pytest.approx((short.clean, short.spliced), abs=1e-6)


def test_a_run_knows_what_its_adapter_does(tmp_path: Path) -> None:
    """Neither a scale nor whether it is on is a weight."""
    made = [
        write_adapter(tmp_path / str(alpha), tiny_lm.model(), lora_alpha=alpha).get_base_model() for alpha in (8, 16)
    ]
    known = [of_model(model) for model in made]
    again = write_adapter(tmp_path / "16", tiny_lm.model(), lora_alpha=16)
    assert of_model(again.get_base_model()) == known[1] != known[0]
    loaded = load_model(ModelNames(str(base(tmp_path / "base")), adapter=str(tmp_path / "16")), CPU, "float32")
    assert of_model(loaded.model) == known[1]
    with again.disable_adapter():
        assert of_model(again.get_base_model()) != known[1]
    assert of_model(again.get_base_model()) == known[1]


def damaged(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        tensors = load_file(folder / "adapter_model.safetensors")
        change(tensors)
        save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})

    return apply


FIRST = "base_model.model.model.layers.0.self_attn.q_proj.lora_A"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            damaged(lambda tensors: tensors.pop(f"{FIRST}.weight")),
            f"{{path!r}} does not fit the model: it lacks '{FIRST}.default.weight'",
        ),
        (
            damaged(lambda tensors: tensors.update({FIRST.replace("0", "7") + ".weight": torch.zeros(4, 32)})),
            f"{{path!r}} does not fit the model: the model has no place for its weight '{FIRST.replace('0', '7')}.",
        ),
        (damaged(lambda tensors: tensors.update({f"{FIRST}.weight": torch.zeros(4, 7)})), "cannot load {path!r}: "),
        (lambda folder: (folder / "adapter_model.safetensors").write_bytes(b"x"), "cannot load {path!r}: "),
        (lambda folder: (folder / "adapter_model.safetensors").unlink(), "cannot load {path!r}: "),
        (lambda folder: (folder / "adapter_config.json").unlink(), "cannot load {path!r}: "),
        (shutil.rmtree, "{path} does not exist"),
    ],
    ids=["a weight less", "a weight more", "another shape", "no file", "no weights", "no config", "nothing"],
)
def test_damaged_adapters(
    change: Callable[[Path], Any], said: str, files: dict[str, Path], tmp_path: Path, capsys: Any
) -> None:
    folder = tmp_path / "adapter"
    write_adapter(folder, tiny_lm.model())
    change(folder)
    capsys.readouterr()
    line = fails(capsys, arguments(files, adapter=[folder]))
    assert f"--adapter: {said.format(path=str(folder) if '!r' in said else folder)}" in line, line


@pytest.mark.parametrize(
    ("config", "kind"),
    [
        (lambda: peft.PromptTuningConfig(num_virtual_tokens=3, task_type="CAUSAL_LM"), "PROMPT_TUNING"),
        (
            lambda: peft.LoraConfig(target_modules=["q_proj"], alora_invocation_tokens=[5], task_type="CAUSAL_LM", r=4),
            "LORA of rank 4",
        ),
    ],
    ids=["prompt tuning", "activated by tokens"],
)
def test_an_adapter_that_does_more_than_modules_do_is_refused(
    config: Callable[[], Any], kind: str, files: dict[str, Path], tmp_path: Path, capsys: Any
) -> None:
    peft.get_peft_model(tiny_lm.model(), config()).save_pretrained(tmp_path)
    capsys.readouterr()
    assert fails(capsys, arguments(files, adapter=[tmp_path])) == (
        f"saekernels eval: error: --adapter: {str(tmp_path)!r} is {kind}, which does more than the model's modules do; "
        "need one that lies within them, such as LoRA\n"
    )


def test_an_adapter_as_the_model_is_refused(files: dict[str, Path], tmp_path: Path, capsys: Any) -> None:
    """transformers would apply it where peft is installed, and not say so."""
    write_adapter(base(tmp_path), tiny_lm.model())
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    (tmp_path / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": "owner/name"}))
    capsys.readouterr()
    assert fails(capsys, arguments(files, model=[tmp_path])) == (
        f"saekernels eval: error: --model: {tmp_path} is a PEFT adapter; need --model with the model owner/name, "
        f"and --adapter {tmp_path}\n"
    )


def test_an_adapter_without_peft(
    files: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    assert fails(capsys, arguments(files, adapter=[tmp_path])) == (
        "saekernels eval: error: --adapter needs the package 'peft'; install it with: "
        "pip install 'saekernels[models]'\n"
    )
