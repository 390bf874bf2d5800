"""Cross-layer transcoders in a running model: which codes reach which layer, and when."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import saekernels as sk
from saekernels.crosslayer.running import RunningCodes
from saekernels.crosslayer.site import layer_sites
from saekernels.crosslayer.source import SourceLayer
from saekernels.crosslayer.transcoder import CrossLayerTranscoder


class Chain(nn.Module):
    """h <- h + mlp_l(h), mlp_0(h) = 2 h, mlp_1(h) = h, of one number per position."""

    def __init__(self) -> None:
        super().__init__()
        self.mlps = nn.ModuleList(nn.Linear(1, 1, bias=False) for _ in range(2))
        self.checkpointed: dict[str, bool] | None = None
        with torch.no_grad():
            for mlp, weight in zip(self.mlps, (2.0, 1.0), strict=True):
                mlp.weight.fill_(weight)  # type: ignore[operator,union-attr]
        self.fails_at: int | None = None

    def block(self, layer: int, h: Tensor) -> Tensor:
        if layer == self.fails_at:
            raise RuntimeError("out of order")
        return h + self.mlps[layer](h)

    def forward(self, h: Tensor) -> Tensor:
        for layer in range(2):
            if self.checkpointed is None:
                h = self.block(layer, h)
            else:
                h = checkpoint(self.block, layer, h, **self.checkpointed)  # type: ignore[assignment]
        return h


SITES = ("mlps.0@module", "mlps.1@module")


@torch.no_grad()
def chain_and_clt() -> tuple[Chain, CrossLayerTranscoder]:
    clt = CrossLayerTranscoder(1, 1, 2, sk.ReLU())
    clt.source(0).W_enc.fill_(1)
    clt.source(1).W_enc.fill_(1)
    clt.source(0).W_dec.copy_(torch.tensor([[0.5, 0.25]]))
    clt.source(1).W_dec.fill_(1)
    clt.sites = SITES
    return Chain(), clt


def e(*rows: float) -> Tensor:
    """One sequence of these positions."""
    return torch.tensor(rows, dtype=torch.float32).view(1, -1, 1)


def out(sites: Mapping[str, Any], given: Tensor | None = None, model: nn.Module | None = None, **options: Any) -> float:
    """What the spliced model gives for e = 2."""
    model = chain_and_clt()[0] if model is None else model
    with torch.no_grad(), sk.splice(model, sites, **options):
        return float(model(e(2) if given is None else given).flatten()[-1])


def test_who_writes_where() -> None:
    model, clt = chain_and_clt()
    assert float(model(e(2))) == 12
    joint = layer_sites(clt)
    seen = {}
    assert out(joint, observer=lambda site, x, x_hat, *_: seen.update({site: (float(x), float(x_hat))})) == 6.5
    assert seen == {"mlps.0@module": (2, 1), "mlps.1@module": (3, 3.5)}
    assert out({SITES[0]: joint[SITES[0]]}) == 6
    assert out({SITES[1]: joint[SITES[1]]}) == 12.5  # source 0 is read, and not replaced
    assert out(joint, replace="zero") == 2
    assert out(joint, error_term=True) == 12
    assert out(layer_sites(clt, part="own")) == 6
    assert out(layer_sites(clt, part="cross")) == 2 + 0 + 0.5
    assert out(layer_sites(clt, sources=[1])) == 2 + 0 + 2
    assert out(layer_sites(clt, sources=[0])) == 2 + 1 + 0.5
    assert out(layer_sites(clt, edits={0: [sk.Edit(0, "scale", (2.0,))]})) == 2 + 2 + (1 + 4)


def test_errors_of_the_clean_model_give_it_back_and_let_changes_through() -> None:
    _, clt = chain_and_clt()
    model, _ = chain_and_clt()
    with torch.no_grad(), sk.recording(model, layer_sites(clt)) as clean:
        assert float(model(e(2))) == 12
    assert {layer: float(error) for layer, error in clean.errors.items()} == {0: 3, 1: -0.5}
    assert [float(codes.values) for codes in clean.codes if codes] == [2, 6]
    assert out(layer_sites(clt, codes=clean.codes)) == 2 + 1 + 6.5  # teacher-forced: y_1 = 0.5 + 6
    frozen = layer_sites(clt, errors=clean.errors)
    assert out(frozen) == 12
    assert out(frozen, e(3)) == pytest.approx(12 + 3.25)
    x = e(2).requires_grad_()
    for options in ({"error_term": False}, {"error_term": True}):
        with sk.splice(model, frozen if not options["error_term"] else layer_sites(clt), **options):
            (gradient,) = torch.autograd.grad(model(x).sum(), x)
        assert float(gradient) == 3.25


def test_nothing_of_one_pass_reaches_another() -> None:
    model, clt = chain_and_clt()
    sites = layer_sites(clt)
    with torch.no_grad(), sk.splice(model, sites):
        assert float(model(e(2))) == 6.5
        assert float(model(e(4))) == 13
        model.fails_at = 1
        with pytest.raises(RuntimeError, match="out of order"):
            model(e(8))
        model.fails_at = None
        assert not sites[SITES[0]].running._codes
        assert float(model(e(2))) == 6.5
        # As with a cache: one position at a time.
        assert [float(model(e(one))) for one in (2, 4)] == model(e(2, 4)).flatten().tolist() == [6.5, 13]
    assert not sites[SITES[0]].running._codes


@pytest.mark.parametrize(("replaced", "calls"), [([0, 1], [(0, 2), (0, 1)]), ([0], [(0, 1)]), ([1], [(1, 1), (0, 1)])])
def test_a_layer_is_decoded_once_to_all_that_is_replaced(
    replaced: list[int], calls: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, clt = chain_and_clt()
    sites = layer_sites(clt)
    made: list[tuple[int, int]] = []
    decode_to = SourceLayer.decode_to

    def counted(self: SourceLayer, target: int, *given: Any, targets: int = 1) -> Tensor:
        made.append((target, targets))
        return decode_to(self, target, *given, targets=targets)

    monkeypatch.setattr(SourceLayer, "decode_to", counted)
    wanted = {SITES[layer]: sites[SITES[layer]] for layer in replaced}
    with sk.splice(model, wanted):
        with torch.no_grad():
            without = model(e(2))
        assert made == calls
        assert torch.equal(model(e(2)), without)  # with gradients, pair by pair


def test_a_layer_that_is_read_again_takes_later_codes_with_it() -> None:
    running = RunningCodes([0, 1])
    codes = chain_and_clt()[1].source(0).encode(e(2))
    for layer in (0, 1, 0):
        running.put(layer, codes)
    with pytest.raises(ValueError, match="layer 1 of a cross-layer dictionary was not read in this forward pass"):
        running.upto(1, codes.shape)


def test_untouched_positions_stay() -> None:
    model, clt = chain_and_clt()
    with torch.no_grad(), sk.splice(model, layer_sites(clt), untouched=torch.tensor([[True, False]])):
        assert model(e(2, 2)).flatten().tolist() == [12, 6.5]


def test_two_dictionaries_nest() -> None:
    model, clt = chain_and_clt()
    inner = layer_sites(chain_and_clt()[1], sources=[0])
    with torch.no_grad(), sk.splice(model, layer_sites(clt)):
        with sk.splice(model, {SITES[1]: inner[SITES[1]]}):
            assert float(model(e(2))) == 2 + 1 + 0.5
        assert float(model(e(2))) == 6.5


def test_sites_that_run_in_another_order_are_refused() -> None:
    model, clt = chain_and_clt()
    for sites in ({SITES[1]: 0, SITES[0]: 1}, {SITES[1]: 0}):
        placed = layer_sites(clt, sites=SITES[::-1])
        with pytest.raises(ValueError, match="layer 1 of a cross-layer dictionary was read before layer 0"):
            out({name: placed[name] for name in sites} if len(sites) > 1 else placed, model=model)


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradients_under_checkpointing(reentrant: bool) -> None:
    model, clt = chain_and_clt()
    torch.manual_seed(0)
    x = torch.randn(2, 5, 1).exp().requires_grad_()

    def gradients() -> list[Tensor]:
        with sk.splice(model, layer_sites(clt)):
            loss = model(x).square().sum()
            return list(torch.autograd.grad(loss, [x, *clt.parameters()], allow_unused=True))

    plain = gradients()
    model.checkpointed = {"use_reentrant": reentrant}
    if not reentrant:
        for got, expected in zip(gradients(), plain, strict=True):
            torch.testing.assert_close(got, expected)
        return
    with sk.splice(model, layer_sites(clt)), pytest.raises(RuntimeError, match="use_reentrant=False"):
        model(x).square().sum().backward()


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"sites": ["mlps.0"]}, "sites: got .*, need one for each of 2 layers"),
        ({"sites": ["mlps.0", "mlps.0"]}, "all different"),
        ({"sources": [2]}, "sources: got layer 2, need one of 0 to 1"),
        ({"part": "some"}, "part: got 'some'"),
        ({"errors": {5: None}}, "errors: got layer 5"),
        ({"codes": [None]}, "codes: got those of 1 layers, need 2"),
        ({"edits": {0: [sk.Edit(7, "zero")]}}, "latent 7 is not among the 1"),
    ],
)
def test_wrong_arguments(arguments: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        layer_sites(chain_and_clt()[1], **arguments)


def test_unknown_sites_are_asked_for() -> None:
    clt = chain_and_clt()[1]
    clt.sites = None
    with pytest.raises(ValueError, match="give one for each layer"):
        layer_sites(clt)
