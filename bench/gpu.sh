#!/usr/bin/env bash
# Builds, tests and benchmarks andfast on a machine with a GPU, without a network, in at most ten minutes:
#
#     bench/gpu.sh [--dry-run]
#
# What teaches most comes first: which kernels are right and how fast, then whole training steps from small to large,
# then tests, single operations and compute-sanitizer. Every benchmark checks its results before it takes a time.
# Each stage writes to $OUT (bench/results by default) before the next one begins: a log, kernels.json (each kernel's
# problem or time), gpu.json, report.md and report.png; at last failures.md, every kind of failure with a traceback, and
# summary.txt. --dry-run takes the same steps on the CPU with the smallest sizes and leaves out what needs a GPU.
#
# PYTHON names the interpreter (python3); BUDGET the seconds in all (570; a dry run has four times as long). Wheels in
# .whl/ are made importable.
set -euo pipefail
shopt -s nullglob
cd "$(dirname "$0")/.."

usage="usage: bench/gpu.sh [--dry-run]"
dry_run=0
case "${1-}" in
  "") ;;
  --dry-run) dry_run=1 ;;
  -h | --help) echo "$usage" && exit ;;
  *) echo "$usage" >&2 && exit 2 ;;
esac

python=${PYTHON:-python3}
out=${OUT:-bench/results}
slack=$((dry_run ? 4 : 1)) # a few CPU cores, and Triton's interpreter, take longer
budget=${BUDGET:-$((570 * slack))}
mkdir -p "$out"
out=$(cd "$out" && pwd)
summary=$out/summary.txt
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
: >"$summary"
rm -f "$out"/{build,kernels,tests,sanitizer,bench}.log "$out"/{kernels,gpu}.json "$out"/report.{md,png} "$out/failures.md"
export PYTHONUNBUFFERED=1 PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"

say() { printf '%-28s %s\n' "$1" "$2" | tee -a "$summary"; }

# stage NAME SECONDS LOG COMMAND...: run it within its time and what is left of the budget. Its exit status is left in
# $status (124: no time left, or not done in time). SIGINT lets pytest write down what it has.
status=0
stage() {
  local name=$1 seconds=$(($2 * slack)) log=$out/$3 left=$((budget - SECONDS)) began=$SECONDS
  shift 3
  if ((left < 10)); then
    status=124
    say "$name" "not run: no time left"
    return
  fi
  status=0
  echo "+ $*" >>"$log"
  timeout -s INT -k 15 "$((seconds < left ? seconds : left))" "$@" >>"$log" 2>&1 || status=$?
  case $status in
    0) say "$name" "passed in $((SECONDS - began)) s" ;;
    124 | 137) status=124 && say "$name" "not done within $((SECONDS - began)) s" ;;
    *) say "$name" "failed with status $status after $((SECONDS - began)) s" ;;
  esac
}

finish() {
  echo
  echo "== $out/summary.txt"
  cat "$summary"
  exit "$1"
}

# What is carried along, because nothing can be fetched.
if compgen -G ".whl/*.whl" >/dev/null; then
  stage "carried wheels" 60 build.log "$python" -m pip install --quiet --no-index --no-deps --find-links .whl \
    --target "$scratch/site" .whl/*.whl
  PYTHONPATH=$PYTHONPATH:$scratch/site
fi

# Before any time is spent: what is imported below.
missing=$("$python" - <<'PYTHON'
import re, tomllib
from importlib import metadata

def installed(name):
    try:
        return bool(metadata.version(name))
    except metadata.PackageNotFoundError:
        return False

needed = tomllib.load(open("pyproject.toml", "rb"))["project"]["dependencies"] + ["pytest", "pytest-benchmark"]
names = [re.match(r"[\w.-]+", requirement)[0] for requirement in needed]
print(*(name for name in names if not installed(name)))
PYTHON
) || true # without tomllib (Python 3.10) nothing is known
if [[ -n $missing ]]; then
  say "packages" "missing: $missing; put their wheels in .whl/"
  finish 1
fi

if ((dry_run)); then
  export ANDFAST_BENCH_SMALL=1 CUDA_VISIBLE_DEVICES="" OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
  say "GPU" "left out: dry run on the CPU"
else
  if ! gpu=$("$python" -c "import torch; print(torch.cuda.get_device_name(), 'torch', torch.__version__)" 2>&1); then
    say "GPU" "torch can use none: ${gpu##*$'\n'}"
    finish 1
  fi
  say "GPU" "$gpu"
  # This GPU's machine code alone: the other architectures take their time to compile.
  capability=$("$python" -c "import torch; print('%d.%d' % torch.cuda.get_device_capability())")
  export TORCH_CUDA_ARCH_LIST=${TORCH_CUDA_ARCH_LIST:-$capability}
fi

# The environment's own andfast is left alone in a dry run.
status=1
((dry_run)) || stage "build: pip install -e ." 170 build.log \
  "$python" -m pip install --no-build-isolation --no-deps -e .
((status == 0)) || stage "build: build_ext --inplace" 170 build.log "$python" setup.py build_ext --inplace
if ((status)); then
  say "build" "see build.log; what needs no extension is tested and timed"
fi
# Which kernel is right, and how fast, by what every user's machine does before it uses one.
export ANDFAST_CACHE=$scratch/cache
stage "andfast.info --verify" 150 kernels.log "$python" -m andfast.info --verify --json
if ((status == 0)); then
  sed -n '/^{/,$p' "$out/kernels.log" >"$out/kernels.json"
  "$python" -m bench.failures --kernels "$out/kernels.json" | tee -a "$summary"
fi

# pytests NAME SECONDS LOG OPTION...: each in a process of its own; after an illegal access its GPU is lost.
pytests() {
  stage "$1" "$2" "$3" "$python" -m pytest -q -p no:cacheprovider --junitxml="$scratch/${1//[ \/]/_}.xml" "${@:4}"
}

# bench NAME SECONDS OPTION...: time it, and write all that was timed so far.
results=()
bench() {
  local file=$scratch/${1//[ \/]/_}.json
  pytests "bench $1" "$2" bench.log --benchmark-json="$file" "${@:3}"
  [[ -s $file ]] || return 0
  results+=("$file")
  # One file: the first one's machine, all one's benchmarks.
  "$python" - "$out/gpu.json" "${results[@]}" <<'PYTHON'
import json, sys

contents = [json.load(open(path)) for path in sys.argv[2:]]
contents[0]["command"] = "bench/gpu.sh"
contents[0]["benchmarks"] = [benchmark for content in contents for benchmark in content["benchmarks"]]
json.dump(contents[0], open(sys.argv[1], "w"), indent=1)
PYTHON
}

if ((dry_run)); then cases=(compact rrdbnet); else cases=(compact\ 8x128 rrdbnet\ 8x128 compact\ 48x256 rrdbnet\ 48x256); fi
for case in "${cases[@]}"; do
  bench "step $case" $((dry_run ? 120 : 75)) bench/test_step.py -k "${case/ / and }"
done

parallel=() # most of their time goes into compiling
if ((!dry_run)) && "$python" -c "import xdist" 2>/dev/null; then parallel=(-n 8 --dist loadfile); fi
# Left out is what reads the compiled code and needs no GPU, but a minute of nvcc.
pytests "tests of operations" 120 tests.log tests/ops --ignore=tests/ops/triton_backend \
  --ignore=tests/ops/test_cuda_sources.py "${parallel[@]}"
pytests "tests of Triton" $((dry_run ? 240 : 120)) tests.log tests/ops/triton_backend "${parallel[@]/loadfile/load}"
# Of what is built from the operations, the files that have something for a GPU, and whole steps.
mapfile -t on_gpu < <(grep -lE '\bcuda\b' tests/models/test_*.py tests/attack/test_*.py || true)
pytests "tests of steps" 80 tests.log tests/training/test_{trainer,exact_step}.py "${on_gpu[@]}" "${parallel[@]}"

for operation in degradation_forward dense_block degradation_block projected_step blur_pool noise degradations; do
  bench "$operation" 40 "bench/test_$operation.py"
done

# sanitize TOOL: of the CUDA kernels, the fewest cases that have all of them.
sanitize() {
  local found
  stage "compute-sanitizer $1" 45 sanitizer.log compute-sanitizer --tool "$1" "${@:2}" --error-exitcode 99 \
    --target-processes all "$python" -m pytest -q -p no:cacheprovider -x tests/ops/test_cuda_operators.py \
    -k "not cpu and (shape2 and dtype0 or projected_step or gaussian_field)"
  found=$(grep -hE '(ERROR|RACECHECK) SUMMARY: [1-9]' "$out/sanitizer.log" | tail -n 1 || true)
  [[ -z $found ]] || say "compute-sanitizer $1" "failed with $found"
}
if ((dry_run)); then
  say "compute-sanitizer" "left out: it needs a GPU"
elif ! command -v compute-sanitizer >/dev/null; then
  say "compute-sanitizer" "left out: it was not found"
else
  # Without torch's own cache, every allocation's bounds are known to the tool.
  export PYTORCH_NO_CUDA_MEMORY_CACHING=1
  sanitize memcheck --report-api-errors no
  sanitize racecheck
  unset PYTORCH_NO_CUDA_MEMORY_CACHING
fi

if ((${#results[@]})); then
  "$python" -m bench.report "$out/gpu.json" --output "$out" >>"$out/bench.log" 2>&1 ||
    say "report" "incomplete (its chart needs matplotlib): see bench.log"
  [[ ! -f $out/report.md ]] || grep -E '^(##|\|)' "$out/report.md" | grep -v -e '|--' -e '| variant' || true
fi
"$python" -m bench.failures "$scratch"/*.xml --output "$out/failures.md" | tee -a "$summary" ||
  say "failures" "not listed: failed with the error above"
if grep -qE ' (failed with|not done|not run)' "$summary"; then
  finish 1
fi
finish 0
