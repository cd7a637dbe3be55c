// Packed weights (.bin): header, tokenizer section, tensors.
#include "dev/fuzz/fuzz.h"

#include "clipc/model/weight_file.h"
#include "dev/fuzz/sealed.h"

enum { FILE_MOST = 1 << 16 };

// Makes the file as long as its header announces, the header name the right number of tensors, and the seal
// right: otherwise hardly an input comes further than to these checks.
static size_t repair(uint8_t *file, size_t size) {
    int32_t header[HEADER_INTS];
    ClipConfig c;
    char error[256];
    int field = HEADER_CONFIG;
    if (size < HEADER_BYTES) return size;
    memset(&c, 0, sizeof c);
    memcpy(header, file, HEADER_BYTES);
#define X(type, name, low, high) memcpy(&c.name, &header[field++], 4);
    CONFIG_FIELDS(X)
#undef X
    const int64_t merges = header[HEADER_MERGES_BYTES];
    const int dtype = header[HEADER_DTYPE];
    if (!config_check(&c, error) || merges < 0 || merges > FILE_MOST) return size;
    TensorTable t = tensor_table_create(&c);
    const size_t want = HEADER_BYTES + round_up((size_t)merges, WEIGHTS_ALIGNMENT) +
                        weights_tensor_bytes(&t, dtype == DTYPE_BF16 ? DTYPE_BF16 : DTYPE_FP32);
    header[HEADER_TENSORS] = t.count;
    tensor_table_free(&t);
    if (want > FILE_MOST) return size;
    memcpy(file, header, HEADER_BYTES);
    return fuzz_fit(file, size, want, header[HEADER_VERSION] > 1);
}

static void fuzz_one(const uint8_t *data, size_t size) {
    static uint8_t file[FILE_MOST + FUZZ_SEAL_BYTES];
    WeightFile w;
    if (size < 1 || size > FILE_MOST) return;
    memcpy(file, data + 1, size - 1);
    const size_t bytes = data[0] & 1 ? repair(file, size - 1) : size - 1;
    weight_file_open(&w, fuzz_file(file, bytes));
    TensorTable t = tensor_table_create(&w.config);
    float *arena = (float *)aligned_malloc_check(t.floats * sizeof *arena);
    weight_file_read(&w, &t, arena);
    for (int i = 0; i < t.count; i++)
        fuzz_use(tensor_ptr(&t.list[i], arena, PARAMETER_LAYOUT), t.list[i].count * sizeof *arena);
    if (w.merges) fuzz_use(w.merges, w.merges_bytes + 1);
    free(arena);
    free(w.merges);
    tensor_table_free(&t);
}
