#!/usr/bin/env bash
# Builds, tests and benchmarks andfast on a machine with a GPU, without a network, in at most ten minutes:
#
#     bench/gpu.sh [--dry-run]
#
# Correctness comes first: what fails its tests is not timed. Everything lands in $OUT (bench/results by default):
# a log a stage, kernels.json (each kernel's problem or time), gpu.json, report.md, report.png and summary.txt, which says
# what passed. --dry-run takes the same steps on the CPU with the smallest sizes and leaves out what needs a GPU.
#
# PYTHON names the interpreter (python3); BUDGET the seconds in all (570; a dry run has four times as long). Wheels in
# .whl/ are made importable.
set -euo pipefail
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
rm -f "$out"/{build,kernels,tests,sanitizer,bench}.log "$out"/{kernels,gpu}.json "$out"/report.{md,png}
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
  say "build" "see build.log; the references are tested and timed alone"
fi
# Which kernel is right, and how fast, by what every user's machine does before it uses one.
export ANDFAST_CACHE=$scratch/cache
stage "andfast.info --verify" 150 kernels.log "$python" -m andfast.info --verify --json
[[ $status != 0 ]] || sed -n '/^{/,$p' "$out/kernels.log" >"$out/kernels.json"

# The Triton kernels in a process of their own: after an illegal access a process's GPU is lost to all other tests.
failed="" # lines that name a failed test
gate=0    # why nothing at all may be timed
tests() {
  local log=$out/tests.log before
  touch "$log"
  before=$(wc -l <"$log")
  stage "$1" "$2" tests.log "$python" -m pytest -q -p no:cacheprovider "${@:3}"
  failed+=$(tail -n "+$((before + 1))" "$log" | grep -E '^(FAILED|ERROR) ' || true)$'\n'
  ((status == 0 || status == 1)) || gate="$1"
}
parallel=() # most of their time goes into compiling
if ((!dry_run)) && "$python" -c "import xdist" 2>/dev/null; then parallel=(-n 8 --dist loadfile); fi
# Left out is what reads the compiled code and needs no GPU, but a minute of nvcc.
tests "tests/ops" 130 tests/ops --ignore=tests/ops/triton_backend --ignore=tests/ops/test_cuda_sources.py \
  "${parallel[@]}"
[[ ! -d tests/ops/triton_backend ]] ||
  tests "tests/ops/triton_backend" 150 tests/ops/triton_backend "${parallel[@]/loadfile/load}"
# Of what is built from the operations, the files that have something for a GPU.
mapfile -t on_gpu < <(grep -lE '\bcuda\b' tests/models/test_*.py tests/attack/test_*.py || true)
if ((${#on_gpu[@]})); then
  tests "tests of models and attacks" 60 "${on_gpu[@]}" "${parallel[@]}"
else
  say "tests of models and attacks" "left out: none has a case for a GPU"
fi

# sanitize TOOL TESTS OPTION...: errors that it finds forbid all timing; that it does not run here, or not in time, does
# not.
sanitize() {
  local log=$out/sanitizer.log
  stage "compute-sanitizer $1" 45 sanitizer.log compute-sanitizer --tool "$1" "${@:3}" --error-exitcode 99 \
    --target-processes all "$python" -m pytest -q -p no:cacheprovider -x tests/ops/test_cuda_operators.py -k "$2"
  if ((status == 99)) || { ((status)) && grep -qE 'ERROR SUMMARY: [1-9]|RACECHECK SUMMARY: [1-9]' "$log"; }; then
    gate="compute-sanitizer $1"
  fi
}
if ((dry_run)); then
  say "compute-sanitizer" "left out: it needs a GPU"
elif ! command -v compute-sanitizer >/dev/null; then
  say "compute-sanitizer" "left out: it was not found"
elif [[ ! -f tests/ops/test_cuda_operators.py ]]; then
  say "compute-sanitizer" "left out: there is no tests/ops/test_cuda_operators.py"
else
  # Without torch's own cache, every allocation's bounds are known to the tool.
  export PYTORCH_NO_CUDA_MEMORY_CACHING=1
  few="not cpu and (shape2 and dtype0 or projected_step or gaussian_field)"
  sanitize memcheck "$few" --report-api-errors no
  sanitize racecheck "$few"
  unset PYTORCH_NO_CUDA_MEMORY_CACHING
fi

# A failed test speaks against the operation that it names; one that names none of the small ones, against the network.
# The network is made of the pooling and the noise, too, and the step of all there is.
declare -A bad=()
while IFS= read -r line; do
  [[ -z $line ]] || bad[step]=1
  case $line in
    "" | *tests/models/* | *tests/attack/*) ;;
    *dense_block* | *conv_act* | *triton_generator*) bad[dense_block]=1 ;;
    *projected_step*) bad[projected_step]=1 ;;
    *blur_pool*) bad[blur_pool]=1 bad[degradation_forward]=1 ;;
    *test_noise* | *triton_noise* | *gaussian_field*) bad[noise]=1 bad[degradation_forward]=1 bad[degradation_block]=1 ;;
    *) bad[degradation_forward]=1 bad[degradation_block]=1 ;;
  esac
done <<<"$failed"
if [[ -n ${failed//$'\n'/} ]]; then
  printf '%s\n' "$failed" | sed '/^$/d; s/^/  /' | cut -c-160 | tee -a "$summary"
fi

results=()
for operation in step degradation_forward dense_block degradation_block projected_step blur_pool noise degradations; do
  if [[ $gate != 0 ]]; then
    say "bench $operation" "left out: $gate did not end well"
  elif [[ -n ${bad[$operation]-} ]]; then
    say "bench $operation" "left out: its tests failed"
  else
    left=$(((budget - SECONDS) / slack))
    case $operation in
      step) seconds=$((left > 300 ? left - 220 : 120)) ;; # the rest, less the others' time
      degradation_forward) seconds=80 ;;
      degradation_block | dense_block) seconds=40 ;;
      *) seconds=20 ;;
    esac
    stage "bench $operation" "$seconds" bench.log \
      "$python" -m pytest -q -p no:cacheprovider "bench/test_$operation.py" --benchmark-json="$scratch/$operation.json"
    [[ ! -s $scratch/$operation.json ]] || results+=("$scratch/$operation.json")
  fi
done

if ((${#results[@]})); then
  # One file: the first one's machine, all one's benchmarks.
  "$python" - "$out/gpu.json" "${results[@]}" <<'PYTHON'
import json, sys

contents = [json.load(open(path)) for path in sys.argv[2:]]
contents[0]["command"] = "bench/gpu.sh"
contents[0]["benchmarks"] = [benchmark for content in contents for benchmark in content["benchmarks"]]
json.dump(contents[0], open(sys.argv[1], "w"), indent=1)
PYTHON
  "$python" -m bench.report "$out/gpu.json" --output "$out" >>"$out/bench.log" 2>&1 ||
    say "report" "incomplete (its chart needs matplotlib): see bench.log"
  [[ ! -f $out/report.md ]] || grep -E '^(##|\|)' "$out/report.md" | grep -v -e '|--' -e '| variant' || true
fi
if [[ $gate != 0 || -n ${failed//$'\n'/} ]] || grep -qE ' (failed with status|not done|not run)' "$summary"; then
  finish 1
fi
finish 0
