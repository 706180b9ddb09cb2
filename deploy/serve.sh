#!/usr/bin/env bash
# What `make serve` does around installing and building: says the plan first (--plan), then trains the demo model when
# there is none, starts skeind and says what to type next.
# usage: deploy/serve.sh [--plan] [MODEL]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

readonly BIN=build/bin
readonly DEMO=models/demo.safetensors
readonly VOCABULARY="${SKEIN_DEPS:-$HOME/.cache/skein}/rwkv_vocab_v20230424.txt"

plan_only=no
if [[ ${1:-} == --plan ]]; then plan_only=yes && shift; fi
model=${1:-}
if [[ -n $model && ! -r $model ]]; then
  echo "make serve: MODEL=$model: there is no such file" >&2
  exit 1
fi

print_plan() {
  echo "make serve:"
  deploy/install-deps.sh --dry-run | sed 's/^install-deps: /  install: /; s/^  - /    /'
  if [[ -x $BIN/skeind && -x $BIN/skein && -x $BIN/skein-train ]]; then
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
}

train_demo() {
  if [[ -e $DEMO ]]; then return; fi
  echo "make serve: training the demo model"
  # An interrupted training goes on where it was (run.resume in that config).
  "$BIN/skein-train" --config trainer/configs/demo.yaml
  if [[ ! -e $DEMO ]]; then
    echo "make serve: the training was stopped before it wrote $DEMO; 'make serve' goes on with it" >&2
    exit 1
  fi
}

# The line of the effective config, or nothing.
config_value() { # key inside listen:
  "$BIN/skeind" "${arguments[@]}" --print-effective-config | sed -n "/^listen:/,/^[a-z]/s/^  $1: \"\\(.*\\)\"/\\1/p"
}

# Prints what to type next as soon as the daemon answers; gives up when it is gone.
say_when_ready() { # address metrics
  until "$BIN/skein" info "$1" >/dev/null 2>&1; do
    kill -0 "$$" 2>/dev/null || exit 0
    sleep 0.3
  done
  echo
  echo "skeind is ready on $1. In another terminal, in this folder:"
  echo "  make chat                              talk to the model; /help lists what you can type"
  echo "  build/bin/skein generate 'Some text'   continue a text"
  [[ -z $2 ]] || echo "  http://$2/metrics          what Prometheus sees"
  echo "Ctrl-C here stops it."
}

if [[ $plan_only == yes ]]; then
  print_plan
  exit
fi

arguments=(--config config.yaml)
if [[ -n $model ]]; then
  arguments+=(--model "$model")
  # Checkpoints as published do not bring their vocabulary; one that is named in the config stays.
  if grep -q '^  vocabulary: ""' config.yaml; then arguments+=(--set "model.vocabulary=$VOCABULARY"); fi
else
  train_demo
fi
address=$(config_value address)
metrics=$(config_value metrics)

code=0
if [[ -t 0 && -t 1 ]]; then
  # In its own process group the daemon alone gets Ctrl-C, drains and ends with 0; make sees no interrupt.
  set -m
  say_when_ready "$address" "$metrics" &
  "$BIN/skeind" "${arguments[@]}" || code=$?
else
  "$BIN/skeind" "${arguments[@]}" &
  daemon=$!
  say_when_ready "$address" "$metrics" &
  trap 'kill -TERM "$daemon" 2>/dev/null || true' INT TERM
  # A trapped signal ends `wait` early.
  while kill -0 "$daemon" 2>/dev/null; do wait "$daemon" && code=0 || code=$?; done
fi
kill %+ 2>/dev/null || true # the watcher, when the daemon ended before it was ready
exit "$code"
