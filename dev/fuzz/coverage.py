"""Which lines of the readers the corpus of `make fuzz` reaches (make fuzz COVERAGE=1)."""
import collections
import glob
import os
import re
import subprocess

FLAGS = "-O0 -g -fprofile-instr-generate -fcoverage-mapping"
ENOUGH = 90  # percent of the lines of each reader

# The headers that read what comes from outside, and in each the functions that do not belong to its reader. What is left out elsewhere
# is code that only a failing system call or too little memory reaches: die(EXIT_RUNTIME, …) and what asks errno.
READERS = {
    "clipc/base/file_set.h": r"file_set_\w+|manifest_line_holds",  # writing; files beside the manifest
    "clipc/base/options.h": r"options_help|option_help|print_wrapped|share_of",
    "clipc/base/plot.h": r"plot_mark|plot_note|svg_marks|svg_dot",  # used by lr_find and wise_ft alone
    "clipc/base/safe_file.h": r"safe_file_\w+|folder_sync",  # writing
    "clipc/data/account.h": r"account_count",
    "clipc/data/bpe.h": "",
    "clipc/data/caption_files.h": "",
    "clipc/data/charsmap.h": "",
    "clipc/data/csv.h": "",
    "clipc/data/dataset.h": r"is_shard_folder|dataset_add_sources|class_folder\w*|dataset_add_(class_folders|image_file)|dataset_open_class_folders|dataset_set_factors|dataset_find_type|data_source_check|dataset_note_keys",  # folders, and what the command line names
    "clipc/data/dataset_csv.h": "",
    "clipc/data/dataset_json.h": "",
    "clipc/data/dataset_list.h": "",
    "clipc/data/dataset_tar.h": r"shard_is_missing",  # what a command says
    "clipc/data/image.h": "",
    "clipc/base/cache_file.h": r"hash128_file|pwrite_all|cache_(un)?lock|cache_open",  # of other files; writing, waiting
    "clipc/base/program.h": r"program_\w+|output|write_all",
    "clipc/base/text.h": "",
    "clipc/data/image_forms.h": "",
    "clipc/data/image_pixels.h": "",
    "clipc/data/image_tiff.h": "",
    "clipc/data/image_cache.h": r"image_cache_(add|decode|fill)|segment_\w+|image_keys?",  # writing, and what is to be written
    "clipc/data/labels.h": "",
    "clipc/data/normalizer.h": "",
    "clipc/data/pipeline.h": "",
    "clipc/data/prompts.h": "",
    "clipc/data/sample.h": r"sample_(read_file|open_error|csv_image|folder_caption)|csv_image_path|dataset_synthetic_pixels|sample_eval_pixels|"
                           r"sample_transform|sample_decode|sample_read_image",  # files beside a table or in folders, and pixels
    "clipc/data/text_clean.h": "",
    "clipc/data/tokenizer.h": "",
    "clipc/data/transform.h": "",
    "clipc/data/unicode.h": "",
    "clipc/data/unigram.h": "",
    "clipc/data/vocabulary.h": "vocabulary_schema",  # printing
    "clipc/data/webdataset.h": r"spill_open|tar_close|shard_download|shard_list",  # commands, and names in folders
    "clipc/model/architectures.h": r"schema_\w+|model_find|model_nearest|model_name_is",  # what is printed; names of models
    # writing, choosing among several, copies in memory
    "clipc/model/checkpoint.h": r"checkpoint_(write\w*|bytes|link|check_finite|delete|is_second|list|newer|load\w*)|snapshot_\w+|arena_is_zero|state_header",
    "clipc/model/weight_file.h": r"weight_file_write",
    "clipc/model/weights.h": r"tensor_pointers_\w+|tensor_find",
    "clipc/train/feature_cache.h": r"feature_cache_(gather|save|append|write|find|encode)|feature_record_write|feature_key|tower_hash",  # writing, encoding
    "clipc/train/settings.h": "",
    "dev/test/npz.h": "",
}


def functions(path):
    """-> (name, first line, last line) of each. In formatted code a function begins in the first column and ends with a brace there."""
    name = None
    with open(path, encoding="utf-8") as f:
        for number, line in enumerate(f, 1):
            if line.rstrip() == "}" and name:
                yield name, begin, number
                name = None
            elif re.match(r"\w", line):
                called = re.search(r"(\w+)\(", re.sub(r"PRINTF_LIKE\([^)]*\)|__\w+__\(.*?\)", "", line))
                name, begin = called and called.group(1), number


def of_the_machine(path):
    """Lines of statements that only a failing system call or too little memory reaches."""
    lines, inside = set(), False
    with open(path, encoding="utf-8") as f:
        for number, line in enumerate(f, 1):
            inside = inside or re.search(r"die\(EXIT_RUNTIME|strerror\(errno\)|IMAGE_NO_MEMORY", line) is not None
            if inside:
                lines.add(number)
            inside = inside and ";" not in line
    return lines


def counts(programs, profile):
    """path -> line -> how often the corpus reached it."""
    objects = [x for p in programs[1:] for x in ("-object", p)]
    found, path = collections.defaultdict(dict), None
    text = subprocess.run(["llvm-cov", "export", "-format=lcov", f"-instr-profile={profile}", programs[0], *objects],
                          stdout=subprocess.PIPE, text=True, check=True).stdout
    for line in text.splitlines():
        if line.startswith("SF:"):
            path = os.path.relpath(line[3:])
        elif line.startswith("DA:"):
            number, count = map(int, line[3:].split(",")[:2])
            found[path][number] = max(count, found[path].get(number, 0))
    return found


def ranges(numbers):
    """[1, 2, 3, 7] -> "1-3, 7"."""
    out = []
    for n in numbers:
        if out and out[-1][1] == n - 1:
            out[-1][1] = n
        else:
            out.append([n, n])
    return ", ".join(f"{a}" if a == b else f"{a}-{b}" for a, b in out)


def report(names, folder, corpus, environment):
    """Reads the corpus of each harness, prints a line for each reader; -> exit code."""
    for old in glob.glob(os.path.join(folder, "*.profraw")):
        os.unlink(old)
    for name in names:
        subprocess.run([os.path.join(folder, name), *corpus(name)], check=True, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                       env={**environment, "LLVM_PROFILE_FILE": os.path.join(folder, name + ".profraw")})
    profile = os.path.join(folder, "all.profdata")
    subprocess.run(["llvm-profdata", "merge", "-sparse", *glob.glob(os.path.join(folder, "*.profraw")), "-o", profile], check=True)
    reached, passed, failed = counts([os.path.join(folder, n) for n in names], profile), 0, 0
    print(f"{'':32}{'lines':>7}{'reached':>9}   not reached")
    for path, left_out in READERS.items():
        if path not in reached:
            continue  # T left its harnesses out
        inside = {n for name, begin, end in functions(path) if not re.fullmatch(left_out, name) for n in range(begin, end + 1)}
        lines = {n: c for n, c in reached[path].items() if n in inside and n not in of_the_machine(path)}
        missed = sorted(n for n, c in lines.items() if not c)
        percent = 100 * (len(lines) - len(missed)) / max(1, len(lines))
        passed, failed = passed + (percent >= ENOUGH), failed + (percent < ENOUGH)
        print(f"{path:32}{len(lines):>7}{percent:>8.1f}%   {ranges(missed)}")
    print(f"passed: at least {ENOUGH}% of the lines")
    print(f"{passed} passed, {failed} failed")
    return 1 if failed else 0
