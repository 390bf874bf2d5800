"""Runs a Gluon kernel whose warps have roles, by its own Python, on numpy: a thread for each role, in a drawn order.

What is asynchronous on a GPU happens here at a drawn moment between its start and the wait for it: a copy leaves NaN in
its place until it is done, a product reads its operands as late as its warpgroup waits for it. Barriers count as the
GPU's do and are waited for by parity. So a wait too few shows as a wrong number, and one too many as a deadlock.
"""

from __future__ import annotations
import __future__

import inspect
import random
import threading
from collections.abc import Callable
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np


class Fault(Exception):
    """What a GPU would answer with silence or with nonsense."""


class Barrier:
    """An mbarrier: it completes a phase after `count` arrivals and all bytes expected."""

    def __init__(self) -> None:
        self.count = self.left = self.bytes = self.phase = 0

    def init(self, count: int) -> None:
        self.count = self.left = count

    def arrive(self, count: int = 1, expected: int = 0) -> None:
        if self.left < count:
            raise Fault("more arrivals than a phase has")
        self.left -= count
        self.complete(-expected)

    def complete(self, count: int) -> None:
        """`count` bytes have arrived."""
        self.bytes -= count
        if not self.left and not self.bytes:
            self.left, self.phase = self.count, self.phase + 1

    def done(self, parity: int) -> bool:
        """Whether the phase of this parity, the current one or the one before, is complete."""
        return self.phase & 1 != parity


class Block:
    """A block of shared memory, or its transpose."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.data = np.full(shape, np.nan)

    def permute(self, order: tuple[int, int]) -> Callable[[], np.ndarray]:
        return lambda: self.data.transpose(order)


class Accumulator:
    """A product under way: operands that have been asked for and not been multiplied."""

    def __init__(self, shape: list[int]) -> None:
        self.value, self.waiting = np.zeros(shape), list[tuple[Block, Callable[[], np.ndarray]]]()

    def finish(self, left: int) -> None:
        while len(self.waiting) > left:
            a, b = self.waiting.pop(0)
            self.value = self.value + a.data @ b()


class Program:
    """One program of the grid: the threads of its roles, of which one runs at a time, and copies on their way."""

    def __init__(self, number: int, programs: int, seed: int) -> None:
        self.number, self.programs, self.draw = number, programs, random.Random(seed)
        self.copies: list[Callable[[], None]] = []
        self.roles: dict[threading.Thread, Callable[[], bool]] = {}
        self.turns: dict[threading.Thread, threading.Semaphore] = {}
        self.main, self.failed = threading.Semaphore(0), list[BaseException]()

    def start(self, role: Callable[..., None], arguments: tuple[Any, ...]) -> None:
        def body() -> None:
            self.turns[thread].acquire()
            try:
                role(*arguments)
            except BaseException as error:
                self.failed.append(error)
            del self.roles[thread]
            self.main.release()

        thread = threading.Thread(target=body, daemon=True)
        self.roles[thread], self.turns[thread] = lambda: True, threading.Semaphore(0)
        thread.start()

    def until(self, ready: Callable[[], bool]) -> None:
        """Let others go on, at least until something is so."""
        thread = threading.current_thread()
        self.roles[thread] = ready
        self.main.release()
        self.turns[thread].acquire()

    def run(self) -> None:
        """Until all roles have ended."""
        while self.roles and not self.failed:
            able = [thread for thread, ready in self.roles.items() if ready()]
            chosen = self.draw.choice([*able, *self.copies]) if able or self.copies else None
            if chosen is None:
                raise Fault("every role waits for another one")
            if isinstance(chosen, threading.Thread):
                self.turns[chosen].release()
                self.main.acquire()
            else:
                self.copies.remove(chosen)
                chosen()
        if self.failed:
            raise self.failed[0]


def run(
    module: ModuleType,
    kernel: str,
    arguments: dict[str, Any],
    program: Program,
    edit: Callable[[str], str] = lambda source: source,
    **stand_ins: Any,
) -> None:
    """Run a kernel of a module, and whatever of the module it calls but for `stand_ins`, as one program.

    Descriptors among the arguments have an `array`, and blocks of it the shape of the shared memory that they go to.
    edit: makes of a function's source the one that is run.
    """

    def allocate(dtype: Any, shape: list[int], layout: Any) -> Any:
        made = [Barrier() if dtype is np.int64 else Block(tuple(shape[1:])) for _ in range(shape[0])]
        return SimpleNamespace(index=made.__getitem__)

    def fetch(matrix: Any, at: list[int], barrier: Barrier, block: Block) -> None:
        (rows, depth), (row, column) = block.data.shape, at
        block.data[:] = np.nan

        def arrive() -> None:
            part = matrix.array[row : row + rows, column : column + depth]
            block.data[:] = 0
            block.data[: part.shape[0], : part.shape[1]] = part
            barrier.complete(rows * depth * 2)

        program.copies.append(arrive)
        program.until(lambda: True)

    def multiply(a: Block, b: Any, acc: Accumulator, is_async: bool) -> Accumulator:
        acc.waiting.append((a, b))
        if program.draw.random() < 0.3:
            acc.finish(0)
        return acc

    def wait_for_products(left: int, deps: list[Accumulator]) -> Accumulator:
        program.until(lambda: True)
        deps[0].finish(left)
        return deps[0]

    def arrive(barrier: Barrier, count: int) -> None:
        barrier.arrive(count)
        program.until(lambda: True)

    language = SimpleNamespace(
        allocate_shared_memory=allocate,
        arange=np.arange,
        cdiv=lambda a, b: -(-a // b),
        minimum=min,
        int64=np.int64,
        float32=np.float32,
        static_range=range,
        program_id=lambda axis: program.number,
        num_programs=lambda axis: program.programs,
        zeros=lambda shape, dtype, layout: Accumulator(shape),
        NVMMADistributedLayout=lambda **_: None,
        warp_specialize=lambda roles, warps, registers: [program.start(*role) for role in roles],
    )
    names: dict[str, Any] = dict(vars(module))
    names |= {
        "gl": language,
        "tl": language,
        "fetch": fetch,
        "fence_async_shared": lambda: None,
        "warpgroup_mma": multiply,
        "warpgroup_mma_wait": wait_for_products,
        "mbarrier": SimpleNamespace(
            MBarrierLayout=lambda: None,
            init=lambda barrier, count: barrier.init(count),
            expect=lambda barrier, count: barrier.arrive(1, count),
            arrive=arrive,
            wait=lambda barrier, parity: program.until(lambda: barrier.done(parity)),
        ),
    }
    for value in vars(module).values():
        if hasattr(value, "fn"):  # decorated, so no Python any more
            source = edit(inspect.getsource(value.fn)).partition("\n")[2]
            exec(compile(source, module.__name__, "exec", __future__.annotations.compiler_flag), names)
    names |= stand_ins
    names[kernel](**arguments)
    program.run()
