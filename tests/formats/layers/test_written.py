"""Folders that are written are read back with the same bits; decoders stay in their files until rows are used."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import saekernels as sk
from layouts import gemma_scope, made
from saekernels.cli import main
from saekernels.eval.store import fingerprints as identity
from saekernels.files.sampled import sampled
from saekernels.formats.layers.describe import describe_cross_layer


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("activation", [sk.ReLU(), sk.JumpReLU(), sk.BatchTopK(2), sk.TopK(2, relu=False)])
def test_round_trip(activation: sk.ReLU, dtype: torch.dtype, tmp_path: Path) -> None:
    torch.manual_seed(0)
    clt = sk.CrossLayerTranscoder(3, 5, 3, activation, dtype=dtype)
    with torch.no_grad():
        for value in (*clt.parameters(), *clt.buffers()):
            value.normal_()
    clt.sites = tuple(f"blocks.{s}.hook_resid_mid -> blocks.{s}.hook_mlp_out" for s in range(3))
    sk.save_cross_layer(clt, tmp_path / "out" / "clt", metadata={"model_name": "owner/model"})
    found = sk.load_cross_layer(tmp_path / "out" / "clt" / "config.yaml", lazy=False)
    assert isinstance(found, sk.CrossLayerTranscoder)
    assert found.metadata is not None
    assert (found.metadata.model, found.sites) == ("owner/model", clt.sites)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["clt"]
    for name, value in clt.state_dict().items():
        if name.endswith("threshold"):
            assert torch.equal(found.state_dict()[name], value.clamp(min=0).float().expand(5))
        else:
            assert torch.equal(found.state_dict()[name], value)
    xs = [torch.randn(7, 3, dtype=dtype) for _ in range(3)]
    for one, other in zip(found(xs), clt(xs), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("activation", [sk.ReLU(), sk.JumpReLU(), sk.TopK(2, relu=False)])
def test_a_set_round_trip(activation: sk.ReLU, tmp_path: Path) -> None:
    torch.manual_seed(0)
    options = [{"d_out": 4, "skip": True}, {"d_out": 4}]
    saes = [sk.SAE(3, 5, activation, pre_bias="none", **one) for one in options]  # type: ignore[arg-type]
    with torch.no_grad():
        for sae in saes:
            for value in sae.parameters():
                value.normal_()
    sites = [f"blocks.{s}.mlp.hook_in -> blocks.{s}.mlp.hook_out" for s in range(2)]
    sk.save_cross_layer(sk.TranscoderSet(saes, sites), tmp_path / "plt")
    found = sk.load_cross_layer(tmp_path / "plt")
    assert isinstance(found, sk.TranscoderSet)
    assert found.sites == tuple(sites)
    x = torch.randn(7, 3)
    for s, sae in enumerate(saes):
        assert torch.equal(found.transcoder(s)(x), sae(x))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"skip": True}, "a skip connection"),
        ({"pre_bias": "separate"}, "a pre-bias"),
        ({"d_out": 4}, "another width out than in"),
        ({"rescale_by_decoder_norm": True}, "decoder norms"),
        ({"activation": sk.TopK(2)}, "need ReLU, JumpReLU, BatchTopK or TopK"),
        ({"activation": [sk.TopK(2, relu=False), sk.TopK(1, relu=False)]}, "in all layers"),
        ({"n_latents": (4, 5)}, "layers of different sizes"),
        ({"device": "meta"}, "on the meta device"),
    ],
)
def test_what_has_no_place_is_refused(options: dict[str, object], message: str, tmp_path: Path) -> None:
    given = {"d_in": 3, "n_latents": 4, "n_layers": 2, "activation": sk.ReLU()} | options
    with pytest.raises(sk.FormatError, match=message):
        sk.save_cross_layer(sk.CrossLayerTranscoder(**given), tmp_path / "clt")  # type: ignore[arg-type]
    assert not any(tmp_path.iterdir())


def test_nothing_is_half_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clt = made(3, 4, 2)
    with pytest.raises(sk.FormatError, match="metadata: cannot be written as JSON"):
        sk.save_cross_layer(clt, tmp_path / "clt", metadata={"a": object()})

    def fails(path: Path, tensors: object) -> None:
        path.write_bytes(b"begun")
        raise OSError("no space left on device")

    monkeypatch.setattr("saekernels.formats.layers.write.write_safetensors", fails)
    with pytest.raises(OSError, match="no space"):
        sk.save_cross_layer(clt, tmp_path / "clt")
    assert not any(tmp_path.iterdir())
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="need a new or empty folder"):
        sk.save_cross_layer(clt, tmp_path)
    with pytest.raises(TypeError, match=r"need a saekernels\.CrossLayerTranscoder"):
        sk.save_cross_layer(torch.nn.Linear(1, 1), tmp_path / "clt")  # type: ignore[arg-type]


def resident(path: Path) -> int:
    """Bytes of a file's mappings that this process has touched."""
    total, own = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if re.match(r"[0-9a-f]+-[0-9a-f]+ ", line):
            own = str(path) in line
        elif own and line.startswith("Rss:"):
            total += 1024 * int(line.split()[1])
    return total


def read_so_far() -> int:
    """Bytes that this process has asked files for."""
    return int(re.findall(r"rchar: (\d+)", Path("/proc/self/io").read_text())[0])


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="what is resident is read from Linux's /proc")
@torch.no_grad()
def test_decoders_are_read_by_the_rows_that_are_active(tmp_path: Path) -> None:
    d, n_latents, folder = 64, 2**15, tmp_path / "clt"
    clt = sk.CrossLayerTranscoder(d, n_latents, 2, sk.ReLU())
    for s in range(2):
        clt.source(s).b_enc.fill_(-1e9)  # type: ignore[union-attr]
        clt.source(s).b_enc[9] = 1  # type: ignore[index]
    sk.save_cross_layer(clt, folder)
    file = folder / "W_dec_0.safetensors"
    size = file.stat().st_size
    found = sk.load_cross_layer(folder)
    assert isinstance(found, sk.CrossLayerTranscoder)
    assert resident(file) < size / 50
    xs = [torch.zeros(4, d)] * 2
    for one, other in zip(found(xs), clt(xs), strict=True):
        assert torch.equal(one, other)
    assert resident(file) < size / 10
    before = read_so_far()
    told = identity.fingerprint(found, settings=True)
    assert resident(file) < size / 10
    assert read_so_far() - before < 2 * 2**21  # of both layers
    os.utime(file, ns=(0, 0))
    assert identity.fingerprint(found, settings=True) != told
    found.source(1).W_dec[7, 7] = 0.5  # of this process alone, whatever the file
    assert found.source(0).file == file
    assert found.source(1).file is None
    del found
    held = sk.load_cross_layer(folder, lazy=False)
    assert resident(file) == 0
    assert torch.equal(held.source(0).W_dec, clt.source(0).W_dec)  # type: ignore[operator, union-attr]


@pytest.mark.parametrize("size", [0, 100, 2**20, 2**22 + 5])
def test_a_file_that_changed_is_noticed(size: int, tmp_path: Path) -> None:
    file = tmp_path / "file"
    content = bytearray(os.urandom(size))

    def told(content: bytes, time: int) -> str:
        file.write_bytes(content)
        os.utime(file, ns=(time, time))
        return sampled(file)

    seen = [told(content, 1), told(content, 2), told(content + b"x", 1), told(bytes(len(content) + 2), 1)]
    assert told(content, 1) == seen[0]
    for place in {0, size // 2, size - 1} if 0 < size <= 2**20 else {0, size - 1} if size else ():
        content[place] ^= 1
        seen.append(told(content, 1))
    assert len(set(seen)) == len(seen)


def test_square_decoders_stay_where_they_lie(tmp_path: Path) -> None:
    gemma_scope(made(3, 4, 3), tmp_path)
    found = sk.load_cross_layer(tmp_path)
    assert isinstance(found, sk.CrossLayerTranscoder)
    assert [found.source(s).W_dec.stride() for s in range(3)] == [(9, 1)] * 3
    read = sk.load_cross_layer(tmp_path, dtype=torch.float64)
    assert isinstance(read, sk.CrossLayerTranscoder)
    assert [read.source(s).W_dec.stride() for s in range(3)] == [(9, 1), (6, 1), (3, 1)]
    assert read.source(1).W_enc.dtype == torch.float64


def test_what_a_folder_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sk.save_cross_layer(made(3, 4, 3), tmp_path / "clt", metadata={"unheard_of": 1})
    with pytest.warns(UserWarning, match="unheard_of"):
        sk.load_cross_layer(tmp_path / "clt")
    facts = describe_cross_layer(tmp_path / "clt")
    assert facts is not None
    encoders, decoders, others = 3 * 4 * 3, 4 * 3 * (3 + 2 + 1), 3 * (4 + 4 + 3)
    assert facts["parameters"] == encoders + decoders + others
    assert (facts["encoder_bytes"], facts["decoder_bytes"]) == (4 * encoders, 4 * decoders)
    assert (facts["mapped_bytes"], facts["memory_bytes"]) == (4 * decoders, 4 * (encoders + others))
    assert (facts["layers"], facts["n_latents"], facts["ignored"]) == (3, [4, 4, 4], ["unheard_of"])
    assert describe_cross_layer(tmp_path) is None
    assert main(["info", str(tmp_path / "clt")]) == 0
    lines = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert lines["sizes"] == "3 layers, d_in 3, d_out 3, 4 latents each"
    assert lines["decoders"] == "288 bytes, 288 bytes of them stay in their files, mapped"
    assert lines["memory"] == "276 bytes, with lazy=False 564 bytes"
    assert main(["info", str(tmp_path / "clt"), "--format", "circuit-tracer"]) == 2
    assert "whose files say it all" in capsys.readouterr().err


def test_files_hold_what_circuit_tracer_looks_for(tmp_path: Path) -> None:
    clt = made(3, 4, 2)
    sk.save_cross_layer(clt, tmp_path)
    assert set(load_file(tmp_path / "W_enc_1.safetensors")) == {"W_enc_1", "b_enc_1", "b_dec_1", "threshold_1"}
    rows = load_file(tmp_path / "W_dec_0.safetensors")["W_dec_0"]
    assert rows.shape == (4, 2, 3)
    # A negative threshold would let negative values through there.
    tensors = load_file(tmp_path / "W_enc_0.safetensors")
    save_file(tensors | {"threshold_0": -tensors["threshold_0"]}, tmp_path / "W_enc_0.safetensors")
    with pytest.raises(sk.FormatError, match="negative latents are not served"):
        sk.load_cross_layer(tmp_path)
