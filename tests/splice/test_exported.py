"""torch.export of SAEs and of spliced models, and AOTInductor's package of one, in a process of its own."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import saekernels as sk
from blocks import Blocks

DYNAMIC = ({0: torch.export.Dim.DYNAMIC},)
ACTIVATIONS = (sk.TopK(4), sk.AbsTopK(4), sk.GroupMax(4), sk.ReLU(), sk.JumpReLU(), sk.BatchTopK(4), sk.Gated())


def exported_and_loaded(module: nn.Module, example: Tensor) -> nn.Module:
    program = torch.export.export(module, (example,), dynamic_shapes=DYNAMIC)
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    return torch.export.load(file).module()


@torch.no_grad()
@pytest.mark.parametrize("activation", ACTIVATIONS, ids=lambda one: one.name)
def test_an_exported_sae_gives_the_same_bits(activation: object) -> None:
    sae = sk.SAE(8, 64, activation).eval()  # type: ignore[arg-type]
    sae.W_enc.add_(0.1 * torch.randn(64, 8))
    again = exported_and_loaded(sae, torch.randn(5, 8))
    x = torch.randn(9, 8)
    assert torch.equal(again(x), sae(x))


def spliced_model() -> tuple[nn.Module, sk.Splice]:
    torch.manual_seed(0)
    model = Blocks(layers=2).eval()
    sites = {"layers.0": sk.SAE(16, 64, sk.TopK(4)), "layers.1.mlp": sk.SAE(16, 64, sk.JumpReLU())}
    return model, sk.splice(model, sites, untouched=[0, 7], leave_first=1)


@torch.no_grad()
def test_an_exported_model_keeps_its_splice() -> None:
    """The SAEs go into the program as constants, and their ops stay ops; outside of the block it is spliced still."""
    model, splice = spliced_model()
    ids = torch.randint(0, 50, (6, 5))
    clean = model(ids)
    with splice:
        want = model(ids)
        again = exported_and_loaded(model, ids[:2])
    assert torch.equal(again(ids), want)
    assert not torch.equal(want, clean)
    assert torch.equal(model(ids), clean)


_RUN = """
import sys, torch
if "without" not in sys.argv:
    import saekernels
torch.set_num_threads(1)
ids, want = torch.load(sys.argv[2], weights_only=True)
got = torch._inductor.aoti_load_package(sys.argv[1])(ids)
print(torch.equal(got, want) or (got - want).abs().max().item())
"""


@torch.no_grad()
@pytest.mark.slow
def test_a_package_of_aotinductor_is_run_by_another_process(tmp_path: Path) -> None:
    """About a minute of g++ on a free core. Without saekernels in the process the op is missing, and is named."""
    model, splice = spliced_model()
    ids = torch.randint(0, 50, (6, 5))
    with splice:
        want = model(ids)
        program = torch.export.export(model, (ids[:2],), dynamic_shapes=DYNAMIC)
    package = torch._inductor.aoti_compile_and_package(program, package_path=str(tmp_path / "spliced.pt2"))
    torch.save((ids, want), tmp_path / "want.pt")

    def run(*more: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", _RUN, package, str(tmp_path / "want.pt"), *more]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    done = run()
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "True" or float(done.stdout) < 1e-5  # the model's own sums may be fused
    missing = run("without")
    assert missing.returncode != 0
    assert "saekernels::" in missing.stderr
