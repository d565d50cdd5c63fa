#!/usr/bin/env bash
# What a user looks at besides jobs: tokens, what is in a data set and how a model sees it, an exported model; and a job
# that learns numbers.
source "$(dirname "$0")/lib.sh"

"$root/tests/e2e/write_tiny_model" "$work/model" 3 64
up 2
qst model import "$work/model" --name tiny

# Tokens, also while all workers are busy.
ids=$(printf 'ab\n' | qst tokenize --model tiny --ids --no-special)
[[ $(wc -w <<<"$ids") -eq 3 ]] || fail "three bytes give the tokens '$ids'"
[[ "$(qst tokenize --model tiny --ids --no-special -f <(printf 'ab\n'))" == "$ids" ]] || fail "a file has other tokens"
qst tokenize --model tiny 'ab' | grep -q ' tokens$' || fail "tokenize does not count"
expect_fail 1 "no model 'nobody'" qst tokenize --model nobody x
make_sentences 64 1 >"$work/train.jsonl"
cat >"$work/job.yaml" <<YAML
name: busy
model: tiny
task: {type: classification}
data: {train: $work/train.jsonl, max_length: 64}
side: {reduction: 4}
train: {max_steps: 100000, batch_size: 8}
resources: {stages: 2, workers: 2}
YAML
job=$(submit "$work/job.yaml")
wait_for 20 is_state "$job" RUNNING || fail "job does not run"
[[ "$(qst tokenize --model tiny --ids --no-special -f <(printf 'ab\n'))" == "$ids" ]] || fail "no tokens beside a job"
qst cancel "$job" >/dev/null
wait_for 10 is_state "$job" CANCELLED || fail "job is $(state_of "$job") after cancel"

# Data sets.
qst dataset add "$work/train.jsonl" --name sentences --model tiny >"$work/out" || fail "dataset add: $(cat "$work/out")"
grep -qE '^kind +classification$' "$work/out" || fail "no kind in '$(cat "$work/out")'"
grep -qE '^rows +64$' "$work/out" || fail "no rows in '$(cat "$work/out")'"
grep -qE '^labels .*positive [0-9]+' "$work/out" || fail "no labels in '$(cat "$work/out")'"
grep -qE '^per row .*50 % [0-9]+' "$work/out" || fail "no tokens in '$(cat "$work/out")'"
head -3 "$work/train.jsonl" >"$work/broken.jsonl"; echo '{"text": "no end' >>"$work/broken.jsonl"
expect_fail 1 "broken.jsonl line 4.*stored all the same" qst dataset add "$work/broken.jsonl" --name broken
qst dataset rm broken >/dev/null
cat >"$work/chat.jsonl" <<'JSON'
{"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes"}, {"role": "user", "content": "so?"}, {"role": "assistant", "content": "no"}]}
JSON
qst dataset add "$work/chat.jsonl" --name talk >/dev/null
qst dataset show talk --model tiny --template chatml --render 1 >"$work/out" || fail "dataset show failed"
grep -qF '[[yes<|im_end|>]]' "$work/out" || fail "the first answer is not marked: $(cat "$work/out")"
grep -qF '[[no<|im_end|>]]' "$work/out" || fail "the second answer is not marked: $(cat "$work/out")"
grep -qF '[[hi' "$work/out" && fail "a question is marked: $(cat "$work/out")"
expect_fail 1 "data.template" qst dataset show talk --model tiny --template chatlm
expect_fail 1 "no data set 'nothing'" qst dataset show nothing

# The model comes out and goes in again.
qst model export tiny "$work/exported" --dequantize --dtype bf16 >"$work/out" || fail "model export: $(cat "$work/out")"
[[ -s "$work/exported/model.safetensors" ]] || fail "no weights in the exported folder"
qst model import "$work/exported" --name again >/dev/null || fail "the exported folder does not import"
expect_fail 1 "exported" qst model export tiny "$work/exported"

# Numbers: the label follows from the text.
awk 'BEGIN { s = 7; for (i = 0; i < 64; i++) { s = (s * 16807) % 2147483647; n = s % 4; w = "low some more high"; split(w, a, " ")
  printf "{\"sentence1\": \"%s\", \"sentence2\": \"number %d\", \"score\": %.1f}\n", a[n + 1], i % 10, n + 0.5 } }' >"$work/scores.jsonl"
qst dataset add "$work/scores.jsonl" --name scores >"$work/out"
grep -qE '^kind +regression$' "$work/out" || fail "scores are not taken as numbers: $(cat "$work/out")"
cat >"$work/numbers.yaml" <<YAML
name: numbers
model: tiny
task: {type: regression}
data: {train: scores, eval: scores, max_length: 64}
side: {reduction: 4}
train: {max_steps: 30, batch_size: 16, learning_rate: 0.01}
eval: {at_start: true}
resources: {stages: 1}
YAML
job=$(submit "$work/numbers.yaml")
qst watch "$job" >"$work/out" 2>&1 || fail "regression job: $(cat "$work/out")"
results=$store/jobs/$job/results
grep -q '"pearson":' "$results/metrics.jsonl" || fail "no correlation in $(cat "$results/metrics.jsonl")"
awk 'match($0, /"mse":[0-9.e+-]+/) { m = substr($0, RSTART + 6, RLENGTH - 6) + 0; if (n++ == 0) first = m; last = m }
  END { exit !(n >= 2 && last < first) }' "$results/metrics.jsonl" || fail "the error did not fall: $(grep eval "$results/metrics.jsonl")"
[[ $(grep -c '"prediction":' "$results/predictions.jsonl") -eq 64 ]] || fail "no predictions"
echo "tools work"
