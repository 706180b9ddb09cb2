#!/usr/bin/env bash
# What `make train` does after building: trains on a text file or a folder of them, in a new run folder named after it.
# usage: deploy/train.sh TEXT CONFIG
set -euo pipefail
text=$(realpath "$1")
config=$(realpath "$2")
cd "$(dirname "${BASH_SOURCE[0]}")/.."

name=$(basename "$text")
if [[ -f $text && $name == ?*.* ]]; then name=${name%.*}; fi
run=$name
# `make serve` takes models/demo.safetensors for the demo.
for ((i = 2; ; i++)); do
  [[ $run == demo || -e runs/$run || -e models/$run.safetensors ]] || break
  run=$name-$i
done
exec build/bin/skein-train --config "$config" --set data.kind=auto --set "data.train=$text" --set data.validation= \
  --set "run.folder=runs/$run" --set "run.output=models/$run.safetensors"
