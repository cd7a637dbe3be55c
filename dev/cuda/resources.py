#!/usr/bin/env python3
"""Registers and spills of train_clip.cu's kernels as the compiler reports them, a table in Markdown; a kernel that spills counts as failed.

  dev/cuda/resources.py [ARCH...]     default: sm_80 sm_90; NVCC= names the compiler (make gpu-resources)
"""
import os
import re
import shutil
import subprocess
import sys
import tempfile

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
REPORT = re.compile(r"Compiling entry function '(\S+)' for '(\w+)'\n.*\n\s+(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads\n.*Used (\d+) registers")


def compile_report(nvcc, archs):
    codes = [x for arch in archs for x in ("-gencode", f"arch={arch.replace('sm', 'compute')},code={arch}")]
    with tempfile.TemporaryDirectory() as scratch:
        run = subprocess.run([nvcc, "-std=c++17", "-O3", *codes, "-diag-suppress", "1675,550", "-DCLIP_WITHOUT_MAIN", "-I.", "-Xptxas", "-v", "-c", "-o", os.path.join(scratch, "out.o"),
                              "train_clip.cu"], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if run.returncode:
        sys.exit(f"resources.py: nvcc fails:\n{run.stdout[-2000:]}")
    return run.stdout


def short_names(mangled):
    """void f<__nv_bfloat16, 4>(…) → f<bf16, 4>"""
    lines = subprocess.run(["c++filt"], input="\n".join(mangled), stdout=subprocess.PIPE, text=True, check=True).stdout.splitlines()
    return [line.split("(")[0].replace("void ", "").replace("__nv_bfloat16", "bf16") for line in lines]


def main():
    archs = sys.argv[1:] or ["sm_80", "sm_90"]
    nvcc = os.environ.get("NVCC") or shutil.which("nvcc")
    if not nvcc:
        sys.exit("make gpu-resources: nvcc is missing; install the CUDA toolkit (12.0 or later), or say where it is: NVCC=/path/to/nvcc")
    found = REPORT.findall(compile_report(nvcc, archs))
    table = {}
    for name, (_, arch, stack, stores, loads, registers) in zip(short_names([x[0] for x in found]), found):
        table.setdefault(name, {})[arch] = (int(registers), int(stack), int(stores) + int(loads))
    print("| kernel | " + " | ".join(f"registers, {arch}" for arch in archs) + " | spilled bytes |\n|---|" + "---|" * (len(archs) + 1))
    spilling = 0
    for name in sorted(table):
        spilled = sum(x[2] for x in table[name].values())
        spilling += spilled > 0
        print(f"| `{name}` | " + " | ".join(str(table[name][arch][0]) if arch in table[name] else "" for arch in archs) + f" | {spilled} |")
    print(f"\n{len(table) - spilling} passed, {spilling} failed")
    return spilling > 0 or not table


if __name__ == "__main__":
    sys.exit(main())
