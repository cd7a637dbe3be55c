// Captions: cleaned, lower-cased, encoded to token ids.
#include "dev/fuzz/fuzz.h"

#include "clipc/data/tokenizer.h"

static const Tokenizer *tokenizer(void) {
    static Tokenizer *t;
    char error[256];
    if (t) return t;
    fuzz_inside = false; // it outlives the input
    t = tokenizer_create(tokenizer_builtin_merges, (size_t)tokenizer_builtin_merges_length, error);
    fuzz_inside = true;
    if (!t) fuzz_fault("%s", error);
    return t;
}

static void fuzz_one(const uint8_t *data, size_t size) {
    enum { CONTEXT = 77 };
    int ids[CONTEXT];
    if (size < 1) return;
    const Tokenizer *t = tokenizer();
    const int context = 2 + data[0] % (CONTEXT - 1);
    const int n = tokenizer_encode(t, (const char *)data + 1, size - 1, ids, context);
    if (n < 2 || n > context || ids[0] != t->start_of_text || ids[n - 1] != t->end_of_text)
        fuzz_fault("%d ids, the first %d, the last %d", n, ids[0], n > 0 && n <= context ? ids[n - 1] : -1);
    for (int i = 0; i < context; i++)
        if (ids[i] < 0 || ids[i] >= t->vocabulary || (i >= n && ids[i])) fuzz_fault("id %d is %d", i, ids[i]);
}
