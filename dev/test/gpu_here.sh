# shellcheck shell=bash
# Returns 1, with a line that says what is missing, unless there are a GPU and a compiler for it.
# To be sourced with the name of the command: . dev/test/gpu_here.sh "make test-gpu"
if ! command -v nvcc >/dev/null && [ ! -x /usr/local/cuda/bin/nvcc ] && [ -z "${NVCC:-}" ]; then
    echo "$1: nvcc is missing; install the CUDA toolkit (12.0 or later), or say where it is: $1 NVCC=/path/to/nvcc" >&2
    return 1
fi
if ! nvidia-smi -L >/dev/null 2>&1; then
    echo "$1: no GPU here (nvidia-smi finds none); make test runs the same kernels emulated" >&2
    return 1
fi
