#!/usr/bin/env bash
# What `make bench` does after building: runs the benchmarks one after the other; each leaves its figures in
# <build>/bench/<name>.json.
# usage: bench/run.sh BUILD [all]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
folder=$1/bench

run() { # name program argument...
  echo "== ${*:2}"
  "$folder/$2" "${@:3}" --json "$folder/$1.json"
}

run engine engine_bench
run engine_long engine_bench --shape tiny
run serving serving_bench --parts cost
run train train_bench
[[ ${2:-} == all ]] || exit 0
run serving_load serving_bench --parts turns,overload,dead,mixed
run ops ops_bench
run train_ops train_ops_bench
run tokenizer tokenizer_bench
