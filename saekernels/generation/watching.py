"""The context in which a model writes with SAEs spliced in or looking on: `saekernels.watching`."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from saekernels.crosslayer.site import LayerSite
from saekernels.errors import InputError, kind_of
from saekernels.generation.texts import Generated, OnEvent, OnToken, Texts
from saekernels.generation.watch import Fired, Watch, entries_above
from saekernels.sae.codes import Codes
from saekernels.sae.edits import Edit, EditedSAE
from saekernels.splice.context import Splice, splice
from saekernels.splice.given import as_sae
from saekernels.splice.replacement import autocast_off

# Ways to generate in which a row is not one text that grows by a token per pass.
_REFUSED = {
    "num_beams": 1,
    "num_return_sequences": 1,
    "guidance_scale": 1.0,
    "assistant_model": None,
    "prompt_lookup_num_tokens": None,
    "custom_generate": None,
    "inputs_embeds": None,
    "return_dict_in_generate": False,
}


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

    Raises InputError (a ValueError) for a watch or an edit of what is not there, and as `splice`.
    """
    given = {site: as_sae(sae, model, site, "saes") for site, sae in saes.items()}
    edits = dict(edits or {})
    _check(given, watches, edits)
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
        self.special = list(untouched)
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

        A pass is never compiled, since what fires is read by the host at every site. Padding, and what a batch still
        computes of a text that has ended, makes no events. A watch that stops ends a text with the token at which it
        fired; the one that the model had already chosen next is left off.

        Raises InputError (a ValueError) for ids or a mask of another form, and for ways to generate in which a row is
        not one growing text: beams, several texts a prompt, assistants.
        """
        mask = _checked(input_ids, attention_mask)
        own = self._model.generation_config
        given = options.get("generation_config") or own

        def setting(name: str) -> Any:
            """As transformers takes it: what a config leaves open is as in the model's own."""
            value = options.get(name, getattr(given, name, None))
            return getattr(own, name, None) if value is None else value

        for name, plain in _REFUSED.items():
            value = setting(name)
            if value is not None and value != plain:
                raise InputError(f"{name}: got {value!r:.40}, need {plain!r}: each row is one text, token by token")
        if setting("stop_strings") is not None:
            raise InputError("stop_strings: give transformers.StopStringCriteria in stopping_criteria instead")
        if self._splice is None or self._texts is not None:
            raise RuntimeError("generate: works inside its `with` block, one call at a time")
        eos = _ids(setting("eos_token_id"))
        texts = self._texts = Texts(mask.bool(), eos, list(stopping_criteria), on_token, self._on_event)
        options = {**options, "disable_compile": True, "stopping_criteria": [texts]}
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


def _check(saes: Mapping[str, Any], watches: Sequence[Watch], edits: Mapping[str, Sequence[Edit]]) -> None:
    if not saes:
        raise InputError("saes: got none, need a mapping from site to SAE")
    named = [("watches", watch.site, watch.latent) for watch in watches]
    named += [("edits", site, edit.latent) for site, ones in edits.items() for edit in ones]
    for argument, site, latent in named:
        if site not in saes:
            raise InputError(f"{argument}: there is no SAE {site!r}; there are {', '.join(saes)}")
        if latent is not None and latent >= saes[site].n_latents:
            last = saes[site].n_latents - 1
            raise InputError(f"{argument}: {site} has latents 0 to {last}, got {latent}")


def _checked(input_ids: Any, mask: Any) -> Tensor:
    """The attention mask [B, P] int64, checked with the ids."""
    if not isinstance(input_ids, Tensor) or input_ids.is_floating_point() or input_ids.ndim != 2:
        got = list(input_ids.shape) if isinstance(input_ids, Tensor) else kind_of(input_ids)
        raise InputError(f"input_ids: got {got}, need a tensor [B, P] of token ids")
    mask = torch.ones_like(input_ids) if mask is None else mask
    if not isinstance(mask, Tensor) or mask.shape != input_ids.shape:
        got = list(mask.shape) if isinstance(mask, Tensor) else kind_of(mask)
        raise InputError(f"attention_mask: got {got}, need a tensor {list(input_ids.shape)}")
    if not input_ids.numel() or not bool((mask[:, -1] != 0).all()):
        raise InputError("input_ids: every prompt needs a token, and padding to its left, not its right")
    return (mask != 0).long()


def _ids(value: Any) -> list[int]:
    """eos_token_id as it is given: an id, several, a tensor, or None."""
    if value is None:
        return []
    return [int(one) for one in torch.as_tensor(value).reshape(-1).tolist()]
