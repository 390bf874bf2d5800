"""What a model's sites read and give in a forward pass that ends at the last of them."""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from saekernels.errors import InputError
from saekernels.splice.sites import End, Site, part_of, resolve_site, take_input, take_output

_ENDS = re.compile(r"([^@\[\]>]+?)(\s*(?:@\w+)?(?:\[\w+=\d+\])?)")


class _EndedError(Exception):
    """Ends a forward pass whose rest is not needed."""


class SiteActivations:
    """Reads activations at sites of a causal LM.

    Args:
        model: in eval mode.
        sites: as `splice` takes them, each once.
    """

    def __init__(self, model: nn.Module, sites: Sequence[str]) -> None:
        self.model = model
        self.sites = resolved(model, sites)
        self._ends = {(site.name, end): (site, end) for site in self.sites for end in (site.read, site.write)}

    @torch.no_grad()
    def __call__(self, pieces: Sequence[tuple[Tensor, Tensor]]) -> list[tuple[Tensor, Tensor]]:
        """Of each site (what is read [n, d_in], what is replaced [n, d_out]) in float32, at n wanted positions.

        pieces: (ids [B, S], wanted [B, S] bool), which the model reads one after the other. Both tensors of a site
        that reads what it replaces are the same one.
        """
        found: dict[tuple[str, End], list[Tensor]] = {key: [] for key in self._ends}
        for ids, wanted in pieces:
            for key, value in self._read(ids).items():
                found[key].append(value[wanted].float())
        whole = {key: torch.cat(parts) for key, parts in found.items()}
        return [(whole[site.name, site.read], whole[site.name, site.write]) for site in self.sites]

    def _read(self, ids: Tensor) -> dict[tuple[str, End], Tensor]:
        seen: dict[tuple[str, End], Tensor] = {}

        def keep(site: Site, end: End, value: Tensor) -> None:
            value = part_of(site, end, value, None)
            if value.shape[:-1] != ids.shape:
                raise InputError(
                    f"site {site.name!r}: got an activation of shape {tuple(value.shape)}, need [B, S, width] with "
                    f"[B, S] = {list(ids.shape)}"
                )
            if end is site.write and end != site.read and (site.name, site.read) not in seen:
                raise InputError(
                    f"site {site.name!r}: {site.write.path!r} came before {site.read.path!r} in this forward pass; "
                    "need an end to read that comes first"
                )
            seen[site.name, end] = value
            if len(seen) == len(self._ends):
                raise _EndedError

        handles = [self._hook(site, end, keep) for site, end in self._ends.values()]
        try:
            self.model(input_ids=ids, use_cache=False)
        except _EndedError:
            pass
        finally:
            for handle in handles:
                handle.remove()
        missed = [name for name, _ in self._ends if name not in {name for name, _ in seen}]
        if missed:
            raise InputError(f"sites: {missed[0]!r} was not called in a forward pass")
        return seen

    def _hook(self, site: Site, end: End, keep: object) -> torch.utils.hooks.RemovableHandle:
        if end.is_input:

            def before(module: nn.Module, args: tuple, kwargs: dict) -> None:  # type: ignore[type-arg]
                keep(site, end, take_input(site, end, args, kwargs)[0])  # type: ignore[operator]

            return end.module.register_forward_pre_hook(before, with_kwargs=True)

        def after(module: nn.Module, args: tuple, output: object) -> None:  # type: ignore[type-arg]
            keep(site, end, take_output(site, end, output)[0])  # type: ignore[operator]

        return end.module.register_forward_hook(after)


def matching_sites(model: nn.Module, patterns: Sequence[str]) -> list[str]:
    """Sites from site strings whose paths may hold * and ?, neither of which goes past a dot, in the model's order.

    "model.layers.*" is the output of every layer, "model.layers.*.mlp@module" every MLP's input and output. In
    "READ -> WRITE" the stars of WRITE stand for what those of READ stand for. Raises InputError for one that fits
    nothing and for a site that is named twice, however spelled, and what `resolve_site` does for one that is none.
    """
    found: list[str] = []
    for pattern in patterns:
        if not set("*?") & set(pattern):
            found.append(pattern)
            continue
        ends = [_ENDS.fullmatch(end.strip()) for end in pattern.split("->")]
        if not all(ends):
            raise InputError(f"sites: {pattern!r} is not a site with * in its paths, such as 'model.layers.*@input'")
        path, rest = ends[0][1], ends[0][2].strip()  # type: ignore[index]
        regex = re.compile("".join(_as_regex(part) for part in re.split(r"([*?])", path)))
        matches = [match for name, _ in model.named_modules() if (match := regex.fullmatch(name))]
        if not matches:
            raise InputError(f"sites: no module of {type(model).__name__} fits {path!r}")
        for match in matches:
            others = [_filled(end[1], match) + end[2].strip() for end in ends[1:]]  # type: ignore[index]
            found.append(" -> ".join([match[0] + rest, *others]))
    resolved(model, found)
    return found


def resolved(model: nn.Module, names: Sequence[str]) -> list[Site]:
    """The sites of these names. Raises InputError where two of them are one, and what `resolve_site` does."""
    known: dict[tuple[object, ...], Site] = {}
    for name in names:
        site = resolve_site(model, name)
        ends = tuple((end.module, end.is_input, end.part, end.number) for end in (site.read, site.write))
        if ends in known:
            raise InputError(f"sites: {known[ends].name!r} and {name!r} are one, need each site once")
        known[ends] = site
    return list(known.values())


def _as_regex(part: str) -> str:
    return {"*": r"([^.]*)", "?": r"([^.])"}.get(part) or re.escape(part)


def _filled(path: str, match: re.Match[str]) -> str:
    values = iter(match.groups())
    return "".join(next(values, part) if part in ("*", "?") else part for part in re.split(r"([*?])", path))
