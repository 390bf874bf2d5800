"""evaluate() on models of any make: the same figures as plain hooks and full logits, whatever the head is like."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

import tiny_lm
from any_model import (
    CONTEXT,
    KINDS,
    SITE,
    VOCABULARY,
    WIDTH,
    Bidirectional,
    Capped,
    LastOnly,
    NanoGPT,
    Plain,
    check_report,
    make,
    make_documents,
    make_sae,
)  # fmt: skip
from saekernels.eval import Document, InputError, evaluate
from saekernels.eval.passes.calls import trial_ids
from saekernels.eval.passes.head import check_head, find_head


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_figures_equal_those_of_hooks_and_full_logits(kind: type[Plain]) -> None:
    model = make(kind)

    def run(ids: Tensor) -> Tensor:
        output = model(ids, ids) if kind is NanoGPT else model(ids)
        if isinstance(output, tuple):
            return next(one for one in output if isinstance(one, Tensor) and one.ndim == 3)
        return output["logits"] if isinstance(output, dict) else getattr(output, "logits", output)

    check_report(model, run, SITE, KINDS[kind])


def test_the_cap_and_scale_that_are_measured_are_those_of_the_model() -> None:
    head: Any = find_head(make(Capped))
    assert head.softcap == pytest.approx(50.0, rel=1e-5)
    assert head.scale == pytest.approx(0.37, rel=1e-5)


def test_a_config_number_stands_in_for_a_measured_one() -> None:
    model = make(Capped)
    model.config = SimpleNamespace(cap_of_logits=50.0, multiplier=1 / 0.37, heads=4, name="x")
    head: Any = find_head(model)
    assert head.softcap == 50.0
    assert head.scale == 1 / (1 / 0.37)


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        (Bidirectional, "Bidirectional is not causal: another last token moves earlier logits"),
        (LastOnly, r"LastOnly is no causal language model: it gives a tensor of shape \[1, 61\]"),
    ],
)
def test_a_model_that_cannot_be_evaluated_is_refused_by_name(kind: type[Plain], said: str) -> None:
    with pytest.raises(InputError, match=said):
        evaluate(make(kind), None, {SITE: make_sae()}, make_documents(), context=CONTEXT)


def test_padding_in_a_trial_hides_nothing() -> None:
    """XLM takes a row to end as many tokens early as it has padding in it, and looks both ways."""
    config = transformers.XLMConfig(vocab_size=VOCABULARY, emb_dim=WIDTH, n_layers=2, n_heads=4, pad_token_id=3)
    model = transformers.XLMWithLMHeadModel(config).eval()
    with pytest.raises(InputError, match="XLMWithLMHeadModel is not causal: another last token moves earlier logits"):
        evaluate(model, None, {"transformer.attentions.0": make_sae()}, make_documents(), context=CONTEXT)
    assert 3 not in trial_ids(model, VOCABULARY)


def test_the_batch_may_be_the_second_dimension() -> None:
    """The same figures for every size of a batch, and those of plain hooks."""
    torch.manual_seed(0)
    config = transformers.XLNetConfig(
        vocab_size=VOCABULARY, d_model=WIDTH, n_layer=2, n_head=4, d_inner=48, attn_type="uni", initializer_range=0.3
    )
    model, site = transformers.XLNetLMHeadModel(config).eval(), "transformer.layer.0"
    documents = [document for _ in range(4) for document in make_documents()]
    found = [
        evaluate(
            model, None, {f"{site}[batch=1]": make_sae()}, documents, context=CONTEXT, bootstrap=0, batch_size=size
        )
        for size in (1, 3, CONTEXT)
    ]
    for one in found[1:]:
        assert one.sites[0].ce.spliced == pytest.approx(found[0].sites[0].ce.spliced, abs=1e-6)
        assert one.sites[0].fvu == pytest.approx(found[0].sites[0].fvu, rel=1e-6)
    with pytest.raises(InputError, match=r"the site is 'transformer.layer.0\[batch=1\]'"):
        evaluate(model, None, {site: make_sae()}, documents, context=CONTEXT, bootstrap=0, batch_size=CONTEXT)


def test_a_text_without_a_tokenizer_is_refused() -> None:
    with pytest.raises(InputError, match="tokenizer: got None, but a document has no ids"):
        evaluate(make(Plain), None, {SITE: make_sae()}, [Document("some text")], context=CONTEXT)


def test_bos_without_a_tokenizer_is_refused() -> None:
    with pytest.raises(InputError, match="bos: there is no tokenizer"):
        evaluate(make(Plain), None, {SITE: make_sae()}, make_documents(), context=CONTEXT, bos=True)


def test_an_object_around_a_module_is_evaluated_as_the_module() -> None:
    model = make(Plain)
    around = SimpleNamespace(name="traced", _module=model)
    options: dict[str, Any] = {"context": CONTEXT, "bootstrap": 0}
    got = evaluate(around, None, {SITE: make_sae()}, make_documents(), **options)
    want = evaluate(model, None, {SITE: make_sae()}, make_documents(), **options)
    assert got.sites[0].ce.spliced == want.sites[0].ce.spliced


def small_seq2seq(name: str) -> Any:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {
        "T5": {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4},
        "Bart": {
            "d_model": 32, "encoder_layers": 1, "decoder_layers": 2, "encoder_attention_heads": 4,
            "decoder_attention_heads": 4, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "max_position_embeddings": 40,
        },
    }  # fmt: skip
    config = getattr(transformers, f"{name}Config")(
        **sizes[name], vocab_size=VOCABULARY, bos_token_id=0, eos_token_id=1, pad_token_id=2, decoder_start_token_id=0
    )
    model = getattr(transformers, f"{name}ForConditionalGeneration")(config).eval()
    for parameter in model.parameters():
        parameter.data.normal_(std=0.3)
    return model


@pytest.mark.parametrize(("name", "site"), [("T5", "decoder.block.0"), ("Bart", "model.decoder.layers.0")])
def test_an_encoder_decoder_reads_a_fixed_text_on_its_encoder(name: str, site: str) -> None:
    model, prompt = small_seq2seq(name), [5, 6, 7]

    def run(ids: Tensor) -> Tensor:
        return model(input_ids=torch.tensor([prompt]), decoder_input_ids=ids, use_cache=False).logits

    check_report(model, run, site, "linear", encoder_ids=prompt)
    with pytest.raises(InputError, match=r"is an encoder-decoder; give encoder_ids"):
        find_head(model)


def test_a_model_that_runs_without_a_cache_alone() -> None:
    class CacheLess(Plain):
        def forward(self, ids: Tensor, use_cache: bool = True) -> Any:
            if use_cache:
                raise RuntimeError("there is no cache")
            return super().forward(ids)

    model = make(CacheLess)
    check_report(model, lambda ids: model(ids, use_cache=False), SITE, "linear")


def test_the_mode_of_a_model_in_training_comes_back_and_dropout_does_not_count() -> None:
    model = tiny_lm.model(attention_dropout=0.5).train()
    ids = torch.arange(8)[None]
    head = find_head(model)
    assert model.training
    model.eval()
    check_head(model, head, ids)


class BatchRounded(Plain):
    """States are rounded by the largest of the batch, as bitsandbytes' 8-bit products do."""

    def states(self, ids: Tensor) -> Tensor:
        x = super().states(ids)
        step = x.abs().amax() / 15
        return (x / step).round() * step


def test_a_model_whose_logits_hang_on_the_batch_is_told() -> None:
    options = {"context": CONTEXT, "bootstrap": 0}
    report = evaluate(make(BatchRounded), None, {SITE: make_sae()}, make_documents(), **options)  # type: ignore[arg-type]
    told = [note for note in report.notes if "hang on what shares a text's batch" in note]
    assert len(told) == 1
    assert told[0].startswith("Logits of BatchRounded hang on what shares a text's batch: in a trial they moved by ")
    report = evaluate(make(Plain), None, {SITE: make_sae()}, make_documents(), **options)  # type: ignore[arg-type]
    assert not [note for note in report.notes if "batch" in note]
