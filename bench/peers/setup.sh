#!/usr/bin/env bash
# Builds llama.cpp from the source distribution of the llama-cpp-python package, and llama_peer against it, into
# $SKEIN_DEPS/llama-cpp-VERSION/TIER. About ten minutes of one core; a second call finds it there.
#   bench/peers/setup.sh [native|avx2|avx512|avx512bf16]     (native: what this machine has)
set -euo pipefail
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
readonly here
readonly VERSION=0.3.36
readonly NO_AMX="-mno-amx-tile -mno-amx-int8 -mno-amx-bf16"
readonly SHA256=832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e
deps="${SKEIN_DEPS:-$HOME/.cache/skein}"
readonly deps
tier="${1:-native}"
readonly root="$deps/llama-cpp-$VERSION"
readonly source="$root/source/llama_cpp_python-$VERSION/vendor/llama.cpp"

die() {
  echo "setup: error: $*" >&2
  exit 1
}

case $tier in
  # Without its AMX kernels (they are for int8 weights only): this version crashes with them at its first ldtilecfg.
  native) flags=(-DGGML_NATIVE=ON "-DCMAKE_C_FLAGS=$NO_AMX" "-DCMAKE_CXX_FLAGS=$NO_AMX") ;;
  avx2) flags=(-DGGML_NATIVE=OFF) ;; # AVX2, FMA and F16C are its defaults
  avx512) flags=(-DGGML_NATIVE=OFF -DGGML_AVX512=ON) ;;
  avx512bf16) flags=(-DGGML_NATIVE=OFF -DGGML_AVX512=ON -DGGML_AVX512_VBMI=ON -DGGML_AVX512_VNNI=ON -DGGML_AVX512_BF16=ON) ;;
  *) die "unknown tier '$tier': native, avx2, avx512 or avx512bf16" ;;
esac

fetch_source() {
  [[ -e $source/CMakeLists.txt ]] && return
  local partial="$root/partial" file="$root/partial/llama_cpp_python-$VERSION.tar.gz"
  rm -rf "$partial"
  mkdir -p "$partial"
  echo "setup: downloading llama-cpp-python $VERSION (77 MB)"
  "$deps/peers-venv/bin/python" -m pip download --quiet --disable-pip-version-check --no-deps \
    --no-binary llama-cpp-python --dest "$partial" "llama-cpp-python==$VERSION" ||
    die "pip could not download llama-cpp-python $VERSION; is there a network?"
  echo "$SHA256  $file" | sha256sum --check --quiet || die "$file is not the file that was checked"
  mkdir -p "$partial/source"
  tar -xzf "$file" -C "$partial/source"
  rm -rf "$root/source"
  mv "$partial/source" "$root/source"
  rm -rf "$partial"
}

build() {
  local folder="$root/$tier" launcher=()
  if command -v ccache >/dev/null; then
    launcher=(-DCMAKE_C_COMPILER_LAUNCHER=ccache -DCMAKE_CXX_COMPILER_LAUNCHER=ccache)
  fi
  mkdir -p "$folder"
  cmake -S "$source" -B "$folder" -G Ninja -Wno-dev -DCMAKE_BUILD_TYPE=Release -DBUILD_SHARED_LIBS=ON \
    -DLLAMA_BUILD_COMMON=OFF -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_TOOLS=OFF -DLLAMA_BUILD_EXAMPLES=OFF \
    -DLLAMA_BUILD_SERVER=OFF -DLLAMA_BUILD_APP=OFF -DLLAMA_OPENSSL=OFF -DGGML_CCACHE=OFF \
    "${launcher[@]}" "${flags[@]}" >"$folder/setup.log" 2>&1 || die "cmake failed; see $folder/setup.log"
  echo "setup: building llama.cpp ($tier) in $folder"
  cmake --build "$folder" --parallel "$("$here/../../deploy/jobs.sh")" --target llama >>"$folder/setup.log" 2>&1 ||
    die "the build failed; see $folder/setup.log"
}

build_peer() {
  local bin="$root/$tier/bin"
  [[ $bin/llama_peer -nt $here/llama_peer.cc && $bin/llama_peer -nt $bin/libllama.so ]] && return
  g++ -std=c++17 -O2 "$here/llama_peer.cc" -I "$source/include" -I "$source/ggml/include" -L "$bin" \
    -Wl,-rpath,"\$ORIGIN" -lllama -lggml -lggml-base -lggml-cpu -o "$bin/llama_peer"
}

[[ -x $deps/peers-venv/bin/python ]] || die "$deps/peers-venv is not there; run deploy/install-deps.sh --peers"
fetch_source
if [[ ! -e $root/$tier/bin/libllama.so || ! -e $root/$tier/ready ]]; then
  build
  touch "$root/$tier/ready"
fi
build_peer
