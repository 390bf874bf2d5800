"""The table of kernel configurations, its fallbacks, and what a search tries."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton")

from saekernels.backends.triton import configs
from saekernels.backends.triton.append_ptx import PACK
from saekernels.backends.triton.configs import Config, Key, candidates, lookup, override

BF16 = torch.bfloat16


def test_every_kernel_has_one_on_every_architecture() -> None:
    for kernel in {key.kernel for key in configs.TABLE}:
        for architecture in (0, 80, 86, 89, 90, 100, 103, 120):
            for dtype in (torch.float32, BF16, torch.float16, torch.int8):
                for width in (64, 768, 4096):
                    found = lookup(kernel, architecture, dtype, width)
                    assert found.num_warps in (1, 2, 4, 8)
                    assert found.BN & (found.BN - 1) == 0


@pytest.mark.parametrize("architecture", [80, 90, 100])
@pytest.mark.parametrize("dtype", [torch.float32, BF16, torch.int8])
def test_a_quarter_of_a_screens_tile_has_a_pack_for_each_thread(architecture: int, dtype: torch.dtype) -> None:
    """Else assembly would be run for copies of an element, which would be appended twice."""
    for width in (64, 4096):
        for config in candidates("screen", architecture, dtype, width):
            assert 32 * config.num_warps * PACK <= config.BM * config.BN // 4


def test_the_nearest_entry_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    table = {
        Key("k", 80, 2, False): Config(1, 1, 1, 1, 1),
        Key("k", 90, 2, False): Config(2, 1, 1, 1, 1),
        Key("k", 90, 2, True): Config(3, 1, 1, 1, 1),
        Key("k", 90, 2, True, configs.VERSION): Config(4, 1, 1, 1, 1),
        Key("k", 90, 2, True, "0.0"): Config(5, 1, 1, 1, 1),
        Key("k", 90, 4, False): Config(6, 1, 1, 1, 1),
    }
    monkeypatch.setattr(configs, "TABLE", table)
    assert lookup("k", 80, BF16, 4096).BM == 1
    assert lookup("k", 86, BF16, 64).BM == 1, "an older architecture serves"
    assert lookup("k", 90, BF16, 64).BM == 2
    assert lookup("k", 120, BF16, configs.WIDE).BM == 4, "this version of Triton before any"
    assert lookup("k", 90, torch.float32, 64).BM == 6
    with pytest.raises(KeyError, match="nothing: no configuration for architecture 90"):
        lookup("nothing", 90, BF16, 64)


def test_an_override_ends_with_its_block() -> None:
    before = lookup("screen", 90, BF16, 768)
    with override("screen", Config(9, 9, 9, 9, 9)):
        assert lookup("screen", 90, BF16, 768).BM == 9
    assert lookup("screen", 90, BF16, 768) == before


@pytest.mark.parametrize("kernel", ["screen", "decode", "linear_ce_kl", "segment", "gather_dot"])
@pytest.mark.parametrize("architecture", [80, 90, 100])
def test_a_search_begins_with_the_table_and_stays_short(kernel: str, architecture: int) -> None:
    found = candidates(kernel, architecture, BF16, 768)
    assert found[0] == lookup(kernel, architecture, BF16, 768)
    assert len(found) == len(set(found))
    assert 5 < len(found) <= 40
    assert any(config.has("tma") for config in found) == (kernel == "screen" and architecture >= 90)
