#!/usr/bin/env bash
# Installs what Skein needs on Debian 12 (x86-64), as root or with sudo. What is there already is left alone, so it
# can be run at any time, and again after an interruption. `--help` lists the options.
set -Eeuo pipefail

readonly TORCH_VERSION=2.11.0
readonly TORCH_WHEELS=(
  # requirement                     sha256 of the wheel
  "torch==2.11.0                    7aa2f9bbc6d4595ba72138026b2074be1233186150e9292865e04b7a63b8c67a"
  "nvidia-cuda-runtime==13.0.96     7f82250d7782aa23b6cfe765ecc7db554bd3c2870c43f3d1821f1d18aebf0548"
  "nvidia-cuda-cupti==13.0.85       4eb01c08e859bf924d222250d2e8f8b8ff6d3db4721288cf35d14252a4d933c8"
)
readonly RWKV_WHEEL="rwkv==0.8.32   d3f0594810a4a7e91569f177003ec22294c3eabc91c5f8d0ff3511702d4b67c1"
readonly VOCABULARY=rwkv_vocab_v20230424.txt

# python3-pip brings the certificates that downloads need.
readonly BUILD_PACKAGES=(
  make cmake g++ ninja-build ccache unzip python3 python3-pip python3-venv libgrpc++-dev libprotobuf-dev
  protobuf-compiler protobuf-compiler-grpc libabsl-dev libyaml-cpp-dev prometheus-cpp-dev libgtest-dev libgmock-dev
  libbenchmark-dev libxxhash-dev libspdlog-dev libcli11-dev nlohmann-json3-dev libssl-dev)
# The fuzz targets are built with clang; the tests start a Prometheus of their own.
readonly TEST_PACKAGES=(prometheus clang libclang-rt-14-dev clang-format)
readonly MPI_PACKAGES=(openmpi-bin libopenmpi-dev)

# The tests of this script point these elsewhere.
readonly OS_RELEASE="${SKEIN_OS_RELEASE:-/etc/os-release}"
readonly PYTHON="${SKEIN_PYTHON:-/usr/bin/python3}"
HERE="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
readonly HERE
readonly DEPS="${SKEIN_DEPS:-$HOME/.cache/skein}"
readonly TORCH="$DEPS/torch-$TORCH_VERSION"

usage() {
  cat <<USAGE
usage: deploy/install-deps.sh [--mpi] [--test] [--interop] [--peers] [--dry-run]

Installs what building and serving need: Debian packages, LibTorch $TORCH_VERSION and the RWKV World vocabulary.
  --mpi       also Open MPI (13 MB to download, 55 MB of disk), for skein-train by several processes
  --test      also what 'make test' needs: Open MPI, Prometheus, clang, a Python environment with grpcio and pytest
  --interop   also what 'make test-interop' needs: a Python environment with the full torch and rwkv packages
  --peers     also what 'make bench-peers' needs beside that: a Python environment with gguf
  --dry-run   say what would be done and stop

Downloads go to \$SKEIN_DEPS, now $DEPS. No root is needed when the Debian packages are there already.
USAGE
}

say() { echo "install-deps: $*"; }
die() {
  echo "install-deps: error: $1" >&2
  shift
  for hint in "$@"; do echo "  $hint" >&2; done
  exit 1
}

step="looking at the machine"
trap 'die "failed while $step (line $LINENO)" "Run it again: what is done is kept."' ERR
trap 'echo >&2; die "interrupted while $step" "Run it again: what is done is kept."' INT TERM

refuse_other_machines() {
  local found="an unknown system" id="" version=""
  if [[ -r $OS_RELEASE ]]; then
    id=$(sed -n 's/^ID=//p' "$OS_RELEASE" | tr -d '"')
    version=$(sed -n 's/^VERSION_ID=//p' "$OS_RELEASE" | tr -d '"')
    found=$(sed -n 's/^PRETTY_NAME=//p' "$OS_RELEASE" | tr -d '"')
  fi
  if [[ $(uname -m) != x86_64 ]]; then
    die "this machine is $(uname -m); Skein runs on x86_64 with AVX2 or better, and plain x86_64 slowly"
  fi
  [[ $id == debian && $version == 12 ]] && return
  die "this is $found; the packages are known for Debian 12 only. In a container it works anywhere:" "" \
    "docker run --rm -it --network host -v \"\$PWD\":/skein -v \"\$HOME/.cache/skein\":/root/.cache/skein -w /skein debian:12 \\" \
    "  bash -c 'apt-get update && apt-get install -y make && make serve'" "" \
    "(from the folder of the checkout; 'podman' does as well as 'docker')"
}

# --- What is missing -------------------------------------------------------------------------------------------------

missing_packages() {
  local installed
  installed=$(dpkg-query -W -f='${db:Status-Status} ${Package}\n' "$@" 2>/dev/null | sed -n 's/^installed //p') || true
  local package
  for package in "$@"; do
    grep -qxF -- "$package" <<<"$installed" || echo "$package"
  done
}

torch_is_there() {
  [[ -e $TORCH/torch/lib/libtorch_cpu.so && -e $TORCH/nvidia/cu13/lib/libcudart.so.13 &&
    -e $TORCH/nvidia/cu13/lib/libcupti.so.13 && ! -e $TORCH/torch/include/google ]]
}

# A venv is ready when the requirements that it was filled from are those of today.
venv_is_there() { # name
  cmp -s "$HERE/$1-requirements.txt" "$DEPS/$1-venv/ready" && [[ -x $DEPS/$1-venv/bin/python ]]
}

# --- Doing it --------------------------------------------------------------------------------------------------------

as_root() {
  if [[ $(id -u) == 0 ]]; then "$@"; else sudo "$@"; fi
}

# Debian starts a daemon when its package is installed. The tests start their own Prometheus, so while packages are
# installed this file says no, and afterwards the service is kept from starting with the machine.
readonly POLICY=${SKEIN_POLICY_RC:-/usr/sbin/policy-rc.d}  # the variable is for tests
policy_is_ours=no
forbid_services() {
  [[ -e $POLICY ]] && return
  printf '#!/bin/sh\nexit 101\n' | as_root tee "$POLICY" >/dev/null
  policy_is_ours=yes
  as_root chmod 755 "$POLICY"
}
allow_services() {
  if [[ $policy_is_ours == yes ]]; then as_root rm -f "$POLICY"; fi
  policy_is_ours=no
}

install_packages() {
  step="installing Debian packages"
  if [[ $(id -u) != 0 ]] && ! command -v sudo >/dev/null; then
    die "Debian packages are missing and this user is not root and has no sudo" "As root, run:" \
      "apt-get install -y --no-install-recommends $*"
  fi
  local apt=(env DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=300 -q -y)
  local log="$DEPS/apt.log"
  say "installing $# Debian packages (messages go to $log)"
  as_root "${apt[@]}" update >"$log" 2>&1 ||
    { tail -n 20 "$log" >&2 && die "apt-get update failed" "Is there a network, and are the mirrors in /etc/apt/sources.list* right?"; }
  trap allow_services EXIT
  forbid_services
  as_root "${apt[@]}" install --no-install-recommends "$@" >>"$log" 2>&1 ||
    { tail -n 20 "$log" >&2 && die "apt-get could not install the packages" "Its message is above. After half-installed packages: 'dpkg --configure -a', then run this again."; }
  allow_services
  if [[ " $* " == *" prometheus "* ]] && command -v systemctl >/dev/null; then
    as_root systemctl disable prometheus >/dev/null 2>&1 || true # no systemd runs here: nothing would start it
  fi
}

# Leaves the wheel of `requirement` in $DEPS/wheels and its path in $wheel. A wheel with the right hash is not fetched again.
fetch_wheel() { # requirement sha256
  local requirement=$1 sha256=$2 file
  step="downloading $requirement"
  mkdir -p "$DEPS/wheels"
  for file in "$DEPS/wheels"/*.whl; do
    if [[ -e $file ]] && sha256sum "$file" | grep -q "^$sha256 "; then
      wheel=$file
      return
    fi
  done
  say "downloading $requirement"
  rm -rf "$DEPS/wheels/partial"
  # The platform is named, so that every Python 3 fetches the same file.
  "$PYTHON" -m pip download --quiet --progress-bar off --no-deps --only-binary :all: --implementation cp \
    --python-version 3.11 --abi cp311 --abi none --platform manylinux_2_28_x86_64 --platform manylinux_2_25_x86_64 \
    --platform manylinux2014_x86_64 --platform manylinux_2_17_x86_64 --platform any \
    --dest "$DEPS/wheels/partial" "$requirement" ||
    die "pip could not download $requirement" "Is there a network, and does 'pip config list' name an index that has it?"
  file=$(echo "$DEPS/wheels/partial"/*.whl)
  local found
  found=$(sha256sum "$file" | cut -d' ' -f1)
  if [[ $found != "$sha256" ]]; then
    rm -rf "$DEPS/wheels/partial"
    die "$(basename "$file") is not the file that was checked" "SHA-256 is  $found" "expected    $sha256" \
      "The package index sent something else, or a proxy changed it. Run it again; if it stays, look at 'pip config list'."
  fi
  mv "$file" "$DEPS/wheels/"
  rmdir "$DEPS/wheels/partial"
  wheel=$DEPS/wheels/$(basename "$file")
}

install_torch() {
  local line wheel partial="$DEPS/torch.partial"
  local wheels=()
  for line in "${TORCH_WHEELS[@]}"; do
    # shellcheck disable=SC2086  # two words
    fetch_wheel $line
    wheels+=("$wheel")
  done
  step="unpacking LibTorch"
  say "unpacking LibTorch into $TORCH"
  rm -rf "$partial"
  mkdir -p "$partial"
  for wheel in "${wheels[@]}"; do unzip -q "$wheel" -d "$partial" || die "cannot unpack $wheel" "Is the disk full? See 'df -h $DEPS'."; done
  # Headers of an older protobuf, which clash with Debian's.
  rm -rf "$partial/torch/include/google"
  rm -rf "$TORCH"
  mv "$partial" "$TORCH"
  torch_is_there || die "the wheels do not hold what was expected" "Please report it with the output of: ls $TORCH/torch/lib"
  rm -f "${wheels[@]}"
}

install_vocabulary() {
  local wheel
  # shellcheck disable=SC2086  # two words
  fetch_wheel $RWKV_WHEEL
  step="unpacking the World vocabulary"
  unzip -q -p "$wheel" "rwkv/$VOCABULARY" >"$DEPS/$VOCABULARY.partial" || die "cannot unpack $wheel"
  mv "$DEPS/$VOCABULARY.partial" "$DEPS/$VOCABULARY"
  rm -f "$wheel"
}

install_venv() { # name
  local venv="$DEPS/$1-venv" requirements="$HERE/$1-requirements.txt"
  step="filling the Python environment $venv"
  say "$step"
  if ! "$venv/bin/python" -m pip --version >/dev/null 2>&1; then
    "$PYTHON" -m venv --clear "$venv" || die "cannot make a Python environment in $venv" "Is the package python3-venv installed?"
  fi
  "$venv/bin/python" -m pip install --quiet --disable-pip-version-check -r "$requirements" ||
    die "pip could not fill $venv" "Is there a network and enough disk? If the environment is damaged, remove it and run this again."
  cp "$requirements" "$venv/ready"
}

# --- The plan --------------------------------------------------------------------------------------------------------

main() {
  local with_mpi=no with_test=no with_interop=no with_peers=no dry_run=no option
  for option in "$@"; do
    case $option in
      --mpi) with_mpi=yes ;;
      --test) with_test=yes && with_mpi=yes ;;
      --interop) with_interop=yes ;;
      --peers) with_peers=yes ;;
      --dry-run) dry_run=yes ;;
      -h | --help) usage && exit 0 ;;
      *) usage >&2 && die "unknown option '$option'" ;;
    esac
  done
  refuse_other_machines

  local packages=("${BUILD_PACKAGES[@]}") wanted
  if [[ $with_mpi == yes ]]; then packages+=("${MPI_PACKAGES[@]}"); fi
  if [[ $with_test == yes ]]; then packages+=("${TEST_PACKAGES[@]}"); fi
  mapfile -t wanted < <(missing_packages "${packages[@]}")

  local plan=() seconds=0 megabytes=0
  add_to_plan() { # text seconds megabytes
    plan+=("$1") && seconds=$((seconds + $2)) && megabytes=$((megabytes + $3))
  }
  local torch=no vocabulary=no test_venv=no interop_venv=no peers_venv=no
  if ((${#wanted[@]} > 0)); then add_to_plan "Debian packages: ${wanted[*]}" 120 1300; fi
  if ! torch_is_there; then torch=yes && add_to_plan "LibTorch $TORCH_VERSION (three wheels, 545 MB to download) in $TORCH" 120 2300; fi
  if [[ ! -s $DEPS/$VOCABULARY ]]; then vocabulary=yes && add_to_plan "the RWKV World vocabulary in $DEPS" 5 3; fi
  if [[ $with_test == yes ]] && ! venv_is_there test; then
    test_venv=yes && add_to_plan "a Python environment for the tests in $DEPS/test-venv" 30 200
  fi
  if [[ $with_interop == yes ]] && ! venv_is_there interop; then
    interop_venv=yes && add_to_plan "a Python environment with the full torch in $DEPS/interop-venv (about 2.5 GB to download)" 300 7500
  fi
  if [[ $with_peers == yes ]] && ! venv_is_there peers; then
    peers_venv=yes && add_to_plan "a Python environment for the peers' files in $DEPS/peers-venv" 20 150
  fi
  if ((${#plan[@]} == 0)); then
    say "everything is there already"
    return
  fi

  say "to install, in about $(((seconds + 59) / 60)) minutes and $(((megabytes + 99) / 1000)).$(((megabytes + 99) / 100 % 10)) GB of disk:"
  printf '  - %s\n' "${plan[@]}"
  if [[ $dry_run == yes ]]; then return; fi

  step="making $DEPS"
  mkdir -p "$DEPS" || die "cannot make the folder $DEPS" "Name another one: SKEIN_DEPS=/some/folder"
  local free
  free=$(df -Pm "$DEPS" | awk 'NR == 2 {print $4}')
  if ((free < megabytes)); then
    die "$DEPS has $free MB free, about $megabytes MB are needed" "Free some space, or name another folder: SKEIN_DEPS=/some/folder"
  fi
  # One at a time: a second run waits and then finds everything there.
  exec 9>"$DEPS/lock"
  flock 9

  if ((${#wanted[@]} > 0)); then install_packages "${wanted[@]}"; fi
  if [[ $torch == yes ]] && ! torch_is_there; then install_torch; fi
  if [[ $vocabulary == yes ]]; then install_vocabulary; fi
  if [[ $test_venv == yes ]] && ! venv_is_there test; then install_venv test; fi
  if [[ $interop_venv == yes ]] && ! venv_is_there interop; then install_venv interop; fi
  if [[ $peers_venv == yes ]] && ! venv_is_there peers; then install_venv peers; fi
  rmdir "$DEPS/wheels" 2>/dev/null || true # kept when a wheel of another run lies there
  say "done"
}

main "$@"
