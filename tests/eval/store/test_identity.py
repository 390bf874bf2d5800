"""A folder of a run serves the evaluation that it was begun with alone: what changes a figure tells them apart."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

import tiny_lm
from saekernels.eval import InputError, evaluate
from saekernels.eval.store import fingerprints as identity
from saekernels.eval.text.records import Fields
from saekernels.eval.text.sources import _Stream
from saekernels.sae.activations import AbsTopK, LayerNorm, TopK
from saekernels.sae.edits import Edit, EditedSAE
from saekernels.sae.module import SAE

SITE = tiny_lm.SITES[0]


def begun(folder: Path, **changes: Any) -> Any:
    given = {"model": tiny_lm.model(), "tokenizer": tiny_lm.tokenizer(), "saes": {SITE: tiny_lm.sae()}, **changes}
    documents = given.pop("documents", tiny_lm.documents())
    return evaluate(*given.values(), documents, bootstrap=4, baselines=(), checkpoint=folder)


def other_k() -> SAE:
    sae = tiny_lm.sae()
    sae.activation = TopK(4)
    return sae


def absolute() -> SAE:
    sae = tiny_lm.sae()
    sae.activation = AbsTopK(8)
    return sae


def normalised() -> SAE:
    sae = tiny_lm.sae()
    sae.normalization = LayerNorm()
    return sae


def cut_tokenizer() -> Any:
    """The same tokens and ids, with another way to split them."""
    from tokenizers import pre_tokenizers

    tokenizer = copy.deepcopy(tiny_lm.tokenizer())
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    return tokenizer


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        (lambda: {"saes": {SITE: other_k()}}, "saes"),
        (lambda: {"saes": {SITE: absolute()}}, "saes"),
        (lambda: {"saes": {SITE: normalised()}}, "saes"),
        (lambda: {"saes": {SITE: EditedSAE(tiny_lm.sae(), [])}}, "saes"),
        (lambda: {"tokenizer": cut_tokenizer()}, "tokenizer"),
        (lambda: {"model": tiny_lm.model(hidden_act="gelu")}, "model"),
        (lambda: {"documents": tiny_lm.documents()[:-2]}, "documents"),
    ],
)
def test_what_is_no_weight_tells_evaluations_apart(changes: Any, named: str, tmp_path: Path) -> None:
    begun(tmp_path)
    with pytest.raises(InputError, match=f"belongs to another evaluation: {named} .*was "):
        begun(tmp_path, **changes())
    assert begun(tmp_path).tokens > 0, "and the same one goes on"


def test_the_difference_is_named_for_people(tmp_path: Path) -> None:
    begun(tmp_path)
    with pytest.raises(InputError, match=rf"saes {SITE} was 'TopK\(k=8\) \w{{16}}', is 'TopK\(k=4\) \w{{16}}'; give"):
        begun(tmp_path, saes={SITE: other_k()})
    with pytest.raises(InputError, match=r"model was 'float32 \w{16}', is 'float64 \w{16}'"):
        begun(tmp_path, model=tiny_lm.model().double())
    added = {SITE: tiny_lm.sae(), f"{SITE}#edited": EditedSAE(tiny_lm.sae(), [Edit(5, "zero")])}
    with pytest.raises(InputError, match=rf"saes {SITE}#edited was None, is .*Edit\(latent=5, .*; give"):
        begun(tmp_path, saes=added)


@pytest.mark.parametrize("content", ["[]", "null", '"x"', "{}", '{"seed": 1e999}', "[" * 100_000])
def test_a_folder_whose_settings_are_damaged_says_so(content: str, tmp_path: Path) -> None:
    begun(tmp_path)
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(InputError, match=r"config\.json cannot be read: it (holds no settings|is nested)"):
        begun(tmp_path)


def test_nothing_is_left_in_a_folder_that_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine").touch()
    with pytest.raises(InputError, match="is not empty and holds no evaluation"):
        begun(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_edits_tell_evaluations_apart() -> None:
    def of(*edits: Edit, keep_error: bool = False) -> str:
        return identity.fingerprint(EditedSAE(tiny_lm.sae(), edits, keep_error), settings=True)

    first, second = Edit(5, "add", (1.0,)), Edit(5, "add", (500.0,))
    found = [of(first), of(second), of(Edit(6, "add", (1.0,))), of(first, second), of(second, first), of()]
    found.append(of(first, keep_error=True))
    assert len(set(found)) == len(found)
    assert of(first) == of(Edit(5, "add", (1.0,)))


def test_what_changes_no_figure_is_no_difference(tmp_path: Path) -> None:
    """Where a model lies, and what a tokenizer was last called with."""
    model, tokenizer = tiny_lm.model(), copy.deepcopy(tiny_lm.tokenizer())
    before = identity.of_model(model), identity.of_tokenizer(tokenizer)
    model.config._name_or_path = "elsewhere"
    tokenizer(["a", "b c"], padding=True, truncation=True, max_length=3)
    assert (identity.of_model(model), identity.of_tokenizer(tokenizer)) == before
    prepared = tiny_lm.sae()
    own = identity.fingerprint(prepared, settings=True)
    begun(tmp_path, saes={SITE: prepared})
    assert identity.fingerprint(prepared, settings=True) == own


def test_a_streamed_data_set_is_told_by_its_name(tmp_path: Path) -> None:
    def stream(where: str) -> _Stream:
        return _Stream([{"text": tiny_lm.PARAGRAPH}] * 3, Fields("text", None, ()), where)

    begun(tmp_path, documents=stream("one@test"))
    with pytest.raises(InputError, match="belongs to another evaluation: documents was"):
        begun(tmp_path, documents=stream("two@test"))
    assert begun(tmp_path, documents=stream("one@test")).tokens > 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64, torch.int8, torch.bool])
def test_any_one_element_counts(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever its place: none is left out, and two that change places show."""
    torch.manual_seed(0)
    module = torch.nn.Module()
    module.register_buffer("w", torch.randn(7000).mul(9).to(dtype))
    before = identity.fingerprint(module)
    for at in (0, 1, 4999, 6998, 6999):
        kept = module.w[at].clone()
        module.w[at] = ~kept if dtype == torch.bool else kept + 1
        assert identity.fingerprint(module) != before
        module.w[at] = kept
    assert identity.fingerprint(module) == before
    module.w[[10, 20]] = torch.tensor([0, 1]).to(dtype)
    ordered = identity.fingerprint(module)
    module.w[[10, 20]] = torch.tensor([1, 0]).to(dtype)
    assert identity.fingerprint(module) != ordered
