"""`saekernels.accelerate` on live objects of the installed tools: same results, gradients, files, hooks; and undone."""

from __future__ import annotations

import copy
import io
import pickle
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import saekernels as sk
from live_saes import MAKERS, D, F, K, NothingWide, close, lens_training, made, output
from saekernels.adapters import NotAccelerated, UnknownVersion, verify
from saekernels.adapters.patch import state_of

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


LENS = ["lens topk", "lens jumprelu", "lens standard", "lens gated", "lens topk, constant norm"]


@pytest.mark.parametrize("name", LENS)
def test_hooks_on_latents_get_and_may_change_them(name: str) -> None:
    theirs, ours = made(name), sk.accelerate(made(name))
    x = torch.randn(6, D)
    found = []
    for module in (theirs, ours):
        seen: list[Tensor] = []

        def keep(value: Tensor, hook: Any, seen: list[Tensor] = seen) -> None:
            seen.append(value.detach().clone())

        def change(value: Tensor, hook: Any) -> Tensor:
            return value * 2.0

        with torch.no_grad():
            hooks = [("hook_sae_acts_pre", keep), ("hook_sae_acts_post", keep), ("hook_sae_recons", keep)]
            out = module.run_with_hooks(x, fwd_hooks=hooks)
            changed = module.run_with_hooks(x, fwd_hooks=[("hook_sae_acts_post", change)])
            _, cache = module.run_with_cache(x)
        found.append([out, changed, *seen, *(cache[key] for key in sorted(cache))])
    for ours_found, want in zip(found[1], found[0], strict=True):
        close(ours_found, want)


@pytest.mark.parametrize("name", LENS)
def test_hooks_around_the_latents_stay_on_the_fast_way(name: str) -> None:
    theirs, ours = made(name), sk.accelerate(made(name))
    x = torch.randn(400, D)
    hooks = [(at, lambda value, hook: value + 0.1) for at in ("hook_sae_input", "hook_sae_recons", "hook_sae_output")]
    with torch.no_grad():
        wanted = theirs.run_with_hooks(x, fwd_hooks=hooks)
        ours.run_with_hooks(x, fwd_hooks=hooks)
        with NothingWide(400 * F):
            found = ours.run_with_hooks(x, fwd_hooks=hooks)
    close(found, wanted)


@pytest.mark.parametrize("hooked", [False, True])
@pytest.mark.parametrize("name", LENS)
def test_the_error_term(name: str, hooked: bool) -> None:
    theirs, ours = made(name), sk.accelerate(made(name))
    x = torch.randn(6, D)
    found = []
    for module in (theirs, ours):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            module.use_error_term = True
        hooks = [("hook_sae_recons", lambda value, hook: value * 0.5)] if hooked else []
        with torch.no_grad():
            found.append(module.run_with_hooks(x, fwd_hooks=hooks))
    close(found[1], found[0])
    if not hooked:
        close(found[1], x)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
@pytest.mark.parametrize("name", ["lens topk", "lens jumprelu", "dictionary TopK", "dictionary JumpReLU", "bench topk"])
def test_latents_changed_by_hand_are_decoded_as_changed(name: str, mode: Any) -> None:
    theirs, ours = made(name), sk.accelerate(made(name))
    x = torch.randn(6, D)
    with mode():
        changes: list[Callable[[Tensor], Any]] = [
            lambda z: z,
            lambda z: z.mul_(2.0) if not z.requires_grad else z * 2.0,
            lambda z: z.index_fill(-1, torch.tensor([3]), 4.0),
            lambda z: z[:2],
            lambda z: z.clone(),
            lambda z: torch.zeros_like(z),
        ]
        for change in changes:
            own, other = ours.encode(x), theirs.encode(x)
            first, second = change(own), change(other)
            close(ours.decode(first), theirs.decode(second))
        own = ours.encode(x).detach()
        own[:, 5] = 1.0
        other = theirs.encode(x).detach()
        other[:, 5] = 1.0
        close(ours.decode(own), theirs.decode(other))


def test_gradients_of_latents_are_there_for_who_asks() -> None:
    for name in ("lens topk", "lens jumprelu", "dictionary TopK", "bench gated"):
        found = []
        for module in (made(name), sk.accelerate(made(name))):
            latents = module.encode(torch.ones(4, D) * 0.7)
            latents.retain_grad()
            module.decode(latents).square().sum().backward()
            found.append(latents.grad)
        close(found[1], found[0], atol=1e-4)


def test_dead_and_untouched_dictionary_options() -> None:
    for name, options in (
        ("dictionary TopK", {"return_topk": True}),
        ("dictionary TopK", {"use_threshold": True}),
        ("dictionary BatchTopK", {"use_threshold": False}),
        ("dictionary BatchTopK", {"return_active": True}),
        ("dictionary Matryoshka", {"return_active": True, "use_threshold": False}),
        ("dictionary JumpReLU", {"output_pre_jump": True}),
        ("dictionary Gated", {"return_gate": True}),
        ("dictionary Gated", {"normalize_decoder": True}),
    ):
        theirs, ours, x = made(name), sk.accelerate(made(name)), torch.randn(6, D)
        with torch.no_grad():
            own, other = ours.encode(x, **options), theirs.encode(x, **options)
        for a, b in zip(*(one if isinstance(one, tuple) else (one,) for one in (own, other)), strict=True):
            close(a.float().sort(-1).values, b.float().sort(-1).values)
    for name in ("dictionary AutoEncoder", "dictionary AutoEncoderNew", "dictionary Gated", "dictionary Matryoshka"):
        theirs, ours, x = made(name), sk.accelerate(made(name)), torch.randn(6, D)
        with torch.no_grad():
            for a, b in zip(ours(x, output_features=True), theirs(x, output_features=True), strict=True):
                close(a, b)
            for a, b in zip(ours(x, True), theirs(x, True), strict=True):
                close(a, b)
    theirs, ours = made("dictionary AutoEncoder"), sk.accelerate(made("dictionary AutoEncoder"))
    mask, x = torch.rand(F) < 0.1, torch.randn(6, D)
    with torch.no_grad():
        for a, b in zip(ours(x, ghost_mask=mask), theirs(x, ghost_mask=mask), strict=True):
            close(a, b)


def test_a_threshold_that_was_never_set_lets_every_positive_latent_through() -> None:
    for name in ("dictionary BatchTopK", "dictionary Matryoshka"):
        theirs, ours, x = made(name), sk.accelerate(made(name)), torch.randn(6, D)
        for module in (theirs, ours):
            module.threshold.fill_(-1.0)
        with torch.no_grad():
            close(ours(x), theirs(x))
    bench = sk.accelerate(made("bench batch topk"))
    bench.threshold.fill_(-1.0)
    with pytest.raises(ValueError, match="Threshold is not set"):
        bench(torch.randn(3, D))


def test_matryoshka_with_fewer_groups() -> None:
    theirs, ours, x = made("dictionary Matryoshka"), sk.accelerate(made("dictionary Matryoshka")), torch.randn(6, D)
    for module in (theirs, ours):
        module.active_groups = 1
    with torch.no_grad():
        close(ours(x), theirs(x))


def test_dense_codes_go_the_tools_own_way_after_a_look() -> None:
    module = sk.accelerate(made("lens standard"))
    theirs = made("lens standard")
    for one in (module, theirs):
        one.b_enc.data.add_(4.0)
    x, state = torch.randn(6, D), state_of(module)
    assert state is not None
    with torch.no_grad():
        for _ in range(3):
            close(module(x), theirs(x))
        assert state.density is not None
        assert state.density > 0.5
        assert state.dense_calls > 0
        for one in (module, theirs):
            one.b_enc.data.sub_(6.0)
        for _ in range(40):
            close(module(x), theirs(x))
        assert state.density < 1 / 16


@pytest.mark.parametrize("name", ["lens topk", "sparsify topk", "dictionary TopK", "bench jumprelu"])
def test_inputs_that_the_kernels_do_not_serve(name: str) -> None:
    theirs, ours = made(name), sk.accelerate(made(name))
    wrong = torch.randn(4, D + 1)
    for module in (theirs, ours):
        with pytest.raises(RuntimeError):
            module(wrong)
    if not name.startswith("sparsify"):
        x = torch.randn(4, D)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert ours(x).dtype == theirs(x).dtype
            close(ours(x).float(), theirs(x).float())
        close(torch.func.vmap(ours)(x), torch.func.vmap(theirs)(x))
    assert output(ours(torch.randn(0, D))).shape == (0, D)


REFUSED = {
    "batchtopk": "selects over the whole batch",
    "matryoshka_batchtopk": "every prefix",
    "standard": "dense while it trains",
    "gated": "needs every gate",
    "jumprelu": "needs every pre-activation",
}


@pytest.mark.parametrize("architecture", REFUSED)
def test_training_saes_whose_maths_is_dense_are_refused_by_name(architecture: str) -> None:
    options = {"k": K} if "topk" in architecture else {}
    if architecture.startswith("matryoshka"):
        options["matryoshka_widths"] = [64, F]
    module = lens_training(architecture, **options)()
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
    refused = lens_training("jumprelu")()
    mixed = nn.ModuleList([made("lens topk"), refused])
    with pytest.raises(NotAccelerated, match="JumpReLUTrainingSAE"):
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


class Plain(nn.Module):
    """A reference SAE with nn.Linear layers, as people write them."""

    def __init__(self, topk: int | None = None) -> None:
        super().__init__()
        self.enc, self.dec, self.topk = nn.Linear(D, F), nn.Linear(F, D), topk

    def forward(self, x: Tensor) -> Tensor:
        z = torch.relu(self.enc(x - self.dec.bias))
        if self.topk is not None:
            top = z.topk(self.topk)
            z = torch.zeros_like(z).scatter(-1, top.indices, top.values)
        return self.dec(z)


NAMES = {"W_enc": "enc.weight", "b_enc": "enc.bias", "W_dec": "dec.weight", "b_dec": "dec.bias", "b_pre": "dec.bias"}


def test_a_module_of_unknown_make_by_its_names() -> None:
    torch.manual_seed(0)
    module, x = Plain(K), torch.randn(400, D)
    wanted = module(x)
    wanted.square().sum().backward()
    gradients = {path: value.grad.clone() for path, value in module.named_parameters() if value.grad is not None}
    module.zero_grad()
    sk.accelerate(module, activation=sk.TopK(K), names=NAMES)
    found = module(x)
    close(found, wanted)
    found.square().sum().backward()
    for path, value in module.named_parameters():
        assert value.grad is not None
        close(value.grad, gradients[path], atol=1e-3)
    with torch.no_grad(), NothingWide(400 * F):
        module(x)
    assert module.state_dict()["dec.weight"].is_contiguous()
    sk.restore(module)
    assert torch.equal(module(x), wanted)
    assert module.dec.weight.is_contiguous()


@pytest.mark.parametrize(
    ("activation", "names", "message"),
    [
        (sk.TopK(K + 1), NAMES, "differs from its own by"),
        (sk.TopK(K), {**NAMES, "W_enc": "enc.wight"}, "W_enc: Plain has no tensor 'enc.wight'"),
        (sk.TopK(K), {"W_enc": "enc.weight"}, "no name for 'W_dec'"),
        (sk.TopK(K), {**NAMES, "bias": "enc.bias"}, "unknown role 'bias'"),
        (sk.JumpReLU(), NAMES, "no name for 'threshold'"),
        ("topk", NAMES, "activation: got 'topk'"),
        (sk.TopK(K), None, "need both"),
        (None, NAMES, "need both"),
    ],
)
def test_names_that_do_not_fit(activation: Any, names: Any, message: str) -> None:
    torch.manual_seed(0)
    module = Plain(K)
    before = {path: value.stride() for path, value in module.named_parameters()}
    with pytest.raises(NotAccelerated, match=message):
        sk.accelerate(module, activation=activation, names=names)
    assert not sk.is_accelerated(module)
    assert {path: value.stride() for path, value in module.named_parameters()} == before


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
