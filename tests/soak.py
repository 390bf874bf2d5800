"""The soak: all ops, SAEs, splices, evaluations and files in turns for a long time, in constant memory.

    python tests/soak.py --minutes 60     # the long one
    python tests/soak.py --minutes 2      # what CI runs

Every round does the same work on the same inputs, with one thread and two in turns, and must give the same bits. Memory
(RssAnon, so neither files nor shared libraries), open files and threads are read after each round. Exit code 1 if a
result differs, if the median of the last quarter of the rounds is more than 8 MiB above that of the second quarter, or
if files or threads have become more.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import hashlib
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

sys.path[:0] = [str(Path(__file__).parent / "helpers")]  # as pytest has it

import torch  # noqa: E402
from torch import Tensor  # noqa: E402

import saekernels as sk  # noqa: E402
import tiny_lm  # noqa: E402
from saekernels.backends import registry  # noqa: E402
from saekernels.eval import evaluate  # noqa: E402

# glibc's malloc has it, others do not.
_LIBC = ctypes.CDLL(None) if hasattr(ctypes.CDLL(None), "malloc_trim") else None
LIMIT_MIB = 8.0
FEWEST_ROUNDS = 12
Work = Callable[[], list[Tensor]]


class Held(NamedTuple):
    """What the process holds after a round."""

    mib: float
    files: int
    threads: int


def held() -> Held:
    """RssAnon in MiB, open file descriptors, threads. What is free in the allocator's heaps is given back first."""
    gc.collect()
    if _LIBC is not None:
        _LIBC.malloc_trim(0)  # else a heap that stays large after one busy moment looks like a leak
    with open("/proc/self/status") as status:
        fields = dict(line.split(":", 1) for line in status)
    return Held(
        int(fields["RssAnon"].split()[0]) / 1024, len(os.listdir("/proc/self/fd")), int(fields["Threads"].split()[0])
    )


def ops() -> list[Tensor]:
    """Every op, forward and backward, in three dtypes, at one token and at many."""
    out: list[Tensor] = []
    for tokens, dtype in ((1, torch.float32), (200, torch.float32), (40, torch.bfloat16), (40, torch.float16)):
        torch.manual_seed(tokens)
        x, W, D = (torch.randn(n, 96, dtype=dtype) for n in (tokens, 3000, 3000))
        b = torch.randn(3000)
        leaves = [t.requires_grad_() for t in (x, W, b, D)]
        codes = sk.encode_topk(x, W, b, k=24)
        y = sk.decode(codes.values, codes.indices, D)
        grads = torch.autograd.grad(y.float().square().sum(), leaves)
        with torch.no_grad():
            prepared = sk.prepare(W) if registry.load("cpu").available() is None else None
            csr = sk.encode_threshold(x, W, b, torch.full((3000,), 8.0), prepared=prepared)
            z = sk.decode_csr(csr.values, csr.indices, csr.offsets, D)
            targets = torch.arange(tokens)
            loss = sk.linear_ce_kl(x, y.to(dtype), W, targets, softcap=30.0)
            best = sk.topk(x @ D.T, 5)
        out += [codes.values, codes.indices, y, *grads, *csr, z, *loss, *best]
    return out


def saes() -> list[Tensor]:
    """SAEs of several kinds, saved, loaded again, trained a step."""
    out: list[Tensor] = []
    with tempfile.TemporaryDirectory() as folder:
        for number, activation in enumerate((sk.TopK(8), sk.JumpReLU(), sk.BatchTopK(), sk.Gated(), sk.GroupMax(16))):
            torch.manual_seed(number)
            sk.save(sk.SAE(48, 256, activation), Path(folder) / str(number)) if number < 2 else None
            sae = sk.load(Path(folder) / str(number)) if number < 2 else sk.SAE(48, 256, activation)
            optimizer = torch.optim.SGD(sae.parameters(), lr=0.01)
            x = torch.randn(64, 48)
            for _ in range(3):
                optimizer.zero_grad()
                (sae(x) - x).square().mean().backward()
                optimizer.step()
            out.append(sae(x).detach())
    return out


def models() -> list[Tensor]:
    """A splice, and a whole evaluation with a folder of its own."""
    model, tokenizer = tiny_lm.trained_model(), tiny_lm.tokenizer()
    ids = tokenizer(tiny_lm.PARAGRAPH, return_tensors="pt").input_ids[:, :24]
    with torch.no_grad(), sk.splice(model, tiny_lm.saes()):
        logits = model(input_ids=ids).logits
    with tempfile.TemporaryDirectory() as folder:
        given = model, tokenizer, tiny_lm.saes(), tiny_lm.documents()
        report = evaluate(*given, bootstrap=20, checkpoint=Path(folder) / "run")
    everything = report.all_sites or report.sites[0]
    return [logits, torch.tensor([everything.delta_ce.nats, everything.fvu])]


WORK: dict[str, Work] = {"ops": ops, "saes": saes, "models": models}


def digest(outs: list[Tensor]) -> str:
    """Of values and shapes, NaN included."""
    running = hashlib.sha256()
    for out in outs:
        running.update(f"{tuple(out.shape)} {out.dtype}".encode())
        running.update(out.detach().reshape(-1).contiguous().view(torch.uint8).numpy().tobytes())
    return running.hexdigest()


def verdict(rounds: list[Held]) -> list[str]:
    """What grew. The first quarter is left out: caches fill, the allocator finds its size."""
    quarter = len(rounds) // 4
    early, late = rounds[quarter : 2 * quarter], rounds[-quarter:]
    found = []
    for name in Held._fields:
        before, after = (statistics.median(getattr(one, name) for one in part) for part in (early, late))
        if after - before > (LIMIT_MIB if name == "mib" else 0):
            found.append(f"{name} grew from {before:,.1f} to {after:,.1f}")
    return found


def soak(seconds: float, work: dict[str, Work], fewest: int = FEWEST_ROUNDS) -> list[str]:
    """Rounds until the time is over, at least `fewest`; what was wrong."""
    started, told = time.monotonic(), 0.0
    first: dict[str, str] = {}
    rounds: list[Held] = []
    while time.monotonic() - started < seconds or len(rounds) < fewest:
        torch.set_num_threads(1 + len(rounds) % 2)  # our results do not depend on it
        for name, one in work.items():
            if name == "models":
                torch.set_num_threads(1)  # torch's own products do
            if first.setdefault(name, found := digest(one())) != found:
                return [f"round {len(rounds)}: {name} gave other bits than the first round"]
        rounds.append(held())
        if time.monotonic() - told > 60:
            told = time.monotonic()
            print(f"{told - started:7.0f} s  round {len(rounds):6}  {rounds[-1].mib:8.1f} MiB", flush=True)
    print(f"{len(rounds)} rounds in {time.monotonic() - started:.0f} s, {rounds[-1].mib:.1f} MiB", flush=True)
    return verdict(rounds)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60.0)
    minutes = parser.parse_args().minutes
    if not 0 < minutes < float("inf"):
        parser.error(f"argument --minutes: need a finite number above 0, got {minutes}")
    problems = soak(minutes * 60, WORK)
    for problem in problems:
        print(f"FAILED: {problem}", file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
