// Packed vocabularies in a weight file, and captions encoded by them. An input: the length of the caption,
// the vocabulary, the caption.
#include "dev/fuzz/fuzz.h"

#include "clipc/data/tokenizer.h"

enum { FILE_MOST = 1 << 15, CONTEXT = 40 };

// Makes the bytes of the texts what is left by the other parts, where that is possible.
static void set_text_bytes(uint8_t *file, size_t bytes) {
    VocabularyHeader h;
    if (bytes < sizeof h) return;
    memcpy(&h, file, sizeof h);
    h.f.text_bytes = 0;
    if (vocabulary_check_header(&h)) return;
    const size_t other = vocabulary_table_bytes(&h) + (size_t)h.f.charsmap_bytes;
    if (other > bytes) return;
    h.f.text_bytes = (int32_t)(bytes - other);
    memcpy(file, &h, sizeof h);
}

static void fuzz_one(const uint8_t *data, size_t size) {
    static uint8_t file[FILE_MOST];
    int ids[CONTEXT];
    char error[256];
    if (size < 1 || size > FILE_MOST || data[0] > size - 1) return;
    const size_t length = data[0], bytes = size - 1 - length;
    memcpy(file, data + 1, bytes);
    set_text_bytes(file, bytes);
    if (!vocabulary_is_packed((const char *)file, bytes)) return;
    Tokenizer *t = tokenizer_create((const char *)file, bytes, error);
    if (!t) {
        fuzz_use(error, strlen(error));
        return;
    }
    const int n = tokenizer_encode(t, (const char *)data + 1 + bytes, length, ids, CONTEXT);
    if (n < 1 || n > CONTEXT || ids[n - 1] != t->end_of_text) fuzz_fault("%d ids", n);
    for (int i = 0; i < CONTEXT; i++)
        if (ids[i] < 0 || ids[i] >= t->vocabulary || (i >= n && ids[i] != t->padding))
            fuzz_fault("id %d is %d", i, ids[i]);
    tokenizer_free(t);
}
