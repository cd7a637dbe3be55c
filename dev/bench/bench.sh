#!/usr/bin/env bash
# Measures this machine (make bench) and prints Markdown for doc/performance.md: the stages of a step compared
# with the machine's limits, whole steps, encoding, start-up, loading. PARTS='stages steps encode start
# loader' picks some of them; each is measured ROUNDS=5 times, and the median is reported.
cd "$(dirname "${BASH_SOURCE[0]}")/../.." || exit 1
. dev/test/parts.sh
unset OMP_WAIT_POLICY # set for the tests; programs are measured with the default
PARTS=${PARTS:-stages steps encode start loader} ROUNDS=${ROUNDS:-5}
folder=$BUILD/bench
mkdir -p "$folder"
build train_clip "$BUILD/bench_stages" "$BUILD/bench_step" "$BUILD/bench_loader" || exit 1

wanted() { # PART HEADLINE: prints the headline if the part is among PARTS
    case " $PARTS " in *" $1 "*) printf '\n### %s\n\n' "$2" ;; *) return 1 ;; esac
}
median() { sort -n | awk '{ x[NR] = $1 } END { print (x[int((NR + 1) / 2)] + x[int(NR / 2) + 1]) / 2 }'; }
compute() { awk "BEGIN { printf $1 }"; }

# Runs COUNT steps of bench_step ROUNDS times; sets $seconds (per step, median) and $peak (GB of resident
# memory).
measure() { # COUNT ARGUMENTS…
    local count=$1 round time rest in out pid times=
    shift
    coproc STEP { exec "$BUILD/bench_step" "$@"; }
    in=${STEP[1]} out=${STEP[0]} pid=$STEP_PID
    for ((round = 0; round <= ROUNDS; round++)); do # round 0 is a warm-up that touches the memory
        echo "$count" >&"$in"
        read -r time rest <&"$out" || exit 1
        [ $round = 0 ] || times+=$(compute "\"%.6f\", $time / $count")$'\n'
    done
    seconds=$(printf '%s' "$times" | median)
    peak=$(awk '/VmHWM/ { printf "%.2f", $2 * 1024 / 1e9 }' "/proc/$pid/status")
    eval "exec $in>&-"
    wait "$pid"
}

precisions=fp32 # and bf16 if the processor has instructions for it
if grep -qE 'avx512_bf16|amx_bf16' /proc/cpuinfo 2>/dev/null; then precisions+=' amp_bf16'; fi
processor=$(awk -F': ' '/^model name/ { print $2; exit }' /proc/cpuinfo 2>/dev/null)
echo "${processor:-$(uname -m)}, $CPUS cores; $(date +%Y-%m-%d); make bench"

if wanted stages 'Stages of a step'; then "$BUILD/bench_stages"; fi

if wanted steps 'Whole steps'; then
    echo '| training step | precision | 16 tokens a caption | memory | 77 tokens | memory |'
    echo '|---|---|---|---|---|---|'
    for model in ViT-S-32:32 ViT-B-32:32 ViT-B-16:16; do
        for precision in $precisions; do
            cells=
            for tokens in 16 77; do
                measure 1 train "${model%:*}" "${model#*:}:$tokens" "$precision"
                cells+=$(compute "\" %.3f s, %.1f pairs/s | $peak GB |\", $seconds, ${model#*:} / $seconds")
            done
            echo "| ${model%:*}, ${model#*:} pairs | $precision |$cells"
        done
    done
fi

if wanted encode 'Encoding'; then
    echo '| ViT-B/32 to features | one image | 32 images | 32 captions of 16 tokens |'
    echo '|---|---|---|---|'
    for precision in $precisions; do
        cells=
        for what in image:1:20 image:32:3 text:32:3; do # task, pairs, steps per round
            IFS=: read -r task pairs count <<< "$what"
            measure "$count" "$task" ViT-B-32 "$pairs:16" "$precision"
            cells+=$(compute "\" %.1f ms, %.1f/s |\", 1000 * $seconds, $pairs / $seconds")
        done
        echo "| $precision |$cells"
    done
fi

if wanted start 'Start-up'; then
    weights=$folder/ViT-B-32.bin times=
    [ -e "$weights" ] || "$PYTHON" dev/convert.py --model ViT-B-32 --random 0 -o "$weights" > /dev/null || exit 1
    for ((round = 0; round <= ROUNDS; round++)); do # round 0 is a warm-up that reads the weights into the page cache
        rm -rf "$folder/logs"
        begin=$(date +%s%N)
        coproc RUN { exec "./${BIN}train_clip" --pretrained "$weights" --train-data synthetic --batch-size 32 --logs "$folder/logs"; }
        out=${RUN[0]} pid=$RUN_PID
        until [[ $line == "run folder"* ]]; do read -r line <&"$out" || exit 1; done
        [ $round = 0 ] || times+=$(compute "\"%.4f\", ($(date +%s%N) - $begin) / 1e9")$'\n'
        line=
        kill -KILL "$pid"
        wait "$pid" 2>/dev/null
    done
    rm -rf "$folder/logs"
    echo "From the command to the first step of ViT-B/32 with 32 pairs, the weights in the page cache: $(printf '%s' "$times" | median | cut -c 1-4) s"
fi

if wanted loader 'Loading'; then "$BUILD/bench_loader"; fi
