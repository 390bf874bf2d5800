"""A pass over chunks whose sums have the same bits however they are shared out, interrupted and taken up again.

Floating-point sums depend on their order, so the order is fixed by the number of chunks alone: chunks are summed up in
blocks, one after the other, and blocks in a binary tree. Each finished node of the tree is a file; a process that has
ended a block joins it with what it has joined before, so few are there at a time, and memory holds two of them at most.
"""

from __future__ import annotations

import copy
import re
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Protocol

from saekernels.eval.store.ranks import Ranks
from saekernels.eval.store.run_folder import Workspace

BLOCKS = 64
Node = tuple[int, int]  # level, place: the blocks from place << level on, 1 << level of them


class Summed(Protocol):
    """Something that adds up: its state can be saved, loaded, and added to it."""

    def state(self) -> dict[str, Any]:
        """All that was added up, as torch.save writes it."""

    def load(self, state: dict[str, Any]) -> None:
        """Go on from a `state`; what was added up before is forgotten."""

    def merge(self, state: dict[str, Any]) -> None:
        """Add a `state` of other blocks."""


def blocks_of(chunks: int) -> list[range]:
    """The chunks of each block: at most BLOCKS blocks, all but the last of one size."""
    size = max(1, -(-chunks // BLOCKS))
    return [range(start, min(start + size, chunks)) for start in range(0, chunks, size)]


class Pass:
    """One pass over all chunks. subject: what the steps add to; it ends with the sums of all chunks, in every process.

    step(block, chunk) adds one chunk. `ended`, if given, is called by the first process when all blocks are done,
    before the sums are kept as finished.
    """

    def __init__(self, place: Workspace, name: str, chunks: int, subject: Summed, ranks: Ranks) -> None:
        self.place, self.name, self.subject, self.ranks = place, name, subject, ranks
        self.blocks = blocks_of(chunks)
        self._empty = copy.deepcopy(subject.state())
        self._own: set[Node] = set()
        self.finished = ranks.once(self._whole.is_file)
        todo = [] if self.finished else ranks.share(self._todo(self._nodes()))
        # Read before anyone goes on and writes.
        self._starts = {block: self._started(block) for block in todo}
        ranks.wait()

    @property
    def left(self) -> int:
        """How many chunks this process has to do."""
        return sum(len(self.blocks[block]) - done for block, done in self._starts.items())

    def run(self, step: Callable[[int, int], None], ended: Callable[[], None] | None = None) -> None:
        """Do what is left."""
        if not self.finished:
            for block, done in self._starts.items():
                self._run_block(block, done, step)
            self.ranks.wait()
            self.ranks.once(lambda: self._finish(ended))
        self.subject.load(self.place.load(self._whole)["state"])

    def _run_block(self, block: int, done: int, step: Callable[[int, int], None]) -> None:
        part = self._part(block)
        started = done and self.ranks.writes
        self.subject.load(self.place.load(part)["state"] if started else copy.deepcopy(self._empty))
        chunks = self.blocks[block]
        saved = time.monotonic()
        for number in range(done, len(chunks)):
            step(block, chunks[number])
            over = self.place.kept and time.monotonic() - saved >= self.place.save_every
            if over and self.ranks.writes and number + 1 < len(chunks):
                self.place.save(part, {"chunks": number + 1, "state": self.subject.state()})
                saved = time.monotonic()
        if self.ranks.writes:
            self._keep((0, block))
            part.unlink(missing_ok=True)
            self._climb((0, block))

    def _climb(self, node: Node) -> None:
        """Join the node that the subject holds with its neighbour, as long as that is this process's own."""
        while (pair := self._pair(node)) is not None and (not self._exists(pair) or pair in self._own):
            node = self._join(node, pair)
            if self._covers_all(node):
                return

    def _join(self, node: Node, pair: Node) -> Node:
        """The node above `node`, which the subject holds, and `pair`; kept in place of both."""
        if self._exists(pair):
            other = self.place.load(self._path(pair))["state"]
            if pair < node:
                own = copy.copy(self.subject.state())
                self.subject.load(other)
                other = own
            self.subject.merge(other)
        above = (node[0] + 1, node[1] >> 1)
        self._keep(above)
        for below in (node, pair):
            self._path(below).unlink(missing_ok=True)
        return above

    def _finish(self, ended: Callable[[], None] | None) -> None:
        """The first process joins what the others have left, and keeps the whole."""
        while not self._covers_all(min(nodes := self._nodes())):
            node = min(nodes)
            self.subject.load(self.place.load(self._path(node))["state"])
            pair = self._pair(node)
            assert pair is not None
            self._join(node, pair)
        root = min(nodes)
        self.subject.load(self.place.load(self._path(root))["state"])
        if ended is not None:
            ended()
        self.place.save(self._whole, {"state": self.subject.state()})
        for path in self._files():
            path.unlink(missing_ok=True)

    def _keep(self, node: Node) -> None:
        self.place.save(self._path(node), {"state": self.subject.state()})
        self._own.add(node)

    def _nodes(self) -> set[Node]:
        """Nodes that are there, without those that lie below another: a killed process had not removed them yet."""
        found = {self._node(path) for path in self._files()} - {None}
        nodes = {node for node in found if node is not None}
        return {node for node in nodes if not any(_above(other, node) for other in nodes)}

    def _todo(self, nodes: Iterable[Node]) -> list[int]:
        done = {block for level, place in nodes for block in range(place << level, (place + 1) << level)}
        return [block for block in range(len(self.blocks)) if block not in done]

    def _started(self, block: int) -> int:
        """Chunks of a block that an earlier run has done."""
        path = self._part(block)
        return int(self.place.load(path)["chunks"]) if path.is_file() else 0

    def _pair(self, node: Node) -> Node | None:
        """The neighbour with which a node makes the one above; None for the root."""
        return None if self._covers_all(node) else (node[0], node[1] ^ 1)

    def _exists(self, node: Node) -> bool:
        return node[1] << node[0] < len(self.blocks)

    def _covers_all(self, node: Node) -> bool:
        return node[1] == 0 and 1 << node[0] >= len(self.blocks)

    @property
    def _whole(self) -> Path:
        return self.place.folder / f"{self.name}.pt"

    def _part(self, block: int) -> Path:
        return self.place.folder / f"{self.name}-begun-{block}.pt"

    def _path(self, node: Node) -> Path:
        return self.place.folder / f"{self.name}-{node[0]}-{node[1]}.pt"

    def _files(self) -> list[Path]:
        return sorted(self.place.folder.glob(f"{self.name}-*.pt"))

    def _node(self, path: Path) -> Node | None:
        match = re.fullmatch(rf"{re.escape(self.name)}-(\d+)-(\d+)\.pt", path.name)
        return None if match is None else (int(match[1]), int(match[2]))


def _above(node: Node, other: Node) -> bool:
    return node[0] > other[0] and other[1] >> (node[0] - other[0]) == node[1]
