# clip.c: `make help` says what there is. Every program is one C file that includes the headers in clipc/.
#
# CC=clang picks another compiler, CFLAGS= replaces the optimisation and warning flags, OPENMP= builds for one thread, DEBUG=1 leaves
# the asserts in the programs (test_clip and the test programs always have them).

MAKEFLAGS += --no-builtin-rules
PROGRAMS = train_clip test_clip lr_find wise_ft
BUILD = build# dependency files, test programs, everything the tests write
BIN =# where the programs go: empty is here, otherwise a folder with its slash

ifneq ($(filter default undefined,$(origin CC)),)
CC := $(firstword $(foreach c,gcc clang cc,$(if $(shell command -v $(c) 2>/dev/null),$(c))) cc)
endif

CFLAGS = -O3 -Wall -Wextra
OPENMP = -fopenmp
OPENMP_LIBS =

ifeq ($(shell uname -s),Darwin) # Apple's clang has no -fopenmp of its own, and Homebrew keeps some libraries out of the usual path
BREW := $(shell brew --prefix 2>/dev/null)
OPENMP = -Xpreprocessor -fopenmp -I$(BREW)/opt/libomp/include
OPENMP_LIBS = -L$(BREW)/opt/libomp/lib -lomp
export PKG_CONFIG_PATH := $(BREW)/lib/pkgconfig:$(BREW)/opt/jpeg-turbo/lib/pkgconfig:$(BREW)/opt/libarchive/lib/pkgconfig:$(PKG_CONFIG_PATH)
endif

# What pkg-config prints for a library that it knows, else the usual name: $(call package,name,flags asked for,default)
package = $(shell pkg-config $(2) $(1) 2>/dev/null || echo $(3))
LIBS := $(call package,zlib,--libs,-lz) $(call package,libjpeg,--libs,-ljpeg) $(call package,libpng,--libs,-lpng) $(call package,libwebp,--libs,-lwebp) \
        $(call package,libwebpdemux,--libs,-lwebpdemux) $(call package,libarchive,--libs,-larchive) $(call package,libutf8proc,--libs,-lutf8proc) $(call package,jansson,--libs,-ljansson) -lm
INCLUDES := -I. $(sort $(foreach p,zlib libjpeg libpng libwebp libarchive libutf8proc jansson,$(call package,$(p),--cflags,)))

# Libraries for more image forms, each only where it is there (dev/setup.sh --images installs them; IMAGES= builds without).
IMAGES := $(foreach p,TIFF:libtiff-4 AVIF:libavif HEIC:libheif JP2:libopenjp2,$(if $(shell pkg-config --exists $(lastword $(subst :, ,$(p))) 2>/dev/null && echo yes),$(p))) \
          $(if $(shell $(CC) -E -include stdio.h -include gif_lib.h -x c /dev/null >/dev/null 2>&1 && echo yes),GIF:giflib)
LIBS += $(foreach p,$(IMAGES),$(call package,$(lastword $(subst :, ,$(p))),--libs,-lgif))
INCLUDES += $(sort $(foreach p,$(IMAGES),-DCLIPC_WITH_$(firstword $(subst :, ,$(p))) $(call package,$(lastword $(subst :, ,$(p))),--cflags,)))

# MPI=1: with several processes (dev/setup.sh --mpi installs what that takes); MPICC=… names MPI's compiler, which knows its flags.
ifneq ($(MPI),)
MPICC = mpicc
ifeq ($(shell command -v $(MPICC)),)
$(error MPI=1: $(MPICC) is missing; dev/setup.sh --mpi installs it, MPICC=/path/to/mpicc says where it is)
endif
MPI_FLAGS := -DCLIPC_MPI $(shell $(MPICC) --showme:compile 2>/dev/null || $(MPICC) -compile_info | tr ' ' '\n' | grep '^-[ID]' | tr '\n' ' ')
MPI_LIBS := $(shell $(MPICC) --showme:link 2>/dev/null || $(MPICC) -link_info | tr ' ' '\n' | grep '^-[lLW]' | tr '\n' ' ')
endif

# -ffp-contract=off: a*b + c is rounded twice everywhere, so that compilers agree to the bit; where one rounding is meant, the code says fmaf
COMPILE = $(CC) -std=c11 -ffp-contract=off $(CFLAGS) $(OPENMP) -pthread $(INCLUDES) $(MPI_FLAGS)
LINK_LIBS = $(LIBS) $(OPENMP_LIBS) $(MPI_LIBS)
# When a build fails for want of a library or compiler, the last line names it.
BUILD_PROGRAM = $(COMPILE) $(ASSERTS) $(TEST_FLAGS) -MMD -MP -MF $(BUILD)/$(notdir $@).d -o $@ $< $(LINK_LIBS) || { CC='$(CC)' dev/setup.sh --check; exit 1; }

TESTS = $(patsubst dev/test/%.c,$(BUILD)/%,$(wildcard dev/test/test_*.c))

# The GPU programs: train_clip.cu, and the other programs around it. NVCC=… names the compiler, GPU_ARCH=… the GPUs that it compiles for:
# by default the one of this machine, or without one A100 (sm_80), H100 (sm_90), and PTX for later ones.
GPU_PROGRAMS = train_clipcu lr_findcu wise_ftcu test_clipcu
NVCC = $(or $(shell command -v nvcc 2>/dev/null),$(wildcard /usr/local/cuda/bin/nvcc))
GPU_ARCH = $(if $(shell nvidia-smi -L 2>/dev/null),-arch=native,-gencode arch=compute_80,code=sm_80 -gencode arch=compute_90,code=[sm_90,compute_90])
COMPILE_GPU = $(NVCC) -std=c++17 -O3 $(GPU_ARCH) -diag-suppress 1675,550 $(patsubst %,-Xcompiler %,-ffp-contract=off $(OPENMP) -pthread) $(INCLUDES)
BUILD_GPU = test -n '$(NVCC)' || { echo 'make $@: nvcc is missing; install the CUDA toolkit (12.0 or later), or say where it is: make $@ NVCC=/path/to/nvcc' >&2; exit 1; }; \
            $(COMPILE_GPU) $(ASSERTS) $(TEST_FLAGS:%=-Xcompiler %) -MMD -MP -MF $(BUILD)/$(notdir $@).d -o $@ -x cu $< $(LINK_LIBS) -lcublasLt

# The GPU programs compiled as C++ for the CPU (dev/cuda/emulate.h): `make test` runs them without a GPU or nvcc.
CXX := $(firstword $(foreach c,$(if $(findstring clang,$(CC)),clang++) g++ c++,$(if $(shell command -v $(c) 2>/dev/null),$(c))))
EMULATED_WARNINGS = -Wno-unknown-pragmas -Wno-missing-field-initializers $(if $(findstring clang,$(CXX)),,-Wno-uninitialized -Wno-maybe-uninitialized)# gcc's: of its own AVX-512 header
COMPILE_EMULATED = $(CXX) -std=c++17 -DCLIPC_EMULATE -ffp-contract=off $(CFLAGS:-O3=-O2) $(EMULATED_WARNINGS) $(OPENMP) -pthread $(INCLUDES)
BUILD_EMULATED = $(COMPILE_EMULATED) $(TEST_FLAGS) -MMD -MP -MF $(BUILD)/$(notdir $@).d -o $@ -x c++ $< -x none $(LINK_LIBS)
GPU_TESTS = $(patsubst dev/test/%.cu,$(BUILD)/%,$(wildcard dev/test/test_*.cu))
EMULATED = $(BUILD)/train_clip_emulated $(BUILD)/test_clip_emulated $(BUILD)/lab $(GPU_TESTS)

SETUP = CC='$(CC)' dev/setup.sh
PYTHON = $(shell dev/setup.sh --python)
RUN = @CC='$(CC)' DEBUG='$(DEBUG)' PYTHON='$(PYTHON)' BUILD='$(BUILD)' BIN='$(BIN)' T='$(T)'

all: $(BIN)train_clip $(BIN)lr_find $(BIN)wise_ft

# What is released or timed has no asserts.
RELEASED = $(foreach program,train_clip lr_find wise_ft,$(BIN)$(program) $(BIN)$(program)cu) $(BUILD)/bench_stepcu
$(RELEASED) $(BUILD)/bench_%: ASSERTS = $(if $(DEBUG),,-DNDEBUG)

$(PROGRAMS:%=$(BIN)%): $(BIN)%: %.c data/bpe_merges.txt $(BUILD)/command
	$(BUILD_PROGRAM)

# EXPECT(condition) comes without a message, too. Tests of kernels and layers are compiled as what ships is, the others in half the time.
$(TESTS): TEST_FLAGS = -Wno-format-zero-length $(if $(filter -O3,$(CFLAGS)),$(if $(filter test_layers test_matmul test_step test_transform,$(@F)),,-O1))
$(TESTS): $(BUILD)/%: dev/test/%.c data/bpe_merges.txt $(BUILD)/command
	$(BUILD_PROGRAM)

GPU_NEEDS = data/bpe_merges.txt $(BUILD)/command_gpu
$(BIN)train_clipcu: train_clip.cu $(GPU_NEEDS)
	@$(BUILD_GPU)
$(BIN)lr_findcu $(BIN)wise_ftcu $(BIN)test_clipcu: $(BIN)%cu: %.c $(GPU_NEEDS)
	@$(BUILD_GPU)

$(BUILD)/train_clip_emulated: train_clip.cu data/bpe_merges.txt $(BUILD)/command
	$(BUILD_EMULATED)
$(BUILD)/lr_find_emulated $(BUILD)/wise_ft_emulated $(BUILD)/test_clip_emulated: $(BUILD)/%_emulated: %.c data/bpe_merges.txt $(BUILD)/command
	$(BUILD_EMULATED)
$(BUILD)/lab $(BUILD)/labcu $(BUILD)/test_gpu_kernelscu $(BUILD)/test_gpu_stepcu $(GPU_TESTS): TEST_FLAGS = -Wno-format-zero-length
$(BUILD)/lab: dev/cuda/lab.cu data/bpe_merges.txt $(BUILD)/command
	$(BUILD_EMULATED)
$(GPU_TESTS): $(BUILD)/%: dev/test/%.cu data/bpe_merges.txt $(BUILD)/command
	$(BUILD_EMULATED)
$(BUILD)/labcu: dev/cuda/lab.cu $(GPU_NEEDS)
	@$(BUILD_GPU)
$(BUILD)/test_gpu_kernelscu $(BUILD)/test_gpu_stepcu: $(BUILD)/%cu: dev/test/%.cu $(GPU_NEEDS)
	@$(BUILD_GPU)
$(BUILD)/bench_stepcu: dev/bench/step.c $(GPU_NEEDS)
	@$(BUILD_GPU)

$(BUILD)/bench_%: dev/bench/%.c $(BUILD)/command
	$(BUILD_PROGRAM)

tests: $(PROGRAMS:%=$(BIN)%) $(TESTS) $(if $(CXX),$(EMULATED))

# Fuzzing: dev/fuzz/run.py chooses compiler, flags and engine (libFuzzer, or FUZZ_LOOP).
FUZZ_BUILD = $(BUILD)/fuzz/bin
FUZZ_CC = $(CC)
FUZZ_COMPILE = $(FUZZ_CC) -std=c11 -ffp-contract=off -Wall -Wextra -Wno-unknown-pragmas -pthread $(INCLUDES)
FUZZ_OUT = -MMD -MP -MF $(BUILD)/$(subst /,_,$@).d -o $@ $<
$(FUZZ_BUILD)/seeds: dev/fuzz/seeds.c data/bpe_merges.txt $(FUZZ_BUILD)/command
	$(FUZZ_COMPILE) -O0 $(FUZZ_OUT) $(LIBS) $(call package,libwebpmux,--libs,-lwebpmux)
$(FUZZ_BUILD)/%: dev/fuzz/fuzz_%.c data/bpe_merges.txt $(FUZZ_BUILD)/command
	$(FUZZ_COMPILE) $(FUZZ_FLAGS) $(FUZZ_OUT) $(FUZZ_LOOP) $(LIBS)

# These files change when the compiler or a flag does, so that everything is rebuilt.
$(BUILD)/command: FORCE
	@mkdir -p $(BUILD)
	@echo 'DEBUG=$(DEBUG) $(COMPILE) $(CXX) $(LINK_LIBS)' | cmp -s - $@ || echo 'DEBUG=$(DEBUG) $(COMPILE) $(CXX) $(LINK_LIBS)' > $@

$(BUILD)/command_gpu: FORCE
	@mkdir -p $(BUILD)
	@echo 'DEBUG=$(DEBUG) $(COMPILE_GPU) $(LINK_LIBS)' | cmp -s - $@ || echo 'DEBUG=$(DEBUG) $(COMPILE_GPU) $(LINK_LIBS)' > $@

$(FUZZ_BUILD)/command: FORCE
	@mkdir -p $(FUZZ_BUILD)
	@echo '$(FUZZ_COMPILE) $(FUZZ_FLAGS) $(FUZZ_LOOP) $(LIBS)' | cmp -s - $@ || echo '$(FUZZ_COMPILE) $(FUZZ_FLAGS) $(FUZZ_LOOP) $(LIBS)' > $@

setup:
	@$(SETUP)

setup-test:
	@$(SETUP) --c++

test: setup-test
	$(RUN) dev/test/run.sh

golden: setup
	$(RUN) dev/test/golden.sh '$(GOLDEN)'

sanitize: setup-test
	$(RUN) dev/test/run.sh --sanitize

torture: setup
	$(RUN) KILLS='$(KILLS)' dev/test/torture.sh

fuzz: setup
	@CC='$(CC)' BUILD='$(BUILD)' T='$(T)' TIME='$(TIME)' JOBS='$(JOBS)' COVERAGE='$(COVERAGE)' '$(PYTHON)' dev/fuzz/run.py

mutation: setup # can the tests fail? doc/testing.md
	$(RUN) '$(PYTHON)' dev/test/mutate.py $(FILES)

# The matrix products of ARM processors, on any machine that has a cross compiler and an emulator for them.
test-arm:
	@command -v aarch64-linux-gnu-gcc > /dev/null && command -v qemu-aarch64-static > /dev/null || { echo 'make test-arm: needs aarch64-linux-gnu-gcc and qemu-aarch64-static (Debian: gcc-aarch64-linux-gnu qemu-user-static)' >&2; exit 1; }
	@mkdir -p $(BUILD)
	aarch64-linux-gnu-gcc -std=c11 -ffp-contract=off $(CFLAGS) -Wno-unknown-pragmas -pthread -I. -static -o $(BUILD)/test_matmul_arm dev/test/test_matmul.c -lm
	qemu-aarch64-static -cpu max $(BUILD)/test_matmul_arm

test-gpu: setup
	$(RUN) NVCC='$(NVCC)' GOLDEN='$(GOLDEN)' dev/test/gpu.sh

bench-gpu: setup
	$(RUN) NVCC='$(NVCC)' PARTS='$(PARTS)' MODELS='$(MODELS)' BATCHES='$(BATCHES)' PEAK='$(PEAK)' dev/bench/gpu.sh

gpu-resources: # prints registers, spills and shared memory of every kernel, as the compiler reports them
	@NVCC='$(NVCC)' '$(PYTHON)' dev/cuda/resources.py

parity: setup
	$(RUN) dev/test/parity.sh

bench: setup
	$(RUN) dev/bench/bench.sh

bench-peer: setup
	$(RUN) dev/bench/peer.sh

demo: setup
	$(RUN) scripts/demo.sh

experiments: setup $(PROGRAMS:%=$(BIN)%) $(BUILD)/bench_loss
	@test -d '$(DATA)/cifar10' || { echo 'make experiments DATA=DIR: DIR holds cifar10/ (train-*.tar, test-00000.tar, …) and emoji/'; exit 2; }
	@set -e; export PYTHON='$(PYTHON)' PROGRAMS='$(abspath $(or $(BIN),.))'; for experiment in dev/experiments/*.sh; do echo "== $$experiment"; $$experiment '$(DATA)/cifar10'; done
	@'$(PYTHON)' dev/experiments/range_test.py --data '$(DATA)/cifar10'
	@'$(PYTHON)' dev/experiments/rates.py --data '$(DATA)/cifar10'
	@'$(PYTHON)' dev/experiments/costs.py
	@KILLS=200 TEST=kill_anywhere BIN='$(BIN)' '$(PYTHON)' dev/test/test_run_kill.py
	@$(BUILD)/bench_loss

schema: $(BIN)train_clip # write data/schema.json again, after a change to the tables of weights.h or architectures.h
	@$(if $(BIN),,./)$(BIN)train_clip --schema > $(BUILD)/schema.json && mv $(BUILD)/schema.json data/schema.json

flags: # for dev/setup.sh: the compiler with its flags, then the libraries
	@echo '$(COMPILE)'
	@echo '$(LINK_LIBS)'

clean:
	rm -rf $(BUILD) $(PROGRAMS) $(GPU_PROGRAMS)

help:
	@echo 'make              build ./train_clip, which trains and fine-tunes CLIP, ./lr_find and ./wise_ft (each with --help)'
	@echo 'make demo         train, evaluate and fine-tune a tiny CLIP on drawn shapes, 3 to 4 minutes'
	@echo 'make test         set up, build, make reference tensors, run every test, name the slowest'
	@echo 'make test T=matmul   only the parts of it whose name contains the text; TEST=softmax: of them only the tests with such a name'
	@echo 'make golden GOLDEN=DIR   compare with stored results of open_clip'
	@echo 'make parity       install open_clip, transformers, … in build/parity and compare with them (optional, some gigabytes)'
	@echo 'make bench        time matrix products, stages, steps, start-up and loading on this processor (PARTS=start for one of them)'
	@echo 'make bench-peer   time train_clip and open_clip on the same batches (some gigabytes, an hour; ROWS='\''train-b32* start'\'' for some, ROUNDS=5)'
	@echo 'make experiments DATA=DIR   measure the tables of doc/ again (hours; dev/experiments/*.sh for one of them)'
	@echo 'make sanitize     run the tests under AddressSanitizer and UBSan'
	@echo 'make torture      kill a run before every system call and 1,000 times at random, let each call of the C library fail, under valgrind, too'
	@echo 'make fuzz         feed damaged and random inputs to every reader for a minute (TIME=28800: a night; T=json: one of them;'
	@echo '                  COVERAGE=1: which lines of the readers the corpus reaches)'
	@echo 'make mutation     plant 200 faults in a copy, count those that the tests find (an hour; FILES='\''order.h loss.h'\'' for some)'
	@echo 'make test-arm     test the matrix products of ARM processors (NEON, BFDOT) in an emulator'
	@echo 'make train_clipcu lr_findcu wise_ftcu   build the programs for a GPU (CUDA toolkit 12.0 or later)'
	@echo 'make test-gpu     test their kernels, layers, runs and stored results on a GPU, also under compute-sanitizer'
	@echo 'make bench-gpu    time kernels, training steps (and those of open_clip) and data loading on a GPU'
	@echo 'make gpu-resources   print registers, spills and shared memory of each kernel (needs nvcc, no GPU)'
	@echo 'make schema       write data/schema.json again, after a change to the tables of tensors, fields or models'
	@echo 'make clean        remove what make built (not logs/ and weights/)'
	@echo 'make MPI=1        build for several processes, started by mpirun or srun (doc/processes.md)'
	@echo 'make CC=clang     build with another compiler; CFLAGS=… other flags; OPENMP= one thread; DEBUG=1 with asserts'
	@echo 'dev/setup.sh      install the compiler, libraries and numpy where they are missing (make demo and make test do so first)'
	@echo 'dev/setup.sh --images   also those for GIF, TIFF, AVIF, HEIC and JPEG 2000 images; make IMAGES= builds without them'

FORCE:
.PHONY: all tests setup setup-test test golden sanitize fuzz torture test-arm test-gpu bench-gpu gpu-resources mutation parity bench bench-peer demo experiments schema flags clean help FORCE

-include $(wildcard $(BUILD)/*.d)
