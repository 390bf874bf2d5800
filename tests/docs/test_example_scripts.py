"""The scripts that make the bundled example, run at toy size."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import ranks
import saekernels
from places import TOOLS
from saekernels.eval import load_documents

pytestmark = pytest.mark.usefixtures("example_modules")


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The work folder of `train_demo.py --toy`."""
    work = tmp_path_factory.mktemp("toy")
    code, _, err = ranks.alone(DEMO, str(TOOLS / "train_demo.py"), "--toy", "--work", str(work))
    assert code == 0, err
    return work


DEMO = """
import os, runpy, sys
import saekernels, tokenizers, torch
from transformers import AutoTokenizer, LlamaForCausalLM
sys.argv[:] = sys.argv[1:]
sys.path.insert(0, os.path.dirname(sys.argv[0]))
torch.set_num_threads(2)
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.slow
def test_the_toy_bundle_loads_through_the_library(toy: Path) -> None:
    bundle = toy / "example"
    model = AutoModelForCausalLM.from_pretrained(bundle / "model")
    assert next(model.parameters()).dtype == torch.float32
    trained = AutoModelForCausalLM.from_pretrained(toy / "model")
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, trained.state_dict()[name], rtol=1e-3, atol=1e-6)
    tokenizer = AutoTokenizer.from_pretrained(bundle / "model")
    documents = list(load_documents([bundle / "data" / "eval.jsonl.gz"]))
    assert {document.domain for document in documents} == {"python_source", "docstrings"}
    sources = (bundle / "SOURCES.md").read_text(encoding="utf-8")
    for document in documents:
        ids = tokenizer(document.text).input_ids
        assert ids[0] == tokenizer.bos_token_id
        assert tokenizer.decode(ids[1:]) == document.text
        assert f"- {document.source}, PSF-2.0" in sources
    x = torch.randn(5, model.config.hidden_size)
    clt, plt = (saekernels.load_cross_layer(bundle / name) for name in ("clt", "plt"))
    across, apart = clt([x] * 2), [plt.transcoder(layer)(x) for layer in range(2)]
    for layer, (one, other) in enumerate(zip(across, apart, strict=True)):
        assert one.shape == other.shape == x.shape
        assert clt.sites[layer] == plt.sites[layer] == f"blocks.{layer}.mlp.hook_in -> blocks.{layer}.mlp.hook_out"
    for layer in range(model.config.num_hidden_layers):
        sae = saekernels.load(bundle / "saes" / f"layer_{layer}")
        assert sae.activation == saekernels.TopK(8)
        torch.testing.assert_close(sae.decoder_norms(), torch.ones(64), rtol=2e-3, atol=0)
        torch.testing.assert_close(sae(x), saekernels.load(toy / "saes" / f"layer_{layer}")(x), rtol=0.02, atol=0.02)


@pytest.mark.slow
def test_a_second_run_makes_nothing_again(toy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from train_demo import main

    before = {path: path.stat().st_mtime_ns for path in toy.rglob("*") if path.is_file()}
    main(["--toy", "--work", str(toy)])
    assert capsys.readouterr().out.count("is there") == 8
    assert {path: path.stat().st_mtime_ns for path in toy.rglob("*") if path.is_file()} == before


@pytest.mark.slow
def test_toy_training_lowers_the_loss_and_the_comparison_is_consistent(toy: Path) -> None:
    rows = json.loads((toy / "ngram.json").read_text())
    parts = [row for name, row in rows.items() if name != "all"]
    for label in ("5gram", "model"):
        whole = sum(row[f"{label}_nats"] * row["tokens"] for row in parts)
        assert whole / rows["all"]["tokens"] == pytest.approx(rows["all"][f"{label}_nats"], abs=2e-4)
        bits = rows["all"][f"{label}_nats"] * rows["all"]["tokens"] / np.log(2) / rows["all"]["bytes"]
        assert bits == pytest.approx(rows["all"][f"{label}_bits_per_byte"], abs=2e-4)
    assert rows["all"]["model_nats"] < np.log(512) - 0.3


@pytest.mark.slow
def test_held_out_documents_share_no_passage_with_training_documents(toy: Path) -> None:
    from corpus import held_out, read_documents
    from dedup import _shingles

    train, kept = (list(read_documents(toy / f"{part}.jsonl.gz")) for part in ("train", "heldout"))
    assert all(held_out(document["source"]) for document in kept)
    assert not any(held_out(document["source"]) for document in train)
    seen = {digest for document in train for digest, _ in _shingles(document["text"].splitlines())}
    found = {digest for document in kept for digest, _ in _shingles(document["text"].splitlines())}
    assert len(found) > 500
    assert not seen & found


@pytest.mark.slow
def test_gradients_do_not_depend_on_the_threads(toy: Path) -> None:
    from parallel import Workers
    from train_demo import TOY
    from train_lm import build
    from windows import TrainingWindows

    model = build(TOY.lm, 512)
    ids = torch.from_numpy(TrainingWindows(np.load(toy / "train.npy"), 64, 0).batch(0, 8))
    expected_loss = model(input_ids=ids, labels=ids).loss
    expected = torch.autograd.grad(expected_loss, list(model.parameters()))
    for threads in (1, 3):
        model.zero_grad(set_to_none=True)
        loss = Workers(model, threads).gradients(ids.split(2))
        assert loss == pytest.approx(expected_loss.item(), rel=1e-5)
        for parameter, gradient in zip(model.parameters(), expected, strict=True):
            torch.testing.assert_close(parameter.grad, gradient, rtol=1e-3, atol=1e-6)


@pytest.mark.slow
def test_an_interrupted_run_goes_on_as_if_it_had_not_been(toy: Path, tmp_path: Path) -> None:
    from train_demo import TOY
    from train_lm import Run
    from windows import TrainingWindows

    for name in ("tokenizer", "train.npy"):
        (tmp_path / name).symlink_to(toy / name)
    windows = TrainingWindows(np.load(toy / "train.npy"), TOY.lm.context, 0)
    plan = replace(TOY.lm, steps=6)
    straight = Run(tmp_path, tmp_path, plan, 1)
    losses = [straight.train_step(windows) for _ in range(4)]
    first = Run(tmp_path, tmp_path, plan, 2)
    assert [first.train_step(windows) for _ in range(2)] == losses[:2]
    first.save()
    second = Run(tmp_path, tmp_path, plan, 2)
    assert second.step == 2
    assert [second.train_step(windows) for _ in range(2)] == losses[2:]
    for name, value in second.model.state_dict().items():
        assert torch.equal(value, straight.model.state_dict()[name]), name


@pytest.mark.slow
def test_snapshots_are_the_model_on_its_way_also_after_an_interruption(toy: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from train_demo import TOY
    from train_lm import Run, train
    from windows import TrainingWindows

    plan = replace(TOY.lm, steps=5)
    for name in ("tokenizer", "train.npy", "heldout.npy", "heldout_documents.json"):
        (tmp_path / name).symlink_to(toy / name)
    windows = TrainingWindows(np.load(toy / "train.npy"), plan.context, plan.seed)
    straight = Run(tmp_path, tmp_path / "none", plan, 1)
    weights = [{name: value.clone() for name, value in straight.model.state_dict().items()}]
    for _ in range(5):
        straight.train_step(windows)
        weights.append({name: value.clone() for name, value in straight.model.state_dict().items()})

    def snapshots() -> set[str]:
        return {path.name for path in (out / "snapshots").iterdir()}

    out = tmp_path / "out"
    out.mkdir()
    begun = Run(tmp_path, out, plan, 1)
    for _ in range(3):
        begun.train_step(windows)
    begun.save()
    train(tmp_path, plan, 1, out, snapshots=True)
    assert snapshots() == {"step-4", "step-5"}
    (out / "lm_checkpoint.pt").unlink()
    train(tmp_path, plan, 1, out, snapshots=True)
    assert snapshots() == {f"step-{number}" for number in (0, 1, 2, 4, 5)}
    for number in (0, 1, 2, 4, 5):
        folder = out / "snapshots" / f"step-{number}"
        for name, value in AutoModelForCausalLM.from_pretrained(folder).state_dict().items():
            assert torch.equal(value, weights[number][name]), (number, name)
    assert AutoTokenizer.from_pretrained(folder)("def").input_ids[0] == 0
