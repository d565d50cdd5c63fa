#!/usr/bin/env bash
# Makes a topic-classification data set out of Debian's `fortunes` package (short English texts, one file a topic).
#
#   deploy/make_topics_dataset.sh OUT_DIR [TRAIN_PER_TOPIC [EVAL_PER_TOPIC]]     defaults: 320 80
#
# Writes OUT_DIR/train.jsonl and OUT_DIR/eval.jsonl with {"text", "label"} a line. Deterministic: texts are ordered by a
# hash of their letters, the first EVAL_PER_TOPIC of a topic go to eval, the next TRAIN_PER_TOPIC to train, whatever
# TRAIN_PER_TOPIC is. A text (letters and digits, case ignored) that occurs twice, in whatever topics, is left out
# after its first occurrence, so that no text is in both files.
set -euo pipefail

out=${1:?usage: make_topics_dataset.sh OUT_DIR [TRAIN_PER_TOPIC [EVAL_PER_TOPIC]]}
train_per_topic=${2:-320}
eval_per_topic=${3:-80}
folder=${FORTUNES_DIR:-/usr/share/games/fortunes}
topics=(computers definitions knghtbrd platitudes politics science songs-poems zippy)

for topic in "${topics[@]}"; do
  if [[ ! -r "$folder/$topic" ]]; then
    echo "make_topics_dataset.sh: $folder/$topic is missing; install Debian's package 'fortunes'" >&2
    exit 1
  fi
done
mkdir -p "$out"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

for topic in "${topics[@]}"; do
  LC_ALL=C awk -v topic="$topic" '
    BEGIN { RS = "\n%\n"; for (i = 1; i < 256; i++) code[sprintf("%c", i)] = i }
    {
      text = $0
      gsub(/\033\[[0-9;]*m|.\010/, "", text)          # colours, overstrikes
      gsub(/[[:cntrl:][:space:]]+/, " ", text)
      sub(/^[ %]+/, "", text); sub(/ +$/, "", text)
      if (length(text) < 30) next
      key = tolower(text); gsub(/[^a-z0-9]/, "", key)
      if (length(key) < 20) next
      hash = 7; for (i = 1; i <= length(key); i++) hash = (hash * 69069 + code[substr(key, i, 1)]) % 2147483647
      gsub(/\\/, "\\\\\\\\", text); gsub(/"/, "\\\"", text)
      printf "%s\t%010d\t%s\t%s\n", key, hash, topic, text
    }' "$folder/$topic"
done | iconv -c -f utf-8 -t utf-8 | LC_ALL=C awk -F '\t' '!seen[$1]++' | LC_ALL=C sort -t $'\t' -k3,3 -k2,2n -k1,1 > "$work/texts"

LC_ALL=C awk -F '\t' -v eval_n="$eval_per_topic" -v train_n="$train_per_topic" -v out="$out" '
  function put(file) { printf "{\"text\": \"%s\", \"label\": \"%s\"}\n", $4, $3 > file }
  { n[$3]++
    if (n[$3] <= eval_n) put(out "/eval.jsonl")
    else if (n[$3] <= eval_n + train_n) put(out "/train.jsonl") }
  END {
    for (topic in n) if (n[topic] < 400 || n[topic] < eval_n + train_n) {
      printf "make_topics_dataset.sh: only %d texts in topic %s, need %d\n", n[topic], topic,
             (eval_n + train_n > 400 ? eval_n + train_n : 400) > "/dev/stderr"; failed = 1 }
    exit failed
  }' "$work/texts"
