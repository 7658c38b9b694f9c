#!/usr/bin/env bash
# Every GPU figure with one command, in under 9 minutes; where the time is too short, the same command goes on.
#
#   benchmarks/run_gpu.sh                          to benchmarks/results/<gpu>.json
#   benchmarks/run_gpu.sh --out FOLDER             goes on from benchmarks/results too, and writes to FOLDER
#   benchmarks/run_gpu.sh --smallest --out FOLDER  the whole of it on a CPU in its smallest form: a check, no figures
#
# Needs python with torch, numpy and safetensors; plait need not be installed. Each measurement is written when it is
# done, the ratios most wanted first. MINUTES (8.5) is the limit, PYTHON the interpreter. Exit code: 0 when all rows
# are there, 3 when the time was up (run it again), 1 when something failed (the rest is done).
set -u
cd "$(dirname "$0")/.."
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"

out=benchmarks/results
grid=gpu device=cuda turns=()
while [ $# -gt 0 ]; do
  case $1 in
    --out) out=$2; shift 2 ;;
    --smallest) grid=tiny device=cpu turns=(--turns 1); shift ;;
    *) echo "run_gpu.sh: unknown option '$1', allowed: --out FOLDER, --smallest" >&2; exit 2 ;;
  esac
done
mkdir -p "$out"
if [ "$grid" = gpu ]; then cp -n benchmarks/results/*.json "$out"/ 2>/dev/null; fi

limit=$(awk -v minutes="${MINUTES:-8.5}" 'BEGIN {print int(minutes * 60)}')
code=0

part() {
  local left=$((limit - SECONDS)) start result
  # nothing is begun in the last 100 seconds: a measurement compiles its models first
  start=$(awk -v left=$left 'BEGIN {print (left > 101 ? left - 100 : 1) / 60}')
  if [ $left -lt 10 ]; then echo "$1: the time is up"; result=3
  else
    echo "== $* ($left s left)"
    timeout $left "${PYTHON:-python}" "benchmarks/$1.py" --device $device --grid $grid "${turns[@]}" \
      --minutes "$start" --out "$out" "${@:2}"
    result=$?
    [ $result -eq 124 ] && result=3
  fi
  if [ $code -ne 1 ] && [ $result -ne 0 ]; then code=$result; fi
}

part step --first 4
part decoding
part loss
part step
part recipes
part attention
part patterns
part grouped
part lora
part breakdown
exit $code
