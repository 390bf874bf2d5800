#!/usr/bin/env bash
# The package on ARM, in emulation: Debian's Python, PyPI's torch (3 GB, with the CUDA libraries that it loads), the
# native module cross-compiled, and the ops' conformance tests on the backends cpu and reference.
#
#     bash tools/arm/python.sh [arguments of pytest]
#
# Needs what tools/arm/native.sh needs, pybind11 and dpkg-deb. What was fetched stays in build/arm-python.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

place=${SAEKERNELS_ARM_PYTHON:-build/arm-python}
mkdir -p "$place"
place=$(cd "$place" && pwd)
root=$place/root site=$place/site
version=3.11 tag=cpython-311-aarch64-linux-gnu

if [ ! -x "$root/usr/bin/python$version" ]; then
    python tools/arm/debian.py "$root" "python$version" "libpython$version-dev" libstdc++6 libgomp1
fi
# torch asks these who made the processor, and would hear of this machine's, or crash.
for core in 0 1; do
    mkdir -p "$root/sys/devices/system/cpu/cpu$core/regs/identification" "$root/proc"
    echo 0x00000000410fd0c0 > "$root/sys/devices/system/cpu/cpu$core/regs/identification/midr_el1"
done
for core in 0 1; do
    printf 'processor\t: %s\nBogoMIPS\t: 50.00\nFeatures\t: fp asimd crc32 atomics fphp asimdhp asimdrdm asimddp\n' $core
    printf 'CPU implementer\t: 0x41\nCPU architecture: 8\nCPU variant\t: 0x3\nCPU part\t: 0xd0c\nCPU revision\t: 1\n\n'
done > "$root/proc/cpuinfo"

if [ ! -d "$site/torch" ]; then
    platforms=()
    for minor in $(seq 17 39); do platforms+=(--platform "manylinux_2_${minor}_aarch64"); done
    python -m pip install -q --target "$site" "${platforms[@]}" --platform manylinux2014_aarch64 --platform any \
        --only-binary=:all: --python-version "$version" --implementation cp --abi cp311 --abi abi3 --abi none \
        torch==2.13.0 numpy safetensors pytest hypothesis
fi

cmake -S . -G Ninja -B "$place/module" -DSAEKERNELS_CUDA=OFF -DCMAKE_SYSTEM_NAME=Linux \
    -DCMAKE_SYSTEM_PROCESSOR=aarch64 -DCMAKE_CXX_COMPILER=aarch64-linux-gnu-g++ \
    -DCMAKE_CXX_FLAGS="-idirafter $root/usr/include" -Dpybind11_DIR="$(python -m pybind11 --cmakedir)" \
    -DPython_EXECUTABLE="$(command -v python)" -DPython_INCLUDE_DIR="$root/usr/include/python$version" \
    -DPYTHON_MODULE_EXTENSION=".$tag.so" >/dev/null
cmake --build "$place/module" --target _cpu
# A copy of the sources: the module of this machine stays where it is, and the other is not found by it.
rm -rf "$place/sources"
mkdir "$place/sources"
cp -r saekernels tests pyproject.toml "$place/sources"
cp "$place/module/_cpu.$tag.so" "$place/sources/saekernels"
cd "$place/sources"

emulated() {
    PYTHONPATH=$PWD:$PWD/tests/helpers:$site PYTHONDONTWRITEBYTECODE=1 \
        qemu-aarch64-static -cpu "${SAEKERNELS_ARM_CPU:-neoverse-n1}" -L "$root" "$root/usr/bin/python$version" "$@"
}

emulated -m saekernels info | grep -A 6 "^backend cpu"
[ $# -gt 0 ] || set -- tests/ops/test_topk.py tests/ops/test_decode.py tests/ops/test_encode_topk.py
emulated -m pytest -o addopts= -m "not slow" -p no:cacheprovider -q -W ignore "$@"
