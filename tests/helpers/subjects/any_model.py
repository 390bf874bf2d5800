"""Models of any make, from ids to logits, and the check of a report against plain hooks and their full logits."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from saekernels.eval import Document, evaluate
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
