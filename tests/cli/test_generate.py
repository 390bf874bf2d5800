"""`saekernels generate`: texts, marks, events as JSON lines and JSON, prompts from everywhere, and what it refuses."""

from __future__ import annotations

import io
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import cli
import tiny_lm
from cli import SITE
from saekernels.cli.commands.generation.live import Lines, Streamed, marks
from saekernels.cli.commands.generation.prompts import Prompt
from saekernels.cli.commands.generation.session import Session
from saekernels.cli.commands.generation.text import legend
from saekernels.errors import InputError
from saekernels.generation.watch import Watch

PROMPT = "Some days"


def argv(good: dict[str, Path], *more: str, prompts: tuple[str, ...] = (PROMPT,), new: int = 5) -> list[str]:
    saes = [f"{site}={good[site]}" for site in tiny_lm.SITES]
    model = ["--model", str(good["model"]), "--sae", *saes, "--max-new-tokens", str(new)]
    return ["generate", *prompts, *model, *more]


def kept(good: dict[str, Path], folder: Path, *more: str, **options: Any) -> tuple[str, dict[str, Any]]:
    """(what is shown, the JSON)."""
    path = folder / "out.json"
    ended = cli.run(argv(good, *more, "--json", str(path), **options))
    assert (ended.code, ended.err) == (0, "")
    return ended.out, json.loads(path.read_text())


def test_lines_json_and_terminal_tell_the_same(good: dict[str, Path], tmp_path: Path) -> None:
    lines = tmp_path / "events.jsonl"
    every = kept(good, tmp_path, "--watch", f"{SITE}>0.2")[1]["prompts"][0]["texts"][0]["events"]
    latent = next(one["latent"] for one in every if one["generated"])
    watched = ["--watch", f"{SITE}:{latent}>0.2", tiny_lm.SITES[1]]
    shown, found = kept(good, tmp_path, *watched, "--events", str(lines))
    (record,) = found["prompts"]
    (text,) = record["texts"]
    told = [json.loads(line) for line in lines.read_text().splitlines()]
    assert [one["kind"] for one in told].count("token") == len(text["ids"]) == 5
    assert [one["id"] for one in told if one["kind"] == "token"] == text["ids"]
    fired = [one for one in told if one["kind"] == "fired"]
    assert [{key: one[key] for key in event} for one, event in zip(fired, text["events"], strict=True)] == text[
        "events"
    ]
    assert {one["site"] for one in fired} == set(tiny_lm.SITES)
    assert {one["latent"] for one in fired if one["site"] == SITE} == {latent}
    assert all(one["value"] > 0.2 for one in fired if one["site"] == SITE)
    assert told[-1] == {"kind": "end", "prompt": 0, "edited": False, "reason": "length", "stopped_by": None,
                        "text": text["text"]}  # fmt: skip
    assert shown.startswith(f"a: {SITE}:{latent}>0.2\n\n{PROMPT}")
    marked = [one for one in fired if one["site"] == SITE and one["generated"]]
    assert shown.count("[a ") == len(marked) > 0
    assert "5 tokens, ended by --max-new-tokens" in shown
    live = cli.run(argv(good, *watched, "--events", "-"))
    assert (live.code, live.out) == (0, lines.read_text())


def test_an_edit_shows_both_texts(good: dict[str, Path], tmp_path: Path) -> None:
    shown, found = kept(good, tmp_path, "--edit", f"{SITE}:3:set:30", "--keep-error", "--cache", "static")
    (record,) = found["prompts"]
    plain, edited = record["texts"]
    assert (plain["edited"], edited["edited"]) == (False, True)
    at = record["parts_at"]
    assert plain["ids"][:at] == edited["ids"][:at]
    assert plain["ids"][at] != edited["ids"][at]
    assert f"They part at new token {at}." in shown
    assert "without edits" in shown
    assert plain["text"] == kept(good, tmp_path, "--watch", SITE, "--keep-error")[1]["prompts"][0]["texts"][0]["text"]
    shown, found = kept(good, tmp_path, "--edit", f"{SITE}:3:scale:1")
    assert found["prompts"][0]["parts_at"] is None
    assert "The texts are the same." in shown


def test_json_lines_are_ascii() -> None:
    """A terminal that cannot show a letter would put another one into the JSON."""
    told: list[str] = []
    Lines([Prompt(0, "x", [5])], SimpleNamespace(decode=lambda ids: "é"), False, told.append).token(0, 6)
    assert told[0].isascii()
    assert json.loads(told[0])["text"] == "é"


def test_half_a_character_at_the_end_is_shown_as_it_is_kept() -> None:
    shown: list[str] = []
    decoded = SimpleNamespace(decode=lambda ids, **options: bytes(ids).decode(errors="replace"))
    streamed = Streamed(Prompt(0, "x", list(b"x")), decoded, {}, shown.append)
    for token in "yé".encode()[:-1]:
        streamed.token(0, token)
    assert "".join(shown) == "y", "not before it is known what comes of it"
    streamed.end()
    assert "".join(shown) == "y\ufffd"


@pytest.mark.parametrize(
    ("error", "code", "told"),
    [
        (KeyboardInterrupt(), 130, "interrupted, {events} and {json} was written, of 2 of 3 prompts\n"),
        (
            InputError("too large"),
            2,
            "{events} and {json} was written, of 2 of 3 prompts\nsaekernels generate: error: ",
        ),
    ],
)
def test_what_was_finished_before_an_end_is_kept(
    good: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int, told: str
) -> None:
    files = {"events": tmp_path / "events.jsonl", "json": tmp_path / "out.json"}
    options = ["--batch-size", "1", "--events", str(files["events"]), "--json", str(files["json"])]
    cli.run(argv(good, *options, prompts=("Some", "The", "def")))
    whole = json.loads(files["json"].read_text())
    lines = files["events"].read_text()
    assert whole["complete"] is True
    write = Session.write

    def stopped(self: Session, batch: Any) -> Any:
        if batch[0].text == "def":
            self.lines.append("of a text that goes on\n")
            raise error
        return write(self, batch)

    monkeypatch.setattr(Session, "write", stopped)
    ended = cli.run(argv(good, *options, prompts=("Some", "The", "def")))
    assert (ended.code, told.format(**files) in ended.err) == (code, True), ended.err
    found = json.loads(files["json"].read_text())
    assert (found["complete"], found["prompts"]) == (False, whole["prompts"][:2])
    assert lines.startswith(kept := files["events"].read_text())
    assert json.loads(kept.splitlines()[-1])["kind"] == "end"
    for path in files.values():
        path.unlink()
    ended = cli.run(argv(good, *options, prompts=("def", "Some")))
    assert (ended.code, "prompts" in ended.err, any(path.exists() for path in files.values())) == (code, False, False)


def test_the_legend_tells_two_thresholds_of_a_latent_apart() -> None:
    watches = [Watch(SITE, 3, 0.5), Watch(SITE, 3, 2.0, stop=True), Watch(SITE, 4, 1.0, stop=True)]
    assert legend(watches, marks(watches)).splitlines() == [
        f"a: {SITE}:3>0.5, above 2 it ends the text",
        f"b: {SITE}:4>1, which ends the text",
    ]


def test_a_latent_stops_the_text(good: dict[str, Path], tmp_path: Path) -> None:
    shown, found = kept(good, tmp_path, "--stop", SITE)
    (text,) = found["prompts"][0]["texts"]
    assert text["reason"] == "latent"
    assert len(text["ids"]) == 1
    by = text["stopped_by"]
    assert f"stopped: {SITE}:{by['latent']} is {by['value']:.3f} at token {by['position']}" in shown


def test_prompts_from_everywhere_and_in_batches(
    good: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = ["Some days", "The old lighthouse keeper", "def"]
    (tmp_path / "p.txt").write_text("\n\n".join(texts) + "\n")
    (tmp_path / "p.jsonl").write_text("".join(json.dumps({"text": one}) + "\n" for one in texts))
    monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(texts)))
    alone, first = kept(good, tmp_path, prompts=tuple(texts), new=3)
    assert all(f"{one['prompt']}{one['texts'][0]['text']}" in alone for one in first["prompts"])
    for more in (["p.txt", "1"], ["p.jsonl", "2"], ["-", "3"]):
        source = more[0] if more[0] == "-" else str(tmp_path / more[0])
        found = kept(good, tmp_path, "--prompts", source, "--batch-size", more[1], prompts=(), new=3)[1]["prompts"]
        assert [one["prompt"] for one in found] == texts
        for one, other in zip(found, first["prompts"], strict=True):
            assert one["texts"][0]["ids"] == other["texts"][0]["ids"]
            places = [[(e["position"], e["site"]) for e in each["texts"][0]["events"]] for each in (one, other)]
            assert places[0] == places[1] != []


def test_a_seed_repeats_a_sample(good: dict[str, Path], tmp_path: Path) -> None:
    def sampled(*more: str) -> Any:
        given = ["--temperature", "3", "--keep-error", "--sites", SITE, *more]
        return kept(good, tmp_path, *given)[1]["prompts"][0]["texts"][0]

    assert sampled("--seed", "1") == sampled("--seed", "1") != sampled("--seed", "2")
    assert {event["site"] for event in sampled()["events"]} == {SITE}
    more = ("--temperature", "3", "--batch-size", "1", "--edit", f"{SITE}:3:scale:1")
    twice = kept(good, tmp_path, *more, prompts=(PROMPT, PROMPT))[1]["prompts"]
    ids = [[text["ids"] for text in one["texts"]] for one in twice]
    assert ids[0][0] == ids[0][1] != ids[1][0] == ids[1][1], "same numbers for both texts, others for the next batch"


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (["--prompts", "no.txt"], "--prompts: cannot read 'no.txt'"),
        (["--prompts", "bad.txt"], "--prompts: cannot read"),
        (["--prompts", "blank.txt"], "holds no prompt"),
        (["--prompts", "ids.jsonl"], "holds token ids, need texts"),
        (["--max-new-tokens", "50"], "tokens, and --max-new-tokens is 50, need at most 24 together"),
        (["--sites", "x"], "--sites: there is no SAE 'x'; there are model.layers.0, model.layers.1"),
        (["--watch", "x:3"], "--watch: there is no SAE 'x'"),
        (["--stop", "x:3"], "--stop: there is no SAE 'x'"),
        (["--watch", f"{SITE}:64"], "has latents 0 to 63, got 64"),
        (["--watch", f"{SITE}:3>x"], "argument --watch: need SITE:LATENT>THRESHOLD"),
        (["--watch", f"{SITE}:3<1"], "argument --watch: need SITE:LATENT>THRESHOLD"),
        (["--stop", f"{SITE}:3>-1"], "need a finite number from 0"),
        (["--edit", f"{SITE}:99:zero"], "--edit: model.layers.0 has latents 0 to 63, got 99"),
        (["--edit", f"{SITE}:9:set:1e300"], "--edit: latent 9 gets (1e+300,), which float32 does not hold"),
        (["--json", "-"], "--json: got -, need a path; --events - writes to stdout"),
        (["--json", "blank.txt", "--events", "blank.txt"], "--json and --events: both are"),
        (["--prompts", "good.txt", "--events", "good.txt"], "is the file of --prompts; it would be overwritten"),
        (["--top-p", "0.5"], "--top-p: samples, and --temperature is 0, which does not"),
        (["--top-p", "0"], "--top-p: got 0, need a number above 0, at most 1"),
        (["--temperature", "hot"], "argument --temperature: need a number from 0, got 'hot'"),
        (["--seed", "1" + "0" * 30], "--seed: need less than 2^63"),
    ],
)
def test_what_is_refused(good: dict[str, Path], tmp_path: Path, more: list[str], told: str) -> None:
    (tmp_path / "bad.txt").write_bytes("naïve".encode("latin-1"))
    (tmp_path / "blank.txt").write_text(" \n\n")
    (tmp_path / "good.txt").write_text("Some\n")
    (tmp_path / "ids.jsonl").write_text('{"input_ids": [1, 2]}\n')
    more = [str(tmp_path / one) if (tmp_path / one).is_file() else one for one in more]
    ended = cli.run(argv(good, *more))
    assert (ended.code, ended.err.count("\n")) == (2, 1), ended
    assert not ended.out, "nothing is shown before what is known from the start"
    assert (tmp_path / "good.txt").read_text() == "Some\n"
    assert told in ended.err


def test_a_bos_that_is_typed_is_not_put_in_twice(good: dict[str, Path], tmp_path: Path) -> None:
    records = kept(good, tmp_path, "--sites", SITE, prompts=(PROMPT, f"<bos>{PROMPT}"), new=1)[1]["prompts"]
    assert records[0]["tokens"] == records[1]["tokens"]
    assert records[0]["texts"][0]["ids"] == records[1]["texts"][0]["ids"]


def test_what_needs_more(good: dict[str, Path]) -> None:
    assert "prompt: got none, need a PROMPT in front of the options" in cli.run(argv(good, prompts=())).err
    assert "--model needs --sae SITE=PATH as well" in cli.run(["generate", "x", "--model", str(good["model"])]).err
    assert "prompt 0: got '', which has no token" in cli.run(argv(good, "--bos", "never", prompts=("",))).err
    twice = [f"{SITE}#a={good[SITE]}", f"{SITE}#b={good[tiny_lm.SITES[1]]}"]
    assert "is a further SAE of its site" in cli.run(argv(good, "--sae", *twice)).err
