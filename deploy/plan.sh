#!/usr/bin/env bash
# What `make serve` says first: what it is going to do, how long that takes and how much disk. Needs nothing but a shell,
# since nothing is installed yet.
# usage: deploy/plan.sh [MODEL]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

readonly DEMO=models/demo.safetensors
model=${1:-}
if [[ -n $model && ! -r $model ]]; then
  echo "make serve: MODEL=$model: there is no such file" >&2
  exit 1
fi

echo "make serve:"
deploy/install-deps.sh --dry-run | sed 's/^install-deps: /  install: /; s/^  - /    /'
if [[ -x build/bin/skeind && -x build/bin/skein && -x build/bin/skein-train ]]; then
  echo "  build:   what changed, in build/"
else
  echo "  build:   a release in build/ (about 10 minutes on two cores, 0.3 GB)"
fi
if [[ -n $model ]]; then
  echo "  serve:   $model"
else
  [[ -e $DEMO ]] || echo "  train:   the demo model, $DEMO (under 3 minutes on two cores)"
  echo "  serve:   what config.yaml says. MODEL=file serves another model"
fi
