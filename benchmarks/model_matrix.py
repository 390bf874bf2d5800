"""evaluate() on every class that AutoModelForCausalLM knows, against plain hooks and the model's full logits.

    python benchmarks/model_matrix.py [--rows FILE] [--write PAGE] [TYPE ...]

Each model is tiny and random (benchmarks/tiny_models.py), and has one top-k SAE at the output of its first block. The
verdict is "right" where clean and spliced cross-entropy are those of a plain hook and `F.cross_entropy` of the logits
that the model gives, one text at a time. Each verdict is added to the file of rows as it comes, and a command with the
same file goes on from there. Prints a Markdown page; exit code 1 if a model is WRONG or ends in anything but a refusal
by name.
"""

from __future__ import annotations

import argparse
import json
import os
import queue
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import transformers
from torch import Tensor, nn

from saekernels import SAE, Document, evaluate
from saekernels.errors import InputError, first_line
from saekernels.sae.activations import TopK
from tiny_models import VOCABULARY, CannotBuildError, build, model_types

CONTEXT, TOLERANCE = 12, 2e-5
_PROMPT = [5, 6, 7]
_LEAST_WIDTH = 16
_BATCH, _SECONDS = 12, 90
_PAGE = """# Models

`evaluate` on every class that `AutoModelForCausalLM` knows, made tiny and random, on token ids and a CPU in float32.
Each has one top-k SAE, at the output of its first block or where the row says.

- *Right*: clean and spliced cross-entropy are those of a plain hook and full logits, to {tolerance:g} nats.
- *In brackets*: how the head was taken ([what that means](evaluation.md)).
- *Refused*: one line says why; nothing is evaluated.
- *Cannot be built here*: the class with small sizes and nothing else does not run by itself; nothing is known of it.

Made on {today} with {versions}, by

```bash
python benchmarks/model_matrix.py --write docs/reference/models.md
```

In all {types} model types: {told}.

| model type | verdict |
|---|---|
"""


def verdict(model_type: str) -> str:
    """ "right (how its head was taken) at `SITE`", "refused: why", "cannot be built here: why", "WRONG: ..."."""
    try:
        model = build(model_type)
    except CannotBuildError as error:
        return f"cannot be built here: {error}"
    prompt = _PROMPT if getattr(model.config, "is_encoder_decoder", False) else None
    documents = _documents()
    try:
        clean = losses(model, documents, prompt)
        for site, width in find_sites(model, documents[0], prompt):
            sae = make_sae(width)
            spliced = losses(model, documents, prompt, site.partition("[")[0], sae)
            if not (spliced - clean).abs().max() < 10 * TOLERANCE:
                break
        else:
            return "cannot be built here: no splice changes anything to speak of"
    except Exception as error:  # a model that does not run by itself tells nothing about evaluate()
        return f"cannot be built here: its own pass fails: {type(error).__name__}: {_line(error)}"
    if not torch.isfinite(torch.stack([clean, spliced])).all():
        return "cannot be built here: its own logits are not finite"
    try:
        report = evaluate(
            model, None, {site: sae}, documents, context=CONTEXT, baselines=("zero",), bootstrap=0, encoder_ids=prompt
        )
    except InputError as error:
        return f"refused: {_line(error)}"
    except Exception as error:
        return f"WRONG: ends in {type(error).__name__}: {_line(error)}"
    found = report.sites[0].ce
    pairs = ((found.clean, float(clean.mean())), (found.spliced, float(spliced.mean())))
    if any(a is None or not abs(a - b) <= TOLERANCE * max(1.0, b) for a, b in pairs):
        return "WRONG: " + ", ".join(f"{a} for {b:.6f}" for a, b in pairs)
    return f"right ({report.run['head']}) at `{site}`"


def _line(error: BaseException) -> str:
    return first_line(error).replace("|", "\\|")


def _documents() -> list[Document]:
    generator = torch.Generator().manual_seed(0)
    lengths = (CONTEXT, 5, 9, 2 * CONTEXT)
    return [Document("", ids=tuple(torch.randint(3, VOCABULARY, (n,), generator=generator).tolist())) for n in lengths]


def full_logits(model: nn.Module, ids: Tensor, prompt: list[int] | None) -> Tensor:
    """[B, S, V]: what the model itself gives."""
    if prompt is not None:
        return model(input_ids=torch.tensor([prompt]), decoder_input_ids=ids, use_cache=False).logits
    try:
        output = model(input_ids=ids, use_cache=False)
    except TypeError:  # a model without a cache
        output = model(input_ids=ids)
    return output.logits


@torch.no_grad()
def find_sites(model: nn.Module, document: Document, prompt: list[int] | None) -> list[tuple[str, int]]:
    """Places whose activation is [B, S, d] or [S, B, d] (then "NAME[batch=1]"), each with d, the best first.

    The first block of the outermost list of blocks, which ends after its parts; else a part of one, where blocks give
    several streams; else any module, such as the embedding; else one with other positions, which is to be refused.
    """
    ids = torch.tensor([document.ids, document.ids])
    found: dict[str, tuple[str, int]] = {}
    others: dict[str, tuple[str, int]] = {}
    lists = {f"{name}." for name, part in model.named_modules() if isinstance(part, nn.ModuleList)}

    def look(name: str, output: Any) -> None:
        x = output[0] if isinstance(output, tuple) else output
        if not isinstance(x, Tensor) or x.ndim != 3 or not x.is_floating_point() or x.shape[-1] < _LEAST_WIDTH:
            return
        suffix = {ids.shape: "", ids.shape[::-1]: "[batch=1]"}.get(x.shape[:2])
        if x.shape[-1] != VOCABULARY:
            kept = others if suffix is None else found
            kept.setdefault(name, (f"{name}{suffix or ''}", x.shape[-1]))

    handles = [
        part.register_forward_hook(lambda module, args, output, name=name: look(name, output))
        for name, part in model.named_modules()
        if any(True for _ in part.parameters())
    ]
    full_logits(model, ids, prompt)
    for handle in handles:
        handle.remove()
    found = found or others
    if not found:
        raise RuntimeError("no module gives [B, S, d] or [S, B, d]")
    blocks = [name for name in found if name.startswith(tuple(lists)) and any(model.get_submodule(name).children())]
    order = list(found)
    blocks.sort(key=lambda name: (name.count("."), order.index(name)))
    return [found[name] for name in blocks or order]


@torch.no_grad()
def make_sae(width: int) -> SAE:
    torch.manual_seed(1)
    sae = SAE(width, 2 * width, TopK(max(1, width // 4)))
    sae.W_enc.normal_(std=width**-0.5)
    sae.W_dec.copy_(sae.W_enc)
    return sae.eval()


@torch.no_grad()
def losses(
    model: nn.Module, documents: list[Document], prompt: list[int] | None, site: str = "", sae: SAE | None = None
) -> Tensor:
    """[predictions] fp64 nats, by full logits of one window at a time and a plain hook."""
    found = []

    def put(module: Any, args: Any, output: Any) -> Any:
        if not isinstance(output, tuple):
            return sae(output)
        make = getattr(type(output), "_make", tuple)  # of a named tuple
        return make((sae(output[0]), *output[1:]))

    handle = model.get_submodule(site).register_forward_hook(put) if sae is not None else None
    for document in documents:
        for start in range(0, len(document.ids), CONTEXT):
            ids = torch.tensor([document.ids[start : start + CONTEXT]])
            logits = full_logits(model, ids, prompt)[0, :-1].double()
            found.append(F.cross_entropy(logits, ids[0, 1:], reduction="none"))
    if handle is not None:
        handle.remove()
    return torch.cat(found)


def run_all(
    types: list[str], workers: int = 1, known: dict[str, str] | None = None, tell: Callable[[str, str], Any] = print
) -> dict[str, str]:
    """A verdict for each, by processes of a few models: one that dies or hangs takes only its own model along.

    known: verdicts that are there already. tell: called with each new one as it comes.
    """
    verdicts = dict(known or {})
    waiting: queue.Queue[list[str]] = queue.Queue()
    left = [name for name in types if name not in verdicts]
    for start in range(0, len(left), _BATCH):
        waiting.put(left[start : start + _BATCH])

    def work() -> None:
        while True:
            try:
                batch = waiting.get_nowait()
            except queue.Empty:
                return
            while batch:
                batch = _run_batch(batch, verdicts, tell)

    threads = [threading.Thread(target=work) for _ in range(workers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return {name: verdicts[name] for name in types}


def _run_batch(batch: list[str], verdicts: dict[str, str], tell: Callable[[str, str], Any]) -> list[str]:
    """Whatever is left to do after one process."""
    command = [sys.executable, __file__, "--batch", *batch]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment
    ) as run:
        timer = threading.Timer(_SECONDS + 20 * len(batch), run.kill)
        timer.start()
        assert run.stdout is not None
        for line in run.stdout:
            if line.startswith("{"):
                for name, one in json.loads(line).items():
                    verdicts[name] = one
                    tell(name, one)
        timer.cancel()
    left = [name for name in batch if name not in verdicts]
    if left:
        verdicts[left[0]] = f"WRONG: its process ends early or takes too long ({run.returncode})"
        tell(left[0], verdicts[left[0]])
    return left[1:]


def page(verdicts: dict[str, str]) -> str:
    """Markdown: how many of each kind, then a row each."""
    counts: dict[str, int] = {}
    for one in verdicts.values():
        kind = one.partition(":")[0].partition(" (")[0]
        counts[kind] = counts.get(kind, 0) + 1
    told = ", ".join(f"{number} {kind}" for kind, number in sorted(counts.items(), key=lambda item: -item[1]))
    text = _PAGE.format(
        today=date.today().isoformat(),
        versions=f"torch {torch.__version__.partition('+')[0]}, transformers {transformers.__version__}",
        types=len(verdicts),
        told=told,
        tolerance=TOLERANCE,
    )
    return text + "".join(f"| `{name}` | {one} |\n" for name, one in verdicts.items())


def read_rows(path: Path) -> dict[str, str]:
    """The verdicts of this version of transformers in a file of rows; none of a file that is not there."""
    if not path.exists():
        return {}
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return {row["type"]: row["verdict"] for row in rows if row["transformers"] == transformers.__version__}


def _batch(types: list[str]) -> None:
    """A JSON line for each, in this process."""
    warnings.simplefilter("ignore")
    transformers.utils.logging.set_verbosity_error()
    torch.set_num_threads(1)
    for name in types:
        print(json.dumps({name: verdict(name)}), flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("types", nargs="*", help="model types; default all")
    parser.add_argument(
        "--rows", type=Path, help="a file for the verdicts as they come; those in it are not made again"
    )
    parser.add_argument("--write", type=Path, help="a file for the page")
    parser.add_argument("--batch", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    types = arguments.types or model_types()
    if arguments.batch:
        _batch(types)
        return 0

    def tell(name: str, one: str) -> None:
        print(f"{name}: {one}", file=sys.stderr, flush=True)
        if arguments.rows:
            row = {"type": name, "verdict": one, "transformers": transformers.__version__}
            with arguments.rows.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")

    known = read_rows(arguments.rows) if arguments.rows else {}
    found = run_all(types, known={name: known[name] for name in types if name in known}, tell=tell)
    text = page(found)
    print(text)
    if arguments.write:
        arguments.write.write_text(text, encoding="utf-8")
    return int(any(one.startswith("WRONG") for one in found.values()))


if __name__ == "__main__":
    raise SystemExit(main())
