// Random numbers and hashes: runs and files of earlier versions depend on these very values.
#include "clipc/base/utils.h"

#include "dev/test/test.h"

enum { DRAWS = 100000 };

// The generator of Steele, Lea, Flood 2014; its first values from 1234567 are published.
static void test_generator_is_splitmix64(void) {
    static const uint64_t expected[] = {6457827717110365317ull, 3203168211198807973ull,
        9817491932198370423ull, 4593380528125082431ull, 16408922859458223821ull};
    Rand r = {1234567};
    for (int i = 0; i < 5; i++) EXPECT(rand_u64(&r) == expected[i], "value %d", i);
}

static void test_streams_keep_their_values(void) {
    EXPECT(rand_for(1, 2, 3).state == 0x7d46ea1b613997cbull &&
           rand_for(2, 1, 3).state == 0xabefbc6c99e0983cull &&
           rand_for(1, 3, 2).state == 0xd3fdf8d179cd8e55ull);
    static const int64_t expected[] = {7, 2, 5, 3, 0, 1, 4, 6};
    int64_t items[] = {0, 1, 2, 3, 4, 5, 6, 7};
    Rand r = rand_for(1, 2, 3);
    rand_shuffle(&r, items, 8);
    for (int i = 0; i < 8; i++) EXPECT(items[i] == expected[i], "item %d: %d", i, (int)items[i]);
}

// Mean, variance and fourth moment of a distribution, to five standard errors.
static void expect_moments(const double *x, double mean, double variance, double kurtosis) {
    double sum = 0, square = 0, fourth = 0;
    for (int i = 0; i < DRAWS; i++) sum += x[i] - mean;
    for (int i = 0; i < DRAWS; i++) square += pow(x[i] - mean, 2);
    for (int i = 0; i < DRAWS; i++) fourth += pow(x[i] - mean, 4);
    EXPECT(fabs(sum / DRAWS) < 5 * sqrt(variance / DRAWS), "mean %g", mean + sum / DRAWS);
    EXPECT(fabs(square / DRAWS / variance - 1) < 5 * sqrt((kurtosis - 1) / DRAWS), "variance %g",
        square / DRAWS);
    EXPECT(fabs(fourth / DRAWS / pow(variance, 2) / kurtosis - 1) < 0.05, "fourth moment %g", fourth / DRAWS);
}

static void test_distributions_have_their_moments(void) {
    double *x = (double *)malloc_check(DRAWS * sizeof *x), low = 1, high = 0;
    Rand r = rand_for(7, 0, 0);
    for (int i = 0; i < DRAWS; i++) {
        x[i] = rand_uniform(&r);
        low = fmin(low, x[i]);
        high = fmax(high, x[i]);
    }
    expect_moments(x, 0.5, 1 / 12.0, 1.8);
    EXPECT(low >= 0 && low < 1e-3 && high > 1 - 1e-3 && high < 1, "%g … %g", low, high);
    for (int i = 0; i < DRAWS; i++) x[i] = rand_range(&r, -1, 3);
    expect_moments(x, 1, 16 / 12.0, 1.8);
    for (int i = 0; i < DRAWS; i++) x[i] = rand_normal(&r);
    expect_moments(x, 0, 1, 3);
    free(x);
}

static void test_draws_below_a_number_are_even(void) {
    int64_t counts[7] = {0};
    Rand r = rand_for(8, 0, 0);
    for (int i = 0; i < DRAWS; i++) counts[rand_below(&r, 7)]++;
    for (int k = 0; k < 7; k++)
        EXPECT(
            fabs((double)counts[k] - DRAWS / 7.0) < 5 * sqrt(DRAWS * 6 / 49.0), "%d: %d", k, (int)counts[k]);
    const uint64_t n = 3ull << 62; // a third of all values is drawn again: none may fold onto the lower ones
    int64_t lower = 0;
    for (int i = 0; i < DRAWS; i++) {
        const uint64_t x = rand_below(&r, n);
        EXPECT(x < n);
        lower += x < 1ull << 62;
    }
    EXPECT(fabs((double)lower / DRAWS - 1 / 3.0) < 0.01, "%g", (double)lower / DRAWS);
    EXPECT(rand_below(&r, 1) == 0);
}

// FNV-1a (published values) up to seven bytes, by words from eight on.
static void test_hashes_keep_their_values(void) {
    EXPECT(hash_bytes(HASH_START, "", 0) == HASH_START);
    EXPECT(hash_bytes(HASH_START, "a", 1) == 0xaf63dc4c8601ec8cull);
    EXPECT(hash_bytes(HASH_START, "foobar", 6) == 0x85944171f73967e8ull);
    EXPECT(hash_bytes(HASH_START, "12345678", 8) == 0x49f2564e64f252b2ull);
    EXPECT(hash_bytes(HASH_START, "the quick brown fox", 19) == 0x408c0d4a44d31f1dull);
    EXPECT(hash_bytes(hash_bytes(HASH_START, "the quick brown ", 16), "fox", 3) == 0x408c0d4a44d31f1dull,
        "in two parts");
}

int main(void) {
    RUN(test_generator_is_splitmix64);
    RUN(test_streams_keep_their_values);
    RUN(test_distributions_have_their_moments);
    RUN(test_draws_below_a_number_are_even);
    RUN(test_hashes_keep_their_values);
    return test_report();
}
