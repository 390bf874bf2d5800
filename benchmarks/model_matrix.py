"""evaluate() on every class that AutoModelForCausalLM knows, against plain hooks and the model's full logits.

    python benchmarks/model_matrix.py [--write FILE] [TYPE ...]

Each model is tiny and random (benchmarks/tiny_models.py), and has one top-k SAE at the output of its first block. The
verdict is "right" where clean and spliced cross-entropy are those of a plain hook and `F.cross_entropy` of the logits
that the model gives, one text at a time. Prints a Markdown table; exit code 1 if a model is WRONG or ends in anything
but a refusal by name.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import queue
import subprocess
import sys
import threading
import warnings
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import transformers
from torch import Tensor, nn

import saekernels
from saekernels import SAE, Document, evaluate
from saekernels.errors import InputError
from saekernels.sae.activations import TopK
from tiny_models import VOCABULARY, CannotBuildError, build, model_types

CONTEXT, TOLERANCE = 12, 2e-5
_PROMPT = [5, 6, 7]
_LEAST_WIDTH = 16
_BATCH, _SECONDS = 12, 90


def verdict(model_type: str) -> str:
    """ "right (how its head was taken)", "refused: why", "cannot be built here: why", "WRONG: ..."."""
    try:
        model = build(model_type)
    except CannotBuildError as error:
        return f"cannot be built here: {error}"
    prompt = _PROMPT if getattr(model.config, "is_encoder_decoder", False) else None
    documents = _documents()
    try:
        site, width = find_site(model, documents[0], prompt)
        sae = make_sae(width)
        clean = cross_entropy(model, documents, prompt)
        spliced = cross_entropy(model, documents, prompt, site, sae)
    except Exception as error:  # a model that does not run by itself tells nothing about evaluate()
        return f"cannot be built here: its own pass fails: {type(error).__name__}: {_line(error)}"
    if not math.isfinite(clean) or not math.isfinite(spliced):
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
    pairs = ((found.clean, clean), (found.spliced, spliced))
    if any(a is None or not abs(a - b) <= TOLERANCE * max(1.0, b) for a, b in pairs):
        return f"WRONG: clean {found.clean} for {clean:.6f}, spliced {found.spliced} for {spliced:.6f}"
    if abs(spliced - clean) < 10 * TOLERANCE:
        return f"cannot be built here: the splice at {site} changes nothing to speak of"
    return f"right ({report.run['head']})"


def _line(error: BaseException) -> str:
    text = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    return text.replace("|", "\\|")[:110]


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
def find_site(model: nn.Module, document: Document, prompt: list[int] | None) -> tuple[str, int]:
    """The first block of a list of blocks, else part of one, whose output is [1, S, d]; and d."""
    ids = torch.tensor([document.ids])
    found: dict[str, int] = {}
    lists = {name for name, part in model.named_modules() if isinstance(part, nn.ModuleList)}

    def look(name: str, output: Any) -> None:
        x = output[0] if isinstance(output, tuple) else output
        if not isinstance(x, Tensor) or x.ndim != 3 or not x.is_floating_point():
            return
        if sorted(x.shape[:2]) == sorted(ids.shape) and x.shape[-1] >= _LEAST_WIDTH:
            found.setdefault(name, x.shape[-1])

    blocks = [
        (name, part)
        for name, part in model.named_modules()
        if any(name.startswith(f"{one}.") for one in lists) and any(True for _ in part.parameters())
    ]
    handles = [
        part.register_forward_hook(lambda module, args, output, name=name: look(name, output)) for name, part in blocks
    ]
    full_logits(model, ids, prompt)
    for handle in handles:
        handle.remove()
    if not found:
        raise RuntimeError("no block in a list of blocks gives [B, S, d]")
    # A block of the outermost list, which ends after its parts; else, where blocks give several streams, such a part.
    name = min(found, key=lambda one: (one.count("."), list(found).index(one)))
    return name, found[name]


@torch.no_grad()
def make_sae(width: int) -> SAE:
    torch.manual_seed(1)
    sae = SAE(width, 2 * width, TopK(max(1, width // 4)))
    sae.W_enc.normal_(std=width**-0.5)
    sae.W_dec.copy_(sae.W_enc)
    return sae.eval()


@torch.no_grad()
def cross_entropy(
    model: nn.Module, documents: list[Document], prompt: list[int] | None, site: str = "", sae: SAE | None = None
) -> float:
    """Nats per prediction, by full logits of one window at a time and a plain hook."""
    total = count = 0.0

    def put(module: Any, args: Any, output: Any) -> Any:
        return (sae(output[0]), *output[1:]) if isinstance(output, tuple) else sae(output)

    handle = model.get_submodule(site).register_forward_hook(put) if sae is not None else None
    for document in documents:
        for start in range(0, len(document.ids), CONTEXT):
            ids = torch.tensor([document.ids[start : start + CONTEXT]])
            logits = full_logits(model, ids, prompt)[0, :-1].double()
            total += float(F.cross_entropy(logits, ids[0, 1:], reduction="sum"))
            count += ids.shape[1] - 1
    if handle is not None:
        handle.remove()
    return total / count


def run_all(types: list[str], workers: int = 2) -> dict[str, str]:
    """A verdict for each, by processes of a few models: one that dies or hangs takes only its own model along."""
    verdicts: dict[str, str] = {}
    waiting: queue.Queue[list[str]] = queue.Queue()
    for start in range(0, len(types), _BATCH):
        waiting.put(types[start : start + _BATCH])

    def work() -> None:
        while True:
            try:
                batch = waiting.get_nowait()
            except queue.Empty:
                return
            while batch:
                batch = _run_batch(batch, verdicts)

    threads = [threading.Thread(target=work) for _ in range(workers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return {name: verdicts[name] for name in types}


def _run_batch(batch: list[str], verdicts: dict[str, str]) -> list[str]:
    """Whatever is left to do after one process."""
    command = [sys.executable, __file__, "--batch", *batch]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    ended = "ends early"
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment
    ) as run:
        timer = threading.Timer(_SECONDS + 20 * len(batch), run.kill)
        timer.start()
        assert run.stdout is not None
        for line in run.stdout:
            if line.startswith("{"):
                verdicts.update(json.loads(line))
                print(line.strip(), file=sys.stderr, flush=True)
        timer.cancel()
    left = [name for name in batch if name not in verdicts]
    if left:
        verdicts[left[0]] = f"WRONG: its process {ended} or takes too long ({run.returncode})"
    return left[1:]


def table(verdicts: dict[str, str]) -> str:
    """Markdown."""
    counts: dict[str, int] = {}
    for one in verdicts.values():
        kind = one.partition(":")[0]
        counts[kind] = counts.get(kind, 0) + 1
    told = ", ".join(f"{number} {kind}" for kind, number in sorted(counts.items(), key=lambda item: -item[1]))
    versions = (
        f"saekernels {saekernels.__version__}, torch {torch.__version__}, transformers {transformers.__version__}"
    )
    lines = [
        "# Models that `evaluate` takes",
        "",
        "Every class that `AutoModelForCausalLM` knows, tiny and random, with an SAE at its first block.",
        '"Right": clean and spliced cross-entropy are those of a plain hook and full logits (to 2e-5 nats).',
        "In brackets: how the head was taken.",
        f"Made by `python benchmarks/model_matrix.py --write FILE` with {versions}, on a CPU.",
        "",
        f"In all {len(verdicts)}: {told}.",
        "",
        "| model type | verdict |",
        "|---|---|",
        *(f"| `{name}` | {one} |" for name, one in verdicts.items()),
    ]
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("types", nargs="*", help="model types; default all")
    parser.add_argument("--write", type=Path, help="a file for the table")
    parser.add_argument("--batch", action="store_true", help="a JSON line for each, in this process")
    arguments = parser.parse_args()
    if arguments.batch:
        warnings.simplefilter("ignore")
        transformers.utils.logging.set_verbosity_error()
        torch.set_num_threads(1)
        for name in arguments.types:
            print(json.dumps({name: verdict(name)}), flush=True)
        return 0
    found = run_all(arguments.types or model_types())
    page = table(found)
    print(page)
    if arguments.write:
        arguments.write.write_text(page, encoding="utf-8")
    return int(any(one.startswith("WRONG") for one in found.values()))


if __name__ == "__main__":
    raise SystemExit(main())
