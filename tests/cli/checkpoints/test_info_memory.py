"""`saekernels info PATH` without loading the weights: the facts are those of the loaded SAE."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import ranks
import saekernels as sk
import zoo
from saekernels.formats.describe import describe
from saekernels.formats.load import open_checkpoint
from saekernels.formats.looking import looking
from zoo import D, F

LATENTS, WIDTH = 65536, 1024  # 256 MiB each of W_enc and W_dec in float32
CLEAR = Path("/proc/self/clear_refs")
# Starting up needs more than it keeps, so the peak is set back to what there is now.
SCRIPT = """
import ctypes, pathlib, sys
import numpy, safetensors.torch
from saekernels.cli import main
def peak():
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) // 1024
assert main(["info", sys.argv[1]]) == 0
ctypes.CDLL(None).malloc_trim(0)
pathlib.Path("/proc/self/clear_refs").write_text("5")
before = peak()
assert main(["info", sys.argv[2]]) == 0
print("grown", peak() - before, file=sys.stderr)
"""


def sparse_safetensors(folder: Path, latents: int, d: int) -> Path:
    """A SAELens file whose zeros take no room on the disk."""
    shapes = {"W_enc": [d, latents], "W_dec": [latents, d], "b_enc": [latents], "b_dec": [d], "threshold": [latents]}
    header, at = {}, 0
    for name, shape in shapes.items():
        end = at + 4 * int(np.prod(shape))
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [at, end]}
        at = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    folder.mkdir()
    with (folder / "sae_weights.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + at)
    config = {"architecture": "jumprelu", "d_in": d, "d_sae": latents, "apply_b_dec_to_input": False}
    (folder / "cfg.json").write_text(json.dumps(config))
    return folder


def npz(folder: Path, latents: int, d: int) -> Path:
    zoo.gemma(folder, W_enc=torch.zeros(d, latents), W_dec=torch.zeros(latents, d), b_enc=torch.zeros(latents),
              b_dec=torch.zeros(d), threshold=torch.zeros(latents))  # fmt: skip
    return folder


def pt(folder: Path, latents: int, d: int) -> Path:
    names = {"encoder.weight": torch.zeros(latents, d), "encoder.bias": torch.zeros(latents),
             "decoder.weight": torch.zeros(d, latents), "bias": torch.zeros(d)}  # fmt: skip
    return zoo.dictionary(folder, names)


@pytest.mark.skipif(not CLEAR.exists(), reason="needs Linux's peak of memory")
@pytest.mark.parametrize(
    ("make", "part"),
    [(sparse_safetensors, 1), *(pytest.param(make, 4, marks=pytest.mark.slow) for make in (npz, pt))],
    ids=["safetensors", "npz", "pt"],
)
def test_memory_does_not_grow_with_the_weights(make: Callable[..., Path], part: int, tmp_path: Path) -> None:
    small, large = make(tmp_path / "small", 64, 16), make(tmp_path / "large", LATENTS // part, WIDTH)
    code, out, err = ranks.alone(SCRIPT, str(small), str(large))
    assert code == 0, err
    facts: dict[str, Any] = dict(line.split(None, 1) for line in out.splitlines() if line.startswith("memory"))
    assert facts["memory"] in ("512.5 MiB", "128.1 MiB")
    grown = int(err.rpartition("grown ")[2])
    assert grown < 24, f"{grown} MiB more for {facts['memory']} of weights"


def test_the_facts_are_those_of_the_loaded_sae(tmp_path: Path) -> None:
    """Where readers make new matrices, which is left out here: embeddings of Gemma, two scales, a factor on codes."""
    embedding = tmp_path / "embedding" / "width_4k" / "average_l0_6"
    raw = [zoo.gemma(embedding)["W_dec"]]
    norms = {"in": 4.0, "out": 2.0}
    config = {"d_sae": F, "jump_relu_threshold": 0.5, "dataset_average_activation_norm": norms}
    raw.append(zoo.llama(tmp_path / "llama", config)["W_dec"])
    sae = zoo.randomised(sk.SAE(D, F, sk.JumpReLU()))
    sk.save(sae, tmp_path / "lens")
    file = tmp_path / "lens" / "sae_weights.safetensors"
    save_file({**load_file(file), "scaling_factor": torch.full((F,), 3.0)}, file)
    zoo.change_config(tmp_path / "lens", finetuning_scaling_factor=True)
    raw.append(sae.W_dec.detach())
    for path, W_dec in zip((embedding, tmp_path / "llama", tmp_path / "lens"), raw, strict=True):
        before = sk.load(path).state_dict()
        facts = describe(path)
        assert facts["thresholds"] == [float(before["threshold"].min()), float(before["threshold"].max())]
        with looking():
            seen = open_checkpoint(path, dtype=None, input_scale=None, k=None, revision=None)
        assert torch.equal(seen.state["W_dec"], W_dec)
        assert not torch.equal(before["W_dec"], W_dec)
        after = sk.load(path).state_dict()
        assert all(torch.equal(value, after[name]) for name, value in before.items())
