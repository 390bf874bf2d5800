"""The build without its tools: the package must install as pure Python, say why, and still compute."""

from __future__ import annotations

import importlib
import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

import saekernels
from places import ROOT
from saekernels import _build_info, backends
from saekernels.backends import cpu, registry

setuptools = pytest.importorskip("setuptools")


def load(name: str, path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """setup.py as a module, with an environment that asks for nothing."""
    for name in ("SAEKERNELS_BUILD", "SAEKERNELS_CUDA", "SAEKERNELS_REQUIRE_BUILD", "CMAKE_ARGS", "CUDACXX"):
        monkeypatch.delenv(name, raising=False)
    return load("saekernels_setup", ROOT / "setup.py")


def build(script: ModuleType, directory: Path, command: str = "build_ext") -> dict[str, dict[str, str]]:
    """Run one setuptools command into `directory`; the record it leaves."""
    distribution = setuptools.Distribution(
        {"name": "saekernels", "packages": [], "ext_modules": [setuptools.Extension("saekernels._cpu", [])]}
    )
    classes = {"build_ext": script.CMakeBuild, "build_py": script.RecordingBuildPy}
    step = classes[command](distribution)
    step.build_lib = str(directory / "lib")
    if command == "build_ext":
        step.build_temp = str(directory / "temp")
    step.ensure_finalized()
    step.run()
    return json.loads((directory / "lib" / script.RECORD).read_text())


@pytest.mark.parametrize("value", ["0", "false", "No", "OFF"])
def test_the_build_can_be_switched_off(
    value: str, script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SAEKERNELS_BUILD", value)
    for command in ("build_py", "build_ext"):
        skipped = {"status": "skipped", "detail": "SAEKERNELS_BUILD=0 was set"}
        assert build(script, tmp_path, command) == {"cpu": skipped, "cuda": skipped}
    assert not list(tmp_path.rglob("_c*.so"))


@pytest.mark.parametrize("value", ["1", "yes", ""])
def test_the_build_is_wanted_by_default(value: str, script: ModuleType) -> None:
    assert script.wanted({})
    assert script.wanted({"SAEKERNELS_BUILD": value})


def test_without_cmake_the_package_is_pure_python_and_says_so(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(script, "find_tool", lambda name: None)
    monkeypatch.setattr(script, "find_nvcc", lambda environ: "/somewhere/nvcc")
    failed = {"status": "failed", "detail": "cmake was not found"}
    assert build(script, tmp_path) == {"cpu": failed, "cuda": failed}
    errors = capfd.readouterr().err
    assert "cpu: native kernels were not built: cmake was not found" in errors
    assert "cuda: native kernels were not built: cmake was not found" in errors


@pytest.mark.parametrize("broken", ["_cpu", "_cuda"])
def test_a_failing_compiler_costs_its_own_module_only(
    broken: str, script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "lib" / "saekernels"
    package.mkdir(parents=True)
    stale = package / f"{broken}.cpython-399-somewhere.so"
    stale.touch()

    def commands(target: str, build_dir: Path, output_dir: Path, jobs: int | None) -> list[list[str]]:
        if target == broken:
            message = "import sys; print('-- looking'); print('CMake Error: the compiler is broken'); sys.exit(3)"
            return [[sys.executable, "-c", message]]
        return [[sys.executable, "-c", f"open({str(output_dir / target)!r} + '.so', 'w')"]]

    monkeypatch.setattr(script, "find_nvcc", lambda environ: "/somewhere/nvcc")
    monkeypatch.setattr(script, "cmake_commands", commands)
    record = build(script, tmp_path)
    failed, built = ("cpu", "cuda") if broken == "_cpu" else ("cuda", "cpu")
    assert record[failed]["status"] == "failed"
    assert record[failed]["detail"].endswith("exited with 3: CMake Error: the compiler is broken")
    assert not stale.exists()
    assert record[built]["status"] == "built"
    assert (package / f"_{built}.so").exists()


def test_cuda_is_left_out_where_there_is_none_or_on_request(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(script, "cmake_commands", lambda *arguments: [])
    monkeypatch.setattr(script, "find_nvcc", lambda environ: None)
    assert build(script, tmp_path)["cuda"] == {"status": "skipped", "detail": "nvcc was not found"}
    monkeypatch.setenv("SAEKERNELS_CUDA", "off")
    assert build(script, tmp_path)["cuda"] == {"status": "skipped", "detail": "SAEKERNELS_CUDA=0 was set"}


def test_wheels_leave_the_example_out_and_nothing_else(script: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    step = script.RecordingBuildPy(setuptools.Distribution({"package_data": {"": ["*.*"]}}))
    step.ensure_finalized()
    step.manifest_files = {}
    for value, there in (("1", True), ("0", False)):
        monkeypatch.setenv("SAEKERNELS_EXAMPLE", value)
        model = step.find_data_files("saekernels.example.model", str(ROOT / "saekernels" / "example" / "model"))
        assert any(path.endswith("config.json") for path in model) == there
        assert step.find_data_files("saekernels.display", str(ROOT / "saekernels" / "display"))


def test_nvcc_is_found_where_it_is_said_to_be(script: ModuleType) -> None:
    assert script.find_nvcc({"CUDACXX": "/somewhere/else/nvcc"}) == "/somewhere/else/nvcc"


def test_a_required_build_fails_loudly(script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAEKERNELS_REQUIRE_BUILD", "1")
    monkeypatch.setattr(script, "find_tool", lambda name: None)
    with pytest.raises(script.BuildError, match="cmake was not found"):
        build(script, tmp_path)


def test_build_records_are_read_back(script: ModuleType, tmp_path: Path) -> None:
    script.write_record(tmp_path, ("failed", "no compiler"), ("skipped", "no nvcc"))
    record = tmp_path / script.RECORD
    assert _build_info.read("cpu", record) == {"status": "failed", "detail": "no compiler"}
    assert _build_info.read("cuda", record) == {"status": "skipped", "detail": "no nvcc"}
    record.write_text("{")
    assert _build_info.read("cpu", record)["status"] == "unknown"
    assert "unreadable" in _build_info.read("cpu", record)["detail"]
    for text in ("[]", "{}"):
        record.write_text(text)
        assert "says nothing of cuda" in _build_info.read("cuda", record)["detail"]
    record.unlink()
    assert "no build record" in _build_info.read("cpu", record)["detail"]


@pytest.fixture
def without_native(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    """The cpu backend as an installation without the native module would import it."""
    monkeypatch.setitem(sys.modules, "saekernels._cpu", None)
    monkeypatch.delattr(saekernels, "_cpu", raising=False)
    record = tmp_path / "_build_info.json"
    record.write_text(json.dumps({"cpu": {"status": "failed", "detail": "cmake was not found"}}))
    monkeypatch.setattr(_build_info.read, "__defaults__", ("cpu", record))
    for name in [name for name in sys.modules if name.startswith(cpu.__name__)]:
        monkeypatch.delitem(sys.modules, name)
    # Importing it again rebinds it in the room above.
    monkeypatch.setattr(backends, "cpu", cpu)
    return importlib.import_module(cpu.__name__)


def test_without_the_native_module_the_backend_gives_the_reason(without_native: ModuleType) -> None:
    assert without_native.available() == "native module not built (cmake was not found)"
    assert without_native.describe()["build"] == "failed: cmake was not found"
    with pytest.raises(RuntimeError, match="cmake was not found"):
        without_native.simd_level()


def test_without_the_native_module_the_ops_still_compute(
    without_native: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    genuine = registry.load
    monkeypatch.setattr(registry, "load", lambda name: without_native if name == "cpu" else genuine(name))
    registry.select.cache_clear()
    try:
        assert registry.select("encode_topk", "cpu", torch.float32).NAME == "reference"
        values, indices = saekernels.encode_topk(torch.eye(3), torch.eye(3), k=1)
    finally:
        registry.select.cache_clear()
    assert values.tolist() == [[1.0]] * 3
    assert indices.tolist() == [[0], [1], [2]]
