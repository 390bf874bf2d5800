"""What SAELens' format holds of an SAE: written, read again, the same function and the same metadata; else refused."""

from __future__ import annotations

import json
import os
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

import saekernels as sk
from kinds_of_sae import ACTIVATIONS, OUT, D, F, Kind, check, inputs, kinds
from saekernels.sae.activations import Activation
from saekernels.sae.metadata import Metadata

names = st.none() | st.sampled_from(["blocks.1.hook_resid_post", "blocks.2.attn.hook_z", "blocks.0.hook_mlp_out"])
plain = st.none() | st.booleans() | st.integers(-5, 5) | st.text("ab", max_size=3) | st.floats(-2, 2)
METADATA = st.builds(
    Metadata,
    st.just("SAELens"),
    model=st.none() | st.text("gpt2-small/", min_size=1, max_size=9),
    reads=names,
    writes=names,
    head=st.none() | st.integers(0, 11),
    prepend_bos=st.none() | st.booleans(),
    context=st.none() | st.integers(1, 4096),
    dataset=st.none() | st.just("owner/text"),
    model_options=st.dictionaries(st.sampled_from(["center_writing_weights", "fold_ln", "dtype"]), plain, max_size=2),
    other=st.dictionaries(
        st.sampled_from(["hf_hook_name", "hook_layer", "seqpos_slice", "neuronpedia_id", "whatever"]),
        st.integers(0, 9) | st.text("xy", min_size=1, max_size=2) | st.lists(st.integers(0, 3), min_size=1, max_size=2),
        max_size=3,
    ),
)


def comparable(metadata: Metadata | None) -> Metadata:
    """Without what every file of SAELens has, and with one spelling of "where it reads, it writes"."""
    assert metadata is not None
    own = {k: v for k, v in metadata.other.items() if k not in ("sae_lens_version", "reshape_activations")}
    return replace(metadata, other=own, writes=metadata.writes or metadata.reads)


# Those that are written in every run; the others are alike.
QUICK = (sk.TopK, sk.JumpReLU)


@pytest.mark.parametrize(
    "activation",
    [pytest.param(one, marks=() if type(one) in QUICK else pytest.mark.slow) for one in ACTIVATIONS],
    ids=repr,
)
def test_every_kind_is_written_exactly_or_refused(
    activation: Activation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fsync", lambda _: None)
    for number, kind in enumerate(one for one in kinds() if one.activation == activation):
        place, grid = tmp_path / str(number), number % 2 == 0
        sae = kind.sae(grid, number)
        if kind.expressible:
            sk.save(sae, place)
            check(kind, sae, sk.load(place), grid, number)
            other = kind.sae(not grid, number)
            sk.save(other, place)
            check(kind, other, sk.load(place), not grid, number)
        else:
            with pytest.raises(sk.FormatError, match=r"^sae: got "):
                sk.save(sae, place)
            assert not place.exists()


def without_class(notes: tuple[str, ...]) -> tuple[str, ...]:
    """Without the note that SAELens has no class for what is written, by where it reads and writes."""
    return tuple(note for note in notes if not note.startswith("a transcoder of equal widths is written as"))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(kind=st.sampled_from(list(kinds())), metadata=METADATA, grid=st.booleans(), seed=st.integers(0, 999))
def test_the_same_function_and_metadata_come_back(kind: Kind, metadata: Metadata, grid: bool, seed: int) -> None:
    sae = kind.sae(grid, seed)
    sae.metadata = metadata
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "a"
        if not kind.expressible:
            event("refused")
            with pytest.raises(sk.FormatError, match=r"^sae: got "):
                sk.save(sae, place)
            assert not place.exists()
            return
        notes = without_class(sk.save(sae, place))
        event("folded" if notes else "as it is")
        loaded = sk.load(place)
        again = without_class(sk.save(loaded, Path(folder) / "b"))
        files = [{p.name: p.read_bytes() for p in (Path(folder) / one).iterdir()} for one in ("a", "b")]
    check(kind, sae, loaded, grid, seed)
    if not notes:
        assert repr(loaded) == repr(sae)
        assert all(torch.equal(value, sae.state_dict()[name]) for name, value in loaded.state_dict().items())
    assert comparable(loaded.metadata) == comparable(metadata)
    assert again == ()
    assert files[0] == files[1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", [
    Kind(sk.ReLU(), sk.Scale(0.37), "separate", D, False, True),
    Kind(sk.Gated(), sk.Scale(0.37), "separate", OUT, True, False),
], ids=["standard", "gated transcoder"])  # fmt: skip
def test_folded_weights_are_rounded_once(kind: Kind, dtype: torch.dtype, tmp_path: Path) -> None:
    """Each tensor of the file is the float64 formula, off by half a unit in the last place."""
    sae = kind.sae(False, 3).to(dtype)
    notes = sk.save(sae, tmp_path)
    assert any(note.startswith("b_pre is folded into ") for note in notes)
    found = {name: value.double() for name, value in sk.load(tmp_path).state_dict().items()}
    w = {name: value.double() for name, value in sae.state_dict().items()}
    shift = w["W_enc"] @ w["b_pre"]
    if "r_mag" in w:
        gain = w["r_mag"].exp()
        b_enc = w["b_mag"] - gain * shift
        right = {"W_enc": w["W_enc"] * gain[:, None] * 0.37, "W_dec": w["W_dec"] / 0.37, "b_enc": b_enc}
        right |= {"threshold": b_enc - gain * (w["b_gate"] - shift), "W_skip": w["W_skip"]}
    else:
        n = w["W_dec"].norm(dim=1)
        right = {"W_enc": w["W_enc"] * n[:, None] * 0.37, "W_dec": w["W_dec"] / n[:, None] / 0.37}
        right["b_enc"] = (w["b_enc"] - shift) * n
    right["b_dec"] = w["b_dec"] / 0.37
    assert set(found) == set(right)
    for name, want in right.items():
        unit = torch.finfo(torch.float32 if name == "threshold" else dtype).eps
        off = (found[name] - want).abs() / want.abs().clamp(min=torch.finfo(dtype).smallest_normal)
        assert float(off.max()) <= unit / 2 * (1 + 1e-9), name


def test_the_writer_says_what_it_did(tmp_path: Path) -> None:
    plain = Kind(sk.TopK(4), None, "b_dec", D, False, True).sae(False, 1)
    assert sk.save(plain, tmp_path / "a") == ()
    mixed = Kind(sk.BatchTopK(4), sk.Scale(0.37), "separate", D, False, True).sae(False, 1)
    mixed.metadata = Metadata("another", ignored=("twist",))
    assert sk.save(mixed, tmp_path / "b") == (
        "BatchTopK(k=4) is written as JumpReLU(), here the same function; its k, 4, is a record and is not kept",
        "b_pre is folded into b_enc",
        "decoder norms are folded into W_enc, b_enc and W_dec",
        "the scale of the input, 0.37, is folded into W_enc, W_dec and b_dec",
        "fields that are not known here were neither used nor kept: 'twist'",
    )
    half = Kind(sk.Gated(), None, "none", OUT, False, False).sae(False, 1).to(torch.bfloat16)
    assert sk.save(half, tmp_path / "c") == (
        "Gated() is written as JumpReLU(), here the same function",
        "gates are folded into W_enc, b_enc and threshold",
        "what is folded is rounded to bfloat16",
        "thresholds are in float32 in the file, but SAELens rounds them to the dtype of the weights",
    )
    skip = Kind(sk.ReLU(), None, "b_dec", D, True, False).sae(False, 1)
    told = "b_dec, which SAELens' transcoders do not subtract, is folded into b_enc"
    assert sk.save(skip, tmp_path / "d") == (told,)


@pytest.mark.parametrize(("about", "reshape"), [
    ({"reads": "blocks.2.attn.hook_z", "writes": "blocks.2.attn.hook_z"}, "hook_z"),
    ({"reads": "blocks.2.attn.hook_z", "writes": "blocks.2.hook_attn_out"}, "none"),
    ({"reads": "blocks.2.attn.hook_z", "writes": "blocks.2.attn.hook_z", "head": 1}, "none"),
    ({"reads": "blocks.2.attn.hook_z", "other": {"reshape_activations": "none"}}, "none"),
    ({"reads": "blocks.2.hook_resid_post"}, "none"),
])  # fmt: skip
def test_heads_side_by_side_are_reshaped_as_saelens_does(about: Any, reshape: str, tmp_path: Path) -> None:
    sae = Kind(sk.ReLU(), None, "none", D, False, False).sae(False, 1)
    sae.metadata = Metadata("another", **about)
    sk.save(sae, tmp_path)
    assert json.loads((tmp_path / "cfg.json").read_text())["reshape_activations"] == reshape


@pytest.mark.parametrize(("version", "kept"), [("6.12.1", "6.12.1"), ("5.3.0", "6.0.0"), (None, "6.0.0"), (7, "6.0.0")])
def test_the_version_is_one_whose_layout_it_is(version: object, kept: object, tmp_path: Path) -> None:
    sae = Kind(sk.ReLU(), None, "none", D, False, False).sae(False, 1)
    sae.metadata = Metadata("SAELens", model="own", other={"sae_lens_version": version})
    sk.save(sae, tmp_path, metadata={"model_name": "given", "converted_from": "here"})
    about = json.loads((tmp_path / "cfg.json").read_text())["metadata"]
    assert about == {"sae_lens_version": kept, "model_name": "given", "converted_from": "here"}


REFUSALS: list[tuple[Any, type[Exception], str]] = [
    (lambda: Kind(sk.ReLU(), sk.ConstantNorm(), "none", OUT, False, False).sae(False, 0), sk.FormatError,
     r"^sae: got ConstantNorm\(\) in a transcoder, need none: SAELens does not undo it on its outputs$"),
    (lambda: sk.EditedSAE(sk.SAE(D, F, sk.ReLU()), []), TypeError, r"^sae: got EditedSAE, need a saekernels\.SAE$"),
    (lambda: sk.SAE(D, F, sk.ReLU(), normalization=sk.Scale(1e-7), dtype=torch.float16), sk.FormatError,
     r"^sae: W_dec does not fit into torch\.float16 once it is folded; give another dtype$"),
]  # fmt: skip


@pytest.mark.parametrize(("make", "kind", "message"), REFUSALS, ids=["normalised transcoder", "edited", "overflow"])
def test_what_cannot_be_written_is_refused_by_name(make: Any, kind: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(kind, match=message):
        sk.save(make(), tmp_path / "sae")
    assert not (tmp_path / "sae").exists()


def test_a_gate_of_no_gain_cannot_be_folded(tmp_path: Path) -> None:
    sae = Kind(sk.Gated(), None, "none", OUT, False, False).sae(False, 1)
    with torch.no_grad():
        sae.r_mag[3] = -torch.inf
    with pytest.raises(sk.FormatError, match=r"^sae: exp\(r_mag\) of a latent is 0 or infinite, need a finite one"):
        sk.save(sae, tmp_path / "sae")


@pytest.mark.parametrize("normalization", ["layer_norm", "constant_norm_rescale"])
def test_saelens_transcoders_that_normalise_are_refused(normalization: str, tmp_path: Path) -> None:
    """SAELens normalises their input and does not undo it on the output, which no SAE here does."""
    from zoo import change_config

    sk.save(Kind(sk.ReLU(), None, "none", OUT, False, False).sae(False, 1), tmp_path)
    change_config(tmp_path, normalize_activations=normalization)
    with pytest.raises(
        sk.FormatError, match=f"'normalize_activations' is '{normalization}' for a transcoder, need 'none'"
    ):
        sk.load(tmp_path)


def test_norms_are_read_where_saelens_reads_them(tmp_path: Path) -> None:
    from zoo import change_config

    sk.save(Kind(sk.AbsTopK(4), None, "none", D, False, True).sae(False, 1), tmp_path / "a")
    assert sk.load(tmp_path / "a").rescale_by_decoder_norm
    sk.save(Kind(sk.ReLU(), None, "none", D, False, False).sae(False, 1), tmp_path / "b")
    change_config(tmp_path / "b", rescale_acts_by_decoder_norm=True)
    with pytest.raises(sk.FormatError, match="'rescale_acts_by_decoder_norm' is true, need false for 'standard'"):
        sk.load(tmp_path / "b")


@pytest.mark.peers
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("activation", ACTIVATIONS, ids=repr)
def test_saelens_computes_the_same_from_it(activation: Activation, tmp_path: Path) -> None:
    sae_lens = pytest.importorskip("sae_lens")
    x = inputs(False, 1)
    written = 0
    for number, kind in enumerate(one for one in kinds() if one.activation == activation and one.expressible):
        sae = kind.sae(False, number)
        sae.metadata = Metadata("SAELens", model="m", reads="blocks.0.a", writes="blocks.0.b", head=2, context=9)
        sk.save(sae, tmp_path / str(number))
        theirs = sae_lens.SAE.load_from_disk(tmp_path / str(number))
        with torch.no_grad():
            torch.testing.assert_close(theirs(x), sae(x), rtol=1e-9, atol=1e-9, msg=lambda m, k=kind: f"{k}: {m}")
            torch.testing.assert_close(theirs.encode(x), sae.encode(x).to_dense(), rtol=1e-9, atol=1e-9)
        about = theirs.cfg.metadata
        assert (about.model_name, about.hook_name, about.hook_name_out, about.hook_head_index, about.context_size) == (
            "m", "blocks.0.a", "blocks.0.b", 2, 9,
        )  # fmt: skip
        written += 1
    assert written > 0 or activation in (sk.TopK(4, relu=False), sk.GroupMax(4))
