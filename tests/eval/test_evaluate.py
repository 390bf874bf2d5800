"""evaluate(): its arguments, what it refuses, what it leaves as it was, and what becomes null."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import tiny_lm
from saekernels.eval import Document, InputError, evaluate
from saekernels.eval.passes.moments import Collector
from saekernels.sae.activations import TopK
from saekernels.sae.module import SAE

DOCUMENTS = [Document(tiny_lm.PARAGRAPH[i * 20 :], "prose") for i in range(4)] + [Document(tiny_lm.CODE, "code")]


def run(**changes: Any) -> Any:
    options: dict[str, Any] = {
        "model": tiny_lm.trained_model(),
        "tokenizer": tiny_lm.tokenizer(),
        "saes": {tiny_lm.SITES[1]: tiny_lm.sae(1)},
        "documents": DOCUMENTS,
        "bootstrap": 50,
        **changes,
    }
    positional = [options.pop(name) for name in ("model", "tokenizer", "saes", "documents")]
    return evaluate(*positional, **options)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"saes": {}}, "no SAE"),
        ({"tokens": 0}, "tokens must be at least 1, got 0"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"bootstrap": -1}, "bootstrap must be at least 0"),
        ({"context": 25}, "got 25 tokens, but the model has only 24 positions"),
        ({"context": 2}, "context must be at least 3"),
        ({"documents": []}, "nothing to evaluate"),
        ({"saes": {"model.layer.1": tiny_lm.sae()}}, r"no module 'model.layer.1'; close names: .*'model.layers.1'"),
        ({"saes": {"model.layers.1": SAE(16, 64, TopK(4))}}, "model.layers.1'.*16.*32"),
        ({"saes": {"lm_head@input": tiny_lm.sae()}}, "lm_head@input': it never runs in the body"),
        ({"seed": -1}, "seed must be at least 0, got -1"),
    ],
)
def test_bad_arguments_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        run(**changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"saes": None}, "saes: got None, need a mapping"),
        ({"saes": {"model.layers.1": None}}, "saes: 'model.layers.1' is None, need a saekernels.SAE"),
        ({"tokenizer": "gpt2"}, "tokenizer: got str, need a tokenizer"),
        ({"documents": None}, "documents: got None, need an iterable of saekernels.Document"),
        ({"documents": [*DOCUMENTS, "text"]}, "documents: number 5 is str, need a saekernels.Document"),
        ({"documents": iter([*DOCUMENTS, {"text": "a"}])}, "documents: number 5 is dict, need a saekernels.Document"),
        ({"documents": "one text"}, "documents: number 0 is str"),
        ({"tokens": 10.5}, "tokens: got 10.5, need an int"),
        ({"tokens": True}, "tokens: got True, need an int"),
        ({"context": "24"}, "context: got '24', need an int"),
        ({"seed": None}, "seed: got None, need an int"),
        ({"bos": 1}, "bos: got 1, need True, False or None"),
        ({"bos": "never"}, "bos: got 'never', need True, False or None"),
        ({"model_name": 3}, "model_name: got int, need a str or None"),
    ],
)
def test_arguments_of_the_wrong_kind_are_named_before_the_model_runs(
    changes: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Collector, "add", lambda *_, **__: pytest.fail("the long run has begun"))
    with pytest.raises(TypeError, match=message):
        run(**changes)


def test_a_model_that_fails_in_its_own_way_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_lm.model()
    monkeypatch.setattr(model.model.layers[0], "forward", lambda *_, **__: 1 // 0)
    with pytest.raises(InputError, match=r"model: a trial run on 16 tokens failed: .*division"):
        run(model=model)


def test_a_tokenizer_that_does_not_fit_is_refused() -> None:
    model = tiny_lm.model(vocab_size=280)
    with pytest.raises(InputError, match="tokenizer does not fit the model"):
        run(model=model)


def test_one_site_is_also_all_sites() -> None:
    report = run()
    assert len(report.sites) == 1
    assert report.all_sites.site == "all"
    assert report.all_sites.architecture == "joint"
    assert report.all_sites.delta_ce == report.sites[0].delta_ce
    assert report.run["passes"] == 5
    assert report.run["computed_once"] == ["mean model.layers.1", "zero model.layers.1"]


def test_texts_need_a_tokenizer() -> None:
    with pytest.raises(InputError, match="tokenizer: got None, but a document has no ids"):
        run(tokenizer=None)


def test_the_model_is_left_as_it_was() -> None:
    model = tiny_lm.model()
    model.train()
    model.model.layers[0].eval()
    before = [module.training for module in model.modules()]
    run(model=model)
    assert [module.training for module in model.modules()] == before
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_progress_reaches_its_total_and_does_not_change_the_result() -> None:
    calls: list[tuple[int, int]] = []
    with_progress = run(progress=lambda done, total: calls.append((done, total)))
    assert [done for done, _ in calls] == sorted(done for done, _ in calls)
    assert calls[-1][0] == calls[-1][1]
    assert len({total for _, total in calls}) == 1
    assert with_progress.sites == run().sites


def test_context_and_bos_are_options_and_reported() -> None:
    report = run(context=10, bos=False)
    assert report.context == 10
    assert report.prefix == []
    assert run().context == 24
    assert run().prefix == [0]
    assert report.all_sites.ce.clean != run().all_sites.ce.clean


def test_too_few_tokens_are_said() -> None:
    report = run(tokens=10**6)
    assert f"hold only {report.tokens} countable tokens of the 1,000,000" in report.notes[0]


def test_one_document_has_no_interval() -> None:
    report = run(documents=DOCUMENTS[:1])
    assert report.all_sites.delta_ce.ci95 is None
    assert any("one document" in note for note in report.notes)


def test_a_loss_that_is_not_finite_is_null_and_said() -> None:
    broken = tiny_lm.sae(1)
    with torch.no_grad():
        broken.b_dec[0] = float("nan")
    report = run(saes={tiny_lm.SITES[1]: broken})
    row = report.to_dict()["sites"][0]
    assert row["ce"]["spliced"] is None
    assert row["delta_ce"]["nats"] is None
    assert row["kl"] is None
    assert row["fvu"] is None
    assert row["ce"]["clean"] is not None
    assert row["ce"]["zero"] is not None
    assert any("spliced loss is not finite at" in note for note in report.notes)


def test_an_ablation_that_does_not_hurt_gives_no_loss_recovered() -> None:
    model = tiny_lm.model()
    torch.nn.init.zeros_(model.lm_head.weight)
    report = run(model=model)
    assert report.all_sites.loss_recovered.zero is None
    assert report.all_sites.loss_recovered.mean is None
    assert any("zero ablation does not raise the loss" in note for note in report.notes)
    assert report.all_sites.kl == pytest.approx(0.0, abs=1e-7)


def test_a_tokenizer_without_offsets_gives_no_bytes() -> None:
    class Slow:
        """The same tokenizer without offsets, as those in pure Python."""

        is_fast = False

        def __init__(self) -> None:
            self.inner = tiny_lm.tokenizer()

        def __getattr__(self, name: str) -> Any:
            return getattr(self.inner, name)

        def __call__(self, text: Any, return_offsets_mapping: bool = False, **options: Any) -> Any:
            assert not return_offsets_mapping
            return self.inner(text, **options)

    report = run(tokenizer=Slow())
    assert report.nbytes is None
    assert report.all_sites.delta_ce.bits_per_byte is None
    assert report.all_sites.delta_ce.nats == run().all_sites.delta_ce.nats
    assert any("bits per byte are unknown" in note for note in report.notes)


def test_transcoders_inputs_and_several_kinds_of_sites() -> None:
    mlp = SAE(32, 64, TopK(8), pre_bias="none")
    saes = {"model.layers.0.mlp@module": mlp, "model.layers.1.self_attn.o_proj@input": tiny_lm.sae(2)}
    report = run(saes=saes)
    assert [row.site for row in report.sites] == list(saes)
    # A transcoder's error is measured against what it replaces: the module's output.
    assert report.sites[0].fvu > 0.05
    assert all(row.delta_ce.nats != 0 and row.kl > 0 for row in report.sites)


@pytest.mark.parametrize("spelling", ["{0}.mlp@input -> {0}.mlp", "blocks.0.mlp.hook_in -> blocks.0.hook_mlp_out"])
def test_every_spelling_of_a_transcoders_site_has_the_same_baselines(spelling: str) -> None:
    mlp = SAE(32, 64, TopK(8), pre_bias="none")
    short, long = (run(saes={site: mlp}) for site in ("model.layers.0.mlp@module", spelling.format("model.layers.0")))
    # Random errors are drawn by the site's name.
    for baseline in ("zero", "mean", "pca"):
        assert short.sites[0].baselines[baseline] == long.sites[0].baselines[baseline]
    assert short.sites[0].fvu == long.sites[0].fvu
