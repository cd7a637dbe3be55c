#!/usr/bin/env python3
"""Removes each barrier of the GPU kernels in turn, and expects their test to fail in the emulation.

  dev/cuda/barriers.py [LINE...]     all of them (minutes), or those whose FILE:LINE contains a word; CXX= names the compiler
"""
import glob
import os
import re
import shutil
import subprocess
import sys
import tempfile

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
FILES = ("train_clip.cu", *sorted(os.path.relpath(path, ROOT) for path in glob.glob(os.path.join(ROOT, "clipc/math/gpu*.h"))))
BARRIER = re.compile(r"__sync(threads|warp)\(\);")
REDUNDANT = "row_lse = scores_lse<Real>(max, sum);"  # of the barrier after it: its shuffles make the warp meet as well


def test_fails(scratch):
    program = os.path.join(scratch, "test")
    subprocess.run([os.environ.get("CXX", "g++"), "-x", "c++", "-std=c++17", "-DCLIPC_EMULATE", f"-I{scratch}", "-I.", "-O1", "-w", "-fopenmp",
                    os.path.join(scratch, "dev/test/test_gpu_kernels.cu"), "-o", program], cwd=ROOT, check=True)
    return subprocess.run([program], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=dict(os.environ, OMP_NUM_THREADS="1"), timeout=300).returncode != 0


def main():
    passed = failed = 0
    with tempfile.TemporaryDirectory() as scratch:
        for folder in ("clipc", "dev/cuda", "dev/test"):
            shutil.copytree(os.path.join(ROOT, folder), os.path.join(scratch, folder))
        shutil.copy(os.path.join(ROOT, "train_clip.cu"), scratch)
        for name in FILES:
            path = os.path.join(scratch, name)
            with open(path) as f:
                lines = f.read().split("\n")
            for i, line in enumerate(lines):
                place = f"{name}:{i + 1}"
                if not BARRIER.search(line) or (len(sys.argv) > 1 and not any(word in place for word in sys.argv[1:])):
                    continue
                with open(path, "w") as f:
                    f.write("\n".join(lines[:i] + [BARRIER.sub(";", line)] + lines[i + 1:]))
                fails = test_fails(scratch)
                right = fails != (REDUNDANT in lines[i - 1])
                passed, failed = passed + right, failed + (not right)
                print(f"{place}: {'found' if fails else 'not found'}{'' if right else '  WRONG'}", flush=True)
            with open(path, "w") as f:
                f.write("\n".join(lines))
    print(f"{passed} passed, {failed} failed")
    return failed > 0 or passed == 0


if __name__ == "__main__":
    sys.exit(main())
