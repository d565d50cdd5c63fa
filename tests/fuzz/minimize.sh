#!/usr/bin/env bash
# Adds to the committed corpora what a run of run.sh has found, as few and as small inputs as cover the same code: those
# that reach an edge that the named files of the corpus do not reach. Hash-named files of earlier runs are chosen anew.
#
#   FUZZ_DIR=/tmp/found tests/fuzz/run.sh 3600 gguf_fuzz
#   tests/fuzz/minimize.sh /tmp/found gguf_fuzz
#
# $MAX_FILE_BYTES (default 8192) and $MAX_CORPUS_BYTES (default 200000) bound what is committed: the corpora are run
# with every build. The binaries are those that run.sh has built ($FUZZ_BIN replaces their folder).
set -euo pipefail
cd "$(dirname "$0")/../.."

if (($# < 2)); then
  echo "usage: tests/fuzz/minimize.sh FUZZ_DIR TARGET..." >&2
  exit 2
fi
found=$1
shift
read -r -a bazel <<<"${BAZEL:-bazel}"
base=${FUZZ_OUTPUT_BASE:-${XDG_CACHE_HOME:-$HOME/.cache}/qst-fuzz}
bin=${FUZZ_BIN:-$("${bazel[@]}" --output_base="$base" info --config=fuzz bazel-bin 2>/dev/null)/tests/fuzz}

for target in "$@"; do
  corpus=tests/fuzz/corpus/$target
  if [[ ! -d $corpus ]]; then corpus=${corpus%_fuzz}; fi
  work=$(mktemp -d)
  mkdir "$work"/{named,new,merged}
  for file in "$corpus"/*; do
    if [[ $(basename "$file") =~ ^[0-9a-f]{40}$ ]]; then mv "$file" "$work/new"; else cp "$file" "$work/named"; fi
  done
  find "$found/$target" -type f -size -"${MAX_FILE_BYTES:-8192}"c -exec cp -t "$work/new" {} +
  # A merge adds to its first folder what the others reach beyond it.
  cp "$work/named/"* "$work/merged"
  "$bin/$target" -merge=1 -use_counters=0 -timeout=10 -rss_limit_mb=2048 "$work/merged" "$work/new" >"$work/log" 2>&1
  # Smallest first, until the corpus is full.
  total=0
  while read -r bytes name; do
    if [[ -e $work/named/$name ]]; then continue; fi
    total=$((total + bytes))
    if ((total > ${MAX_CORPUS_BYTES:-200000})); then break; fi
    cp "$work/merged/$name" "$corpus"
  done < <(find "$work/merged" -type f -printf '%s %f\n' | sort -n)
  echo "$target: $(find "$corpus" -type f | wc -l) files, $(cat "$corpus"/* | wc -c) bytes"
  rm -r "$work"
done
