#!/usr/bin/env bash
# Runs everything that a bundle (deploy/bundle.bzl) carries for a GPU, and writes report.txt and report.json: tests,
# benchmarks, QLoRA with PEFT where Python has it, compute-sanitizer over the kernels' tests where it is installed, then
# end-to-end tests on a cluster of processes that share the GPU.
#
#   tests/gpu/run_all.sh [--out DIR] [--seconds N] [--only STAGE[,STAGE]] [--jobs N] [--match REGEX] [--device cuda|cpu]
#
#   --out DIR      reports, and a log for each run (default ./gpu-report)
#   --seconds N    for all of it (default 540); what there is no time for is reported as skipped
#   --only ...     of tests, benchmarks, peers, sanitizer, e2e
#   --jobs N       tests, and sanitizers, that run at a time (default: a processor in two, at most 8); benchmarks run
#                  alone, end-to-end tests beside sanitizers
#   --match REGEX  only what has a name that matches
#   --device KIND  what the end-to-end tests run on (default: cuda; without a GPU they are skipped)
#
# Exit status: 0 if nothing failed. Without a GPU all is skipped, and says so.
set -uo pipefail

root=$(dirname "$(readlink -f "$0")")/../..
root=$(cd "$root" && pwd)
out=$PWD/gpu-report seconds=540 only=tests,benchmarks,peers,sanitizer,e2e device="" match=""
jobs=$(($(nproc) / 2))
((jobs <= 8)) || jobs=8
((jobs >= 1)) || jobs=1
usage() { sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p}' "$0"; }
while [[ $# -gt 0 ]]; do
  case "$1" in
    --out) out=${2:?--out needs a folder}; shift 2 ;;
    --seconds) seconds=${2:?--seconds needs a number}; shift 2 ;;
    --only) only=${2:?--only needs a list}; shift 2 ;;
    --jobs) jobs=${2:?--jobs needs a number}; shift 2 ;;
    --match) match=${2:?--match needs a regular expression}; shift 2 ;;
    --device) device=${2:?--device needs cuda or cpu}; shift 2 ;;
    -h|--help) usage; exit 0 ;;
    *) echo "run_all.sh: unknown argument '$1'; see --help" >&2; exit 2 ;;
  esac
done
[[ "$seconds" =~ ^[1-9][0-9]*$ ]] || { echo "run_all.sh: --seconds $seconds is not a positive whole number" >&2; exit 2; }
[[ "$jobs" =~ ^[1-9][0-9]*$ ]] || { echo "run_all.sh: --jobs $jobs is not a positive whole number" >&2; exit 2; }
rc=0; [[ x =~ $match ]] 2>/dev/null || rc=$?
((rc < 2)) || { echo "run_all.sh: --match $match is no regular expression" >&2; exit 2; }
[[ "$device" =~ ^(|cuda|cpu)$ ]] || { echo "run_all.sh: --device $device is neither cuda nor cpu" >&2; exit 2; }
for stage in ${only//,/ }; do
  [[ "$stage" =~ ^(tests|benchmarks|peers|sanitizer|e2e)$ ]] || { echo "run_all.sh: --only: no stage '$stage'" >&2; exit 2; }
done
[[ -r "$root/VERSION" ]] || { echo "run_all.sh: $root is no bundle; build one with bazel build //deploy:bundle" >&2; exit 2; }

{ cut -f 1 "$root"/tests/*.list; echo qlora; } | grep -E -- "$match" > /dev/null ||
  { echo "run_all.sh: nothing matches --match $match" >&2; exit 2; }

mkdir -p "$out/logs" && out=$(cd "$out" && pwd) || exit 2
rm -f "$out"/logs/* "$out"/report.*
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
runs=$tmp/runs benches=$tmp/benches
: > "$runs"; : > "$benches"

# As a Bazel test sees its files.
export TEST_SRCDIR=$root/tests/runfiles TEST_WORKSPACE=qst TEST_TMPDIR=$tmp
[[ -n "${QST_SHARED_DATA:-}" || ! -d "$root/data" ]] || export QST_SHARED_DATA=$root/data
. "$root/lib/cuda_env.sh"
libraries=ok
qst_find_cuda_libraries "$root/lib/cuda_libraries" 2> "$tmp/libraries" || libraries=$(tr '\n' ' ' < "$tmp/libraries")

field() { sed -n "s/^$1 //p" "$root/VERSION"; }
gpu="" driver="" cuda=""
if command -v nvidia-smi >/dev/null && gpu=$(nvidia-smi --query-gpu=name,memory.total --format=csv,noheader 2>/dev/null); then
  gpu=$(head -n 1 <<<"$gpu")
  driver=$(nvidia-smi --query-gpu=driver_version --format=csv,noheader | head -n 1)
  cuda=$(nvidia-smi | sed -n 's/.*CUDA Version: *\([0-9.]*\).*/\1/p' | head -n 1)
else
  gpu=""
  for node in /dev/nvidia[0-9]*; do [[ -e "$node" ]] && gpu="unknown (no nvidia-smi)"; done
fi

started=$SECONDS
deadline=$((started + seconds))
# A text as a JSON string on one line.
quote() { printf '"%s"' "$(printf '%s' "$1" | tr '\n\t\r' '   ' | tr -d '\000-\037' | sed 's/\\/\\\\/g; s/"/\\"/g')"; }

# record STAGE NAME STATUS SECONDS REASON [JSON_FIELDS]
record() {
  printf '{"stage": %s, "name": %s, "status": "%s", "seconds": %s, "reason": %s%s}\n' \
    "$(quote "$1")" "$(quote "$2")" "$3" "$4" "$(quote "$5")" "${6:+, $6}" >> "$runs"
  printf '%-7s %-10s %-42s %4s s  %s\n' "$3" "$1" "$2" "$4" "$5" | tee -a "$tmp/lines"
}

# Waits until fewer than N of this shell's children run.
wait_for_slot() { while (($(jobs -rp | wc -l) >= $1)); do wait -n 2>/dev/null || true; done; }

# run STAGE NAME LIMIT COMMAND...: runs it for at most LIMIT seconds, and not beyond the deadline, with its output in
# $log. Sets status (of the command; 124: out of time) and took. Returns 1, with a record, if there is no time left.
run() {
  local stage=$1 name=$2 limit=$3 left=$((deadline - SECONDS)); shift 3
  log=$out/logs/$stage-${name//[^A-Za-z0-9_.-]/_}.log
  if ((left < 3)); then
    record "$stage" "$name" skipped 0 "no time left"
    return 1
  fi
  ((limit < left)) || limit=$left
  local begun=$SECONDS
  status=0
  (cd "$TEST_SRCDIR/$TEST_WORKSPACE" && exec timeout -k 5 "$limit" "$@") > "$log" 2>&1 < /dev/null || status=$?
  took=$((SECONDS - begun))
}

# What GoogleTest printed into $log.
judge_gtest() {
  local stage=$1 name=$2 ok bad skip reason state  # $note: what else there is to say of it
  ok=$(grep -cE '^\[       OK \] .*\([0-9]+ ms\)' "$log")
  bad=$(grep -cE '^\[  FAILED  \] .*\([0-9]+ ms\)' "$log")
  skip=$(grep -cE '^\[  SKIPPED \] .*\([0-9]+ ms\)' "$log")
  reason="$ok passed, $bad failed, $skip skipped"
  if ((status == 124)); then
    state=failed reason="out of time; $reason"
  elif ((status != 0 || bad > 0)); then
    state=failed
    reason="$reason; $(grep -E '^\[  FAILED  \] |error while loading|Sanitizer|ERROR SUMMARY' "$log" | head -n 1)"
    ((bad > 0)) || reason="exit status $status; $reason"
  elif ((ok > 0)); then
    state=passed
  else
    state=skipped
    ((skip > 0)) || reason="no test for a GPU in it"
  fi
  record "$stage" "$name" "$state" "$took" "$reason${note:-}" \
    "\"tests_passed\": $ok, \"tests_failed\": $bad, \"tests_skipped\": $skip"
}

run_tests() {
  local test filter
  while IFS=$'\t' read -r test filter; do
    [[ "$test" =~ $match ]] || continue
    wait_for_slot "$jobs"
    { run tests "$test" 90 "./$test" --gtest_filter="$filter" --gtest_color=no && judge_gtest tests "$test"; } &
  done < "$root/tests/gpu_test.list"
  wait
}

run_benchmarks() {
  local bench
  [[ -r "$root/tests/benchmark.list" ]] || return 0
  while IFS=$'\t' read -r bench _; do
    [[ "$bench" =~ $match ]] || continue
    if [[ -z "$gpu" ]]; then
      record benchmarks "$bench" skipped 0 "no GPU"
      continue
    fi
    run benchmarks "$bench" 150 "./$bench" && judge_benchmark benchmarks "$bench"
  done < "$root/tests/benchmark.list"
}

# judge_benchmark STAGE NAME
judge_benchmark() {
  local lines
  lines=$(grep -cE '^\{.*\}$' "$log")
  grep -E '^\{.*\}$' "$log" >> "$benches"
  if ((status == 0 && lines > 0)); then
    record "$1" "$2" passed "$took" "$lines numbers"
  else
    record "$1" "$2" failed "$took" "exit status $status, $lines numbers; $(tail -n 1 "$log")"
  fi
}

run_peers() {
  local script=$root/tests/bench/peers/qlora_peer.py micro
  [[ qlora =~ $match ]] || return 0
  if [[ -z "$gpu" ]]; then
    record peers qlora skipped 0 "no GPU"
  elif ! python3 -c 'import torch, transformers, peft, bitsandbytes' 2>/dev/null; then
    record peers qlora skipped 0 "python3 has not all of torch, transformers, peft and bitsandbytes"
  else
    for micro in 4 16; do
      run peers "qlora in passes of $micro" 90 python3 "$script" --micro $micro --steps 2 &&
        judge_benchmark peers "qlora in passes of $micro"
    done
  fi
}

find_sanitizer() {
  command -v compute-sanitizer && return
  local candidate
  for candidate in /usr/local/cuda*/bin/compute-sanitizer /usr/local/cuda*/compute-sanitizer/compute-sanitizer; do
    [[ -x "$candidate" ]] && { echo "$candidate"; return; }
  done
  return 1
}

# A whole run in which racecheck named nothing but kernels that are not ours: cuBLAS's for Hopper hand over by barriers
# that it does not see.
only_foreign_races() {
  ((status == 86)) && grep -q '^\[  PASSED  \]' "$log" && grep -q "Race reported" "$log" &&
    ! grep " access at " "$log" | grep -q "qst::"
}

run_sanitizer() {
  local sanitizer tool test filter
  sanitizer=$(find_sanitizer) || { record sanitizer compute-sanitizer skipped 0 "not installed"; return; }
  [[ -n "$gpu" ]] || { record sanitizer compute-sanitizer skipped 0 "no GPU"; return; }
  for tool in memcheck racecheck initcheck; do
    while IFS=$'\t' read -r test filter; do
      [[ "$test" == kernels/* && "$test" =~ $match ]] || continue
      wait_for_slot "$jobs"
      # Calls that fail on purpose are no findings. Products of cuBLAS take racecheck long.
      { run sanitizer "$tool $test" 180 "$sanitizer" --tool "$tool" --error-exitcode 86 --report-api-errors no --print-limit 0 \
        "./$test" --gtest_filter="$filter" --gtest_color=no &&
        { [[ "$tool" != racecheck ]] || ! only_foreign_races || { status=0 note="; races only in kernels that are not ours"; }; } &&
        judge_gtest sanitizer "$tool $test"; } &
    done < "$root/tests/gpu_test.list"
  done
  wait
}

run_e2e() {
  local test
  export QST_TEST_DEVICE=${device:-cuda}
  while IFS=$'\t' read -r test _; do
    [[ "$test" =~ $match ]] || continue
    if [[ "$QST_TEST_DEVICE" == cuda && -z "$gpu" ]]; then
      record e2e "$test" skipped 0 "no GPU"
      continue
    fi
    run e2e "$test" 180 "./$test" || continue
    if ((status != 0)); then
      record e2e "$test" failed "$took" "exit status $status; $(grep -m 1 FAILED "$log" || tail -n 1 "$log")"
    elif grep -q SKIPPED "$log"; then
      record e2e "$test" skipped "$took" "$(grep -m 1 SKIPPED "$log")"
    else
      record e2e "$test" passed "$took" "on $QST_TEST_DEVICE; $(tail -n 1 "$log")"
    fi
  done < "$root/tests/e2e_test.list"
}

# Some time is kept for the end-to-end tests. Sanitizers run beside them: neither is timed.
all=$deadline
for stage in tests benchmarks peers; do
  [[ ",$only," == *",$stage,"* ]] || continue
  [[ ",$only," != *,e2e,* ]] || deadline=$((all - seconds / 4))
  "run_$stage"
done
deadline=$all
[[ ",$only," != *,sanitizer,* ]] || run_sanitizer &
[[ ",$only," != *,e2e,* ]] || run_e2e
wait

date=$(date -u +%Y-%m-%dT%H:%M:%SZ)
machine="$(uname -sr), $(nproc) processors"
took=$((SECONDS - started))
count() { grep -c "\"status\": \"$1\"" "$runs"; }
passed=$(count passed) failed=$(count failed) skipped=$(count skipped)
{
  printf '{\n"date": "%s",\n"commit": %s,\n"variant": %s,\n' "$date" "$(quote "$(field commit)")" "$(quote "$(field variant)")"
  printf '"gpu": %s,\n"driver": %s,\n"cuda": %s,\n' "$(quote "$gpu")" "$(quote "$driver")" "$(quote "$cuda")"
  printf '"machine": %s,\n"cuda_libraries": %s,\n' "$(quote "$machine")" "$(quote "$libraries")"
  printf '"seconds": %d,\n"passed": %d,\n"failed": %d,\n"skipped": %d,\n' "$took" $passed $failed $skipped
  printf '"runs": [\n%s\n],\n' "$(sed '$!s/$/,/' "$runs")"
  printf '"benchmarks": [\n%s\n]\n}\n' "$(sed '$!s/$/,/' "$benches")"
} > "$out/report.json"
{
  printf '%-11s %s\n' date "$date" commit "$(field commit) ($(field variant))" GPU "${gpu:-none}" driver "${driver:-none}" \
    CUDA "${cuda:-none}" machine "$machine" libraries "$libraries"
  printf '\n'
  cat "$tmp/lines" 2>/dev/null
  [[ -s "$benches" ]] && { printf '\nbenchmarks\n'; cat "$benches"; }
  printf '\n%d passed, %d failed, %d skipped in %d s\n' $passed $failed $skipped "$took"
} > "$out/report.txt"
printf '\n%d passed, %d failed, %d skipped in %d s: %s\n' $passed $failed $skipped "$took" "$out/report.txt"
((failed == 0))
