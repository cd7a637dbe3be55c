#!/usr/bin/env bash
# Checks for what clip.c needs (make, a C compiler with OpenMP, six libraries, Python with numpy) and installs
# what is missing with the system's package manager: apt, dnf or brew. Takes under a second if nothing is
# missing.
#   dev/setup.sh            check, install what is missing
#   dev/setup.sh --images   the same, and the libraries for GIF, TIFF, AVIF, HEIC and JPEG 2000 as far as the
#                           package manager has them; the programs do without those that are not there
#   dev/setup.sh --mpi      the same, and Open MPI, for make MPI=1 (several processes)
#   dev/setup.sh --c++      the same, including a C++ compiler (make test checks the headers with it)
#   dev/setup.sh --check    check only, and print the command that installs the rest
#   dev/setup.sh --python   print the Python that has numpy (for the Makefile)
# CC is the compiler to look for, PYTHON a Python to try first.
cd "$(dirname "$0")/.." || exit 1
set -u

# name, header, -l name, then packages for apt, dnf and brew (comma-separated; -: part of the system)
packages() {
    cat <<'TABLE'
make      -             -          make                        make                   make
gcc       -             -          gcc,libc6-dev               gcc                    -
clang     -             -          clang,libomp-dev,libc6-dev  clang,libomp-devel     -
openmp    omp.h         -          libomp-dev                  libomp-devel           libomp
g++       -             -          g++                         gcc-c++                -
zlib      zlib.h        z          zlib1g-dev                  zlib-devel             -
jpeg      jpeglib.h     jpeg       libjpeg-dev                 libjpeg-turbo-devel    jpeg-turbo
png       png.h         png        libpng-dev                  libpng-devel           libpng
webp      webp/demux.h  webpdemux  libwebp-dev                 libwebp-devel          webp
archive   archive.h     archive    libarchive-dev              libarchive-devel       libarchive
utf8proc  utf8proc.h    utf8proc   libutf8proc-dev             utf8proc-devel         utf8proc
jansson   jansson.h     jansson    libjansson-dev              jansson-devel          jansson
numpy     -             -          python3,python3-numpy,ca-certificates  python3,python3-numpy  python,numpy
TABLE
}

# Libraries for more image forms, in the Makefile's words: form, then packages for apt, dnf and brew
image_packages() {
    cat <<'TABLE'
GIF   libgif-dev         giflib-devel   giflib
TIFF  libtiff-dev        libtiff-devel  libtiff
AVIF  libavif-dev        libavif-devel  libavif
HEIC  libheif-dev        libheif-devel  libheif
JP2   libopenjp2-7-dev   openjpeg-devel openjpeg
TABLE
}

say() { echo "dev/setup.sh: $*" >&2; }

find_python() {
    local p
    for p in "${PYTHON:-}" .venv/bin/python3 python3 /usr/bin/python3; do
        [ -n "$p" ] && command -v "$p" >/dev/null && "$p" -c 'import sys, numpy; assert sys.version_info >= (3, 8)' 2>/dev/null && echo "$p" && return
    done
    return 1
}

run_make() { env -u MAKEFLAGS -u MFLAGS -u MAKELEVEL make -s --no-print-directory ${CC:+CC="$CC"} "$@"; }

# Does a program that includes these headers compile and link?
links() { # "headers" "libraries"
    { echo '#include <stdio.h>'; printf '#include <%s>\n' $1; echo 'int main(void) { return 0; }'; } |
        $compile -x c - -x none -o "$scratch/probe" $2 >/dev/null 2>&1
}

compiles_plainly() { command -v "${1:-}" >/dev/null && echo 'int main(void) { return 0; }' | "$1" -x c - -o "$scratch/probe" >/dev/null 2>&1; }

any_compiler() {
    local compiler
    for compiler in gcc clang cc; do compiles_plainly $compiler && echo $compiler && return; done
}

# Sets `missing` to the names of the table above that are missing.
find_missing() { # [--c++]
    local flags compiler=gcc headers folders name header library rest
    missing=
    case ${CC:-} in *clang*) compiler=clang ;; esac
    find_python >/dev/null || missing=numpy
    if [ "${1:-}" = --c++ ] && ! has_cxx; then missing="$missing g++"; fi
    if ! flags=$(run_make flags 2>/dev/null); then missing="make $missing"; fi # the rest is checked once make is there
    compile=$(sed -n 1p <<< "$flags") libraries=$(sed -n 2p <<< "$flags")
    headers=$(packages | awk '$2 != "-" {print $2}')
    if [ -n "$compile" ] && links "$headers" "$libraries"; then return; fi
    if ! compiles_plainly ${compile%% *}; then
        missing="$compiler $missing"
        compile=$(any_compiler) # another compiler can check the libraries; without any, all count as missing (installing one twice does no harm)
    elif ! links omp.h ""; then
        missing="openmp $missing"
    fi
    if [ -n "$compile" ]; then compile=$(CC=${compile%% *} run_make OPENMP= flags | sed -n 1p); fi # look for one missing thing at a time
    folders=$(tr ' ' '\n' <<< "$libraries" | grep '^-L' | tr '\n' ' ')
    while read -r name header library rest; do
        [ "$library" = - ] && continue
        if [ -z "$compile" ] || ! links "$header" "$folders -l$library"; then missing="$missing $name"; fi
    done < <(packages)
}

has_cxx() {
    case ${CC:-} in *clang*) set -- clang++ g++ ;; *) set -- g++ clang++ ;; esac
    { command -v "$1" || command -v "$2"; } >/dev/null
}

# Sets `command`, which installs what is missing (empty without a known package manager), and `needs_root`.
plan() {
    local column names
    if command -v apt-get >/dev/null; then column=4 prefix='apt-get install -y --no-install-recommends' needs_root=1
    elif command -v dnf >/dev/null; then column=5 prefix='dnf install -y' needs_root=1
    elif command -v brew >/dev/null; then column=6 prefix='brew install' needs_root=
    else command= && return; fi
    names=$(for name in $missing; do packages | awk -v n="$name" -v c=$column '$1 == n && $c != "-" {gsub(",", " ", $c); print $c}'; done)
    if [ $column = 6 ]; then names="pkgconf $names"; fi # only pkg-config knows Homebrew's folders
    command="$prefix $(echo $names)"
    if [ $column = 4 ]; then command="apt-get update && $command"; fi
    if [ $column = 6 ] && ! command -v cc >/dev/null; then command="xcode-select --install && $command"; fi
    if [ -n "$needs_root" ] && [ "$(id -u)" != 0 ]; then command="sudo sh -c '$command'"; fi
}

# Can `command` be run? If not, says why.
may_install() {
    if [ -z "$command" ]; then
        say "found none of the package managers apt, dnf and brew; install the libraries and headers named above by hand"
    elif [ "${command%% *}" != sudo ]; then
        return 0
    elif ! command -v sudo >/dev/null; then
        command=${command#sudo sh -c \'}
        say "this needs root, and sudo is not installed; run as root: ${command%\'}"
    elif [ -t 0 ] || sudo -n true 2>/dev/null; then
        return 0
    else
        say "sudo needs a password, and there is no terminal to ask for it; run: $command"
    fi
    return 1
}

if [ "${1:-}" = --python ]; then
    find_python || { echo python3; say "found no Python with numpy; run dev/setup.sh"; exit 1; }
    exit
fi
case ${1:-} in '' | --c++ | --images | --mpi | --check) ;; *) say "$1: unknown option (give --c++, --images, --mpi, --check or --python)"; exit 2 ;; esac

scratch=$(mktemp -d) || exit 1
trap 'rm -rf "$scratch"' EXIT
export DEBIAN_FRONTEND=noninteractive
tried=
while find_missing "${1:-}"; [ -n "${missing// /}" ]; do
    say "missing: $(echo $missing)"
    plan
    if [ "${1:-}" = --check ]; then
        say "run dev/setup.sh${command:+, or: $command}"
        exit 1
    fi
    if [ "$tried" = "$missing" ]; then
        say "still missing after the installation; see the messages above"
        exit 1
    fi
    tried=$missing
    if may_install; then
        say "installing: $command"
        sh -c "$command" </dev/null >&2 || { say "the installation failed; see the messages above"; exit 1; }
    elif [ "$(echo $missing)" = numpy ] && command -v python3 >/dev/null; then # a virtual environment needs no root
        say "installing: numpy into .venv"
        python3 -m venv .venv && .venv/bin/python3 -m pip install --quiet numpy || exit 1
    else
        exit 1
    fi
done

# What is not there of the optional libraries is tried once; the programs do without it.
if [ "${1:-}" = --mpi ] && ! { command -v mpicc && command -v mpirun; } >/dev/null; then
    missing=
    plan # for the way in which packages are installed
    package=openmpi-bin,libopenmpi-dev
    if command -v dnf >/dev/null; then package=openmpi-devel; elif ! command -v apt-get >/dev/null; then package=open-mpi; fi
    install="$prefix ${package//,/ }"
    if [ -n "$needs_root" ] && [ "$(id -u)" != 0 ]; then install="sudo -n $install"; fi
    say "installing: $install"
    $install </dev/null >&2 || { say "MPI cannot be installed that way"; exit 1; }
fi
if [ "${1:-}" = --images ] || [ "${1:-}" = --c++ ]; then
    flags=$(run_make flags 2>/dev/null)
    wanted=$(image_packages | while read -r form rest; do grep -q "CLIPC_WITH_$form" <<< "$flags" || echo "$form"; done)
    column=
    if command -v apt-get >/dev/null; then column=2; elif command -v dnf >/dev/null; then column=3; elif command -v brew >/dev/null; then column=4; fi
    if [ -n "$wanted" ] && [ -n "$column" ]; then
        missing=
        plan # for the way in which packages are installed
        if [ $column = 2 ]; then ${needs_root:+$([ "$(id -u)" = 0 ] || echo sudo -n)} apt-get update </dev/null >&2; fi
        for form in $wanted; do
            package=$(image_packages | awk -v f="$form" -v c=$column '$1 == f {print $c}')
            install="$prefix $package"
            if [ -n "$needs_root" ] && [ "$(id -u)" != 0 ]; then install="sudo -n $install"; fi
            say "installing for $form images: $install"
            $install </dev/null >&2 || say "no $package; the programs are built without $form images"
        done
    fi
fi
exit 0
