#!/usr/bin/env bash
# kill -9 of the coordinator in the middle of a job loses nothing; kill -9 of a worker is reported within 15 s.
source "$(dirname "$0")/lib.sh"

"$root/tests/e2e/write_tiny_model" "$work/model" 5 64
make_sentences 400 1 >"$work/train.jsonl"
cat >"$work/job.yaml" <<YAML
name: long
model: tiny
task: {type: classification}
data: {train: $work/train.jsonl, max_length: 64}
side: {reduction: 4}
train: {epochs: 400, batch_size: 8, learning_rate: 1e-3}
resources: {stages: 2}
YAML
has_steps() { [[ $(grep -c '"step"' "$store/jobs/$1/results/metrics.jsonl" 2>/dev/null || true) -ge $2 ]]; }

up 3
qst model import "$work/model" --name tiny

# The coordinator.
job=$(submit "$work/job.yaml" --set train.max_steps=1500)
wait_for 30 has_steps "$job" 20 || fail "job does not train"
kill -9 "$(pid_of coordinator)"
steps_at_kill=$(grep -c '"step"' "$store/jobs/$job/results/metrics.jsonl")
expect_fail 3 "127.0.0.1" qst --timeout 2 jobs
qst up --store "$store" --listen "$QST_COORDINATOR" --workers 3 --threads-per-worker 1 >"$work/up2.out" 2>&1 || fail "second up: $(cat "$work/up2.out")"
timeout 240 "$bin/qst" watch "$job" >"$work/watch.out" 2>&1 || fail "job after the coordinator's restart: $(tail -5 "$work/watch.out")"
is_state "$job" SUCCEEDED || fail "job ended $(state_of "$job")"
steps=$(grep -c '"loss"' "$store/jobs/$job/results/metrics.jsonl")
[[ $steps -ge 1500 ]] || fail "metrics have only $steps of 1500 steps"
[[ "$(qst get "$job" --json | json_field attempt)" == 1 ]] || fail "the job was started again instead of taken up"
echo "coordinator killed after $steps_at_kill steps: job taken up, $steps steps, SUCCEEDED"

# A worker that hosts a stage.
job=$(submit "$work/job.yaml")
wait_for 30 has_steps "$job" 5 || fail "second job does not train"
victim=$(qst workers --json | grep -o '"id": *"[^"]*"\|stage 0' | grep -B1 'stage 0' | head -1 | sed 's/.*"\([^"]*\)"$/\1/')
[[ -n "$victim" ]] || fail "no worker hosts stage 0: $(qst workers --json)"
kill -9 "$(pid_of "$victim")"
killed_at=$SECONDS
wait_for 15 is_state "$job" FAILED || fail "the loss of worker $victim was not reported within 15 s"
message=$(qst get "$job" --json | grep -o '"status_message": *"[^"]*"\|"statusMessage": *"[^"]*"')
grep -q "$victim" <<<"$message" || fail "message does not name worker $victim: $message"
echo "worker $victim killed: FAILED after $((SECONDS - killed_at)) s: $message"

# The others are free again, and a replacement takes work.
qst up --store "$store" --listen "$QST_COORDINATOR" --workers 3 --threads-per-worker 1 >"$work/up3.out" 2>&1 || fail "third up: $(cat "$work/up3.out")"
job=$(submit "$work/job.yaml" --set train.max_steps=10)
timeout 60 "$bin/qst" watch "$job" >"$work/watch.out" 2>&1 || fail "job after a worker's replacement: $(tail -5 "$work/watch.out")"
