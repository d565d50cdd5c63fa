#!/usr/bin/env bash
# Where the time of a training job goes: backbone, data plane, side network, optimizer, in microseconds per token, and
# the tokens per second of the whole. Runs one real job on a local cluster of its own.
#
#   tests/bench/training_bench.sh MODEL TRAIN_FILE TASK [STAGES [SET...]]
#
#   MODEL       GGUF file or Hugging Face folder        TRAIN_FILE  data set
#   TASK        classification or causal_lm             STAGES      backbone stages (default 1); the side network gets
#   SET         more job settings, key=value                        a worker of its own; each has one thread
#
# Build first: deploy/build.sh. "computing" of stages and side network run at the same time on different processes, so
# the parts add up to more than the whole.
set -euo pipefail
cd "$(dirname "$0")/../.."

[[ $# -ge 3 ]] || { sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p}' "$0" >&2; exit 2; }
model=$1 train=$2 task=$3 stages=${4:-1}
shift $(($# < 4 ? $# : 4))
settings=()
for setting in "$@"; do settings+=(--set "$setting"); done

qst() { bin/qst "$@"; }
work=$(mktemp -d)
trap 'bin/qst down --store "$work/store" >/dev/null 2>&1 || true; rm -rf "$work"' EXIT
qst up --store "$work/store" --listen 127.0.0.1:0 --workers $((stages + 1)) --threads-per-worker 1 >/dev/null
QST_COORDINATOR=$(sed -n 's/.*"address": *"\([^"]*\)".*/\1/p' "$work/store/cluster.json" | head -1)
export QST_COORDINATOR
qst model import "$model" --name bench >/dev/null 2>&1

cat >"$work/job.yaml" <<YAML
name: bench
model: bench
task: {type: $task}
data: {train: $train}
eval: {at_start: false}
resources: {stages: $stages}
YAML
job=$(qst submit -f "$work/job.yaml" "${settings[@]}" --json 2>/dev/null | sed -n 's/.*"id": *"\([^"]*\)".*/\1/p' | head -1)
[[ -n "$job" ]] || { qst submit -f "$work/job.yaml" "${settings[@]}"; exit 1; }
qst watch "$job" >"$work/watch.log" 2>&1 || { cat "$work/watch.log" >&2; exit 1; }

echo "machine: $(grep -m1 'model name' /proc/cpuinfo | cut -d: -f2 | xargs), $(nproc) cores, load $(cut -d' ' -f1 /proc/loadavg)"
echo "job: $task, $stages stage(s) and side network, one thread each, ${settings[*]:-defaults}"
qst logs "$job" | grep -E 'computing|waited' | sed 's/^[^ ]* [^ ]*  //'
awk '
  function value(name,   s) { s = $0; return match(s, "\"" name "\":[0-9.e+-]+") ? substr(s, RSTART + length(name) + 3, RLENGTH - length(name) - 3) + 0 : 0 }
  FNR == NR { if ($0 ~ /"loss"/ && $0 !~ /"eval"/) { n++; side += value("side_s"); opt += value("optimizer_s"); wait += value("wait_s"); tokens = value("tokens") } next }
  match($0, /computing [0-9.]+/) { compute += substr($0, RSTART + 10, RLENGTH - 10) }
  match($0, /sending [0-9.]+/) { send += substr($0, RSTART + 8, RLENGTH - 8) }
  END {
    printf "%d steps, %d tokens, %.0f tokens/s\n", n, tokens, tokens / (side + opt + wait)
    printf "%-34s %10s\n", "part", "us/token"
    printf "%-34s %10.1f\n", "backbone forward (all stages)", 1e6 * compute / tokens
    printf "%-34s %10.1f\n", "data plane (stages sending)", 1e6 * send / tokens
    printf "%-34s %10.1f\n", "side network forward + backward", 1e6 * side / tokens
    printf "%-34s %10.1f\n", "optimizer", 1e6 * opt / tokens
    printf "%-34s %10.1f\n", "side network waiting", 1e6 * wait / tokens
    printf "side network step / backbone forward: %.2f\n", (side + opt) / compute
  }' "$work/store/jobs/$job/results/metrics.jsonl" "$work/watch.log"
