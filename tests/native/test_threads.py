"""Whose threads compute: torch's OpenMP team where there is one, else our own pool; with the same bits."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from native_helpers import needs_native

pytestmark = needs_native

CODE = """
import hashlib
import os

import torch

import saekernels as sk
from saekernels.backends import cpu
from saekernels.backends.cpu import native

torch.set_num_threads(3)
torch.manual_seed(0)
x, W, W_dec = torch.randn(200, 96), torch.randn(3000, 96), torch.randn(3000, 96)

def digest():
    codes = sk.encode_topk(x, W, k=20)
    out = sk.decode(*codes, W_dec)
    parts = [*codes, out, *sk.encode_threshold(x, W, None, 20.0)]
    return hashlib.sha256(b"".join(part.numpy().tobytes() for part in parts)).hexdigest()

found = digest()
torch.mm(x, x.T)
assert digest() == found
child = os.fork()  # where torch's team is gone, our own pool serves
if child == 0:
    torch.set_num_threads(3)
    os._exit(0 if digest() == found and not native.module().uses_host_threads() else 1)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
print(found, cpu.describe()["threads"])
"""


def run(threads: str) -> list[str]:
    environment = {**os.environ, "SAEKERNELS_THREADS": threads}
    argv = [sys.executable, "-c", CODE]
    done = subprocess.run(argv, env=environment, capture_output=True, text=True, check=True, cwd="/", timeout=120)
    return done.stdout.strip().split(" ", 1)


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_both_kinds_of_threads_give_the_same_bits_also_after_a_fork() -> None:
    own, host = run("own"), run("")
    assert own[0] == host[0]
    assert own[1] == "3, its own"
    assert host[1] in ("3, those of torch", "3, its own")
