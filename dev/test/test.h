// The smallest test harness that can fail: every EXPECT counts, NaN fails, and main() is a list of RUN()
// that ends with `return test_report();`. In the environment, TEST=text runs only tests with such a name, and
// STOP=1 ends with the first failure.
#ifndef CLIPC_TEST_H
#define CLIPC_TEST_H

#include <math.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int tests_passed, tests_failed; // EXPECTs
static int tests_run, tests_left_out;  // RUNs

static inline bool test_is_selected(const char *name) {
    const char *text = getenv("TEST");
    const bool selected = !text || strstr(name, text);
    if (selected) tests_run++;
    else tests_left_out++;
    return selected;
}

// RUN(test_name_is_a_sentence); or, with arguments, RUN(test_name_is_a_sentence, first, second);
#define RUN(test, ...)                                  \
    do {                                                \
        if (test_is_selected(#test)) test(__VA_ARGS__); \
    } while (0)

// The closing lines; returns the exit code of the program. No check, or no test of that name, is a failure.
static inline int test_report(void) {
    if (tests_left_out)
        printf("TEST=%s: %d of %d tests ran\n", getenv("TEST"), tests_run, tests_run + tests_left_out);
    if (tests_passed + tests_failed == 0 || (tests_left_out && !tests_run)) tests_failed++;
    printf("%d passed, %d failed\n", tests_passed, tests_failed);
    return tests_failed != 0;
}

#define EXPECT(condition, ...)                                                \
    do {                                                                      \
        if (condition) {                                                      \
            tests_passed++;                                                   \
        } else {                                                              \
            tests_failed++;                                                   \
            if (tests_failed <= 20) {                                         \
                printf("FAILED %s:%d: %s: ", __FILE__, __LINE__, #condition); \
                printf("" __VA_ARGS__);                                       \
                putchar('\n');                                                \
            }                                                                 \
            if (getenv("STOP")) exit(test_report());                          \
        }                                                                     \
    } while (0)

// NaN compares false, so it fails
#define EXPECT_CLOSE(a, b, tolerance)                                                 \
    EXPECT(fabs((double)(a) - (double)(b)) <= (tolerance)*fmax(1, fabs((double)(b))), \
        "%.9g instead of %.9g", (double)(a), (double)(b))
#define EXPECT_STRING(a, b) EXPECT(strcmp(a, b) == 0, "'%s' instead of '%s'", a, b)

#endif
