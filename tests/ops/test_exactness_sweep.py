"""Ten million rows against float64: no top-k set differs by more than float32 rounding explains. `pytest -m slow`.

Every chunk of rows also goes through in two halves, which must give the same bits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

import saekernels as sk
from native_helpers import needs_native
from oracle import same_bits
from saekernels.backends import cpu

pytestmark = [pytest.mark.slow, needs_native]
CHUNK = 20_000
SCREENS = ("fp32", "bf16", "int16", "int8")


@pytest.fixture(autouse=True)
def all_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)
    cpu.set_screening("auto")


def wrong_rows(x: Tensor, W: Tensor, b: Tensor, k: int) -> int:
    """Rows whose codes are not a top-k of the float64 scores up to the rigorous rounding of a float32 dot product."""
    values, indices = sk.encode_topk(x, W, b, k=k, activation="none")
    half = x.shape[0] // 2
    parts = [sk.encode_topk(rows, W, b, k=k, activation="none") for rows in (x[:half], x[half:])]
    assert same_bits((values, indices), tuple(torch.cat(pair) for pair in zip(*parts, strict=True)))
    scores = x.double() @ W.double().T + b.double()
    # The lanes of a dot product are at most d / 32 + 6 additions deep; Cauchy-Schwarz for the sum of magnitudes.
    size = x.double().norm(dim=1) * W.double().norm(dim=1).max() + b.double().abs().max()
    slack = (x.shape[1] / 32 + 8) * 2.0**-24 * size
    chosen = scores.gather(1, indices.long())
    kth = scores.topk(k).values[:, -1]
    rounding = 2.0**-24 if x.dtype == torch.float32 else 2.0**-8
    bad = chosen.amin(1) < kth - 2 * slack
    bad |= ((values.double() - chosen).abs() > slack[:, None] + rounding * chosen.abs()).any(1)
    bad |= (indices.sort(1).values.diff(dim=1) <= 0).any(1)
    return int(bad.sum())


def gaussian(T: int, d: int) -> Tensor:
    return torch.randn(T, d)


def anisotropic(T: int, d: int) -> Tensor:
    """A spectrum that falls as 1/i, and a mean larger than everything else, as residual streams have."""
    return torch.randn(T, d) / torch.arange(1, d + 1) + 3 * (torch.arange(d) == 5)


def heavy_tailed(T: int, d: int) -> Tensor:
    """Student's t with 2 degrees of freedom."""
    return torch.distributions.StudentT(2.0).sample((T, d))


def one_large_dimension(T: int, d: int) -> Tensor:
    """60 times the others, as some models have."""
    x = torch.randn(T, d)
    x[:, 7] *= 60
    return x


def attention_sinks(T: int, d: int) -> Tensor:
    """Rows of 170 times the usual norm, as the first positions of SmolLM2 have."""
    x = torch.randn(T, d)
    x[::16] *= 170
    return x


@pytest.mark.parametrize("screen", SCREENS)
@pytest.mark.parametrize(("d", "F", "k"), [(4096, 8192, 256), (8192, 6144, 64)])
@pytest.mark.parametrize("draw", [gaussian, anisotropic, heavy_tailed, one_large_dimension, attention_sinks])
def test_wide_rows(screen: str, d: int, F: int, k: int, draw: Callable[[int, int], Tensor]) -> None:
    cpu.set_screening(screen)
    before = cpu.stats()
    assert wrong_rows(draw(96, d), gaussian(F, d) / d**0.5, 0.1 * torch.randn(F), k) == 0
    assert cpu.stats()["overflow_rows"] == before["overflow_rows"]


@pytest.mark.parametrize("screen", SCREENS)
def test_wide_rows_and_weights_with_heavy_tails(screen: str) -> None:
    cpu.set_screening(screen)
    W = torch.distributions.StudentT(3.0).sample((8192, 4096)) / 64
    assert wrong_rows(gaussian(96, 4096), W, 0.1 * torch.randn(8192), 128) == 0


@pytest.mark.parametrize("screen", SCREENS)
@pytest.mark.parametrize("draw", [gaussian, anisotropic, heavy_tailed])
def test_random_rows(screen: str, draw: Callable[[int, int], Tensor]) -> None:
    cpu.set_screening(screen)
    d, F, k, rows = 32, 512, 16, 1_500_000
    W, b = draw(F, d), 0.1 * torch.randn(F)
    assert sum(wrong_rows(draw(CHUNK, d), W, b, k) for _ in range(rows // CHUNK)) == 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_rows(dtype: torch.dtype) -> None:
    cpu.set_screening("bf16")
    d, F, k = 48, 512, 16
    W, b = gaussian(F, d).to(dtype), 0.1 * torch.randn(F)
    assert sum(wrong_rows(gaussian(CHUNK, d).to(dtype), W, b, k) for _ in range(10)) == 0


def activations(site: int, batches: int) -> Iterator[Tensor]:
    """Outputs of a layer of the bundled model on its evaluation text: [tokens, d] a batch."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from saekernels.example import EVAL_DATA, MODEL_DIR

    model = AutoModelForCausalLM.from_pretrained(MODEL_DIR).eval()
    tokenizer = AutoTokenizer.from_pretrained(MODEL_DIR)
    text = "\n".join(document.text for document in sk.load_documents([str(EVAL_DATA)]))
    ids = torch.tensor(tokenizer(text, verbose=False)["input_ids"])
    windows = ids[: ids.numel() // 256 * 256].view(-1, 256)
    kept: list[Tensor] = []
    model.model.layers[site].register_forward_hook(lambda module, args, output: kept.append(output.flatten(0, 1)))
    with torch.no_grad():
        for batch in windows.split(40)[:batches]:
            model.model(input_ids=batch)
            yield kept.pop()


@pytest.mark.parametrize("screen", SCREENS)
@pytest.mark.parametrize("site", range(4))
def test_rows_of_the_bundled_model(screen: str, site: int) -> None:
    from saekernels.example import SAE_DIRS

    cpu.set_screening(screen)
    sae = sk.load(SAE_DIRS[f"model.layers.{site}"])
    seen = wrong = 0
    with torch.no_grad():
        for x in activations(site, batches=30):
            centred = x - sae.b_dec
            wrong += wrong_rows(centred, sae.W_enc, sae.b_enc, sae.activation.k)
            seen += x.shape[0]
    assert seen > 200_000
    assert wrong == 0
