"""Spliced evaluation of the bundled model with one SAE: CE clean and spliced, and KL, against full logits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from saekernels.bench.measure import peers
from saekernels.bench.measure.contenders import OURS, Contender, Op, Ready, Work
from saekernels.bench.measure.shapes import Problem, Shape
from saekernels.bench.ops.sae import SAELENS
from saekernels.sae.activations import TopK

FULL_LOGITS = "torch, full logits"
WINDOW, LAYER = 128, 2
_SHAPE = Shape(2048, 160, 2560, 32)
# Nats; in bf16 logits are rounded to a few digits.
_ALLOWED = {torch.float32: 1e-3, torch.bfloat16: 0.3}


def make(shape: Shape, dtype: torch.dtype) -> Problem:
    """Token ids [T] of the bundled text, in windows of 128."""
    peers.load("transformers")
    from transformers import AutoTokenizer

    from saekernels import example
    from saekernels.eval import load_documents

    if example.MISSING:
        raise peers.NotInstalled(example.MISSING)
    tokenizer = AutoTokenizer.from_pretrained(example.MODEL_DIR)
    ids: list[int] = []
    for document in load_documents([str(example.EVAL_DATA)]):
        ids += tokenizer(document.text).input_ids
        if len(ids) >= shape.T:
            break
    return Problem(shape, dtype, (torch.tensor(ids[: shape.T]),))


def model_of(problem: Problem) -> Any:
    from transformers import AutoModelForCausalLM

    from saekernels import example

    return AutoModelForCausalLM.from_pretrained(example.MODEL_DIR, dtype=problem.dtype)


def windows(ids: Tensor) -> Tensor:
    """[windows, at most 128]; what does not fill one is left out."""
    width = min(WINDOW, len(ids))
    return ids[: len(ids) // width * width].view(-1, width)


def ours(problem: Problem) -> Ready:
    """The evaluator's way: hidden states alone, losses from them and the output embedding."""
    from saekernels.eval.passes.head import find_head
    from saekernels.formats import load
    from saekernels.splice.context import splice

    model = model_of(problem)
    head, sae, site = find_head(model), load(_sae_path(), dtype=problem.dtype), f"model.layers.{LAYER}"

    def call(ids: Tensor) -> Tensor:
        batch = windows(ids)
        rows = torch.arange(batch.numel()).view(batch.shape)[:, :-1].reshape(-1)
        clean = head.hidden(batch, rows)
        with splice(model, {site: sae}):
            spliced = head.hidden(batch, rows)
        found = head.compare(clean, spliced, batch[:, 1:].reshape(-1))
        return torch.stack([found[0].double().mean(), found[1].double().mean(), found[2].double().mean()])

    return Ready(call)


def full_logits(problem: Problem) -> Ready:
    """A hook with a dense TopK SAE, and logits of both runs."""
    from saekernels.formats import load

    sae = load(_sae_path(), dtype=problem.dtype)
    assert isinstance(sae.activation, TopK)
    k = sae.activation.k

    def reconstruct(x: Tensor) -> Tensor:
        pre = functional.linear(x - sae.b_dec, sae.W_enc, sae.b_enc)
        top = pre.topk(k, dim=-1)
        return torch.zeros_like(pre).scatter_(-1, top.indices, top.values.relu()) @ sae.W_dec + sae.b_dec

    return Ready(_with_logits(model_of(problem), reconstruct))


def saelens(problem: Problem) -> Ready:
    """The same with SAELens' own SAE of this checkpoint."""
    return Ready(_with_logits(model_of(problem), peers.load("sae_lens").SAE.load_from_disk(_sae_path())))


def _with_logits(model: nn.Module, reconstruct: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    layer = model.get_submodule(f"model.layers.{LAYER}")

    def call(ids: Tensor) -> Tensor:
        batch = windows(ids)
        targets = batch[:, 1:].reshape(-1)
        clean = model(batch).logits[:, :-1].flatten(0, 1)
        handle = layer.register_forward_hook(lambda module, given, out: reconstruct(out))
        spliced = model(batch).logits[:, :-1].flatten(0, 1)
        handle.remove()
        logp, logq = clean.log_softmax(-1), spliced.log_softmax(-1)
        kl = (logp.exp() * (logp - logq)).sum(-1)
        losses = [functional.nll_loss(one, targets, reduction="none") for one in (logp, logq)]
        return torch.stack([losses[0].double().mean(), losses[1].double().mean(), kl.double().mean()])

    return call


def _sae_path() -> str:
    from saekernels import example

    return str(example.SAE_DIRS[f"model.layers.{LAYER}"])


def expect(problem: Problem) -> Tensor:
    """[3]: by full logits."""
    return full_logits(problem).call(*problem.tokens)


def check(problem: Problem, expected: Tensor, output: Tensor) -> str | None:
    worst = float((output - expected).abs().max())
    allowed = _ALLOWED[problem.dtype]
    return f"off by {worst:.2g} nats, allowed {allowed}" if not worst <= allowed else None


def contenders(_: torch.dtype) -> Sequence[Contender]:
    return [Contender(OURS, ours), Contender(FULL_LOGITS, full_logits), Contender(SAELENS, saelens)]


def work(problem: Problem, _: Any) -> Work:
    """Two runs of the 1.87 M parameters, each read once and applied to every token, and the SAE."""
    parameters, (T, d, F, k) = 1_865_120, problem.shape
    flops = 2 * T * (2 * parameters + d * F + k * d)
    return Work((2 * parameters + 2 * d * F + 4 * T * d) * problem.dtype.itemsize, flops)


def needs(shape: Shape, dtype: torch.dtype) -> int:
    """Six [T, 4096] for full logits."""
    return 6 * shape.T * 4096 * dtype.itemsize


SPLICED = Op(
    name="spliced_eval",
    make=make,
    contenders=contenders,
    expect=expect,
    check=check,
    work=work,
    needs=needs,
    shapes=(_SHAPE,),
    quick_shapes=(_SHAPE._replace(T=256),),
    baselines=(FULL_LOGITS,),
)
