"""The scripts that make the bundled example: each part against numbers, and the whole at toy size."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import saekernels
from places import TOOLS
from saekernels.eval import load_documents


@pytest.fixture(autouse=True)
def example_modules(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The scripts import each other by plain names; the names are gone again after the test."""
    monkeypatch.syspath_prepend(str(TOOLS))
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
    for path in TOOLS.glob("*.py"):
        sys.modules.pop(path.stem, None)


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The work folder of `train_demo.py --toy`."""
    work = tmp_path_factory.mktemp("toy")
    run_demo(work)
    return work


def run_demo(work: Path) -> None:
    command = [sys.executable, str(TOOLS / "train_demo.py"), "--toy", "--work", str(work)]
    environment = {**os.environ, "OMP_NUM_THREADS": "2"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


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
    for layer in range(model.config.num_hidden_layers):
        sae = saekernels.load(bundle / "saes" / f"layer_{layer}")
        assert sae.activation == saekernels.TopK(8)
        torch.testing.assert_close(sae.decoder_norms(), torch.ones(64), rtol=2e-3, atol=0)
        torch.testing.assert_close(sae(x), saekernels.load(toy / "saes" / f"layer_{layer}")(x), rtol=0.02, atol=0.02)


def test_a_second_run_makes_nothing_again(toy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from train_demo import main

    before = {path: path.stat().st_mtime_ns for path in toy.rglob("*") if path.is_file()}
    main(["--toy", "--work", str(toy)])
    assert capsys.readouterr().out.count("is there") == 7
    assert {path: path.stat().st_mtime_ns for path in toy.rglob("*") if path.is_file()} == before


def test_toy_training_lowers_the_loss_and_the_comparison_is_consistent(toy: Path) -> None:
    rows = json.loads((toy / "ngram.json").read_text())
    parts = [row for name, row in rows.items() if name != "all"]
    for label in ("5gram", "model"):
        whole = sum(row[f"{label}_nats"] * row["tokens"] for row in parts)
        assert whole / rows["all"]["tokens"] == pytest.approx(rows["all"][f"{label}_nats"], abs=2e-4)
        bits = rows["all"][f"{label}_nats"] * rows["all"]["tokens"] / np.log(2) / rows["all"]["bytes"]
        assert bits == pytest.approx(rows["all"][f"{label}_bits_per_byte"], abs=2e-4)
    assert rows["all"]["model_nats"] < np.log(512) - 0.3


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


def test_deduplicator_drops_the_repeated_passage_and_keeps_the_rest() -> None:
    from dedup import Deduplicator

    passage = "".join(f"a line of the repeated passage, number {n}\n" for n in range(6))
    own = "".join(f"a line that is only here, number {n} of twelve\n" for n in range(12))
    unique = Deduplicator()
    assert unique.clean(passage) == passage
    assert unique.clean(own + passage) == own
    assert unique.clean(passage + "one more line\n") == ""


def test_roff_and_html_become_plain_text() -> None:
    from plaintext import html_to_text
    from roff import roff_to_text

    page = (
        '.\\" note\n.TH X 1\n.SH NAME\nx \\- a \\fBthing\\fP\n.PP\n.BR open (2)\nand\n'
        ".I y\n, too.\n.nf\nint a;\nint b;\n.fi\n"
    )
    assert roff_to_text(page) == "NAME\nx - a thing\n\nopen(2) and y, too.\nint a;\nint b;\n"
    html = (
        "<head><title>t</title></head><nav>menu</nav><p>One\n two &amp; <b>three</b>"
        "<pre>a\n  b</pre><ul><li>x<li>y</ul>"
    )
    assert html_to_text(html) == "One two & three\n\na\n  b\n\n- x\n- y\n"
    assert html_to_text("<p>a<div class=skip>b</div><p>c", skip_classes=("skip",)) == "a\n\nc\n"


@pytest.mark.parametrize("order", [1, 2, 3, 5])
def test_ngram_probabilities_sum_to_one(order: int) -> None:
    from ngram import BITS, KneserNey

    random = np.random.default_rng(order)
    stream = random.choice(6, size=400, p=[0.4, 0.2, 0.2, 0.1, 0.05, 0.05])
    model = KneserNey(stream, order, vocab=7)
    for _ in range(10):
        history = np.uint64(0)
        for token in random.integers(0, 7, 4):
            history = (history << np.uint64(BITS)) | np.uint64(token)
        for known in range(5):
            p = model.probability(np.full(7, history), np.full(7, known), np.arange(7))
            assert p.min() > 0
            assert p.sum() == pytest.approx(1, abs=1e-12)


def test_ngram_bigram_matches_the_formula() -> None:
    from ngram import KneserNey

    # 0 1 0 1 0 2: bigrams 01 x2, 10 x2, 02 x1; left neighbours 0: {1}, 1: {0}, 2: {0}; discounts 0.75 everywhere.
    model = KneserNey(np.array([0, 1, 0, 1, 0, 2]), 2, vocab=4)
    unigram = (np.array([0.25, 0.25, 0.25, 0.0]) + 3 * 0.75 / 4) / 3
    after_zero = (np.array([0, 1.25, 0.25, 0]) + 2 * 0.75 * unigram) / 3
    at = model.probability(np.zeros(4, np.uint64), np.ones(4), np.arange(4))
    np.testing.assert_allclose(at, after_zero, rtol=1e-12)
    np.testing.assert_allclose(
        model.probability(np.zeros(4, np.uint64), np.zeros(4), np.arange(4)), unigram, rtol=1e-12
    )


def test_ngram_sees_only_the_window() -> None:
    from ngram import KneserNey, window_nats
    from windows import BOS_ID, HeldOut

    stream = np.random.default_rng(0).integers(3, 9, 500)
    model = KneserNey(stream, 3, vocab=9)
    ids = np.array([[BOS_ID, 5, 4, 3, 8, 7]])
    nats = window_nats(model, HeldOut(ids, np.array(["x"]), np.array([0])))
    for t in range(5):
        history = np.uint64(0)
        for token in ids[0, 1 : t + 1]:
            history = (history << np.uint64(12)) | np.uint64(token)
        p = model.probability(np.array([history]), np.array([min(t, 2)]), ids[:, t + 1])
        assert nats[0, t] == pytest.approx(-np.log(p[0]), rel=1e-12)


def test_training_windows_cover_an_epoch_once_in_a_repeatable_order() -> None:
    from windows import BOS_ID, TrainingWindows

    stream = np.arange(3, 3003, dtype=np.uint16)
    windows = TrainingWindows(stream, context=11, seed=4)
    rows = windows.batch(0, windows.per_epoch)
    assert (rows[:, 0] == BOS_ID).all()
    assert len(np.unique(rows[:, 1:])) == windows.per_epoch * 10
    np.testing.assert_array_equal(TrainingWindows(stream, 11, 4).batch(17, 5), rows[17:22])
    assert not np.array_equal(windows.batch(windows.per_epoch, windows.per_epoch), rows)


def test_muon_orthogonalises() -> None:
    from muon import orthogonalise

    torch.manual_seed(0)
    for shape in ((3, 8, 20), (2, 20, 8)):
        matrices = torch.randn(shape)
        u, _, v = torch.linalg.svd(matrices, full_matrices=False)
        result = orthogonalise(matrices)
        singular = torch.linalg.svdvals(result)
        assert singular.min() > 0.5
        assert singular.max() < 1.3
        inside = u.mT @ result @ v.mT
        torch.testing.assert_close(inside, torch.diag_embed(inside.diagonal(dim1=1, dim2=2)), atol=1e-4, rtol=0)


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


def test_sae_trainer_keeps_unit_rows_learns_and_folds_the_scale() -> None:
    from train_saes import Plan, Trainer

    torch.set_num_threads(1)
    torch.manual_seed(0)
    dictionary = torch.nn.functional.normalize(torch.randn(24, 12), dim=1)
    weights = torch.rand(4000, 24) * (torch.rand(4000, 24) < 0.1)
    data = 30 * (weights @ dictionary) + 5
    trainer = Trainer(data, Plan(n_latents=48, k=4, lr=3e-3, dead_after=3_000, aux_k=8), seed=0)
    trainer.step(data, 1.0)
    first = trainer.fvu
    for start in range(0, 4000 * 10, 200):
        trainer.step(data[start % 4000 : start % 4000 + 200], 1.0)
    torch.testing.assert_close(trainer.sae.decoder_norms(), torch.ones(48), atol=1e-5, rtol=0)
    assert trainer.fvu < 0.1 < first
    out = trainer.sae(data * trainer.scale) / trainer.scale
    torch.testing.assert_close(trainer.folded()(data), out, rtol=1e-3, atol=1e-3)


def test_evaluation_documents_are_dealt_out_evenly() -> None:
    from evalset import beginning, choose

    documents = [{"domain": "ab"[n % 4 == 0], "source": str(n)} for n in range(40)]
    chosen = choose(documents, dict.fromkeys((str(n) for n in range(40)), 10), per_domain=80)
    assert [document["domain"] for document in chosen[:6]] == ["a", "b", "a", "b", "a", "b"]
    assert len(chosen) == 16
    assert beginning("one\ntwo\nthree\n", 9) == "one\ntwo\n"
    assert beginning("word " * 10, 12) == "word word\n"


def test_the_shipped_example_is_what_its_sources_page_says() -> None:
    from saekernels import example

    assert sum(path.stat().st_size for path in example.ROOT.rglob("*") if path.is_file()) <= 15 * 2**20
    assert list(example.SAE_DIRS) == [f"model.layers.{layer}" for layer in range(4)]
    tokenizer = AutoTokenizer.from_pretrained(example.MODEL_DIR)
    tokens: dict[str, int] = {}
    page = example.SOURCES.read_text(encoding="utf-8")
    for document in load_documents([example.EVAL_DATA]):
        tokens[document.domain] = tokens.get(document.domain, 0) + len(tokenizer(document.text).input_ids) - 1
        assert f"- {document.source}" in page
    assert len(tokens) >= 6
    assert min(tokens.values()) >= 15_000
    assert sum(tokens.values()) >= 200_000


@pytest.mark.parametrize("layer", range(4))
def test_shipped_saes_reconstruct_the_shipped_model(layer: int) -> None:
    from saekernels import example
    from train_saes import Activations

    torch.set_num_threads(2)
    model = AutoModelForCausalLM.from_pretrained(example.MODEL_DIR)
    assert next(model.parameters()).dtype == torch.float32
    tokenizer = AutoTokenizer.from_pretrained(example.MODEL_DIR)
    documents = list(load_documents([example.EVAL_DATA]))[:12]
    ids = torch.tensor([tokenizer(document.text).input_ids[:64] for document in documents if len(document.text) > 600])
    sae = saekernels.load(example.SAE_DIRS[f"model.layers.{layer}"])
    assert (sae.d_in, sae.n_latents, sae.activation) == (160, 2560, saekernels.TopK(32))
    x = Activations(model)(ids)[layer]
    with torch.no_grad():
        fvu = (sae(x) - x).square().sum() / (x - x.mean(0)).square().sum()
    assert 0.001 < fvu.item() < 0.2


def test_the_family_is_trained_on_as_many_tokens_per_parameter() -> None:
    import train_family
    from saekernels import example
    from saekernels.eval.studies.family import read_family

    shipped = {member.name: member for member in read_family(example.FAMILY).members}
    plans = train_family.plans(4096)
    main_plan = train_family.MAIN
    whole = train_family.MAIN_STEPS * main_plan.windows_per_step * main_plan.context
    for name, plan in plans.items():
        size = train_family.parameters(plan, 4096)
        tokens = plan.steps * plan.windows_per_step * plan.context
        assert tokens / size == pytest.approx(whole / train_family.parameters(main_plan, 4096), rel=0.01)
        assert shipped[name].parameters == size
        assert shipped[name].train_tokens == tokens
