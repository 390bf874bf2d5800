"""Native steps of Adam have the same bits on every SIMD level, for any number of threads and any layout."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from native_helpers import LEVELS, best_level_again, needs_native  # noqa: F401
from oracle import same_bits
from saekernels.backends import cpu
from saekernels.backends.adam_step import AdamStep

pytestmark = needs_native

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# Rows of less than a vector, of less than 32 lanes, and with something left over; more rows than a strip of them.
SHAPES = ((1, 1), (3, 5), (70, 31), (150, 300))


@dataclass
class Case:
    tensors: tuple[Tensor, ...]
    step: AdamStep

    def run(self, turned: bool = False) -> tuple[Tensor, ...]:
        """Parameter and moments after a step; turned: with contiguous columns."""
        mine = [one.clone().T.contiguous().T if turned else one.clone() for one in self.tensors]
        cpu.adam_step(mine[0], mine[1], mine[2], mine[3], self.step)
        return tuple(one.contiguous() for one in mine)


def cases(dtype: torch.dtype) -> list[Case]:
    made = []
    for shape in SHAPES:
        for project, unit_norm, decay in ((False, False, 0.0), (True, True, 0.01), (True, False, 0.0)):
            p, g, m = (torch.randn(shape).to(dtype) for _ in range(3))
            p[0] = 0
            step = AdamStep(0.7, decay, 0.999, 0.9, 0.999, 0.02, 0.3, 1e-8, project, unit_norm)
            made.append(Case((p, g, m, torch.rand(shape).to(dtype)), step))
    return made


@pytest.mark.parametrize("dtype", DTYPES)
def test_levels_and_layouts_have_the_same_bits(dtype: torch.dtype) -> None:
    made = cases(dtype)
    cpu.set_simd_level(LEVELS[-1])
    want = [case.run() for case in made]
    for level in LEVELS:
        cpu.set_simd_level(level)
        for case, result in zip(made, want, strict=True):
            assert same_bits(case.run(), result), (level, case.step, case.tensors[0].shape)
            assert same_bits(case.run(turned=True), result), (level, case.step, case.tensors[0].shape, "turned")


def test_any_number_of_threads_has_the_same_bits() -> None:
    shape = (400, 300)  # enough for four threads
    for project in (False, True):
        tensors = (*(torch.randn(shape) for _ in range(3)), torch.rand(shape))
        case = Case(tensors, AdamStep(0.7, 0.0, 1.0, 0.9, 0.999, 0.02, 0.3, 1e-8, project, project))
        for turned in (False, True):
            torch.set_num_threads(1)
            want = case.run(turned)
            for threads in (2, 3, 5):
                torch.set_num_threads(threads)
                assert same_bits(case.run(turned), want), (threads, project, turned)


def test_memory_beside_the_tensors_stays() -> None:
    """Rows in the middle of a larger tensor, off the alignment of vectors."""
    for project in (False, True):
        large = [torch.randn(13 * 37 + 6) for _ in range(4)]
        before = [one.clone() for one in large]
        inside = [one[3:-3].view(13, 37) for one in large]
        inside[3].abs_()
        step = AdamStep(1.0, 0.0, 1.0, 0.9, 0.999, 0.02, 0.3, 1e-8, project, project)
        want = Case(tuple(one.clone() for one in inside), step).run()
        cpu.adam_step(inside[0], inside[1], inside[2], inside[3], step)
        assert same_bits(tuple(one.contiguous() for one in inside), want)
        for one, old in zip(large, before, strict=True):
            assert torch.equal(one[:3], old[:3])
            assert torch.equal(one[-3:], old[-3:])
