"""The processes of one evaluation: which documents each takes, and how they keep in step (torch.distributed)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from saekernels.errors import InputError
from saekernels.parallel.collectives import RankLostError, reaching

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

__all__ = ["DATA", "RankLostError", "Ranks", "ToldError"]

DATA = "data"
T = TypeVar("T")


class Ranks:
    """One process among those of an evaluation; without a mesh, the only one.

    The mesh's dimension "data" shares out the documents. Along its other dimensions (an SAE's latents, a model's
    tensors) processes run the same documents in step, and the first of them writes what they give.

    Attributes:
        index, count: this process's place along "data", and how many there are.
        writes: whether it is the first along every other dimension.
        first: whether it is the first of all, which reads the text, folds the sums and makes the report.
    """

    def __init__(self, mesh: DeviceMesh | None = None) -> None:
        self.mesh = mesh
        self.index, self.count = 0, 1
        self.rank, self.size = 0, 1
        self.writes = True
        self._groups: list[Any] = []
        if mesh is None:
            return
        names = getattr(mesh, "mesh_dim_names", None)
        if not names or len(set(names)) != mesh.ndim:
            raise InputError(f"mesh: need a DeviceMesh whose dimensions have names, such as {DATA!r}; got {mesh}")
        places = mesh.get_coordinate()
        if places is None:
            raise InputError(f"mesh: this process is not in it: {mesh}")
        self.rank, self.size = torch.distributed.get_rank(), mesh.size()
        self._groups = [mesh.get_group(name) for name in names]
        for name, place, size in zip(names, places, mesh.shape, strict=True):
            if name == DATA:
                self.index, self.count = place, size
            else:
                self.writes = self.writes and place == 0

    @property
    def first(self) -> bool:
        """Whether this process is the first of all."""
        return self.index == 0 and self.writes

    def share(self, items: Sequence[T]) -> Sequence[T]:
        """This process's part of what is shared out along "data": contiguous, of nearly equal size, maybe empty."""
        return items[len(items) * self.index // self.count : len(items) * (self.index + 1) // self.count]

    def wait(self) -> None:
        """Until every process is here. Raises RankLostError if one will never be."""
        self.tell(None)

    def tell(self, value: T) -> T:
        """The first process's `value`, in every process, none of which goes on before all are here."""
        from torch import distributed

        held = [value]
        with reaching():
            for group in self._groups:
                distributed.barrier(group)
            for group in self._groups:
                distributed.broadcast_object_list(held, src=distributed.get_global_rank(group, 0), group=group)
        return held[0]

    def once(self, function: Callable[[], T]) -> T:
        """What function() gives in the first process, in every process; an InputError there is one everywhere."""
        if not self._groups:
            return function()
        outcome: tuple[T | None, str | None] = (None, None)
        if self.first:
            try:
                outcome = (function(), None)
            except InputError as error:
                self.tell((None, str(error)))
                raise
        value, problem = self.tell(outcome)
        if problem is not None:
            raise ToldError(problem)
        return value  # type: ignore[return-value]

    def together(self, function: Callable[[], T]) -> T:
        """function() in every process; an InputError in one of them is one in all."""
        made: Any = None
        problem: InputError | None = None
        try:
            made = function()
        except InputError as error:
            problem = error
        if problem is not None and not self._groups:
            raise problem
        self.agree(None if problem is None else str(problem))
        return made

    def agree(self, problem: str | None) -> None:
        """InputError in every process if one has a problem: the first process's, or that of the lowest rank."""
        found: list[tuple[int, str]] = [] if problem is None else [(self.rank, problem)]
        for group in self._groups:
            gathered: list[Any] = [None] * torch.distributed.get_world_size(group)
            with reaching():
                torch.distributed.all_gather_object(gathered, found, group=group)
            found = sorted({one for part in gathered for one in part})
        if found:
            raise (InputError if self.first else ToldError)(found[0][1])


class ToldError(InputError):
    """An InputError that the first process has raised and will tell the user about."""
