"""Clean passes in which sites are looked at, and passes in which planted values stand at a site: one mask for both."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from saekernels.errors import InputError
from saekernels.eval.passes.head_kinds import Head
from saekernels.eval.passes.layer_reuse import CLEAN, check_reuse, find_reuse
from saekernels.eval.passes.left import SiteNorms, over
from saekernels.eval.passes.plan import Run, first_of_each_site, site_of
from saekernels.eval.text.batches import Batch
from saekernels.parallel.devices import input_device
from saekernels.sae.codes import Codes
from saekernels.splice.context import splice
from saekernels.splice.leave import Leave


@dataclass(frozen=True)
class Seen:
    """A site in the clean pass of a batch: what is read x [..., d_in] and what is replaced y [..., d_out].

    touched: bool [...]; documents: int64, the document of each touched position, in their order.
    """

    x: Tensor
    y: Tensor
    touched: Tensor
    documents: Tensor

    def rows(self, values: Tensor) -> Tensor:
        """[n, d]: the values [..., d] at touched positions."""
        return values[self.touched.to(values.device)]


class Planted(nn.Module):
    """Stands where an SAE stands, and gives what was computed before, whatever it reads."""

    def __init__(self, sae: Any, values: Tensor) -> None:
        super().__init__()
        self.d_in, self.d_out, self.metadata = sae.d_in, sae.d_out, getattr(sae, "metadata", None)
        self.W_dec, self.values = sae.W_dec.detach(), values

    def forward_with_codes(self, x: Tensor) -> tuple[Tensor, None]:
        """(the values [..., d_out], None)."""
        return self.values, None


class Passes:
    """The forward passes of one study. Nothing before a site is changed, so what is planted is as the site would."""

    def __init__(self, model: Any, head: Head, saes: Mapping[str, Any], rule: Leave) -> None:
        self.model, self.head, self.saes = model, head, dict(saes)
        self.device = input_device(model)
        self.sites = first_of_each_site(saes)
        self.left = SiteNorms(model, head, self.sites, rule)
        self.runs = {entry: Run("sae", (entry,)) for entry in saes}
        self.made = 0

    def prepare(self, ids: Tensor) -> str:
        """Find out on ids [1, S] what layers need not be computed twice; "on", or why not."""
        runs = list(self.runs.values())

        def spliced(run: Run, entries: tuple[str, ...]) -> Tensor:
            with splice(self.model, {site_of(entry): self.saes[entry] for entry in entries}):
                return self.head.body(ids)

        self.reuse = check_reuse(find_reuse(self.model, runs), runs, lambda: self.head.body(ids), spliced)
        return self.reuse.why or "on"

    def find_medians(self, batches: Iterable[Batch]) -> None:
        """One clean pass over the text for the norms that the rule is about."""
        for batch in batches:
            self.left.add(batch)
            self.made += 1

    def look(self, batch: Batch, losses: bool = False) -> tuple[dict[str, Seen], Tensor | None]:
        """The sites in one clean pass; `losses`: also its final states [n, d] at the batch's rows, to go on from."""
        found: dict[str, Seen] = {}

        def observe(site: str, x: Tensor, x_hat: Tensor, y: Tensor, *_: Any) -> None:
            if site in found:
                raise InputError(f"site {site!r}: it runs more than once in a pass, so no one value stands there")
            at = over(self.left.touched(batch, site, x, y), x.shape[:-1])
            owners = torch.tensor([window.document for window in batch.windows])[:, None].expand(batch.ids.shape)
            found[site] = Seen(x, y, at, over(owners, x.shape[:-1])[at])

        hidden = None
        recording = self.reuse.recording(CLEAN) if losses else contextlib.nullcontext()
        with recording, splice(self.model, self.sites, replace="zero", untouched=_all(batch), observer=observe):
            if losses:
                hidden = self.head.hidden(batch.ids.to(self.device), batch.rows)
            else:
                self.head.body(batch.ids.to(self.device))
        self.made += 1
        return found, hidden

    def plant(self, batch: Batch, entry: str, seen: Seen, values: Tensor) -> Tensor:
        """Final states [n, d] at the batch's rows with values [..., d_out] at the touched positions of a site."""
        at = seen.touched.reshape(*batch.ids.shape, -1)[..., 0]
        stands = {site_of(entry): Planted(self.saes[entry], values)}
        self.made += 1
        with self.reuse.resuming(self.runs[entry]), splice(self.model, stands, untouched=~at):
            return self.head.hidden(batch.ids.to(self.device), batch.rows)

    def forget(self) -> None:
        """Let go of what the clean pass of the last batch left."""
        self.reuse.forget()


def _all(batch: Batch) -> Tensor:
    """Everything is left untouched, so that sites are only looked at."""
    return torch.ones_like(batch.touched)


def weights_of(sae: Any) -> Tensor:
    """[F] fp32: what one unit of a latent's value moves the output, before a normalisation is undone."""
    norms = sae.W_dec.detach().float().norm(dim=1)
    return torch.ones_like(norms) if sae.rescale_by_decoder_norm else norms


def entries_of(codes: Codes, touched: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(rows, latents [nnz] int64 on the CPU, values [nnz]) of the active latents at touched positions [...]."""
    flat = codes.to_csr()
    assert flat.offsets is not None
    rows = torch.arange(flat.tokens).repeat_interleave(flat.offsets.diff().cpu())
    kept = touched.reshape(-1).cpu()[rows] & (flat.values != 0).cpu()
    return rows[kept], flat.indices.long().cpu()[kept], flat.values[kept.to(flat.values.device)]
