#!/usr/bin/env bash
# All that a machine with an NVIDIA GPU is for, from a checkout, the most telling first (docs/how-to/gpu.md).
#
#     benchmarks/on_gpu.sh OUT             # every step that OUT has no record of
#     benchmarks/on_gpu.sh OUT STEP ...    # these steps, from their beginning
#
# Steps: build check check-tests sanitize check-hopper score score-counters tune score-full.
# Each has a time limit and writes to OUT as it goes: a machine that is taken away loses the row at work, no more.
# OUT/steps.txt has a line for each step that ended: name, exit code, seconds. A later call with the same OUT leaves
# those out, and goes on with what was cut off (124 and 137). Environment:
#
#     ON_GPU_SECONDS=570        after so many no step begins, and the one at work is ended
#     SAEKERNELS_REHEARSAL=1    the same command lines where there is no GPU, under OUT/rehearsal: nothing is built
#                               or timed, tests are collected, kernels run in Triton's interpreter
#
# Needs torch, triton, pytest, pytest-xdist, hypothesis, pybind11, cmake, ninja and nvcc; no network.
set -uo pipefail

steps=(build check check-tests sanitize check-hopper score score-counters tune score-full)
declare -A limits=(
    [build]=240 [check]=240 [check-tests]=300 [sanitize]=300 [check-hopper]=240 [score]=300 [score-counters]=180
    [tune]=470 [score-full]=470
)
# Cheap and central ones first, as far as eight processes at a time have an order.
checks=(nothing topk decoding gathering losses encode thresholds scales training batches adversaries precisions graphs "far apart")
conformance=(
    tests/ops/test_topk.py tests/ops/test_decode.py tests/ops/test_encode_topk.py tests/ops/test_encode_threshold.py
    tests/ops/test_scale.py tests/ops/test_linear_ce_kl.py tests/ops/test_torch.py
    tests/ops/gradients/test_against_dense.py
)
tunable=(screen decode linear_ce_kl segment)

build() {
    if [ -z "$rehearsal" ]; then nvidia-smi; fi
    for tool in nvcc cmake ninja compute-sanitizer ncu; do command -v "$tool" && "$tool" --version | tail -1; done
    git log -1 --format='commit %H' 2>/dev/null
    python3 --version
    local how=(build_ext --inplace) code
    if [ "$rehearsal" ]; then how=(--version); fi
    SAEKERNELS_REQUIRE_BUILD=1 python3 setup.py -q "${how[@]}"
    code=$?
    python3 -m saekernels info
    return "$code"
}

check() {
    local name left=()
    for name in "${checks[@]}"; do
        if [ -z "$resume" ] || ! grep -q "^$name  *right" "$out/check.txt"; then left+=("$name"); fi
    done
    if [ "$rehearsal" ]; then left=("nothing,topk"); fi
    # Compiling is most of the time, and one process compiles one kernel at a time.
    printf '%s\0' ${left[@]+"${left[@]}"} |
        xargs -0 -r -P 8 -I{} python3 -m saekernels bench check --device "$device" --checks {}
}

check-tests() {
    local how=(-v -n 8 -k "triton or cuda")
    if [ "$rehearsal" ]; then how=(-q -n 0 --collect-only); fi
    python3 -m pytest -p no:cacheprovider "${how[@]}" "${conformance[@]}"
}

sanitize() {
    local tool process processes=() code
    watched # compiles, so that the sanitizers need not
    code=$?
    if [ "$rehearsal" ] || ! command -v compute-sanitizer; then return "$code"; fi
    for tool in memcheck racecheck initcheck synccheck; do
        if [ "$resume" ] && grep -q "^$tool: ended with 0" "$out/sanitize.txt"; then continue; fi
        watched compute-sanitizer --tool "$tool" --error-exitcode 9 2>&1 | sed -u "s/^/$tool: /" &
        processes+=($!)
    done
    for process in ${processes[@]+"${processes[@]}"}; do wait "$process" || code=1; done
    return "$code"
}

# A sanitizer sees the end of a tensor only where torch's allocator does not keep memory for later.
watched() {
    local code
    PYTORCH_NO_CUDA_MEMORY_CACHING=1 "$@" python3 tests/helpers/gpu/every_kernel.py "$device"
    code=$?
    echo "ended with $code"
    return "$code"
}

# The screen that no row of the table asks for: right, faster than the one in its place, and clean?
check-hopper() {
    local tool code
    python3 benchmarks/hopper_screen.py "$device"
    code=$?
    if [ "$rehearsal" ] || ! command -v compute-sanitizer; then return "$code"; fi
    for tool in memcheck synccheck; do
        compute-sanitizer --tool "$tool" --error-exitcode 9 \
            python3 benchmarks/hopper_screen.py "$device" watched || code=1
    done
    return "$code"
}

# A dry run takes no record: it would write none.
scored() {
    local how=(${resume:+--resume} "${@:2}" --json "$out/$1")
    if [ "$rehearsal" ]; then how=("${@:2}" --dry-run); fi
    python3 -m saekernels bench gpu --no-plots "${how[@]}"
}

score() { scored quick.json --quick; }

# Which unit bounds four kernels, by the card's own counters; clocks are left as they are.
score-counters() {
    local script=benchmarks/gpu_counters.py section metrics=lts__t_bytes.sum,dram__bytes.sum
    if [ "$rehearsal" ] || ! command -v ncu; then python3 "$script" "$device"; return; fi
    local how=(--clock-control none --profile-from-start off -k 'regex:_kernel$' --csv --page details)
    for section in SpeedOfLight ComputeWorkloadAnalysis MemoryWorkloadAnalysis Occupancy WarpStateStats LaunchStats; do
        how+=(--section "$section")
    done
    ncu "${how[@]}" --metrics "$metrics" python3 "$script" "$device"
}

score-full() { scored full.json; }

# A kernel is done with two lines of the table, narrow and wide.
tune() {
    local name lines left=()
    for name in "${tunable[@]}"; do
        lines=$(grep -c "# $name,\|Key(\"$name\"" "$out/tune.txt")
        if [ -z "$resume" ] || [ "$lines" -lt 2 ]; then left+=("$name"); fi
    done
    name=$(IFS=, && echo "${left[*]-}")
    if [ "$name" ]; then python3 -m saekernels bench gpu --tune --kernels "$name" ${rehearsal:+--dry-run}; fi
}

rehearsal=${SAEKERNELS_REHEARSAL:-}
device=${rehearsal:+cpu}
device=${device:-cuda}
if [ -z "${1:-}" ] || [ "${1#-}" != "$1" ]; then
    echo "on_gpu.sh: got ${1:-nothing}, need a directory for logs and records: on_gpu.sh OUT [STEP ...]" >&2
    exit 2
fi
if [[ ! ${ON_GPU_SECONDS:-570} =~ ^[0-9]+$ ]]; then
    echo "on_gpu.sh: ON_GPU_SECONDS: got $ON_GPU_SECONDS, need a whole number of seconds" >&2
    exit 2
fi
out=$(realpath -m "$1")
shift
if [ "${ON_GPU_STEP:-}" ]; then # in the process below, which has a limit
    resume=${ON_GPU_RESUME:-}
    "$ON_GPU_STEP"
    exit
fi

self=$(realpath "${BASH_SOURCE[0]}")
cd "$(dirname "$self")/.." || exit
for name in "$@"; do
    if [[ " ${steps[*]} " != *" $name "* ]]; then
        echo "on_gpu.sh: no step $name; need some of ${steps[*]}" >&2
        exit 2
    fi
done
if [ -z "$rehearsal" ] && ! command -v nvidia-smi >/dev/null; then
    echo "on_gpu.sh: no nvidia-smi, so no NVIDIA GPU here; SAEKERNELS_REHEARSAL=1 goes through all without one" >&2
    exit 2
fi
if [ "$rehearsal" ]; then out=$out/rehearsal; fi
mkdir -p "$out" && touch "$out/steps.txt" || exit
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1
resume=1
if [ $# -gt 0 ]; then steps=("$@") resume=""; fi

ended() { tac "$out/steps.txt" | grep -m1 "^$1 " | grep -qv " 1\(24\|37\) "; }

failed=0
for name in "${steps[@]}"; do
    if [ "$resume" ] && ended "$name"; then
        echo "== $name: $(grep "^$name " "$out/steps.txt" | tail -1), in an earlier call"
        continue
    fi
    allowed=$((${ON_GPU_SECONDS:-570} - SECONDS))
    if [ "$allowed" -lt 20 ]; then
        echo "== $name: no time left"
        failed=1
        continue
    fi
    if [ "$allowed" -gt "${limits[$name]}" ]; then allowed=${limits[$name]}; fi
    log=$out/${name%%-*}.txt began=$SECONDS
    echo "== $name, at most $allowed s" | tee -a "$log"
    ON_GPU_STEP=$name ON_GPU_RESUME=$resume timeout -k 10 "$allowed" bash "$self" "$out" 2>&1 | tee -a "$log"
    code=${PIPESTATUS[0]}
    echo "$name $code $((SECONDS - began))" | tee -a "$out/steps.txt"
    if [ "$code" -ne 0 ]; then failed=1; fi
done
exit "$failed"
