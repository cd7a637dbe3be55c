# For the scripts that run many checks (run.sh, golden.sh, sanitize.sh, .ci/run): runs each part, shows one line a part, adds up.
# A part is a command whose output has a line `N passed, N failed`; the last one counts. A part that ends otherwise than with
# exit 0, or without such a line, or with nothing passed and nothing failed, counts as failed.
#
# They stand at the root of the tree and read from the environment, as the Makefile sets them: CC, CFLAGS, OPENMP (compiler and
# flags), BUILD (folder for test programs and what they write), BIN (prefix of the programs), PYTHON (one that has numpy).

export BUILD=${BUILD:-build} BIN=${BIN:-} PYTHON=${PYTHON:-$(dev/setup.sh --python)}
export OMP_WAIT_POLICY=${OMP_WAIT_POLICY:-passive} # or a busy machine spends most of its time in threads that spin
CPUS=$(getconf _NPROCESSORS_ONLN 2>/dev/null || echo 2)
PART_LIMIT=${PART_LIMIT:-900} # seconds after which a part counts as hung
total_passed=0 total_failed=0
mkdir -p "$BUILD/log"

# make with the compiler and flags of this run; not by MAKEFLAGS, whose job server does not reach through a script
build() {
    env -u MAKEFLAGS -u MFLAGS -u MAKELEVEL make -s --no-print-directory -j "$CPUS" \
        ${CC:+CC="$CC"} ${CFLAGS+CFLAGS="$CFLAGS"} ${OPENMP+OPENMP="$OPENMP"} BUILD="$BUILD" BIN="$BIN" "$@"
}

# runs a command under the time limit where the system has timeout(1); functions run without
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
    if [ "$failed" = 0 ]; then printf 'ok    '; else printf 'FAILED'; fi
    printf ' %7d passed %5d failed %4d s  %s%s\n' "$passed" "$failed" "$seconds" "$name" "$note"
    [ "$failed" = 0 ]
}

# A part, its output kept in BUILD/log and shown when it fails.
part() { # NAME COMMAND…
    local name=$1 begin=$SECONDS log status
    log=$BUILD/log/${name//\//-}.log
    shift
    limited "$@" > "$log" 2>&1 < /dev/null
    status=$?
    count_part "$name" $status "$log" $((SECONDS - begin)) && return
    sed 's/^/    /' "$log"
    return 1
}

# The same for a part that is long and prints its own parts: shown as it runs.
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

# The closing line, the same everywhere; the exit code of the script.
total() {
    echo "$total_passed passed, $total_failed failed"
    [ "$total_failed" = 0 ] && [ "$total_passed" != 0 ]
}
