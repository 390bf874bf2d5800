"""sae-lens' own runner, from a model and a dataset to a saved SAE, inside the swap and without."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import saekernels as sk
import tiny_lm
from lens_training import near, own_steps

pytestmark = pytest.mark.peers
sae_lens = pytest.importorskip("sae_lens", reason="the peers extra is not installed")


def trained(config: Any, out: Path) -> Any:
    """The SAE of a run of 16 steps on activations of a model of two layers."""
    from datasets import Dataset
    from sae_lens.config import LanguageModelSAERunnerConfig, LoggingConfig
    from sae_lens.llm_sae_training_runner import LanguageModelSAETrainingRunner
    from transformer_lens import HookedTransformerConfig

    torch.manual_seed(0)
    shape = {"n_layers": 2, "d_model": 16, "n_ctx": 16, "d_head": 8, "n_heads": 2, "d_vocab": 320, "d_mlp": 32}
    model = sae_lens.HookedSAETransformer(
        HookedTransformerConfig(**shape, act_fn="gelu", device="cpu", seed=0, initializer_range=0.2)
    )
    model.tokenizer = tiny_lm.tokenizer()
    settings = LanguageModelSAERunnerConfig(
        sae=config, model_name="tiny", hook_name="blocks.0.hook_resid_post", dataset_path="tokens", streaming=False,
        is_dataset_tokenized=True, context_size=16, prepend_bos=False, training_tokens=2048, device="cpu",
        train_batch_size_tokens=128, n_batches_in_buffer=32, store_batch_size_prompts=4, dead_feature_window=3, lr=1e-3,
        logger=LoggingConfig(log_to_wandb=False), output_path=str(out), checkpoint_path=None, verbose=False,
    )  # fmt: skip
    tokens = torch.randint(3, 320, (300, 16), generator=torch.Generator().manual_seed(0))
    data = Dataset.from_dict({"tokens": tokens.tolist()})
    return LanguageModelSAETrainingRunner(settings, override_dataset=data, override_model=model.eval()).run()


@pytest.mark.filterwarnings("ignore:The training dataset contains fewer samples")
def test_a_run_of_the_runner(tmp_path: Path) -> None:
    options = {"d_in": 16, "d_sae": 192, "k": 5, "matryoshka_widths": [24, 192]}
    theirs = trained(sae_lens.MatryoshkaBatchTopKTrainingSAEConfig(**options), tmp_path / "theirs")
    with sk.swapped("sae_lens"):
        ours = trained(sae_lens.MatryoshkaBatchTopKTrainingSAEConfig(**options), tmp_path / "ours")
    assert sk.is_accelerated(ours)
    assert not own_steps(ours)
    assert 0 < theirs.cfg.metadata.num_dead_features == ours.cfg.metadata.num_dead_features
    assert ours.cfg.metadata.l0 == pytest.approx(theirs.cfg.metadata.l0, rel=1e-6)
    assert ours.topk_threshold.item() == pytest.approx(theirs.topk_threshold.item(), rel=1e-4)
    found, want = (sae_lens.SAE.load_from_disk(tmp_path / one) for one in ("ours", "theirs"))
    for value, other in zip(want.state_dict().values(), found.state_dict().values(), strict=True):
        near(other, value, 5e-3)
