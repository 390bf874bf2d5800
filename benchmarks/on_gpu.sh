#!/usr/bin/env bash
# All that a machine with an NVIDIA GPU is for, from a checkout, in one go: build, check, sanitize, score, tune.
#
#     benchmarks/on_gpu.sh OUT [--quick]       # logs, record and plots under OUT; the scorecard's table comes last
#
# Needs torch, triton, pybind11, cmake, ninja and nvcc; no network.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit
out=${1:?"need a directory for logs and records"}
shift
mkdir -p "$out"
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1
saekernels() { python3 -c 'import sys; from saekernels_command import main; sys.exit(main())' "$@"; }

python3 setup.py -q build_ext --inplace >"$out/build.txt" 2>&1 || echo "build failed, see $out/build.txt"
saekernels info >"$out/info.txt"
saekernels bench check --device cuda 2>&1 | tee "$out/check.txt"
right=${PIPESTATUS[0]}

if command -v compute-sanitizer >/dev/null; then
    for tool in memcheck racecheck; do
        compute-sanitizer --tool "$tool" python3 -c 'import sys; from saekernels_command import main; sys.exit(main())' \
            bench check --device cuda --checks topk,nothing >"$out/$tool.txt" 2>&1
        echo "$tool: $(tail -1 "$out/$tool.txt")"
    done
fi

[ "$right" -eq 0 ] || exit 1
saekernels bench gpu --json "$out/record.json" "$@" >"$out/score.txt" 2>"$out/bench.log"
scored=$?
saekernels bench gpu --tune --kernels screen >"$out/tune.txt" 2>"$out/tune.log"
cat "$out/tune.txt" "$out/score.txt"
exit "$scored"
