"""What cannot be accelerated is refused by name, all or nothing; an unknown version verifies itself."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import saekernels as sk
from live_saes import MAKERS, REFUSED, D, F, K, close, lens_training, made, made_refused
from saekernels.adapters import NotAccelerated, UnknownVersion, verify

pytestmark = pytest.mark.peers


@pytest.mark.parametrize("architecture", REFUSED)
def test_training_saes_whose_maths_is_dense_are_refused_by_name(architecture: str) -> None:
    module = made_refused(architecture)
    with pytest.raises(NotAccelerated, match=f"{type(module).__name__}: .*{REFUSED[architecture]}"):
        sk.accelerate(module)
    assert not sk.is_accelerated(module)


def test_other_refusals() -> None:
    with pytest.raises(NotAccelerated, match="Linear: neither an SAE of a known tool"):
        sk.accelerate(nn.Linear(3, 3))
    with pytest.raises(NotAccelerated, match=r"need a torch\.nn\.Module, got int"):
        sk.accelerate(3)  # type: ignore[type-var]
    for function in (sk.restore, sk.is_accelerated):
        with pytest.raises(NotAccelerated, match=r"need a torch\.nn\.Module, got int"):
            function(3)  # type: ignore[operator]
    with torch.device("meta"):
        shapes = sk.accelerate(MAKERS["lens topk"]())
        assert shapes.to("meta")(torch.randn(2, D, device="meta")).shape == (2, D)
    sparsify = pytest.importorskip("sparsify")

    class Own(sparsify.SparseCoder):  # type: ignore[misc]
        pass

    with pytest.raises(NotAccelerated, match="Own: it is a class of its own"):
        sk.accelerate(Own(D, sparsify.SparseCoderConfig(num_latents=F, k=K)))
    dictionary = pytest.importorskip("dictionary_learning.dictionary")
    with pytest.raises(NotAccelerated, match="IdentityDict: nothing is multiplied"):
        sk.accelerate(dictionary.IdentityDict(D))


def test_a_module_with_saes_inside() -> None:
    holder = nn.ModuleDict({"a": made("lens topk"), "b": made("sparsify topk"), "c": nn.Linear(2, 2)})
    plain = copy.deepcopy(holder)
    assert sk.accelerate(holder) is holder
    assert sk.is_accelerated(holder["a"])
    assert sk.is_accelerated(holder["b"])
    x = torch.randn(5, D)
    with torch.no_grad():
        close(holder["a"](x), plain["a"](x))
        close(holder["b"](x)[0], plain["b"](x)[0])
    sk.restore(holder)
    assert not sk.is_accelerated(holder)
    refused = lens_training("matching_pursuit")()
    mixed = nn.ModuleList([made("lens topk"), refused])
    with pytest.raises(NotAccelerated, match="MatchingPursuitTrainingSAE"):
        sk.accelerate(mixed)
    assert not sk.is_accelerated(mixed), "all or nothing"


def test_an_unknown_version_verifies_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verify, "installed", lambda package: "99.0")
    module = made("lens topk")
    with pytest.warns(UnknownVersion, match="sae-lens 99.0 is not one that saekernels was checked against"):
        sk.accelerate(module)
    sk.restore(module)
    original = type(module).decode
    monkeypatch.setattr(type(module), "decode", lambda self, acts: original(self, acts) + 1.0)
    with pytest.raises(NotAccelerated, match="differs from its own by 1"):
        sk.accelerate(module)
    assert not sk.is_accelerated(module)
    assert [verify.is_known(v, ("6.54",)) for v in ("6.54", "6.54.12", "6.540.1", "7.0")] == [True, True, False, False]
