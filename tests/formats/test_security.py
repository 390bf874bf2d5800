"""What SECURITY.md promises: nothing in a file is run, nothing elsewhere is touched, no markup gets through."""

from __future__ import annotations

import ast
import json
import os
import pickle
import re
import shutil
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

import saekernels as sk
import tiny_lm
from places import ROOT
from saekernels.cli import main
from saekernels.eval import InputError
from saekernels.eval.studies.tasks import load_tasks
from saekernels.formats import FormatError, hub

CODE = """
from pathlib import Path
from transformers import LlamaConfig, LlamaForCausalLM

Path({canary!r}).touch()

class OwnConfig(LlamaConfig):
    model_type = "own"

class OwnModel(LlamaForCausalLM):
    config_class = OwnConfig
"""


class Evil:
    """What a pickle can run."""

    def __init__(self, canary: Path) -> None:
        self.canary = str(canary)

    def __reduce__(self) -> Any:
        return (os.mkdir, (self.canary,))


@pytest.fixture
def with_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[list[str], Path]:
    """The options of an evaluation of a model whose checkpoint brings code, and what that code makes."""
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    made, canary = tiny_lm.save(tmp_path), tmp_path / "canary"
    config = json.loads((made["model"] / "config.json").read_text())
    config["model_type"] = "own"
    config["auto_map"] = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnModel"}
    (made["model"] / "config.json").write_text(json.dumps(config))
    (made["model"] / "own.py").write_text(CODE.format(canary=str(canary)))
    (tmp_path / "text.txt").write_text(tiny_lm.PARAGRAPH)
    site = tiny_lm.SITES[0]
    options = ["eval", "--model", str(made["model"]), "--sae", f"{site}={made[site]}", "--bootstrap", "0"]
    return [*options, "--data", str(tmp_path / "text.txt"), "--tokens", "all"], canary


def test_code_of_a_checkpoint_runs_only_when_asked(
    with_code: tuple[list[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    options, canary = with_code
    assert main(options) == 2
    told = capsys.readouterr().err
    assert "brings Python code of its own, which was not run; --trust-remote-code runs it" in told
    assert told.count("\n") == 1
    assert not canary.exists()
    assert main([*options, "--trust-remote-code", "--checkpoint", str(canary.parent / "run")]) == 0
    assert canary.exists()
    with open(canary.parent / "model" / "own.py", "a") as code:
        code.write("# another model, for all that can be known\n")
    assert main([*options, "--trust-remote-code", "--checkpoint", str(canary.parent / "run")]) == 2
    assert "belongs to another evaluation: model was" in capsys.readouterr().err


@pytest.mark.parametrize("how", ["in a dictionary", "alone", "inside of a torch archive"])
def test_pickles_are_never_run(how: str, tmp_path: Path) -> None:
    canary, path = tmp_path / "canary", tmp_path / "sae" / "ae.pt"
    path.parent.mkdir()
    if how == "in a dictionary":
        torch.save({"encoder.weight": torch.zeros(4, 3), "x": Evil(canary)}, path)
    elif how == "alone":
        path.write_bytes(pickle.dumps(Evil(canary)))
    else:
        torch.save({"encoder.weight": torch.zeros(4, 3)}, tmp_path / "whole.pt")
        with zipfile.ZipFile(tmp_path / "whole.pt") as whole, zipfile.ZipFile(path, "w") as spoilt:
            for name in whole.namelist():
                own = name.endswith("data.pkl")
                spoilt.writestr(name, pickle.dumps(Evil(canary), protocol=2) if own else whole.read(name))
    with pytest.raises(FormatError, match=r"ae\.pt"):
        sk.load(path.parent)
    assert not canary.exists()


def test_an_archive_that_names_other_places_writes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "inner" / "params.npz"
    path.parent.mkdir()
    with zipfile.ZipFile(path, "w") as archive:
        for name in ("../../out.npy", "/etc/out.npy", "W_enc.npy"):
            archive.writestr(name, b"\x93NUMPY")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(FormatError):
        sk.load(path)
    assert sorted(tmp_path.rglob("*")) == before
    assert not Path("/etc/out.npy").exists()


@pytest.mark.parametrize("name", ["../x/y", "a/b/../../c", "/a/b", "~/a", "a/b/..", "./a/b", "a", "a/b/c\\..\\d"])
def test_hub_ids_that_lead_elsewhere_are_refused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    def download(*given: Any, **options: Any) -> str:
        raise AssertionError("asked the hub")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    with pytest.raises(FileNotFoundError, match="which does not exist"):
        hub.fetch(name)


def test_tags_of_yaml_make_nothing(tmp_path: Path) -> None:
    (tmp_path / "tasks.yaml").write_text(f"!!python/object/apply:os.mkdir [{tmp_path}/canary]\n")
    with pytest.raises(InputError, match=r"tasks: cannot read .*tasks\.yaml"):
        load_tasks([str(tmp_path / "tasks.yaml")])
    assert not (tmp_path / "canary").exists()


def test_markup_in_names_does_not_reach_the_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = tiny_lm.save(tmp_path)
    bad = "<script>alert(1)</script><img src=x onerror=y>[bold]"
    model = tmp_path / "<b onload=z>"
    shutil.copytree(made["model"], model)
    with open(tmp_path / "text.jsonl", "w") as out:
        for one in tiny_lm.documents():
            out.write(json.dumps({"text": one.text, "domain": bad + one.domain}) + "\n")
    site, page = tiny_lm.SITES[0], tmp_path / "page.html"
    command = ["eval", "--model", str(model), "--sae", f"{site}={made[site]}", "--data", str(tmp_path / "text.jsonl")]
    command += ["--domain-field", "domain", "--tokens", "all", "--bootstrap", "4", "--html", str(page)]
    assert main(command) == 0
    text = page.read_text()
    assert "alert(1)" in text, "the name is there"
    assert re.findall(r"<script[^>]*>", text.lower()) == ['<script type="application/json" id="report">', "<script>"]
    for raw in ("<script>alert", "<img src=x", "<b onload", "src=http", 'href="http'):
        assert raw not in text.lower(), raw
    capsys.readouterr()


def test_no_source_file_starts_a_shell_or_evaluates_text() -> None:
    """By syntax: no eval, exec, os.system, shell=True or unpickling anywhere in the package."""
    forbidden = {"eval", "exec", "compile", "__import__"}
    for path in sorted((ROOT / "saekernels").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call):
                continue
            called, where = ast.unparse(node.func), f"{path.name}:{node.lineno}"
            assert called not in forbidden, f"{where} calls {called}"
            assert called not in ("os.system", "os.popen", "pickle.load", "pickle.loads"), f"{where} calls {called}"
            for keyword in node.keywords:
                given = f"{keyword.arg}={ast.unparse(keyword.value)}"
                assert given not in ("shell=True", "weights_only=False", "allow_pickle=True"), f"{where}: {given}"
            if called in ("torch.load", "np.load"):
                assert {"weights_only", "allow_pickle"} & {k.arg for k in node.keywords}, f"{where} does not say which"
