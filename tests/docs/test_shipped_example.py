"""The bundled example as it is shipped: what its page says, and what its SAEs and its family are."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import saekernels
from saekernels.eval import load_documents

pytestmark = pytest.mark.usefixtures("example_modules")


def test_the_shipped_example_is_what_its_sources_page_says() -> None:
    from saekernels import example

    def size(folder: Path) -> int:
        return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())

    across = [size(folder) for folder in (example.CLT_DIR, example.PLT_DIR)]
    assert max(across) <= 3 * 2**20
    assert size(example.ROOT) - sum(across) <= 11 * 2**20
    assert list(example.SAE_DIRS) == [f"model.layers.{layer}" for layer in range(4)]
    tokenizer = AutoTokenizer.from_pretrained(example.MODEL_DIR)
    tokens: dict[str, int] = {}
    page = example.SOURCES.read_text(encoding="utf-8")
    for document in load_documents([example.EVAL_DATA]):
        tokens[document.domain] = tokens.get(document.domain, 0) + len(tokenizer(document.text).input_ids) - 1
        assert f"- {document.source}" in page
    assert len(tokens) >= 6
    assert min(tokens.values()) >= 15_000
    assert sum(tokens.values()) >= 200_000


@pytest.mark.parametrize("layer", range(4))
def test_shipped_saes_reconstruct_the_shipped_model(layer: int) -> None:
    from saekernels import example
    from train_saes import Activations

    torch.set_num_threads(2)
    model = AutoModelForCausalLM.from_pretrained(example.MODEL_DIR)
    assert next(model.parameters()).dtype == torch.float32
    tokenizer = AutoTokenizer.from_pretrained(example.MODEL_DIR)
    documents = list(load_documents([example.EVAL_DATA]))[:12]
    ids = torch.tensor([tokenizer(document.text).input_ids[:64] for document in documents if len(document.text) > 600])
    sae = saekernels.load(example.SAE_DIRS[f"model.layers.{layer}"])
    assert (sae.d_in, sae.n_latents, sae.activation) == (160, 2560, saekernels.TopK(32))
    x = Activations(model)(ids)[layer]
    with torch.no_grad():
        fvu = (sae(x) - x).square().sum() / (x - x.mean(0)).square().sum()
    assert 0.001 < fvu.item() < 0.2


def test_shipped_transcoders_are_equal_in_size_and_stand_for_the_mlps() -> None:
    """At equal parameters and L0; what each layer writes is near what its MLP writes."""
    from saekernels import example
    from saekernels.training.activations import SiteActivations

    clt, plt = (saekernels.load_cross_layer(path, dtype=torch.float32) for path in (example.CLT_DIR, example.PLT_DIR))
    assert isinstance(clt, saekernels.CrossLayerTranscoder)
    assert isinstance(plt, saekernels.TranscoderSet)
    sizes = [sum(one.numel() for one in made.parameters()) for made in (clt, plt)]
    assert sizes[0] == pytest.approx(sizes[1], rel=0.002)
    assert {clt.source(s).activation for s in range(4)} == {plt.transcoder(s).activation for s in range(4)}
    model = AutoModelForCausalLM.from_pretrained(example.MODEL_DIR)
    tokenizer = AutoTokenizer.from_pretrained(example.MODEL_DIR)
    documents = [one for one in load_documents([example.EVAL_DATA]) if len(one.text) > 600][:12]
    ids = torch.tensor([tokenizer(document.text).input_ids[:64] for document in documents])
    touched = torch.ones_like(ids, dtype=torch.bool)
    touched[:, 0] = False
    read = SiteActivations(model, [f"model.layers.{layer}.mlp@module" for layer in range(4)])([(ids, touched)])
    with torch.no_grad():
        across = clt([x for x, _ in read])
        apart = [plt.transcoder(layer)(x) for layer, (x, _) in enumerate(read)]
    for made in (across, apart):
        for y_hat, (_, y) in zip(made, read, strict=True):
            assert 0.01 < float((y_hat - y).square().sum() / (y - y.mean(0)).square().sum()) < 0.3


def test_the_family_is_trained_on_as_many_tokens_per_parameter() -> None:
    import train_family
    from saekernels import example
    from saekernels.eval.studies.family import read_family

    shipped = {member.name: member for member in read_family(example.FAMILY).members}
    plans = train_family.plans(4096)
    main_plan = train_family.MAIN
    whole = train_family.MAIN_STEPS * main_plan.windows_per_step * main_plan.context
    for name, plan in plans.items():
        size = train_family.parameters(plan, 4096)
        tokens = plan.steps * plan.windows_per_step * plan.context
        assert tokens / size == pytest.approx(whole / train_family.parameters(main_plan, 4096), rel=0.01)
        assert shipped[name].parameters == size
        assert shipped[name].train_tokens == tokens
