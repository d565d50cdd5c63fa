# Shared by the end-to-end tests: a cluster of real processes in the test's own folder, and a few checks.
set -euo pipefail

root=${TEST_SRCDIR:?run by bazel test}/${TEST_WORKSPACE:?}
work=$(mktemp -d "${TEST_TMPDIR:?}/e2e.XXXXXX")
store=$work/store
bin=$work/bin
mkdir -p "$bin"
for program in client/qst server/qst-coordinator worker/qst-worker; do
  ln -s "$(readlink -f "$root/$program")" "$bin/${program##*/}"
done
export HOME=$work

qst() { "$bin/qst" "$@"; }

fail() {
  echo "FAILED: $*" >&2
  for log in "$store"/logs/*.log; do
    [[ -r "$log" ]] && { echo "--- ${log##*/}" >&2; tail -n 30 "$log" >&2; }
  done
  exit 1
}

cleanup() {
  local status=$?
  qst down --store "$store" >/dev/null 2>&1 || true
  exit $status
}
trap cleanup EXIT

# What workers compute on: cpu, or cuda (all on the first GPU).
device=${QST_TEST_DEVICE:-cpu}

# up WORKERS: starts the cluster on a port of its own and sets QST_COORDINATOR.
up() {
  qst up --store "$store" --listen 127.0.0.1:0 --workers "$1" --threads-per-worker 1 --device "$device" >"$work/up.out" 2>&1 ||
    fail "qst up: $(cat "$work/up.out")"
  QST_COORDINATOR=$(coordinator_address)
  export QST_COORDINATOR
}
coordinator_address() { sed -n 's/.*"address": *"\([^"]*\)".*/\1/p' "$store/cluster.json" | head -1; }
# Process ids of this cluster: those whose arguments name this test's store.
processes() {
  local file
  for file in /proc/[0-9]*/cmdline; do
    # Not `&&`: the loop's status would be that of whichever process comes last.
    if grep -qz -- "$store" "$file" 2>/dev/null && grep -qzE 'qst-(coordinator|worker)' "$file" 2>/dev/null; then
      basename "${file%/cmdline}"
    fi
  done | sort
}
# pid_of coordinator | pid_of w1
pid_of() {
  local pid
  for pid in $(processes); do
    case "$1" in
      coordinator) grep -qz 'qst-coordinator' "/proc/$pid/cmdline" 2>/dev/null && { echo "$pid"; return; } ;;
      *) tr '\0' ' ' <"/proc/$pid/cmdline" 2>/dev/null | grep -qE "qst-worker.*--id[= ]$1( |\$)" && { echo "$pid"; return; } ;;
    esac
  done
  return 1
}

# json_field NAME: the first value of that name in the JSON on standard input.
json_field() { sed -n "s/.*\"$1\": *\"\{0,1\}\([^\",}]*\).*/\1/p" | head -1; }

# submit FILE [ARGS...]: prints the job's id.
submit() { qst submit -f "$@" --json | json_field id; }
state_of() { qst get "$1" --json | grep -o '"state": *"[A-Z_]*"' | head -1 | sed 's/.*"\([A-Z_]*\)"$/\1/;s/^JOB_STATE_//'; }

# wait_for SECONDS COMMAND...: until it succeeds; fails after so many seconds.
wait_for() {
  local deadline=$((SECONDS + $1)); shift
  until "$@"; do
    [[ $SECONDS -lt $deadline ]] || return 1
    sleep 0.1
  done
}
is_state() { [[ "$(state_of "$1")" == "$2" ]]; }

# The losses of a job's training lines, with all their digits.
losses() { grep -o '"loss":[^,}]*' "$store/jobs/$1/results/metrics.jsonl"; }

# expect_fail STATUS PATTERN COMMAND...: exactly this exit status; stderr ends with the one error line, which matches
# (progress, such as "uploaded ...", may come before it).
expect_fail() {
  local want=$1 pattern=$2 status=0; shift 2
  "$@" >"$work/out" 2>"$work/err" || status=$?
  [[ $status -eq $want ]] || fail "'$*' exited with $status, not $want: $(cat "$work/err")"
  grep -qE -- "^qst.*($pattern)" <<<"$(tail -n 1 "$work/err")" || fail "'$*' said '$(cat "$work/err")', which does not match '$pattern'"
  [[ $(grep -c '^qst' "$work/err") -eq 1 ]] || fail "'$*' printed more than one error: $(cat "$work/err")"
}

# A classification data set of $1 lines in which the label follows from the text.
make_sentences() {
  awk -v n="$1" -v seed="${2:-1}" 'BEGIN {
    split("good fine lovely great happy bright", p, " "); split("bad poor awful sad dull broken", q, " ");
    s = seed; for (i = 0; i < n; i++) {
      s = (s * 16807) % 2147483647; a = s % 6 + 1; s = (s * 16807) % 2147483647; pos = s % 2; s = (s * 16807) % 2147483647; b = s % 6 + 1
      printf "{\"text\": \"It was %s and %s, number %d.\", \"label\": \"%s\"}\n", pos ? p[a] : q[a], pos ? p[b] : q[b], s % 100, pos ? "positive" : "negative"
    } }'
}
