"""circuit-tracer's attribution, accelerated, beside its own: the same graph. In an environment of its own (nox)."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import torch
from hypothesis import strategies as st
from torch import Tensor

import saekernels as sk
from places import ROOT
from saekernels import example

pytestmark = [pytest.mark.circuit_tracer, pytest.mark.filterwarnings("ignore")]
pytest.importorskip("circuit_tracer", reason="circuit-tracer is not installed: nox -s circuit-tracer")

import circuit_tracer.graph as graphs  # noqa: E402
from circuit_tracer.attribution.attribute import attribute  # noqa: E402
from circuit_tracer.attribution.targets import LogitTarget  # noqa: E402
from circuit_tracer.replacement_model import ReplacementModel  # noqa: E402
from circuit_tracer.replacement_model.replacement_model_transformerlens import (  # noqa: E402
    TransformerLensReplacementModel,
)
from circuit_tracer.transcoder import TranscoderSet  # noqa: E402
from circuit_tracer.transcoder.activation_functions import JumpReLU, TopK  # noqa: E402
from circuit_tracer.transcoder.cross_layer_transcoder import CrossLayerTranscoder, load_clt  # noqa: E402
from circuit_tracer.transcoder.single_layer_transcoder import SingleLayerTranscoder  # noqa: E402
from transformer_lens import HookedTransformerConfig  # noqa: E402

from saekernels.adapters.circuit_tracer import backward, pruning  # noqa: E402

F, CPU = 96, torch.device("cpu")
HOOKS = ("hook_resid_mid", "hook_mlp_out")
ACTIVATIONS: dict[str, Callable[[], Any]] = {
    "jumprelu": lambda: JumpReLU(torch.full((F,), 1.5)),
    "relu": lambda: torch.nn.functional.relu,
    "topk": lambda: TopK(5),
    "negative": lambda: JumpReLU(torch.full((F,), -0.01)),
}
OPTIONS: dict[str, Any] = {"max_n_logits": 3, "batch_size": 8, "max_feature_nodes": 40}
KINDS = ["jumprelu", "relu skip", "topk", "negative", "clt", "clt relu skip"]


class Tokenizer:
    bos_token_id = eos_token_id = pad_token_id = 0
    all_special_ids = (0,)
    padding_side, vocab_size = "right", 50

    def decode(self, ids: Any) -> str:
        return str(ids)


def transcoders(kind: str, layers: int, d: int) -> Any:
    torch.manual_seed(1)
    skip = "skip" in kind
    made: Any
    if kind.startswith("clt"):
        activation = "relu" if "relu" in kind else "jump_relu"
        options: dict[str, Any] = {"lazy_decoder": False, "skip_connection": skip, "device": CPU}
        made = CrossLayerTranscoder(layers, F, d, activation, dtype=torch.float32, **options)
    else:
        activation = kind.split()[0]
        each = [
            SingleLayerTranscoder(d, F, ACTIVATIONS[activation](), layer, skip, device=CPU, dtype=torch.float32)
            for layer in range(layers)
        ]
        made = TranscoderSet(dict(enumerate(each)), *HOOKS)
    with torch.no_grad():
        for name, value in made.named_parameters():
            if "threshold" not in name:
                value.normal_(std=d**-0.5 if "W_enc" in name else 0.1)
            elif kind == "clt":
                value.fill_(1.5)
    return made


def lens_model(kind: str) -> Any:
    torch.manual_seed(0)
    config = HookedTransformerConfig(
        n_layers=3, d_model=24, n_ctx=32, d_head=8, n_heads=3, d_mlp=48, d_vocab=50, act_fn="gelu_new",
        normalization_type="LN", seed=0, device="cpu", model_name="random",
    )  # fmt: skip
    model: Any = TransformerLensReplacementModel.from_config(config, transcoders(kind, 3, 24))
    model.tokenizer = Tokenizer()
    return model


def nnsight_model(kind: str) -> Any:
    made, path = transcoders(kind, 4, 160), str(example.MODEL_DIR)
    return ReplacementModel.from_pretrained_and_transcoders(path, made, backend="nnsight", device=CPU)


MODELS = {"transformerlens": lens_model, "nnsight": nnsight_model}
IDS = torch.arange(14)


def require_same(ours: Any, theirs: Any) -> None:
    assert torch.equal(ours.active_features, theirs.active_features)
    assert torch.equal(ours.selected_features, theirs.selected_features)
    torch.testing.assert_close(ours.activation_values, theirs.activation_values, rtol=1e-5, atol=1e-5)
    largest = float(theirs.adjacency_matrix.abs().max())
    torch.testing.assert_close(ours.adjacency_matrix, theirs.adjacency_matrix, rtol=0, atol=2e-6 * largest)
    own = graphs.compute_graph_scores(theirs)
    assert graphs.compute_graph_scores(ours) == pytest.approx(own, abs=1e-5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("backend", MODELS)
def test_the_same_graph(backend: str, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if backend == "nnsight":
        pytest.importorskip("nnsight")
        if kind in ("relu skip", "negative"):
            pytest.skip("its transcoders are those of the other backend")
    monkeypatch.setitem(backward._POSITIONS, "cpu", 3 * len(IDS))  # several parts for each batch
    model = MODELS[backend](kind)
    theirs = attribute(IDS, model, **OPTIONS)
    assert sk.accelerate(model) is model
    require_same(attribute(IDS, model, **OPTIONS), theirs)
    sk.restore(model)
    assert not sk.is_accelerated(model)
    assert torch.equal(attribute(IDS, model, **OPTIONS).adjacency_matrix, theirs.adjacency_matrix)
    sk.restore(sk.accelerate(model, check=True))


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_components(kind: str) -> None:
    model = lens_model(kind)
    inputs = torch.randn(3, 9, 24)
    theirs = model.transcoders.compute_attribution_components(inputs, slice(0, 2))
    sk.accelerate(model)
    ours = model.transcoders.compute_attribution_components(inputs, slice(0, 2))
    for name in ("activation_matrix", "reconstruction", "encoder_vecs"):
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-5, atol=1e-5)
    assert ours["activation_matrix"].is_coalesced()

    def by_place(found: dict[str, Tensor]) -> Tensor:
        places = torch.cat((found["decoder_locations"], found["encoder_to_decoder_map"][None]))
        rows = torch.cat((places.T.double(), found["decoder_vecs"].double()), 1)
        return rows[(places[0] * 10**6 + places[1] * 10**4 + places[2]).argsort()]

    torch.testing.assert_close(by_place(ours), by_place(theirs), rtol=1e-5, atol=1e-5)


def test_decoders_in_files(tmp_path: Path) -> None:
    model = lens_model("clt")
    inputs = torch.randn(3, 9, 24)
    model.transcoders.to_safetensors(str(tmp_path))
    sk.accelerate(model)
    theirs = model.transcoders.compute_attribution_components(inputs)
    lazy = load_clt(str(tmp_path), *HOOKS, device=CPU, dtype=torch.float32, lazy_encoder=True)
    model.transcoders = lazy
    sk.restore(model)
    ours = sk.accelerate(model).transcoders.compute_attribution_components(inputs)
    for name, value in theirs.items():
        torch.testing.assert_close(ours[name], value)


def test_a_row_for_every_position() -> None:
    model = lens_model("clt")
    features = torch.zeros(3, 4, F)
    features[1, 2, 5] = 2.0
    assert model.transcoders.decode(features).shape[1] == 3  # the tool's: none after the last active position
    clt = sk.accelerate(model).transcoders
    out = clt.decode(features)
    expected = clt.b_dec[:, None].expand(3, 4, 24).clone()
    expected[1:, 2] += 2.0 * clt.W_dec[1][5]
    torch.testing.assert_close(out, expected)
    assert torch.equal(clt.decode(torch.zeros(3, 4, F)), clt.b_dec[:, None].expand(3, 4, 24))


def test_no_active_latent() -> None:
    model = lens_model("clt")
    model.transcoders.activation_function.threshold.data.fill_(1e6)
    made = attribute(IDS, sk.accelerate(model), **OPTIONS)
    assert len(made.active_features) == 0
    assert graphs.compute_graph_scores(made)[0] == pytest.approx(0.5, abs=0.5)


def graph_of(adjacency: Tensor, tokens: int, features: int, logits: int) -> Any:
    config = HookedTransformerConfig(n_layers=1, d_model=8, n_ctx=8, d_head=8, act_fn="relu", d_vocab=9)
    return graphs.Graph(
        "", torch.arange(tokens), torch.zeros(features, 3, dtype=torch.long), adjacency, config, torch.arange(features),
        torch.ones(features), [LogitTarget("", 0)] * logits, torch.full((logits,), 1 / logits), vocab_size=9,
    )  # fmt: skip


def test_scores_by_hand() -> None:
    adjacency = torch.zeros(4, 4)
    adjacency[0, 1], adjacency[0, 2] = 1, 3
    adjacency[3, :3] = torch.tensor([2.0, 1, -1])
    assert graphs.compute_graph_scores(graph_of(adjacency, 1, 1, 1)) == pytest.approx((0.625, 0.85))
    found = pruning.prune_graph(graph_of(adjacency, 1, 1, 1), 1.0, 1.0)
    assert found.node_mask.all()


def random_graph(seed: int) -> Any:
    features, tokens, logits = 60, 10, 4
    nodes = features + 2 * tokens + logits
    made = torch.Generator().manual_seed(seed)
    adjacency = torch.randn(nodes, nodes, generator=made) * (torch.rand(nodes, nodes, generator=made) < 0.3)
    adjacency = adjacency.tril(-1)
    adjacency[:, :features] *= torch.arange(features)[None] < torch.arange(nodes)[:, None]
    adjacency[features : features + 2 * tokens] = 0
    adjacency[:features, features : features + 2 * tokens] = torch.randn(features, 2 * tokens, generator=made)
    return graph_of(adjacency, tokens, features, logits)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("fractions", [(0.8, 0.98), (0.5, 0.6), (1.0, 1.0), (0.0, 0.0)])
def test_the_same_pruning(fractions: tuple[float, float], seed: int) -> None:
    given = random_graph(seed)
    theirs = pruning._OWN["prune_graph"](given, *fractions)
    for our, their in zip(pruning.prune_graph(given, *fractions), theirs, strict=True):
        assert torch.equal(our, their)


@hypothesis.given(
    st.lists(st.floats(0, 1e6, width=32), min_size=1, max_size=60), st.floats(0, 1), st.integers(1, 4), st.booleans()
)
def test_the_same_threshold(scores: list[float], fraction: float, times: int, negative_zero: bool) -> None:
    given = torch.tensor(scores * times + [-0.0] * negative_zero)
    theirs = pruning._OWN["find_threshold"](given, fraction)
    torch.testing.assert_close(pruning.find_threshold(given, fraction), theirs, rtol=0, atol=0, equal_nan=True)


def test_the_same_partial_influences(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pruning, "_CHUNK", 300)
    given = random_graph(0)
    rows = torch.cat((torch.arange(80, 84), torch.randperm(60)[:40]))
    arguments = (given.adjacency_matrix[rows], torch.full((4,), 0.25), rows)
    theirs = pruning._OWN["compute_partial_influences"](*arguments)
    torch.testing.assert_close(pruning.compute_partial_influences(*arguments), theirs)


def test_functions_are_given_back() -> None:
    one, other = lens_model("topk"), lens_model("topk")
    sk.accelerate(one)
    sk.accelerate(other)
    sk.restore(one)
    assert graphs.prune_graph is pruning.prune_graph
    sk.restore(other)
    assert graphs.prune_graph is pruning._OWN["prune_graph"]


def test_backward_hooks_of_ones_own(caplog: pytest.LogCaptureFixture) -> None:
    model = lens_model("jumprelu")
    theirs = attribute(IDS, model, **OPTIONS)
    sk.accelerate(model)
    seen = []
    model.blocks[0].hook_resid_pre.add_hook(lambda g, hook: seen.append(g.shape), dir="bwd", is_permanent=True)
    with caplog.at_level(logging.WARNING, "saekernels"):
        require_same(attribute(IDS, model, **OPTIONS), theirs)
    assert seen[0] == (8, 14, 24)
    assert "a backward hook at 'blocks.0.hook_resid_pre'" in caplog.text


def test_its_page_runs() -> None:
    page = (ROOT / "docs" / "how-to" / "circuit_tracer.md").read_text()
    (block,) = re.findall(r"^```python\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    exec(compile(block, "circuit_tracer.md", "exec"), {})


def test_refusals() -> None:
    model = lens_model("jumprelu")
    model.transcoders[1].activation_function = torch.nn.Tanh()
    with pytest.raises(sk.NotAccelerated, match=r"the activation of layer 1, .* is not known"):
        sk.accelerate(model)
    assert not sk.is_accelerated(model)
    with pytest.raises(sk.NotAccelerated, match="is no trainer"):
        sk.accelerate(lens_model("jumprelu"), optimizer=True)
