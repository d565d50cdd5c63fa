#!/usr/bin/env bash
# Runs every fuzz target for some seconds each, starting from the committed corpus. Ends with status 1 if one of
# them finds anything: a crash, a failed check, a leak, an input that takes too long or too much memory. What it
# found is kept and named; once fixed, add it to corpus/<target>/, where it is run by the ordinary tests forever.
#
#   tests/fuzz/run.sh [seconds]          default 60
#   tests/fuzz/run.sh 600 gguf_fuzz      one target
#
# Needs Clang. $BAZEL replaces the bazel command; $FUZZ_DIR (default: a temporary folder) receives findings.
set -euo pipefail
cd "$(dirname "$0")/../.."

seconds=${1:-60}
shift || true
if ! [[ $seconds =~ ^[0-9]+$ ]]; then
  echo "usage: tests/fuzz/run.sh [seconds] [target...]" >&2
  exit 2
fi
if ! command -v clang++ >/dev/null; then
  echo "tests/fuzz/run.sh: clang++ is not installed (Debian: clang)" >&2
  exit 2
fi
read -r -a bazel <<<"${BAZEL:-bazel}"

mapfile -t targets < <(sed -n '/^qst_fuzz_target(/,/^)/s/^ *name = "\(.*\)",$/\1/p' tests/fuzz/BUILD)
if (($# > 0)); then targets=("$@"); fi

# An output base of its own: another compiler would otherwise throw away the ordinary build each time.
dir=${FUZZ_DIR:-$(mktemp -d)}
mkdir -p "$dir"
base=${FUZZ_OUTPUT_BASE:-${XDG_CACHE_HOME:-$HOME/.cache}/qst-fuzz}
labels=("${targets[@]/#///tests/fuzz:}")
"${bazel[@]}" --output_base="$base" build --config=fuzz "${labels[@]}"
bin=$("${bazel[@]}" --output_base="$base" info --config=fuzz bazel-bin 2>/dev/null)/tests/fuzz

export ASAN_OPTIONS=detect_leaks=1:allocator_may_return_null=0:strict_string_checks=1
export UBSAN_OPTIONS=print_stacktrace=1

# Fuzzes one target; leaves "$dir/$1.failed" if it finds anything.
fuzz() {
  local target=$1 corpus=tests/fuzz/corpus/$1 log="$dir/$1.log" runs dict=()
  mkdir -p "$dir/$target"
  rm -f "$dir/$target.failed"
  if [[ ! -d $corpus ]]; then corpus=tests/fuzz/corpus/${target%_fuzz}; fi
  if [[ -e tests/fuzz/dict/$target.dict ]]; then dict=(-dict="tests/fuzz/dict/$target.dict"); fi
  # The first folder receives new inputs, so that a longer run can continue where this one ended.
  if "$bin/$target" -max_total_time="$seconds" -timeout=10 -rss_limit_mb=2048 -max_len=65536 -print_final_stats=1 \
    "${dict[@]}" -artifact_prefix="$dir/$target-" "$dir/$target" "$corpus" >"$log" 2>&1; then
    runs=$(sed -n 's/^stat::number_of_executed_units: *//p' "$log")
    echo "$target: ${seconds} s, ${runs:-?} inputs, nothing found"
  else
    touch "$dir/$target.failed"
    echo "$target: FINDING; log in $log"
    grep -E 'ERROR|SUMMARY|check failed|runtime error|Test unit written' "$log" | head -10 || tail -20 "$log"
  fi
}

# As many at a time as there are processors.
for target in "${targets[@]}"; do
  while (($(jobs -rp | wc -l) >= $(nproc))); do wait -n || true; done
  fuzz "$target" &
done
wait
failed=()
for target in "${targets[@]}"; do
  if [[ -e "$dir/$target.failed" ]]; then failed+=("$target"); fi
done
"${bazel[@]}" --output_base="$base" shutdown
if ((${#failed[@]} > 0)); then
  echo "fuzzing: findings in ${failed[*]}; inputs in $dir" >&2
  exit 1
fi
