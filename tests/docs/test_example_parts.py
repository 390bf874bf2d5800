"""The parts of the scripts that make the bundled example, each against numbers."""

from __future__ import annotations

import numpy as np
import pytest
import torch

pytestmark = pytest.mark.usefixtures("example_modules")


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
    from ngram import KneserNey

    random = np.random.default_rng(order)
    stream = random.choice(6, size=400, p=[0.4, 0.2, 0.2, 0.1, 0.05, 0.05])
    model = KneserNey(stream, order, vocab=7)
    for _ in range(10):
        history = np.uint64(0)
        for token in random.integers(0, 7, 4):
            history = (history << model.bits) | np.uint64(token)
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
            history = (history << model.bits) | np.uint64(token)
        p = model.probability(np.array([history]), np.array([min(t, 2)]), ids[:, t + 1])
        assert nats[0, t] == pytest.approx(-np.log(p[0]), rel=1e-12)


@pytest.mark.parametrize("order", [0, 1, 2, 3])
def test_ngram_losses_of_a_window_are_its_probabilities(order: int, real_model_modules: None) -> None:
    """Of ids that need 16 bits, from what stands before each in the window; special tokens do not count."""
    from ngram import KneserNey
    from ngrams import window_losses
    from saekernels.eval.text.windows import Window

    vocab = 49_152
    text = vocab - 1 - np.random.default_rng(order).integers(0, 5, 300)
    model = KneserNey(text, order, vocab)
    ids = np.array([7, *text[:6], 3, *text[9:14]], dtype=np.int32)
    window = Window(0, ids, np.isin(ids, [7]), np.zeros(len(ids), np.int64))
    expected = []
    for t in range(1, len(ids) - 1):
        history = np.uint64(0)
        for token in ids[max(0, t + 1 - 3) : t + 1]:
            history = (history << model.bits) | np.uint64(token)
        (p,) = model.probability(np.array([history]), np.array([t + 1]), ids[t + 1 : t + 2])
        expected.append(-np.log(p))
    assert len(expected) == window.counted.sum() == 11
    np.testing.assert_allclose(window_losses(model, window), expected, rtol=1e-12)
    with pytest.raises(ValueError, match="order 5 and vocab 49152: need an order of 0 to 4"):
        KneserNey(text, 5, vocab)


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
