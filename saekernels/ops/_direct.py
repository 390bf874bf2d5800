"""When an op may be computed at once: where torch's dispatcher would do nothing but hand its arguments to the kernel.

For a single token its share is most of the time of a call. What else it may have to do (vmap, modes, tracing) shows in
the keys that this thread adds to a tensor's own, or is asked by name. Under a profiler all calls go through the
dispatcher, so that a profile has the ops' names.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable

import torch
from torch import Tensor
from torch.autograd import forward_ad

_included = torch._C._dispatch_tls_local_include_set
_function_modes = torch._C._len_torch_function_stack
_profiling, _autocast = torch._C._autograd._profiler_enabled, torch._C._is_any_autocast_enabled
_is_wrapped = torch._C._functorch.is_functorch_wrapped_tensor
_TYPES, _STRIDED = (Tensor, torch.nn.Parameter), torch.strided


def _plain_keys() -> frozenset[int]:
    """What a thread adds of which nothing was asked, as bits; in inference mode and without."""
    found = set()

    def look() -> None:
        for inference in (False, True):
            with torch.inference_mode(inference):
                found.add(_included().raw_repr())

    # A new thread, because this one may import us inside of any mode.
    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    return frozenset(found)


_PLAIN_KEYS = _plain_keys()


def direct(tensors: Iterable[Tensor | None]) -> bool:
    """Whether an op of these tensors may be computed at once: dense, of one CPU or GPU, none needing a gradient."""
    # torch.compile knows the first by name, so it traces nothing of the others.
    if (
        torch.compiler.is_compiling()
        or _function_modes()
        or _profiling()
        or forward_ad._current_level >= 0
        or _autocast()
        or _included().raw_repr() not in _PLAIN_KEYS
    ):
        return False
    grad, place = torch.is_grad_enabled(), None
    for value in tensors:
        # The data at its address are its elements, and nobody records what is done with it.
        if value is None:
            continue
        if (
            type(value) not in _TYPES
            or not (value.is_cpu or value.is_cuda)
            or value.layout is not _STRIDED
            or value.is_neg()
            or value._is_zerotensor()
            or _is_wrapped(value)
            or (grad and value.requires_grad)
        ):
            return False
        index = value.get_device()  # -1 is the CPU
        if place not in (None, index):
            return False
        place = index
    return True
