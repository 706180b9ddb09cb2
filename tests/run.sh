#!/usr/bin/env bash
# Runs the tests of one build folder: ctest, then (with TEST_PYTHON) tests/python. All of them run whatever fails; the
# results are XML in <build>/test-results, and the exit code is 1 when anything failed.
# usage: tests/run.sh BUILD [option of ctest ...]
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1
build=$(realpath "$1")
shift
results=$build/test-results
rm -rf "$results/gtest" "$results/ctest.xml" "$results/pytest.xml"
mkdir -p "$results"

code=0
GTEST_OUTPUT="xml:$results/gtest/" ctest --test-dir "$build" --output-on-failure --no-tests=error \
  --output-junit "$results/ctest.xml" "$@" || code=1
if [[ -n ${TEST_PYTHON:-} ]]; then
  SKEIN_BUILD=$build "$TEST_PYTHON" -m pytest tests/python -q -rs \
    --junitxml="$results/pytest.xml" || code=1
fi
python3 tests/summary.py "$results"
exit "$code"
