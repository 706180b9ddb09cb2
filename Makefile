# The short way to everything; `make help` lists it. The build itself is CMake (CMakePresets.json).
.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help deps deps-test deps-interop deps-peers configure programs build serve chat train test soak test-interop \
        bench bench-shakespeare bench-article bench-peers format format-check install clean

export SKEIN_DEPS ?= $(HOME)/.cache/skein
# Another clone of the same files finds its objects in the compiler cache.
export CCACHE_BASEDIR ?= $(CURDIR)
export CCACHE_NOHASHDIR ?= 1
BUILD := build
JOBS ?= $(shell deploy/jobs.sh)
PREFIX ?= /usr/local
ADDRESS ?= 127.0.0.1:50051
SOAK_SECONDS ?= 600
TRAIN_CONFIG ?= trainer/configs/text.yaml
CLANG_FORMAT ?= clang-format-14

BUILD_ALL = cmake --build $(BUILD) --parallel $(JOBS)
MPI_CAME_LATER = command -v mpicxx >/dev/null && grep -q '^SKEIN_WITH_MPI:INTERNAL=NOTFOUND' $(BUILD)/CMakeCache.txt
TEST_PYTHON = $(SKEIN_DEPS)/test-venv/bin/python
INTEROP_PYTHON = $(SKEIN_DEPS)/interop-venv/bin/python
BENCHES = engine_bench serving_bench train_bench
MORE_BENCHES = ops_bench train_ops_bench tokenizer_bench
RESULTS = $(CURDIR)/$(BUILD)/test-results
SOURCES = $(shell find kernels engine server trainer client tests bench -name '*.cc' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh')

help:  ## this list
	@echo "make <target>:"
	@sed -n 's/^\([a-z-]*\):[^#]*## \(.*\)/  \1|\2/p' Makefile | awk -F'|' '{printf "%-18s %s\n", $$1, $$2}'

deps:  ## install what building and serving need (Debian 12)
	@deploy/install-deps.sh

deps-test:
	@deploy/install-deps.sh --test

deps-interop:
	@deploy/install-deps.sh --test --interop

# llama.cpp is built once, about ten minutes of one core.
deps-peers:
	@deploy/install-deps.sh --interop --peers
	@bench/peers/setup.sh $(TIER)

# CMake runs itself again when its own files change.
configure:
	@test -e $(BUILD)/build.ninja && ! { $(MPI_CAME_LATER); } || cmake --preset release -DSKEIN_DEPS="$(SKEIN_DEPS)" \
	  $$(command -v ccache >/dev/null && echo -DCMAKE_CXX_COMPILER_LAUNCHER=ccache)

programs: configure
	@$(BUILD_ALL) --target skeind skein skein-train

build: deps configure  ## build everything: programs, tests, benchmarks
	@$(BUILD_ALL)

serve:  ## install, build, train the demo model and serve it; MODEL=file serves that file
	@deploy/plan.sh "$(MODEL)"
	@$(MAKE) --no-print-directory deps programs
	@deploy/serve.py "$(MODEL)"

chat:  ## talk to the running server; ADDRESS=host:port for another one
	@test -x $(BUILD)/bin/skein || { echo "make chat: run 'make serve' first, in another terminal" >&2; exit 1; }
	@$(BUILD)/bin/skein chat --server $(ADDRESS)

train:  ## train a model on a text file: TEXT=file; TRAIN_CONFIG=file for another recipe
	@test -r "$(TEXT)" || { echo "make train: name a text file: make train TEXT=file" >&2; exit 1; }
	@$(MAKE) --no-print-directory deps programs
	@deploy/train.sh "$(TEXT)" "$(TRAIN_CONFIG)"

test: deps-test configure  ## every test that needs neither a GPU nor the full torch
	@$(BUILD_ALL)
	@TEST_PYTHON=$(TEST_PYTHON) tests/run.sh $(BUILD)

soak: deps-test programs  ## 64 random clients for ten minutes: no leak, no mix-up; SOAK_SECONDS=60 for a short one
	@SKEIN_BUILD=$(CURDIR)/$(BUILD) $(TEST_PYTHON) tests/python/soak.py --seconds $(SOAK_SECONDS)

test-interop: deps-interop configure  ## tests against the full torch, rwkv, safetensors and tensorboard packages
	@$(BUILD_ALL)
	@SKEIN_BUILD=$(CURDIR)/$(BUILD) $(INTEROP_PYTHON) -m pytest tests/interop -q -rs \
	  --junitxml=$(RESULTS)/interop.xml

bench: deps configure  ## decode, prefill, serving, training beside their floors (2 minutes); ALL=1: load, operators, tokenizer too
	@$(BUILD_ALL) --target $(BENCHES) $(if $(ALL),$(MORE_BENCHES))
	@bench/run.sh $(BUILD) $(if $(ALL),all)

bench-shakespeare: deps programs  ## tiny-shakespeare at nanoGPT's CPU budget: validation loss under 1.88 or it fails (2 minutes)
	@mkdir -p $(BUILD)/bench
	@bench/tiny_shakespeare.py --build $(BUILD) --json $(BUILD)/bench/shakespeare.json $(if $(TEXT),--text "$(TEXT)")

bench-article: deps configure  ## Skein beside a transformer: time, memory, quality, batches (15 minutes); QUICK=1 for two
	@$(BUILD_ALL) --target article_bench
	@$(BUILD)/bench/article_bench --out $(BUILD)/bench/article $(if $(QUICK),--quick) $(if $(TEXT),--text "$(TEXT)")

bench-peers: deps-peers configure  ## Skein beside llama.cpp, the rwkv package and plain PyTorch; TIER=avx2, avx512 or avx512bf16, QUICK=1
	@$(BUILD_ALL) --target skein_peer skein-train
	@mkdir -p $(BUILD)/bench
	@bench/peers/run.py --build $(BUILD) --deps "$(SKEIN_DEPS)" $(if $(TIER),--tier $(TIER)) $(if $(QUICK),--quick) \
	  --json $(BUILD)/bench/peers.json --markdown $(BUILD)/bench/peers.md
	@$(INTEROP_PYTHON) bench/peers/train_peer.py --build $(BUILD) $(if $(QUICK),--steps 20) \
	  --json $(BUILD)/bench/train_peer.json

format:  ## format the C++ files
	@$(CLANG_FORMAT) -i $(SOURCES)

format-check:  ## fail when a C++ file is not formatted
	@$(CLANG_FORMAT) --dry-run --Werror $(SOURCES)

# Under sudo neither downloads nor compilers run: root's folder of dependencies is another one, and the build is not root's.
install:  ## install into PREFIX (/usr/local); with sudo: what 'make build' has built
	@test -n "$(SUDO_USER)" || $(MAKE) --no-print-directory deps programs
	@test -x $(BUILD)/bin/skeind -a -x $(BUILD)/bin/skein -a -x $(BUILD)/bin/skein-train || \
	  { echo "make install: nothing is built yet: run 'make build' first, without sudo" >&2; exit 1; }
	@cmake --install $(BUILD) --prefix "$(PREFIX)"

clean:  ## remove the build folders; models and training runs stay
	rm -rf build build-*
