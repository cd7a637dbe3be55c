// The packed weight file: written and read back to the bit; files that are cut off, altered, or announce what
// is not in them; the table of tensors.
#include "clipc/model/weight_file.h"
#include "dev/test/child.h"

#include <sys/resource.h>

// ---------------------------------------------------------------- a small file

static char folder[] = "/tmp/test_weights.XXXXXX", path[PATH_SIZE];

static ClipConfig small_config(void) {
    ClipConfig c;
    memset(&c, 0, sizeof c);
    c.embed_dim = 5;
    c.image_size = 13;
    c.patch_size = 4;
    c.image_width = 6;
    c.image_layers = 2;
    c.image_heads = 3;
    c.image_mlp = 7;
    c.ln_pre = 1;
    c.context_length = 5;
    c.vocab_size = 11;
    c.text_width = 3;
    c.text_layers = 1;
    c.text_heads = 1;
    c.text_mlp = 9;
    c.eot_id = 10;
    c.image_ln_eps = c.text_ln_eps = 1e-5f;
    c.mean_r = 0.5f;
    c.mean_g = 0.25f;
    c.mean_b = -1;
    c.std_r = c.std_g = c.std_b = 0.3f;
    strcpy(c.name, "small");
    return c;
}

static float *random_arena(const TensorTable *t, unsigned seed) {
    float *arena = (float *)calloc_check(t->floats, sizeof *arena);
    for (size_t i = 0; i < t->floats; i++)
        arena[i] = (float)((double)(seed = seed * 1664525u + 1013904223u) / 4294967296.0 - 0.5);
    return arena;
}

// Writes a file of the configuration; returns its identity as the writer says.
static uint64_t write_file(
    const ClipConfig *c, const TensorTable *t, const float *arena, const char *merges) {
    SafeFile s;
    safe_file_open(&s, path);
    const uint64_t identity = weight_file_write(&s, c, merges, merges ? strlen(merges) : 0, t, arena);
    safe_file_commit(&s);
    return identity;
}

static void write_bytes(const void *data, size_t bytes) {
    FILE *f = fopen_check(path, "wb");
    fwrite_check(data, bytes, f, path);
    fclose(f);
}

// The same with a seal after them.
static void write_sealed(const void *contents, size_t bytes) {
    SafeFile s;
    safe_file_open(&s, path);
    safe_file_write(&s, contents, bytes);
    safe_file_seal(&s);
    safe_file_commit(&s);
}

// ---------------------------------------------------------------- in a process of its own

// Reads the file as the program does.
static void read_weights(const void *file) {
#ifndef CLIPC_GUARDS
    // what a header claims must not be allocated before the file's size is compared
    const struct rlimit most = {256 << 20, 256 << 20};
    setrlimit(RLIMIT_AS, &most);
#endif
    WeightFile w;
    weight_file_open(&w, (const char *)file);
    TensorTable t = tensor_table_create(&w.config);
    float *arena = (float *)malloc_check(t.floats * sizeof *arena);
    weight_file_read(&w, &t, arena);
    free(arena);
    free(w.merges);
    tensor_table_free(&t);
}

// The file is refused with one line that holds its path and `says`. `what` and `number` tell which file it
// was.
static void expect_refused(const char *says, const char *what, long long number) {
    child_run(read_weights, path);
    EXPECT(child_refused(says) && strstr(child.text, path), "%s %lld: exit %d, '%s' should say '%s'", what,
        number, child.code, child.text, says);
}

// Taken, or refused with one line; never a crash.
static void expect_survived(const char *what, long long a, long long b) {
    child_run(read_weights, path);
    EXPECT((child.code == 0 && !child.text[0]) || child_refused(path), "%s %lld %lld: exit %d, '%s'", what, a,
        b, child.code, child.text);
}

// ---------------------------------------------------------------- what is written is read

static void test_what_is_written_is_read_back_to_the_bit(const char *merges) {
    const ClipConfig c = small_config();
    TensorTable t = tensor_table_create(&c);
    float *arena = random_arena(&t, 1), *back = (float *)calloc_check(t.floats, sizeof *back);
    const uint64_t written = write_file(&c, &t, arena, merges);
    uint64_t identity;
    WeightFile w;
    weight_file_open(&w, path);
    EXPECT(sealed_file_holds(fileno(w.f), &identity) && identity == written);
    EXPECT(memcmp(&w.config, &c, sizeof c) == 0);
    EXPECT(merges ? w.merges_bytes == strlen(merges) && strcmp(w.merges, merges) == 0
                  : !w.merges && !w.merges_bytes);
    weight_file_read(&w, &t, back);
    for (int i = 0; i < t.count; i++)
        EXPECT(
            memcmp(arena + t.list[i].offset, back + t.list[i].offset, t.list[i].count * sizeof(float)) == 0,
            "%s", t.list[i].name);
    free(w.merges);
    // one bit of any tensor gives another identity
    for (int i = 0; i < t.count; i++) {
        float *x = arena + t.list[i].offset + t.list[i].count - 1;
        const float before = *x;
        uint32_t bits;
        memcpy(&bits, x, 4);
        bits ^= 1;
        memcpy(x, &bits, 4);
        EXPECT(write_file(&c, &t, arena, merges) != written, "%s", t.list[i].name);
        *x = before;
    }
    EXPECT(write_file(&c, &t, arena, merges) == written);
    free(arena);
    free(back);
    tensor_table_free(&t);
}

static void test_bf16_is_read_as_fp32(void) {
    const ClipConfig c = small_config();
    TensorTable t = tensor_table_create(&c);
    float *arena = random_arena(&t, 2), *back = (float *)calloc_check(t.floats, sizeof *back);
    write_file(&c, &t, arena, NULL);
    int32_t header[HEADER_INTS];
    FILE *f = fopen_check(path, "rb");
    fread_check(header, sizeof header, f, path);
    fclose(f);
    header[HEADER_DTYPE] = DTYPE_BF16;
    header[HEADER_VERSION] = 1; // which had no seal
    f = fopen_check(path, "wb");
    fwrite_check(header, sizeof header, f, path);
    for (int i = 0; i < t.count; i++) {
        const size_t n = t.list[i].count, padded = round_up(2 * n, WEIGHTS_ALIGNMENT);
        uint16_t *half = (uint16_t *)calloc_check(padded, 1);
        for (size_t j = 0; j < n; j++) half[j] = float_to_bf16(arena[t.list[i].offset + j]);
        fwrite_check(half, padded, f, path);
        free(half);
    }
    fclose(f);
    WeightFile w;
    weight_file_open(&w, path);
    EXPECT(w.dtype == DTYPE_BF16);
    weight_file_read(&w, &t, back);
    for (int i = 0; i < t.count; i++)
        for (size_t j = t.list[i].offset; j < t.list[i].offset + t.list[i].count; j++)
            EXPECT(back[j] == bf16_to_float(float_to_bf16(arena[j])) &&
                       fabsf(back[j] - arena[j]) <= fabsf(arena[j]) / 256,
                "%s: %.9g became %.9g", t.list[i].name, arena[j], back[j]);
    free(arena);
    free(back);
    tensor_table_free(&t);
}

static void test_bf16_rounds_to_nearest_even(void) {
    int wrong = 0;
    for (uint32_t half = 0; half < 65536; half++) {
        const float x = bf16_to_float((uint16_t)half), next = bf16_to_float((uint16_t)(half + 1));
        const uint16_t back = float_to_bf16(x);
        wrong += isnan(x) ? !isnan(bf16_to_float(back)) : back != half;
        if (!isfinite(x) || !isfinite(next) || half == 0x7fff) continue;
        const float middle = (float)(((double)x + next) / 2); // a tie: to the even one
        wrong += float_to_bf16(middle) != (half & 1 ? half + 1 : half);
        wrong += float_to_bf16(nextafterf(middle, x)) != half ||
                 float_to_bf16(nextafterf(middle, next)) != half + 1;
    }
    EXPECT(wrong == 0, "%d of 65536", wrong);
}

// ---------------------------------------------------------------- the table

static void test_the_table_counts_and_aligns_tensors(void) {
    ClipConfig c = small_config();
    TensorTable t = tensor_table_create(&c);
    size_t end = 0, parameters = 0;
    for (int i = 0; i < t.count; i++) {
        const Tensor *x = &t.list[i];
        size_t count = 1;
        for (int d = 0; d < x->ndim; d++) count *= (size_t)x->shape[d];
        EXPECT(count == x->count && x->offset % 16 == 0 && x->offset >= end && x->trainable, "%s", x->name);
        EXPECT(!x->decay || x->ndim >= 2, "%s: open_clip decays no vector", x->name);
        EXPECT(tensor_find(&t, x->name) == x, "%s is there twice", x->name);
        end = x->offset + x->count;
        parameters += x->count;
    }
    EXPECT(t.floats >= end && t.parameters == parameters && t.grad_floats >= parameters);
    EXPECT(!tensor_find(&t, "positional_embedding")->decay &&
           !tensor_find(&t, "visual.positional_embedding")->decay &&
           tensor_find(&t, "text_projection")->decay);
    EXPECT(tensor_find(&t, "visual.transformer.resblocks.1.mlp.c_fc.weight")->group == 2 &&
           !tensor_find(&t, "visual.transformer.resblocks.2.mlp.c_fc.weight"));
    // frozen tensors take no space among gradients
    const size_t all = t.grad_floats;
    t.list[0].trainable = false;
    tensor_table_pack(&t);
    EXPECT(t.grad_floats == all - round_up(t.list[0].count, 16) - GUARD_FLOATS && t.list[1].grad_offset == 0);
    float *arena = random_arena(&t, 3);
    EXPECT(!tensor_ptr(&t.list[0], arena, GRADIENT_LAYOUT) &&
           tensor_ptr(&t.list[0], arena, PARAMETER_LAYOUT) == arena &&
           !tensor_ptr(NULL, arena, PARAMETER_LAYOUT));
    free(arena);
    tensor_table_free(&t);
    c.ln_pre = 0;
    t = tensor_table_create(&c);
    EXPECT(!tensor_find(&t, "visual.ln_pre.weight"));
    tensor_table_free(&t);
    // as OpenAI counts its ViT-B/32
    c.ln_pre = 1;
    c.embed_dim = 512;
    c.image_size = 224;
    c.patch_size = 32;
    c.image_width = 768;
    c.image_layers = c.text_layers = 12;
    c.image_mlp = 3072;
    c.context_length = 77;
    c.vocab_size = CLIP_VOCABULARY;
    c.text_width = 512;
    c.text_mlp = 2048;
    t = tensor_table_create(&c);
    EXPECT(
        t.parameters == 151277313 && t.count == 302, "%zu parameters in %d tensors", t.parameters, t.count);
    tensor_table_free(&t);
}

static void add_tensors(int first_tower, int second_tower, int size) {
    Tensor list[2];
    memset(list, 0, sizeof list);
    TensorTable t = {list, 0, 0, 0, 0};
    tensor_table_add(&t, first_tower, -1, "first", true, 0, &size, 1);
    tensor_table_add(&t, second_tower, -1, "second", true, 0, &size, 1);
}

static void add_in_order(const void *unused) {
    (void)unused;
    add_tensors(IMAGE_TOWER, TEXT_TOWER, 3);
}
static void add_out_of_order(const void *unused) {
    (void)unused;
    add_tensors(TEXT_TOWER, IMAGE_TOWER, 3);
}
static void add_without_entries(const void *unused) {
    (void)unused;
    add_tensors(IMAGE_TOWER, TEXT_TOWER, 0);
}

static void take_offset(size_t offset) {
    float arena[64];
    Tensor x;
    memset(&x, 0, sizeof x);
    x.offset = offset;
    tensor_ptr(&x, arena, PARAMETER_LAYOUT);
}

static void take_aligned(const void *unused) {
    (void)unused;
    take_offset(16);
}
static void take_misaligned(const void *unused) {
    (void)unused;
    take_offset(17);
}

static void test_asserts_stop_wrong_tables_and_offsets(void) {
    EXPECT(child_run(add_in_order, NULL) == 0 && child_run(take_aligned, NULL) == 0, "%s", child.text);
    EXPECT_ASSERT(add_out_of_order, NULL, "");
    EXPECT_ASSERT(add_without_entries, NULL, "");
    EXPECT_ASSERT(take_misaligned, NULL, "");
}

// A tensor is in the table exactly where its condition holds.
static void test_a_model_has_the_tensors_of_its_configuration(void) {
    const struct {
        int ln_pre, patch_bias, absent, count; // count of tensors; small_config() has 2 + 1 blocks
    } cases[] = {{1, 0, 0, 50}, {0, 0, 0, 48}, {1, 1, 0, 51}, {0, 1, ABSENT_IMAGE_PROJ, 48},
        {0, 1, ABSENT_TEXT | ABSENT_IMAGE_PROJ, 31}, {1, 0, ABSENT_TEXT, 33}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        ClipConfig c = small_config();
        c.ln_pre = cases[i].ln_pre;
        c.patch_bias = cases[i].patch_bias;
        c.absent = cases[i].absent;
        TensorTable t = tensor_table_create(&c);
        EXPECT(t.count == cases[i].count, "case %zu: %d tensors", i, t.count);
        EXPECT(!tensor_find(&t, "visual.ln_pre.bias") == !c.ln_pre);
        EXPECT(!tensor_find(&t, "visual.conv1.bias") == !c.patch_bias);
        EXPECT(!tensor_find(&t, "visual.proj") == !!(c.absent & ABSENT_IMAGE_PROJ));
        EXPECT(!tensor_find(&t, "transformer.resblocks.0.ln_1.bias") == !!(c.absent & ABSENT_TEXT));
        EXPECT_STRING(t.list[t.count - 1].name, "logit_scale");
        tensor_table_free(&t);
    }
}

static void test_a_field_outside_its_limits_is_named(void) {
    char error[256];
    ClipConfig c = small_config();
    EXPECT(config_check(&c, error));
#define X(type, name, low, high)                                                                             \
    {                                                                                                        \
        ClipConfig bad = small_config();                                                                     \
        bad.name =                                                                                           \
            (type)((low) - ((type)1.5 == 1 ? 1 : fabs((double)(low)) * 0.01)); /* 1.5 is 1 as an int */      \
        EXPECT(!config_check(&bad, error) && strstr(error, #name), #name ": below %g, '%s'", (double)(low),  \
            error);                                                                                          \
        bad.name = (type)((high)*1.01 + 1);                                                                  \
        EXPECT(!config_check(&bad, error) && strstr(error, #name), #name ": above %g, '%s'", (double)(high), \
            error);                                                                                          \
    }
    CONFIG_FIELDS(X)
#undef X
#define WITH(change, says)                                                                              \
    {                                                                                                   \
        ClipConfig bad = small_config();                                                                \
        bad.change;                                                                                     \
        EXPECT(!config_check(&bad, error) && strstr(error, says), "'%s' should say '%s'", error, says); \
    }
    WITH(image_heads = 4, "image_heads")
    WITH(text_heads = 2, "text_heads")
    WITH(eot_id = 11, "eot_id")
    WITH(patch_size = 14, "patch_size")
    WITH(std_g = NAN, "std_g")
    WITH(text_ln_eps = INFINITY, "text_ln_eps")
    ClipConfig fine = small_config();
    fine.image_size = 4096;
    fine.patch_size = 4;
    EXPECT(config_check(&fine, error));
    fine.patch_size = 3;
    EXPECT(!config_check(&fine, error) && strstr(error, "patches"));
}

// ---------------------------------------------------------------- damaged and hostile files

static void test_cut_and_lengthened_files_are_refused(const char *file, size_t bytes) {
    for (size_t n = 0; n < bytes;
         n += n < 64 || (n > HEADER_BYTES - 8 && n < HEADER_BYTES + 70) || n + 66 > bytes ? 1 : 97) {
        write_bytes(file, n);
        expect_refused(n < HEADER_BYTES ? "shorter than" : "short of", "cut to", (long long)n);
    }
    char *longer = (char *)calloc_check(bytes + 4096, 1);
    memcpy(longer, file, bytes);
    for (size_t n = 1; n <= 4096; n *= 4) {
        write_bytes(longer, bytes + n);
        expect_refused("longer than", "bytes more:", (long long)n);
    }
    free(longer);
}

static void test_any_flipped_bit_is_noticed(const char *file, size_t bytes) {
    char *copy = (char *)malloc_check(bytes);
    for (size_t n = 0; n<bytes; n += n + 40> bytes ? 1 : 13) {
        memcpy(copy, file, bytes);
        copy[n] ^= (char)(1 << n % 8);
        write_bytes(copy, bytes);
        expect_refused(path, "bit flipped in byte", (long long)n);
    }
    free(copy);
}

// A file that cannot be read is not called damaged: a folder stands for it.
static void test_read_errors_are_told_from_damage(void) {
    uint64_t identity;
    const int fd = open("/", O_RDONLY);
    errno = 0;
    EXPECT(!sealed_file_holds(fd, &identity) && errno == EISDIR, "%s", strerror(errno));
    EXPECT_STRING(seal_fault(), strerror(EISDIR));
    close(fd);
    write_sealed("undamaged", 9);
    FILE *f = fopen_check(path, "r+b");
    EXPECT(pwrite(fileno(f), "x", 1, 0) == 1);
    errno = EIO;
    EXPECT(!sealed_file_holds(fileno(f), &identity) && errno == 0, "%s", strerror(errno));
    EXPECT_STRING(seal_fault(), "is damaged");
    fclose(f);
}

static void test_damage_anywhere_in_a_file_of_several_blocks_is_noticed(void) {
    const size_t bytes = 3 * SEAL_BLOCK + 777;
    char *data = (char *)calloc_check(bytes, 1);
    Seal seal;
    uint64_t identity, again;
    write_sealed(data, bytes);
    FILE *f = fopen_check(path, "r+b");
    EXPECT(sealed_file_holds(fileno(f), &identity) && seal_read(&seal, fileno(f)));
    EXPECT(seal.contents == (int64_t)bytes && seal.blocks == 4);
    for (size_t at = 5; at < bytes; at += SEAL_BLOCK - 1) {
        const bool in_first = at < SEAL_BLOCK;
        EXPECT(pwrite(fileno(f), "x", 1, (off_t)at) == 1);
        EXPECT(!sealed_file_holds(fileno(f), &again), "byte %zu", at);
        EXPECT(seal_holds(&seal, fileno(f), SEAL_BLOCK) == !in_first, "byte %zu", at);
        EXPECT(pwrite(fileno(f), "", 1, (off_t)at) == 1);
    }
    EXPECT(sealed_file_holds(fileno(f), &again) && again == identity);
    EXPECT(ftruncate(fileno(f), SEAL_BLOCK) == 0 && !sealed_file_holds(fileno(f), &again));
    fclose(f);
    free(seal.checksums);
    free(data);
}

static void test_any_value_in_the_header_is_survived(const char *file, size_t bytes) {
    const int32_t values[] = {0, -1, 1, 2, 7, 255, 65536, 1 << 24, 0x7fffffff, INT32_MIN,
        0x7f800000 /* inf */, 0x7fc00000 /* NaN */, 0x3f800000 /* 1.0 */};
    char *copy = (char *)malloc_check(bytes);
    for (int field = 0; field < HEADER_NAME; field++) {
        for (size_t v = 0; v < sizeof values / sizeof *values; v++) {
            memcpy(copy, file, bytes);
            memcpy(copy + 4 * field, &values[v], 4);
            write_sealed(copy, bytes);
            expect_survived("field, value:", field, values[v]);
        }
        if (field >= HEADER_CONFIG + 8) field += field > HEADER_CONFIG + 40 ? 15 : 0; // what nobody reads
    }
    // several at once, and every length to go with them
    uint64_t seed = 9;
    for (int i = 0; i < 600; i++) {
        memcpy(copy, file, bytes);
        for (int k = 0; k < 1 + i % 4; k++) {
            seed = seed * 6364136223846793005ull + 1442695040888963407ull;
            const int32_t value = seed >> 60 & 1 ? values[(seed >> 40) % (sizeof values / sizeof *values)]
                                                 : (int32_t)((seed >> 33) % 64);
            memcpy(copy + 4 * (HEADER_FIELDS + (seed >> 20) % 45), &value, 4);
        }
        write_sealed(copy, bytes - seed % 2 * (seed >> 8) % bytes);
        expect_survived("mix", i, 0);
    }
    free(copy);
}

// A header that tells the truth about its size in every way, of a model as large as the limits allow.
static void test_a_header_of_the_largest_model_allocates_nothing(const char *file) {
    int32_t header[HEADER_INTS];
    memcpy(header, file, sizeof header);
    ClipConfig c = small_config();
    c.image_size = 4096;
    c.patch_size = 4;
    c.image_width = c.text_width = c.embed_dim = 16384;
    c.image_heads = c.text_heads = 1;
    c.image_layers = c.text_layers = 256;
    c.image_mlp = c.text_mlp = 65536;
    c.vocab_size = 4194304;
    c.context_length = 65536;
    TensorTable t = tensor_table_create(&c);
    int field = HEADER_CONFIG;
#define X(type, name, low, high) memcpy(&header[field++], &c.name, 4);
    CONFIG_FIELDS(X)
#undef X
    header[HEADER_TENSORS] = t.count;
    EXPECT(t.parameters > (size_t)1 << 40, "%zu", t.parameters); // does not wrap round
    write_bytes(header, sizeof header);
    expect_refused("short of", "as large as the limits allow", 0);
    tensor_table_free(&t);
}

static void test_a_number_that_is_not_finite_is_refused_with_its_tensor(
    const TensorTable *t, const char *file, size_t bytes) {
    char *copy = (char *)malloc_check(bytes);
    size_t at = bytes;
    for (int i = 0; i < t->count; i++) at -= round_up(t->list[i].count * sizeof(float), WEIGHTS_ALIGNMENT);
    for (int i = 0; i < t->count; i++) {
        const float bad[] = {NAN, INFINITY, -INFINITY};
        memcpy(copy, file, bytes);
        memcpy(copy + at + 4 * (i % 2 ? t->list[i].count - 1 : 0), &bad[i % 3], 4);
        write_sealed(copy, bytes);
        expect_refused(t->list[i].name, "not finite: tensor", i);
        at += round_up(t->list[i].count * sizeof(float), WEIGHTS_ALIGNMENT);
    }
    free(copy);
}

static void test_files_of_other_kinds_are_refused(const char *file, size_t bytes) {
    char *copy = (char *)malloc_check(bytes);
    memcpy(copy, file, bytes);
    memcpy(copy, "PK\3\4", 4); // a .pt file is a zip
    write_bytes(copy, bytes);
    expect_refused("dev/convert.py", "other file", 0);
    memcpy(copy, file, bytes);
    copy[4 * HEADER_VERSION] = 9;
    write_bytes(copy, bytes);
    expect_refused("version 9", "other file", 0);
    memcpy(copy, file, bytes);
    copy[4 * HEADER_TOKENIZER] = TOKENIZER_VOCABULARY + 1;
    write_sealed(copy, bytes);
    expect_refused("tokenizer of kind 2", "other file", 0);
    copy[4 * HEADER_TOKENIZER] = TOKENIZER_VOCABULARY; // it has merges
    write_sealed(copy, bytes);
    expect_refused("not of the kind 1", "other file", 0);
    memcpy(copy, file, bytes);
    memset(copy + 4 * HEADER_NAME, '\n', NAME_BYTES); // no end, no letter
    write_sealed(copy, bytes);
    WeightFile w;
    weight_file_open(&w, path);
    EXPECT(strlen(w.config.name) == NAME_BYTES - 1 && strspn(w.config.name, "?") == NAME_BYTES - 1);
    fclose(w.f);
    free(w.merges);
    unlink(path);
    expect_refused("cannot open", "other file", 0);
    mkdir(path, 0777);
    expect_refused("it is a folder", "other file", 0);
    rmdir(path);
    free(copy);
}

int main(void) {
    if (!mkdtemp(folder)) die(EXIT_RUNTIME, "%s: %s", folder, strerror(errno));
    path_format(path, "%s/w.bin", folder);
    RUN(test_what_is_written_is_read_back_to_the_bit, NULL);
    RUN(test_what_is_written_is_read_back_to_the_bit, "a b\nab c\n");
    RUN(test_bf16_is_read_as_fp32);
    RUN(test_bf16_rounds_to_nearest_even);
    RUN(test_the_table_counts_and_aligns_tensors);
    RUN(test_a_field_outside_its_limits_is_named);
    RUN(test_a_model_has_the_tensors_of_its_configuration);
    RUN(test_asserts_stop_wrong_tables_and_offsets);

    const ClipConfig c = small_config();
    TensorTable t = tensor_table_create(&c);
    float *arena = random_arena(&t, 4);
    size_t whole;
    write_file(&c, &t, arena, "a b\nab c\n");
    char *file = file_read_all(path, &whole);
    const size_t bytes = whole - (SEAL_END_BYTES + 4); // without its seal, of one block
    EXPECT(child_run(read_weights, path) == 0, "%s", child.text);
    RUN(test_cut_and_lengthened_files_are_refused, file, whole);
    RUN(test_any_flipped_bit_is_noticed, file, whole);
    RUN(test_read_errors_are_told_from_damage);
    RUN(test_damage_anywhere_in_a_file_of_several_blocks_is_noticed);
    RUN(test_any_value_in_the_header_is_survived, file, bytes);
    RUN(test_a_header_of_the_largest_model_allocates_nothing, file);
    RUN(test_a_number_that_is_not_finite_is_refused_with_its_tensor, &t, file, bytes);
    RUN(test_files_of_other_kinds_are_refused, file, bytes);
    free(file);
    free(arena);
    tensor_table_free(&t);
    unlink(path);
    rmdir(folder);
    return test_report();
}
