// The smallest test harness that can fail: every EXPECT counts, NaN fails, and main() returns test_report().
#ifndef CLIPC_TEST_H
#define CLIPC_TEST_H

#include <math.h>
#include <stdio.h>
#include <string.h>

static int tests_passed, tests_failed;

#define EXPECT(condition, ...)                                                                        \
    do {                                                                                              \
        if (condition) {                                                                              \
            tests_passed++;                                                                           \
        } else {                                                                                      \
            tests_failed++;                                                                           \
            if (tests_failed <= 20)                                                                   \
                printf("FAILED %s:%d: %s: ", __FILE__, __LINE__, #condition), printf("" __VA_ARGS__), \
                    putchar('\n');                                                                    \
        }                                                                                             \
    } while (0)

// NaN compares false, so it fails
#define EXPECT_CLOSE(a, b, tolerance)                                                 \
    EXPECT(fabs((double)(a) - (double)(b)) <= (tolerance)*fmax(1, fabs((double)(b))), \
        "%.9g instead of %.9g", (double)(a), (double)(b))
#define EXPECT_STRING(a, b) EXPECT(strcmp(a, b) == 0, "'%s' instead of '%s'", a, b)

// The closing line; the exit code of the test program. No check at all is a failure.
static inline int test_report(void) {
    printf("%d passed, %d failed\n", tests_passed, tests_failed + (tests_passed + tests_failed == 0));
    return tests_failed || !tests_passed;
}

#endif
