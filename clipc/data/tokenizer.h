// A caption becomes ids, by what travels in the weight file: CLIP's table of merges, or a packed vocabulary
// (clipc/data/vocabulary.h).
//
// With merges this is open_clip's SimpleTokenizer: the ids of byte-pair-encoded words (Radford et al. 2021,
// Sennrich et al. 2016).
// Ids: 256 bytes, 256 bytes that end a word, one for every merge in the order of the table, start of text,
// end of text. With CLIP's 48,894 merges that is 49,408, start 49406, end 49407.
#ifndef CLIPC_TOKENIZER_H
#define CLIPC_TOKENIZER_H

#include "clipc/data/pipeline.h"   // Vocabulary, pipeline_encode
#include "clipc/data/text_clean.h" // text_clean, MojibakeClasses

#include <assert.h>

// ---------------------------------------------------------------- the table that comes with the program

// data/bpe_merges.txt as it is, without a NUL at its end. The path is relative to the repository's root,
// where the programs are built.
#ifndef __CUDA_ARCH__
#ifdef __APPLE__
__asm__(".const_data\n.globl _tokenizer_builtin_merges, "
        "_tokenizer_builtin_merges_length\n_tokenizer_builtin_merges:\n.incbin \"data/bpe_merges.txt\"\n"
        "1:\n.balign 8\n_tokenizer_builtin_merges_length:\n.quad 1b - _tokenizer_builtin_merges\n.text\n");
#else
__asm__(
    ".pushsection .rodata\n.globl tokenizer_builtin_merges, "
    "tokenizer_builtin_merges_length\ntokenizer_builtin_merges:\n.incbin \"data/bpe_merges.txt\"\n"
    "1:\n.balign 8\ntokenizer_builtin_merges_length:\n.quad 1b - tokenizer_builtin_merges\n.popsection\n");
#endif
#endif
#ifdef __cplusplus
extern "C" {
#endif
extern const char tokenizer_builtin_merges[];
extern const uint64_t tokenizer_builtin_merges_length;
#ifdef __cplusplus
}
#endif

// ---------------------------------------------------------------- the tables

enum {
    TOKENIZER_BYTES = 256,              // as many ids again are bytes that end a word
    TOKENIZER_PAIR_SLOTS = 1 << 17,     // twice the most merges
    TOKENIZER_MAX_VOCABULARY = 1 << 16, // so that two ids make one 32-bit key
    TOKENIZER_NO_MERGE = 0x7FFFFFFF,
};

typedef struct Tokenizer {
    int vocabulary;                 // every id is below it
    int start_of_text, end_of_text; // start: -1 where a caption has none
    int padding;                    // id of the places after the end of text
    TextCleaning cleaning;
    Vocabulary *words;            // NULL: the merges below
    int byte_id[TOKENIZER_BYTES]; // of a byte inside a word; of one that ends a word 256 more
    struct {
        uint32_t pair;             // left id << 16 | right id
        int merged;                // the id that the two become; 0: an empty slot
    } pairs[TOKENIZER_PAIR_SLOTS]; // a hash table with open addressing
    MojibakeClasses mojibake;
} Tokenizer;

static inline size_t tokenizer_pair_slot(const Tokenizer *t, uint32_t pair) {
    size_t i = (pair * 0x9E3779B1u) >> 15;
    while (t->pairs[i].merged && t->pairs[i].pair != pair) i = (i + 1) % TOKENIZER_PAIR_SLOTS;
    return i;
}

// The id that two neighbours become (a smaller one is an earlier merge), or TOKENIZER_NO_MERGE.
static inline int tokenizer_merge(const Tokenizer *t, int left, int right) {
    int merged = t->pairs[tokenizer_pair_slot(t, (uint32_t)left << 16 | (uint32_t)right)].merged;
    return merged ? merged : TOKENIZER_NO_MERGE;
}

// While the table is read: the spelling of every symbol, and which symbol has a spelling.
typedef struct {
    char *spellings; // one after the other
    size_t used;
    struct {
        size_t start, length;
    } symbol[TOKENIZER_MAX_VOCABULARY];
    int slots[TOKENIZER_PAIR_SLOTS]; // id + 1 by the hash of the spelling
    int count;
} TokenizerSymbols;

static inline size_t tokenizer_symbol_slot(const TokenizerSymbols *s, const char *spelling, size_t n) {
    size_t i = hash_bytes(HASH_START, spelling, n) % TOKENIZER_PAIR_SLOTS;
    for (; s->slots[i]; i = (i + 1) % TOKENIZER_PAIR_SLOTS) {
        int id = s->slots[i] - 1;
        if (s->symbol[id].length == n && memcmp(s->spellings + s->symbol[id].start, spelling, n) == 0) break;
    }
    return i;
}

// Adds the symbol left + right; returns its id, or -1 when it exists already.
static inline int tokenizer_symbol_add(
    TokenizerSymbols *s, const char *left, size_t left_length, const char *right, size_t right_length) {
    char *spelling = s->spellings + s->used;
    memcpy(spelling, left, left_length);
    memcpy(spelling + left_length, right, right_length);
    size_t slot = tokenizer_symbol_slot(s, spelling, left_length + right_length);
    if (s->slots[slot]) return -1;
    s->symbol[s->count].start = s->used;
    s->symbol[s->count].length = left_length + right_length;
    s->used += left_length + right_length;
    s->slots[slot] = ++s->count;
    return s->count - 1;
}

// GPT-2's spelling of bytes: first the visible ones of Latin-1 as themselves, then the others as U+0100,
// U+0101 and so on.
static inline void tokenizer_add_bytes(Tokenizer *t, TokenizerSymbols *s) {
    for (int pass = 0, next = 0x100; pass < 2; pass++)
        for (int b = 0; b < TOKENIZER_BYTES; b++) {
            bool visible = (b >= '!' && b <= '~') || (b >= 0xA1 && b <= 0xFF && b != 0xAD);
            if (visible != (pass == 0)) continue;
            unsigned char spelling[4];
            size_t n = utf8_write(spelling, (uint32_t)(visible ? b : next++));
            t->byte_id[b] = tokenizer_symbol_add(s, (char *)spelling, n, "", 0);
        }
    for (int id = 0; id < TOKENIZER_BYTES; id++)
        tokenizer_symbol_add(s, s->spellings + s->symbol[id].start, s->symbol[id].length, "</w>", 4);
}

// Reads `left right` (length bytes); false with the reason when it is not a merge of two earlier symbols
// into a new one.
static inline bool tokenizer_add_merge(
    Tokenizer *t, TokenizerSymbols *s, const char *line, size_t length, int number, char error[256]) {
    const char *blank = (const char *)memchr(line, ' ', length);
    const char *part[2] = {line, blank ? blank + 1 : line};
    size_t n[2] = {(size_t)(part[1] - line), length - (size_t)(part[1] - line)};
    if (n[0] < 2 || !n[1] || memchr(part[1], ' ', n[1]))
        return snprintf(error, 256, "merge %d is not two symbols separated by a blank", number), false;
    n[0]--; // the blank
    int id[2];
    for (int i = 0; i < 2; i++) {
        id[i] = s->slots[tokenizer_symbol_slot(s, part[i], n[i])] - 1;
        if (id[i] < 0)
            return snprintf(error, 256, "merge %d: no earlier merge makes '%.*s'", number,
                       n[i] < 99 ? (int)n[i] : 99, part[i]),
                   false;
    }
    if (s->count >= TOKENIZER_MAX_VOCABULARY - 2)
        return snprintf(error, 256, "more than %d merges", number - 1), false;
    int merged = tokenizer_symbol_add(s, part[0], n[0], part[1], n[1]);
    if (merged < 0) return snprintf(error, 256, "merge %d makes what an earlier one makes", number), false;
    uint32_t pair = (uint32_t)id[0] << 16 | (uint32_t)id[1];
    size_t slot = tokenizer_pair_slot(t, pair);
    t->pairs[slot].pair = pair;
    t->pairs[slot].merged = merged;
    return true;
}

static inline void tokenizer_free(Tokenizer *t) {
    if (t) vocabulary_free(t->words);
    free(t);
}

static inline bool tokenizer_read_vocabulary(
    Tokenizer *t, const char *section, size_t length, char error[256]) {
    t->words = pipeline_create(section, length, error);
    if (!t->words) return false;
    const VocabularyHeader *h = &t->words->header;
    t->vocabulary = h->f.vocabulary;
    t->start_of_text = h->f.start;
    t->end_of_text = h->f.end;
    t->padding = h->f.padding;
    t->cleaning = (TextCleaning)h->f.cleaning;
    return true;
}

// From the text of a merge table: lines `left right` in order of rank, no header line. False, with the
// reason, when it is malformed.
static inline bool tokenizer_read_merges(Tokenizer *t, const char *merges, size_t length, char error[256]) {
    TokenizerSymbols *s = (TokenizerSymbols *)calloc_check(1, sizeof *s);
    // a merge's spelling is no longer than its line
    s->spellings = (char *)malloc_check(length + TOKENIZER_BYTES * 8);
    tokenizer_add_bytes(t, s);
    bool good = true;
    for (size_t i = 0, n, number = 1; good && i < length; i += n + 1, number++) {
        const char *newline = (const char *)memchr(merges + i, '\n', length - i);
        n = newline ? (size_t)(newline - merges) - i : length - i;
        good = tokenizer_add_merge(t, s, merges + i, n, (int)number, error);
    }
    t->start_of_text = s->count;
    t->end_of_text = s->count + 1;
    t->vocabulary = s->count + 2;
    free(s->spellings);
    free(s);
    return good;
}

// From the tokenizer section of a weight file: a packed vocabulary or a merge table. NULL, with the reason,
// when it is malformed.
static inline Tokenizer *tokenizer_create(const char *section, size_t length, char error[256]) {
    Tokenizer *t = (Tokenizer *)calloc_check(1, sizeof *t);
    mojibake_classes_init(&t->mojibake);
    if (vocabulary_is_packed(section, length) ? tokenizer_read_vocabulary(t, section, length, error)
                                              : tokenizer_read_merges(t, section, length, error))
        return t;
    tokenizer_free(t);
    return NULL;
}

// ---------------------------------------------------------------- caption to ids

// Length of a special token at c, or 0. The pattern ignores case, after lower(): a long s matches an s.
static inline size_t special_token_length(const uint32_t *c, size_t n) {
    static const char *const tokens[] = {"<start_of_text>", "<end_of_text>"};
    for (int k = 0; k < 2; k++) {
        size_t length = strlen(tokens[k]), i = 0;
        for (; i < length && i < n; i++)
            if (c[i] != (uint32_t)tokens[k][i] && !(tokens[k][i] == 's' && c[i] == 0x17F)) break;
        if (i == length) return length;
    }
    return 0;
}

// U+0345 (iota below) disappears like a blank: ignoring case, the pattern's [^\s\p{L}\p{N}] takes it for the
// letter iota, but \p{L} does not.
static inline char word_class(uint32_t c) { return c == 0x345 ? 'S' : unicode_class(c); }

// Length of the word at c, which is not a blank: the pattern of SimpleTokenizer, alternatives in its order.
static inline size_t word_length(const uint32_t *c, size_t n) {
    size_t special = c[0] == '<' ? special_token_length(c, n) : 0;
    if (special) return special;
    if (c[0] == '\'' && n >= 2) {
        if (c[1] == 's' || c[1] == 0x17F || c[1] == 't' || c[1] == 'm' || c[1] == 'd') return 2;
        if (n >= 3 &&
            ((c[1] == 'r' && c[2] == 'e') || (c[1] == 'v' && c[2] == 'e') || (c[1] == 'l' && c[2] == 'l')))
            return 3;
    }
    char kind = word_class(c[0]);
    size_t length = 1;
    while (kind != 'N' && length < n && word_class(c[length]) == kind) length++;
    return length;
}

// Merges neighbours, the pair of the lowest rank first and everywhere, until no pair is in the table. Returns
// how many ids are left of n > 0.
//   ids (n)     of the bytes; then of what they became
//   merged (n)  scratch: the id that ids[i] and ids[i+1] become
static inline size_t tokenizer_merge_all(const Tokenizer *t, int *ids, int *merged, size_t n) {
    for (size_t i = 0; i + 1 < n; i++) merged[i] = tokenizer_merge(t, ids[i], ids[i + 1]);
    for (;;) {
        int best = TOKENIZER_NO_MERGE;
        for (size_t i = 0; i + 1 < n; i++) best = merged[i] < best ? merged[i] : best;
        if (best == TOKENIZER_NO_MERGE) return n;
        size_t m = 0;
        for (size_t i = 0; i < n; m++) {
            bool pair = i + 1 < n && merged[i] == best;
            ids[m] = pair ? best : ids[i];
            if (!pair) merged[m] = merged[i]; // recomputed below where a neighbour was merged
            i += pair ? 2 : 1;
        }
        n = m;
        for (size_t i = 0; i + 1 < n; i++)
            if (ids[i] == best || ids[i + 1] == best) merged[i] = tokenizer_merge(t, ids[i], ids[i + 1]);
    }
}

// Ids of one word, in ids (4 length); merged (4 length) is scratch. Returns how many.
static inline size_t tokenizer_encode_word(
    const Tokenizer *t, const uint32_t *word, size_t length, int *ids, int *merged) {
    bool special = word[0] == '<' && length > 1 && special_token_length(word, length) == length;
    if (special && word[1] != 0x17F) { // with a long s it matches the pattern, but is a word like any other
        ids[0] = word[1] == 's' ? t->start_of_text : t->end_of_text;
        return 1;
    }
    size_t n = 0;
    for (size_t i = 0; i < length; i++) {
        unsigned char bytes[4];
        size_t count = utf8_write(bytes, word[i]);
        for (size_t k = 0; k < count; k++) ids[n++] = t->byte_id[bytes[k]];
    }
    ids[n - 1] += TOKENIZER_BYTES;
    return tokenizer_merge_all(t, ids, merged, n);
}

// Writes at most `most` ids of a cleaned caption; returns how many.
static inline int tokenizer_encode_words(const Tokenizer *t, const Text *clean, int *ids, int most) {
    int *word_ids = (int *)malloc_check(8 * (clean->length + 1) * sizeof *word_ids);
    int *scratch = word_ids + 4 * clean->length;
    int used = 0;
    for (size_t i = 0, n; i < clean->length && used < most; i += n) {
        n = 1;
        if (word_class(clean->at[i]) == 'S') continue;
        n = word_length(clean->at + i, clean->length - i);
        size_t count = tokenizer_encode_word(t, clean->at + i, n, word_ids, scratch);
        for (size_t k = 0; k < count && used < most; k++) ids[used++] = word_ids[k];
    }
    free(word_ids);
    return used;
}

// Encodes a cleaned caption. ids (context >= 2) receives the start of text where there is one, the words, the
// end of text, then padding; a caption that is too long is cut so that the end of text still fits. Returns
// the number of ids in use, 1 … context. Thread-safe.
static inline int tokenizer_encode_clean(const Tokenizer *t, const Text *clean, int *ids, int context) {
    assert(context >= 2);
    int used = 0;
    if (t->start_of_text >= 0) ids[used++] = t->start_of_text;
    const int most = context - 1 - used;
    if (most && t->words) used += pipeline_encode(t->words, clean, ids + used, most);
    else if (most) used += tokenizer_encode_words(t, clean, ids + used, most);
    ids[used++] = t->end_of_text;
    for (int i = used; i < context; i++) ids[i] = t->padding;
    return used;
}

// Encodes a caption of any `length` bytes; what is not UTF-8 counts as U+FFFD. ids (context >= 2): see
// tokenizer_encode_clean(). Thread-safe.
static inline int tokenizer_encode(
    const Tokenizer *t, const char *text, size_t length, int *ids, int context) {
    Text clean = {NULL, 0, 0};
    text_clean(&clean, &t->mojibake, t->cleaning, text, length);
    const int used = tokenizer_encode_clean(t, &clean, ids, context);
    text_free(&clean);
    return used;
}

#endif
