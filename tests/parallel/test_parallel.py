"""SAEs spread over one to four processes against whole ones; what a shard holds and how much of a file it reads."""

from __future__ import annotations

import ast
import json
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import ranks
import saekernels
from places import SCRIPTS
from saekernels.backends.reference import topk
from saekernels.parallel import merge, shard
from saekernels.parallel.rows import rows_of
from saekernels.sae.activations import GroupMax, ReLU, TopK
from saekernels.sae.module import SAE

SCRIPT = SCRIPTS / "parallel_script.py"


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_shards_are_the_whole(count: int) -> None:
    """Codes to the bit for every activation and option, of shards of equal sizes and of unequal ones, and the rest."""
    assert json.loads(ranks.check(count, str(SCRIPT)).splitlines()[-1]) == {
        "compare": [],
        "gradients": [],
        "loaded": [],
        "refusals": [],
        "traffic": [],
    }


@given(st.integers(1, 40), st.integers(1, 9), st.integers(1, 5))
def test_rows_are_shared_out_evenly_and_whole(pieces: int, ranks_: int, size: int) -> None:
    activation = ReLU() if size == 1 else GroupMax(pieces)
    if pieces < ranks_:
        with pytest.raises(ValueError, match="at least one for each rank"):
            rows_of(pieces * size, activation, ranks_)
        return
    rows = rows_of(pieces * size, activation, ranks_)
    assert [i for part in rows for i in part] == list(range(pieces * size))
    counts = [len(part) // size for part in rows]
    assert all(len(part) % size == 0 for part in rows)
    assert max(counts) - min(counts) <= 1


FLOATS = st.one_of(
    st.floats(width=32, allow_nan=True, allow_infinity=True), st.sampled_from([0.0, -0.0, 1.0, -1.0, 1e-45, -1e-45])
)


@given(st.lists(FLOATS, min_size=1, max_size=40), st.booleans(), st.data())
def test_keys_order_as_the_op_and_come_back(scores: list[float], magnitude: bool, data: st.DataObject) -> None:
    values = torch.tensor(scores, dtype=torch.float32)
    names = torch.randperm(len(scores), generator=torch.Generator().manual_seed(0)).int()
    keys = merge.pack(values[names.long()], names, magnitude)
    back, latents = merge.unpack(keys)
    assert torch.equal(latents, names)
    assert torch.equal(back.isnan(), values[names.long()].isnan())
    assert torch.equal(back.nan_to_num(nan=0.0), (values[names.long()] + 0.0).nan_to_num(nan=0.0))
    k = data.draw(st.integers(1, len(scores)))
    want = topk((values.abs() if magnitude else values)[None], k)[1][0]
    assert torch.equal(merge.unpack(keys.topk(k).values)[1], want)


def test_what_fills_up_a_smaller_shard_wins_no_tie_in_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    """Five latents over two ranks, all of score 0: the first offers its two and one more that does not exist."""
    values = torch.zeros(2, 1, 3, dtype=torch.float64)
    names = torch.tensor([[[0, 1, 5]], [[2, 3, 4]]], dtype=torch.int32)
    monkeypatch.setattr(merge, "gathered", lambda mine, group: values if mine.is_floating_point() else names)
    for rank, held in ((0, [True, True, False]), (1, [True, True, True])):
        _, chosen, mine = merge.merge_topk(values[rank], names[rank], 5, True, None)
        assert chosen.tolist() == [[0, 1, 2, 3, 4]]
        assert mine.tolist() == [held]


def test_without_processes_the_error_says_so() -> None:
    with pytest.raises(ValueError, match=r"torch\.distributed is not initialised"):
        shard(SAE(4, 8, ReLU()))
    with pytest.raises(TypeError, match=r"sae: got Linear, need a saekernels\.SAE"):
        shard(torch.nn.Linear(2, 2))  # type: ignore[arg-type]


MEMORY = """
import sys, re
import torch
from torch import distributed
import ranks
from saekernels import parallel

def own():
    found = re.search(r"RssAnon:\\s+(\\d+) kB", open("/proc/self/status").read())
    return int(found[1]) / 1024

distributed.init_process_group("gloo")
parallel.load(sys.argv[1] + "/small")  # what torch itself needs for that is not counted
before = own()
part = parallel.load(sys.argv[1] + "/large")
grown = own() - before
held = sum(p.numel() * p.element_size() for p in part.parameters()) / 2**20
found = [None] * distributed.get_world_size()
distributed.all_gather_object(found, (grown, held))
if distributed.get_rank() == 0:
    print(found, flush=True)
ranks.leave()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_shard_is_read_without_the_whole(tmp_path: Path) -> None:
    """A file of 256 MiB whose encoder lies across: each of four ranks takes a quarter, and little more."""
    for name, latents in (("small", 64), ("large", 65536)):
        saekernels.save(SAE(512, latents, TopK(8)), tmp_path / name)
    script = tmp_path / "memory.py"
    script.write_text(MEMORY)
    found = ast.literal_eval(ranks.check(4, str(script), str(tmp_path)).splitlines()[-1])
    for grown, held in found:
        assert 60 < held < 70
        assert grown < 1.3 * held, found
