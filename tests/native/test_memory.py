"""Working memory of the native kernels, measured as the high-water mark of a process: bounded, whatever F is."""

from __future__ import annotations

from pathlib import Path

import pytest

import ranks
from native_helpers import needs_native
from saekernels.backends import cpu

pytestmark = [
    needs_native,
    pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs /proc/self/clear_refs"),
]

MEASURE = """
import ctypes
import sys
import torch
import saekernels as sk
from saekernels.backends import cpu

T, d, F, k, what, screen = int(sys.argv[1]), 96, int(sys.argv[2]), 64, sys.argv[3], sys.argv[4]
ctypes.CDLL(None).mallopt(-3, 65536)  # M_MMAP_THRESHOLD: what is freed goes back at once, and is not used again
torch.set_num_threads(2)
cpu.set_screening(screen)
torch.manual_seed(0)
x, W = torch.randn(T, d), torch.randn(F, d)
prepared = sk.prepare(W)
if what.startswith("loss"):
    h = (x * 0.1).to(torch.bfloat16 if "bfloat16" in what else torch.float32).requires_grad_()
    head = W.to(h.dtype).requires_grad_("W_U" in what)
    other, targets = (h * 1.1).detach().requires_grad_(), torch.randint(0, F, (T,))
    losses = sk.linear_ce_kl(h, other, head, targets)
    total = losses.ce_p.sum() + losses.ce_q.sum() + losses.kl.sum()
    leaves = (h, other, head)[: 3 if head.requires_grad else 2]
calls = {
    "top-k": lambda: sk.encode_topk(x, W, k=k, prepared=prepared),
    "top-k, unprepared": lambda: sk.encode_topk(x, W, k=k),
    "top-k, all rows fall back": lambda: sk.encode_topk(x * 0, W, k=k, prepared=prepared),
    "loss": lambda: sk.linear_ce_kl(h, other, head, targets),
    "loss gradient": lambda: torch.autograd.grad(total, leaves),
    "threshold": lambda: sk.encode_threshold(x, W, None, 35.0, prepared=prepared),
}

def field(name):
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) for line in lines if line.startswith(name)) / 1024

sk.encode_topk(x[:64], W[:1000], k=k)  # code and thread stacks are loaded
ctypes.CDLL(None).malloc_trim(0)
with open("/proc/self/clear_refs", "w") as file:
    file.write("5")  # the high-water mark starts again from here
before = field("VmRSS")
out = calls[what if what in calls else what.split(",")[0]]()
kept = sum(part.numel() * part.element_size() for part in out) / 2**20
print(field("VmHWM") - before - kept)
"""


def working_memory(T: int, F: int, what: str, screen: str) -> float:
    """MiB beyond inputs, outputs and prepared weights."""
    code, out, err = ranks.alone(MEASURE, str(T), str(F), what, screen)
    assert code == 0, err
    return float(out)


# In every run two screens and two ways to call one: the rest is the same code, for a minute more.
CALLS = {"fp32": "", "bf16": "top-k, unprepared", "int16": "threshold", "int8": ""}


@pytest.mark.parametrize(
    ("what", "screen"),
    [
        pytest.param(what, screen, marks=() if CALLS[screen] == what else pytest.mark.slow)
        for what in ("top-k", "top-k, unprepared", "threshold")
        for screen in CALLS
    ],
)
def test_at_most_64_mib_for_4096_rows_and_131072_latents(what: str, screen: str) -> None:
    assert 0 < working_memory(4096, 131072, what, screen) <= 64


@pytest.mark.parametrize(
    ("what", "dtype", "tokens"),
    [
        ("loss gradient", "bfloat16", 1024),
        *(
            pytest.param(what, dtype, 4096, marks=pytest.mark.slow)
            for what in ("loss", "loss gradient")
            for dtype in ("float32", "bfloat16")
        ),
    ],
)
def test_losses_and_their_gradients_need_no_logits(what: str, dtype: str, tokens: int) -> None:
    """Logits of 1024 tokens would be 256 MiB in bfloat16."""
    assert 0 < working_memory(tokens, 131072, f"{what}, {dtype}", "auto") <= 64


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_gradient_of_the_unembedding_grows_with_tokens_alone(dtype: str) -> None:
    """T * (d + 768) elements a few times: dz of 768 words for both streams in two layouts, and packed streams.

    Without products of bfloat16 in hardware they are widened for those of float32.
    """
    few, many = (working_memory(T, 131072, f"loss gradient, W_U, {dtype}", "auto") for T in (256, 2048))
    element = 2 if dtype == "bfloat16" and cpu.simd_level() in ("amx", "avx512_bf16", "neon_bf16") else 4
    assert many - few <= 1.2 * (2048 - 256) * 2 * (2 * 768 * element + 96 * (2 * element + 4)) / 2**20
    assert few <= 40


def test_rows_that_fall_back_stay_within_it() -> None:
    assert 0 < working_memory(512, 131072, "top-k, all rows fall back", "fp32") <= 64


def test_it_does_not_grow_with_latents() -> None:
    small, large = (working_memory(2048, F, "top-k", "fp32") for F in (32768, 131072))
    assert large <= small + 16
