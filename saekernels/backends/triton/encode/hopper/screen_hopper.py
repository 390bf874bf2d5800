"""screen_hopper: starts the warp-specialised screen, `screen_gluon`, where it is asked for and can serve.

`configs.Config.ring` asks for it. Where it cannot, the portable one does as well, only slower, which is
counted by reason and said once.
"""

from __future__ import annotations

import logging
from collections import Counter

import triton
import triton.language as tl
from torch import Tensor

from saekernels.backends.triton import launch
from saekernels.backends.triton.configs import TABLE, Config, Ring
from saekernels.backends.triton.encode.append import Form
from saekernels.backends.triton.encode.operands import Operands
from saekernels.backends.triton.keys import Candidates
from saekernels.backends.triton.product import Tile, describable, sizes_of

try:
    from triton.experimental.gluon import language as gl
    from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

    from saekernels.backends.triton.encode.hopper import screen_gluon

    MISSING = ""
except (ImportError, AttributeError) as error:  # an experimental part of Triton, whose names come and go
    MISSING = str(error)

HOPPER = 90  # whose products these are
SERVED = "served"
_counts: Counter[str] = Counter()
_LOG = logging.getLogger("saekernels")


def counts() -> dict[str, int]:
    """Launches that were asked for in this process: how many are `SERVED`, and how many were not, by the reason."""
    return dict(_counts)


def state() -> str:
    """Whether the table asks for it, and what became of its launches in this process: a line for `saekernels info`."""
    asked = any(config.ring is not None for config in TABLE.values())
    left = [f"{count} left to the portable one: {reason}" for reason, count in _counts.items() if reason != SERVED]
    served = [f"{_counts[SERVED]} launched"] if SERVED in _counts else []
    return "; ".join(["asked for by the table" if asked else "off in the table", *served, *left])


def screened(of: Operands, threshold: Tensor, found: Candidates, form: Form, config: Config) -> bool:
    """Start the warp-specialised screen, if the configuration asks for it and nothing speaks against it."""
    if config.ring is None:
        return False
    architecture = launch.architecture(of.x.device)
    x = of.x if of.x.stride(1) == 1 else of.x.contiguous()
    reason = refusal(of._replace(x=x), architecture)
    if reason is not None:
        if reason not in _counts:
            _LOG.warning("the warp-specialised screen is asked for and does not serve: %s", reason)
        _counts[reason] += 1
        return False
    _counts[SERVED] += 1
    _start(of._replace(x=x), threshold, found, form, config.ring, config.group)
    return True


def refusal(of: Operands, architecture: int) -> str | None:
    """Why it cannot serve, or None."""
    if MISSING:
        return f"Gluon does not load: {MISSING}"
    if architecture != HOPPER:
        return f"needs compute capability 9.0, the device has {architecture / 10}"
    if of.x.element_size() != 2 or of.rescored or of.vectors.row_scale is not None:
        return "serves products of bfloat16 and float16"
    if of.vectors.factor is not None:
        return "does not multiply by a scale"
    for name, matrix in (("x", of.x), ("W_enc", of.W)):
        if not describable(matrix):
            return f"{name}: needs rows apart, at multiples of 16 bytes, with their elements side by side"
    return None


def _start(of: Operands, threshold: Tensor, found: Candidates, form: Form, ring: Ring, group: int) -> None:
    BM, BN, BK, stages, parts = ring
    tiles = triton.cdiv(of.x.shape[0], BM) * triton.cdiv(of.W.shape[0], BN)
    even = of.x.shape[1] % BK == 0
    launch.launch(
        screen_gluon.screen_hopper_kernel,
        (min(tiles, launch.multiprocessors(of.x.device)),),
        of.x.device,
        num_warps=screen_gluon.WARPS,
        x=_descriptor(of.x, BM // parts, BK),
        W=_descriptor(of.W, BN, BK),
        sizes=sizes_of(of.x, of.W),
        vectors=of.vectors,
        threshold=threshold,
        found=found,
        FORM=form,
        TILE=Tile(*map(tl.constexpr, (BM, BN, BK, group, even, True, "ieee", False))),
        STAGES=stages,
        PARTS=parts,
    )


def _descriptor(matrix: Tensor, rows: int, depth: int) -> TensorDescriptor:
    """Of blocks [rows, depth], in shared memory as products read them; zeros beyond the matrix."""
    block = [rows, depth]
    layout = gl.NVMMASharedLayout.get_default_for(block, gl.float16)  # bfloat16's as well
    return TensorDescriptor.from_tensor(matrix, block, layout)
