"""What stands in an SAE's place: paths, hub ids and modules that were accelerated by their weights' names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import saekernels as sk
import tiny_lm
from saekernels.adapters.live import LiveSAE, live_sae
from saekernels.eval import evaluate

D, F, K = 16, 40, 4
SITE = "0"


class Other(nn.Module):
    """Another's SAE: W_enc [D, F], so that latents are columns; TopK."""

    def __init__(self, d: int = D) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.W_enc, self.W_dec = nn.Parameter(torch.randn(d, F)), nn.Parameter(torch.randn(F, d))
        self.b_enc, self.b_dec = nn.Parameter(torch.randn(F)), nn.Parameter(torch.randn(d))

    def forward(self, x: Tensor) -> Tensor:
        top = torch.relu((x - self.b_dec) @ self.W_enc + self.b_enc).topk(K)
        return x.new_zeros(*x.shape[:-1], F).scatter(-1, top.indices, top.values) @ self.W_dec + self.b_dec


def names(**changes: str) -> dict[str, str]:
    return {"W_enc": "W_enc", "W_dec": "W_dec", "b_enc": "b_enc", "b_dec": "b_dec", "b_pre": "b_dec", **changes}


def accelerated(d: int = D) -> Other:
    return sk.accelerate(Other(d), activation=sk.TopK(K), names=names())


def own(module: Other, x: Tensor) -> Tensor:
    """What the module's class computes with its present weights."""
    return Other.forward(module, x)


def spliced(given: Any, x: Tensor, **options: Any) -> Tensor:
    model = nn.Sequential(nn.Identity())
    with sk.splice(model, {SITE: given}, **options):
        return model(x)


def test_a_module_that_was_accelerated_by_its_names() -> None:
    module, x = accelerated(), torch.randn(2, 5, D)
    with torch.no_grad():
        torch.testing.assert_close(spliced(module, x), own(module, x), rtol=1e-5, atol=1e-5)
    sae = live_sae(module)
    assert sae.W_dec is module.W_dec
    with torch.no_grad():
        assert sae.W_enc.data_ptr() == module.W_enc.data_ptr(), "a view, as accelerate has laid it out"
        assert sae.W_enc.is_contiguous()
    assert sk.is_accelerated(module), "left as it was"


def test_columns_are_copied_once_and_again_after_a_change() -> None:
    module, x = accelerated(), torch.randn(2, 5, D)
    module.W_enc.data = module.W_enc.data.contiguous()  # as a tool keeps it that was never accelerated
    sae = live_sae(module)
    with torch.no_grad():
        first = sae.W_enc
        assert first.data_ptr() != module.W_enc.data_ptr()
        assert first.is_contiguous()
        assert sae.W_enc is first
        module.W_enc.mul_(2)
        assert torch.equal(sae.W_enc, module.W_enc.t())
        torch.testing.assert_close(sae(x), own(module, x), rtol=1e-5, atol=1e-5)
    assert module.W_enc.is_contiguous(), "the module's own layout"


@pytest.mark.parametrize("turned", [False, True])
def test_what_is_changed_later_counts_from_the_next_pass_on(turned: bool) -> None:
    module, model, x = accelerated(), nn.Sequential(nn.Identity()), torch.randn(2, 5, D)
    if not turned:
        module.W_enc.data = module.W_enc.data.contiguous()
    splice = sk.splice(model, {SITE: module})

    def check() -> Tensor:
        with torch.no_grad(), splice:
            found = model(x)
            torch.testing.assert_close(found, own(module, x.to(module.W_dec.dtype)).to(x.dtype), rtol=1e-5, atol=1e-5)
        return found

    seen = [check()]
    for name, parameter in module.named_parameters():
        with torch.no_grad():
            parameter.add_(torch.randn_like(parameter))
        seen.append(check())
        assert not torch.equal(seen[-1], seen[-2]), f"{name} counts"
    module.W_enc = nn.Parameter(torch.randn(D, F))
    module.W_dec = nn.Parameter(torch.randn(F, D))
    seen.append(check())
    module.double()
    check()


def test_gradients_reach_the_objects_own_parameters() -> None:
    module, x = accelerated(), torch.randn(2, 5, D)
    own(module, x).square().sum().backward()
    wanted = {
        name: parameter.grad.clone() for name, parameter in module.named_parameters() if parameter.grad is not None
    }
    module.zero_grad()
    spliced(module, x).square().sum().backward()
    assert wanted.keys() == {"W_enc", "W_dec", "b_enc", "b_dec"}
    for name, parameter in module.named_parameters():
        torch.testing.assert_close(parameter.grad, wanted[name], rtol=1e-4, atol=1e-3)


def test_no_gradient_asked_for_after_inference_mode() -> None:
    """The copy of a matrix that inference mode makes is one that gradients of the input can pass."""
    module, model = accelerated(), nn.Sequential(nn.Identity())
    module.requires_grad_(False).W_enc.data = module.W_enc.data.contiguous()
    splice = sk.splice(model, {SITE: module})
    with torch.no_grad():
        module.W_enc.add_(1)
    with torch.inference_mode(), splice:
        model(torch.randn(3, D))
    x = torch.randn(3, D, requires_grad=True)
    with splice:
        model(x).square().sum().backward()
    (wanted,) = torch.autograd.grad(own(module, x).square().sum(), x)
    torch.testing.assert_close(x.grad, wanted, rtol=1e-4, atol=1e-3)


def test_wrappers_are_looked_through() -> None:
    module, x = accelerated(), torch.randn(3, D)
    for wrapped in (nn.DataParallel(module), torch.compile(module, backend="eager")):
        with torch.no_grad():
            assert torch.equal(spliced(wrapped, x), spliced(module, x))


def test_hooks_would_not_run_and_are_refused() -> None:
    module = accelerated()
    splice = sk.splice(nn.Sequential(nn.Identity()), {SITE: module})
    module.register_forward_hook(lambda *_: None)
    with pytest.raises(ValueError, match=r"^sites: '0' cannot take this object for an SAE: Other: it has hooks"):
        spliced(module, torch.randn(3, D))
    with pytest.raises(sk.NotAccelerated, match="Other: it has hooks"), splice:
        splice._model(torch.randn(3, D))


def test_paths_and_hub_ids(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    sae = sk.SAE(D, F, sk.TopK(K), dtype=torch.bfloat16)
    nn.init.normal_(sae.b_dec)
    sk.save(sae, tmp_path / "layer_3")
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda repo, **_: str(tmp_path))
    x = torch.randn(2, 5, D)
    for given in (tmp_path / "layer_3", str(tmp_path / "layer_3"), "someone/saes/layer_3"):
        with torch.no_grad():
            assert torch.equal(spliced(given, x), spliced(sae, x))
    with pytest.raises(ValueError, match=r"^sites: '0': path: got 'no/such/\.\.', which does not exist"):
        spliced("no/such/..", x)
    (tmp_path / "layer_3" / "cfg.json").write_text("{")
    with pytest.raises(ValueError, match=r"^sites: '0': .*cfg\.json: not a readable JSON config"):
        spliced(tmp_path / "layer_3", x)
    with pytest.raises(ValueError, match="has no module 'missing'"):
        sk.splice(nn.Sequential(nn.Identity()), {"missing": tmp_path / "layer_3"})


def test_a_path_is_loaded_to_where_its_site_is(tmp_path: Path) -> None:
    sk.save(sk.SAE(D, F, sk.TopK(K)), tmp_path)
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(D, D))
    model[0]._hf_hook = type("Hook", (), {"execution_device": "meta", "hooks": []})()
    model[0]._hf_hook.hooks = [model[0]._hf_hook]
    assert sk.splice(model, {SITE: tmp_path})._plans[0].sae.W_dec.device.type == "meta"


NEEDED = "a saekernels.SAE, a path or hub id, or an object of sae_lens, sparsify, dictionary_learning, sae_bench"


@pytest.mark.parametrize(
    ("given", "got"),
    [
        (nn.Linear(D, D), "Linear: saekernels.accelerate(it, activation=..., names={...}) by the names of its weights"),
        ({"W_enc": torch.zeros(D, F)}, "dict: torch.save it, with a config (docs/reference/formats.md), and give the"),
        (torch.zeros(D, F), "Tensor: make a saekernels.SAE with its weights, W_enc [F, d_in] and W_dec [F, d_out]"),
        (lambda x: x, "function: make a saekernels.SAE with its weights"),
        (3, "int: make a saekernels.SAE with its weights"),
    ],
)
def test_anything_else_is_told_how_it_becomes_an_sae(given: Any, got: str) -> None:
    with pytest.raises(TypeError) as caught:
        spliced(given, torch.zeros(3, D))
    assert str(caught.value).startswith(f"sites: '0' needs {NEEDED}; got {got}")
    with pytest.raises(TypeError) as caught:
        evaluate(tiny_lm.model(), tiny_lm.tokenizer(), {"model.layers.0": given}, tiny_lm.documents())
    assert str(caught.value).startswith(f"saes: 'model.layers.0' needs {NEEDED}; got {got}")
    assert "\n" not in str(caught.value)


def test_evaluate_takes_what_splice_takes(tmp_path: Path) -> None:
    model, site = tiny_lm.model(), "model.layers.0"
    module = accelerated(model.config.hidden_size)
    sk.save(live_sae(module), tmp_path / "sae")

    def figures(given: Any) -> Any:
        options: dict[str, Any] = {"tokens": 200, "bootstrap": 0, "context": 16, "baselines": ("zero",)}
        (row,) = evaluate(model, tiny_lm.tokenizer(), {site: given}, tiny_lm.documents(), **options).sites
        return row

    module.train()
    wanted, found = figures(sk.load(tmp_path / "sae")), figures(module)
    assert module.training, "left as it was"
    assert wanted.l0 == found.l0 == K
    assert found.ce.spliced == pytest.approx(wanted.ce.spliced, rel=1e-5)
    assert found.ce.spliced != found.ce.clean
    assert (found.kl, found.fvu) == pytest.approx((wanted.kl, wanted.fvu), rel=1e-4)
    for given in (tmp_path / "sae", str(tmp_path / "sae")):
        assert figures(given) == wanted
    with pytest.raises(ValueError, match=r"^saes: 'model\.layers\.0': path: got 'no/such/\.\.'"):
        figures("no/such/..")
    with pytest.raises(TypeError, match=r"saes: 'model\.layers\.0' is None, need a saekernels.SAE, a path"):
        figures(None)


def test_a_live_sae_is_an_sae(tmp_path: Path) -> None:
    """It can be saved, edited and asked as any other; the object's parameters are its own."""
    module, x = accelerated(), torch.randn(5, D)
    sae = live_sae(module)
    assert isinstance(sae, LiveSAE)
    assert [id(p) for p in sae.parameters()] == [id(p) for p in module.parameters()]
    sk.save(sae, tmp_path)
    with torch.no_grad():
        torch.testing.assert_close(sk.load(tmp_path)(x), sae(x), rtol=1e-4, atol=1e-4)
        assert torch.equal(sk.EditedSAE(sae, [])(x), sae(x))
    assert repr(sae).startswith("LiveSAE(\n  d_in=16, n_latents=40, TopK(k=4), pre_bias=separate")
