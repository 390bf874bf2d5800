"""circuit-tracer's attribution, its own and accelerated: the same graph, and time and memory beside one another.

    pip install circuit-tracer==0.5.0 nnsight==0.6.1        # in an environment of its own
    OMP_NUM_THREADS=1 python benchmarks/attribution.py                # a few minutes
    OMP_NUM_THREADS=1 python benchmarks/attribution.py --cases clt --rounds 1 --json record.json

Models and transcoders are random, thresholds set for the L0 of the case. Each measurement has a process of its own,
and the two ways go in turns; figures are CPU seconds of all threads, the least of all rounds, and peak resident memory
above that before `attribute`. Both ways' graphs are compared: which nodes, the largest difference of an edge, scores.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

CASES: dict[str, dict[str, Any]] = {
    "plt": {"kind": "plt", "d": 256, "latents": 8192, "positions": 128, "l0": 16, "nodes": 1024, "batch": 64},
    "clt": {"kind": "clt", "d": 256, "latents": 4096, "positions": 64, "l0": 16, "nodes": 512, "batch": 32},
}
LAYERS, VOCABULARY = 12, 1000
PARTS = ("attribute", "setup", "forward", "rows", "prune")


class _Tokenizer:
    """What attribution asks of one."""

    bos_token_id = eos_token_id = pad_token_id = 0
    all_special_ids = (0,)
    padding_side = "right"
    vocab_size = VOCABULARY

    def decode(self, ids: Any) -> str:
        return str(ids)


def make(case: dict[str, Any]) -> tuple[Any, Any]:
    """(a replacement model, token ids [positions])."""
    import torch
    from circuit_tracer.replacement_model.replacement_model_transformerlens import TransformerLensReplacementModel
    from transformer_lens import HookedTransformerConfig

    torch.manual_seed(0)
    d, positions = case["d"], case["positions"]
    config = HookedTransformerConfig(
        n_layers=LAYERS, d_model=d, n_ctx=positions, d_head=64, n_heads=d // 64, d_mlp=4 * d, d_vocab=VOCABULARY,
        act_fn="gelu_new", normalization_type="LN", seed=0, device="cpu", model_name="random",
    )  # fmt: skip
    transcoders, thresholds = _transcoders(case)
    model = TransformerLensReplacementModel.from_config(config, transcoders)
    model.tokenizer = _Tokenizer()
    ids = torch.randint(1, VOCABULARY, (positions,))
    ids[0] = 0
    _, cache = model.run_with_cache(ids, names_filter=lambda name: name.endswith("hook_resid_mid"))
    with torch.no_grad():
        for layer, threshold in enumerate(thresholds):
            pre = transcoders.encode_layer(cache[f"blocks.{layer}.hook_resid_mid"], layer, False)
            last, next_one = pre.flatten().topk(positions * case["l0"] + 1).values[-2:]
            threshold.fill_(float(last + next_one) / 2)  # no latent within rounding of it
    return model, ids


def _transcoders(case: dict[str, Any]) -> tuple[Any, list[Any]]:
    """(random transcoders, the threshold of each layer)."""
    import torch
    from circuit_tracer.transcoder import TranscoderSet
    from circuit_tracer.transcoder.activation_functions import JumpReLU
    from circuit_tracer.transcoder.cross_layer_transcoder import CrossLayerTranscoder
    from circuit_tracer.transcoder.single_layer_transcoder import SingleLayerTranscoder

    d, latents, hooks = case["d"], case["latents"], ("hook_resid_mid", "hook_mlp_out")
    made: Any
    if case["kind"] == "clt":
        made = CrossLayerTranscoder(LAYERS, latents, d, "jump_relu", lazy_decoder=False, dtype=torch.float32)
        thresholds = list(made.activation_function.threshold)
    else:
        layers = [
            SingleLayerTranscoder(d, latents, JumpReLU(torch.zeros(latents)), layer, dtype=torch.float32)
            for layer in range(LAYERS)
        ]
        thresholds = [one.activation_function.threshold for one in layers]
        made = TranscoderSet(dict(enumerate(layers)), *hooks)
    with torch.no_grad():
        for name, weight in made.named_parameters():
            if "W_" in name:
                weight.normal_(std=d**-0.5 if "W_enc" in name else 0.02)
    return made, thresholds


def measure(case: dict[str, Any], ours: bool, graph_path: str) -> dict[str, float]:
    """CPU seconds of each part, and MiB; the graph goes into a file."""
    import torch

    warnings.simplefilter("ignore")
    model, ids = make(case)
    from circuit_tracer import graph as graphs
    from circuit_tracer.attribution.attribute import attribute

    import saekernels as sk
    from saekernels.bench.measure.memory import peak_of

    if ours:
        sk.accelerate(model)
    spent: dict[str, float] = dict.fromkeys(PARTS, 0.0)
    setup, forward = model.setup_attribution, model.run_forward_pass

    def timed(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*args: Any, **options: Any) -> Any:
            with _counted(spent, name):
                return call(*args, **options)

        return wrapped

    def setup_timed(inputs: Any) -> Any:
        context = timed("setup", setup)(inputs)
        context.compute_batch = timed("rows", context.compute_batch)
        return context

    vars(model).update(setup_attribution=setup_timed, run_forward_pass=timed("forward", forward))

    def run() -> Any:
        with _counted(spent, "attribute"):
            return attribute(ids, model, batch_size=case["batch"], max_feature_nodes=case["nodes"])

    graph, peak = peak_of(run)

    def prune() -> Any:
        with _counted(spent, "prune"):
            return graphs.prune_graph(graph)

    pruned, prune_peak = peak_of(prune)
    content = {
        "active": graph.active_features, "selected": graph.selected_features, "edges": graph.adjacency_matrix,
        "kept": (pruned.node_mask, pruned.edge_mask), "scores": graphs.compute_graph_scores(graph),
    }  # fmt: skip
    torch.save(content, graph_path)
    return {**spent, "attribute MiB": peak or 0.0, "prune MiB": prune_peak or 0.0, "active": len(graph.active_features)}


@contextlib.contextmanager
def _counted(spent: dict[str, float], name: str) -> Iterator[None]:
    start = time.process_time()
    yield
    spent[name] += time.process_time() - start


def compare(own: str, ours: str) -> dict[str, Any]:
    """How the two graphs differ."""
    import torch

    a, b = torch.load(own), torch.load(ours)
    same = torch.equal(a["active"], b["active"]) and torch.equal(a["selected"], b["selected"])
    return {
        "same nodes": same,
        "nodes": len(a["edges"]),
        "largest edge": float(a["edges"].abs().max()),
        "largest difference": float((a["edges"] - b["edges"]).abs().max()) if same else None,
        "same kept nodes": same and torch.equal(a["kept"][0], b["kept"][0]),
        "edges kept otherwise": int((a["kept"][1] != b["kept"][1]).sum()) if same else None,
        "edges kept": int(a["kept"][1].sum()),
        "scores": [a["scores"], b["scores"]],
    }


def run_case(name: str, rounds: int) -> dict[str, Any]:
    """Both ways in turns, each time in a process of its own."""
    found: dict[str, list[dict[str, float]]] = {"own": [], "ours": []}
    with tempfile.TemporaryDirectory() as folder:
        paths = {way: str(Path(folder) / f"{way}.pt") for way in found}
        for _ in range(rounds):
            for way, path in paths.items():
                command = [sys.executable, __file__, "--one", name, way, path]
                environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
                done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
                if done.returncode:
                    raise SystemExit(done.stderr)
                found[way].append(json.loads(done.stdout.splitlines()[-1]))
        least = {way: {key: min(one[key] for one in runs) for key in runs[0]} for way, runs in found.items()}
        return {"case": CASES[name], **least, "graphs": compare(paths["own"], paths["ours"])}


def show(name: str, found: dict[str, Any]) -> None:
    own, ours, graphs = found["own"], found["ours"], found["graphs"]
    print(f"\n{name}: {found['case']}, {int(own['active'])} active latents, {LAYERS} layers")
    print(f"{'':<22}{'own':>10}{'ours':>10}{'own / ours':>12}")
    for key in (*(f"{part}" for part in PARTS), "attribute MiB", "prune MiB"):
        unit = "" if key.endswith("MiB") else " s"
        print(f"{key + unit:<22}{own[key]:>10.2f}{ours[key]:>10.2f}{own[key] / max(ours[key], 1e-9):>11.2f}x")
    for key, value in graphs.items():
        print(f"{key:<22}{value}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, help="where to put the record")
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        name, way, path = args.one
        print(json.dumps(measure(CASES[name], way == "ours", path)))
        return
    record = {}
    for name in args.cases:
        record[name] = run_case(name, args.rounds)
        show(name, record[name])
    if args.json:
        args.json.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
