#!/usr/bin/env bash
# What each CUDA kernel uses, as nvcc reports it: registers, shared memory, spilled bytes, for every architecture.
#
#   tests/gpu/kernel_resources.sh            prints the report (needs the CUDA toolkit)
#   tests/gpu/kernel_resources.sh --write    writes it to tests/bench/results/kernel-resources.md
#   tests/gpu/kernel_resources.sh --check    exit status 1 if a kernel spills more than a few words, or the report is
#                                            out of date
set -euo pipefail
cd "$(dirname "$0")/../.."
readonly report=tests/bench/results/kernel-resources.md

mode=${1:-}
case "$mode" in
  ""|--write|--check) ;;
  *) echo "kernel_resources.sh: unknown argument '$mode'; see its first lines" >&2; exit 2 ;;
esac
if [[ ! -x /usr/local/cuda/bin/nvcc ]]; then
  echo "kernel_resources.sh: needs the CUDA toolkit (nvcc) in /usr/local/cuda" >&2
  exit 1
fi

# Of the product's kernels, not those of tests and benchmarks.
targets=$(bazel query 'kind("_nvcc_objects rule", //kernels/cuda/... + //worker/...)' 2>/dev/null)
# shellcheck disable=SC2086
bazel build --config=cuda --output_groups=ptxas $targets >&2

make_report() {
  echo "# Resources of the CUDA kernels"
  echo
  echo "As $(/usr/local/cuda/bin/nvcc --version | sed -n 's/.*release \([0-9.]*\),.*/nvcc \1/p') reports them; made by"
  echo "\`tests/gpu/kernel_resources.sh --write\`. Registers a thread and static shared memory a block (bytes; dynamic shared"
  echo "memory is chosen at launch), for sm_80 / sm_89 / sm_90a. Spilled: bytes stored and loaded, most of the three."
  echo
  echo "| kernel | registers | shared | spilled |"
  echo "| --- | --- | --- | --- |"
  find -L bazel-bin/kernels/cuda bazel-bin/worker -name '*.ptxas' 2>/dev/null | sort | xargs -r cat | awk '
    /Compiling entry function/ { split($0, part, "\047"); name = part[2]; arch = part[4] }
    /bytes spill stores/ {
      match($0, /[0-9]+ bytes spill stores/); stores = substr($0, RSTART, RLENGTH) + 0
      match($0, /[0-9]+ bytes spill loads/); loads = substr($0, RSTART, RLENGTH) + 0
      spilled = stores + loads
    }
    /Used [0-9]+ registers/ {
      match($0, /Used [0-9]+/); registers = substr($0, RSTART + 5, RLENGTH - 5)
      shared = 0
      if (match($0, /[0-9]+ bytes smem/)) shared = substr($0, RSTART, RLENGTH) + 0
      print name "\t" arch "\t" registers "\t" shared "\t" spilled
    }' | sed 's/[0-9]*_GLOBAL__N__[0-9a-f]*_[0-9]*_[a-z0-9_]*_cu_[0-9a-f]\{8\}/12_GLOBAL__N_1/' | c++filt | sed 's/([^()]*)*\t/\t/' |
    sed -E 's/qst::cuda:://g; s/\(anonymous namespace\):://g; s/^void //; s/__nv_bfloat16/bf16/g; s/__half/f16/g' |
    awk -F '\t' '
      { key = $1 }
      !(key in seen) { seen[key] = 1; order[++n] = key }
      { reg[key] = reg[key] (reg[key] == "" ? "" : " / ") $3; if ($4 > sh[key]) sh[key] = $4; if ($5 > sp[key]) sp[key] = $5 }
      END { for (i = 1; i <= n; ++i) { k = order[i]; printf "| `%s` | %s | %d | %d |\n", k, reg[k], sh[k], sp[k] } }' | sort
}

case "$mode" in
  "") make_report ;;
  --write) make_report > "$report"; echo "wrote $report ($(grep -c '^| `' "$report") kernels)" ;;
  --check)
    made=$(mktemp)
    trap 'rm -f "$made"' EXIT
    make_report > "$made"
    # A word or two, kept aside once, is what the compiler does on some architectures; more would be felt.
    if awk -F ' \\| ' '/^\| `/ && $NF + 0 > 32 { print; found = 1 } END { exit !found }' "$made"; then
      echo "kernel_resources.sh: the kernels above spill registers" >&2
      exit 1
    fi
    # Another toolkit gives other numbers.
    if [[ "$(grep -m1 '^As nvcc' "$report")" == "$(grep -m1 '^As nvcc' "$made")" ]] && ! diff -u "$report" "$made"; then
      echo "kernel_resources.sh: $report is out of date; run tests/gpu/kernel_resources.sh --write" >&2
      exit 1
    fi
    echo "$(grep -c '^| `' "$made") kernels, none spills more than 32 bytes"
    ;;
esac
