"""Live objects of the installed tools in an SAE's place: their own values, gradients, origins; or refused by name."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import saekernels as sk
from live_saes import MAKERS, NOT_SPLICED, D, K, close, made, made_refused, output
from saekernels.adapters import verify
from saekernels.adapters.live import live_sae
from saekernels.splice.contradictions import OriginWarning
from saekernels.splice.given import as_sae

pytestmark = pytest.mark.peers


def place(module: nn.Module) -> tuple[nn.Module, str]:
    """A model whose site is as wide as what the object reads and gives."""
    width = output(module(torch.zeros(2, D))).shape[-1]
    return nn.Sequential(nn.Identity() if width == D else nn.Linear(D, width)), "0@module"


def spliced(module: Any, model: nn.Module, site: str, x: Tensor) -> Tensor:
    with sk.splice(model, {site: module}):
        return model(x)


@pytest.mark.parametrize("name", MAKERS)
def test_values_gradients_and_later_changes_are_the_objects_own(name: str) -> None:
    module, x = made(name), torch.randn(40, D)
    model, site = place(module)
    before = {path: (id(value), value.data_ptr(), value.stride()) for path, value in module.named_parameters()}
    splice = sk.splice(model, {site: module})

    def check(**bounds: float) -> None:
        with torch.no_grad(), splice:
            close(model(x), output(module(x)), **bounds)

    check()
    assert not sk.is_accelerated(module)
    assert before == {p: (id(v), v.data_ptr(), v.stride()) for p, v in module.named_parameters()}, "left as it was"
    for parameter in module.parameters():
        with torch.no_grad():
            parameter.mul_(1.25)
    check(atol=1e-4)
    sk.accelerate(module)
    check(atol=1e-4)
    with torch.no_grad():
        close(spliced(module, model, site, x), output(module(x)), atol=1e-4)
    sk.restore(module)
    if getattr(module.cfg if hasattr(module, "cfg") else None, "use_sparse_activations", False):
        module.activation_fn.use_sparse_activations = False  # the tool's own backward of those has no kernel here
        module.cfg.use_sparse_activations = False
    output(module(x)).square().sum().backward()
    wanted = {path: value.grad.clone() for path, value in module.named_parameters() if value.grad is not None}
    module.zero_grad()
    with splice:
        model(x).square().sum().backward()
    found = {path for path, value in module.named_parameters() if value.grad is not None and value.grad.any()}
    assert {path for path, value in wanted.items() if value.any()} - {"threshold"} <= found
    for path, value in module.named_parameters():
        if path in found and path != "threshold":
            close(value.grad, wanted[path], rtol=1e-3, atol=1e-2)


def test_weights_are_shared() -> None:
    for name, shared in (("lens topk", "W_dec"), ("sparsify topk", "W_enc"), ("bench relu", "W_dec")):
        module = made(name)
        sae, theirs = live_sae(module), module.encoder.weight if shared == "W_enc" else module.W_dec
        assert getattr(sae, shared) is theirs
    accelerated = sk.accelerate(made("lens topk"))
    with torch.no_grad():
        assert live_sae(accelerated).W_enc.data_ptr() == accelerated.W_enc.data_ptr()


def test_settings_are_read_at_every_pass() -> None:
    for name, change in (
        ("lens topk", lambda m: (setattr(m.cfg, "k", K + 3), setattr(m.activation_fn, "k", K + 3))),
        ("lens jumprelu", lambda m: setattr(m.cfg, "apply_b_dec_to_input", False)),
        ("sparsify topk", lambda m: setattr(m.cfg, "k", 3)),
        ("dictionary TopK", lambda m: m.k.fill_(3)),
        ("dictionary JumpReLU", lambda m: setattr(m, "apply_b_dec_to_input", True)),
        ("dictionary BatchTopK", lambda m: m.threshold.fill_(-1.0)),
    ):
        module, x = made(name), torch.randn(40, D)
        model, site = place(module)
        splice = sk.splice(model, {site: module})
        with torch.no_grad(), splice:
            first = model(x)
            change(module)
            close(model(x), output(module(x)), atol=1e-4)
            assert not torch.equal(model(x), first), name


def lens_with_metadata(tmp_path: Path) -> tuple[Any, Path]:
    sae_lens = pytest.importorskip("sae_lens")
    module = made("lens topk")
    module.cfg.metadata = sae_lens.saes.sae.SAEMetadata(
        model_name="gpt2", hook_name="blocks.1.attn.hook_z", hook_head_index=1, prepend_bos=True, context_size=64,
        dataset_path="some/text", model_from_pretrained_kwargs={"center_writing_weights": True},
    )  # fmt: skip
    module.save_model(tmp_path / "sae")
    return module, tmp_path / "sae"


def test_a_live_object_says_what_its_file_says(tmp_path: Path) -> None:
    module, folder = lens_with_metadata(tmp_path)
    model = nn.Sequential(nn.Identity())
    live, file = as_sae(module, model, "0", "sites").metadata, sk.load(folder).metadata
    assert live == file
    assert (live.reads, live.head, live.model) == ("blocks.1.attn.hook_z", 1, "gpt2")
    assert live.model_options == {"center_writing_weights": True}
    told = []
    for given in (module, folder):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            sk.splice(model, {"0": given})
        told.append([str(one.message) for one in caught if one.category is OriginWarning])
    assert told[0] == told[1]
    assert "centred writing weights" in told[0][0]
    sparsify = live_sae(made("sparsify topk")).metadata
    bench = live_sae(made("bench relu")).metadata
    assert (sparsify.format, sparsify.reads, live_sae(made("dictionary TopK")).metadata.reads) == (
        "sparsify",
        None,
        None,
    )
    assert (bench.model, bench.reads, bench.writes) == ("gpt2", *["blocks.0.hook_resid_post"] * 2)


def test_a_scale_that_was_not_folded_is_told() -> None:
    module = made("lens standard")
    module.cfg.normalize_activations = "expected_average_only_in"
    x = torch.randn(20, D)
    with pytest.warns(UserWarning, match="<StandardSAE>: trained on scaled activations"), torch.no_grad():
        close(spliced(module, nn.Sequential(nn.Identity()), "0", x), module(x))


@pytest.mark.parametrize("architecture", NOT_SPLICED)
def test_what_the_adapters_refuse_is_refused_by_name(architecture: str) -> None:
    module = made_refused(architecture)
    kind = type(module).__name__
    with pytest.raises(
        ValueError, match=f"^sites: '0' cannot take this object for an SAE: {kind}: .*{NOT_SPLICED[architecture]}"
    ):
        sk.splice(nn.Sequential(nn.Identity()), {"0": module})


def whitened(module: Any) -> None:
    module.cfg.normalize_activations = "covariance_whitening"


CHANGES: list[tuple[str, Any, str]] = [
    ("lens standard", whitened, "StandardSAE: its inputs are normalised by 'covariance_whitening'"),
    ("lens transcoder", lambda m: setattr(m.cfg, "normalize_activations", "layer_norm"), "Transcoder: .*not undo"),
    ("lens topk", lambda m: setattr(m, "_use_error_term", True), "TopKSAE: it adds its error"),
    ("lens topk", lambda m: setattr(m, "activation_fn", nn.GELU()), "TopKSAE: its activation function is not"),
    ("lens topk", lambda m: m.hook_sae_acts_post.add_hook(lambda x, hook: x), "hooks at 'hook_sae_acts_post'"),
    ("sparsify topk", lambda m: setattr(m, "forward", lambda x: x), "SparseCoder: its 'forward' was replaced"),
    ("sparsify topk", lambda m: setattr(m, "W_dec", None), "SparseCoder: it has no decoder"),
    ("dictionary Matryoshka", lambda m: setattr(m, "active_groups", 1), "1 of its 2 groups are on"),
    ("dictionary TopK", lambda m: m.encoder.register_forward_hook(lambda *_: None), "hooks at 'encoder'"),
]


@pytest.mark.parametrize(("name", "change", "message"), CHANGES)
def test_objects_that_compute_something_else_are_refused(name: str, change: Any, message: str) -> None:
    module = made(name)
    change(module)
    with pytest.raises(ValueError, match=f"^sites: '0' cannot take this object for an SAE: .*{message}"):
        sk.splice(nn.Sequential(nn.Identity()), {"0": module})


def test_an_unknown_version_is_compared_with_its_own_forward(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verify, "installed", lambda _: "99.0")
    with pytest.warns(sk.UnknownVersion, match=r"99\.0 is not one that saekernels was checked against"):
        live_sae(made("lens topk"))
    module = made("lens topk")
    monkeypatch.setattr(type(module), "process_sae_in", lambda self, x: x + 1)
    with pytest.raises(sk.NotAccelerated, match="TopKSAE: on a small batch the result differs"):
        live_sae(module)
