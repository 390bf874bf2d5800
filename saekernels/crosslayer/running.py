"""What a forward pass keeps of the layers that it has come to: their codes, until it has ended."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Generic, Protocol, TypeVar

import torch

from saekernels.crosslayer.sums import TargetSums
from saekernels.errors import InputError
from saekernels.sae.codes import Codes


class OfTokens(Protocol):
    """Something that is kept of a layer."""

    @property
    def shape(self) -> torch.Size:
        """Leading dimensions of the tokens that it is of."""


Kept = TypeVar("Kept", bound=OfTokens)


class RunningCodes(Generic[Kept]):
    """Codes by layer of the pass that is under way, shared by all sites of one cross-layer dictionary.

    What is kept may be something else of a layer than its `Codes`, if it says which tokens it is of.

    Args:
        needed: layers whose codes a pass has to read, ascending; other layers are switched off.

    Layers are read in ascending order. A layer that is read again, in the next pass or when a checkpointed block is
    recomputed, takes the codes of later ones with it; so no code of one pass reaches another.
    """

    def __init__(self, needed: Sequence[int]) -> None:
        self.needed = tuple(needed)
        self._codes: dict[int, Kept] = {}
        self._graded: dict[int, bool] = {}

    def put(self, layer: int, codes: Kept) -> None:
        """Keep the codes of a layer. Raises InputError where an earlier layer that is needed was not read before."""
        missed = [one for one in self.needed if one < layer and one not in self._codes]
        if missed:
            raise InputError(
                f"layer {layer} of a cross-layer dictionary was read before layer {missed[0]} in this forward pass: "
                "its sites run in another order than its layers, or the pass began after that one"
            )
        for later in [one for one in self._codes if one >= layer]:
            del self._codes[later], self._graded[later]
        self._codes[layer], self._graded[layer] = codes, torch.is_grad_enabled()

    def upto(self, target: int, shape: torch.Size) -> list[Kept | None]:
        """Codes of layers 0 .. target; None for those that are switched off.

        Raises InputError where one was not read in this pass, or for other tokens than `shape`, and RuntimeError where
        gradients are wanted now but were off when one was read, as in a block under reentrant checkpointing.
        """
        found: list[Kept | None] = [None] * (target + 1)
        for layer in [one for one in self.needed if one <= target]:
            codes = self._codes.get(layer)
            if codes is None or codes.shape != shape:
                got = "was not read" if codes is None else f"was read for tokens {list(codes.shape)}"
                raise InputError(
                    f"layer {layer} of a cross-layer dictionary {got} in this forward pass, and layer {target} is to "
                    f"write at tokens {list(shape)}"
                )
            if torch.is_grad_enabled() and not self._graded[layer]:
                raise RuntimeError(
                    f"layer {layer} of a cross-layer dictionary was read without gradients, which layer {target} "
                    "needs: checkpoint blocks with use_reentrant=False"
                )
            found[layer] = codes
        return found

    def clear(self) -> None:
        """Let go of everything."""
        self._codes.clear()
        self._graded.clear()


class RunningSums(RunningCodes[Codes]):
    """Codes, and what they write.

    Args:
        needed: as of `RunningCodes`.
        sums: of what codes write, of the same pass.

    Attributes:
        last: the last layer that is replaced in a pass, as far as is known: what is summed ahead for.
    """

    def __init__(self, needed: Sequence[int], sums: TargetSums) -> None:
        super().__init__(needed)
        self.sums, self.last = sums, 0

    def clear(self) -> None:
        """Let go of everything."""
        super().clear()
        self.sums.clear()
