"""Replaced models against dense loops and least squares that know nothing of them."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import interrupted
import saekernels as sk
import tiny_lm
from saekernels.errors import InputError
from saekernels.eval.studies.crosslayer import earlier, fits
from saekernels.eval.studies.crosslayer.measure import evaluate_replacement
from saekernels.eval.text.slices import alternate
from saekernels.sae.probes import Moments, fit_probes

LATENTS, LENGTH = 64, 22
SITES = [f"model.layers.{layer}.mlp@module" for layer in range(2)]
FAST: dict[str, Any] = {"context": 24, "bootstrap": 20, "tokenizer": None}


def transcoder() -> sk.CrossLayerTranscoder:
    """More than 32 latents are active, so affine maps of as many ranks are least squares."""
    torch.manual_seed(1)
    clt = sk.CrossLayerTranscoder(tiny_lm.WIDTH, LATENTS, 2, sk.ReLU(), skip=True)
    with torch.no_grad():
        for parameter in clt.parameters():
            parameter.normal_(std=0.1)
        for source in clt.sources:
            source.b_enc.add_(0.5)  # type: ignore[operator,union-attr]
            source.b_enc[48:].sub_(1.7)  # type: ignore[index,union-attr]  # in some documents alone
    clt.sites = tuple(SITES)
    return clt.eval()


def transcoders() -> dict[str, sk.SAE]:
    """One for each layer."""
    torch.manual_seed(2)
    made = {site: sk.SAE(tiny_lm.WIDTH, LATENTS, sk.TopK(4)) for site in SITES}
    with torch.no_grad():
        for sae in made.values():
            sae.W_dec.normal_(std=0.1)
    return made


def documents(model: Any) -> list[sk.Document]:
    """Tokens of which the model would have chosen about half itself."""
    torch.manual_seed(3)
    ids = torch.randint(3, 320, (12, LENGTH))
    with torch.no_grad():
        for at in range(1, LENGTH):
            chosen = model(ids[:, :at]).logits[:, -1].argmax(-1)
            ids[:, at] = torch.where(torch.rand(12) < 0.5, chosen, ids[:, at])
    names = ["a", "a", "b"] * 4
    return [
        sk.Document(str(i), name, ids=tuple(row.tolist())) for i, (row, name) in enumerate(zip(ids, names, strict=True))
    ]


class Layer(nn.Module):
    """In an MLP's place: write(layer, all that layers so far have read, the MLP's output)."""

    def __init__(self, number: int, reads: list[Tensor], write: Callable[..., Tensor], mlp: nn.Module) -> None:
        super().__init__()
        self.number, self.reads, self.write, self.mlp = number, reads, write, mlp

    def forward(self, x: Tensor) -> Tensor:
        self.reads[self.number :] = [x]
        return self.write(self.number, self.reads, self.mlp(x))


class ByHand:
    """The tiny model with its MLPs exchanged, one document after another."""

    def __init__(self, model: Any, clt: sk.CrossLayerTranscoder, given: list[sk.Document]) -> None:
        self.model, self.clt = model, clt
        half = alternate([one.domain for one in shuffled(given)])
        self.fitted = [one for one, own in zip(shuffled(given), half, strict=True) if own]
        self.measured = [one for one, own in zip(shuffled(given), half, strict=True) if not own]

    def logits(self, document: sk.Document, write: Callable[..., Tensor]) -> Tensor:
        model, reads = copy.deepcopy(self.model), list[Tensor]()
        for number, block in enumerate(model.model.layers):
            block.mlp = Layer(number, reads, write, block.mlp)
        with torch.no_grad():
            return model(torch.tensor([document.ids])).logits[0, :-1].double()  # type: ignore[no-any-return]

    def clean(self, document: sk.Document) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        """Logits, what each layer reads and what its MLP gives."""
        reads, writes = list[Tensor](), list[Tensor]()

        def keep(number: int, seen: list[Tensor], y: Tensor) -> Tensor:
            reads.append(seen[-1])
            writes.append(y)
            return y

        return self.logits(document, keep), reads, writes

    def ce(self, write: Callable[..., Tensor], domain: str = "ab") -> float:
        losses = [
            nn.functional.cross_entropy(self.logits(one, write), torch.tensor(one.ids)[1:], reduction="none")
            for one in self.measured
            if one.domain in domain
        ]
        return float(torch.cat(losses).mean())

    def codes(self, number: int, x: Tensor) -> Tensor:
        source = self.clt.source(number)
        return (x @ source.W_enc.T + source.b_enc).relu()

    def active(self, number: int, domain: str) -> Tensor:
        """[F] of the fitted half, 1 for a latent that is ever active."""
        own = [self.codes(number, self.clean(one)[1][number])[0] for one in self.fitted if one.domain in domain]
        return (torch.cat(own) > 0).any(0).float()

    def out(self, number: int, codes: dict[int, Tensor], x: Tensor) -> Tensor:
        made = self.clt.b_dec[number] + x @ self.clt.W_skip[number].T  # type: ignore[index]
        for s, own in codes.items():
            made = made + own @ self.clt.source(s).W_dec.view(LATENTS, 2 - s, -1)[:, number - s]
        return made  # type: ignore[no-any-return]

    def least_squares(self, number: int, across: bool, domain: str) -> Callable[[list[Tensor]], Tensor]:
        own = [self.clean(one)[1:] for one in self.fitted if one.domain in domain]
        x = torch.cat([torch.cat([*reads[: number + 1]] if across else [reads[number]], -1)[0] for reads, _ in own])
        y = torch.cat([writes[number][0] for _, writes in own]).double()
        x = torch.cat([x, torch.ones(len(x), 1)], 1).double()
        solved = torch.linalg.lstsq(x, y, driver="gelsd").solution.float()

        def write(reads: list[Tensor]) -> Tensor:
            seen = torch.cat(reads, -1) if across else reads[-1]
            return seen @ solved[:-1] + solved[-1]

        return write


def shuffled(given: list[sk.Document]) -> list[sk.Document]:
    """In the order in which they are read."""
    return [given[i] for i in np.random.default_rng(0).permutation(len(given))]


@pytest.fixture(scope="module")
def subject() -> tuple[Any, sk.CrossLayerTranscoder, list[sk.Document]]:
    model = tiny_lm.model(num_hidden_layers=2)
    return model, transcoder(), documents(model)


@pytest.fixture(scope="module")
def found(subject: tuple[Any, sk.CrossLayerTranscoder, list[sk.Document]]) -> dict[str, Any]:
    model, clt, given = subject
    return evaluate_replacement(
        model, replacement=clt, documents=given, sources=True, beside=transcoders(), domain="all", **FAST
    )


@pytest.fixture(scope="module")
def by_hand(subject: tuple[Any, sk.CrossLayerTranscoder, list[sk.Document]]) -> ByHand:
    return ByHand(*subject)


def test_every_run_against_a_dense_loop(found: dict[str, Any], by_hand: ByHand) -> None:
    codes, out = by_hand.codes, by_hand.out
    means = [torch.cat([by_hand.clean(one)[2][number][0] for one in by_hand.fitted]).mean(0) for number in range(2)]
    other = list(transcoders().values())

    def all_of(n: int, reads: list[Tensor]) -> dict[int, Tensor]:
        return {s: codes(s, reads[s]) for s in range(n + 1)}

    def without(left: int) -> Callable[..., Tensor]:
        return lambda n, reads, y: out(n, {s: c for s, c in all_of(n, reads).items() if s != left}, reads[-1])

    def top(n: int, x: Tensor) -> Tensor:
        pre = x @ other[n].W_enc.T + other[n].b_enc
        best = pre.topk(4)
        return torch.zeros_like(pre).scatter(-1, best.indices, best.values.relu()) @ other[n].W_dec + other[n].b_dec

    writes: dict[str, Callable[..., Tensor]] = {
        "clean": lambda n, reads, y: y,
        "error": lambda n, reads, y: y,
        "joint": lambda n, reads, y: out(n, all_of(n, reads), reads[-1]),
        "own": lambda n, reads, y: out(n, {n: codes(n, reads[n])}, reads[-1]),
        "cross": lambda n, reads, y: out(n, {s: codes(s, reads[s]) for s in range(n)}, reads[-1]),
        "zero": lambda n, reads, y: torch.zeros_like(y),
        "mean": lambda n, reads, y: means[n].expand_as(y),
        "skip": lambda n, reads, y: out(n, {}, reads[-1]),
        "without_0": without(0),
        "without_1": without(1),
        "first_1": lambda n, reads, y: out(n, all_of(n, reads), reads[-1]) if n < 1 else y,
        "beside": lambda n, reads, y: top(n, reads[-1]),
    }
    for name, across, domain in (
        ("affine", False, "ab"),
        ("affine_full", False, "ab"),
        ("affine_across", True, "ab"),
        ("affine@a", False, "a"),
        ("affine_across@a", True, "a"),
        ("affine@b", False, "b"),
    ):
        maps = [by_hand.least_squares(number, across, domain) for number in range(2)]
        writes[name] = lambda n, reads, y, maps=maps: maps[n](reads)
    for source in "ab":
        met = [by_hand.active(number, source) for number in range(2)]
        writes[f"joint@{source}"] = lambda n, reads, y, met=met: out(
            n, {s: c * met[s] for s, c in all_of(n, reads).items()}, reads[-1]
        )
    assert any(not by_hand.active(number, "b").all() for number in range(2))
    runs = {row["run"]: row for row in found["runs"]}
    assert found["clean_ce"] == pytest.approx(by_hand.ce(writes["clean"]), abs=1e-5)
    for name, write in writes.items():
        if name != "clean":
            assert runs[name]["ce"] == pytest.approx(by_hand.ce(write), abs=1e-5), name
    # Domain b has fewer rows than the map has inputs, where least squares are not unique.
    assert set(runs) == {*writes, "teacher_forced", "permuted", "affine_across@b"} - {"clean"}
    assert runs["affine"]["ranks"] == runs["affine_full"]["ranks"] == [32, 32]
    joint = runs["joint"]["ce"]
    assert runs["beside"]["over_joint"]["value"] == pytest.approx(runs["beside"]["ce"] - joint, abs=1e-12)
    assert runs["permuted"]["ce"] != pytest.approx(joint, abs=1e-3)
    domains = {row["name"]: row for row in found["strata"]["domain"]}
    assert domains["b"]["ce"] == pytest.approx(by_hand.ce(writes["clean"], "b"), abs=1e-5)
    clean = {name: by_hand.ce(writes["clean"], name) for name in "ab"}
    rows = {row["run"]: row for row in found["extrapolation"]["rows"]}
    (joint_transfer, transfer, _) = found["extrapolation"]["transfer"]
    assert (transfer["run"], transfer["from"], transfer["on"]) == ("affine", ["a", "b", None], ["a", "b"])
    for source, figures in zip(transfer["from"], transfer["delta_ce"], strict=True):
        for name, one in zip(transfer["on"], figures, strict=True):
            run = f"affine@{source}" if source else "affine"
            assert one["value"] == pytest.approx(by_hand.ce(writes[run], name) - clean[name], abs=2e-5)
            assert one["value"] == domains[name]["runs"][run]["delta_ce"]["value"]
            if source:
                assert one["value"] == rows[run]["inside" if source == name else "outside"]["value"]
    told = rows["affine@a"]
    assert (told["like"], told["domain"]) == ("affine", "a")
    fitted = [one for one in by_hand.fitted if one.domain == "a"]
    assert told["positions"] == sum(len(one.ids or ()) for one in fitted) == rows["joint@a"]["positions"]
    assert told["whole_outside"]["value"] == pytest.approx(by_hand.ce(writes["affine"], "b") - clean["b"], abs=2e-5)
    price = told["outside"]["value"] - told["whole_outside"]["value"]
    assert told["price"]["value"] == pytest.approx(price, abs=1e-12)
    assert joint_transfer["delta_ce"][2][0]["value"] == domains["a"]["runs"]["joint"]["delta_ce"]["value"]


def test_codes_of_the_clean_model_and_the_subset(found: dict[str, Any], by_hand: ByHand) -> None:
    losses, kl, agree, unsure, forced_losses = [], [], [], [], []
    errors, spread, drift, active = [], [], [], []
    for one in by_hand.measured:
        logits, reads, writes = by_hand.clean(one)
        codes = [by_hand.codes(s, x) for s, x in enumerate(reads)]
        targets = torch.tensor(one.ids)[1:]
        forced = by_hand.logits(
            one, lambda n, seen, y, codes=codes: by_hand.out(n, dict(enumerate(codes[: n + 1])), seen[-1])
        )
        written: list[Tensor] = []

        def joint(n: int, seen: list[Tensor], y: Tensor, written: list[Tensor] = written) -> Tensor:
            written.append(by_hand.out(n, {s: by_hand.codes(s, seen[s]) for s in range(n + 1)}, seen[-1]))
            return written[-1]

        replaced = by_hand.logits(one, joint)
        p, q = logits.log_softmax(-1), replaced.log_softmax(-1)
        kl.append((p.exp() * (p - q)).sum(-1))
        agree.append(p.argmax(-1) == q.argmax(-1))
        unsure.append((p.argmax(-1) == targets) & (p.max(-1).values < torch.tensor(0.8).log()))
        losses.append(nn.functional.cross_entropy(replaced, targets, reduction="none"))
        forced_losses.append(nn.functional.cross_entropy(forced, targets, reduction="none"))
        errors.append((writes[1] - by_hand.out(1, dict(enumerate(codes)), reads[1]))[0])
        drift.append((writes[1] - written[1])[0])
        spread.append(writes[1][0])
        active.append((codes[0] > 0).sum(-1)[0])
    runs = {row["run"]: row for row in found["runs"]}
    chosen, same = torch.cat(unsure), torch.cat(agree).double()
    assert found["unsure_tokens"] == int(chosen.sum()) > 10
    assert runs["joint"]["kl"]["value"] == pytest.approx(float(torch.cat(kl).mean()), abs=1e-5)
    assert runs["joint"]["top1"]["value"] == pytest.approx(float(same.mean()))
    assert runs["joint"]["top1_unsure"]["value"] == pytest.approx(float(same[chosen].mean()))
    forced_ce = float(torch.cat(forced_losses).mean())
    assert runs["teacher_forced"]["ce"] == pytest.approx(forced_ce, abs=1e-5)
    assert found["compounding"]["value"] == pytest.approx(float(torch.cat(losses).mean()) - forced_ce, abs=2e-5)
    variance = (torch.cat(spread) - torch.cat(spread).mean(0)).square().sum()
    layer = found["layers"][1]
    assert layer["fvu_teacher_forced"] == pytest.approx(float(torch.cat(errors).square().sum() / variance), rel=1e-4)
    assert layer["fvu_drift"] == pytest.approx(float(torch.cat(drift).square().sum() / variance), rel=1e-4)
    l0 = float(torch.cat(active).double().mean())
    assert found["layers"][0]["l0_teacher_forced"] == pytest.approx(l0)
    forced_l0 = found["l0"]["teacher_forced"]
    assert forced_l0["pairs"] - forced_l0["latents"] == pytest.approx(l0)
    assert found["accounting"]["replaced"] == {"parameters": 2 * 3 * 32 * 48, "flops_per_token": 4 * 3 * 32 * 48}
    assert found["accounting"]["replacement"]["parameters"] == sum(p.numel() for p in by_hand.clt.parameters())


def test_maps_across_wide_layers_are_fitted_from_less_and_are_the_same_where_that_is_all(
    subject: tuple[Any, sk.CrossLayerTranscoder, list[sk.Document]],
    found: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Where a layer is told of every direction of the others', the map is that of second moments of all layers."""
    model, clt, given = subject
    monkeypatch.setattr(fits, "MOST_WIDTH", 2 * tiny_lm.WIDTH - 1)
    whole = evaluate_replacement(model, replacement=clt, documents=given, domain="a", **FAST)
    exact, told = ({row["run"]: row for row in one["runs"]} for one in (found, whole))
    assert told["affine_across"]["ce"] == pytest.approx(exact["affine_across"]["ce"], abs=1e-5)
    assert told["affine@a"]["ce"] == pytest.approx(exact["affine@a"]["ce"], abs=1e-5)
    assert "affine_across@a" not in told
    assert whole["run"]["passes"] == 3 + len(told)
    assert "and 32 combinations at most of what earlier ones read" in " ".join(whole["notes"])


def test_what_earlier_layers_tell_helps_and_takes_bounded_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(earlier, "MOST_EARLIER", 8)
    torch.manual_seed(0)
    reads = [torch.randn(3000, 6) for _ in range(2)]
    writes = [0.1 * torch.randn(3000, 5), reads[0][:, :3] @ torch.randn(3, 5) + 0.1 * reads[1][:, :1]]
    widths = [(6, 5), (6, 5)]
    sketch = earlier.Sketch(widths)
    told = [
        fit_probes(_moments(x, z), [sketch.size])[sketch.size] for x, z in zip(reads, sketch.of(writes), strict=True)
    ]
    made = earlier.Earlier(told, widths)
    made.add([x[:1000] for x in reads], [y[:1000] for y in writes])
    made.add([x[1000:] for x in reads], [y[1000:] for y in writes])
    made.flush()
    assert [tuple(one.xx.shape) for one in made.moments] == [(6, 6), (10, 10)]
    (_, across) = made.maps([4, 4])
    alone = fit_probes(_moments(reads[1], writes[1]), [4])[4]
    error = (across(torch.cat([earlier.telling(told[0], reads[0]), reads[1]], 1)) - writes[1]).square().mean()
    assert error < 0.01 * (alone(reads[1]) - writes[1]).square().mean()


def _moments(x: Tensor, y: Tensor) -> Moments:
    made = Moments(x.shape[1], y.shape[1])
    made.add(x, y)
    return made


def test_a_killed_run_goes_on_with_the_same_bits_and_batches_do_not_count(
    subject: tuple[Any, sk.CrossLayerTranscoder, list[sk.Document]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, clt, given = subject
    given = given[:6]
    interrupted.in_small_chunks(50, monkeypatch.setattr)
    options: dict[str, Any] = {"affine": False, **FAST}

    def run(folder: Path | None, **changes: Any) -> dict[str, Any]:
        made = evaluate_replacement(
            model, replacement=clt, documents=given, checkpoint=folder, **{**options, **changes}
        )
        return {**made, "run": None}

    def stop() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "run", progress=interrupted.after(14, stop))
    resumed = run(tmp_path / "run")
    whole = run(None)
    assert resumed == whole
    alone = {row["run"]: row["ce"] for row in run(None, batch_size=1)["runs"]}
    for row in whole["runs"]:
        assert row["ce"] == pytest.approx(alone[row["run"]], abs=1e-5)
    with pytest.raises(InputError, match="belongs to another evaluation: sources was False, is True"):
        run(tmp_path / "run", sources=True)
    json.dumps(resumed, allow_nan=False)


def test_errors_say_what_is_needed(subject: tuple[Any, sk.CrossLayerTranscoder, list[sk.Document]]) -> None:
    model, clt, given = subject

    def fails(message: str, kind: type[Exception] = InputError, **changes: Any) -> None:
        with pytest.raises(kind, match=message):
            evaluate_replacement(model, **{"replacement": clt, "documents": given, **FAST, **changes})

    fails("replacement: got str, need a CrossLayerTranscoder or a mapping", TypeError, replacement="clt")
    fails("its sites run in another order than its layers", sites=SITES[::-1])
    fails("beside: its layers are at .*, but the model runs them as", beside=dict(reversed(transcoders().items())))
    fails("sites: got .*, need one for each of 2 layers", sites=SITES[:1])
    fails("data: every other document of a domain is fitted on", documents=given[:1])
    fails("domain: 'c' has 0 documents here, need two or more", domain="c")
