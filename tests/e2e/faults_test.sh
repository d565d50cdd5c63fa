#!/usr/bin/env bash
# kill -9 in the middle of a job: of the coordinator, it takes the job up again; of stages, they are placed again and no
# loss changes; of the side network, the job resumes from its checkpoint.
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

up 4
qst model import "$work/model" --name tiny

# The coordinator.
first=$(submit "$work/job.yaml" --set train.max_steps=600)
wait_for 30 has_steps "$first" 20 || fail "job does not train"
kill -9 "$(pid_of coordinator)"
steps_at_kill=$(grep -c '"step"' "$store/jobs/$first/results/metrics.jsonl")
expect_fail 3 "127.0.0.1" qst --timeout 2 jobs
qst up --store "$store" --listen "$QST_COORDINATOR" --workers 4 --threads-per-worker 1 >"$work/up2.out" 2>&1 || fail "second up: $(cat "$work/up2.out")"
timeout 240 "$bin/qst" watch "$first" >"$work/watch.out" 2>&1 || fail "job after the coordinator's restart: $(tail -5 "$work/watch.out")"
is_state "$first" SUCCEEDED || fail "job ended $(state_of "$first")"
steps=$(grep -c '"loss"' "$store/jobs/$first/results/metrics.jsonl")
[[ $steps -ge 600 ]] || fail "metrics have only $steps of 600 steps"
[[ "$(qst get "$first" --json | json_field attempt)" == 1 ]] || fail "the job was started again instead of taken up"
echo "coordinator killed after $steps_at_kill steps: job taken up, $steps steps, SUCCEEDED"

# host_of PART: the id of the worker that hosts "stage 0" or "side network".
host_of() { qst workers --json | grep -o '"id": *"[^"]*"\|'"$1" | grep -B1 "$1" | head -1 | sed 's/.*"\([^"]*\)"$/\1/' || true; }
revision_of() { qst get "$1" --json | json_field revision; }
is_revision() { [[ "$(revision_of "$1")" == "$2" ]]; }
has_more_steps() { has_steps "$1" $(($2 + 5)); }
steps_of() { grep -c '"step"' "$store/jobs/$1/results/metrics.jsonl"; }

# Workers that host a stage: the first is replaced by the idle worker, the second joins another part.
job=$(submit "$work/job.yaml" --set train.max_steps=600)
wait_for 30 has_steps "$job" 20 || fail "second job does not train"
for revision in 1 2; do
  victim=$(host_of "stage 0")
  [[ -n "$victim" ]] || fail "no worker hosts stage 0: $(qst workers --json)"
  pid=$(pid_of "$victim") || fail "worker $victim has no process: $(qst workers)"
  steps=$(steps_of "$job")
  kill -9 "$pid"
  killed_at=$SECONDS
  wait_for 20 is_revision "$job" $revision || fail "stage 0 was not placed again: $(qst get "$job" --json)"
  wait_for 15 has_more_steps "$job" "$steps" || fail "the job does not go on: $(qst get "$job" --json)"
  echo "worker $victim killed at step $steps: stage 0 placed again, training on after $((SECONDS - killed_at)) s"
done
timeout 240 "$bin/qst" watch "$job" >"$work/watch.out" 2>&1 || fail "job after its stages were lost: $(tail -5 "$work/watch.out")"
is_state "$job" SUCCEEDED || fail "job ended $(state_of "$job")"
[[ "$(qst get "$job" --json | json_field attempt)" == 1 ]] || fail "the job was started again instead of going on"
grep -q "its stages are back after" "$work/watch.out" || fail "nothing said of the stages: $(cat "$work/watch.out")"
diff <(losses "$first") <(losses "$job") >/dev/null || fail "losses differ from those of the undisturbed job"
echo "two stages lost: $(losses "$job" | wc -l) losses equal to those of a job that lost none"

# The side network's worker: the job is queued, and resumes when there are workers again.
job=$(submit "$work/job.yaml" --set train.max_steps=600 --set checkpoint.every_steps=20 --set resources.stages=1)
wait_for 60 has_steps "$job" 60 || fail "third job does not train"
victim=$(host_of "side network")
kill -9 "$(pid_of "$victim")"
wait_for 15 is_state "$job" QUEUED || fail "the loss of the side network on $victim was not noticed: $(qst get "$job" --json)"
qst up --store "$store" --listen "$QST_COORDINATOR" --workers 4 --threads-per-worker 1 >"$work/up3.out" 2>&1 || fail "third up: $(cat "$work/up3.out")"
timeout 240 "$bin/qst" watch "$job" >"$work/watch.out" 2>&1 || fail "job after its side network was lost: $(tail -5 "$work/watch.out")"
[[ "$(qst get "$job" --json | json_field attempt)" == 2 ]] || fail "the job was not placed again"
grep -qi "resum" "$work/watch.out" || fail "the job did not resume: $(cat "$work/watch.out")"
[[ "$(losses "$job" | sort -u | wc -l)" -ge 500 ]] || fail "losses are missing"
diff <(losses "$first" | tail -n 100) <(losses "$job" | tail -n 100) >/dev/null || fail "losses after resuming differ"
echo "side network's worker $victim killed: resumed from its checkpoint, the last 100 losses equal"
