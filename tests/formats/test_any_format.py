"""Of every format: damage, pickled code, options that do not belong, the way to SAELens, hub ids."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import saekernels as sk
from saekernels.formats import hub
from zoo import LINEAR, OUT, D, F, check, gemma, jump, llama, openai, random, selected


class Evil:
    """What a pickle can run: it makes that file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return (Path.touch, (self.marker,))


def test_nothing_else_than_tensors_is_unpickled(tmp_path: Path) -> None:
    marker = tmp_path / "was-here"
    pickle.loads(pickle.dumps(Evil(marker)))
    assert marker.exists(), "an unpickler that runs it is noticed"
    marker.unlink()
    torch.save({"pre_bias": Evil(marker), "latent_bias": random(F)}, tmp_path / "a.pt")
    with pytest.raises(sk.FormatError, match="which are never unpickled"):
        sk.load(tmp_path / "a.pt")
    (tmp_path / "b.pt").write_bytes(pickle.dumps(Evil(marker)))
    with pytest.raises(sk.FormatError, match=r"b\.pt"):
        sk.load(tmp_path / "b.pt")
    np.savez(tmp_path / "params.npz", W_enc=np.array([Evil(marker)], dtype=object))
    with pytest.raises(sk.FormatError, match="not a numpy archive"):
        sk.load(tmp_path / "params.npz")
    assert not marker.exists()


@pytest.mark.parametrize("kind", ["npz", "pt", "safetensors"])
@pytest.mark.parametrize("damage", ["empty", "half", "noise", "flipped", "short tensor"])
def test_damaged_files_give_one_clear_error(kind: str, damage: str, tmp_path: Path) -> None:
    if kind == "pt":
        path = tmp_path / "ae.pt"
        torch.save({**LINEAR, "bias": random(D)}, path)
    else:
        gemma(tmp_path, suffix=kind)
        path = tmp_path / f"params.{kind}"
    whole = path.read_bytes()
    if damage == "short tensor":
        if kind == "pt":
            torch.save({**LINEAR, "bias": random(D - 1)}, path)
        else:
            gemma(tmp_path, suffix=kind, threshold=random(F - 1))
    else:
        at = len(whole) // 3
        path.write_bytes({
            "empty": b"", "half": whole[: len(whole) // 2], "noise": bytes(range(256)) * 40,
            "flipped": bytes([whole[0] ^ 0xFF]) + whole[1:at] + bytes(64) + whole[at + 64 :],
        }[damage])  # fmt: skip
    with pytest.raises(sk.FormatError) as caught:
        sk.load(path)
    assert path.name in str(caught.value)
    assert "\n" not in str(caught.value)


def test_options_that_do_not_belong(tmp_path: Path) -> None:
    gemma(tmp_path)
    with pytest.raises(sk.FormatError, match=r"k: got 3, but .* says itself"):
        sk.load(tmp_path, k=3)
    with pytest.raises(sk.FormatError, match="input_scale: got 2"):
        sk.load(tmp_path, input_scale=2)
    for k in (0, True, 2.5):
        with pytest.raises(ValueError, match="k: got"):
            sk.load(tmp_path, k=k)  # type: ignore[arg-type]
    torch.save({"something": random(3)}, tmp_path / "x.pt")
    with pytest.raises(sk.FormatError, match="no known format has the entries"):
        sk.load(tmp_path / "x.pt")
    torch.save([random(3)], tmp_path / "x.pt")
    with pytest.raises(sk.FormatError, match="need a dictionary of tensors by name"):
        sk.load(tmp_path / "x.pt")


def test_every_format_converts_to_saelens(tmp_path: Path) -> None:
    gemma(tmp_path / "gemma", OUT)
    openai(tmp_path / "7.pt")
    llama(tmp_path / "llama", {"d_sae": F, "jump_relu_threshold": 0.4, "dataset_average_activation_norm": {"in": 9.0}})
    folder, _ = selected(tmp_path / "batch", "BatchTopKSAE", 0.7)
    x = random(9, D, seed=5)
    for number, source in enumerate((tmp_path / "gemma", tmp_path / "7.pt", tmp_path / "llama", folder)):
        sae = sk.load(source)
        sk.save(sae, tmp_path / f"out{number}")
        torch.testing.assert_close(sk.load(tmp_path / f"out{number}")(x), sae(x), rtol=1e-4, atol=1e-4)


def test_hub_ids(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import huggingface_hub

    asked: list[Any] = []
    root = tmp_path / "snapshot"
    w = gemma(root / "layer_3" / "width_16k")

    def download(repo: str, revision: str | None = None, allow_patterns: Any = None) -> str:
        asked.append((repo, revision, allow_patterns))
        return str(root)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    check(
        "google/gemma-scope-2b-pt-res/layer_3/width_16k",
        lambda x: jump(x @ w["W_enc"] + w["b_enc"], w["threshold"]) @ w["W_dec"] + w["b_dec"],
        revision="abc",
    )
    assert asked == [("google/gemma-scope-2b-pt-res", "abc", ["layer_3/width_16k", "layer_3/width_16k/*"])]
    sk.load("google/gemma-scope-2b-pt-res/layer_3/width_16k/params.npz")
    beside = {f"layer_3/width_16k/{name}" for name in ("params.npz", "config.yaml", "config.json", "params_cfg.json")}
    assert beside <= set(asked.pop()[2]), "a config beside a file may say what it computes"
    with pytest.raises(FileNotFoundError, match="has no 'layer_9'"):
        sk.load("google/gemma-scope-2b-pt-res/layer_9")
    for name in ("missing", "./a/b", "/no/such", "a/b/../../c", "~/a/b"):
        with pytest.raises(FileNotFoundError, match="does not exist"):
            hub.fetch(name)
    assert len(asked) == 2

    with pytest.raises(ValueError, match=r"^revision: got 'abc' for .*layer_3.*, which is on this machine's disk"):
        sk.load(root / "layer_3" / "width_16k", revision="abc")

    def refuse(*_: Any, **__: Any) -> str:
        raise OSError("no network\nsecond line")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    with pytest.raises(FileNotFoundError, match=r"gives nothing by that id: no network$"):
        sk.load("a/b")
