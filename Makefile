# clip.c: `make help` says what there is. Every program is one C file that includes the headers in clipc/.
#
# CC=clang picks another compiler, CFLAGS= replaces the optimisation and warning flags, OPENMP= builds for one thread.

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

# pkg-config's word on a library where it knows it, else the usual name: $(call package,name,flags asked for,default)
package = $(shell pkg-config $(2) $(1) 2>/dev/null || echo $(3))
LIBS := $(call package,libjpeg,--libs,-ljpeg) $(call package,libpng,--libs,-lpng) $(call package,libwebp,--libs,-lwebp) \
        $(call package,libwebpdemux,--libs,-lwebpdemux) $(call package,libarchive,--libs,-larchive) $(call package,libutf8proc,--libs,-lutf8proc) $(call package,jansson,--libs,-ljansson) -lm
INCLUDES := -I. $(sort $(foreach p,libjpeg libpng libwebp libarchive libutf8proc jansson,$(call package,$(p),--cflags,)))

# -ffp-contract=off: a*b + c is rounded twice everywhere, so that compilers agree to the bit; where one rounding is meant, the code says fmaf
COMPILE = $(CC) -std=c11 -ffp-contract=off $(CFLAGS) $(OPENMP) -pthread $(INCLUDES)
LINK_LIBS = $(LIBS) $(OPENMP_LIBS)
# when a build fails, the last line says which library or compiler is missing, if that was it
BUILD_PROGRAM = $(COMPILE) $(TEST_FLAGS) -MMD -MP -MF $(BUILD)/$(notdir $@).d -o $@ $< $(LINK_LIBS) || { CC='$(CC)' dev/setup.sh --check; exit 1; }

TESTS = $(patsubst dev/test/%.c,$(BUILD)/%,$(wildcard dev/test/test_*.c))
SETUP = CC='$(CC)' dev/setup.sh
PYTHON = $(shell dev/setup.sh --python)
RUN = @CC='$(CC)' PYTHON='$(PYTHON)' BUILD='$(BUILD)' BIN='$(BIN)'

all: $(BIN)train_clip $(BIN)lr_find $(BIN)wise_ft

$(PROGRAMS:%=$(BIN)%): $(BIN)%: %.c data/bpe_merges.txt $(BUILD)/command
	$(BUILD_PROGRAM)

$(TESTS): TEST_FLAGS = -Wno-format-zero-length # EXPECT(condition) comes without a message, too
$(TESTS): $(BUILD)/%: dev/test/%.c data/bpe_merges.txt $(BUILD)/command
	$(BUILD_PROGRAM)

$(BUILD)/bench_%: dev/bench/%.c $(BUILD)/command
	$(BUILD_PROGRAM)

tests: $(PROGRAMS:%=$(BIN)%) $(TESTS)

# changes when the compiler or a flag does, so that everything is built anew
$(BUILD)/command: FORCE
	@mkdir -p $(BUILD)
	@echo '$(COMPILE) $(LINK_LIBS)' | cmp -s - $@ || echo '$(COMPILE) $(LINK_LIBS)' > $@

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

parity: setup
	$(RUN) dev/test/parity.sh

bench-peer: setup
	$(RUN) ROWS='$(ROWS)' dev/bench/peer.sh

demo: setup
	$(RUN) scripts/demo.sh

experiments: setup $(PROGRAMS:%=$(BIN)%) $(BUILD)/bench_loss
	@test -d '$(DATA)/cifar10' || { echo 'make experiments DATA=DIR: DIR holds cifar10/ (train-*.tar, test-00000.tar, …) and emoji/'; exit 2; }
	@set -e; export PYTHON='$(PYTHON)' PROGRAMS='$(abspath $(or $(BIN),.))'; for experiment in dev/experiments/*.sh; do echo "== $$experiment"; $$experiment '$(DATA)/cifar10'; done
	@'$(PYTHON)' dev/experiments/range_test.py --data '$(DATA)/cifar10'
	@KILLS=200 BIN='$(BIN)' '$(PYTHON)' dev/test/test_run.py kill_anywhere
	@$(BUILD)/bench_loss

flags: # for dev/setup.sh: the compiler with its flags, then the libraries
	@echo '$(COMPILE)'
	@echo '$(LINK_LIBS)'

clean:
	rm -rf $(BUILD) $(PROGRAMS)

help:
	@echo 'make              build ./train_clip, which trains and fine-tunes CLIP, ./lr_find and ./wise_ft (each with --help)'
	@echo 'make demo         train, evaluate and fine-tune a tiny CLIP on drawn shapes, under 3 minutes'
	@echo 'make test         set up, build, make references, run every test'
	@echo 'make golden GOLDEN=DIR   compare with stored results of open_clip'
	@echo 'make parity       install open_clip, transformers, … in build/parity and compare with them (optional, gigabytes)'
	@echo 'make bench-peer   train_clip beside open_clip on the same batches (gigabytes, an hour; ROWS='\''train-b32* start'\'' for some, ROUNDS=5)'
	@echo 'make experiments DATA=DIR   the tables of doc/, measured anew (hours; dev/experiments/*.sh alone for one of them)'
	@echo 'make sanitize     the tests under AddressSanitizer and UBSan'
	@echo 'make clean        remove what make built (not logs/ and weights/)'
	@echo 'make CC=clang     another compiler; CFLAGS=… other flags; OPENMP= for one thread'
	@echo 'dev/setup.sh      install what is missing (compiler, libraries, numpy), as demo and test do first'

FORCE:
.PHONY: all tests setup setup-test test golden sanitize parity bench-peer demo experiments flags clean help FORCE

-include $(wildcard $(BUILD)/*.d)
