#!/usr/bin/env python3
"""The faults that `make mutation` plants: of every kind, in code alone, and each a program that a compiler takes."""
import os
import shutil
import subprocess
import sys
import tempfile

import checks
import mutants
from checks import check

CODE = '''
#include <stdio.h> // a - b
#define TWICE(x) ((x) + (x))
static const char *const HELP = "1 + 2 < 3";
struct Pair {
    int a, b;
};
static int weigh(int n, const int *x, int skip) {
    int sum = 0, last[4] = {1, 2};
    /* x[0] + 1 */
    for (int i = 0; i < n; i++) {
        if (i == skip) continue;
        sum += x[i] * -2; // n / 2
        last[i % 4] = sum;
    }
    if (sum > 100) printf("%d > 100\\n", sum - 1);
    return sum + last[n - 1];
}
int main(int argc, char **argv) {
    const int x[] = {5, 7};
    const struct Pair pair = {.a = argc + 1,
        .b = 2};
    (void)argv;
    free(NULL);
    return weigh(2, x, pair.a == 2 ? 2 : 9) != -48;
}
'''.replace("#include <stdio.h>", "#include <stdio.h>\n#include <stdlib.h>")


def drawn():
    return mutants.draw(mutants.Source("code.c", CODE).mutants(1))


def test_all_kinds_are_drawn_in_turn():
    found = drawn()
    check({m.kind for m in found[:7]} == set(mutants.KINDS), f"the first seven are {[m.kind for m in found[:7]]}")
    text = {f"{m.before} => {m.after}" for m in found}
    for wanted in ("for (int i = 0; i < n; i++) { => for (int i = 0; i <= n; i++) {", "sum += x[i] * -2; => sum -= x[i] * -2;",
                   "sum += x[i] * -2; => sum += x[i] / -2;", "sum += x[i] * -2; => sum += x[i] * 2;", "if (i == skip) continue; => if (i == skip) ;",
                   "if (i == skip) continue; => if (i != skip) continue;", "if (i == skip) continue; => if (!(i == skip)) continue;",
                   "return weigh(2, x, pair.a == 2 ? 2 : 9) != -48; => return weigh(x, 2, pair.a == 2 ? 2 : 9) != -48;",
                   "const struct Pair pair = {.a = argc + 1, => const struct Pair pair = {.a = argc - 1,"):
        check(wanted in text, f"not drawn: {wanted}")
    check(any(m.kind == "index" and m.before == "return sum + last[n - 1];" for m in found), "no index is off by one")


def test_no_fault_is_outside_the_code():
    for m in drawn():
        check("//" not in m.before and not m.before.startswith(("#", "/*", "static const char")), f"drawn in {m.before}")
        check("free" not in m.before, f"drawn in a call that does not count: {m.after}")
        check(m.before != "if (sum > 100) printf(\"%d > 100\\n\", sum - 1);" or "sum - 1" in m.after, f"drawn in a message: {m.after}")
        check("last[4]" not in m.before or "last[4]" in m.after, f"the size of an array: {m.after}")


def test_draw_depends_on_the_line_alone():
    moved = mutants.draw(mutants.Source("code.c", "int before(int a) {\n    return a + 1;\n}\n" + CODE).mutants(1))
    names = [m.name for m in drawn()]
    for kind in mutants.KINDS:
        check([m.name for m in moved if m.kind == kind and m.function != "before"] == [m.name for m in drawn() if m.kind == kind],
              f"{kind}: a function before the others changes their order")
    check([m.name for m in mutants.draw(mutants.Source("code.c", CODE).mutants(2))] != names, "another seed draws the same")


def test_one_program_holds_all_faults():
    compiler = os.environ.get("CC") or "cc"
    if not shutil.which(compiler.split()[0]):
        return check(True, "")
    found = [m for m in drawn() if m.kind != "arguments"]  # these do not all compile
    text = mutants.switched(CODE, list(enumerate(found, 1)))
    check(text.count("\n") == CODE.count("\n"), "lines keep their numbers")
    here = os.path.dirname(os.path.abspath(__file__))
    with tempfile.TemporaryDirectory() as folder:
        source, program, reached = (os.path.join(folder, name) for name in ("code.c", "code", "reached"))
        with open(source, "w", encoding="utf-8") as f:
            f.write(text)
        built = subprocess.run([*compiler.split(), "-w", "-O0", "-I", os.path.join(here, "../.."), "-include",
                                os.path.join(here, "mutant_switch.h"), "-o", program, source, os.path.join(here, "mutant_switch.c")],
                               stderr=subprocess.PIPE, text=True, check=False)
        if not check(built.returncode == 0, built.stderr[-1000:]):
            return
        with open(reached, "wb") as f:
            f.truncate(1 << 16)
        check(subprocess.call([program], env=dict(os.environ, MUTANTS_REACHED=reached)) == 0, "without a fault it fails")
        with open(reached, "rb") as f:
            met = [number for number, byte in enumerate(f.read()) if byte]
        check(met and max(met) <= len(found), f"it meets {met}")
        codes = {m.after: subprocess.call([program], env=dict(os.environ, MUTANT=str(n)), stdout=subprocess.DEVNULL, timeout=10)
                 for n, m in enumerate(found, 1) if m.kind in ("comparison", "sign") and "for" not in m.before}
        check(codes.get("sum += x[i] * 2;") == 1 and codes.get("if (sum >= 100) printf(\"%d > 100\\n\", sum - 1);") == 0, f"exit codes {codes}")


if __name__ == "__main__":
    for test in checks.tests_of(globals()):
        checks.run(test)
    sys.exit(checks.report())
