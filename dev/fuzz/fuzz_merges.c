// The table of merges in a weight file, and captions encoded by it.
#include "dev/fuzz/fuzz.h"

#include "clipc/data/tokenizer.h"

static void fuzz_one(const uint8_t *data, size_t size) {
    int ids[9];
    char error[256];
    Tokenizer *t = tokenizer_create((const char *)data, size, error);
    if (!t) {
        fuzz_use(error, strlen(error));
        return;
    }
    const size_t length = size < 64 ? size : 64;
    const int n = tokenizer_encode(t, (const char *)data, length, ids, 9);
    if (n < 2 || n > 9 || ids[n - 1] != t->end_of_text) fuzz_fault("%d ids", n);
    tokenizer_free(t);
}
