"""The tools' own evaluators, models, trainers and tests with their SAEs accelerated: the same numbers as without."""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

import saekernels as sk
import tiny_lm
from live_saes import MAKERS, D, F, K, Store, close, made
from places import BENCHMARKS, ROOT
from saekernels.adapters.patch import state_of

pytestmark = pytest.mark.peers


@pytest.fixture
def lens_model() -> Any:
    transformer_lens = pytest.importorskip("transformer_lens")
    sae_lens = pytest.importorskip("sae_lens")
    torch.manual_seed(0)
    config = transformer_lens.HookedTransformerConfig(
        n_layers=2, d_model=D, n_ctx=16, d_head=8, n_heads=2, d_vocab=320, d_mlp=32, act_fn="gelu", device="cpu",
        normalization_type="LN", seed=0, initializer_range=0.2,
    )  # fmt: skip
    model = sae_lens.HookedSAETransformer(config)
    model.tokenizer = tiny_lm.tokenizer()
    return model.eval()


def lens_sae(name: str, hook: str = "blocks.0.hook_resid_post") -> Any:
    sae = made(name)
    sae.cfg.metadata.hook_name = hook
    return sae


@pytest.mark.parametrize("name", ["lens topk", "lens jumprelu", "lens gated"])
def test_saelens_own_evaluator(name: str, lens_model: Any) -> None:
    from sae_lens.evals import EvalConfig, run_evals

    tokens = torch.randint(3, 320, (8, 16), generator=torch.Generator().manual_seed(0))

    class Store:
        """What run_evals asks of an activations store."""

        store_batch_size_prompts = 4
        context_size = 16

        def __init__(self) -> None:
            self.at = 0

        def get_batch_tokens(self, *_: Any, **__: Any) -> Tensor:
            batch = tokens[self.at : self.at + 4]
            self.at = (self.at + 4) % 8
            return batch

        def reset_input_dataset(self) -> None:
            self.at = 0

    config = EvalConfig(
        batch_size_prompts=4, n_eval_reconstruction_batches=2, n_eval_sparsity_variance_batches=2, compute_kl=True,
        compute_ce_loss=True, compute_l2_norms=True, compute_sparsity_metrics=True, compute_variance_metrics=True,
    )  # fmt: skip
    found = []
    for sae in (lens_sae(name), sk.accelerate(lens_sae(name))):
        scaler = SimpleNamespace(scale=lambda x: x, unscale=lambda x: x)
        with torch.no_grad():
            metrics, _ = run_evals(sae, Store(), lens_model, scaler, config)
        found.append({f"{group}.{key}": value for group, named in metrics.items() if isinstance(named, dict)
                      for key, value in named.items()})  # fmt: skip
    assert set(found[0]) == set(found[1])
    assert len(found[0]) > 12
    for key, want in found[0].items():
        assert found[1][key] == pytest.approx(want, rel=1e-4, abs=1e-5), key


def test_a_hooked_sae_transformer(lens_model: Any) -> None:
    tokens = torch.randint(3, 320, (2, 9), generator=torch.Generator().manual_seed(0))
    found = []
    for sae in (lens_sae("lens topk"), sk.accelerate(lens_sae("lens topk"))):
        with torch.no_grad():
            logits, cache = lens_model.run_with_cache_with_saes(tokens, saes=[sae])
            plain = lens_model.run_with_saes(tokens, saes=[sae])
        hook = "blocks.0.hook_resid_post.hook_sae_acts_post"
        found.append((logits, plain, cache[hook]))
    for ours, theirs in zip(found[1], found[0], strict=True):
        close(ours, theirs, atol=1e-4)


@pytest.mark.parametrize("name", ["lens training topk", "lens training topk, not rescaled", "lens training abstopk"])
def test_saelens_training_steps_with_dead_latents(name: str) -> None:
    pytest.importorskip("sae_lens")
    from sae_lens.saes.sae import TrainStepInput

    x, dead = torch.randn(40, D), torch.rand(F) < 0.4
    found = []
    for module in (made(name).train(), sk.accelerate(made(name).train())):
        out = module.training_forward_pass(
            TrainStepInput(sae_in=x, coefficients={}, dead_neuron_mask=dead, n_training_steps=3, is_logging_step=False)
        )
        out.loss.backward()
        figures = [out.loss, out.feature_acts, out.sae_out, *out.losses.values(), out.hidden_pre + 0]
        found.append([*figures, *(value.grad for value in module.parameters())])
    assert state_of(module) is not None
    for ours, theirs in zip(found[1], found[0], strict=True):
        close(ours, theirs, atol=2e-4)


def test_hidden_pre_activations_are_made_only_for_who_reads_them() -> None:
    pytest.importorskip("sae_lens")
    from sae_lens.saes.sae import TrainStepInput

    from saekernels.adapters.dense_latents import LazyTensor

    module, x = sk.accelerate(made("lens training topk").train()), torch.randn(4, D)
    out = module.training_forward_pass(
        TrainStepInput(sae_in=x, coefficients={}, dead_neuron_mask=None, n_training_steps=0, is_logging_step=False)
    )
    assert isinstance(out.hidden_pre, LazyTensor)
    assert out.hidden_pre._value is None
    assert out.hidden_pre.shape == (4, F)
    assert out.hidden_pre.dtype == torch.float32
    assert torch.stack([out.hidden_pre, out.hidden_pre]).shape == (2, 4, F)
    assert out.hidden_pre._value is not None


def arguments(**changes: Any) -> argparse.Namespace:
    plain = {"steps": 12, "batch": 256, "latents": 640, "k": 32, "lr": 3e-4, "synthetic": 0, "optimizer": "adam"}
    plain |= {"architecture": "topk", "late": False, "dead_after": None, "our_optimizer": False}
    return argparse.Namespace(**{**plain, **changes})


@pytest.mark.parametrize("tool", ["sae_lens", "sparsify"])
def test_trainers_give_the_same_losses_step_by_step(tool: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip(tool)
    monkeypatch.syspath_prepend(str(BENCHMARKS / "trainers"))
    import peers_trainers

    run = getattr(peers_trainers, f"run_{tool}")
    plain, _ = run(arguments(), fast=False)
    fast, _ = run(arguments(), fast=True)
    assert len(plain) == len(fast) >= 12
    assert plain[-1] != plain[0]
    assert fast == pytest.approx(plain, rel=2e-4)


def test_dictionary_learning_trainers_losses() -> None:
    pytest.importorskip("dictionary_learning")
    from dictionary_learning.trainers.top_k import TopKTrainer

    found = []
    for fast in (False, True):
        trainer = TopKTrainer(steps=10, activation_dim=D, dict_size=F, k=K, layer=0, lm_name="x", seed=0, device="cpu",
                              warmup_steps=1)  # fmt: skip
        if fast:
            sk.accelerate(trainer.ae)
        losses = []
        for step in range(6):
            rows = torch.randn(32, D, generator=torch.Generator().manual_seed(step))
            losses.append(float(trainer.loss(rows, step=step)))
            trainer.update(step, rows)
        found.append(losses)
    assert found[1] == pytest.approx(found[0], rel=1e-4)


def test_the_swap_covers_what_is_made_inside_and_ends() -> None:
    sae_lens = pytest.importorskip("sae_lens")
    sparsify = pytest.importorskip("sparsify")
    init = sae_lens.TopKSAE.__init__
    with sk.swapped() as tools:
        assert {"sae_lens", "sparsify"} <= set(tools)
        inside = {name: made(name) for name in ("lens topk", "lens jumprelu transcoder", "sparsify topk")}
        refused = MAKERS["lens standard"]()

        class Own(sparsify.SparseCoder):  # type: ignore[misc]
            pass

        own = Own(D, sparsify.SparseCoderConfig(num_latents=F, k=K))
        with pytest.raises(RuntimeError, match="on already"), sk.swapped():
            pass
    assert all(sk.is_accelerated(one) for one in inside.values())
    assert sk.is_accelerated(refused)
    assert not sk.is_accelerated(own)
    x = torch.randn(5, D)
    for name, one in inside.items():
        theirs = made(name)
        assert not sk.is_accelerated(theirs)
        theirs.load_state_dict(one.state_dict())
        with torch.no_grad():
            found, want = one(x), theirs(x)
        close(found[0] if isinstance(found, tuple) else found, want[0] if isinstance(want, tuple) else want)
    assert sae_lens.TopKSAE.__init__ is init
    with pytest.raises(ValueError, match="tools: got 'pytorch'"), sk.swapped("pytorch"):
        pass


def test_saes_loaded_inside_the_swap(tmp_path: Path) -> None:
    sae_lens = pytest.importorskip("sae_lens")
    theirs = made("lens jumprelu")
    theirs.save_model(str(tmp_path))
    with sk.swapped("sae_lens"):
        loaded = sae_lens.SAE.load_from_disk(tmp_path)
    assert sk.is_accelerated(loaded)
    x = torch.randn(5, D)
    with torch.no_grad():
        close(loaded(x), theirs(x))


def test_the_plugin_says_that_it_is_on(tmp_path: Path) -> None:
    pytest.importorskip("sparsify")
    (tmp_path / "test_own.py").write_text(
        "import saekernels, sparsify\n"
        "def test_it():\n"
        "    coder = sparsify.SparseCoder(8, sparsify.SparseCoderConfig(num_latents=16, k=2))\n"
        "    assert saekernels.is_accelerated(coder)\n"
    )
    command = [sys.executable, "-m", "pytest", "-p", "saekernels.adapters.pytest_plugin", "-p", "no:cacheprovider"]
    done = subprocess.run([*command, str(tmp_path)], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "are accelerated as they are made" in done.stdout, done.stdout + done.stderr


def test_no_test_of_theirs_breaks_with_the_swap(tmp_path: Path) -> None:
    """sparsify's suite itself needs its source distribution: `python benchmarks/peers_suites.py`."""
    pytest.importorskip("sparsify")
    source = tmp_path / "tests"
    source.mkdir()
    (source / "test_theirs.py").write_text(
        "import torch\nfrom sparsify import SparseCoder, SparseCoderConfig\n"
        "def test_forward():\n"
        "    coder = SparseCoder(8, SparseCoderConfig(num_latents=16, k=2), device='cpu')\n"
        "    out = coder(torch.randn(3, 8))\n"
        "    assert out.sae_out.shape == (3, 8) and out.latent_indices.dtype == torch.int64\n"
        "def test_fails_anyway():\n    assert False\n"
    )
    script = ROOT / "benchmarks" / "peers_suites.py"
    done = subprocess.run([sys.executable, str(script), "--source", str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 of 2 tests pass as they are, 1 with the swap; broken: 0" in done.stdout
    (source / "test_theirs.py").write_text(
        "import saekernels, sparsify\n"
        "def test_it():\n"
        "    coder = sparsify.SparseCoder(8, sparsify.SparseCoderConfig(num_latents=16))\n"
        "    assert not saekernels.is_accelerated(coder)\n"
    )
    done = subprocess.run([sys.executable, str(script), "--source", str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 1
    assert "broken: 1" in done.stdout


@pytest.mark.parametrize("name", ["bench topk", "bench jumprelu"])
def test_saebench_own_evaluator(name: str) -> None:
    main = pytest.importorskip("sae_bench.evals.core.main", reason="sae-bench is not installed")
    transformer_lens = pytest.importorskip("transformer_lens")
    torch.manual_seed(0)
    config = transformer_lens.HookedTransformerConfig(
        n_layers=2, d_model=D, n_ctx=16, d_head=8, n_heads=2, d_vocab=320, d_mlp=32, act_fn="gelu", device="cpu",
        normalization_type="LN", seed=0, initializer_range=0.2,
    )  # fmt: skip
    model = transformer_lens.HookedTransformer(config).eval()
    model.tokenizer = tiny_lm.tokenizer()
    batches = [torch.randint(3, 320, (4, 16), generator=torch.Generator().manual_seed(i)) for i in range(2)]
    wanted = SimpleNamespace(
        batch_size_prompts=4, n_eval_reconstruction_batches=2, n_eval_sparsity_variance_batches=2, compute_kl=True,
        compute_ce_loss=True, compute_l2_norms=True, compute_sparsity_metrics=True, compute_variance_metrics=True,
        compute_featurewise_density_statistics=True, compute_featurewise_weight_based_metrics=True,
        exclude_special_tokens_from_reconstruction=False, verbose=False,
    )  # fmt: skip
    found = []
    for sae in (made(name), sk.accelerate(made(name))):
        sae.cfg.architecture_str, sae.cfg.hook_head_index = "topk", None
        metrics, _ = main.run_evals(sae, Store(batches), model, wanted, ignore_tokens={0, 1, 2})
        found.append(
            {f"{g}.{k}": v for g, named in metrics.items() if isinstance(named, dict) for k, v in named.items()}
        )
    assert len(found[0]) > 10
    for key, want in found[0].items():
        assert found[1][key] == pytest.approx(want, rel=1e-4, abs=1e-5), key


def test_no_tool_is_imported_before_its_objects_come() -> None:
    code = (
        "import sys, torch, saekernels as sk\n"
        "module = torch.nn.Sequential(torch.nn.Linear(8, 8))\n"
        "try:\n    sk.accelerate(module)\nexcept sk.NotAccelerated as error:\n    assert 'Sequential' in str(error)\n"
        "print(sorted(set(sys.modules) & {'sae_lens', 'sparsify', 'dictionary_learning', 'sae_bench', 'transformers'}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.strip() == "[]", done.stdout + done.stderr
