"""`saekernels plan`: its counts against evaluations that were made, its text, its refusals."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import tiny_lm
from cli import fails
from saekernels.bench.scale import Job, predict
from saekernels.bench.scale.machine import GPUS, here
from saekernels.bench.scale.predict import body_layers, encodings, sae_bytes
from saekernels.cli import main
from saekernels.cli.commands.plan import duration, size
from saekernels.eval import Document, evaluate
from saekernels.eval.passes import layer_reuse
from saekernels.parallel.rows import rows_of
from saekernels.sae.module import SAE

JOB = Job(latents=10**6, tokens=10**8, sites=4, documents=10**5)


def tiny_job(model: Any, sites: int, tokens: int) -> Job:
    return Job(
        latents=64,
        tokens=tokens,
        sites=sites,
        width=tiny_lm.WIDTH,
        k=8,
        parameters=model.num_parameters(),
        layers=4,
        vocabulary=320,
        context=24,
        dtype=torch.float32,
    )


@pytest.mark.parametrize("sites", [1, 2, 4])
def test_layers_and_encodings_are_those_of_an_evaluation(sites: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Positions that pass through blocks and SAEs are counted, trial runs left out."""
    model = tiny_lm.model(num_hidden_layers=4, initializer_range=0.1)
    job = tiny_job(model, sites, 1)
    saes = {f"model.layers.{job.depth(i) - 1}": tiny_lm.sae(i) for i in range(sites)}
    layers = encoded = 0
    real = torch.nn.Module.__call__
    block = type(model.model.layers[0])

    def counting(self: Any, *args: Any, **kwargs: Any) -> Any:
        nonlocal layers
        if isinstance(self, block) and getattr(vars(self).get("forward"), "__module__", "") != layer_reuse.__name__:
            layers += args[0].numel() // tiny_lm.WIDTH if args[0].shape[1] == 24 else 0
        return real(self, *args, **kwargs)

    encode = SAE.encode

    def encoding(self: SAE, x: torch.Tensor) -> Any:
        nonlocal encoded
        encoded += x.numel() // tiny_lm.WIDTH if x.shape[1] == 24 else 0
        return encode(self, x)

    monkeypatch.setattr(torch.nn.Module, "__call__", counting)
    monkeypatch.setattr(SAE, "encode", encoding)
    text = Document(tiny_lm.PARAGRAPH * 3)
    tokens = 8 * 23 - 8
    report = evaluate(model, tiny_lm.tokenizer(), saes, [text], tokens=tokens, bootstrap=0)
    assert report.run["layer_reuse"] == "on"
    assert len(report.run["computed_once"]) == 2 * (sites + (sites > 1))
    positions = 8 * 24
    expected = 2 * job.layers + sum(body_layers(job, run) for run in job.plan().runs)
    trials = len(report.run["computed_once"])  # of constant runs, on one window each
    assert positions * expected <= layers <= positions * expected + trials * 24 * job.layers
    assert encoded == positions * encodings(job)
    assert report.run["passes"] == len(job.plan().runs) + 2 - trials


@given(
    st.integers(1, 40),
    st.integers(1, 4),
    st.integers(0, 3),
    st.sampled_from(list(GPUS)),
)
def test_more_text_and_more_processes_scale(sites: int, factor: int, spread: int, gpu: str) -> None:
    job = replace(JOB, sites=sites % 32 + 1)
    one = predict(job, GPUS[gpu])
    longer = predict(replace(job, tokens=job.tokens * factor), GPUS[gpu])
    assert longer.total_seconds == pytest.approx(one.total_seconds * factor)
    assert longer.total_memory == one.total_memory
    shared = predict(replace(job, processes=2**spread), GPUS[gpu])
    assert shared.total_seconds == pytest.approx(one.total_seconds / 2**spread)
    assert shared.total_memory == one.total_memory
    assert sum(shared.received.values()) == 0
    cut = predict(replace(job, processes=2**spread, latent_parallel=2**spread), GPUS[gpu])
    assert cut.memory["SAEs"] == pytest.approx(one.memory["SAEs"] / 2**spread, rel=1e-3)
    assert cut.seconds["encoders"] <= one.seconds["encoders"]
    assert (sum(cut.received.values()) > 0) == (spread > 0)


@pytest.mark.parametrize("ranks", [1, 3, 4])
def test_bytes_of_saes(ranks: int) -> None:
    job = replace(JOB, latents=1000, width=24, sites=2, processes=ranks * 2, latent_parallel=ranks)
    own = max(map(len, rows_of(1000, tiny_lm.sae().activation, ranks)))
    held = sum(value.numel() for value in SAE(24, own, tiny_lm.sae().activation).parameters()) * 4 * job.sites
    assert sae_bytes(job) == held


def test_this_machine_is_measured() -> None:
    machine = here()
    assert 1e-3 < machine.card.fp32 < 100
    assert 1 < machine.card.memory < 2000
    assert not machine.gpu
    assert 0 < predict(tiny_job(tiny_lm.model(), 1, 10**4), machine).total_seconds < 3600


def test_the_plan_of_sixteen_million_latents(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "plan.json"
    command = ["plan", "--latents", "16e6", "--tokens", "1e10", "--gpu", "H200"]
    assert main(command) == 0
    told = capsys.readouterr().out
    assert "1 SAEs of 16,000,000 latents" in told
    assert "does NOT fit 141.0 GB" in told
    assert "nothing here was measured" in told
    assert main([*command, "--processes", "64", "--json", str(path)]) == 0
    told = capsys.readouterr().out
    record = json.loads(path.read_text())
    assert record["job"]["latent_parallel"] == 8, "as few as memory allows"
    assert "latents over 8 processes" in told, "as few as memory allows"
    assert record["prediction"]["fits"]
    assert record["prediction"]["total_memory"] < 141e9
    assert record["prediction"]["memory"]["SAEs"] == sae_bytes(Job(16 * 10**6, 10**10, processes=64, latent_parallel=8))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["--latents", "0.5"], "need a whole number such as 16e6"),
        (["--tokens", "nan"], "need a whole number such as 16e6"),
        (["--k", "1e9"], "--k: got 1000000000, need at most latents"),
        (["--sites", "33"], "--sites: got 33, need at most layers"),
        (["--processes", "6", "--latent-parallel", "4"], "--latent-parallel: got 4, need a divisor of 6 processes"),
        (["--parameters", "1000"], "--parameters: got 1000"),
        (["--processes", "1000000000000"], "--processes: got 1000000000000, need at most"),
        (["--sites", "1e7", "--layers", "1e7"], "--sites: got 10000000, need at most 1024"),
        (["--latents", "4", "--k", "4", "--processes", "8", "--latent-parallel", "8"], "need at most latents = 4"),
        (["--json", "/nowhere/at/all.json"], "--json: cannot write"),
    ],
)
def test_sizes_that_cannot_be(changes: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert message in fails(capsys, ["plan", "--latents", "1e6", "--tokens", "1e6", *changes])


def test_units() -> None:
    assert [duration(s) for s in (0.5, 119, 120, 7200, 172800)] == ["0.5 s", "119 s", "2.0 min", "2.0 h", "2.0 days"]
    assert [size(b) for b in (10, 2e6, 3e9, 4e12)] == ["0.0 kB", "2.0 MB", "3.0 GB", "4.0 TB"]
