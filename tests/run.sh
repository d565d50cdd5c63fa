#!/usr/bin/env bash
# The whole test run: installs dependencies, builds everything, runs all tests.
#
#   tests/run.sh            unit and end-to-end tests (optimised build); the GPU backend's code run on the CPU, and built
#                           for GPUs where the CUDA toolkit is
#   tests/run.sh --ci       also: unit tests under ASan and UBSan, every fuzzer for 15 s
#
# Tests on a GPU itself: tests/gpu/run_all.sh, from the bundle (deploy/README.md).
# Tests that use the optional data folder (QST_SHARED_DATA, default ../shared/data) skip without it and say so.
# The last line counts test targets that passed and failed, and test cases that were skipped.
set -euo pipefail
cd "$(dirname "$0")/.."

full=false
case "${1:-}" in
  "") ;;
  --ci) full=true ;;
  *) echo "tests/run.sh: unknown argument '$1'; the only one is --ci" >&2; exit 2 ;;
esac

if [[ -z "${QST_SHARED_DATA:-}" && -d ../shared/data ]]; then
  QST_SHARED_DATA=$(cd ../shared/data && pwd)
fi
export QST_SHARED_DATA=${QST_SHARED_DATA:-}

started=$SECONDS
say() { printf '\n== %s (%d s)\n' "$*" $((SECONDS - started)); }

say "Dependencies"
deploy/install_deps.sh --tests

log=$(mktemp)
trap 'rm -f "$log"' EXIT
passed=0 failed=0 skipped=0

# Runs `bazel test` with the given arguments and adds its targets to the counts.
run_tests() {
  local status=0
  bazel test --config=ci --test_env=QST_SHARED_DATA --test_summary=short --keep_going "$@" 2>&1 | tee "$log" || status=$?
  local p f
  p=$(grep -cE '^//[^ ]+ +(\(cached\) )?PASSED' "$log" || true)
  f=$(grep -cE '^//[^ ]+ +(\(cached\) )?(FAILED|TIMEOUT|NO STATUS|FLAKY|INCOMPLETE)' "$log" || true)
  # A build that breaks counts as one failure, so that the run cannot look green.
  [[ $status -ne 0 && $f -eq 0 ]] && f=1
  passed=$((passed + p)) failed=$((failed + f))
}

say "Build and unit tests"
run_tests //...
# Programs that no test runs have to compile all the same.
programs=$(bazel query --noshow_progress 'kind("cc_binary", //... except //tests/fuzz/...)' 2>/dev/null)
# shellcheck disable=SC2086 # one word for each
if bazel build --config=ci $programs; then passed=$((passed + 1)); else failed=$((failed + 1)); fi

say "Skipped test cases"
# Bazel hides the output of tests that pass; skips must stay visible.
testlogs=$(bazel info bazel-testlogs 2>/dev/null)
skips=$(find -L "$testlogs" -name test.log -exec grep -hE '^\[  SKIPPED \] [A-Za-z0-9_/.]+(:.*)?$' {} + 2>/dev/null | sort -u || true)
skipped=$(printf '%s' "$skips" | grep -cE 'SKIPPED' || true)
printf '%s\n' "${skips:-none}"

say "GPU backend, its kernels run on the CPU (kernels/testing/cuda_shim)"
run_tests --config=cuda_shim --test_env=QST_TEST_DEVICE=cuda --test_env=QST_TEST_SHORT=1 \
  //kernels/... //worker/backbone/... //worker/side/... //worker/stream/... //worker/train/... //worker/infer/... \
  //worker:all //tests/e2e:main_job_test

if [[ -x /usr/local/cuda/bin/nvcc ]]; then
  say "GPU backend, built for sm_80, sm_89 and sm_90a"
  if bazel build --config=ci --config=cuda //deploy:bundle && tests/gpu/kernel_resources.sh --check; then
    passed=$((passed + 1))
  else
    failed=$((failed + 1))
  fi
else
  say "GPU backend: NOT BUILT with nvcc: there is no CUDA toolkit in /usr/local/cuda"
fi

if $full; then
  say "Unit tests under AddressSanitizer and UndefinedBehaviorSanitizer"
  run_tests --config=asan --config=ubsan --test_tag_filters=-e2e,-bench,-nosan //...
  say "Fuzzers, ${QST_FUZZ_SECONDS:-15} s each"
  if tests/fuzz/run.sh "${QST_FUZZ_SECONDS:-15}"; then passed=$((passed + 1)); else failed=$((failed + 1)); fi
fi

say "Done"
printf '%d passed, %d failed, %d skipped\n' "$passed" "$failed" "$skipped"
[[ $failed -eq 0 && $passed -gt 0 ]]
