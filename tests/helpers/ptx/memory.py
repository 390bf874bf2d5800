"""memory: global memory, with gaps between what was allocated, and the tensor maps that describe matrices in it."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]
Ints = NDArray[np.int64]
GAP = 256


class Fault(Exception):
    """What a GPU would not do, or not always do right."""


class TensorMap(NamedTuple):
    """What copies of whole tiles know of a tensor, the outermost dimension first.

    Attributes:
        address: of its first element.
        shape: in elements.
        strides: in bytes.
        box: the tile's shape.
        itemsize: bytes of an element.
        swizzle: 0, 32, 64 or 128: over how many bytes of shared memory 16-byte pieces change places.
    """

    address: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    box: tuple[int, ...]
    itemsize: int
    swizzle: int

    def check(self) -> None:
        """What the driver refuses to encode."""
        row = self.box[-1] * self.itemsize
        if self.address % 16 or any(stride % 16 for stride in self.strides[:-1]) or self.strides[-1] != self.itemsize:
            raise Fault("a tensor map of rows that are not contiguous or not 16 bytes apart")
        if row % 16 or max(self.box) > 256 or (self.swizzle and row > self.swizzle):
            raise Fault(f"a tensor map whose box is {self.box}, swizzled over {self.swizzle} bytes")


class Memory:
    """Global memory: allocations 256 bytes apart and aligned, none at address 0.

    Attributes:
        maps: tensor maps by their address.
    """

    def __init__(self, size: int = 1 << 25) -> None:
        self.bytes: Bytes = np.zeros(size, np.uint8)
        self.allocated = np.zeros(size, bool)
        self.end = GAP
        self.maps: dict[int, TensorMap] = {}

    def put(self, content: Bytes) -> int:
        """The address of a copy of `content`."""
        start = self.end
        self.end = -(-(start + len(content)) // GAP) * GAP + GAP
        if self.end > len(self.bytes):
            raise MemoryError(f"the emulated GPU has {len(self.bytes)} bytes")
        self.bytes[start : start + len(content)] = content
        self.allocated[start : start + len(content)] = True
        return start

    def put_map(self, tensor_map: TensorMap) -> int:
        """The address of a tensor map, whose bytes nobody may read."""
        tensor_map.check()
        address = self.put(np.zeros(128, np.uint8))
        self.allocated[address : address + 128] = False
        self.maps[address] = tensor_map
        return address

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

    def tile(self, tensor_map: TensorMap, corner: tuple[int, ...]) -> Bytes:
        """The bytes of a box whose first element is at `corner`, zeros where the tensor has none."""
        places = np.meshgrid(
            *(np.arange(start, start + size) for start, size in zip(corner, tensor_map.box, strict=True)), indexing="ij"
        )
        inside = np.ones(tensor_map.box, bool)
        addresses: Ints = np.full(tensor_map.box, tensor_map.address, np.int64)
        for place, size, stride in zip(places, tensor_map.shape, tensor_map.strides, strict=True):
            inside &= (place >= 0) & (place < size)
            addresses += place * stride
        content: Bytes = np.zeros((*tensor_map.box, tensor_map.itemsize), np.uint8)
        content[inside] = self.read(addresses[inside], tensor_map.itemsize)
        return content.reshape(-1)


def swizzled(addresses: Ints, over: int) -> Ints:
    """Shared addresses with their 16-byte pieces exchanged, over 32, 64 or 128 bytes; with 0 as they are."""
    return addresses ^ ((addresses >> 7) & (over // 16 - 1 if over else 0)) << 4
