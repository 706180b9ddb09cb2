#!/usr/bin/env bash
# What `make train` does after building: trains on a text file, in a new run folder named after it.
# usage: deploy/train.sh TEXT CONFIG
set -euo pipefail
text=$(realpath "$1")
config=$(realpath "$2")
cd "$(dirname "${BASH_SOURCE[0]}")/.."
name=$(basename "${text%.*}")
folder=runs/$name
for ((i = 2; ; i++)); do
  [[ -e $folder ]] || break
  folder=runs/$name-$i
done
exec build/bin/skein-train --config "$config" --set data.kind=auto --set "data.train=$text" --set data.validation= \
  --set "run.folder=$folder" --set "run.output=models/$(basename "$folder").safetensors"
