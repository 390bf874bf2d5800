"""evaluate() on models of any make: the same figures as plain hooks and full logits, whatever the head is like."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import transformers
from torch import Tensor, nn

import tiny_lm
from saekernels.eval import Document, InputError, evaluate
from saekernels.eval.passes.head import check_head, find_head
from saekernels.sae.activations import TopK
from saekernels.sae.module import SAE

VOCABULARY, WIDTH, CONTEXT = 61, 32, 12
SITE = "blocks.0"


class Block(nn.Module):
    """A mean over what came before, and a layer of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.mix, self.out = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        before = x.cumsum(1) / torch.arange(1, x.shape[1] + 1)[:, None]
        return x + self.out(torch.tanh(self.mix(before)))


class Plain(nn.Module):
    """From ids to logits; subclasses say what the head is and how the logits come out."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, WIDTH)
        self.blocks = nn.ModuleList([Block(), Block()])
        self.head: nn.Module = nn.Linear(WIDTH, VOCABULARY)

    def states(self, ids: Tensor) -> Tensor:
        x = self.embed(ids)
        for block in self.blocks:
            x = block(x)
        return x

    def forward(self, ids: Tensor) -> Any:
        return self.head(self.states(ids))


class Capped(Plain):
    """A scale and a soft-cap that no name tells of, and no random logits come near."""

    def forward(self, ids: Tensor) -> Any:
        return 50.0 * torch.tanh(0.37 * self.head(self.states(ids)) / 50.0)


class Offset(Plain):
    """A bias that is added outside of the head."""

    def __init__(self) -> None:
        super().__init__()
        self.further = nn.Parameter(torch.zeros(VOCABULARY))

    def forward(self, ids: Tensor) -> Any:
        return self.head(self.states(ids)) * 2.0 + self.further


class Tied(Plain):
    """The embedding's weight, without a module that multiplies by it."""

    def forward(self, ids: Tensor) -> Any:
        return F.linear(self.states(ids), self.embed.weight)


class Dense(Plain):
    """A head of several layers, the last of them linear."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.GELU(), nn.Linear(WIDTH, VOCABULARY))


class Mixed(Plain):
    """A mixture of softmaxes: no linear map at all, but a module."""

    def __init__(self) -> None:
        super().__init__()
        self.head = MixtureHead()


class MixtureHead(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(WIDTH, VOCABULARY), nn.Linear(WIDTH, VOCABULARY)

    def forward(self, x: Tensor) -> Tensor:
        return torch.logaddexp(self.one(x).log_softmax(-1), self.two(x).log_softmax(-1))


class Masked(Plain):
    """Some logits are never to be had."""

    def forward(self, ids: Tensor) -> Any:
        z = self.head(self.states(ids))
        return {"logits": z.index_fill(-1, torch.tensor([0]), -1e9)}


class Normed(Plain):
    """What is done to a logit hangs on the others of its row."""

    def forward(self, ids: Tensor) -> Any:
        z = self.head(self.states(ids))
        return z / z.std(-1, keepdim=True)


class Pair(Plain):
    def forward(self, ids: Tensor) -> Any:
        return None, super().forward(ids), ids


class Record(Plain):
    def forward(self, ids: Tensor) -> Any:
        return SimpleNamespace(logits=super().forward(ids))


class NanoGPT(Plain):
    """As nanoGPT: all positions only where targets are given."""

    def forward(self, idx: Tensor, targets: Tensor | None = None) -> Any:
        x = self.states(idx)
        if targets is None:
            return self.head(x[:, [-1]]), None
        logits = self.head(x)
        return logits, F.cross_entropy(logits.view(-1, VOCABULARY), targets.view(-1), ignore_index=-1)


class Flat(Plain):
    """The head reads [B * S, d]."""

    def forward(self, ids: Tensor) -> Any:
        return self.head(self.states(ids).flatten(0, 1)).view(*ids.shape, -1)


class Bidirectional(Plain):
    def states(self, ids: Tensor) -> Tensor:
        x = super().states(ids)
        return x + x.mean(1, keepdim=True)


class LastOnly(Plain):
    def forward(self, ids: Tensor) -> Any:
        return super().forward(ids)[:, -1]


KINDS = {
    Plain: "linear",
    Capped: "linear",
    Offset: "linear",
    Tied: "whole",
    Dense: "linear",
    Mixed: "module",
    Masked: "linear",
    Normed: "whole",
    Pair: "linear",
    Record: "linear",
    NanoGPT: "linear",
    Flat: "linear",
}


@torch.no_grad()
def make(kind: type[Plain]) -> Plain:
    torch.manual_seed(0)
    model = kind().eval()
    for parameter in model.parameters():
        parameter.normal_(std=0.3)
    return model


@torch.no_grad()
def make_sae(width: int = WIDTH) -> SAE:
    torch.manual_seed(1)
    sae = SAE(width, 64, TopK(8))
    sae.W_enc.normal_(std=width**-0.5)
    sae.W_dec.copy_(sae.W_enc)
    return sae.eval()


def make_documents(count: int = 4) -> list[Document]:
    rng = np.random.default_rng(0)
    lengths = rng.integers(5, 30, count)
    return [Document("", ids=tuple(int(i) for i in rng.integers(1, VOCABULARY, n))) for n in lengths]


@torch.no_grad()
def full_logits(model: nn.Module, run: Any, site: str, sae: SAE | None) -> tuple[list[Tensor], list[Tensor]]:
    """Logits [n, V] and targets [n] of every window, one at a time, by plain hooks."""
    logits, targets = [], []
    for document in make_documents():
        for start in range(0, len(document.ids), CONTEXT):
            ids = torch.tensor([document.ids[start : start + CONTEXT]])
            if ids.shape[1] < 2:
                continue
            handle = None
            if sae is not None:

                def put(module: Any, args: Any, output: Any) -> Any:
                    return (sae(output[0]), *output[1:]) if isinstance(output, tuple) else sae(output)

                handle = model.get_submodule(site).register_forward_hook(put)
            z = run(ids)
            if handle is not None:
                handle.remove()
            logits.append(z[0, :-1].double())
            targets.append(ids[0, 1:])
    return logits, targets


def check_report(model: nn.Module, run: Any, site: str, kind: str, **options: Any) -> Any:
    width = options.pop("width", WIDTH)
    sae = make_sae(width)
    report = evaluate(model, None, {site: sae}, make_documents(), context=CONTEXT, bootstrap=0, **options)
    clean, targets = full_logits(model, run, site, None)
    spliced, _ = full_logits(model, run, site, sae)
    p, q, at = torch.cat(clean), torch.cat(spliced), torch.cat(targets)
    found = report.sites[0]
    assert report.tokens == len(at)
    assert report.run["head"] == kind
    assert found.ce.clean == pytest.approx(float(F.cross_entropy(p, at)), abs=2e-6)
    assert found.ce.spliced == pytest.approx(float(F.cross_entropy(q, at)), abs=2e-6)
    kl = F.kl_div(q.log_softmax(-1), p.log_softmax(-1), log_target=True, reduction="none").sum(-1)
    assert found.kl == pytest.approx(float(kl.mean()), abs=2e-6)
    assert found.top1_agreement == pytest.approx(float((p.argmax(-1) == q.argmax(-1)).double().mean()), abs=1e-9)
    slower = [note for note in report.notes if "slower" in note]
    assert len(slower) == (kind != "linear")
    return report


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
