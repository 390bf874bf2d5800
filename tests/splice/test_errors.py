"""splice: every bad argument is refused by name, before or at the first forward pass."""

from __future__ import annotations

import re
import warnings
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn

from saekernels.sae.edits import Edit, EditedSAE
from saekernels.sae.metadata import Metadata
from saekernels.splice.context import splice
from saekernels.splice.contradictions import OriginWarning
from splice_helpers import WIDTH, count_hooks, make_sae, tiny_model, tokens

pytest.importorskip("transformers")

SITE = "model.layers.1"


@pytest.fixture(scope="module")
def llama() -> nn.Module:
    return tiny_model("llama")


@pytest.mark.parametrize(
    ("site", "says"),
    [
        ("model.layer.1", "'model.layers.1'"),
        ("decoder.layers.1", "'model.layers.1'"),
        ("o_proj@input", "'model.layers.0.self_attn.o_proj'"),
        ("model.layers.1.self_attn.oproj@input", "'model.layers.1.self_attn.o_proj'"),
        ("model.layers.7", "'model.layers.2'"),
        ("xyzzy", "'lm_head'"),
        ("model.layers", "ModuleList"),
        ("model.layers.1@out", "'path@input'"),
        ("@input", "'path@input'"),
        ("", "'path@input'"),
    ],
)
def test_unknown_sites(llama, site, says):
    with pytest.raises(ValueError, match=re.escape(says)) as caught:
        splice(llama, {site: make_sae()})
    assert site.removesuffix("@input") in str(caught.value)


def test_wrong_widths_known_at_once(llama):
    for site, sae, numbers in [
        (SITE + ".self_attn.o_proj@input", make_sae(12), "expected width 12 .* got 16 .*Linear"),
        (SITE + ".mlp.up_proj", make_sae(), "expected width 16 .* got 24"),
        (SITE + ".mlp.up_proj@module", make_sae(WIDTH, WIDTH), "expected width 16 .* got 24"),
        ("model.embed_tokens", make_sae(12), "expected width 12 .* got 16 .*Embedding"),
        (SITE, make_sae(WIDTH, 24), "d_in == d_out, got 16 and 24"),
    ]:
        with pytest.raises(ValueError, match=numbers) as caught:
            splice(llama, {site: sae})
        assert repr(site) in str(caught.value)
    gpt2 = tiny_model("gpt2")
    with pytest.raises(ValueError, match=r"expected width 16 .* got 64 .*Conv1D"):
        splice(gpt2, {"transformer.h.0.mlp.c_proj@input": make_sae()})
    with pytest.raises(ValueError, match=r"expected width 12 .* got 16 .*LayerNorm"):
        splice(gpt2, {"transformer.h.0.ln_2": make_sae(12)})


@torch.no_grad()
def test_wrong_widths_known_at_the_first_forward(llama):
    before = count_hooks(llama)
    wide = r"site 'model.layers.1': expected width 12 .* got 16 .*\(2, 7, 16\)"
    with pytest.raises(ValueError, match=wide), splice(llama, {SITE: make_sae(12)}):
        llama(tokens())
    with pytest.raises(ValueError, match=wide), splice(llama, {SITE: make_sae(12)}, replace="zero"):
        llama(tokens())
    mean = {SITE: torch.zeros(12)}
    with pytest.raises(ValueError, match=wide), splice(llama, {SITE: None}, replace="mean", means=mean):
        llama(tokens())
    transcoder = r"site 'model.layers.1.mlp@module': expected width 24 .* got 16"
    with pytest.raises(ValueError, match=transcoder), splice(llama, {SITE + ".mlp@module": make_sae(WIDTH, 24)}):
        llama(tokens())
    assert count_hooks(llama) == before


def test_means(llama):
    sites = {SITE: make_sae(), "model.layers.2": make_sae()}
    with pytest.raises(ValueError, match=r"means: no mean for site 'model.layers.2'"):
        splice(llama, sites, replace="mean", means={SITE: torch.zeros(WIDTH)})
    with pytest.raises(ValueError, match="means: no mean"):
        splice(llama, sites, replace="mean")
    with pytest.raises(ValueError, match=r"means: .* \[d_out\], got \(1, 16\)"):
        splice(llama, {SITE: None}, replace="mean", means={SITE: torch.zeros(1, WIDTH)})
    with pytest.raises(ValueError, match=r"expected width 16 .* got 12 .*mean"):
        splice(llama, {SITE: make_sae()}, replace="mean", means={SITE: torch.zeros(12)})
    with pytest.raises(TypeError, match="means"):
        splice(llama, {SITE: None}, replace="mean", means={SITE: torch.zeros(WIDTH, dtype=torch.int64)})


@pytest.mark.parametrize("site", [SITE + ".mlp@module", f"{SITE}.mlp@input -> {SITE}.mlp", f"{SITE}.mlp -> {SITE}"])
def test_edits_that_keep_an_error_need_what_they_read(site, llama):
    edited = EditedSAE(make_sae(), [Edit(3, "zero")], keep_error=True)
    with pytest.raises(ValueError, match="keep_error=True need a site that reads what it replaces"):
        splice(llama, {site: edited})


def test_a_transcoder_where_it_reads_what_it_replaces_is_told(llama):
    """Also where this model has no place by the names of its checkpoint."""
    sae = make_sae()
    sae.metadata = Metadata("x", reads="blocks.1.ln2.hook_normalized", writes="blocks.1.hook_mlp_out")
    said = "'model.layers.1.mlp': the SAE was trained to read 'blocks.1.ln2.hook_normalized' and replace "
    with pytest.warns(
        OriginWarning, match=re.escape(said + "'blocks.1.hook_mlp_out', and reads what it replaces here")
    ):
        splice(llama, {SITE + ".mlp": sae})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        splice(llama, {SITE + ".post_attention_layernorm -> " + SITE + ".mlp": sae})


def test_other_arguments(llama):
    sae = make_sae()
    for error, says, sites, options in [
        (ValueError, "replace: needs one of sae, zero, mean, function, got 'drop'", {SITE: sae}, {"replace": "drop"}),
        (ValueError, "replace: needs a mode for each", {SITE: sae}, {"replace": {}}),
        (ValueError, "replace: needs a mode for each", {SITE: sae}, {"replace": {SITE: "sae", "x": "zero"}}),
        (ValueError, "has no SAE", {SITE: None}, {}),
        (ValueError, "error_term", {SITE: sae}, {"error_term": True, "replace": "zero"}),
        (ValueError, "sites: needs a non-empty mapping", {}, {}),
        (ValueError, "sites: needs a non-empty mapping", [SITE], {}),
        (TypeError, "sites: .* got Linear", {SITE: nn.Linear(WIDTH, WIDTH)}, {}),
        (TypeError, "sites: a site is a string", {1: sae}, {}),
    ]:
        with pytest.raises(error, match=says):
            splice(llama, sites, **options)
    with pytest.raises(TypeError, match="observer: needs a callable or None, got int"):
        splice(llama, {SITE: sae}, observer=3)
    with pytest.raises(TypeError, match=r"model: needs a torch\.nn\.Module, got function"):
        splice(lambda x: x, {SITE: sae})


@pytest.mark.parametrize("compiled", ["wrapped", "in place", "a part", "forward"])
def test_compiled_models_are_refused(compiled):
    model = nn.Sequential(nn.Sequential(nn.Identity()))
    path = "0.0"
    if compiled == "wrapped":
        model, path = torch.compile(model, backend="eager"), "_orig_mod.0.0"
    elif compiled == "forward":
        model.forward = torch.compile(model.forward, backend="eager")
    else:
        (model if compiled == "in place" else model[0]).compile(backend="eager")
    with pytest.raises(ValueError, match=r"torch\.compile"):
        splice(model, {path: make_sae()})


def test_names_inside_compiled_modules_are_not_suggested():
    plain = nn.Sequential(nn.Sequential(nn.Identity()), nn.Sequential(nn.Identity()))
    whole = torch.compile(plain, backend="eager")
    for path in ("0.0", "0.1", "xyzzy"):
        with pytest.raises(ValueError, match=r"went through torch\.compile") as caught:
            splice(whole, {path: make_sae()})
        assert "_orig_mod" not in str(caught.value)
    plain[0] = torch.compile(plain[0], backend="eager")
    with pytest.raises(ValueError, match=r"lies in 0, which went through torch\.compile"):
        splice(plain, {"0.0": make_sae()})
    with pytest.raises(ValueError, match=r"close names: '1.0'") as caught:
        splice(plain, {"2.0": make_sae()})
    assert "_orig_mod" not in str(caught.value)


@torch.no_grad()
def test_activations_of_the_wrong_kind():
    class Pair(NamedTuple):
        h: Tensor
        n: int

    class Odd(nn.Module):
        def forward(self, x, result=None):
            return result

    model, sae, x = nn.Sequential(), make_sae(), torch.zeros(2, WIDTH)
    model.odd = Odd()
    with splice(model, {"odd": sae}):
        for result in (None, "text", torch.zeros(2, WIDTH, dtype=torch.int64), (None, x), (), {}):
            with pytest.raises(TypeError, match=r"site 'odd': .*output of Odd"):
                model.odd(x, result)
        assert model.odd(x, [x, 1])[1] == 1
        assert model.odd(x, {"h": x, "n": 1})["n"] == 1
        assert model.odd(x, Pair(x, 1)).n == 1
    with splice(model, {"odd@module": sae}), pytest.raises(ValueError, match="positions must agree"):
        model.odd(x, torch.zeros(3, WIDTH))
    with splice(model, {"odd@input": sae}), pytest.raises(ValueError, match="neither a positional argument nor 'x'"):
        model.odd(result=x)
