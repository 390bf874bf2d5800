"""The context in which a model writes with SAEs spliced in or looking on: `saekernels.watching`."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from saekernels.crosslayer.site import LayerSite
from saekernels.errors import InputError, InputTypeError, kind_of
from saekernels.generation.arguments import (
    Settings,
    cached,
    check_callbacks,
    check_model,
    check_watched,
    checked_mask,
    criteria,
    given_saes,
    logits_processors,
    token_ids,
)
from saekernels.generation.texts import Generated, OnEvent, OnToken, Texts
from saekernels.generation.watch import Fired, Watch, entries_above
from saekernels.sae.codes import Codes
from saekernels.sae.edits import Edit, EditedSAE
from saekernels.splice.context import Splice, splice
from saekernels.splice.replacement import autocast_off


@contextlib.contextmanager
def watching(
    model: nn.Module,
    saes: Mapping[str, Any],
    watches: Sequence[Watch] = (),
    *,
    edits: Mapping[str, Sequence[Edit]] | None = None,
    keep_error: bool = False,
    untouched: Collection[int] = (),
    leave_first: int = 0,
    leave_norm: float | None = None,
    on_event: OnEvent | None = None,
) -> Iterator[Watching]:
    """Context manager in which `Watching.generate` writes with SAEs spliced in, and tells which latents fire and when.

    Args:
        model: a decoder-only model of transformers.
        saes: site -> SAE, or what else `splice` takes for one.
        watches: latents, and the values above which they make an event.
        edits: site -> edits of that site's latents, in order.
        keep_error: put in no reconstruction: what is not edited stays what the model computed, and an edited site
            changes by decode(edited) - decode(codes). Sites with neither watch nor edit are then left alone.
        untouched: token ids whose positions stay as they are and make no events: a tokenizer's special ones.
        leave_first, leave_norm: positions that stay as they are, as in `splice`; they make no events.
        on_event: called with each `Fired` as soon as the pass that read its token is over.

    Raises InputError (a ValueError) for a watch or an edit of what is not there, one too large, and as `splice`;
    InputTypeError (a TypeError, too) for watches, edits or SAEs in another form than these.
    """
    check_model(model)
    given = given_saes(saes, model)
    check_watched(given, watches, edits)
    check_callbacks(on_event=on_event)
    if not isinstance(keep_error, bool):
        raise InputTypeError(f"keep_error: got {kind_of(keep_error)}, need True or False")
    edits = dict(edits or {})
    looks: dict[str, list[Codes]] = {}
    stands: dict[str, Any] = {}
    for site, sae in given.items():
        watched = any(watch.site == site for watch in watches)
        if isinstance(sae, LayerSite) and (keep_error or site in edits):
            raise InputError(f"saes: {site!r} is a layer of a cross-layer transcoder: give edits to layer_sites")
        if site in edits:
            stands[site] = _Edited(sae, edits[site], keep_error, looks.setdefault(site, []))
        elif not keep_error:
            stands[site] = sae
        elif watched:
            stands[site] = _look_on(sae, looks.setdefault(site, []))
    if not stands:
        raise InputError("keep_error: with neither watches nor edits the SAEs would do nothing")
    modes: Any = {site: "sae" if isinstance(one, nn.Module) else "function" for site, one in stands.items()}
    active = Watching(model, list(stands), watches, looks, untouched, on_event)
    options: dict[str, Any] = {"leave_first": leave_first, "leave_norm": leave_norm, "observer": active._observe}
    with splice(model, stands, replace=modes, untouched=active.special or None, **options) as spliced:
        active._attach(spliced)
        try:
            yield active
        finally:
            active._detach()


class Watching:
    """A model that is being watched; made by `watching`.

    Attributes:
        events: all `Fired` of this block so far, those of each call of `generate` in the order of its passes.
    """

    def __init__(
        self,
        model: Any,
        sites: Sequence[str],
        watches: Sequence[Watch],
        looks: Mapping[str, list[Codes]],
        untouched: Collection[int],
        on_event: OnEvent | None,
    ) -> None:
        self.events: list[Fired] = []
        self.special = token_ids(untouched)
        self._model, self._looks, self._tell = model, looks, on_event
        self._order = {site: number for number, site in enumerate(sites)}
        self._watches = {site: [watch for watch in watches if watch.site == site] for site in sites}
        self._splice: Splice | None = None
        self._texts: Texts | None = None

    def generate(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        *,
        stopping_criteria: Sequence[Any] = (),
        on_token: OnToken | None = None,
        **options: Any,
    ) -> list[Generated]:
        """What the model writes after each prompt: its own `generate`, with its options (`max_new_tokens`, `do_sample`,
        `cache_implementation="static"`, ...). Greedy unless they, or the model's generation config, say otherwise.

        Args:
            input_ids: [B, P] int64, padded on the left.
            attention_mask: [B, P], 0 at padding; None for no padding.
            stopping_criteria: further ones, of transformers.
            on_token: called as ``on_token(row, id)`` for every new token, before what fires at that token.

        A pass is never compiled, since what fires is read by the host at every site. Padding, what a batch still
        computes of a text that has ended, and tokens that `past_key_values` already holds make no events. A watch that
        stops ends a text with the token at which it fired; the one that the model had already chosen next is left off.

        Raises InputError (a ValueError) for ids or a mask of another form, scores that become NaN, and ways to
        generate in which a row is not one growing text: beams, several texts a prompt, assistants.
        """
        check_callbacks(on_token=on_token)
        mask = checked_mask(input_ids, attention_mask, self._model)
        settings = Settings(self._model.generation_config, options)
        if self._splice is None or self._texts is not None:
            raise RuntimeError("generate: works inside its `with` block, one call at a time")
        others = criteria(stopping_criteria)
        seen = cached(options.get("past_key_values"))
        texts = Texts(mask.bool(), settings.eos, settings.max_time, others, on_token, self._on_event, seen)
        processors = logits_processors(options.get("logits_processor"), texts.check_scores)
        self._texts = texts
        options = {**options, "disable_compile": True, "max_time": None, "stopping_criteria": [texts]}
        options["logits_processor"] = processors
        try:
            self._model.generate(input_ids=input_ids, attention_mask=mask, **options)
            texts.tell_events()
        finally:
            self._texts = None
            self._splice.untouched = self.special or None
        return texts.made

    def _attach(self, spliced: Splice) -> None:
        self._splice = spliced
        self._handle = self._model.register_forward_pre_hook(self._begin, with_kwargs=True)

    def _detach(self) -> None:
        self._splice = None
        self._handle.remove()

    def _on_event(self, event: Fired) -> None:
        self.events.append(event)
        if self._tell is not None:
            self._tell(event)

    def _begin(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self._texts is None or self._splice is None:
            return
        ids: Tensor = kwargs["input_ids"] if "input_ids" in kwargs else args[0]
        touched = self._texts.begin_pass(ids)
        if self.special:
            special = torch.tensor(self.special, device=ids.device)
            touched = touched & ~torch.isin(ids, special).to(touched.device)
        self._splice.untouched = ~touched

    def _observe(self, site: str, x: Any, x_hat: Any, target: Any, codes: Codes | None, touched: Tensor) -> None:
        if site in self._looks:
            codes = self._looks[site].pop()
        texts, watches = self._texts, self._watches[site]
        if texts is None or codes is None or not watches:
            return
        columns = len(texts.ids[0])
        each = codes.tokens // (len(texts.ids) * columns)  # heads, where an SAE is of one head's width
        for row, latent, value, stop in entries_above(codes, watches, touched.reshape(-1)):
            text, column = divmod(row // each, columns)
            texts.add(text, column, self._order[site], site, latent, value, stop)


class _Edited(EditedSAE):
    """An edited SAE that leaves the codes from before the edits in `found`."""

    def __init__(self, sae: Any, edits: Sequence[Edit], keep_error: bool, found: list[Codes]) -> None:
        super().__init__(sae, edits, keep_error)
        self.found = found

    def edited(self, x: Tensor, out: Tensor, codes: Codes) -> tuple[Tensor, Codes]:
        """As EditedSAE."""
        self.found[:] = [codes]
        return super().edited(x, out, codes)


def _look_on(sae: Any, found: list[Codes]) -> Callable[[Tensor, Tensor], Tensor]:
    """What leaves a site as it is, and the codes of what is read there in `found`."""

    def look(x: Tensor, target: Tensor) -> Tensor:
        device = sae.W_dec.device
        with autocast_off(device.type):
            found[:] = [sae.encode(x.to(device, sae.W_dec.dtype))]
        return target

    return look
