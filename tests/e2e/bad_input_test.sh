#!/usr/bin/env bash
# Bad input of every kind: one clear line, exit status 1 or 2, every process alive afterwards.
source "$(dirname "$0")/lib.sh"

"$root/tests/e2e/write_tiny_model" "$work/model" 3 64
make_sentences 64 1 >"$work/train.jsonl"
cat >"$work/job.yaml" <<YAML
name: bad
model: tiny
task: {type: classification}
data: {train: $work/train.jsonl, max_length: 64}
side: {reduction: 4}
train: {max_steps: 5, batch_size: 8}
resources: {stages: 1}
YAML

expect_fail 3 "qst up" qst --coordinator 127.0.0.1:1 jobs
up 2
qst model import "$work/model" --name tiny
pids=$(processes)

# The command line and the job file.
expect_fail 2 "did you mean .model" qst modle import x
expect_fail 2 "help" qst submit --no-such-flag
expect_fail 2 "learning_rate" qst submit -f "$work/job.yaml" --set train.lerning_rate=1
printf 'name: x\nmodel: tiny\ntrain:\n  lerning_rate: 1\n' >"$work/typo.yaml"
expect_fail 2 "typo.yaml:4.*lerning_rate.*learning_rate" qst submit -f "$work/typo.yaml"
printf 'name: [\n' >"$work/broken.yaml"
expect_fail 2 "broken.yaml" qst submit -f "$work/broken.yaml"
expect_fail 1 "no-such-file.yaml" qst submit -f "$work/no-such-file.yaml"
expect_fail 1 "no-such-model" qst submit -f "$work/job.yaml" --set model=no-such-model
expect_fail 1 "train.batch_size" qst submit -f "$work/job.yaml" --set train.batch_size=100000000
expect_fail 1 "j-00000000" qst get j-00000000

# Models.
expect_fail 1 "no-such-folder" qst model import "$work/no-such-folder" --name x1
mkdir -p "$work/cut" "$work/odd" "$work/over"
cp "$work/model"/*.json "$work/cut"; head -c 40 "$work/model/model.safetensors" >"$work/cut/model.safetensors"
expect_fail 1 "model.safetensors" qst model import "$work/cut" --name x2
cp "$work/model"/*.json "$work/over"; head -c -1000 "$work/model/model.safetensors" >"$work/over/model.safetensors"
expect_fail 1 "model.safetensors" qst model import "$work/over" --name x3
cp "$work/model"/* "$work/odd"; sed -i 's/LlamaForCausalLM/MysteryForCausalLM/;s/"llama"/"mystery"/' "$work/odd/config.json"
expect_fail 1 "MysteryForCausalLM" qst model import "$work/odd" --name x4
printf 'GGUF\003\000\000\000\377\377\377\377\377\377\377\177\377\377\377\377\377\377\377\177' >"$work/huge.gguf"
expect_fail 1 "huge.gguf" qst model import "$work/huge.gguf" --name x5
printf 'GGUF\003\000' >"$work/cut.gguf"
expect_fail 1 "cut.gguf" qst model import "$work/cut.gguf" --name x6
expect_fail 1 "tiny" qst model import "$work/model" --name tiny

# Data.
: >"$work/empty.jsonl"
expect_fail 1 "empty" qst dataset add "$work/empty.jsonl"
watch_fails() { # PATTERN ARGS...: the job fails with a message that matches
  local pattern=$1 job; shift
  job=$(submit "$work/job.yaml" "$@")
  timeout 60 "$bin/qst" watch "$job" >"$work/out" 2>&1 && fail "job with $* succeeded"
  is_state "$job" FAILED || fail "job with $* is $(state_of "$job")"
  grep -qE "$pattern" <<<"$(qst get "$job" --json)" || fail "job with $* does not say '$pattern': $(qst get "$job" --json)"
}
head -5 "$work/train.jsonl" >"$work/broken.jsonl"; echo '{"text": "no end' >>"$work/broken.jsonl"
watch_fails "line 6" --set data.train="$work/broken.jsonl"
watch_fails "label" --set task.labels=positive,neutral
echo '[]' >"$work/none.json"
watch_fails "empty|no rows|no examples" --set data.train="$work/none.json"
awk 'BEGIN { s = "word"; for (i = 0; i < 9; i++) s = s " " s; printf "{\"text\": \"%s\", \"label\": \"a\"}\n{\"text\": \"x\", \"label\": \"b\"}\n", s }' >"$work/long.jsonl"
job=$(submit "$work/job.yaml" --set data.train="$work/long.jsonl")
qst watch "$job" >"$work/out" 2>&1 || fail "job with a long text: $(cat "$work/out")"
grep -qE "1 longer than 64 tokens were cut" <<<"$(qst logs "$job")" || fail "the cut text is not reported: $(qst logs "$job")"

# Waiting for workers, and cancelling in every state.
job=$(submit "$work/job.yaml" --set resources.stages=3 --set resources.workers=4)
wait_for 10 bash -c "'$bin/qst' get $job --json | grep -q 'waiting for 4'" || fail "a job without workers does not say so: $(qst get "$job" --json)"
qst cancel "$job" >/dev/null
wait_for 10 is_state "$job" CANCELLED || fail "queued job is $(state_of "$job") after cancel"
job=$(submit "$work/job.yaml" --set train.max_steps=100000)
qst cancel "$job" >/dev/null
wait_for 10 is_state "$job" CANCELLED || fail "preparing job is $(state_of "$job") after cancel"
job=$(submit "$work/job.yaml" --set train.max_steps=100000)
wait_for 20 is_state "$job" RUNNING || fail "job does not run"
qst cancel "$job" >/dev/null
wait_for 10 is_state "$job" CANCELLED || fail "running job is $(state_of "$job") after cancel"
job=$(submit "$work/job.yaml")
qst watch "$job" >/dev/null 2>&1 || fail "a good job after all the bad ones"

[[ "$(processes)" == "$pids" ]] || fail "a process died or was replaced"
echo "all bad input refused, all processes alive"
