#!/usr/bin/env python3
"""`make fuzz`: builds the harnesses and their seeds, runs all of them side by side for a while, and shows a
line for each: inputs read, edges of the code reached, new inputs that reach more, faults. Ends with
`N passed, N failed`.

From the environment: TIME (seconds for all together, 60), T (only harnesses whose name contains it),
COVERAGE=1 (no fuzzing: which lines of the readers the corpus reaches), BUILD, CC, JOBS.
"""
import concurrent.futures
import os
import re
import shutil
import subprocess
import sys
import time

import coverage

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
BUILD = os.path.join(os.environ.get("BUILD") or "build", "fuzz")
PROGRAMS = os.path.join(BUILD, "bin")
TIME = float(os.environ.get("TIME") or 60)
JOBS = int(os.environ.get("JOBS") or os.cpu_count() or 1)
SANITIZE = "-O1 -g -fno-omit-frame-pointer -fno-sanitize-recover=all -fsanitize=address,undefined"
LARGEST = {"weights": 20000, "tar": 24000, "metrics": 6000, "options": 6000, "image": 6000, "merges": 2000, "vocabulary": 20000}  # bytes; else 1500
SHARES = {"convert": 3, "metrics": 2}  # of the time, where 1 is the usual share: these are slow
MOST_CRASHES = 10
ENVIRONMENT = {**os.environ, "LC_ALL": "C.UTF-8", "OMP_NUM_THREADS": "1", "TZ": "UTC",
               "ASAN_OPTIONS": "allocator_may_return_null=1:detect_stack_use_after_return=0:handle_abort=2",
               "UBSAN_OPTIONS": "print_stacktrace=1"}


def links(compiler, flags):
    """Can the compiler build with these flags?"""
    program = "#include <stddef.h>\n#include <stdint.h>\nint LLVMFuzzerTestOneInput(const uint8_t *d, size_t n) { return d && n && 0; }\n"
    if "fuzzer" not in flags:
        program += "int main(void) { return 0; }\n"
    return shutil.which(compiler) is not None and subprocess.run(
        [compiler, *flags.split(), "-x", "c", "-", "-o", os.path.join(BUILD, "probe")], input=program, text=True,
        stderr=subprocess.DEVNULL, check=False).returncode == 0


def engine():
    """-> compiler, flags, and the engine's source or nothing: libFuzzer, else our own loop with sanitizers, else without."""
    for compiler in dict.fromkeys((os.environ.get("CC") or "clang", "clang")):
        if "clang" in compiler and links(compiler, SANITIZE + " -fsanitize=fuzzer"):
            return compiler, SANITIZE + " -fsanitize=fuzzer", ""
    compilers = [c for c in dict.fromkeys((os.environ.get("CC") or "cc", "gcc", "clang")) if shutil.which(c)]
    return next(((c, SANITIZE, "dev/fuzz/loop.c") for c in compilers if links(c, SANITIZE)), (compilers[0], "-O1 -g", "dev/fuzz/loop.c"))


def make(*arguments):
    clean = {k: v for k, v in os.environ.items() if k not in ("MAKEFLAGS", "MFLAGS", "MAKELEVEL")}
    subprocess.run(["make", "-s", "--no-print-directory", f"-j{JOBS}", *arguments], check=True, env=clean)


def harnesses():
    """Names of those that T selects."""
    names = sorted(re.sub(r"^fuzz_|\.c$", "", f) for f in os.listdir("dev/fuzz") if re.match(r"fuzz_\w+\.c$", f)) + ["convert"]
    return [n for n in names if (os.environ.get("T") or "") in n]


def build(names, compiler, flags, loop, folder):
    """Programs in FOLDER, seeds in BUILD/seeds."""
    targets = [os.path.join(folder, n) for n in names if n != "convert"]
    make(*targets, os.path.join(folder, "seeds"), f"FUZZ_BUILD={folder}", f"FUZZ_CC={compiler}", f"FUZZ_FLAGS={flags}",
          f"FUZZ_LOOP={loop}", f"CC={compiler}", f"BUILD={os.path.dirname(BUILD)}")
    seeds = os.path.join(BUILD, "seeds")
    shutil.rmtree(seeds, ignore_errors=True)
    subprocess.run([os.path.join(folder, "seeds"), seeds], check=True)
    subprocess.run([sys.executable, "dev/fuzz/seeds.py", seeds], check=True)


def corpus(name):
    """The folders of a harness: what earlier runs have found (it grows), seeds, and kept inputs that crashed once."""
    found = os.path.join(BUILD, "corpus", name)
    os.makedirs(found, exist_ok=True)
    return [f for f in (found, os.path.join(BUILD, "seeds", name), os.path.join("dev/fuzz/corpus", name)) if os.path.isdir(f)]


def command(name, seconds, seed):
    options = [f"-max_total_time={max(1, round(seconds))}", f"-seed={seed}", f"-artifact_prefix={BUILD}/crashes/{name}-"]
    if name == "convert":
        return [sys.executable, "dev/fuzz/fuzz_convert.py", *options]
    dictionary = os.path.join(BUILD, "seeds", name + ".dict")
    if os.path.exists(dictionary):
        options.append(f"-dict={dictionary}")
    return [os.path.join(PROGRAMS, name), *options, f"-max_len={LARGEST.get(name, 1500)}", "-timeout=60", "-rss_limit_mb=1500",
            "-malloc_limit_mb=300", "-print_final_stats=1", "-use_value_profile=0", "-reload=0", *corpus(name)]


def campaign(name, seconds):
    """Runs a harness until its time is up; after a crash it starts again. -> its numbers, and what its last crash printed."""
    numbers = {"executions": 0, "edges": 0, "new": 0, "crashes": 0}
    said, end, seed = "", time.monotonic() + seconds, int(time.time()) % 1000000
    while time.monotonic() < end - 0.5 and numbers["crashes"] < MOST_CRASHES or not numbers["executions"]:
        seed += 1
        done = subprocess.run(command(name, end - time.monotonic(), seed), stderr=subprocess.PIPE, stdout=subprocess.DEVNULL,
                              text=True, errors="replace", env=ENVIRONMENT, check=False)
        figures = {k: [int(x) for x in re.findall(pattern, done.stderr)] for k, pattern in
                   (("executions", r"number_of_executed_units: *(\d+)"), ("edges", r" cov: (\d+)"), ("new", r"new_units_added: *(\d+)"),
                    ("read", r"^#(\d+)\s"))}
        figures["executions"] = figures["executions"] or figures["read"]
        for key in ("executions", "new"):
            numbers[key] += (figures[key] or [0])[-1]
        numbers["edges"] = max([numbers["edges"], *figures["edges"]])
        if done.returncode:
            numbers["crashes"] += max(1, done.stderr.count("FAULT: ") if name == "convert" else 1)
            said = done.stderr
            if not numbers["executions"]:
                break
    return name, numbers, said


def replay(name):
    """How to read the kept inputs of a harness again."""
    program = "dev/fuzz/fuzz_convert.py" if name == "convert" else f"{PROGRAMS}/{name}"
    files = "crashes/convert-crash-*/[!c]*" if name == "convert" else f"crashes/{name}-*"
    return f"{program} {BUILD}/{files}"


def fuzz(names):
    shares = sum(SHARES.get(n, 1) for n in names)
    seconds = {n: TIME * JOBS * SHARES.get(n, 1) / shares for n in names}
    jobs = min(JOBS, len(names))
    os.makedirs(os.path.join(BUILD, "crashes"), exist_ok=True)
    failed, total = 0, 0
    print(f"{'':14}{'inputs':>12}{'edges':>8}{'new':>7}{'faults':>8}{'seconds':>9}", flush=True)
    with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
        for name, numbers, said in pool.map(lambda n: campaign(n, min(TIME, seconds[n])), names):
            total += numbers["executions"]
            failed += numbers["crashes"] > 0 or not numbers["executions"]
            print(f"{name:14}{numbers['executions']:>12,}{numbers['edges'] or '':>8}{numbers['new'] or '':>7}{numbers['crashes']:>8}"
                  f"{min(TIME, seconds[name]):>9.0f}", flush=True)
            if said:
                print("\n".join("    " + line for line in said.splitlines()[-60:]))
                print(f"    the inputs are in {BUILD}/crashes; read them again: {replay(name)}")
    print(f"{total:,} inputs; the corpus is in {BUILD}/corpus")
    print(f"{len(names) - failed} passed, {failed} failed")
    return 1 if failed else 0


def main():
    os.chdir(ROOT)
    os.makedirs(BUILD, exist_ok=True)
    names = harnesses()
    if not names:
        print(f"T={os.environ.get('T')}: no harness has a name that contains this text", file=sys.stderr)
        return 2
    if os.environ.get("COVERAGE"):
        folder = BUILD + "/coverage"
        build(names, "clang", coverage.FLAGS, "dev/fuzz/loop.c", folder)
        return coverage.report([n for n in names if n != "convert"], folder, corpus, ENVIRONMENT)
    compiler, flags, loop = engine()
    print(f"engine: {'our own loop, ' + compiler if loop else 'libFuzzer, ' + compiler}", flush=True)
    build(names, compiler, flags, loop, PROGRAMS)
    return fuzz(names)


if __name__ == "__main__":
    sys.exit(main())
