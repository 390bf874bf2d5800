"""A tool that is installed but does not import is left out by `swapped` and the plugin, with the reason; others work.

The tools are packages made here: one works, one needs what is not there, one fails in another way.
"""

from __future__ import annotations

import textwrap
from pathlib import Path

import pytest

import ranks

SPARSIFY = """
from types import SimpleNamespace
from torch import nn, randn

ForwardOutput = tuple

class SparseCoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder, self.W_dec = nn.Linear(8, 24), nn.Parameter(randn(24, 8))
        self.b_dec, self.num_latents, self.dtype = nn.Parameter(randn(8)), 24, self.W_dec.dtype
        self.cfg = SimpleNamespace(activation="topk", k=3, transcode=False)

    def encode(self, x):
        return (self.encoder(x - self.b_dec).relu().topk(3, sorted=True))
"""
PACKAGES = {
    "sparsify/__init__.py": "",
    "sparsify/sparse_coder.py": SPARSIFY,
    "sparsify/fused_encoder.py": "from collections import namedtuple\n"
    "EncoderOutput = namedtuple('EncoderOutput', 'values indices pre')\n",
    "sparsify/config.py": "SparseCoderConfig = dict\n",
    "sparsify/trainer.py": "class Trainer:\n    pass\n",
    "dictionary_learning/__init__.py": "import a_package_that_is_not_there\n",
    "sae_bench/__init__.py": "raise RuntimeError('no device\\nsecond line')\n",
    "sae_lens/__init__.py": "raise AttributeError('np.float_ was removed')\n",
}
BROKEN = {
    "dictionary_learning": "ModuleNotFoundError: No module named 'a_package_that_is_not_there'",
    "sae_bench": "RuntimeError: no device",
    "sae_lens": "AttributeError: np.float_ was removed",
}
REASONS = {name: f"{name} is installed but does not import as it is known here: {why}" for name, why in BROKEN.items()}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, text in PACKAGES.items():
        (tmp_path / "packages" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "packages" / name).write_text(text)
    (tmp_path / "work").mkdir()
    return tmp_path


def run(folder: Path, code: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr in a process of its own, because what is once imported stays.

    The code is not at the top of what runs: its imports are for that process alone.
    """
    start = (
        "import os, sys, warnings\n"
        "import pytest, torch\n"
        "import saekernels as sk\n"
        f"sys.path.insert(0, {str(folder / 'packages')!r})\n"
        f"os.chdir({str(folder / 'work')!r})\n"
    )
    return ranks.alone(start + "if True:\n" + textwrap.indent(code, "    "))


def test_the_swap_leaves_out_what_does_not_import(folder: Path) -> None:
    code, out, err = run(
        folder,
        "from sparsify.sparse_coder import SparseCoder\n"
        "plain = SparseCoder()\n"
        "with warnings.catch_warnings(record=True) as told:\n"
        "    warnings.simplefilter('always')\n"
        "    with sk.swapped() as on:\n"
        "        coder = SparseCoder()\n"
        "print(on)\n"
        "for one in told:\n"
        "    print(one.category.__name__, one.filename == __file__, one.message)\n"
        "coder.load_state_dict(plain.state_dict())\n"
        "x = torch.randn(5, 8)\n"
        "print(sk.is_accelerated(coder), sk.is_accelerated(SparseCoder()))\n"
        "print(torch.allclose(coder.encode(x).values, plain.encode(x).values, atol=1e-5))\n",
    )
    assert code == 0, err
    first, *told, swapped, values = out.splitlines()
    assert first == "['sparsify']"
    assert sorted(told) == [f"UserWarning True swapped: left out: {REASONS[name]}" for name in sorted(BROKEN)]
    assert swapped == "True False"
    assert values == "True"


@pytest.mark.parametrize("name", BROKEN)
def test_one_that_is_named_raises_with_the_reason(name: str, folder: Path) -> None:
    _, out, err = run(
        folder,
        "from sparsify.sparse_coder import SparseCoder\n"
        "try:\n"
        f"    with sk.swapped('sparsify', {name!r}): print('on')\n"
        "except sk.NotAccelerated as error:\n"
        "    print(error)\n"
        "print(sk.is_accelerated(SparseCoder()))\n"
        "with sk.swapped('sparsify') as on: print(on)\n",
    )
    assert out.splitlines() == [REASONS[name], "False", "['sparsify']"], err


@pytest.mark.slow
def test_the_plugin_says_in_its_header_what_it_leaves_out(folder: Path) -> None:
    own, options = folder / "work" / "test_own.py", ["saekernels.adapters.pytest_plugin", "-p", "no:cacheprovider"]
    plugin = f"warnings.simplefilter('error')\nsys.exit(pytest.main(['-p', *{options}, '-n0', 'test_own.py']))\n"
    own.write_text(
        "import saekernels\n"
        "from sparsify.sparse_coder import SparseCoder\n"
        "def test_it():\n"
        "    assert saekernels.is_accelerated(SparseCoder())\n"
    )
    code, out, err = run(folder, plugin)
    assert code == 0, out + err
    header = [line for line in out.splitlines() if line.startswith("saekernels: ")]
    assert header[0] == "saekernels: objects of sparsify are accelerated as they are made"
    assert sorted(header[1:]) == [f"saekernels: left out: {REASONS[name]}" for name in sorted(BROKEN)]
    (folder / "packages" / "sparsify" / "sparse_coder.py").write_text("import a_package_that_is_not_there\n")
    own.write_text("def test_it(): pass\n")
    _, out, _ = run(folder, plugin)
    assert "saekernels: objects of no tool are accelerated as they are made\n" in out
    assert "saekernels: left out: sparsify is installed but does not import" in out


def test_an_object_of_such_a_tool_is_refused_with_the_reason(folder: Path) -> None:
    (folder / "packages" / "sparsify" / "fused_encoder.py").write_text("")
    _, out, err = run(
        folder,
        "from sparsify.sparse_coder import SparseCoder\n"
        "try:\n"
        "    sk.accelerate(SparseCoder())\n"
        "except sk.NotAccelerated as error:\n"
        "    print(error)\n",
    )
    reason = "ImportError: cannot import name 'EncoderOutput' "
    told = f"sparsify is installed but does not import as it is known here: {reason}"
    assert out.startswith(told), err
