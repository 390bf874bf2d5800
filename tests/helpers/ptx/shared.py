"""shared: shared memory that knows of every byte who wrote it, who read it, and when.

What one warp wrote another may read, and what it read another may write, only where barriers, or mbarriers, put the one
before the other (`order`): else something is missing. A byte on its way (cp.async) may be neither read nor written
before the thread that asked for it has waited; one that a product reads (wgmma) may not be written before its warps
have; and what threads wrote, products and copies of whole tiles see only behind a fence.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ptx.memory import Bytes, Fault, Ints
from ptx.order import ASYNC, GENERIC, Order

NEVER, FLYING = 0, np.iinfo(np.int32).max


class Shared:
    """The shared memory of all blocks, one behind the other; addresses count from each block's own start.

    Attributes:
        writer, written: of each byte the actor and its count (`order`) when it was last written, or NEVER.
        generic: whether a thread wrote it, not a copy of a whole tile.
        read_at: [bytes, warps of a block], each warp's count when it last read it; FLYING while a product of it does.
    """

    def __init__(self, blocks: int, size: int, order: Order) -> None:
        self.size, self.order = size, order
        self.bytes: Bytes = np.zeros(blocks * size, np.uint8)
        self.writer = np.zeros(blocks * size, np.int16)
        self.written = np.full(blocks * size, NEVER, np.int32)
        self.generic, self.pending = np.zeros(blocks * size, bool), np.zeros(blocks * size, bool)
        self.read_at = np.zeros((blocks * size, order.per_block), np.int32)
        self.copies: list[dict[str, Any]] = []
        self.products: list[dict[str, Any]] = []

    def at(self, warps: Ints, addresses: Ints, size: int) -> Ints:
        """[lanes, size]: places of aligned elements."""
        if len(addresses) and (addresses % size).any():
            raise Fault(f"shared address {addresses[addresses % size != 0][0]} is no multiple of {size}")
        if len(addresses) and (addresses.min() < 0 or addresses.max() + size > self.size):
            raise Fault(f"shared address {addresses.max()} of {self.size} bytes")
        places: Ints = (warps // self.order.per_block * self.size + addresses)[:, None] + np.arange(size)
        return places

    def read(self, warps: Ints, addresses: Ints, size: int) -> Bytes:
        """[lanes, size], of bytes that a barrier or the same warp vouches for."""
        places = self.at(warps, addresses, size)
        self._readable(warps, places)
        self.read_at[places, self.order.own[warps][:, None]] = self.order.now(warps)[:, None]
        found: Bytes = self.bytes[places]
        return found

    def write(self, warps: Ints, addresses: Ints, content: Bytes) -> None:
        """content: [lanes, size]."""
        places = self._claim(warps, addresses, content.shape[1])
        if (~self._known(GENERIC, warps, places) & (self.bytes[places] != content)).any():
            raise Fault("shared memory written over what another warp wrote since the last barrier")
        self.bytes[places] = content
        if (self.bytes[places] != content).any():
            raise Fault("shared memory written differently by two threads at once")
        self._sign(places, self.order.own[warps][:, None], self.order.now(warps)[:, None], generic=True)

    def copy(self, warps: Ints, lanes: Ints, addresses: Ints, content: Bytes, group: Ints) -> None:
        """Sends content [lanes, size] on its way, as part of each lane's copies of number `group`."""
        places = self._claim(warps, addresses, content.shape[1])
        self.pending[places] = True
        self.copies.append({"places": places, "content": content, "group": group, "lanes": lanes, "warps": warps})

    def arrive(self, done: Ints) -> None:
        """Every copy of a group below its lane's number in `done` is there."""
        left = []
        for copy in self.copies:
            here = copy["group"] < done[copy["lanes"]]
            places, warps = copy["places"][here], copy["warps"][here]
            self.bytes[places], self.pending[places] = copy["content"][here], False
            self._sign(places, self.order.own[warps][:, None], self.order.now(warps)[:, None], generic=True)
            if not here.all():
                left.append({name: value[~here] for name, value in copy.items()})
        self.copies = left

    def fill(self, warp: int, addresses: Ints, content: Bytes, actor: int, count: int) -> None:
        """A copy of a whole tile, asked for by a warp: [pieces, 16], done when `actor` counts to `count`."""
        warps = np.full(len(addresses), warp)
        places = self._claim(warps, addresses, 16)
        if not self._known(GENERIC, warps, places).all():
            raise Fault("shared memory filled over what another warp wrote since the last barrier")
        self._fenced(warps, places)
        self.bytes[places] = content
        self._sign(places, actor, count, generic=False)

    def feed(self, warps: Ints, addresses: Ints, group: Ints) -> Bytes:
        """[warps, pieces, 16]: what a product of each warp's `group` reads, until `finish`. addresses: [warps, pieces]"""
        pieces = addresses.shape[1]
        places = self.at(np.repeat(warps, pieces), addresses.reshape(-1), 16).reshape(len(warps), -1)
        self._readable(warps, places)
        self._fenced(warps, places)
        self.read_at[places, self.order.own[warps][:, None]] = FLYING
        self.products.append({"places": places, "group": group, "warps": warps})
        found: Bytes = self.bytes[places].reshape(len(warps), pieces, 16)
        return found

    def finish(self, done: Ints) -> None:
        """Every product of a group below its warp's number in `done` has read what it reads."""
        left = []
        for product in self.products:
            here = product["group"] < done[product["warps"]]
            warps = product["warps"][here]
            self.read_at[product["places"][here], self.order.own[warps][:, None]] = self.order.now(warps)[:, None]
            if not here.all():
                left.append({name: value[~here] for name, value in product.items()})
        for product in left:  # others may read the same bytes
            self.read_at[product["places"], self.order.own[product["warps"]][:, None]] = FLYING
        self.products = left

    def _known(self, how: int, warps: Ints, places: Ints) -> Any:
        """Whether each warp knows of what was last written to its places [warps, n]."""
        return self.order.known[how, warps[:, None], self.writer[places]] >= self.written[places]

    def _readable(self, warps: Ints, places: Ints) -> None:
        if self.pending[places].any():
            raise Fault("shared memory read while a copy into it is on its way")
        if (self.written[places] == NEVER).any():
            raise Fault("shared memory read that nothing was written to")
        known = self._known(GENERIC, warps, places)
        if (~known & self.generic[places]).any():
            raise Fault("shared memory read that another warp wrote since the last barrier")
        if not known.all():
            raise Fault("shared memory read before a wait for the mbarrier of the copy that fills it")

    def _fenced(self, warps: Ints, places: Ints) -> None:
        if (self.generic[places] & ~self._known(ASYNC, warps, places)).any():
            raise Fault("no fence.proxy.async between what threads wrote and what is to be done with it")

    def _claim(self, warps: Ints, addresses: Ints, size: int) -> Ints:
        """Places that may be written now."""
        places = self.at(warps, addresses, size)
        if self.pending[places].any():
            raise Fault("shared memory written while a copy into it is on its way")
        read_at = self.read_at[places]
        if (read_at > self.order.known[GENERIC, warps, None, : self.order.per_block]).any():
            what = "while a product reads it" if (read_at == FLYING).any() else ""
            raise Fault(f"shared memory written {what or 'that another warp read since the last barrier'}")
        return places

    def _sign(self, places: Ints, actor: Any, count: Any, *, generic: bool) -> None:
        self.writer[places], self.written[places], self.generic[places] = actor, count, generic
