"""What SAEs cost a model that writes: `generate` of transformers with none, one and all sites spliced.

    python benchmarks/generation.py [--model example|gpt2|FOLDER] [--batches 1 8 64] [--cpu-time] [--json FILE]

Beside our splice: hooks with SAELens' own SAE, where it is installed, and with a plain one in torch (dense latents).
The model is the bundled example with its SAEs, or one of GPT-2 small's shape with random weights and one random SAE of
24,576 latents that all its sites share: each site still reads 72 MiB of W_enc, more than a cache holds. Or a model's
folder, at whose layers the SAEs of --saes stand in turns, be they trained there or not: only the time is looked at.
All in one process, in turns, greedy, with an end of text that never comes; a way is timed once it gives what ours does.
What is put in is put in before, as for many texts, and not timed.
Prints seconds a token, each way's over the model's own, and what a site adds; then one SAE at one token beside a read
of as many bytes as W_enc has. "compiled" is the static cache with each step after the prompt compiled by transformers.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import statistics
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from saekernels import SAE, TopK, example, load, splice
from saekernels.bench.measure import machine, peers, timing
from saekernels.cli.options.arguments import at_least
from saekernels.files.checked import check_writable, write_whole
from saekernels.splice.contradictions import OriginWarning

K = 32
Weights = dict[str, Tensor]


def bundled() -> tuple[Any, dict[str, SAE]]:
    """The bundled model and its SAEs by site."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(example.MODEL_DIR).eval()
    return model, {site: load(str(path)) for site, path in example.SAE_DIRS.items()}


def gpt2() -> tuple[Any, dict[str, SAE]]:
    """GPT-2 small's shape, random, and a random SAE at the output of each of its 12 layers."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config()).eval()
    sae = SAE(768, 24576, TopK(K))
    with torch.no_grad():
        sae.W_enc.copy_(torch.randn(24576, 768) / 768**0.5)
        sae.W_dec.copy_(sae.W_enc)
    return model, {f"transformer.h.{layer}": sae.eval() for layer in range(12)}


def folder(path: str, saes: Sequence[str]) -> tuple[Any, dict[str, SAE]]:
    """A model of transformers, and at the output of each of its layers one of the SAEs, in turns."""
    from transformers import AutoModelForCausalLM

    if not saes:
        raise SystemExit("--model: a folder needs --saes as well")
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    warnings.simplefilter("ignore", OriginWarning)  # an SAE of another layer takes as long
    made = [load(one) for one in saes]
    if any(not isinstance(sae.activation, TopK) or sae.activation.k != K for sae in made):
        raise SystemExit(f"--saes: need TopK SAEs of k = {K}, which the other ways are")
    return model, {f"model.layers.{n}": made[n % len(made)] for n in range(model.config.num_hidden_layers)}


def subject(args: argparse.Namespace) -> tuple[Any, dict[str, SAE]]:
    """What --model names."""
    named = {"example": bundled, "gpt2": gpt2}
    return named[args.model]() if args.model in named else folder(args.model, args.saes)


def plain(weights: Weights) -> Callable[[Tensor], Tensor]:
    """A TopK SAE as one writes it in torch."""

    def reconstruct(x: Tensor) -> Tensor:
        pre = functional.linear(x - weights["b_dec"], weights["W_enc"], weights["b_enc"])
        top = pre.topk(K, dim=-1)
        return torch.zeros_like(pre).scatter_(-1, top.indices, top.values.relu()) @ weights["W_dec"] + weights["b_dec"]

    return reconstruct


def ways(saes: Mapping[str, SAE]) -> dict[str, dict[str, Any]]:
    """Of each way, site -> what makes a reconstruction; sites that share an SAE share that, too."""
    weights = {id(sae): {n: getattr(sae, n).detach() for n in ("W_enc", "b_enc", "W_dec", "b_dec")}
               for sae in saes.values()}  # fmt: skip
    made: dict[str, dict[int, Any]] = {"torch": {key: plain(one) for key, one in weights.items()}}
    with contextlib.suppress(ImportError):
        made["SAELens"] = {key: peers.saelens(one, K).eval() for key, one in weights.items()}
    found: dict[str, dict[str, Any]] = {"saekernels": dict(saes)}
    return {**found, **{name: {site: one[id(sae)] for site, sae in saes.items()} for name, one in made.items()}}


@contextlib.contextmanager
def hooked(model: nn.Module, sites: Mapping[str, Any], ours: bool) -> Iterator[None]:
    """The sites' activations replaced: by `splice`, or by a hook at each module."""
    if not sites:
        yield
        return
    if ours:
        with splice(model, sites):
            yield
        return

    def hook(reconstruct: Any) -> Callable[..., Any]:
        return lambda module, given, out: (
            (reconstruct(out[0]), *out[1:]) if isinstance(out, tuple) else reconstruct(out)
        )

    handles = [model.get_submodule(site).register_forward_hook(hook(one)) for site, one in sites.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def agreed(saes: Mapping[str, SAE], by_way: Mapping[str, Mapping[str, Any]]) -> None:
    """AssertionError where a way makes another reconstruction than ours."""
    with torch.no_grad():
        for site, sae in {id(sae): (site, sae) for site, sae in saes.items()}.values():
            x = torch.randn(4, sae.d_in)
            for way, sites in by_way.items():
                message = f"{way} makes another reconstruction"
                torch.testing.assert_close(sites[site](x), sae(x), rtol=1e-3, atol=1e-4, msg=message)


def options_of(cache: str, new: int) -> dict[str, Any]:
    """Those of `generate`."""
    options = {"max_new_tokens": new, "min_new_tokens": new, "do_sample": False, "use_cache": True, "pad_token_id": 0}
    if cache != "dynamic":
        options["cache_implementation"] = "static"
    if cache == "compiled":
        from transformers import CompileConfig

        # Each way is a compilation of its own, which must not serve another one's hooks.
        torch._dynamo.config.skip_nnmodule_hook_guards = False
        torch._dynamo.config.recompile_limit = 64
        options["compile_config"] = CompileConfig(mode="default")
        options["compile_config"]._compile_all_devices = True  # without it transformers compiles on GPUs alone
    return options


def contexts_of(
    model: Any, counts: Sequence[int], by_way: Mapping[str, Mapping[str, Any]]
) -> dict[tuple[int, str], Callable[[], contextlib.AbstractContextManager[None]]]:
    """(sites, way) -> what makes a context in which so many sites are replaced that way."""

    def within(way: str, count: int) -> Callable[[], contextlib.AbstractContextManager[None]]:
        return lambda: hooked(model, dict(list(by_way[way].items())[:count]), way == "saekernels")

    calls = {(count, way): within(way, count) for count in counts for way in by_way}
    return {(0, "model"): contextlib.nullcontext, **calls}


def generation(args: argparse.Namespace, clock: Callable[[], float], rows: list[dict[str, Any]]) -> None:
    """Adds a row for each cache, batch, number of sites and way."""
    model, saes = subject(args)
    by_way = ways(saes)
    agreed(saes, by_way)
    counts = sorted({count for count in args.sites or (1, len(saes)) if 0 < count < len(saes)} | {len(saes)})
    for cache in args.caches:
        for batch in args.batches:
            ids = torch.randint(
                3, model.config.vocab_size, (batch, args.prompt), generator=torch.Generator().manual_seed(1)
            )

            def write(kind: str, ids: Tensor = ids) -> Tensor:
                options = options_of(kind, args.tokens)
                made: Tensor = model.generate(ids, attention_mask=torch.ones_like(ids), **options)
                return made

            within = contexts_of(model, counts, by_way)
            for key, context in within.items():
                with context():
                    made = write(cache)  # and what a compiler takes
                    assert made.shape[1] == args.prompt + args.tokens
                    if cache != "dynamic" and made.tolist() != write("dynamic").tolist():
                        print(f"{cache} {batch} {key}: another text than with a dynamic cache")
            contexts = {str(key): context for key, context in within.items()}
            times = timing.interleave(
                {name: functools.partial(write, cache) for name in contexts},
                rounds=args.rounds, budget=1e9, within=contexts, clock=clock,
            )  # fmt: skip
            clean = times[str((0, "model"))]
            for (count, way), own in ((key, times[str(key)]) for key in within):
                over = timing.median_of_ratios(own, clean)
                step = {number: seconds / args.tokens * 1e3 for number, seconds in own.items()}
                ms = timing.summary(step).median
                added = [ms - clean[number] / args.tokens * 1e3 for number, ms in step.items()]
                site = statistics.median(added) / count if count else None
                rows.append({"cache": cache, "batch": batch, "sites": count, "way": way, "ms_per_step": ms,
                             "tokens_per_s": batch / ms * 1e3, "over_model": over, "ms_per_site": site})  # fmt: skip
                told = "" if site is None else f"{site:9.2f} ms a site"
                print(f"{cache:8}{batch:4}{count:4}  {way:12}{ms:9.2f} ms a step{batch / ms * 1e3:10.1f} tokens/s"
                      f"{over:8.2f}x the model{told}", flush=True)  # fmt: skip


def one_token(args: argparse.Namespace, clock: Callable[[], float]) -> list[dict[str, Any]]:
    """A row for each way of one SAE at one token, caches cold, beside reading as many bytes as W_enc has."""
    _, saes = subject(args)
    site, sae = next(iter(saes.items()))
    x = torch.randn(1, sae.d_in)
    numbers = sae.W_enc.detach()
    calls: dict[str, Callable[[], object]] = {"sum of W_enc": numbers.sum}
    for way, sites in ways({site: sae}).items():
        calls[way] = lambda one=sites[site]: one(x)
    with torch.no_grad():
        for call in calls.values():
            call()
        times = timing.interleave(calls, rounds=9, budget=1e9, between=timing.cold_caches(), clock=clock)
    size = numbers.numel() * numbers.element_size()
    rows = []
    for way, own in times.items():
        ms, over = timing.summary(own).median * 1e3, timing.median_of_ratios(own, times["sum of W_enc"])
        rows.append({"way": way, "ms": ms, "over_read": over, "bytes": size, "gib_per_s": size / 2**30 / ms * 1e3})
        print(f"one token  {way:14}{ms:9.3f} ms, {over:.2f}x a read of W_enc: {size:,} bytes a token,"
              f" {size / 2**30 / ms * 1e3:.1f} GiB/s")  # fmt: skip
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", metavar="example|gpt2|FOLDER", default="example")
    parser.add_argument("--saes", metavar="PATH", nargs="+", default=[], help="SAEs for a model of a folder")
    caches = ("dynamic", "static", "compiled")
    parser.add_argument("--caches", choices=caches, nargs="+", default=["dynamic", "static"])
    parser.add_argument("--sites", metavar="N", type=at_least(1), nargs="+", help="so many, beside all (default: 1)")
    parser.add_argument("--batches", metavar="N", type=at_least(1), nargs="+", default=[1, 8, 64])
    parser.add_argument("--prompt", metavar="N", type=at_least(1), default=16, help="tokens of each prompt")
    parser.add_argument("--tokens", metavar="N", type=at_least(2), default=16, help="new ones of each text")
    parser.add_argument("--rounds", metavar="N", type=at_least(1), default=5)
    parser.add_argument("--threads", metavar="N", type=at_least(1), default=1)
    parser.add_argument("--cpu-time", action="store_true", help="CPU seconds of all threads, for a machine in use")
    parser.add_argument("--json", metavar="FILE")
    args = parser.parse_args()
    if args.json:
        check_writable(args.json, "--json")
    torch.set_num_threads(args.threads)
    clock = time.process_time if args.cpu_time else time.perf_counter
    # Which folder a model or an SAE lies in is nobody's business.
    arguments = {**vars(args), "model": Path(args.model).name, "saes": [Path(one).name for one in args.saes],
                 "json": None}  # fmt: skip
    record: dict[str, Any] = {
        "arguments": arguments, "cpu": machine.cpu(), "versions": machine.versions(("transformers",)),
        **machine.commit(), "one_token": one_token(args, clock), "generation": [],
    }  # fmt: skip
    try:
        generation(args, clock, record["generation"])
    except KeyboardInterrupt:
        print("interrupted: the record has what was measured")
    if args.json:
        write_whole(args.json, json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
