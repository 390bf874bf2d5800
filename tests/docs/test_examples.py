"""Each example runs as a visitor runs it, and what it prints is right."""

from __future__ import annotations

import itertools
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

import saekernels as sk
from independent_spliced_ce import read_topk_sae
from places import EXAMPLES
from saekernels import example

NUMBER = r"([-+]?\d[\d,]*\.?\d*(?:e[-+]\d+)?)"
SITE = "model.layers.2"


@pytest.fixture
def printed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):  # type: ignore[no-untyped-def]
    """A function that runs an example as a program, in this process, and returns what it printed."""

    def run(name: str, *arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", [name, *arguments])
        monkeypatch.syspath_prepend(str(EXAMPLES))
        runpy.run_path(str(EXAMPLES / name), run_name="__main__")
        return capsys.readouterr().out

    return run


def figure(text: str, before: str) -> float:
    """The number that follows these words."""
    found = re.search(re.escape(before) + r"\s*" + NUMBER, text)
    assert found, f"no number after {before!r} in:\n{text}"
    return float(found[1].replace(",", ""))


@torch.inference_mode()
def plain_cross_entropy(documents: int, sites: list[str]) -> float:
    """Nats per prediction with full logits and hooks, in torch and transformers alone; <bos> is left alone."""
    model = AutoModelForCausalLM.from_pretrained(example.MODEL_DIR).eval()
    tokenizer = AutoTokenizer.from_pretrained(example.MODEL_DIR)

    def hook(sae):  # type: ignore[no-untyped-def]
        def replace(module, args, output):  # type: ignore[no-untyped-def]
            old = output[0] if isinstance(output, tuple) else output
            new = torch.cat([old[:, :1], sae(old[:, 1:])], dim=1)
            return (new, *output[1:]) if isinstance(output, tuple) else new

        return replace

    for site in sites:
        model.get_submodule(site).register_forward_hook(hook(read_topk_sae(Path(example.SAE_DIRS[site]))))
    losses = []
    for document in itertools.islice(sk.load_documents([str(example.EVAL_DATA)]), documents):
        ids = tokenizer(document.text, return_tensors="pt").input_ids[:, :256]
        losses.append(F.cross_entropy(model(ids).logits[0, :-1].double(), ids[0, 1:], reduction="none"))
    return float(torch.cat(losses).mean())


def test_splice_a_model_prints_what_plain_torch_computes(printed) -> None:  # type: ignore[no-untyped-def]
    text = printed("splice_a_model.py", "--documents", "2")
    clean = plain_cross_entropy(2, [])
    assert figure(text, "clean:") == pytest.approx(clean, abs=2e-4)
    sites = list(example.SAE_DIRS)
    for name, chosen in [*((site, [site]) for site in sites), ("all together", sites)]:
        assert figure(text, f"{name}:") == pytest.approx(plain_cross_entropy(2, chosen) - clean, abs=2e-4), name


@pytest.mark.parametrize("way", ["plain", pytest.param("sae_lens", marks=pytest.mark.peers)])
def test_accelerate_a_tool_gives_the_same_output_another_way(printed, way: str) -> None:  # type: ignore[no-untyped-def]
    if way != "plain":
        pytest.importorskip(way)
    text = printed("accelerate_a_tool.py", "--tokens", "512", *(["--plain"] if way == "plain" else []))
    assert ("PlainSAE, 512 tokens" in text) == (way == "plain")
    # Above zero: it was computed, and in another order of summation.
    assert 0 < figure(text, "relative difference of the output:") < 1e-5
    before, after = figure(text, "before"), figure(text, "after")
    assert figure(text, f"after {after:.1f} ms:") == pytest.approx(before / after, rel=0.1)


@pytest.mark.slow
def test_train_an_sae_learns_and_what_it_saves_is_what_it_evaluates(printed, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    sizes = ("--steps", "60", "--documents", "60", "--batch", "512", "--latents", "640", "--k", "24")
    text = printed("train_an_sae.py", *sizes, "--site", SITE, "--out", str(tmp_path / "sae"))
    steps = [float(found) for found in re.findall(r"step +\d+: FVU " + NUMBER, text)]
    assert len(steps) >= 5
    assert steps[0] > 0.5
    assert steps[-1] < 0.5 * steps[0]
    saved = sk.load(tmp_path / "sae")
    assert (saved.d_in, saved.n_latents, saved.activation) == (160, 640, sk.TopK(24))
    norms = saved.decoder_norms()  # equal, and 1 before the scale of inputs was folded in
    torch.testing.assert_close(norms / norms.mean(), torch.ones(640), rtol=1e-4, atol=0)

    held_out = list(sk.load_documents([str(example.EVAL_DATA)]))[60:]
    model = AutoModelForCausalLM.from_pretrained(example.MODEL_DIR).eval()
    tokenizer = AutoTokenizer.from_pretrained(example.MODEL_DIR)
    (row,) = sk.evaluate(model, tokenizer, {SITE: saved}, held_out, tokens=4_000, baselines=["zero"], bootstrap=0).sites
    assert figure(text, "held out: FVU") == pytest.approx(row.fvu, abs=1e-4)
    assert figure(text, "ΔCE") == pytest.approx(row.delta_ce.nats, abs=1e-4)
    assert 0 < row.delta_ce.nats < 0.25 * figure(text, "zeros in its place:")


@pytest.mark.peers
@pytest.mark.parametrize("tool", ["sae_lens", "dictionary_learning", "sparsify"])
def test_train_with_a_tool_ends_as_the_tool_alone_does(  # type: ignore[no-untyped-def]
    printed, tool: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip(tool)
    script = f"train_with_{tool.replace('sae_lens', 'saelens')}.py"
    sizes = ("--steps", "12", "--own-steps", "4", "--batch", "256", "--latents", "640", "--k", "16",
             "--documents", "12", "--eval-tokens", "300")  # fmt: skip
    text = printed(script, *sizes, "--out", str(tmp_path / "ours"))
    assert re.search(r"^4 steps before, then 8 taken over$", text, re.MULTILINE), text
    before, after = figure(text, "seconds per step:"), figure(text, "before,")
    assert figure(text, "after:") == pytest.approx(before / after, rel=0.05)
    monkeypatch.setattr(sk, "accelerate", lambda trainer, optimizer: trainer)
    alone = printed(script, *sizes, "--out", str(tmp_path / "theirs"))
    assert "then 0 taken over" in alone

    where = f"unnamed/{SITE.removeprefix('model.')}" if tool == "sparsify" else ""
    ours, theirs = (sk.load(tmp_path / name / where) for name in ("ours", "theirs"))
    for name, value in theirs.named_parameters():
        assert (value - ours.get_parameter(name)).norm() < 1e-5 * value.norm(), name
    documents = list(sk.load_documents([str(example.EVAL_DATA)]))[12:]
    model = AutoModelForCausalLM.from_pretrained(example.MODEL_DIR).eval()
    tokenizer = AutoTokenizer.from_pretrained(example.MODEL_DIR)
    (row,) = sk.evaluate(model, tokenizer, {SITE: ours}, documents, tokens=300, baselines=["zero"], bootstrap=0).sites
    for found, words in ((row.fvu, "held out: FVU"), (row.delta_ce.nats, "ΔCE")):
        assert figure(text, words) == pytest.approx(found, abs=1e-4)
        assert figure(alone, words) == pytest.approx(found, rel=1e-3)
    assert 0 < row.delta_ce.nats < 0.5 * figure(text, "zeros in its place:")


def test_too_few_steps_of_either_kind_are_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(EXAMPLES))
    import bundled_text

    monkeypatch.setattr(sys, "argv", ["x", "--steps", "10", "--own-steps", "8"])
    with pytest.raises(SystemExit):
        bundled_text.arguments("", "a_tool")
    said = capsys.readouterr().err.splitlines()[-1]
    assert said == "x: error: --own-steps: got 8, need at most 7, 3 less than --steps"


@pytest.mark.slow
def test_write_a_kernel_is_right_on_the_bundled_decoder() -> None:
    """In a process of its own: it is to choose the interpreter before anything imports triton."""
    pytest.importorskip("triton")
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, str(EXAMPLES / "write_a_kernel.py")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    W_dec = load_file(example.SAE_DIRS[SITE] / "sae_weights.safetensors")["W_dec"][:256].double()
    assert figure(done.stdout, "mean squared norm") == pytest.approx(float(W_dec.square().sum(1).mean()), abs=1e-4)
    assert figure(done.stdout, "largest difference from the reference:") < 1e-6
    assert figure(done.stdout, "opcheck passed on") == 5
    assert figure(done.stdout, "worst error") <= 161
