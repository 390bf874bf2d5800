"""`saekernels.accelerate` on live objects of the installed tools: same results, gradients, files; and undone."""

from __future__ import annotations

import copy
import io
import pickle
from pathlib import Path

import pytest
import torch

import saekernels as sk
from live_saes import MAKERS, D, F, NothingWide, close, made, output

pytestmark = pytest.mark.peers


@pytest.mark.parametrize("shape", [(7,), (1,), (3, 5)])
@pytest.mark.parametrize("name", MAKERS)
def test_the_same_results(name: str, shape: tuple[int, ...]) -> None:
    if name.startswith("sparsify") and len(shape) > 1:
        shape = (15,)  # theirs takes [tokens, d] alone
    theirs, ours = made(name), made(name)
    x = torch.randn(*shape, D)
    kind = type(ours)
    assert sk.accelerate(ours) is ours
    assert type(ours) is kind
    with torch.no_grad():
        close(output(ours(x)), output(theirs(x)))
        own, other = ours.encode(x), theirs.encode(x)
        if name.startswith("sparsify"):
            close(own[0].sort().values, other[0].sort().values)
            close(own[2] + 0, other[2])
            assert own[1].dtype == other[1].dtype
            assert own[2].shape == other[2].shape
            close(ours.decode(*own[:2]), theirs.decode(*other[:2]))
        else:
            own, other = (one.to_dense() if one.is_sparse else one for one in (own, other))
            close(own, other)
            close(ours.decode(ours.encode(x)), theirs.decode(theirs.encode(x)))
            ours.encode(x), theirs.encode(x)  # a normalisation is undone by the next decode, once
            close(ours.decode(other), theirs.decode(other))


@pytest.mark.parametrize("name", [n for n in MAKERS if n != "lens training topk, sparse"])  # theirs fails
def test_the_same_gradients(name: str) -> None:
    theirs, ours = made(name).train(), sk.accelerate(made(name).train())
    x = torch.randn(9, D)
    found = []
    for module in (ours, theirs):
        own = x.clone().requires_grad_()
        output(module(own)).square().sum().backward()
        found.append({"x": own.grad, **{path: value.grad for path, value in module.named_parameters()}})
    for path, want in found[1].items():
        got = found[0][path]
        assert (got is None) == (want is None), path
        if want is not None:
            close(got, want, atol=1e-4)


@pytest.mark.parametrize("name", [n for n in MAKERS if "sparse" not in n])
def test_forward_makes_no_dense_latents(name: str) -> None:
    module = sk.accelerate(made(name))
    x = torch.randn(400, D)  # 400 * 192 elements, more than any matrix here
    with torch.no_grad():
        module(x)
        with NothingWide(400 * F):
            module(x)


def test_the_probe_notices_dense_latents() -> None:
    module, x = made("lens topk"), torch.randn(400, D)
    with pytest.raises(AssertionError), NothingWide(400 * F), torch.no_grad():
        module(x)


@pytest.mark.parametrize("name", MAKERS)
def test_parameters_stay_and_state_dicts_are_theirs(name: str) -> None:
    theirs, ours = made(name), made(name)
    before = {path: id(value) for path, value in ours.named_parameters()}
    sk.accelerate(ours)
    assert {path: id(value) for path, value in ours.named_parameters()} == before
    state, wanted = ours.state_dict(), theirs.state_dict()
    assert list(state) == list(wanted)
    for path, value in wanted.items():
        assert torch.equal(state[path], value)
        assert state[path].is_contiguous() >= value.is_contiguous()
    other = made(name, seed=1)
    ours.load_state_dict(other.state_dict())
    x = torch.randn(6, D)
    with torch.no_grad():
        close(output(ours(x)), output(other(x)))
    ours.load_state_dict(theirs.state_dict(), assign=True)
    with torch.no_grad():
        close(output(ours(x)), output(theirs(x)))
        for value in ours.parameters():
            value.mul_(1.01)
        for value in theirs.parameters():
            value.mul_(1.01)
        close(output(ours(x)), output(theirs(x)))


@pytest.mark.parametrize("name", MAKERS)
def test_restore_leaves_no_trace(name: str) -> None:
    module = made(name)
    before = {
        "dict": set(module.__dict__), "strides": {p: v.stride() for p, v in module.named_parameters()},
        "hooks": len(module._state_dict_hooks),
    }  # fmt: skip
    sk.accelerate(module)
    assert sk.is_accelerated(module)
    assert sk.accelerate(module) is module
    module(torch.randn(4, D))
    assert sk.restore(module) is module
    assert not sk.is_accelerated(module)
    after = {
        "dict": set(module.__dict__), "strides": {p: v.stride() for p, v in module.named_parameters()},
        "hooks": len(module._state_dict_hooks),
    }  # fmt: skip
    strides = {p: v.contiguous().stride() for p, v in module.named_parameters()}
    assert after["dict"] == before["dict"]
    assert after["hooks"] == before["hooks"]
    assert all(after["strides"][p] in (before["strides"][p], strides[p]) for p in strides)


@pytest.mark.parametrize("name", MAKERS)
def test_memory_is_not_doubled(name: str) -> None:
    module = sk.accelerate(made(name))
    with torch.no_grad():
        module(torch.randn(3, D))
    for path, value in module.named_parameters():
        assert value.untyped_storage().nbytes() == value.numel() * value.element_size(), path


@pytest.mark.parametrize("name", ["lens topk", "lens jumprelu", "sparsify topk", "dictionary TopK", "bench topk"])
def test_dtype_moves_and_copies(name: str) -> None:
    theirs, ours = made(name), sk.accelerate(made(name))
    x = torch.randn(6, D)
    twin, copies = copy.deepcopy(ours), []
    if not name.startswith("lens"):  # sae-lens' own objects hold lambdas
        buffer = io.BytesIO()
        torch.save(ours, buffer)
        buffer.seek(0)
        copies = [pickle.loads(pickle.dumps(ours)), torch.load(buffer, weights_only=False)]
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter.zero_()
        for copied in (twin, *copies):
            assert sk.is_accelerated(copied)
            close(output(copied(x)), output(theirs(x)))
        if name.startswith(("lens", "sparsify")):
            half = x.bfloat16()
            close(output(twin.to(torch.bfloat16)(half)), output(theirs.to(torch.bfloat16)(half)), rtol=0.05, atol=0.05)
            double = x.double()
            close(
                output(twin.to(torch.float64)(double)), output(theirs.to(torch.float64)(double)), rtol=1e-9, atol=1e-9
            )


def test_files_of_accelerated_objects_are_the_tools_own(tmp_path: Path) -> None:
    sae_lens = pytest.importorskip("sae_lens")
    for name in ("lens topk", "lens jumprelu", "lens training topk"):
        theirs, ours = made(name), sk.accelerate(made(name))
        theirs.save_model(str(tmp_path / "a"))
        ours.save_model(str(tmp_path / "b"))
        for file in ("sae_weights.safetensors", "cfg.json"):
            assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
    ours.save_inference_model(str(tmp_path / "c"))
    theirs.save_inference_model(str(tmp_path / "d"))
    assert (tmp_path / "c/sae_weights.safetensors").read_bytes() == (
        tmp_path / "d/sae_weights.safetensors"
    ).read_bytes()
    loaded = sk.accelerate(sae_lens.SAE.load_from_disk(tmp_path / "c"))
    x = torch.randn(5, D)
    with torch.no_grad():
        close(loaded(x), sae_lens.SAE.load_from_disk(tmp_path / "d")(x))
    sparsify = pytest.importorskip("sparsify")
    coder = sk.accelerate(made("sparsify skip"))
    coder.save_to_disk(tmp_path / "s")
    again = sparsify.SparseCoder.load_from_disk(tmp_path / "s")
    with torch.no_grad():
        close(again(x)[0], coder(x)[0])
