"""Cross-layer transcoders by themselves: small cases by hand, and an independent dense sum."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import saekernels as sk
from saekernels.crosslayer import sums
from saekernels.crosslayer.source import SourceLayer
from saekernels.crosslayer.transcoder import CrossLayerTranscoder


@torch.no_grad()
def by_hand() -> tuple[CrossLayerTranscoder, list[Tensor]]:
    """Three layers of two latents, and what each reads; codes (1, 0), (0, 2), (0, 0)."""
    clt = CrossLayerTranscoder(2, 2, 3, sk.JumpReLU())
    for s in range(3):
        source = clt.source(s)
        source.W_enc.copy_(torch.eye(2))
        source.threshold.fill_(0.5)  # type: ignore[union-attr]
        source.W_dec.fill_(9)
    clt.source(0).W_dec[0] = torch.tensor([1.0, 0, 0, 1, 1, 1])
    clt.source(1).W_dec[1] = torch.tensor([2.0, 0, 0, 3])
    for target, bias in enumerate(((0.1, 0.0), (0.0, 0.1), (0.1, 0.1))):
        clt.b_dec[target].copy_(torch.tensor(bias))
    return clt, [torch.tensor([row]) for row in ((1, 0.5), (0.25, 2), (0.0, -1))]


def test_by_hand() -> None:
    clt, xs = by_hand()
    codes = clt.encode(xs)
    assert [one.to_dense().tolist() for one in codes] == [[[1, 0]], [[0, 2]], [[0, 0]]]
    expected = [(1.1, 0), (4, 1.1), (1.1, 7.1)]
    torch.testing.assert_close(torch.cat(clt(xs)), torch.tensor(expected))
    own = [clt.decode(t, codes, "own")[0].tolist() for t in range(3)]
    cross = [clt.decode(t, codes, "cross")[0].tolist() for t in range(3)]
    torch.testing.assert_close(torch.tensor(own), torch.tensor([(1.1, 0.0), (4, 0.1), (0.1, 0.1)]))
    torch.testing.assert_close(torch.tensor(cross), torch.tensor([(0.1, 0.0), (0, 1.1), (1.1, 7.1)]))
    assert clt.source(0).decoder_norms()[0].item() == 2  # of all targets concatenated
    assert clt.parameters_per_layer == [4 + 2 + 2 + 12 + 2, 4 + 2 + 2 + 8 + 2, 4 + 2 + 2 + 4 + 2]


def test_a_skip_adds_to_its_own_layer() -> None:
    clt = CrossLayerTranscoder(2, 2, 2, sk.ReLU(), skip=True)
    with torch.no_grad():
        clt.W_skip[0].copy_(torch.tensor([[0.0, 0.0], [1.0, 0.0]]))  # type: ignore[index]
        for s in range(2):
            clt.source(s).W_dec.zero_()
    first, second = clt([torch.tensor([[1, 0.5]])] * 2)
    assert first.tolist() == [[0, 1]]
    assert second.tolist() == [[0, 0]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("activation", [sk.ReLU(), sk.TopK(3), sk.JumpReLU(), sk.BatchTopK(3)])
@pytest.mark.parametrize("rescaled", [False, True])
def test_against_a_dense_sum(activation: sk.TopK, dtype: torch.dtype, rescaled: bool) -> None:
    torch.manual_seed(0)
    sizes = (12, 20, 16)
    clt = CrossLayerTranscoder(8, sizes, 3, activation, d_out=5, rescale_by_decoder_norm=rescaled, dtype=dtype)
    with torch.no_grad():
        for parameter in clt.parameters():
            parameter.normal_()
        for s in range(3):
            if clt.source(s).threshold is not None:
                clt.source(s).threshold.fill_(0.3)
    xs = [torch.randn(2, 7, 8, dtype=dtype) for _ in range(3)]
    codes = clt.encode(xs)
    for target in range(3):
        expected = clt.b_dec[target].double().expand(2, 7, 5)
        for s in range(target + 1):
            source = clt.source(s)
            dense = codes[s].to_dense()
            if rescaled:
                dense = (dense / source.decoder_norms().float()).to(dtype)
            W = source.W_dec.double().view(sizes[s], 3 - s, 5)[:, target - s]
            expected = expected + dense.double() @ W
        got = clt.decode(target, codes)
        assert got.dtype == dtype
        assert got.shape == (2, 7, 5)
        rtol, atol = (1e-5, 1e-5) if dtype == torch.float32 else (2e-2, 2e-2)
        torch.testing.assert_close(got.double(), expected, rtol=rtol, atol=atol)
    pairs = [clt.decode(target, codes) for target in range(3)]
    assert all(map(torch.equal, clt.decode_all(codes), pairs))  # summed together, the same bits
    with torch.no_grad():
        assert all(map(torch.equal, clt.decode_all(codes), pairs))


@pytest.mark.parametrize("targets", [1, 2, 3, 5])
def test_sums_of_several_targets(targets: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """In groups of any size, with layers off, targets left out and asked for again, and other codes between."""
    torch.manual_seed(0)
    clt = CrossLayerTranscoder(8, 16, 5, sk.TopK(3))
    monkeypatch.setattr(sums, "BYTES", targets * 4 * 8 * 4)  # tokens, width, bytes
    with torch.no_grad():
        for parameter in clt.parameters():
            parameter.normal_()
        first, second = (clt.encode(list(torch.randn(5, 4, 8))) for _ in range(2))
        running = sums.TargetSums(clt.sources, clt.b_dec)
        asked = [(t, first) for t in (0, 1, 2)] + [(t, second) for t in (0, 3, 4)] + [(4, first), (1, first)]
        asked += [(t, [None, first[1], None, first[3], second[4]]) for t in (1, 2, 3, 3, 4)]
        found = [running.at(target, codes, 4) for target, codes in asked]
        for (target, codes), got in zip(asked, found, strict=True):  # not before: nothing that was returned changes
            assert torch.equal(got, clt.decode(target, codes))
            assert got.untyped_storage().nbytes() == got.nbytes
        assert running._sums is None or running._sums.shape[1] > 1


@pytest.mark.parametrize("rescaled", [False, True])
@torch.no_grad()
def test_topk_over_all_layers(rescaled: bool) -> None:
    torch.manual_seed(0)
    sizes, options = (3, 20, 16), {"d_out": 5, "rescale_by_decoder_norm": rescaled}
    clt = CrossLayerTranscoder(8, sizes, 3, sk.TopK(9), across_layers=True, **options)  # type: ignore[arg-type]
    for parameter in clt.parameters():
        parameter.normal_()
    clt.source(1).W_enc.mul_(3)  # this layer has more than its third
    clt.source(2).W_enc[:12] = 0
    xs = [torch.randn(2, 7, 8) for _ in range(3)]
    pre = [(x @ clt.source(s).W_enc.T + clt.source(s).b_enc).relu() for s, x in enumerate(xs)]
    scores = torch.cat([h * clt.source(s).W_dec.norm(dim=1) if rescaled else h for s, h in enumerate(pre)], -1)
    kept = torch.zeros_like(scores).scatter(-1, scores.topk(9).indices, 1.0) * scores
    counts = (kept > 0).sum(-1)
    assert counts.max() == 9
    codes = clt.encode(xs)
    assert torch.equal(sum(one.l0() for one in codes), counts)  # type: ignore[arg-type]
    assert len({int(one.l0().sum()) for one in codes}) == 3
    for s, (one, dense) in enumerate(zip(codes, kept.split(sizes, -1), strict=True)):
        torch.testing.assert_close(one.to_dense(), dense)
        written = sum((pre[t] * (kept.split(sizes, -1)[t] > 0)) @ clt.source(t).decoder_to(s - t) for t in range(s + 1))
        torch.testing.assert_close(clt.decode(s, codes), written + clt.b_dec[s])
    with pytest.raises(ValueError, match=r"its TopK\(k=9\) chooses over all layers of a token"):
        sk.layer_sites(clt, ["a", "b", "c"])
    with pytest.raises(ValueError, match=r"xs: got tokens \[\[.*need the same for all layers"):
        clt.encode([xs[0], xs[1], xs[2][:1]])
    with pytest.raises(sk.FormatError, match="it has a choice over all layers"):
        sk.save_cross_layer(CrossLayerTranscoder(8, 3, 2, sk.TopK(2), across_layers=True), "nowhere")


def test_one_layer_is_a_transcoder_bit_for_bit() -> None:
    torch.manual_seed(0)
    clt = CrossLayerTranscoder(8, 32, 1, sk.TopK(4), d_out=6)
    sae = sk.SAE(8, 32, sk.TopK(4), d_out=6, pre_bias="none")
    with torch.no_grad():
        for parameter in sae.parameters():
            parameter.normal_()
        clt.source(0).load_state_dict({k: v for k, v in sae.state_dict().items() if k != "b_dec"})
        clt.b_dec[0].copy_(sae.b_dec)
    x = torch.randn(9, 8)
    assert torch.equal(clt([x])[0], sae(x))


def test_positions_without_codes_get_the_bias() -> None:
    clt, _ = by_hand()
    for rows in ([[1, 0.5], [0, 0], [0, 0]], [[0, 0]] * 3):
        x = torch.tensor(rows, dtype=torch.float32)
        out = clt([x, torch.zeros(3, 2), torch.zeros(3, 2)])
        assert [one.shape for one in out] == [(3, 2)] * 3
        assert torch.equal(out[1][-1], clt.b_dec[1])


def test_gradients_are_those_of_the_dense_sum() -> None:
    torch.manual_seed(0)
    clt = CrossLayerTranscoder(6, 10, 2, sk.ReLU()).double()
    xs = [torch.randn(4, 6, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    sum(one.square().sum() for one in clt(xs)).backward()  # type: ignore[union-attr]
    given = [x.grad for x in xs] + [p.grad for p in clt.parameters()]

    dense = [(x @ clt.source(s).W_enc.T + clt.source(s).b_enc).relu() for s, x in enumerate(xs)]
    first = dense[0] @ clt.source(0).W_dec + torch.cat([clt.b_dec[0], clt.b_dec[1]])
    second = first[:, 6:] + dense[1] @ clt.source(1).W_dec
    wanted = [*xs, *clt.parameters()]
    expected = torch.autograd.grad(first[:, :6].square().sum() + second.square().sum(), wanted)
    for got, one in zip(given, expected, strict=True):
        torch.testing.assert_close(got, one)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"n_layers": 0}, "n_layers: got 0"),
        ({"n_latents": [4, 4]}, "n_latents: got 2 of them, need one for each of 3 layers"),
        ({"pre_bias": "b_dec"}, "pre_bias: got 'b_dec'"),
        ({"activation": sk.TopK(9)}, "activation: got k = 9, need at most n_latents = 4"),
        ({"activation": sk.TopK(13), "across_layers": True}, "got k = 13, need at most n_latents = 12 of all layers"),
        ({"across_layers": True}, r"activation: got ReLU\(\), need one TopK"),
    ],
)
def test_wrong_arguments(arguments: dict[str, object], told: str) -> None:
    given: dict[str, object] = {"d_in": 2, "n_latents": 4, "n_layers": 3, "activation": sk.ReLU(), **arguments}
    with pytest.raises(ValueError, match=told):
        CrossLayerTranscoder(**given)  # type: ignore[arg-type]


def test_wrong_codes() -> None:
    clt, xs = by_hand()
    codes = clt.encode(xs)
    with pytest.raises(ValueError, match="xs: got 2 tensors, need one for each of 3 layers"):
        clt.encode(xs[:2])
    with pytest.raises(ValueError, match="part: got 'none'"):
        clt.decode(0, codes, "none")
    with pytest.raises(ValueError, match=r"codes: those of layer 1 are of tokens \[2\], need \[1\]"):
        clt.decode(1, [codes[0], clt.source(1).encode(torch.ones(2, 2))])
    with pytest.raises(ValueError, match="target: got 3"):
        clt.decode(3, codes)
    assert isinstance(clt.source(0), SourceLayer)
