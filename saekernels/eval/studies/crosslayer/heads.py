"""An acausal crosscoder as the subject of a study: its heads in one model, with codes of clean passes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from saekernels.crosslayer.crosscoder import Crosscoder
from saekernels.crosslayer.head_site import HeadSite, head_sites
from saekernels.errors import InputError
from saekernels.eval.store import fingerprints as identity
from saekernels.eval.studies.crosslayer.subject import Subject, permuted, refused
from saekernels.sae.codes import Codes
from saekernels.sae.probes import AffineProbe


class Heads(Subject):
    """The heads of a `Crosscoder`, each a layer of one model, in the order in which the model runs them.

    What it writes first hangs on what it reads last, so it has no joint run (`causal` is False).
    Args as of `Subject`. Raises InputError where sites are unknown, or are those of several models.
    """

    causal = False

    def __init__(self, name: str, given: Crosscoder, sites: Sequence[str] | None = None) -> None:
        try:
            models = head_sites(given, *([] if sites is None else [sites]))
        except ValueError as error:
            raise refused(name, error) from error
        if len(models) > 1:
            raise InputError(
                f"{name}: its {len(models)} heads are at {next(iter(models[0]))!r} of as many models, and one is "
                "evaluated here; saekernels.eval.studies.heads.head_losses measures those"
            )
        self.across, self.name, self.module = False, name, given
        self._stands: dict[str, Any] = dict(models[0])
        self.sites = tuple(self._stands)

    @property
    def crosscoder(self) -> Crosscoder:
        """The whole."""
        assert isinstance(self.module, Crosscoder)
        return self.module

    @property
    def shared(self) -> bool:
        """Whether one code serves all layers."""
        return True

    @property
    def kind(self) -> str:
        """In words."""
        return "crosscoder"

    def stands(self, **options: Any) -> dict[str, Any]:
        """Site -> what puts in what codes write; codes=, of every head, is all that there is to say."""
        sites: Mapping[str, HeadSite]
        (sites,) = head_sites(self.crosscoder, self.sites)
        next(iter(sites.values())).given[:] = options["codes"]
        return dict(sites)

    def places(self) -> dict[str, Any]:
        """Site -> what has its widths, for passes that put nothing of the dictionary in."""
        nothing, mean = self.crosscoder.W_dec.new_zeros(0, self.crosscoder.d), self.crosscoder.b_dec[0].detach()
        return {site: AffineProbe(nothing, nothing, mean, mean) for site in self.sites}

    def encode(self, number: int, x: Tensor) -> Codes:
        """Not of one head alone."""
        raise NotImplementedError("a crosscoder reads all its heads at once")

    def encode_all(self, reads: Sequence[Tensor]) -> list[Codes]:
        """Codes of every head, of what each reads [..., d]; one object for all of them, unless heads select."""
        device = self.crosscoder.W_enc.device
        return self.crosscoder.encode([x.to(device) for x in reads])

    def write(self, number: int, codes: Sequence[Codes | None], x: Tensor) -> Tensor:
        """[..., d]: what codes write at a head; they are all that it hangs on."""
        own = codes[number]
        assert own is not None
        return self.crosscoder.decode_to(number, own)

    def skipped(self, number: int, x: Tensor) -> None:
        """There are no skip connections."""

    def bias(self, number: int) -> Tensor:
        """[d] of a head."""
        return self.crosscoder.b_dec[number]

    @property
    def has_skip(self) -> bool:
        """There are none."""
        return False

    def permuted(self, number: int, codes: Codes, order: Tensor, norms: Tensor) -> Codes:
        """Codes whose latents write in the directions of others, each with the norm of its own row at this head."""
        return permuted(codes, order, norms)

    def orders(self, made: torch.Generator) -> list[Tensor]:
        """One order for all heads, as a latent is one thing at all of them."""
        return [torch.randperm(self.crosscoder.n_latents, generator=made)] * len(self.sites)

    def norms(self) -> list[Tensor]:
        """[F] of each head: of its decoder's rows."""
        return [self.crosscoder.decoder_to(number).detach().float().norm(dim=1) for number in self.layers]

    def fingerprints(self) -> dict[str, str]:
        """What it is, in short digests by name."""
        return {self.name: identity.fingerprint(self.module, settings=True), f"{self.name} sites": str(self.sites)}

    def distinct(self, codes: Sequence[Codes | None], touched: Tensor) -> tuple[Tensor, int]:
        """Which latents are active at any head [F] bool, and how many there are over the tokens touched [...]."""
        found = []
        for own in {id(one): one for one in codes if one is not None}.values():
            flat = own.to_csr()
            assert flat.offsets is not None
            rows = torch.arange(own.tokens, device=flat.values.device).repeat_interleave(flat.offsets.diff())
            kept = (flat.values != 0) & touched.reshape(-1).to(rows.device)[rows]
            found.append(rows[kept] * own.n_latents + flat.indices.long()[kept])
        pairs = torch.cat(found).unique().cpu()
        fired = torch.zeros(self.crosscoder.n_latents, dtype=torch.bool)
        fired[pairs % len(fired)] = True
        return fired, len(pairs)
