"""`--compat`: the metrics of sae-lens, SAEBench and dictionary_learning, from their own code and from ours."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import saekernels as sk
import tiny_lm
from live_saes import Store
from saekernels.eval.compat import core_output, peer_metrics
from saekernels.eval.compat.packing import packed

pytestmark = pytest.mark.peers
transformer_lens = pytest.importorskip("transformer_lens", reason="the peers extra is not installed")
sae_lens = pytest.importorskip("sae_lens", reason="the peers extra is not installed")

D, F, V, LAYERS, CONTEXT = 32, 96, 320, 3, 16
HOOKS = [f"blocks.{i}.hook_resid_post" for i in range(LAYERS)] + ["blocks.1.hook_mlp_out"]


@pytest.fixture(scope="module")
def model() -> Any:
    torch.manual_seed(0)
    config = transformer_lens.HookedTransformerConfig(
        n_layers=LAYERS, d_model=D, n_ctx=CONTEXT, d_head=8, n_heads=4, d_vocab=V, d_mlp=64, act_fn="gelu",
        normalization_type="LN", seed=0, device="cpu", initializer_range=0.15,
    )  # fmt: skip
    made = transformer_lens.HookedTransformer(config)
    made.tokenizer = tiny_lm.tokenizer()
    return made.eval()


@pytest.fixture(scope="module")
def batches() -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    made = [torch.randint(3, V, (size, CONTEXT), generator=generator) for size in (4, 4, 4)]
    for batch in made:
        batch[:, 0] = 0
        batch[1, 7] = 1
    return made


def lens_sae(architecture: str, hook: str, **options: Any) -> Any:
    kind, config = sae_lens.registry.get_sae_class(architecture)
    made = kind(config(d_in=D, d_sae=F, **options))
    torch.manual_seed(len(hook) + len(architecture))
    with torch.no_grad():
        made.W_enc.copy_(torch.randn(D, F) / D**0.5)
        made.W_dec.copy_(made.W_enc.T + 0.05 * torch.randn(F, D))
        if getattr(made, "b_enc", None) is not None:
            made.b_enc.copy_(0.1 * torch.randn(F))
        made.b_dec.copy_(0.1 * torch.randn(D))
        if hasattr(made, "threshold"):
            made.threshold.copy_(0.2 * torch.rand(F))
    made.cfg.metadata.hook_name = hook
    return made.eval()


KINDS = {
    "topk": {"k": 8},
    "topk-layer_norm": {"k": 8, "normalize_activations": "layer_norm"},
    "jumprelu": {},
    "standard": {},
    "abstopk": {"k": 8},
}


def pair(name: str, hook: str, folder: Path) -> tuple[Any, sk.SAE]:
    theirs = lens_sae(name.split("-")[0], hook, **KINDS[name])
    theirs.save_model(str(folder))
    return theirs, sk.load(folder)


def flat(groups: dict[str, Any]) -> dict[str, float]:
    return {f"{group}/{name}": value for group, named in groups.items() for name, value in named.items()}


def agree(ours: dict[str, Any], theirs: dict[str, Any], tolerance: float = 1e-4) -> None:
    got, want = flat(ours), flat({k: v for k, v in theirs.items() if k not in ("token_stats", "misc_metrics")})
    assert got.keys() == want.keys()
    for name, value in want.items():
        assert got[name] == pytest.approx(value, rel=tolerance, abs=tolerance, nan_ok=True), name


@pytest.mark.parametrize("hook", HOOKS)
@pytest.mark.parametrize("name", KINDS)
def test_saelens(name: str, hook: str, model: Any, batches: list[Tensor], tmp_path: Path) -> None:
    from sae_lens.evals import get_eval_everything_config, run_evals
    from sae_lens.training.activation_scaler import ActivationScaler

    theirs, ours = pair(name, hook, tmp_path)
    config = get_eval_everything_config(4, len(batches), len(batches))
    want, featurewise = run_evals(theirs, Store(batches), model, ActivationScaler(), config)
    found = peer_metrics("saelens", model, {hook: ours}, batches, ignore=[0, 1, 2])[0]
    agree(found.metrics, want)
    for key, values in featurewise.items():
        assert found.featurewise[key] == pytest.approx(values, rel=1e-4, abs=1e-4, nan_ok=True), key


def test_saelens_of_many_saes_in_one_pass(model: Any, batches: list[Tensor], tmp_path: Path) -> None:
    pairs = {hook: pair("topk", hook, tmp_path / str(i)) for i, hook in enumerate(HOOKS)}
    together = peer_metrics("saelens", model, {h: ours for h, (_, ours) in pairs.items()}, batches, ignore=[0, 1, 2])
    for found, (hook, (_, ours)) in zip(together, pairs.items(), strict=True):
        alone = peer_metrics("saelens", model, {hook: ours}, batches, ignore=[0, 1, 2])[0]
        agree(found.metrics, alone.metrics, 1e-6)


@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize("name", ["topk", "jumprelu", "abstopk"])
def test_saebench(name: str, keep: bool, model: Any, batches: list[Tensor], tmp_path: Path) -> None:
    main = pytest.importorskip("sae_bench.evals.core.main", reason="sae-bench is not installed")
    hook = HOOKS[1]
    theirs, ours = pair(name, hook, tmp_path)
    theirs.cfg.hook_name, theirs.cfg.hook_head_index, theirs.cfg.hook_layer = hook, None, 1
    theirs.cfg.architecture_str = name
    config = SimpleNamespace(
        batch_size_prompts=4, n_eval_reconstruction_batches=3, n_eval_sparsity_variance_batches=3, compute_kl=True,
        compute_ce_loss=True, compute_l2_norms=True, compute_sparsity_metrics=True, compute_variance_metrics=True,
        compute_featurewise_density_statistics=True, compute_featurewise_weight_based_metrics=True,
        exclude_special_tokens_from_reconstruction=keep,
    )  # fmt: skip
    want, featurewise = main.run_evals(theirs, Store(batches), model, config, ignore_tokens={0, 1, 2})
    found = peer_metrics("saebench", model, {hook: ours}, batches, ignore=[0, 1, 2], keep_ignored=keep)[0]
    agree(found.metrics, want)
    for key, values in featurewise.items():
        if key in found.featurewise:
            assert found.featurewise[key] == pytest.approx(values, rel=1e-4, abs=1e-4, nan_ok=True), key
    output = core_output(
        found, ours, model_name="tiny", release="mine", sae_id="layer/1", dataset="some", context=CONTEXT, batch_size=4,
        batches=3, keeps_special=keep,
    )  # fmt: skip
    misc = main.calculate_misc_metrics({k: torch.tensor(v) for k, v in featurewise.items()})
    assert output["eval_result_metrics"]["misc_metrics"] == pytest.approx(misc, abs=1e-5)
    check_core(output)


def check_core(output: dict[str, Any]) -> None:
    """SAEBench's own schema, and its own class."""
    import jsonschema
    from pydantic import TypeAdapter
    from sae_bench.evals.core import eval_output

    schema = json.loads(Path(eval_output.__file__).with_name("eval_output_schema_core.json").read_text())
    text = json.dumps(output, allow_nan=False)
    jsonschema.validate(json.loads(text), schema)
    made = TypeAdapter(eval_output.CoreEvalOutput).validate_json(text)
    assert made.eval_result_metrics.sparsity.l0 == output["eval_result_metrics"]["sparsity"]["l0"]
    assert len(made.eval_result_details) == F


@pytest.mark.parametrize("context", [7, 16, 64])
def test_windows_are_packed_as_saelens_does(context: int) -> None:
    from sae_lens.tokenization_and_batching import concat_and_batch_sequences

    tokenizer = tiny_lm.tokenizer()
    texts = [document.text for document in tiny_lm.documents()]
    ids = [torch.tensor(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in texts]
    want = list(concat_and_batch_sequences(iter(ids), context, begin_batch_token_id=0, sequence_separator_token_id=0))
    got = list(packed(texts, tokenizer, context, 1, 0))
    assert len(got) == len(want) > 5
    assert torch.equal(torch.cat(got), torch.stack(want))


class Dictionary(nn.Module):
    """One of our SAEs with the interface of dictionary_learning."""

    def __init__(self, sae: sk.SAE) -> None:
        super().__init__()
        self.sae, self.dict_size, self.activation_dim = sae, sae.n_latents, sae.d_in

    def forward(self, x: Tensor, output_features: bool = False) -> Any:
        # nnsight 0.3 hands over a proxy of what it saved.
        out, codes = self.sae.forward_with_codes(getattr(x, "value", x))
        return (out, codes.to_dense()) if output_features else out


def test_dictionary_learning(batches: list[Tensor]) -> None:
    evaluation = pytest.importorskip("dictionary_learning.evaluation", reason="dictionary_learning is not installed")
    import nnsight

    model, tokenizer = tiny_lm.model(max_position_embeddings=CONTEXT), tiny_lm.tokenizer()
    tokenizer.padding_side = "right"
    sae = tiny_lm.sae(0)
    traced = nnsight.LanguageModel(model, tokenizer=tokenizer)
    padded = [batch.clone() for batch in batches]
    padded[0][2, 12:] = 2
    losses = [
        [float(loss) for loss in evaluation.loss_recovered(b, traced, traced.model.layers[1], Dictionary(sae))]
        for b in padded
    ]
    with torch.no_grad():
        seen: list[Tensor] = []
        handle = model.model.layers[1].register_forward_hook(lambda m, a, o: seen.append(o))
        for b in padded:
            model(b)
        handle.remove()
    want = evaluation.evaluate(Dictionary(sae), iter(x.flatten(0, 1) for x in seen), n_batches=3)
    original, spliced, zero = (sum(column) / 3 for column in zip(*losses, strict=True))
    recovered = sum((s - z) / (o - z) for o, s, z in losses) / 3
    want |= {"loss_original": original, "loss_reconstructed": spliced, "loss_zero": zero, "frac_recovered": recovered}
    found = peer_metrics("dictionary_learning", model, {"model.layers.1": sae}, padded, pad=2)[0]
    agree(found.metrics, {"evaluation": want})
