# shellcheck shell=bash
# What run.sh, golden.sh, gpu.sh, parity.sh and .ci/run share: a part is a command whose output has a line `N passed, N failed` (the
# last one counts). Each part is run, shown as one line, and added up. A part that ends otherwise than with exit 0, without such
# a line, or with nothing passed and nothing failed, counts as failed.
#
# The scripts run at the root of the tree and read from the environment, as the Makefile sets them: CC, CFLAGS, OPENMP, DEBUG
# (compiler and flags), BUILD (folder for test programs and what they write), BIN (prefix of the programs), PYTHON (one that has
# numpy), T (run only the parts whose name contains this text; only what they need is built).

export BUILD=${BUILD:-build} BIN=${BIN:-} PYTHON=${PYTHON:-$(dev/setup.sh --python)}
export OMP_WAIT_POLICY=${OMP_WAIT_POLICY:-passive} # or a busy machine spends most of its time in threads that spin
CPUS=$(getconf _NPROCESSORS_ONLN 2>/dev/null || echo 2)
PART_LIMIT=${PART_LIMIT:-900} # seconds after which a part counts as hung
T=${T:-}
total_passed=0 total_failed=0
times=  # of the parts, one line each: seconds, name
done_once=
mkdir -p "$BUILD/log"
XDG_CACHE_HOME=$(cd "$BUILD" && pwd)/cache # which kernels are the fastest (clipc/math/fastest.h): timed once for all runs
export XDG_CACHE_HOME

# make with the compiler and flags of this run; not by MAKEFLAGS, whose job server does not reach through a script
build() {
    env -u MAKEFLAGS -u MFLAGS -u MAKELEVEL make -s --no-print-directory -j "$CPUS" \
        ${CC:+CC="$CC"} ${CFLAGS+CFLAGS="$CFLAGS"} ${OPENMP+OPENMP="$OPENMP"} ${DEBUG:+DEBUG="$DEBUG"} BUILD="$BUILD" BIN="$BIN" "$@"
}

# Runs a command unless it has succeeded in this run already: the files that several parts need, any of which T may select.
once() { # COMMAND…
    case $done_once in *"|$*|"*) return 0 ;; esac
    "$@" && done_once="$done_once|$*|"
}

with_plain_loops() { CLIPC_ISA=plain "$@"; } # COMMAND…: each layer as the loop that its equation is, without vector instructions

# What a part needs built. Without T the part "build" has built everything, as far as it goes.
built() { # TARGET…
    [ -z "$T" ] || once build "$@"
}

# Runs a command under the time limit where the system has timeout(1); functions run without.
limited() {
    if [ "$(type -t "$1")" = file ] && command -v timeout >/dev/null; then timeout --foreground -k 10 "$PART_LIMIT" "$@"; else "$@"; fi
}

count_part() { # NAME STATUS LOG SECONDS: adds the last total line in LOG, prints the part's line
    local name=$1 status=$2 log=$3 seconds=$4 line passed=0 failed=0 note=
    line=$(grep -aE '^[0-9]+ passed, [0-9]+ failed$' "$log" | tail -n 1)
    if [ -n "$line" ]; then passed=${line%% *} failed=${line##*, } failed=${failed%% *}; fi
    if [ "$status" != 0 ] && [ "$failed" = 0 ]; then note=": exit code $status"; fi
    if [ -z "$line" ]; then note="$note: no result"; elif [ $((passed + failed)) = 0 ]; then note="$note: no check ran"; fi
    if [ -n "$note" ] && [ "$failed" = 0 ]; then failed=1; fi
    total_passed=$((total_passed + passed)) total_failed=$((total_failed + failed))
    times="$times$seconds $name"$'\n'
    if [ "$failed" = 0 ]; then printf 'ok    '; else printf 'FAILED'; fi
    printf ' %7d passed %5d failed %4d s  %s%s\n' "$passed" "$failed" "$seconds" "$name" "$note"
    [ "$failed" = 0 ]
}

# A part, its output kept in BUILD/log and shown when it fails. Those that T leaves out do not fail.
part() { # NAME COMMAND…
    case $1 in *"$T"*) ;; *) return 0 ;; esac
    local name=$1 begin=$SECONDS log status
    log=$BUILD/log/${name//\//-}.log
    shift
    limited "$@" > "$log" 2>&1 < /dev/null
    status=$?
    count_part "$name" $status "$log" $((SECONDS - begin)) && return
    sed 's/^/    /' "$log"
    return 1
}

# The same for a part that is long and prints its own parts: shown as it runs, whatever T says.
long_part() { # NAME COMMAND…
    local name=$1 begin=$SECONDS log status
    log=$BUILD/log/${name//\//-}.log
    shift
    echo "-- $name"
    "$@" 2>&1 < /dev/null | tee "$log"
    status=${PIPESTATUS[0]}
    count_part "$name" "$status" "$log" $((SECONDS - begin))
}

# For a part written as a function: "command that must succeed", counted.
check() { # WHAT COMMAND…
    local what=$1
    shift
    if "$@"; then checks_passed=$((checks_passed + 1)); else checks_failed=$((checks_failed + 1)); echo "FAILED: $what"; fi
}
begin_checks() { checks_passed=0 checks_failed=0; }
end_checks() { echo "$checks_passed passed, $checks_failed failed"; [ "$checks_failed" = 0 ] && [ "$checks_passed" != 0 ]; }

slowest() {
    [ -z "$T" ] || return 0
    echo "the ten slowest parts:"
    printf '%s' "$times" | sort -k 1,1nr | head -n 10 | while read -r seconds name; do printf '%6d s  %s\n' "$seconds" "$name"; done
}

# The closing line, the same everywhere; the exit code of the script.
total() {
    if [ -n "$T" ] && [ -z "$times" ]; then echo "T=$T: no part has a name that contains this text" >&2; fi
    echo "$total_passed passed, $total_failed failed"
    [ "$total_failed" = 0 ] && [ "$total_passed" != 0 ]
}
