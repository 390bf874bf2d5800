"""The commands that make the records of docs/results.md, in the order in which they can be run in WORK.

    python tools/real_model/records.py                      # all of them
    python tools/real_model/records.py sites baselines | (cd WORK && bash -ex)

Records are NAME.json, those of trainings OUT/train.json. A training that was killed goes on with the same command, and
so does `saekernels eval`.
"""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Iterable, Iterator
from pathlib import Path

LAYERS = range(30)
SEVERAL = (0, 4, 9, 14, 19, 24, 29)
CURVE, SITE = (4, 14, 24), "model.layers.14"
MLPS = range(0, 30, 3)
SEEDS = (0, 1, 2)
TRAINED_ON = ("documentation", "languages", "licences", "man_pages", "other_code", "prose", "python_code",
              "release_notes", "wikipedia")  # fmt: skip
OTHERS = ("bible", "quotations")
ROOT = Path(__file__).resolve().parents[2]

_HOW = ("--model", "SmolLM2-135M-Instruct", "--context", 256, "--leave-first", 1, "--leave-norm", 10)
_TEXT = ("--data", "passages", "--tokens", 20_000)


def commands() -> dict[str, list[str]]:
    """Name -> the words of its command."""
    plain = ("--baselines", "none", "--no-cumulative")
    return {
        "train": _train("saes", "--sites", "model.layers.*", "--k", 32),
        "sites": _eval("sites", *_TEXT, "--baselines", "none", saes=_saes(LAYERS)),
        "ngrams": ["python", "tools/real_model/ngrams.py", *map(str, _HOW[:2]), "--train", "train/*.jsonl",
                   *map(str, _TEXT), "--report", "sites.json", "--json", "ngrams.json"],
        "head50k": _eval("head50k", "--data", "passages", "--tokens", 50_000, *plain, saes=_saes(LAYERS)),
        "baselines": _eval(
            "baselines", *_TEXT, "--no-cumulative", "--tasks", "ioi", "wh_question", saes=_saes(LAYERS)
        ),
        "tasks": _eval("tasks", "--data", "passages", "--tokens", 2000, *plain, "--tasks", "ioi", "wh_question",
                       saes=_saes([14])),
        "probe": ["saekernels", "probe", *map(str, (*_HOW[:2], *_HOW[4:])), "--labels", "labelled",
                  "--sae", *_saes([14]), "--json", "probe.json"],
        "error": _controls("error", "--parts", "error", *_TEXT, saes=_saes(SEVERAL)),
        "train-curve": _train("curve", "--sites", *(f"model.layers.{n}" for n in CURVE), "--k", 64, 128),
        "curve": _controls("curve", "--parts", "bits", *_TEXT, saes=_curve()),
        "train-controls": _train("controls", "--sites", SITE, "--k", 32, "--freeze", "none", "decoder", "encoder",
                                 "both", "--seeds", *SEEDS),
        "train-activations": _train("activations", "--sites", SITE, "--k", 32, "--freeze", "decoder", "--decoder",
                                    "activations", "--seeds", *SEEDS),
        "controls": _eval("controls", *_TEXT, *plain, saes=_frozen()),
        "shuffled": _eval("shuffled", *_TEXT, *plain, "--control", "shuffled_decoder", "random_decoder",
                          "random_encoder", saes=_seeds("none-0")),
        "seeds": _controls("seeds", "--parts", "seeds", "--tokens", 20_000, "--data",
                           *(f"passages/{name}.jsonl" for name in TRAINED_ON), "--off-data",
                           *(f"passages/{name}.jsonl" for name in OTHERS), saes=_seeds(*SEEDS)),
        "train-transcoders": _train("transcoders", "--sites", *(f"model.layers.{n}.mlp@module" for n in MLPS),
                                    "--k", 32),
        "transcoders": _eval("transcoders", *_TEXT, "--baselines", "zero,mean", "--no-cumulative",
                             saes=[f"{name}=transcoders/{name}" for name in
                                   (f"model.layers.{n}.mlp@module" for n in MLPS)]),
        "bfloat16": _eval("bfloat16", *_TEXT, *plain, "--dtype", "bfloat16", saes=_saes(LAYERS)),
        "floor": _floor("floor", *_HOW, "--data", "passages", "--tokens", 2000, "--beside", "bfloat16",
                        "--sae", *_saes(CURVE)),
        "floor-sweep": _floor("floor-sweep", *_HOW, "--data", "passages", "--tokens", 1000, "--no-cumulative",
                              "--sae", *_saes(LAYERS)),
        "floor-example": _floor("floor-example", "--tokens", 4000),
    }  # fmt: skip


def _saes(layers: Iterable[int]) -> list[str]:
    return [f"model.layers.{number}=saes/model.layers.{number}" for number in layers]


def _curve() -> list[str]:
    found = []
    for number in CURVE:
        site = f"model.layers.{number}"
        found.append(f"{site}#32=saes/{site}")
        found += [f"{site}#{k}=curve/{site}/k-{k}" for k in (64, 128)]
    return found


def _seeds(*names: str | int) -> list[str]:
    """Ordinary SAEs, of the seed that the name ends in."""
    return [f"{SITE}#{name}=controls/{SITE}/freeze-none/seed-{str(name)[-1]}" for name in names]


def _frozen() -> list[str]:
    def found() -> Iterator[str]:
        for seed in SEEDS:
            for freeze in ("none", "decoder", "encoder", "both"):
                yield f"{SITE}#{freeze}-{seed}=controls/{SITE}/freeze-{freeze}/seed-{seed}"
            yield f"{SITE}#activations-{seed}=activations/{SITE}/seed-{seed}"

    # The first is what the others are compared with.
    return list(found())


def _eval(name: str, *options: object, saes: list[str]) -> list[str]:
    words = ("saekernels", "eval", *_HOW, *options, "--sae", *saes, "--checkpoint", f"run_{name}")
    return [*map(str, words), "--json", f"{name}.json"]


def _controls(name: str, *options: object, saes: list[str]) -> list[str]:
    return [*map(str, ("saekernels", "controls", *_HOW, *options, "--sae", *saes)), "--json", f"{name}.json"]


def _floor(name: str, *options: object) -> list[str]:
    return ["python", "benchmarks/eval_floor.py", *map(str, options), "--json", f"{name}.json"]


def _train(out: str, *options: object) -> list[str]:
    words = ("--model", _HOW[1], "--data", "train/*.jsonl", "--tokens", 1_000_000, "--latents", 4608, *_HOW[4:],
             "--dtype", "bfloat16", *options, "--out", out)  # fmt: skip
    return ["python", "examples/train_saes.py", *map(str, words)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", metavar="NAME", nargs="*", help=f"of {', '.join(commands())}; without: all")
    names = parser.parse_args().names or list(commands())
    if unknown := [name for name in names if name not in commands()]:
        parser.error(f"NAME: got {', '.join(unknown)}, need some of {', '.join(commands())}")
    for name in names:
        words = commands()[name]
        if name == "probe":
            print(shlex.join(["cp", "-r", str(ROOT / "saekernels" / "example" / "labelled"), "."]))
        if words[0] == "python":
            words = ["python", str(ROOT / words[1]), *words[2:]]
        print(shlex.join(words))


if __name__ == "__main__":
    main()
