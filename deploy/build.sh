#!/usr/bin/env bash
# Installs what is missing (deploy/install_deps.sh) and builds qst, qst-coordinator and qst-worker, optimised.
#
#   deploy/build.sh [BAZEL_FLAG...]
#
# Prints the folder that holds the three programs as links on its last line: ./bin
set -euo pipefail
cd "$(dirname "$0")/.."
deploy/install_deps.sh >&2
bazel build "$@" //client:qst //server:qst-coordinator //worker:qst-worker >&2
mkdir -p bin
for program in client/qst server/qst-coordinator worker/qst-worker; do
  # Links, not copies: the next build replaces what they point to.
  ln -sfn "$(readlink -f "bazel-bin/$program")" "bin/${program##*/}"
done
echo "$PWD/bin"
