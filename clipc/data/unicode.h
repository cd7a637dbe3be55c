// Text as code points, and what Python's str knows about them: white space, letters and numbers, lower(),
// NFC. Categories, case and normalisation come from utf8proc; only what it does not tell is written here.
#ifndef CLIPC_UNICODE_H
#define CLIPC_UNICODE_H

#include "clipc/base/utils.h" // first: it asks the system headers for all they have

#include "clipc/data/text_tables.h"
#include <utf8proc.h>

#define REPLACEMENT_CHARACTER 0xFFFD

// ---------------------------------------------------------------- a growing row of code points

typedef struct {
    uint32_t *at; // (capacity), of which length are used; never a surrogate
    size_t length, capacity;
} Text;

static inline void text_push(Text *t, uint32_t c) {
    list_grow((void **)&t->at, &t->capacity, t->length + 1, sizeof *t->at);
    t->at[t->length++] = c;
}

static inline void text_append(Text *t, const uint32_t *c, size_t n) {
    if (!n) return;
    list_grow((void **)&t->at, &t->capacity, t->length + n, sizeof *t->at);
    memcpy(t->at + t->length, c, n * sizeof *c);
    t->length += n;
}

static inline bool text_equal(const Text *a, const Text *b) {
    return a->length == b->length && (a->length == 0 || memcmp(a->at, b->at, a->length * sizeof *a->at) == 0);
}

static inline void text_free(Text *t) {
    free(t->at);
    memset(t, 0, sizeof *t);
}

// t becomes *new_text, whose buffer it takes over.
static inline void text_replace(Text *t, Text *new_text) {
    free(t->at);
    *t = *new_text;
    memset(new_text, 0, sizeof *new_text);
}

// ---------------------------------------------------------------- UTF-8

// Reads one code point of n > 0 bytes. Returns the bytes it takes; where they are no UTF-8, *c is U+FFFD,
// *valid false and the bytes taken are those that Python's errors="replace" turns into one U+FFFD (Unicode
// 3.9, maximal subparts).
static inline size_t utf8_next(const unsigned char *p, size_t n, uint32_t *c, bool *valid) {
    size_t need = p[0] < 0x80 ? 1 : p[0] < 0xC2 ? 0 : p[0] < 0xE0 ? 2 : p[0] < 0xF0 ? 3 : p[0] < 0xF5 ? 4 : 0;
    *valid = need > 0;
    *c = need == 1 ? p[0] : need == 0 ? REPLACEMENT_CHARACTER : p[0] & (0x7Fu >> need);
    for (size_t i = 1; i < need; i++) {
        unsigned char low = 0x80,
                      high =
                          0xBF; // the second byte is bound further: no overlong forms, surrogates, > U+10FFFF
        if (i == 1 && p[0] == 0xE0) low = 0xA0;
        if (i == 1 && p[0] == 0xED) high = 0x9F;
        if (i == 1 && p[0] == 0xF0) low = 0x90;
        if (i == 1 && p[0] == 0xF4) high = 0x8F;
        if (i >= n || p[i] < low || p[i] > high) {
            *valid = false;
            *c = REPLACEMENT_CHARACTER;
            return i;
        }
        *c = *c << 6 | (p[i] & 0x3F);
    }
    return need ? need : 1;
}

static inline void text_append_utf8(Text *t, const char *bytes, size_t n) {
    uint32_t c;
    bool valid;
    for (size_t i = 0; i < n; text_push(t, c))
        i += utf8_next((const unsigned char *)bytes + i, n - i, &c, &valid);
}

// Writes 1 to 4 bytes; returns how many.
static inline size_t utf8_write(unsigned char *out, uint32_t c) {
    return (size_t)utf8proc_encode_char((utf8proc_int32_t)c, out);
}

// ---------------------------------------------------------------- properties

static inline int unicode_category(uint32_t c) { return (int)utf8proc_category((utf8proc_int32_t)c); }

// Python's str.isspace(), which split() and strip() go by.
static inline bool unicode_is_space(uint32_t c) {
    if (c < 0x80) return (c >= 9 && c <= 13) || (c >= 0x1C && c <= 0x20);
    return c == 0x85 || c == 0xA0 || c == 0x1680 || (c >= 0x2000 && c <= 0x200A) || c == 0x2028 ||
           c == 0x2029 || c == 0x202F || c == 0x205F || c == 0x3000;
}

// What the pattern of open_clip's tokenizer sees in a code point: 'L' \p{L}, 'N' \p{N}, 'S' \s, 'O' the rest.
static inline char unicode_class(uint32_t c) {
    if (c < 0x80) {
        if ((c | 32) >= 'a' && (c | 32) <= 'z') return 'L';
        if (c >= '0' && c <= '9') return 'N';
    }
    if (unicode_is_space(c))
        return c >= 0x1C && c <= 0x1F ? 'O' : 'S'; // \s lacks the four separators that split() takes
    int category = unicode_category(c);
    if (category >= UTF8PROC_CATEGORY_LU && category <= UTF8PROC_CATEGORY_LO) return 'L';
    if (category >= UTF8PROC_CATEGORY_ND && category <= UTF8PROC_CATEGORY_NO) return 'N';
    if (category != UTF8PROC_CATEGORY_CN) return 'O';
    size_t low = 0, high = sizeof unicode_younger / sizeof *unicode_younger;
    while (low < high) { // the first range that does not end before c
        size_t middle = (low + high) / 2;
        if (unicode_younger[middle].last < c) low = middle + 1;
        else high = middle;
    }
    bool inside = low < sizeof unicode_younger / sizeof *unicode_younger && unicode_younger[low].first <= c;
    return inside ? unicode_younger[low].kind : 'O';
}

// ---------------------------------------------------------------- lower()

// Unicode's Cased: upper, lower and title case, and what has Other_Uppercase or Other_Lowercase without being
// case-ignorable.
static inline bool unicode_cased(uint32_t c) {
    int category = unicode_category(c);
    if (category >= UTF8PROC_CATEGORY_LU && category <= UTF8PROC_CATEGORY_LT) return true;
    return c == 0xAA || c == 0xBA || (c >= 0x2160 && c <= 0x217F) || (c >= 0x24B6 && c <= 0x24E9) ||
           (c >= 0x1F130 && c <= 0x1F149) || (c >= 0x1F150 && c <= 0x1F169) || (c >= 0x1F170 && c <= 0x1F189);
}

// Unicode's Case_Ignorable: marks, format characters, modifiers, and the punctuation that words may hold.
static inline bool unicode_case_ignorable(uint32_t c) {
    static const uint16_t punctuation[] = {
        0x27,
        0x2E,
        0x3A,
        0xB7,
        0x387,
        0x55F,
        0x5F4,
        0x2018,
        0x2019,
        0x2024,
        0x2027,
        0xFE13,
        0xFE52,
        0xFE55,
        0xFF07,
        0xFF0E,
        0xFF1A,
    };
    for (size_t i = 0; i < sizeof punctuation / sizeof *punctuation; i++)
        if (c == punctuation[i]) return true;
    int category = unicode_category(c);
    return category == UTF8PROC_CATEGORY_MN || category == UTF8PROC_CATEGORY_ME ||
           category == UTF8PROC_CATEGORY_CF || category == UTF8PROC_CATEGORY_LM ||
           category == UTF8PROC_CATEGORY_SK;
}

// Whether the capital sigma at t[i] ends a word: a cased letter before it, none behind, case-ignorable
// characters apart.
static inline bool unicode_final_sigma(const Text *t, size_t i) {
    size_t before = i, behind = i + 1;
    while (before > 0 && unicode_case_ignorable(t->at[before - 1])) before--;
    if (before == 0 || !unicode_cased(t->at[before - 1])) return false;
    while (behind < t->length && unicode_case_ignorable(t->at[behind])) behind++;
    return behind == t->length || !unicode_cased(t->at[behind]);
}

// Python's str.lower(): the full mapping.
static inline void text_lower(Text *out, const Text *in) {
    for (size_t i = 0; i < in->length; i++) {
        uint32_t c = in->at[i];
        if (c == 0x3A3) {
            text_push(out, unicode_final_sigma(in, i) ? 0x3C2 : 0x3C3);
        } else if (c == 0x130) { // the only one that becomes two: i and a dot above
            text_push(out, 'i');
            text_push(out, 0x307);
        } else {
            text_push(out, (uint32_t)utf8proc_tolower((utf8proc_int32_t)c));
        }
    }
}

// ---------------------------------------------------------------- normalisation

// More marks on one letter than this are left as they are: utf8proc sorts them in quadratic time.
enum { NORMALIZE_MARKS = 1000 };

// NFC, or NFKC with UTF8PROC_COMPAT.
static inline void text_normalize(Text *t, int compat) {
    bool simple = true; // nothing below U+0300 composes or, but for NFKC, decomposes
    for (size_t i = 0, marks = 0; i < t->length; i++) {
        if (t->at[i] < 0x300) continue;
        simple = false;
        marks =
            utf8proc_get_property((utf8proc_int32_t)t->at[i])->combining_class && t->at[i - (i > 0)] >= 0x300
                ? marks + 1
                : 0;
        if (marks > NORMALIZE_MARKS) return;
    }
    if (simple && !compat) return;
    unsigned char *bytes = (unsigned char *)malloc_check(4 * t->length);
    size_t n = 0;
    for (size_t i = 0; i < t->length; i++) n += utf8_write(bytes + n, t->at[i]);
    utf8proc_option_t options = (utf8proc_option_t)(UTF8PROC_STABLE | UTF8PROC_COMPOSE | compat);
    utf8proc_ssize_t need = utf8proc_decompose(bytes, (utf8proc_ssize_t)n, NULL, 0, options);
    if (need < 0) die(EXIT_RUNTIME, "cannot normalise a caption (%s)", utf8proc_errmsg(need));
    utf8proc_int32_t *composed = (utf8proc_int32_t *)malloc_check((size_t)need * sizeof *composed);
    utf8proc_decompose(bytes, (utf8proc_ssize_t)n, composed, need, options);
    need = utf8proc_normalize_utf32(composed, need, options);
    t->length = 0;
    for (utf8proc_ssize_t i = 0; i < need; i++) text_push(t, (uint32_t)composed[i]);
    free(composed);
    free(bytes);
}

#endif
