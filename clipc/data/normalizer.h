// The steps of a vocabulary that change a text before it is split (VocabularyStep), as Hugging Face's
// normalizers of the same names do.
#ifndef CLIPC_NORMALIZER_H
#define CLIPC_NORMALIZER_H

#include "clipc/data/vocabulary.h"

// Unicode's White_Space, which is Python's isspace() without four separators.
static inline bool is_white_space(uint32_t c) { return unicode_is_space(c) && !(c >= 0x1C && c <= 0x1F); }

// ---------------------------------------------------------------- what a step looks for

typedef struct {
    size_t start, length; // length 0: nothing found
} Match;

// The first of the alternatives, separated by NUL, that the text begins with; its bytes, or 0.
static inline size_t alternative_bytes(const VocabularyStep *s, const unsigned char *p, size_t n) {
    for (size_t i = 0, length; i < s->pattern_bytes; i += length + 1) {
        const unsigned char *a = s->pattern + i;
        const unsigned char *end = (const unsigned char *)memchr(a, 0, s->pattern_bytes - i);
        length = end ? (size_t)(end - a) : s->pattern_bytes - i;
        if (length && length <= n && a[0] == p[0] && memcmp(a, p, length) == 0) return length;
    }
    return 0;
}

static inline size_t blanks_at(const unsigned char *p, size_t n) {
    size_t count = 0;
    while (count < n && p[count] == ' ') count++;
    return count;
}

// Bytes of what the step looks for at place i of the text, or 0.
static inline size_t step_match_at(const VocabularyStep *s, const unsigned char *p, size_t n, size_t i) {
    const size_t blanks =
        s->kind == STEP_REPLACE_BLANKS || s->kind == STEP_REPLACE_ENDS ? blanks_at(p + i, n - i) : 0;
    switch (s->kind) {
    case STEP_REPLACE_BLANKS: return blanks >= 2 ? blanks : 0;
    case STEP_REPLACE_ENDS: return i == 0 || i + blanks == n ? blanks : 0;
    case STEP_REPLACE_START:
        return i == 0 && n >= s->pattern_bytes && memcmp(p, s->pattern, s->pattern_bytes) == 0
                   ? s->pattern_bytes
                   : 0;
    case STEP_REPLACE:
        return n - i >= s->pattern_bytes && memcmp(p + i, s->pattern, s->pattern_bytes) == 0
                   ? s->pattern_bytes
                   : 0;
    default: return alternative_bytes(s, p + i, n - i);
    }
}

// The next place from `from` on where the step finds what it looks for.
static inline Match step_find(const VocabularyStep *s, const unsigned char *p, size_t n, size_t from) {
    Match m = {n, 0};
    for (size_t i = from; i < n; i++) {
        m.length = step_match_at(s, p, n, i);
        m.start = m.length ? i : n;
        if (m.length) return m;
        // within a run of blanks that does not count there is nothing to find
        if (p[i] == ' ' && s->kind == STEP_REPLACE_ENDS) i += blanks_at(p + i, n - i) - 1;
    }
    return m;
}

static inline void normalize_replace(
    const VocabularyStep *s, Bytes *out, const unsigned char *p, size_t n, size_t most) {
    for (size_t i = 0; i < n && out->length <= most;) {
        const Match m = step_find(s, p, n, i);
        bytes_append(out, p + i, m.start - i);
        if (m.length) bytes_append(out, s->content, s->content_bytes);
        i = m.start + m.length;
    }
}

static inline void normalize_strip(int sides, Bytes *out, const unsigned char *p, size_t n) {
    size_t first = n, end = 0; // of what is not white space
    for (size_t i = 0, length; i < n; i += length) {
        uint32_t c;
        bool valid;
        length = utf8_next(p + i, n - i, &c, &valid);
        if (is_white_space(c)) continue;
        first = first < i ? first : i;
        end = i + length;
    }
    if (!(sides & 1)) first = 0;
    if (!(sides & 2)) end = n;
    if (first < end) bytes_append(out, p + first, end - first);
}

// ---------------------------------------------------------------- characters

static inline void push_lower(Text *out, uint32_t c) {
    text_push(out, c == 0x130 ? 'i' : (uint32_t)utf8proc_tolower((utf8proc_int32_t)c));
    if (c == 0x130) text_push(out, 0x307);
}

static inline bool is_ideograph(uint32_t c) {
    return (c >= 0x4E00 && c <= 0x9FFF) || (c >= 0x3400 && c <= 0x4DBF) || (c >= 0x20000 && c <= 0x2A6DF) ||
           (c >= 0x2A700 && c <= 0x2B73F) || (c >= 0x2B740 && c <= 0x2B81F) ||
           (c >= 0x2B920 && c <= 0x2CEAF) || (c >= 0xF900 && c <= 0xFAFF) || (c >= 0x2F800 && c <= 0x2FA1F);
}

// Punctuation, marks and format characters that are younger than the Unicode 8 of `tokenizers`' tables of
// categories (0.23): unassigned there.
// clang-format off
static const struct {
    uint32_t first, last;
} bert_younger[] = {
    {0x61D, 0x61D}, {0x7FD, 0x7FD}, {0x890, 0x891}, {0x898, 0x89F}, {0x8CA, 0x8E2}, {0x9FD, 0x9FE},
    {0xA76, 0xA76}, {0xAFA, 0xAFF}, {0xB55, 0xB55}, {0xC04, 0xC04}, {0xC3C, 0xC3C}, {0xC77, 0xC77},
    {0xC84, 0xC84}, {0xD00, 0xD00}, {0xD3B, 0xD3C}, {0xD81, 0xD81}, {0xEBA, 0xEBA}, {0xECE, 0xECE},
    {0x180F, 0x180F}, {0x1885, 0x1886}, {0x1ABF, 0x1ACE}, {0x1B7D, 0x1B7E}, {0x1DF6, 0x1DFB},
    {0x2E43, 0x2E4F}, {0x2E52, 0x2E5D}, {0xA82C, 0xA82C}, {0xA8C5, 0xA8C5}, {0xA8FF, 0xA8FF},
    {0xA9BD, 0xA9BD}, {0x10D24, 0x10D27}, {0x10EAB, 0x10EAD}, {0x10EFD, 0x10EFF}, {0x10F46, 0x10F50},
    {0x10F55, 0x10F59}, {0x10F82, 0x10F89}, {0x11070, 0x11070}, {0x11073, 0x11074}, {0x110C2, 0x110C2},
    {0x110CD, 0x110CD}, {0x111CF, 0x111CF}, {0x1123E, 0x1123E}, {0x11241, 0x11241}, {0x1133B, 0x1133B},
    {0x11438, 0x1143F}, {0x11442, 0x11444}, {0x11446, 0x11446}, {0x1144B, 0x1144F}, {0x1145A, 0x1145B},
    {0x1145D, 0x1145E}, {0x11660, 0x1166C}, {0x116B9, 0x116B9}, {0x1182F, 0x11837}, {0x11839, 0x1183B},
    {0x1193B, 0x1193C}, {0x1193E, 0x1193E}, {0x11943, 0x11946}, {0x119D4, 0x119D7}, {0x119DA, 0x119DB},
    {0x119E0, 0x119E0}, {0x119E2, 0x119E2}, {0x11A01, 0x11A0A}, {0x11A33, 0x11A38}, {0x11A3B, 0x11A47},
    {0x11A51, 0x11A56}, {0x11A59, 0x11A5B}, {0x11A8A, 0x11A96}, {0x11A98, 0x11A9C}, {0x11A9E, 0x11AA2},
    {0x11B00, 0x11B09}, {0x11C30, 0x11C36}, {0x11C38, 0x11C3D}, {0x11C3F, 0x11C3F}, {0x11C41, 0x11C45},
    {0x11C70, 0x11C71}, {0x11C92, 0x11CA7}, {0x11CAA, 0x11CB0}, {0x11CB2, 0x11CB3}, {0x11CB5, 0x11CB6},
    {0x11D31, 0x11D36}, {0x11D3A, 0x11D3A}, {0x11D3C, 0x11D3D}, {0x11D3F, 0x11D45}, {0x11D47, 0x11D47},
    {0x11D90, 0x11D91}, {0x11D95, 0x11D95}, {0x11D97, 0x11D97}, {0x11EF3, 0x11EF4}, {0x11EF7, 0x11EF8},
    {0x11F00, 0x11F01}, {0x11F36, 0x11F3A}, {0x11F40, 0x11F40}, {0x11F42, 0x11F4F}, {0x11FFF, 0x11FFF},
    {0x12FF1, 0x12FF2}, {0x13430, 0x13440}, {0x13447, 0x13455}, {0x16E97, 0x16E9A}, {0x16F4F, 0x16F4F},
    {0x16FE2, 0x16FE2}, {0x16FE4, 0x16FE4}, {0x1CF00, 0x1CF2D}, {0x1CF30, 0x1CF46}, {0x1E000, 0x1E006},
    {0x1E008, 0x1E018}, {0x1E01B, 0x1E021}, {0x1E023, 0x1E024}, {0x1E026, 0x1E02A}, {0x1E08F, 0x1E08F},
    {0x1E130, 0x1E136}, {0x1E2AE, 0x1E2AE}, {0x1E2EC, 0x1E2EF}, {0x1E4EC, 0x1E4EF}, {0x1E944, 0x1E94A},
    {0x1E95E, 0x1E95F}};
// clang-format on

// The category of a code point in those tables, of those that matter here.
static inline int bert_category(uint32_t c) {
    if (c == 0x166D || c == 0x111C9) return UTF8PROC_CATEGORY_PO; // two that Unicode has sorted anew
    if (c == 0x1734) return UTF8PROC_CATEGORY_MN;
    size_t low = 0, high = sizeof bert_younger / sizeof *bert_younger;
    while (low < high) { // the first range that does not end before c
        const size_t middle = (low + high) / 2;
        if (bert_younger[middle].last < c) low = middle + 1;
        else high = middle;
    }
    const bool inside = low < sizeof bert_younger / sizeof *bert_younger && bert_younger[low].first <= c;
    return inside ? UTF8PROC_CATEGORY_CN : unicode_category(c);
}

// Controls, format characters and private ones; not the unassigned.
static inline bool bert_removes(uint32_t c) {
    if (c == '\t' || c == '\n' || c == '\r') return false;
    const int category = bert_category(c);
    return c == 0 || c == REPLACEMENT_CHARACTER || category == UTF8PROC_CATEGORY_CC ||
           category == UTF8PROC_CATEGORY_CF || category == UTF8PROC_CATEGORY_CO;
}

// BertNormalizer: its parts in their order, each over the whole text.
static inline void normalize_bert(int parts, Text *out, const Text *in) {
    Text t = {NULL, 0, 0};
    for (size_t i = 0; i < in->length; i++) {
        uint32_t c = in->at[i];
        if (parts & BERT_CLEAN) {
            if (bert_removes(c)) continue;
            if (is_white_space(c)) c = ' ';
        }
        const bool alone = parts & BERT_IDEOGRAPHS && is_ideograph(c);
        if (alone) text_push(&t, ' ');
        text_push(&t, c);
        if (alone) text_push(&t, ' ');
    }
    if (parts & BERT_STRIP_ACCENTS) text_decompose(&t);
    for (size_t i = 0; i < t.length; i++) {
        if (parts & BERT_STRIP_ACCENTS && bert_category(t.at[i]) == UTF8PROC_CATEGORY_MN) continue;
        if (parts & BERT_LOWER) push_lower(out, t.at[i]);
        else text_push(out, t.at[i]);
    }
    text_free(&t);
}

static inline void normalize_characters(
    const VocabularyStep *s, Bytes *out, const unsigned char *p, size_t n) {
    Text in = {NULL, 0, 0}, changed = {NULL, 0, 0};
    text_append_utf8(&in, (const char *)p, n);
    if (s->kind == STEP_BERT) normalize_bert(s->flag, &changed, &in);
    else
        for (size_t i = 0; i < in.length; i++) push_lower(&changed, in.at[i]);
    for (size_t i = 0; i < changed.length; i++) bytes_push(out, changed.at[i]);
    text_free(&in);
    text_free(&changed);
}

// ---------------------------------------------------------------- all of them

// Runs the normalizers over a text of UTF-8, which is replaced; `scratch` is another buffer. A text that a
// table of replacements makes more than 64 times as long is cut.
static inline void normalize(const Vocabulary *v, Bytes *text, Bytes *scratch) {
    const size_t most = 64 * text->length + 64;
    for (int i = 0; i < v->normalizers; i++) {
        const VocabularyStep *s = &v->steps[i];
        scratch->length = 0;
        switch (s->kind) {
        case STEP_CHARSMAP: charsmap_apply(&v->charsmap, scratch, text->at, text->length, most); break;
        case STEP_STRIP: normalize_strip(s->flag, scratch, text->at, text->length); break;
        case STEP_LOWER:
        case STEP_BERT: normalize_characters(s, scratch, text->at, text->length); break;
        default: normalize_replace(s, scratch, text->at, text->length, most); break;
        }
        const Bytes before = *text;
        *text = *scratch;
        *scratch = before;
    }
}

#endif
