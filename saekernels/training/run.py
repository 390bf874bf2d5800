"""Trains the SAEs of all sites in one pass over the text, and goes on where it was killed with the same bits."""

from __future__ import annotations

import hashlib
import resource
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from saekernels.errors import InputError
from saekernels.files.atomic import TEMPORARIES, writing
from saekernels.training.activations import SiteActivations
from saekernels.training.recipe import Recipe, Schedule
from saekernels.training.sae_trainer import SAETrainer
from saekernels.training.windows import TrainingWindows

Pairs = list[tuple[Tensor, Tensor]]
CHECKPOINT = "checkpoint.pt"
_ENTRIES = 100  # of the log, over a run
_DEFAULT = Schedule()


@dataclass
class Run:
    """The trainers of a run and how far they are.

    seconds, own, model: of wall-clock time, and of computing time in the SAEs' steps and in the model's forward passes.
    """

    trainers: list[SAETrainer]
    fingerprint: str
    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    own: float = 0.0
    model: float = 0.0
    entries: list[dict[str, Any]] = field(default_factory=list)

    def add(self, tokens: int, seconds: float, own: float, model: float) -> None:
        """Count a step."""
        self.step, self.tokens = self.step + 1, self.tokens + tokens
        self.seconds, self.own, self.model = self.seconds + seconds, self.own + own, self.model + model

    def save(self, path: Path) -> None:
        """Write everything, so that the file is the old one or the new one whenever the process dies."""
        states = [trainer.state() for trainer in self.trainers]
        numbers = {name: getattr(self, name) for name in _NUMBERS}
        with writing(path) as stream:
            torch.save({"trainers": states, "numbers": numbers, "fingerprint": self.fingerprint}, stream)

    def load(self, path: Path) -> None:
        """Go on from there. Raises InputError for a checkpoint of another run."""
        saved = torch.load(path, weights_only=True, mmap=True)
        if saved["fingerprint"] != self.fingerprint:
            other = "it is of a run with other sites, options or text"
            raise InputError(f"{path}: {other}; remove it, or name another folder")
        for trainer, state in zip(self.trainers, saved["trainers"], strict=True):
            trainer.load(state)
        for name in _NUMBERS:
            setattr(self, name, saved["numbers"][name])

    def entry(self, rate: float) -> dict[str, Any]:
        """Where it stands, for the log."""
        return {
            "step": self.step,
            "tokens": self.tokens,
            "seconds": round(self.seconds, 1),
            "lr": rate * self.trainers[0].recipe.lr,
            "fvu": {one.label: _rounded(one.fvu, 5) for one in self.trainers},
            "l0": {one.label: _rounded(one.l0, 2) for one in self.trainers},
            "dead": {one.label: len(one.dead.indices()) for one in self.trainers},
        }


_NUMBERS = ("step", "tokens", "seconds", "own", "model", "entries")


def train(
    model: nn.Module,
    sites: Sequence[str],
    windows: TrainingWindows,
    recipe: Recipe | Mapping[str, Recipe],
    *,
    seeds: Sequence[int] = (0,),
    schedule: Schedule = _DEFAULT,
    threads: int = 2,
    folder: Path,
    save_every: float = 600.0,
    told: Callable[[str], None] = lambda line: None,
    stepped: Callable[[Run, int], None] = lambda run, steps: None,
    saved: Callable[[Run], None] = lambda run: None,
) -> Run:
    """Train an SAE for each site, recipe and seed on every step of `windows`.

    Each SAE's steps run one after the other in one thread, and beside them the model reads the next batch, so that the
    bits hang neither on time nor on `threads`. A checkpoint in `folder` is written every `save_every` seconds and at
    the end, and gone on from if it is there; the caller removes it once the SAEs are written.

    Args:
        model: a causal LM on the CPU, in eval mode.
        sites: as `splice` takes them.
        recipe: one, or several by name, which share the model's passes.
        threads: how many SAEs are trained at once, each with one thread.
        told: gets the memory that is needed as a line, before it is taken.
        stepped: called after each step with the number of all steps; saved: after each checkpoint.

    Returns:
        The run, its `trainers` one for each site and, within it, each recipe and, within that, each seed.

    Raises:
        InputError: sites whose activations cannot be trained on; a checkpoint of another run.
    """
    activations = SiteActivations(model, sites)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        recipes = {"": recipe} if isinstance(recipe, Recipe) else dict(recipe)
        run = _begun(activations, windows, recipes, seeds, schedule, told)
        path = folder / CHECKPOINT
        for left in folder.glob(TEMPORARIES):
            left.unlink()
        if path.exists():
            run.load(path)
        with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            _go_on(run, activations, windows, schedule, pool, stepped, path, save_every, saved)
        return run
    finally:
        torch.set_num_threads(before)


def _begun(
    activations: SiteActivations,
    windows: TrainingWindows,
    recipes: dict[str, Recipe],
    seeds: Sequence[int],
    schedule: Schedule,
    told: Callable[[str], None],
) -> Run:
    """With trainers made from the first batches, as many of them as they need."""
    need = max(1.25 * one.n_latents if one.decoder == "activations" else 1 for one in recipes.values())
    first: list[Pairs] = []
    while sum(len(batch[0][0]) for batch in first) < need and len(first) < len(windows.steps):
        first.append(activations(windows.pieces(len(first))))
    pairs = [_joined(parts) for parts in zip(*first, strict=True)]
    names = [site.name for site in activations.sites]
    for name, (x, y) in zip(names, pairs, strict=True):
        if x.shape[1] != y.shape[1] and any(one.activation == "topk" for one in recipes.values()):
            widths = f"{x.shape[1]} and {y.shape[1]}"
            raise InputError(
                f"site {name!r}: got topk for a transcoder of widths {widths}, which SAELens' format has no "
                "architecture for; need batch_topk or jumprelu"
            )
    told(_memory(pairs, [one for one in recipes.values() for _ in seeds]))
    trainers = [
        SAETrainer(name, recipe, seed, *pair, variant=variant)
        for name, pair in zip(names, pairs, strict=True)
        for variant, recipe in recipes.items()
        for seed in seeds
    ]
    return Run(trainers, _fingerprint(activations.model, windows, repr((names, recipes, list(seeds), schedule))))


def _fingerprint(model: nn.Module, windows: TrainingWindows, options: str) -> str:
    """What tells runs apart that must not go on from each other's checkpoints."""
    running = hashlib.sha256(options.encode())
    some = [one.detach().flatten()[:16].float().cpu().numpy() for one in model.parameters()]
    for part in (*some, windows.ids, windows.trained, *windows.steps):
        running.update(part.tobytes() + b"/")
    return running.hexdigest()


def _joined(parts: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    if len(parts) == 1:
        return parts[0]
    x = torch.cat([x for x, _ in parts])
    return x, x if all(y is x for x, y in parts) else torch.cat([y for _, y in parts])


def _go_on(
    run: Run,
    activations: SiteActivations,
    windows: TrainingWindows,
    schedule: Schedule,
    pool: ThreadPoolExecutor,
    stepped: Callable[[Run, int], None],
    path: Path,
    save_every: float,
    saved: Callable[[Run], None],
) -> None:
    steps, saes = len(windows.steps), len(run.trainers) // len(activations.sites)

    def read(step: int) -> Future[tuple[Pairs, float]] | None:
        return pool.submit(_timed, activations, windows.pieces(step)) if step < steps else None

    def train_one(trainer: SAETrainer, pair: tuple[Tensor, Tensor], rate: float) -> float:
        return _timed(trainer.step, *pair, rate)[1]

    upcoming, last = read(run.step), time.monotonic()
    while upcoming is not None:
        started = time.monotonic()
        pairs, model = upcoming.result()
        upcoming = read(run.step + 1)
        rate = schedule.rate(run.step, steps)
        each = [pair for pair in pairs for _ in range(saes)]
        own = sum(pool.map(train_one, run.trainers, each, [rate] * len(each)))
        run.add(windows.tokens(run.step), time.monotonic() - started, own, model)
        if run.step * _ENTRIES // steps > (run.step - 1) * _ENTRIES // steps:
            run.entries.append(run.entry(rate))
        stepped(run, steps)
        if time.monotonic() - last > save_every and run.step < steps:
            run.save(path)
            saved(run)
            last = time.monotonic()
    run.save(path)


def _timed(function: Callable[..., Any], *arguments: Any) -> tuple[Any, float]:
    """(what it gives, the seconds that this thread computed for it)."""
    started = time.thread_time()
    result = function(*arguments)
    return result, time.thread_time() - started


def _memory(pairs: Pairs, recipes: Sequence[Recipe]) -> str:
    """What the run takes: the process now, weights with gradients and Adam's moments, two batches of activations."""
    widths = [(x.shape[1], y.shape[1]) for x, y in pairs]
    latents = sum(recipe.n_latents for recipe in recipes)
    weights = sum(d_in + d_out for d_in, d_out in widths) * latents * 4 * 4
    batches = 3 * sum(x.nbytes + (0 if y is x else y.nbytes) for x, y in pairs)
    now = peak_memory()
    total = now + weights + batches
    parts = f"{_gib(now)} model and process, {_gib(weights)} SAEs and their optimizers, {_gib(batches)} activations"
    return f"memory: some {_gib(total)} ({parts}); the checkpoint takes {_gib(weights * 3 // 4)} of disk"


def _rounded(value: float | None, digits: int) -> float | None:
    return None if value is None else round(value, digits)


def _gib(size: float) -> str:
    return f"{size / 2**30:.2f} GiB"


def peak_memory() -> int:
    """The most bytes that this process has held in memory."""
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return used if sys.platform == "darwin" else used * 1024
