"""Adam in one fused pass over memory, with what SAEs need beside it: a clip factor, and decoder rows of unit norm."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from saekernels.backends import registry
from saekernels.backends.adam_step import AdamStep
from saekernels.ops import _check

_MOMENTS = ("exp_avg", "exp_avg_sq")
# The rest of what torch.optim.Adam keeps in a group: how it computes, which says nothing here.
_THEIRS: dict[str, Any] = {"foreach": None, "capturable": False, "fused": None, "differentiable": False}


class Adam(torch.optim.Optimizer):
    """`torch.optim.Adam`, and AdamW, as one pass over memory on the CPU.

    The step is native for float32, bfloat16 and float16 parameters on the CPU, and plain torch elsewhere, for float64
    and for subclasses of tensors such as DTensor. Native steps have the same bits for any number of threads, on every
    SIMD level, and for any strides. Parameters, gradients and moments that lie alike in memory, transposed views among
    them, are taken as they lie; a gradient with other strides than its parameter is copied.

    Moments are kept in the parameter's dtype, as torch's are; all else is computed in float32 (float64 for float64)
    and rounded once. A state dict of `torch.optim.Adam` can be loaded, and the other way round.

    Args:
        params: tensors, named tensors, or groups of them, each of which may have its own of the options below.
        lr, betas, eps, weight_decay, maximize, decoupled_weight_decay: as of `torch.optim.Adam`. The learning rate may
            be a tensor of one element.
        amsgrad: only False.
        project: take from each gradient its part along each row of the parameter, [n, d], before anything else than
            the clip factor. A row of zeros has none.
        unit_norm: divide each row by its norm after the step. A row of zeros stays.
        dim: the dimension that rows lie along: 1, or 0 for a parameter [d, n] whose columns are meant.

    Raises:
        TypeError, ValueError: an option out of its range; a parameter that is not real and floating-point, or not 2-D
            where its rows matter.
    """

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        amsgrad: bool = False,
        *,
        maximize: bool = False,
        decoupled_weight_decay: bool = False,
        project: bool = False,
        unit_norm: bool = False,
        dim: int = 1,
    ) -> None:
        options = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "amsgrad": amsgrad,
            "maximize": maximize,
            "decoupled_weight_decay": decoupled_weight_decay,
            "project": project,
            "unit_norm": unit_norm,
            "dim": dim,
        }
        super().__init__(params, {**_THEIRS, **options})

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group, with options of its own. Raises as the constructor does, and then adds nothing."""
        before = len(self.param_groups)
        super().add_param_group(param_group)
        try:
            _check_group(self.param_groups[-1])
        except (TypeError, ValueError):
            del self.param_groups[before:]
            raise

    def __setstate__(self, state: dict[str, Any]) -> None:
        """What a state dict does not say, such as `project` in one of torch's, stays as it is."""
        own = getattr(self, "param_groups", None) or [{} for _ in state["param_groups"]]
        groups = [{**_THEIRS, **mine, **theirs} for mine, theirs in zip(own, state["param_groups"], strict=True)]
        for group in groups:
            _check_group(group)
        for param, moments in state["state"].items():
            if isinstance(param, Tensor):  # torch keeps what is of no parameter, too
                _check_state(param, moments)
        super().__setstate__({**state, "param_groups": groups})
        for param, moments in self.state.items():
            for name in _MOMENTS:
                if isinstance(param, Tensor) and moments and moments[name].stride() != param.stride():
                    moments[name] = torch.empty_like(param).copy_(moments[name])

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None, *, clip: float | Tensor | None = None) -> Any:
        """One step of all parameters that have a gradient.

        Args:
            closure: computes the loss, and the gradients, again.
            clip: multiplies all gradients, which stay as they are; see `clip_factor`.

        Returns:
            What the closure returned, or None.

        Raises:
            TypeError, ValueError: a gradient or moment that is sparse, or of another shape or device than its
                parameter; a clip factor that is not a finite number of at least 0. Nothing is changed then.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        factor = 1.0 if clip is None else float(clip)
        if not 0 <= factor < math.inf:
            raise ValueError(f"clip: got {factor}, need a finite number of at least 0")
        moving = [(one, group) for group in self.param_groups for one in group["params"] if one.grad is not None]
        for param, _ in moving:
            _check_tensors(param, self.state.get(param, {}))
        for param, group in moving:
            self._step_one(param, group, factor)
        return loss

    def _step_one(self, param: Tensor, group: dict[str, Any], clip: float) -> None:
        state = self.state[param]
        if not state:
            state["step"] = torch.tensor(0.0, dtype=torch.float32)
            for name in _MOMENTS:
                state[name] = torch.zeros_like(param, memory_format=torch.preserve_format)
        state["step"] = state["step"] + 1  # a number in state dicts of old
        if param.numel() == 0:
            return
        assert param.grad is not None
        tensors = [param.detach(), param.grad.detach(), *(state[name] for name in _MOMENTS)]
        numbers = _numbers(group, float(state["step"]), clip)
        if (numbers.project or numbers.unit_norm) and group["dim"] == 0:
            tensors = [one.t() for one in tensors]
        _kernels(param).adam_step(*tensors, numbers)
        torch.autograd.graph.increment_version(param)


def _kernels(param: Tensor) -> Any:
    """Kernels that take addresses are for plain tensors that have one.

    Where SAEKERNELS_BACKEND names one that has no step, the reference takes it: an optimizer is not what it chooses.
    """
    plain = type(param) in (Tensor, torch.nn.Parameter) and not torch.compiler.is_compiling()
    if plain and registry.serves("adam_step", param.device.type, param.dtype):
        return registry.select("adam_step", param.device.type, param.dtype)
    return registry.load("reference")


def _numbers(group: dict[str, Any], step: float, clip: float) -> AdamStep:
    lr, (beta1, beta2), decay = float(group["lr"]), group["betas"], float(group["weight_decay"])
    decoupled = group["decoupled_weight_decay"]
    return AdamStep(
        scale=-clip if group["maximize"] else clip,
        decay=0.0 if decoupled else decay,
        shrink=1 - lr * decay if decoupled else 1.0,
        beta1=beta1,
        beta2=beta2,
        step_size=lr / (1 - beta1**step),
        root=(1 - beta2**step) ** 0.5,
        eps=float(group["eps"]),
        project=group["project"],
        unit_norm=group["unit_norm"],
    )


def _check_group(group: dict[str, Any]) -> None:
    """What the constructor refuses, for one group."""
    for name in ("lr", "eps", "weight_decay"):
        value = group[name]
        if isinstance(value, Tensor) and name == "lr" and value.numel() == 1:
            value = value.item()
        _check.scalar(name, value, float)
        if not 0 <= value < math.inf:
            raise ValueError(f"{name}: got {value}, need a finite number of at least 0")
    betas = group["betas"]
    if len(betas) != 2 or not all(0 <= beta < 1 for beta in betas):
        raise ValueError(f"betas: got {betas}, need two numbers of at least 0 and below 1")
    for name in ("amsgrad", "differentiable"):
        if group.get(name):
            raise ValueError(f"{name}: got True, need False; torch.optim.Adam has it")
    for name in ("project", "unit_norm"):
        _check.scalar(name, group[name], bool)
    if group["dim"] not in (0, 1):
        raise ValueError(f"dim: got {group['dim']}, need 0 or 1")
    _check_params(group["params"], [name for name in ("project", "unit_norm") if group[name]])


def _check_params(params: Iterable[Tensor], by_row: list[str]) -> None:
    for param in params:
        _check.dtype_in("params", param, _check.FLOATS)
        if by_row and param.dim() != 2:
            raise ValueError(f"{by_row[0]}: got a parameter of shape {list(param.shape)}, need [n, d]")


def _check_state(param: Tensor, state: dict[str, Any]) -> None:
    """Before the first step there is none."""
    for name in ("step", *_MOMENTS) if state else ():
        if name not in state:
            raise ValueError(f"state: got {', '.join(sorted(state))}, need step, {', '.join(_MOMENTS)}, as of Adam")
    for name in _MOMENTS if state else ():
        if state[name].shape != param.shape:
            raise ValueError(f"{name}: got shape {list(state[name].shape)}, need {list(param.shape)}, the parameter's")


def _check_tensors(param: Tensor, state: dict[str, Any]) -> None:
    """What native code could not bear."""
    grad = param.grad
    if grad is not None and grad.layout != torch.strided:
        hint = "need a dense (strided) tensor; torch.optim.SparseAdam takes sparse ones"
        raise TypeError(f"grad: got layout {grad.layout} for a parameter of shape {list(param.shape)}, {hint}")
    _check_state(param, state)
    _check.in_one_place(param=param, grad=grad, **{name: state[name] for name in _MOMENTS if state})
