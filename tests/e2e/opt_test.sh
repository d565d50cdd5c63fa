#!/usr/bin/env bash
# OPT models, plain and as OPT-350M: one and two stages beside the side network give the same losses to the last bit, the
# loss falls, and the finetuned model generates the same text over either.
source "$(dirname "$0")/lib.sh"

make_sentences 120 1 | sed 's/"label"/"completion"/; s/"text"/"prompt"/' >"$work/train.jsonl"
make_sentences 24 7 | sed 's/"label"/"completion"/; s/"text"/"prompt"/' >"$work/eval.jsonl"
cat >"$work/job.yaml" <<YAML
name: opt
model: opt
data: {train: $work/train.jsonl, eval: $work/eval.jsonl, max_length: 64}
side: {reduction: 4}
train: {epochs: 2, batch_size: 8, micro_batch_tokens: 256, learning_rate: 3e-3}
YAML

up 3
for kind in opt opt-350m; do
  "$root/tests/e2e/write_tiny_model" "$work/$kind" 4 64 1 "$kind"
  qst model import "$work/$kind" --name "$kind" || fail "import of $kind"
  reference=""
  for stages in 1 2; do
    job=$(submit "$work/job.yaml" --set model="$kind" --set resources.stages=$stages)
    qst watch "$job" >"$work/watch.out" 2>&1 || fail "$kind on $stages stages: $(tail -5 "$work/watch.out")"
    [[ "$(state_of "$job")" == SUCCEEDED ]] || fail "$kind on $stages stages ended $(state_of "$job")"
    found=$(losses "$job")
    [[ $(wc -l <<<"$found") -ge 30 ]] || fail "$kind: only $(wc -l <<<"$found") losses"
    [[ -z "$reference" ]] && reference=$found
    [[ "$found" == "$reference" ]] || fail "$kind: losses on $stages stages differ: $(diff <(echo "$reference") <(echo "$found") | head -5)"
    text=$(qst generate --job "$job" --prompt "It was good" --max-new-tokens 12 --stages $stages --workers $((stages + 1)))
    [[ $stages == 1 ]] && expected=$text
    [[ "$text" == "$expected" ]] || fail "$kind: text on $stages stages is '$text', on one '$expected'"
  done
  evals=$(grep '"eval"' "$store/jobs/$job/results/metrics.jsonl" | grep -o '"loss":[^,}]*' | cut -d: -f2)
  first=$(head -1 <<<"$evals") last=$(tail -1 <<<"$evals")
  awk -v a="$first" -v b="$last" 'BEGIN { exit !(b < a - 0.2) }' || fail "$kind: evaluation loss went from $first to $last only"
  echo "$kind: $(wc -l <<<"$reference") losses equal on 1 and 2 stages, evaluation loss $first, then $last; '$text'"
done
