"""A command as one of several processes that torchrun (or another launcher with its environment) has started."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator
from datetime import timedelta
from typing import TYPE_CHECKING, Any, NoReturn

import torch

from saekernels.errors import InputError, first_line
from saekernels.eval.store.ranks import DATA
from saekernels.eval.store.run_folder import discard_temporary

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

LATENTS = "latents"
LOST = 3
_TERMINATED = 128 + signal.SIGTERM
# A process may wait for the slowest one; one that has died is noticed by its closed connections.
_PATIENCE = timedelta(days=7)
_FAREWELL_SECONDS = 0.2


def world_size() -> int:
    """How many processes the launcher has started; 1 without one."""
    return _number("WORLD_SIZE", 1) if "RANK" in os.environ else 1


def local_rank() -> int:
    """This process's place on its machine."""
    return _number("LOCAL_RANK", 0)


def one_process_only(what: str) -> None:
    """InputError where a launcher has started several processes for what one alone does."""
    if world_size() > 1:
        raise InputError(f"{what} runs in one process, got {world_size()} from the launcher; start it without torchrun")


@contextlib.contextmanager
def processes(latents: int, device: torch.device, checkpoint: str | None) -> Iterator[DeviceMesh | None]:
    """The mesh of all processes, [data, latents]; None for a process alone.

    latents: over how many processes the latents of each SAE are spread.
    """
    world = world_size()
    if not 0 <= (rank := _number("RANK", 0)) < world:
        raise InputError(f"RANK: got {rank}, need 0 to {world - 1} for WORLD_SIZE = {world}")
    if world % latents:
        raise InputError(f"--latent-parallel: got {latents}, need a divisor of the {world} processes of the launcher")
    if world == 1:
        yield None
        return
    from torch import distributed
    from torch.distributed.device_mesh import init_device_mesh

    _answer_sigterm(checkpoint)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    try:
        # Beside the one that moves tensors on GPUs, gloo keeps processes in step and notices at once who is lost.
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        distributed.init_process_group(backend, timeout=_PATIENCE)
    except (RuntimeError, ValueError) as error:
        raise InputError(f"the {world} processes do not find each other: {first_line(error)}") from error
    try:
        yield init_device_mesh(device.type, (world // latents, latents), mesh_dim_names=(DATA, LATENTS))
    finally:
        distributed.destroy_process_group()
        # gloo's threads free what the last collectives held under Python's lock; a process that ends before they could
        # aborts (torch 2.13).
        time.sleep(_FAREWELL_SECONDS)


def stopped(reason: str, checkpoint: str | None) -> str:
    """What a process says that ends because of another."""
    rank = _number("RANK", 0)
    kept = (
        f"what was done is in {checkpoint}: the same command, with any number of processes, goes on from there"
        if checkpoint
        else "nothing was kept; with --checkpoint DIR a run can go on"
    )
    return f"rank {rank} of {world_size()} stopped: {reason}; {kept}"


def _answer_sigterm(checkpoint: str | None) -> None:
    """Launchers end the other processes by SIGTERM when one is lost; they then say so, even while they wait for it."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.signal(signal.SIGTERM, lambda *_: None)
    # Python's handlers wait for the main thread, which may be inside a collective; the byte is written at once.
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)

    def watch() -> None:
        while (byte := os.read(reader, 1)) and byte[0] != signal.SIGTERM:
            pass
        if byte:
            _end(stopped("the launcher ended it, as it does when another process is lost", checkpoint))

    threading.Thread(target=watch, name="saekernels-sigterm", daemon=True).start()


def _end(message: str) -> NoReturn:
    with contextlib.suppress(OSError):
        os.write(2, f"saekernels: {message}\n".encode())
    discard_temporary()
    os._exit(_TERMINATED)


def _number(name: str, default: int) -> int:
    value: Any = os.environ.get(name, default)
    try:
        return int(value)
    except ValueError:
        raise InputError(f"{name}: got {value!r}, need a number; it is what a launcher such as torchrun sets") from None
