"""Passes that change nothing, from which the heads of a crosscoder get their codes."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping

from torch import Tensor, nn

from saekernels.crosslayer.head_site import HeadSite
from saekernels.errors import InputError
from saekernels.splice.context import splice
from saekernels.splice.replacement import autocast_off


@contextlib.contextmanager
def reading_heads(*models: tuple[nn.Module, Mapping[str, HeadSite]]) -> Iterator[None]:
    """Passes of the models in this block are their own, bit for bit, and give the heads' sites their codes.

    The codes are made when the last head has been read, and stand until all heads are read again; so a block may hold
    many batches, each run through every model once, on the same token ids.

    Args:
        models: (model, its sites): all that `saekernels.head_sites` made of one crosscoder.

    Raises ValueError where that is not all of a crosscoder's heads, and InputError (a ValueError) where a head of a
    crosscoder was read for other tokens than the rest, or not at all when the block ends. As `saekernels.splice` else.
    """
    heads = {site.head: site for _, sites in models for site in sites.values()}
    lists = {id(site.given) for site in heads.values()}
    count = next(iter(heads.values())).crosscoder[0].n_heads if heads else 0
    if len(lists) != 1 or len(heads) != count or sum(len(sites) for _, sites in models) != count:
        raise ValueError(f"models: got heads {sorted(heads)}, need all those of one crosscoder, made together, once")
    held: dict[int, Tensor] = {}

    def look(site: HeadSite) -> Callable[[Tensor, Tensor], Tensor]:
        def look_on(x: Tensor, y: Tensor) -> Tensor:
            held[site.head] = x
            if len(held) == count:
                read = [held[head] for head in range(count)]
                held.clear()
                _same_tokens(read)
                with autocast_off(site.W_dec.device.type):
                    site.take(read)
            return y

        return look_on

    with contextlib.ExitStack() as stack:
        for model, sites in models:
            looks = {name: look(site) for name, site in sites.items()}
            stack.enter_context(splice(model, looks, replace="function"))
        for site in heads.values():
            site.given.clear()
        yield
    if held:
        raise InputError(f"models: heads {sorted(heads.keys() - held.keys())} of the crosscoder were not read")


def _same_tokens(read: list[Tensor]) -> None:
    shapes = [list(x.shape) for x in read]
    if any(shape != shapes[0] for shape in shapes):
        raise InputError(f"models: heads of a crosscoder were read as {shapes}, need the same tokens for all of them")
