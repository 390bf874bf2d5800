"""memory: global memory with gaps between what was allocated, and shared memory that knows who wrote a byte and when.

Time in shared memory is counted in epochs, which a block's barriers separate. Within one epoch, what one warp wrote no
other may read, and what one read no other may write: else a barrier is missing. A byte on its way (cp.async) may be
neither read nor written before the thread that asked for it has waited.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]
Ints = NDArray[np.int64]
NOBODY, SEVERAL, NEVER = -1, -2, -1
GAP = 256


class Fault(Exception):
    """What a GPU would not do, or not always do right."""


class Memory:
    """Global memory: allocations 256 bytes apart and aligned, none at address 0."""

    def __init__(self, size: int = 1 << 25) -> None:
        self.bytes: Bytes = np.zeros(size, np.uint8)
        self.allocated = np.zeros(size, bool)
        self.end = GAP

    def put(self, content: Bytes) -> int:
        """The address of a copy of `content`."""
        start = self.end
        self.end = -(-(start + len(content)) // GAP) * GAP + GAP
        if self.end > len(self.bytes):
            raise MemoryError(f"the emulated GPU has {len(self.bytes)} bytes")
        self.bytes[start : start + len(content)] = content
        self.allocated[start : start + len(content)] = True
        return start

    def at(self, addresses: Ints, size: int) -> Ints:
        """[lanes, size]: the bytes behind addresses of allocated, aligned elements."""
        if len(addresses) and (addresses % size).any():
            raise Fault(f"address {addresses[addresses % size != 0][0]} is no multiple of {size}")
        places: Ints = addresses[:, None] + np.arange(size)
        outside = (places < 0) | (places >= len(self.bytes))
        if outside.any() or not self.allocated[places].all():
            raise Fault(f"{size} bytes in no allocation")
        return places

    def read(self, addresses: Ints, size: int) -> Bytes:
        """[lanes, size]."""
        found: Bytes = self.bytes[self.at(addresses, size)]
        return found

    def write(self, addresses: Ints, content: Bytes) -> None:
        """content: [lanes, size]; where lanes agree on a place, the last wins."""
        self.bytes[self.at(addresses, content.shape[1])] = content


class Shared:
    """The shared memory of all blocks, one behind the other; addresses count from each block's own start."""

    def __init__(self, blocks: int, size: int) -> None:
        self.size = size
        self.bytes: Bytes = np.zeros(blocks * size, np.uint8)
        self.epoch = np.zeros(blocks, np.int64)
        self.written, self.writer, self.read_at, self.reader = (np.full(blocks * size, NEVER) for _ in range(4))
        self.pending = np.zeros(blocks * size, bool)
        self.copies: list[dict[str, Any]] = []

    def at(self, blocks: Ints, addresses: Ints, size: int) -> Ints:
        """[lanes, size]: places of aligned elements."""
        if len(addresses) and (addresses % size).any():
            raise Fault(f"shared address {addresses[addresses % size != 0][0]} is no multiple of {size}")
        if len(addresses) and (addresses.min() < 0 or addresses.max() + size > self.size):
            raise Fault(f"shared address {addresses.max()} of {self.size} bytes")
        places: Ints = (blocks * self.size + addresses)[:, None] + np.arange(size)
        return places

    def read(self, blocks: Ints, warps: Ints, addresses: Ints, size: int) -> Bytes:
        """[lanes, size], of bytes that a barrier or the same warp vouches for."""
        places = self.at(blocks, addresses, size)
        now, warp = self.epoch[blocks][:, None], warps[:, None]
        if self.pending[places].any():
            raise Fault("shared memory read while a copy into it is on its way")
        if (self.written[places] == NEVER).any():
            raise Fault("shared memory read that nothing was written to")
        if ((self.written[places] == now) & (self.writer[places] != warp)).any():
            raise Fault("shared memory read that another warp wrote since the last barrier")
        by_others = (self.read_at[places] == now) & (self.reader[places] != warp)
        self.reader[places] = np.where(by_others, SEVERAL, warp)
        self.read_at[places] = now
        # Lanes of several warps at one place: the last write above has hidden the others.
        self.reader[places] = np.where(self.reader[places] == warp, self.reader[places], SEVERAL)
        found: Bytes = self.bytes[places]
        return found

    def write(self, blocks: Ints, warps: Ints, addresses: Ints, content: Bytes) -> None:
        """content: [lanes, size]."""
        places = self._claim(blocks, warps, addresses, content.shape[1])
        now, warp = self.epoch[blocks][:, None], warps[:, None]
        again = (self.written[places] == now) & (self.writer[places] != warp) & (self.bytes[places] != content)
        if again.any():
            raise Fault("shared memory written over what another warp wrote since the last barrier")
        self.bytes[places] = content
        if (self.bytes[places] != content).any():
            raise Fault("shared memory written differently by two threads at once")
        self.written[places], self.writer[places] = now, warp

    def copy(self, blocks: Ints, warps: Ints, lanes: Ints, addresses: Ints, content: Bytes, group: Ints) -> None:
        """Sends content [lanes, size] on its way, as part of each lane's copies of number `group`."""
        places = self._claim(blocks, warps, addresses, content.shape[1])
        self.pending[places] = True
        self.copies.append(
            {"places": places, "content": content, "group": group, "lanes": lanes, "blocks": blocks, "warps": warps}
        )

    def arrive(self, done: Ints) -> None:
        """Every copy of a group below its lane's number in `done` is there."""
        left = []
        for copy in self.copies:
            here = copy["group"] < done[copy["lanes"]]
            places = copy["places"][here]
            self.bytes[places], self.pending[places] = copy["content"][here], False
            self.written[places] = self.epoch[copy["blocks"][here]][:, None]
            self.writer[places] = copy["warps"][here][:, None]
            if not here.all():
                left.append({name: value[~here] for name, value in copy.items()})
        self.copies = left

    def _claim(self, blocks: Ints, warps: Ints, addresses: Ints, size: int) -> Ints:
        """Places that may be written now."""
        places = self.at(blocks, addresses, size)
        now, warp = self.epoch[blocks][:, None], warps[:, None]
        if self.pending[places].any():
            raise Fault("shared memory written while a copy into it is on its way")
        if ((self.read_at[places] == now) & (self.reader[places] != warp)).any():
            raise Fault("shared memory written that another warp read since the last barrier")
        return places
