"""What fires while a model writes, against one pass over the finished text; batches, caches, ends, edits, refusals."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import DynamicCache, GenerationConfig, T5Config, T5ForConditionalGeneration

import tiny_lm
from saekernels.errors import InputError
from saekernels.generation.texts import Generated, Texts
from saekernels.generation.watch import Fired, Watch
from saekernels.generation.watching import watching
from saekernels.sae.edits import Edit, EditedSAE
from saekernels.splice.context import splice
from tiny_lm import SITES

PROMPTS = ("Some days", "The old lighthouse keeper")
NEW = 6
LOW = 0.3
WATCHES = [Watch(SITES[0], None, LOW), Watch(SITES[1], 5), Watch(SITES[1], 7, 0.1), Watch(SITES[1], 9)]
EDITS = {SITES[0]: [Edit(3, "set", (6.0,)), Edit(11, "scale", (-2.0,))]}


@pytest.fixture(scope="module")
def model() -> Any:
    return tiny_lm.trained_model()


@functools.cache
def saes() -> Any:
    return tiny_lm.saes()


def prompts(texts: Sequence[str] = PROMPTS) -> dict[str, Tensor]:
    ids = [tiny_lm.tokenizer()(text)["input_ids"] for text in texts]
    longest = max(map(len, ids))
    padded = torch.tensor([[2] * (longest - len(one)) + one for one in ids])
    mask = torch.tensor([[0] * (longest - len(one)) + [1] * len(one) for one in ids])
    return {"input_ids": padded, "attention_mask": mask}


def generate(model: Any, texts: Sequence[str] = PROMPTS, watches: Any = WATCHES, **options: Any) -> list[Generated]:
    own = {name: options.pop(name) for name in ("edits", "keep_error", "on_event") if name in options}
    with watching(model, saes(), watches, untouched=[0, 1, 2], **own) as watched:
        made = watched.generate(**prompts(texts), **{"max_new_tokens": NEW, "eos_token_id": 319, **options})
    assert watched.events == [] or sorted(watched.events, key=lambda one: one.prompt) == [
        event for one in made for event in one.events
    ]
    return made


def replayed(model: Any, text: str, made: Generated, sites: Any, **options: Any) -> dict[tuple[int, str, int], float]:
    """(position, site, latent) -> value of what fires in one pass over a text that has been written."""
    prompt = tiny_lm.tokenizer()(text)["input_ids"]
    ids = torch.tensor([prompt + (made.ids if made.reason == "latent" else made.ids[:-1])])
    found: dict[tuple[int, str, int], float] = {}

    def observe(site: str, x: Tensor, x_hat: Any, target: Any, codes: Any, touched: Tensor) -> None:
        dense = saes()[site].encode(x).to_dense()[0]
        for watch in (one for one in WATCHES if one.site == site):
            above = (dense > watch.threshold) & touched[0].unsqueeze(-1)
            for position, latent in above.nonzero().tolist():
                if watch.latent in (None, latent):
                    found[position, site, latent] = dense[position, latent].item()

    with torch.no_grad(), splice(model, sites, untouched=[0, 1, 2], observer=observe, **options):
        model(ids)
    return found


def values(events: Sequence[Fired]) -> dict[tuple[int, str, int], float]:
    return {(one.position, one.site, one.latent): one.value for one in events}


@pytest.mark.parametrize(
    ("cache", "keep_error", "edits"),
    [("dynamic", False, EDITS), ("static", True, EDITS), ("static", False, {}), ("none", True, {})],
)
def test_what_fires_is_what_one_pass_over_the_text_says(model: Any, cache: str, keep_error: bool, edits: Any) -> None:
    how: dict[str, Any] = {"use_cache": cache != "none"}
    if cache == "static":
        how["cache_implementation"] = "static"
    stands = {site: EditedSAE(sae, edits.get(site, ()), keep_error) for site, sae in saes().items()}
    batch = generate(model, edits=edits, keep_error=keep_error, **how)
    for text, made in zip(PROMPTS, batch, strict=True):
        with torch.no_grad(), splice(model, stands, untouched=[0, 1, 2]):
            ids = model.generate(**prompts([text]), max_new_tokens=NEW, eos_token_id=319, do_sample=False)
        start = ids.shape[1] - NEW
        assert made.ids == ids[0, start:].tolist()
        assert made.reason == "length"
        expected = replayed(model, text, made, stands)
        assert values(made.events) == pytest.approx(expected, rel=1e-4, abs=1e-5)
        assert len(made.events) == len(expected) > 10
        assert {one.latent for one in made.events if one.site == SITES[1]} <= {5, 7, 9}
        whole = tiny_lm.tokenizer()(text)["input_ids"] + made.ids
        for event in made.events:
            assert event.token == whole[event.position]
            assert event.generated == (event.position >= start)


def test_events_come_while_it_writes_and_in_order(model: Any) -> None:
    log: list[tuple[str, int]] = []
    tokens = len(tiny_lm.tokenizer()(PROMPTS[1])["input_ids"])
    (made,) = generate(
        model,
        PROMPTS[1:],
        on_event=lambda event: log.append(("event", event.position)),
        on_token=lambda row, token: log.append(("token", tokens + sum(kind == "token" for kind, _ in log))),
    )
    assert [place for _, place in log] == sorted(place for _, place in log)
    assert [place for kind, place in log if kind == "token"] == list(range(tokens, tokens + NEW))
    first = log.index(("event", tokens))
    assert log[first - 1] == ("token", tokens)  # what fires at a token is told after it, and before the next
    assert len(log) == len(made.events) + NEW


def test_a_text_that_has_ended_makes_no_events(model: Any) -> None:
    free = generate(model)
    eos = free[0].ids[2]
    made = generate(model, eos_token_id=[eos, 318], pad_token_id=2)
    at = free[0].ids.index(eos)
    assert made[0].ids == free[0].ids[: at + 1]
    assert made[0].reason == "eos"
    last = len(tiny_lm.tokenizer()(PROMPTS[0])["input_ids"]) + at
    assert made[0].events == [event for event in free[0].events if event.position < last]
    assert made[1] == free[1] or eos in free[1].ids


def test_what_a_config_leaves_open_is_as_in_the_models_own(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    eos = generate(model)[0].ids[2]
    monkeypatch.setattr(model.generation_config, "eos_token_id", eos)
    config = GenerationConfig(max_new_tokens=NEW, pad_token_id=2)
    with watching(model, saes(), untouched=[0, 1, 2]) as watched:
        made = watched.generate(**prompts(), generation_config=config)
    assert (made[0].reason, made[0].ids[-1]) == ("eos", eos)


def test_codes_without_bounds_are_refused() -> None:
    texts = Texts(torch.ones(1, 2, dtype=torch.bool), [], math.inf, [], None, print)
    texts.begin_pass(torch.tensor([[5, 6]]))
    with pytest.raises(InputError, match="x:3 fires at inf: what the SAEs put in, edits among it, is too large"):
        texts.add(0, 1, 0, "x", 3, float("inf"), False)


def test_a_watch_that_stops_ends_the_text_at_its_token(model: Any) -> None:
    free = generate(model)
    event = next(
        one for one in free[1].events if one.generated and one.latent not in {e.latent for e in free[0].events}
    )
    made = generate(model, watches=[*WATCHES, Watch(event.site, event.latent, stop=True)])
    assert made[0] == free[0]
    assert made[1].reason == "latent"
    assert made[1].stopped_by is not None
    assert made[1].stopped_by.latent == event.latent
    start = len(tiny_lm.tokenizer()(PROMPTS[1])["input_ids"])
    assert start + len(made[1].ids) == made[1].stopped_by.position + 1 <= event.position + 1
    assert made[1].ids == free[1].ids[: len(made[1].ids)]


def test_a_further_criterion_ends_its_row(model: Any) -> None:
    def first_row(ids: Tensor, scores: Any, **_: Any) -> Tensor:
        return torch.tensor([ids.shape[1] >= prompts()["input_ids"].shape[1] + 2, False])

    made = generate(model, stopping_criteria=[first_row])
    assert [one.reason for one in made] == ["criteria", "length"]
    for late in ({"max_time": 1e-9}, {"generation_config": GenerationConfig(max_time=1e-9)}):
        assert [(len(one.ids), one.reason) for one in generate(model, **late)] == [(1, "time"), (1, "time")]
    assert [len(one.ids) for one in made] == [2, NEW]


def test_sampling_is_that_of_transformers(model: Any) -> None:
    how: dict[str, Any] = {"do_sample": True, "temperature": 1.5, "top_k": 0}
    torch.manual_seed(3)
    made = generate(model, keep_error=True, **how)
    torch.manual_seed(3)
    ids = model.generate(**prompts(), max_new_tokens=NEW, eos_token_id=319, **how)
    assert [one.ids for one in made] == ids[:, -NEW:].tolist()


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"num_beams": 2}, "num_beams: got 2, need 1"),
        ({"num_return_sequences": 3, "do_sample": True}, "num_return_sequences: got 3, need 1"),
        ({"guidance_scale": 1.5}, "guidance_scale: got 1.5, need 1.0"),
        ({"stop_strings": "x"}, "stop_strings: give transformers.StopStringCriteria"),
        ({"watches": [Watch("x", 1)]}, "watches: there is no SAE 'x'; there are model.layers.0"),
        ({"watches": [Watch(SITES[0], 64)]}, "watches: model.layers.0 has latents 0 to 63, got 64"),
        ({"edits": {"x": [Edit(1, "zero")]}}, "edits: there is no SAE 'x'"),
        ({"watches": Watch(SITES[0], 1)}, "watches: got Watch, need a sequence of saekernels.Watch"),
        ({"watches": iter([Watch(SITES[0])])}, "watches: got list_iterator, need a sequence of"),
        ({"edits": [Edit(1, "zero")]}, "edits: got list, need a mapping from site to a sequence of saekernels.Edit"),
        ({"edits": {SITES[0]: Edit(1, "zero")}}, "edits: 'model.layers.0': got Edit, need a sequence of"),
        ({"edits": {SITES[0]: [Edit(1, "set", (1e39,))]}}, "edits: latent 1 gets .*, which float32 does not hold"),
        ({"stopping_criteria": lambda ids, scores: ids[:, 0] > 0}, "stopping_criteria: got function, need a sequence"),
        ({"on_token": 5}, "on_token: got int, need a function, or None"),
        ({"on_event": [print]}, "on_event: got list, need a function, or None"),
        ({"untouched": 5}, "untouched: got 5, need a collection of token ids"),
        ({"max_time": "1"}, "max_time: got '1', need a positive number of seconds"),
        ({"eos_token_id": "</s>"}, "eos_token_id: got '</s>', need a token id, or several"),
        ({"eos_token_id": [2, None]}, r"eos_token_id: got \[2, None\], need a token id, or several"),
        ({"watches": [], "keep_error": True}, "keep_error: with neither watches nor edits"),
        ({"attention_mask": torch.tensor([[1, 0]])}, "needs a token, and padding to its left, not its right"),
        ({"input_ids": torch.zeros(0, 3, dtype=torch.long)}, "every prompt needs a token"),
        ({"input_ids": torch.zeros(3)}, r"input_ids: got torch.float32 \[3\], need a tensor \[B, P\]"),
        ({"input_ids": torch.ones(1, 2) > 0}, r"input_ids: got torch.bool \[1, 2\], need a tensor"),
        ({"input_ids": torch.tensor([[5, 320]])}, "input_ids: got 320, need ids of the model's tokens, 0 to 319"),
        ({"input_ids": torch.tensor([[5, -3]])}, "input_ids: got -3, need ids"),
        ({"logits_processor": print}, "logits_processor: got .*, need a sequence of transformers.LogitsProcessor"),
        ({"keep_error": "no"}, "keep_error: got str, need True or False"),
        ({"attention_mask": torch.ones(1, 3)}, r"attention_mask: got \[1, 3\], need a tensor \[1, 2\]"),
    ],
)
def test_what_cannot_be_watched_is_refused(model: Any, options: dict[str, Any], told: str) -> None:
    names = {"edits", "keep_error", "watches", "on_event", "untouched"} & options.keys()
    own = {name: options.pop(name) for name in names}
    ids = {"input_ids": torch.tensor([[5, 6]]), **options}
    with pytest.raises(InputError, match=told), watching(model, saes(), **own) as watched:
        watched.generate(**ids, max_new_tokens=1)


def test_a_cache_that_was_given_moves_no_event(model: Any) -> None:
    texts = prompts(PROMPTS[1:])
    with watching(model, saes(), WATCHES, untouched=[0, 1, 2]) as watched:
        whole = watched.generate(**texts, max_new_tokens=6, use_cache=True, eos_token_id=319)[0]
        cache = DynamicCache()
        how: dict[str, Any] = {"max_new_tokens": 3, "use_cache": True, "past_key_values": cache, "eos_token_id": 319}
        first = watched.generate(**texts, **how)[0]
        ids = torch.cat([texts["input_ids"], torch.tensor([first.ids])], 1)
        then = watched.generate(ids, **how)[0]
    assert first.ids + then.ids == whole.ids
    places = [
        [(one.position, one.token, one.latent) for one in made] for made in (first.events + then.events, whole.events)
    ]
    assert places[0] == places[1]
    assert min(one.position for one in then.events) >= ids.shape[1] - 1


@pytest.mark.parametrize("sampled", [False, True])
def test_scores_that_are_nan_are_refused(model: Any, sampled: bool) -> None:
    def lost(ids: Tensor, scores: Tensor) -> Tensor:
        return scores.masked_fill(torch.tensor([[False], [True]]), math.nan)

    with pytest.raises(InputError, match="the scores of the next token are NaN: what the SAEs put in"):
        generate(model, logits_processor=[lost], do_sample=sampled)


def test_only_what_writes_is_watched() -> None:
    with pytest.raises(InputError, match="model: got Linear, which cannot generate, need a causal model"):
        watching(torch.nn.Linear(2, 2), saes(), [Watch(SITES[0])]).__enter__()
    tiny = T5Config(vocab_size=8, d_model=4, d_kv=2, d_ff=4, num_layers=1, num_heads=2)
    with pytest.raises(InputError, match=r"model: got T5For.*, which has an encoder"):
        watching(T5ForConditionalGeneration(tiny), saes(), [Watch(SITES[0])]).__enter__()


def test_thresholds_and_latents_are_checked() -> None:
    with pytest.raises(InputError, match=r"watch: got threshold -1\.0, need a finite number from 0"):
        Watch("x", 1, -1.0)
    for latent in (-1, 1.5, "3", True):
        with pytest.raises(InputError, match=f"watch: got latent {latent!r}, need an index from 0"):
            Watch("x", latent)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="watch: got threshold '5', need a finite number"):
        Watch("x", None, "5")  # type: ignore[arg-type]
    for given in ({"threshold": math.nan}, {"threshold": True}, {"stop": "no"}, {"site": ["x"]}):
        with pytest.raises(InputError, match=f"watch: got {next(iter(given))} "):
            Watch(**{"site": "x", **given})  # type: ignore[arg-type]
    assert Watch("x", np.int64(3), np.float32(2.0)) == Watch("x", 3, 2.0)  # type: ignore[arg-type]
