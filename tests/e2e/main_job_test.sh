#!/usr/bin/env bash
# The main job on a small model, as users run it: the same classification job in one process and on 1, 2 and 3 stages
# beside the side network gives the same losses to the last bit; results download; generation runs over the stages.
source "$(dirname "$0")/lib.sh"

"$root/tests/e2e/write_tiny_model" "$work/model" 5 64
make_sentences 160 1 >"$work/train.jsonl"
make_sentences 40 7 >"$work/eval.jsonl"
cat >"$work/job.yaml" <<YAML
name: sentences
model: tiny
task: {type: classification}
data: {train: $work/train.jsonl, eval: $work/eval.jsonl, max_length: 64}
side: {reduction: 4}
train: {epochs: 2, batch_size: 8, micro_batch_tokens: 128, backbone_batch_tokens: 512, learning_rate: 1e-3}
YAML

up 4
qst model import "$work/model" --name tiny || fail "import"
reference=""
# Where a GPU's code runs on the CPU, in minutes: half the placements.
placements=("1 1" "1 2" "2 3" "3 4")
[[ -z "${QST_TEST_SHORT:-}" ]] || placements=("1 1" "3 4")
for placement in "${placements[@]}"; do
  read -r stages workers <<<"$placement"
  job=$(submit "$work/job.yaml" --set resources.stages="$stages" --set resources.workers="$workers")
  qst watch "$job" >"$work/watch.out" 2>&1 || fail "job on $stages stages, $workers workers: $(tail -5 "$work/watch.out")"
  [[ "$(state_of "$job")" == SUCCEEDED ]] || fail "job on $stages stages ended $(state_of "$job")"
  found=$(losses "$job")
  [[ $(wc -l <<<"$found") -ge 40 ]] || fail "only $(wc -l <<<"$found") losses"
  [[ -z "$reference" ]] && reference=$found
  [[ "$found" == "$reference" ]] || fail "losses on $stages stages and $workers workers differ: $(diff <(echo "$reference") <(echo "$found") | head -5)"
  echo "$stages stages on $workers workers: $(wc -l <<<"$found") losses equal"
done

if [[ "$device" == cuda ]]; then
  plane=$(grep -ho 'side network.*: NCCL.*' "$store"/logs/*.log | tail -1 || true)
  [[ -n "$plane" ]] || fail "no log says that parts in several processes met over NCCL"
  echo "$plane"
fi

qst pull "$job" -o "$work/pulled"
for file in side_network.safetensors side_config.json metrics.jsonl predictions.jsonl job.yaml; do
  [[ -s "$work/pulled/$file" ]] || fail "qst pull left out $file"
done
accuracy=$(grep '"eval"' "$work/pulled/metrics.jsonl" | tail -1 | json_field accuracy)
awk -v a="$accuracy" 'BEGIN { exit !(a >= 0.8) }' || fail "accuracy on unseen sentences is only $accuracy"
echo "accuracy $accuracy"

one=$(qst generate --model tiny --prompt "It was" --max-new-tokens 24 --workers 1 --stages 1)
three=$(qst generate --model tiny --prompt "It was" --max-new-tokens 24 --workers 4 --stages 3)
[[ "$one" == "$three" ]] || fail "generated text differs between 1 and 3 stages: '$one', '$three'"
