#!/usr/bin/env bash
# Native code for ARM and macOS, as far as Linux on x86-64 can tell: cross-compiled for aarch64, the native
# tests in emulation as several processors, bits compared with those of x86-64, once more under the address and
# undefined behaviour sanitizers, and Clang with libc++ for both.
#
# Needs g++-aarch64-linux-gnu, qemu-user-static, clang, libc++-dev and libc++abi-dev of Debian, cmake and ninja.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

for tool in aarch64-linux-gnu-g++ qemu-aarch64-static clang++ cmake ninja; do
    if ! command -v "$tool" >/dev/null; then
        echo "tools/arm/native.sh: $tool was not found; the first lines of this file say what is needed" >&2
        exit 1
    fi
done
build=${SAEKERNELS_ARM_BUILD:-build/arm}
common=(-S . -G Ninja -DSAEKERNELS_PYTHON=OFF -DSAEKERNELS_WERROR=ON)
cross=(-DCMAKE_SYSTEM_NAME=Linux -DCMAKE_SYSTEM_PROCESSOR=aarch64)

cross_compile() {  # directory, further definitions
    cmake "${common[@]}" "${cross[@]}" -DSAEKERNELS_TESTS=ON -DCMAKE_CXX_COMPILER=aarch64-linux-gnu-g++ \
        -B "$@" >/dev/null
    cmake --build "$1"
}

emulate() {  # processor, test
    echo "+ $2 as $1"
    qemu-aarch64-static -cpu "$1" "$build/$2"
}

cross_compile "$build" -DCMAKE_EXE_LINKER_FLAGS=-static
for test in bits_test native_test screen_test loss_test; do
    emulate max,pauth-impdef=on "$test"  # bf16, int8 matrices, dot products
    emulate cortex-a53 "$test"           # none of them
done
emulate neoverse-n1 bits_test            # dot products alone

cross_compile "$build-sanitized" -DSAEKERNELS_SANITIZE=address
for test in bits_test native_test screen_test loss_test; do
    echo "+ $test under sanitizers"
    # LeakSanitizer stops other threads with ptrace, which the emulator does not have.
    ASAN_OPTIONS=detect_leaks=0 qemu-aarch64-static -L /usr/aarch64-linux-gnu -cpu max,pauth-impdef=on \
        "$build-sanitized/$test"
done

for processor in x86_64 aarch64; do
    echo "+ Clang with libc++ for $processor"
    cmake "${common[@]}" -B "$build-clang-$processor" -DCMAKE_SYSTEM_NAME=Linux -DCMAKE_SYSTEM_PROCESSOR=$processor \
        -DCMAKE_BUILD_TYPE=Debug -DCMAKE_CXX_COMPILER=clang++ -DCMAKE_TRY_COMPILE_TARGET_TYPE=STATIC_LIBRARY \
        -DCMAKE_CXX_FLAGS="--target=$processor-linux-gnu -stdlib=libc++" >/dev/null
    cmake --build "$build-clang-$processor" --target saekernels_cpu
done
echo ok
