"""How a new op gets in, on a small one: the squared norm of every row of a decoder, [F, d] -> [F].

    python examples/write_a_kernel.py       # without a GPU in Triton's interpreter

Five steps, in the order in which the house takes them: what it means (the reference), how it is computed (a kernel and
its launcher), what torch has to know of it (schema, shapes, gradient), what torch says to that (opcheck), and the test
against float64. In the package these are files of backends/reference, backends/triton, ops and tests: CONTRIBUTING.md.
"""

from __future__ import annotations

import os
from typing import Any

import torch

# triton.jit reads it where a kernel is defined.
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

import triton
import triton.language as tl
from torch import Tensor

from saekernels import example, load
from saekernels.backends.triton.launch import launch

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
ROWS, COLUMNS = 16, 64


# 1. The reference says what the op means, in torch, accumulating in float32. It is what kernels are compared with.
def reference(W: Tensor) -> Tensor:
    return W.float().square().sum(1)


# 2. The kernel: a program has ROWS rows and walks along their columns. Sums have one fixed order, and no atomics.
@triton.jit
def squared_norms_kernel(W, out, F, D, stride_f, stride_d, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    acc = tl.zeros((ROWS, COLUMNS), tl.float32)
    for start in range(0, D, COLUMNS):
        column = start + tl.arange(0, COLUMNS)
        inside = (row < F)[:, None] & (column < D)[None, :]
        part = tl.load(W + row[:, None] * stride_f + column[None, :] * stride_d, mask=inside, other=0.0).to(tl.float32)
        acc += part * part
    tl.store(out + row, tl.sum(acc, 1), mask=row < F)


#    Its launcher: makes the output and says how large the grid is. Any strides: nothing is copied to be contiguous.
def launch_squared_norms(W: Tensor) -> Tensor:
    F, D = W.shape
    out = torch.empty(F, dtype=torch.float32, device=W.device)
    sizes = {"F": F, "D": D, "stride_f": W.stride(0), "stride_d": W.stride(1), "ROWS": ROWS, "COLUMNS": COLUMNS}
    launch(squared_norms_kernel, (triton.cdiv(F, ROWS),), W.device, W=W, out=out, **sizes)
    return out


# 3. The op: checks that name the argument, the shape function for tensors without data, the gradient.
def check(W: Tensor) -> None:
    if W.dim() != 2 or W.dtype not in (torch.float32, torch.float16):
        raise ValueError(f"W: got {W.dtype} of shape {list(W.shape)}, need float32 or float16 [F, d]")


def kernel(W: Tensor) -> Tensor:
    check(W)
    return launch_squared_norms(W)


def shapes(W: Tensor) -> Tensor:
    check(W)
    return W.new_empty(W.shape[0], dtype=torch.float32)


def backward(ctx: Any, grad: Tensor) -> Tensor:
    (W,) = ctx.saved_tensors
    return (2 * grad[:, None] * W).to(W.dtype)


LIBRARY = torch.library.Library("write_a_kernel", "DEF")
LIBRARY.define("squared_norms(Tensor W) -> Tensor", tags=(torch.Tag.pt2_compliant_tag,))
LIBRARY.impl("squared_norms", kernel, "CompositeExplicitAutograd")
torch.library.register_fake("write_a_kernel::squared_norms", shapes, lib=LIBRARY)
torch.library.register_autograd(
    "write_a_kernel::squared_norms",
    backward,
    setup_context=lambda ctx, inputs, output: ctx.save_for_backward(*inputs),
    lib=LIBRARY,
)
squared_norms = torch.ops.write_a_kernel.squared_norms


# 5. The test: against float64, within the rounding of a float32 sum; odd sizes, no rows at all, transposed weights.
def worst_error(W: Tensor) -> float:
    """The largest relative error of a row, in units of float32's rounding."""
    exact = W.double().square().sum(1)
    errors = (squared_norms(W).double() - exact).abs() / exact.clamp(min=1e-300)
    return errors.max().item() / 2**-24 if len(errors) else 0.0


def main() -> None:
    sizes = ((0, 5), (1, 1), (33, 100), (16, 64))
    made = [torch.randn(F, d, device=DEVICE) for F, d in sizes] + [torch.randn(70, 9, device=DEVICE).T]
    for W in made:
        # 4. Schema, shapes, gradient and compilation agree with each other.
        torch.library.opcheck(squared_norms.default, (W.clone().requires_grad_(),))
        assert worst_error(W) <= W.shape[1] + 1, W.shape
    W_dec = load(example.SAE_DIRS["model.layers.2"]).W_dec.detach().to(DEVICE)[:256]
    difference = (squared_norms(W_dec) - reference(W_dec)).abs().max().item()
    print(f"opcheck passed on {len(made)} shapes")
    print(f"bundled decoder: mean squared norm {squared_norms(W_dec).mean().item():.4f}")
    print(f"largest difference from the reference: {difference:.1e}; worst error {worst_error(W_dec):.2f} roundings")


if __name__ == "__main__":
    main()
