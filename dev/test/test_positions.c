// Resized position embeddings (clipc/model/open_model.h): properties that any interpolation has, and with a
// folder (the stored results' model/) resize.npz from torch.
#include "clipc/model/open_model.h"
#include "dev/test/npz.h"
#include "dev/test/test.h"

static void test_same_size_is_a_copy(void) {
    float in[10 * 3], out[10 * 3];
    for (int i = 0; i < 30; i++) in[i] = (float)sin(i);
    positions_resize_image(out, 3, in, 3, 3);
    EXPECT(memcmp(in, out, sizeof in) == 0);
    memset(out, 0, sizeof out);
    positions_resize_text(out, 10, in, 10, 3);
    EXPECT(memcmp(in, out, sizeof in) == 0);
}

// Growing and shrinking: a constant stays, the class row is copied, and what is symmetric about its middle
// stays so.
static void test_image_keeps_constants_and_symmetry(void) {
    const int sizes[][2] = {{5, 3}, {3, 5}, {7, 24}, {24, 7}, {1, 4}, {4, 1}, {13, 12}};
    for (size_t k = 0; k < sizeof sizes / sizeof *sizes; k++) {
        const int from = sizes[k][0], to = sizes[k][1];
        float *in = (float *)malloc_check(((size_t)from * (size_t)from + 1) * 2 * sizeof(float));
        float *out = (float *)malloc_check(((size_t)to * (size_t)to + 1) * 2 * sizeof(float));
        in[0] = 9;
        in[1] = -9;
        for (int i = 0; i < from * from; i++) {
            in[2 * (1 + i)] = 0.75f;
            in[2 * (1 + i) + 1] =
                (float)(abs(2 * (i % from) - from + 1) + 3 * abs(2 * (i / from) - from + 1));
        }
        positions_resize_image(out, to, in, from, 2);
        EXPECT(out[0] == 9 && out[1] == -9);
        for (int y = 0; y < to; y++)
            for (int x = 0; x < to; x++) {
                const float *here = out + 2 * (1 + (size_t)(y * to + x));
                const float *across = out + 2 * (1 + (size_t)((to - 1 - y) * to + to - 1 - x));
                EXPECT_CLOSE(here[0], 0.75, 1e-6);
                EXPECT_CLOSE(here[1], across[1], 1e-5);
            }
        free(in);
        free(out);
    }
}

// Text positions are linear between two rows, and constant before the first and after the last.
static void test_text_is_piecewise_linear(void) {
    const float in[2] = {1, 5};
    float out[8];
    positions_resize_text(out, 8, in, 2, 1);
    const double expected[] = {1, 1, 1.5, 2.5, 3.5, 4.5, 5, 5}; // (i + .5) / 4 - .5, cut to 0 … 1
    for (int i = 0; i < 8; i++) EXPECT_CLOSE(out[i], expected[i], 1e-6);
}

static void expect_same(const char *name, const float *out, const NpzArray *want) {
    const float *w = (const float *)want->data;
    double worst = 0;
    for (int64_t i = 0; i < want->count; i++) {
        const double off = fabs((double)out[i] - w[i]);
        worst = off <= worst ? worst : off; // NaN becomes the worst
    }
    EXPECT(worst <= 1e-6, "%s: %.3g off", name, worst);
}

static void test_resized_positions_are_those_of_torch(const char *folder) {
    char path[PATH_SIZE], name[64];
    path_format(path, "%s/resize.npz", folder);
    Npz npz = npz_read(path);
    int image = 0, text = 0;
    for (size_t i = 0; i < npz.count; i++) {
        const NpzArray *in = &npz.arrays[i];
        if (!ends_with(in->name, ".in")) continue;
        snprintf(name, sizeof name, "%.*s.out", (int)strlen(in->name) - 3, in->name);
        const NpzArray *want = npz_find(&npz, name);
        EXPECT(want && in->ndim == 2 && want->ndim == 2 && strcmp(in->dtype, "f4") == 0 &&
                   strcmp(want->dtype, "f4") == 0,
            "%s", name);
        if (!want) continue;
        float *out = (float *)malloc_check((size_t)want->count * sizeof *out);
        const int C = (int)in->shape[1], from = (int)in->shape[0], to = (int)want->shape[0];
        if (strncmp(name, "image", 5) == 0) {
            positions_resize_image(
                out, (int)lround(sqrt(to - 1)), (const float *)in->data, (int)lround(sqrt(from - 1)), C);
            image++;
        } else {
            positions_resize_text(out, to, (const float *)in->data, from, C);
            text++;
        }
        expect_same(name, out, want);
        free(out);
    }
    EXPECT(image && text, "%s holds %d image and %d text cases", path, image, text);
    npz_free(&npz);
}

int main(int argc, char **argv) {
    RUN(test_same_size_is_a_copy);
    RUN(test_image_keeps_constants_and_symmetry);
    RUN(test_text_is_piecewise_linear);
    if (argc > 1) RUN(test_resized_positions_are_those_of_torch, argv[1]);
    return test_report();
}
