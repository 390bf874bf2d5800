"""What stands in an SAE's place at one head's site, so that a splice puts in what a crosscoder writes there."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from saekernels.crosslayer.crosscoder import Crosscoder
from saekernels.errors import InputError
from saekernels.sae.activations import Activation
from saekernels.sae.codes import Codes
from saekernels.sae.metadata import Metadata


class HeadSite(nn.Module):
    """One head of a `Crosscoder` at its site of a model: `splice` takes it for an SAE.

    It reads nothing of the pass that it is in, for a crosscoder needs all heads at once: it puts in what codes write
    that were made before, of a clean pass over the same tokens. Made by `head_sites`; `reading_heads` makes the codes.

    Attributes:
        head: which; crosscoder: the whole, (crosscoder,).
        given: codes of every head, shared by all sites that were made together; empty where none were made yet.
    """

    def __init__(self, crosscoder: Crosscoder, head: int, given: list[Codes]) -> None:
        super().__init__()
        # Not a part of this module: a copy of one site would have all heads in it.
        self.crosscoder = (crosscoder,)
        self.head, self.given = head, given
        self.metadata: Metadata | None = crosscoder.metadata

    @property
    def d_in(self) -> int:
        """Width of what is replaced."""
        return self.crosscoder[0].d

    @property
    def d_out(self) -> int:
        """Width of what is put in."""
        return self.crosscoder[0].d

    @property
    def n_latents(self) -> int:
        """F."""
        return self.crosscoder[0].n_latents

    @property
    def activation(self) -> Activation:
        """That of the crosscoder."""
        return self.crosscoder[0].activation

    @property
    def architecture(self) -> str:
        """That of the crosscoder."""
        return self.crosscoder[0].architecture

    @property
    def W_dec(self) -> Tensor:
        """[F, d]: the decoder to this head, a view."""
        return self.crosscoder[0].decoder_to(self.head)

    def forward_with_codes(self, x: Tensor) -> tuple[Tensor, Codes]:
        """(what is put in for x [..., d], the codes behind it). Raises InputError where codes are of other tokens."""
        if not self.given:
            raise InputError(
                f"head {self.head} of a crosscoder has no codes: it reads all its heads at once, in passes of its own; "
                "run those in `saekernels.reading_heads` first"
            )
        own = self.given[self.head]
        if own.shape != x.shape[:-1]:
            got = f"has codes of tokens {list(own.shape)}, but the pass has {list(x.shape[:-1])}"
            raise InputError(f"head {self.head} of a crosscoder {got}; read its heads on the same tokens")
        return self.crosscoder[0].decode_to(self.head, own).to(x.dtype), own

    def forward(self, x: Tensor) -> Tensor:
        """What is put in for x [..., d]: [..., d]."""
        return self.forward_with_codes(x)[0]

    def take(self, xs: Sequence[Tensor]) -> None:
        """Make the codes of all heads, of what each reads [..., d], and keep them for all sites made with this one."""
        own = self.crosscoder[0].W_enc
        self.given[:] = self.crosscoder[0].encode([x.to(own.device) for x in xs])

    def extra_repr(self) -> str:
        """What repr() shows between the brackets."""
        return f"head={self.head}"


def head_sites(crosscoder: Crosscoder, *models: Sequence[str]) -> tuple[dict[str, HeadSite], ...]:
    """For each model site -> what stands there: the heads of a crosscoder in running models, for `splice`.

    An acausal crosscoder cannot be spliced as it reads: what it writes at its first layer hangs on its last. Its codes
    come from clean passes (`reading_heads`), and are put in at one head, or at several, in passes after those.

    Args:
        models: sites of each model's heads, in the order of the heads: one sequence of H for a crosscoder of H layers,
            H of one each for H models. By default those of its files: as layers of one model where they differ, each
            in a model of its own where they are one place.

    Raises ValueError for another number of sites than heads, for one that a model has twice, and where none are known.
    """
    known = crosscoder.sites
    if not models:
        if known is None:
            raise ValueError("models: the crosscoder's files do not say where it reads; give the sites of every model")
        models = (known,) if len(set(known)) == len(known) else tuple((one,) for one in known)
    names = [list(model) for model in models if not isinstance(model, str)]
    if len(names) < len(models) or not all(isinstance(one, str) for model in names for one in model):
        raise ValueError(f"models: got {models!r:.120}, need a sequence of sites for each model")
    if sum(map(len, names)) != crosscoder.n_heads:
        raise ValueError(f"models: got {sum(map(len, names))} sites, need one for each of {crosscoder.n_heads} heads")
    if any(len(set(model)) < len(model) for model in names):
        raise ValueError(f"models: got {names!r:.200}, need sites of a model that are all different")
    given: list[Codes] = []
    heads = iter(range(crosscoder.n_heads))
    return tuple({name: HeadSite(crosscoder, next(heads), given) for name in model} for model in names)
