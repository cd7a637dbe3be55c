#!/usr/bin/env python3
"""Can the tests fail? Plants faults in the C files of a copy of the tree and counts those that the tests find.

  dev/test/mutate.py [WORD…]            200 faults (make mutation), or those of files whose path contains a word
  dev/test/mutate.py --scripts [WORD…]  what no test program finds, by the Python tests of the programs, too
  dev/test/mutate.py --after FILE …     what an earlier run, whose output is in the file, found is not planted again
  dev/test/mutate.py --list [WORD…]     prints what would be planted

Each test program is built once with all faults in it, of which the environment switches one on (mutant_switch.h). Without any it
passes, and says which it meets. A fault is found if a program that includes the file ends otherwise than with exit 0; built first as
for `make test`, then, if all of them pass, as for `make sanitize`. What does not compile is drawn again, and what equivalent_mutants.txt
knows to change nothing.
"""
import argparse
import glob
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time

import mutants

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
BUILD = os.path.join(ROOT, os.environ.get("BUILD", "build"), "mutation")
TREE = os.path.join(BUILD, "tree")
EQUIVALENT = os.path.join(ROOT, "dev/test/equivalent_mutants.txt")
SEED = 1
LIMIT = 60  # seconds that a test program should take at most

# How many faults in which file, of the functions whose name matches the expression.
PLAN = {
    "layers": [("train_clip.c", 22, ""), ("clipc/math/plain.h", 9, ""), ("clipc/math/kernels.h", 9, "^(?!transpose)"), ("clipc/math/matmul.h", 8, ""),
               ("clipc/math/loss.h", 4, "")],
    "order and random numbers": [("clipc/data/order.h", 13, ""), ("clipc/base/utils.h", 7, "rand_|hash_")],
    "data": [("clipc/data/dataloader.h", 9, ""), ("clipc/data/dataset.h", 2, ""), ("clipc/data/dataset_list.h", 2, ""),
             ("clipc/data/dataset_csv.h", 2, ""), ("clipc/data/dataset_tar.h", 2, ""),
             ("clipc/data/transform.h", 7, ""), ("clipc/data/webdataset.h", 5, ""),
             ("clipc/data/sample.h", 6, ""), ("clipc/data/csv.h", 4, ""), ("clipc/data/image.h", 4, ""), ("clipc/data/tokenizer.h", 3, ""),
             ("clipc/data/text_clean.h", 3, ""), ("clipc/data/image_cache.h", 3, "")],
    "optimizer and schedules": [("clipc/base/schedules.h", 7, ""), ("train_clip.c", 5, "update|gradient_squares|ema|train_step"),
                                ("clipc/base/strategies.h", 4, ""), ("clipc/model/clip.h", 4, "")],
    "weights and checkpoints": [("clipc/model/weights.h", 3, ""), ("clipc/model/weight_file.h", 4, ""), ("clipc/model/checkpoint.h", 5, ""),
                                ("clipc/model/open_model.h", 5, ""),
                                ("clipc/model/merge.h", 4, ""), ("clipc/base/file_set.h", 2, ""), ("clipc/model/architectures.h", 2, ""),
                                ("clipc/base/safe_file.h", 1, "")],
    "evaluation": [("clipc/train/metrics.h", 6, ""), ("clipc/train/evaluate.h", 6, "")],
    "options": [("clipc/base/options.h", 5, ""), ("clipc/train/setup.h", 3, "")],
    "monitor and logs": [("clipc/train/monitor.h", 4, ""), ("clipc/base/logger.h", 3, ""), ("clipc/base/plot.h", 1, ""), ("clipc/train/report.h", 1, ""),
                         ("clipc/train/trackers.h", 1, "")],
}

# The Python tests of each program that look for what is left, the fastest first.
SCRIPTS = {"train_clip": ["test_run_options", "test_run_input", "test_run_trust", "test_run_caches", "test_run_resume", "test_monitor", "test_run_kill",
                          "test_export", "test_run_set"],
           "lr_find": ["test_lr_find"], "wise_ft": ["test_wise_ft"]}
VERDICTS = ("found", "missed", "equivalent", "does not compile")
COMPILER, LIBRARIES, PROGRAMS = [], [], []
WARNINGS = ["-Werror=incompatible-pointer-types", "-Werror=int-conversion", "-Werror=implicit-function-declaration"]
SANITIZE = ["-O1", "-g1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]


# ---------------------------------------------------------------- running

def run(command, seconds, **more):
    """-> exit code; at most so many seconds of a processor, and ten times as many by the clock. What it started ends with it."""
    def limits():
        for what, most in ((resource.RLIMIT_CORE, 0), (resource.RLIMIT_FSIZE, 4 << 30), (resource.RLIMIT_CPU, seconds)):
            resource.setrlimit(what, (most, most))
    env = dict(os.environ, OMP_WAIT_POLICY="passive", OMP_NUM_THREADS="2", STOP="1", TMPDIR=os.path.join(BUILD, "tmp"), **more)
    process = subprocess.Popen(command, cwd=TREE, env=env, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                               start_new_session=True, preexec_fn=limits)
    try:
        return process.wait(10 * seconds)
    except subprocess.TimeoutExpired:
        return "time"
    finally:
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        process.wait()


class Program:
    """One that is built with the faults: how, what it includes, how long it runs, which faults it meets."""

    def __init__(self, name, source, flags, arguments=()):
        self.name, self.source, self.flags, self.arguments = name, source, flags, arguments
        self.path = os.path.join(BUILD, name)
        self.seconds = self.reached = None

    def includes(self):
        text = subprocess.check_output([*COMPILER, "-MM", self.source], cwd=TREE, text=True)
        return {os.path.normpath(word) for word in text.replace("\\\n", " ").split()[1:]}

    def build(self):
        """-> what the compiler says, "" if nothing"""
        command = [*COMPILER, *self.flags, *WARNINGS, "-include", "dev/test/mutant_switch.h", "-o", self.path, self.source, "dev/test/mutant_switch.c", *LIBRARIES]
        return subprocess.run(command, cwd=TREE, stderr=subprocess.PIPE, text=True, check=False).stderr

    def passes(self, **more):
        limit = 20 + 10 * int(self.seconds or LIMIT)
        return run([self.path, *self.arguments], limit, **more) == 0

    def measure(self):
        """Runs without a fault; it must pass."""
        self.reached, self.seconds = met(lambda path: self.passes(MUTANTS_REACHED=path), self.name)


def met(passes, name):
    """-> the numbers of the faults that a run meets, its seconds"""
    map_path = os.path.join(BUILD, "reached")
    with open(map_path, "wb") as f:
        f.truncate(1 << 16)
    begin = time.time()
    if not passes(map_path):
        sys.exit(f"mutate.py: {name} does not pass without a fault")
    with open(map_path, "rb") as f:
        return {number for number, byte in enumerate(f.read()) if byte}, time.time() - begin


def prepare():
    """The copy of the tree, and the programs in it."""
    shutil.rmtree(BUILD, ignore_errors=True)
    for folder in ("tmp", "sanitized"):
        os.makedirs(os.path.join(BUILD, folder))
    for name in filter(None, subprocess.check_output(["git", "ls-files", "-co", "--exclude-standard", "-z"], cwd=ROOT, text=True).split("\0")):
        if os.path.exists(os.path.join(ROOT, name)):
            os.makedirs(os.path.dirname(os.path.join(TREE, name)), exist_ok=True)
            shutil.copy2(os.path.join(ROOT, name), os.path.join(TREE, name))
    compiler, libraries = subprocess.check_output(["make", "-s", "--no-print-directory", "flags"], cwd=TREE, text=True).splitlines()[:2]
    COMPILER.extend(word for word in compiler.split() if word not in ("-O3", "-Wall", "-Wextra"))
    LIBRARIES.extend(libraries.split())
    for source in sorted(glob.glob("dev/test/test_*.c", root_dir=TREE)):
        PROGRAMS.append(Program(os.path.basename(source)[:-2], source, ["-O1"]))
    PROGRAMS.append(Program("test_clip", "test_clip.c", ["-O1"], make_reference()))
    for program in PROGRAMS:
        program.files = program.includes()


def make_reference():
    """-> the model and the values that test_clip compares with, as run.sh makes them"""
    with open(os.path.join(ROOT, "dev/test/run.sh"), encoding="utf-8") as f:
        config = re.search(r"gelu\) echo '(.*?)'", f.read(), re.S).group(1)
    name = os.path.join(BUILD, "reference")
    with open(name + ".json", "w", encoding="utf-8") as f:
        f.write(config)
    subprocess.check_call([sys.executable, "dev/reference.py", "--config", name + ".json", "--weights", name + ".npz", "-o", name + ".debug.bin"],
                          cwd=TREE, stdout=subprocess.DEVNULL)
    subprocess.check_call([sys.executable, "dev/convert.py", name + ".npz", "--model", name + ".json", "-o", name + ".bin"], cwd=TREE, stdout=subprocess.DEVNULL)
    return [name + ".bin", name + ".debug.bin"]


# ---------------------------------------------------------------- the faults

def read(path):
    with open(path, encoding="utf-8") as f:
        return f.read()


def write(path, text):
    with open(path, "w", encoding="utf-8") as f:
        f.write(text)


def active_lines(path, programs):
    """The numbers of the lines that the preprocessor leaves, in any of the programs; others are for other machines."""
    found = set()
    for program in programs:
        here, number = False, 0
        text = subprocess.check_output([*COMPILER, "-E", program.source], cwd=TREE, text=True, stderr=subprocess.DEVNULL)
        for line in text.splitlines():
            marker = re.match(r'# (\d+) "(.*?)"', line)
            if marker:
                number, here = int(marker.group(1)), os.path.normpath(marker.group(2)) == path
            else:
                if here and line.strip():
                    found.add(number)
                number += 1
    return found


class Faults:
    """The candidates of all files, numbered from 1: twice as many as are wanted, since some do not compile."""

    def __init__(self, words, known):
        self.of_row, self.texts, self.dropped, self.number = {}, {}, set(), {}
        taken = set()
        for row in plan(words):
            group, path, count, functions = row
            self.texts[path] = read(os.path.join(TREE, path))
            active = active_lines(path, [p for p in PROGRAMS if path in p.files][:3])
            drawn = [m for m in mutants.draw(mutants.Source(path, self.texts[path]).mutants(SEED, functions)) if m.line in active and m not in taken]
            wanted = 2 * count + sum(m.name in known for m in drawn[:4 * count])
            self.of_row[row] = drawn[:wanted]
            taken.update(drawn[:wanted])
        for number, mutant in enumerate((m for drawn in self.of_row.values() for m in drawn), 1):
            self.number[mutant] = number
        self.plant()

    def plant(self):
        for path, text in self.texts.items():
            numbered = [(n, m) for m, n in self.number.items() if m.path == path and n not in self.dropped]
            write(os.path.join(TREE, path), mutants.switched(text, numbered))

    def drop(self, says):
        """Takes out those that a compiler's errors name; -> did it find any?"""
        before = len(self.dropped)
        for path, line, column in re.findall(r"^(\S+?):(\d+):(\d+): (?:error|note: in expansion of macro)", says, re.M):
            path = os.path.normpath(path)
            if path in self.texts:
                text = read(os.path.join(TREE, path)).splitlines()[int(line) - 1]
                numbers = re.findall(r"MUTANT\((\d+)\)", text.encode()[:int(column) + 12].decode(errors="replace")) or re.findall(r"MUTANT\((\d+)\)", text)
                self.dropped.update(int(n) for n in numbers[-1:])
        return len(self.dropped) > before

    def build(self, program):
        for _ in range(60):
            says = program.build()
            if not re.search(r"\berror: |undefined reference", says):
                return
            if not self.drop(says):
                sys.exit(f"mutate.py: {program.name} does not compile: {says[:1000]}")
            self.plant()
        sys.exit(f"mutate.py: {program.name}: too many faults that do not compile")


# ---------------------------------------------------------------- all of them

def equivalent():
    """{name of a mutant: why it is not a fault}; a block of lines: the file, "- " the line before, "+ " after, then the reason."""
    known = {}
    for block in re.split(r"\n\s*\n", read(EQUIVALENT)):
        lines = [line for line in block.strip().splitlines() if not line.startswith("#")]
        if len(lines) > 3:
            known[f"{lines[0]}: {lines[1][2:].strip()} => {lines[2][2:].strip()}"] = " ".join(line.strip() for line in lines[3:])
    return known


def plan(words):
    for group, files in PLAN.items():
        for path, count, functions in files:
            if not words or any(word in path for word in words):
                yield group, path, count, functions


def shown(mutant):
    return f"{mutant.path}:{mutant.line} {mutant.function}: {mutant.before}\n{'':10}=> {mutant.after}"


class Finder:
    """Runs the tests with one fault after the other."""

    def __init__(self, faults):
        self.faults, self.measured = faults, {}

    def built(self, name, source, flags, arguments=()):
        """Builds a program when it is first asked for, and measures it."""
        if name not in self.measured:
            program = Program(name, source, flags, arguments)
            self.faults.build(program)
            program.measure()
            self.measured[name] = program
            print(f"-- {name}: {program.seconds:.0f} s, meets {len(program.reached)} of the faults", flush=True)
        return self.measured[name]

    def programs(self, mutant):
        """Those that include the file: the fast ones of those that are built, then those that include the fewest files."""
        return sorted((p for p in PROGRAMS if mutant.path in p.files),
                      key=lambda p: self.measured[p.name].seconds if p.name in self.measured else 1000 + len(p.files))

    def by_programs(self, mutant, sanitize):
        """-> the test program that finds it, or None"""
        number = self.faults.number[mutant]
        for p in self.programs(mutant):
            if number in self.faults.dropped:
                return None
            if sanitize and number not in self.measured[p.name].reached:
                continue
            # of the same name: tests look for it in messages
            name, flags = ("sanitized/" + p.name, SANITIZE) if sanitize else (p.name, p.flags)
            program = self.built(name, p.source, flags, p.arguments)
            if number in program.reached and not program.passes(MUTANT=str(number)):
                return name
        return None

    def by_scripts(self, mutant):
        """-> the Python test that finds it, or None"""
        number = self.faults.number[mutant]
        for program, tests in SCRIPTS.items():
            if program not in self.measured:
                self.measured[program] = Program(program, program + ".c", ["-O1", "-DNDEBUG"])
                self.faults.build(self.measured[program])
            for test in tests:
                command = [sys.executable, f"dev/test/{test}.py"]
                if test not in self.measured:
                    self.measured[test], seconds = met(lambda path: run(command, 600, BIN=BUILD + "/", MUTANTS_REACHED=path) == 0, test)
                    print(f"-- {test}: {seconds:.0f} s, meets {len(self.measured[test])} of the faults", flush=True)
                if number in self.measured[test] and run(command, 600, BIN=BUILD + "/", MUTANT=str(number)) != 0:
                    return test
        return None


def tell(verdict, mutant, by):
    print(f"{verdict}: {mutant.kind}, {mutant.path}:{mutant.line} {mutant.function}: {by}\n    {mutant.before}\n    => {mutant.after}", flush=True)


def found_before(path):
    """{name of a mutant: by what} of what an earlier run printed as found"""
    text = read(path) if path else ""
    return {f"{m[1]}: {m[3]} => {m[4]}": m[2] for m in re.finditer(r"^found: \w+, (\S+?):\d+ \S+: (.*)\n    (.*)\n    => (.*)$", text, re.M)}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scripts", action="store_true")
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--after")
    parser.add_argument("words", nargs="*")
    o = parser.parse_args()
    before = found_before(o.after)
    prepare()
    known, totals, missed = equivalent(), {}, []
    faults = Faults(o.words, known)
    finder = Finder(faults)
    for (group, _, count, _), drawn in faults.of_row.items():
        total = totals.setdefault(group, dict.fromkeys(VERDICTS, 0))
        done = 0
        for mutant in drawn:
            if done == count:
                break
            by = known.get(mutant.name) or before.get(mutant.name) or (None if o.list else finder.by_programs(mutant, False))
            verdict = "equivalent" if mutant.name in known else "found" if by else "missed"
            if faults.number[mutant] in faults.dropped and verdict != "found":
                verdict = "does not compile"
            total[verdict] += 1
            done += verdict in ("found", "missed")
            tell(verdict, mutant, by or "")
            if verdict == "missed" and not o.list:
                missed.append((total, mutant))
    ways = [lambda m: finder.by_programs(m, True)] + [finder.by_scripts] * o.scripts
    for way in ways:
        print(f"== {len(missed)} missed; again, more thoroughly", flush=True)
        for total, mutant in list(missed):
            by = way(mutant)
            tell("found" if by else "missed", mutant, by or "")
            if by:
                missed.remove((total, mutant))
                total["found"] += 1
                total["missed"] -= 1
    report(totals)


def report(totals):
    print("\n| files | faults | found | missed | equivalent | do not compile |\n|---|---|---|---|---|---|")
    totals["all"] = {verdict: sum(t[verdict] for t in totals.values()) for verdict in VERDICTS}
    for group, t in totals.items():
        print(f"| {group} | {t['found'] + t['missed']} | {t['found']} | {t['missed']} | {t['equivalent']} | {t['does not compile']} |")
    print(f"{t['found']} passed, {t['missed']} failed")
    sys.exit(t["found"] < 0.95 * (t["found"] + t["missed"]))


if __name__ == "__main__":
    os.chdir(ROOT)
    main()
