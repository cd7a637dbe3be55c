// Text as code points, and what Python does to them: the classes, lower() and NFC of its str, html.unescape()
// of its standard library, and ftfy's fixes of entities and of single characters. Categories, case and
// normalisation come from utf8proc; only what it lacks is written here.
#ifndef CLIPC_UNICODE_H
#define CLIPC_UNICODE_H

#include "clipc/base/utils.h" // first: it defines _GNU_SOURCE for the system headers; utf8_next

#include "data/text_tables.h"
#include <utf8proc.h>

// ---------------------------------------------------------------- a growing array of code points

typedef struct {
    uint32_t *at; // (capacity), of which `length` are used; never a surrogate
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

// Is it UTF-8 without a NUL? Captions are: what is not would be trained on as U+FFFD or as nothing.
static inline bool is_utf8_text(const char *text, size_t n) {
    const unsigned char *p = (const unsigned char *)text;
    size_t i = 0;
    while (i < n) {
        uint64_t word;
        uint32_t c;
        bool valid;
        if (n - i >= 8) { // eight ASCII characters at once; a NUL is found below
            memcpy(&word, p + i, 8);
            if (!((word | (word - 0x0101010101010101ull)) & 0x8080808080808080ull)) {
                i += 8;
                continue;
            }
        }
        i += utf8_next(p + i, n - i, &c, &valid);
        if (!valid || c == 0) return false;
    }
    return true;
}

// The length of a text of n bytes that was cut somewhere, without the rest of a character that the cut went
// through.
static inline size_t utf8_whole_length(const char *text, size_t n) {
    size_t back = 1;
    while (back < 4 && back < n && ((unsigned char)text[n - back] & 0xC0) == 0x80) back++;
    if (back > n) return n;
    const unsigned char lead = (unsigned char)text[n - back];
    const size_t need = lead >= 0xF0 ? 4 : lead >= 0xE0 ? 3 : lead >= 0xC0 ? 2 : 1;
    return need > back ? n - back : n;
}

// Most bytes of one kind in a text of UTF-16 without a mark: every second one of Latin letters is zero.
static inline const char *utf16_without_mark(const unsigned char *p, size_t n) {
    size_t zeros[2] = {0, 0};
    if (n % 2) return NULL;
    for (size_t i = 0; i < n; i++) zeros[i & 1] += p[i] == 0;
    if (zeros[1] * 4 >= n && !zeros[0]) return "UTF-16LE";
    return zeros[0] * 4 >= n && !zeros[1] ? "UTF-16BE" : NULL;
}

// Which encoding a text that is not UTF-8 fits: a name, or NULL when none of those is likely. Western
// European text has single letters above 0x7F among many below it; longer runs of such bytes are another
// script.
static inline const char *encoding_that_fits(const char *text, size_t n) {
    const unsigned char *p = (const unsigned char *)text;
    if (n >= 4 && (!memcmp(p, "\xff\xfe\0\0", 4) || !memcmp(p, "\0\0\xfe\xff", 4))) return "UTF-32";
    if (n >= 2 && p[0] == 0xFF && p[1] == 0xFE) return "UTF-16LE";
    if (n >= 2 && p[0] == 0xFE && p[1] == 0xFF) return "UTF-16BE";
    if (memchr(p, 0, n)) return utf16_without_mark(p, n);
    size_t high = 0, run = 0;
    bool windows = false;
    for (size_t i = 0; i < n; i++) {
        run = p[i] < 0x80 ? 0 : run + 1;
        high += p[i] >= 0x80;
        // cp1252 has no characters there
        if (run > 2 || p[i] == 0x81 || p[i] == 0x8D || p[i] == 0x8F || p[i] == 0x90 || p[i] == 0x9D)
            return NULL;
        windows = windows || (p[i] >= 0x80 && p[i] < 0xA0); // control characters in latin-1
    }
    if (2 * high > n) return NULL;
    return windows ? "cp1252" : "latin-1 or cp1252";
}

// ---------------------------------------------------------------- properties

static inline int unicode_category(uint32_t c) { return (int)utf8proc_category((utf8proc_int32_t)c); }

static inline bool is_ascii_digit(uint32_t c) { return c >= '0' && c <= '9'; }
static inline bool is_ascii_letter(uint32_t c) { return c < 0x80 && (c | 32) >= 'a' && (c | 32) <= 'z'; }

// Python's str.isspace(), by which split() and strip() work.
static inline bool unicode_is_space(uint32_t c) {
    if (c < 0x80) return (c >= 9 && c <= 13) || (c >= 0x1C && c <= 0x20);
    return c == 0x85 || c == 0xA0 || c == 0x1680 || (c >= 0x2000 && c <= 0x200A) || c == 0x2028 ||
           c == 0x2029 || c == 0x202F || c == 0x205F || c == 0x3000;
}

// The class of a code point in the pattern of open_clip's tokenizer: 'L' \p{L}, 'N' \p{N}, 'S' \s, 'O' the
// rest.
static inline char unicode_class(uint32_t c) {
    if (c < 0x80) {
        if ((c | 32) >= 'a' && (c | 32) <= 'z') return 'L';
        if (c >= '0' && c <= '9') return 'N';
    }
    if (unicode_is_space(c))
        return c >= 0x1C && c <= 0x1F ? 'O' : 'S'; // \s excludes the four separators at which split() splits
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

// Unicode's Cased: upper, lower and title case, and those with Other_Uppercase or Other_Lowercase that are
// not case-ignorable.
static inline bool unicode_cased(uint32_t c) {
    int category = unicode_category(c);
    if (category >= UTF8PROC_CATEGORY_LU && category <= UTF8PROC_CATEGORY_LT) return true;
    return c == 0xAA || c == 0xBA || (c >= 0x2160 && c <= 0x217F) || (c >= 0x24B6 && c <= 0x24E9) ||
           (c >= 0x1F130 && c <= 0x1F149) || (c >= 0x1F150 && c <= 0x1F169) || (c >= 0x1F170 && c <= 0x1F189);
}

// Unicode's Case_Ignorable: marks, format characters, modifiers, and the punctuation that occurs in words.
static inline bool unicode_case_ignorable(uint32_t c) {
    // clang-format off
    static const uint16_t punctuation[] = {0x27, 0x2E, 0x3A, 0xB7, 0x387, 0x55F, 0x5F4, 0x2018, 0x2019,
        0x2024, 0x2027, 0xFE13, 0xFE52, 0xFE55, 0xFF07, 0xFF0E, 0xFF1A};
    // clang-format on
    for (size_t i = 0; i < sizeof punctuation / sizeof *punctuation; i++)
        if (c == punctuation[i]) return true;
    int category = unicode_category(c);
    return category == UTF8PROC_CATEGORY_MN || category == UTF8PROC_CATEGORY_ME ||
           category == UTF8PROC_CATEGORY_CF || category == UTF8PROC_CATEGORY_LM ||
           category == UTF8PROC_CATEGORY_SK;
}

// Whether the capital sigma at t[i] ends a word: ignoring case-ignorable characters, a cased letter precedes
// it and none follows.
static inline bool unicode_final_sigma(const Text *t, size_t i) {
    size_t before = i, after = i + 1;
    while (before > 0 && unicode_case_ignorable(t->at[before - 1])) before--;
    if (before == 0 || !unicode_cased(t->at[before - 1])) return false;
    while (after < t->length && unicode_case_ignorable(t->at[after])) after++;
    return after == t->length || !unicode_cased(t->at[after]);
}

// Python's str.lower(): the full mapping.
static inline void text_lower(Text *out, const Text *in) {
    for (size_t i = 0; i < in->length; i++) {
        uint32_t c = in->at[i];
        if (c == 0x3A3) {
            text_push(out, unicode_final_sigma(in, i) ? 0x3C2 : 0x3C3);
        } else if (c == 0x130) { // İ, the only one that becomes two: i and a combining dot
            text_push(out, 'i');
            text_push(out, 0x307);
        } else {
            text_push(out, (uint32_t)utf8proc_tolower((utf8proc_int32_t)c));
        }
    }
}

// ---------------------------------------------------------------- normalisation

// A text with more marks than this on one letter is left as it is: utf8proc sorts them in quadratic time.
enum { NORMALIZE_MARKS = 1000 };

// Whether one letter carries more than NORMALIZE_MARKS marks. *low: the text has nothing from U+0300 on.
static inline bool text_has_many_marks(const Text *t, bool *low) {
    *low = true;
    for (size_t i = 0, marks = 0; i < t->length; i++) {
        if (t->at[i] < 0x300) continue;
        *low = false;
        const bool mark = utf8proc_get_property((utf8proc_int32_t)t->at[i])->combining_class != 0;
        marks = mark && t->at[i - (i > 0)] >= 0x300 ? marks + 1 : 0;
        if (marks > NORMALIZE_MARKS) return true;
    }
    return false;
}

static inline void text_normalize_by(Text *t, utf8proc_option_t options) {
    unsigned char *bytes = (unsigned char *)malloc_check(4 * t->length);
    size_t n = 0;
    for (size_t i = 0; i < t->length; i++) n += utf8_write(bytes + n, t->at[i]);
    utf8proc_ssize_t need = utf8proc_decompose(bytes, (utf8proc_ssize_t)n, NULL, 0, options);
    if (need < 0) die(EXIT_RUNTIME, "cannot normalise a caption (%s)", utf8proc_errmsg(need));
    utf8proc_int32_t *changed = (utf8proc_int32_t *)malloc_check((size_t)need * sizeof *changed);
    utf8proc_decompose(bytes, (utf8proc_ssize_t)n, changed, need, options);
    need = utf8proc_normalize_utf32(changed, need, options);
    t->length = 0;
    for (utf8proc_ssize_t i = 0; i < need; i++) text_push(t, (uint32_t)changed[i]);
    free(changed);
    free(bytes);
}

// NFC, or NFKC with UTF8PROC_COMPAT.
static inline void text_normalize(Text *t, int compat) {
    bool low; // nothing below U+0300 composes or, but for NFKC, decomposes
    if (text_has_many_marks(t, &low) || (low && !compat)) return;
    text_normalize_by(t, (utf8proc_option_t)(UTF8PROC_STABLE | UTF8PROC_COMPOSE | compat));
}

// NFD.
static inline void text_decompose(Text *t) {
    bool low;
    if (t->length && !text_has_many_marks(t, &low))
        text_normalize_by(t, (utf8proc_option_t)(UTF8PROC_STABLE | UTF8PROC_DECOMPOSE));
}

// ---------------------------------------------------------------- HTML entities

// C1 controls (80…9F) become the characters that those bytes mean in Windows-1252, as in browsers.
static inline uint32_t fix_c1(uint32_t c) {
    return c >= 0x80 && c < 0xA0 ? code_pages[PAGE_CP1252][c - 0x80] : c;
}

enum { ENTITY_NAME_MAX = 32 }; // the longest name has 31 letters

// Index of the entity of this name, without its semicolon; -1: none.
static inline int entity_find(const uint32_t *name, size_t n) {
    char key[ENTITY_NAME_MAX + 1];
    if (n > ENTITY_NAME_MAX) return -1;
    for (size_t i = 0; i < n; i++) {
        if (!is_ascii_digit(name[i]) && !is_ascii_letter(name[i])) return -1;
        key[i] = (char)name[i];
    }
    key[n] = 0;
    int low = 0, high = (int)(sizeof html_entities / sizeof *html_entities) - 1;
    while (low <= high) {
        int middle = (low + high) / 2, order = strcmp(key, html_entities[middle].name);
        if (order == 0) return middle;
        if (order < 0) high = middle - 1;
        else low = middle + 1;
    }
    return -1;
}

static inline void entity_push(Text *out, int entity) {
    text_append_utf8(out, html_entities[entity].text, strlen(html_entities[entity].text));
}

// The length of a numeric reference at c ("&#65;", "&#x41"; the semicolon may be missing), or 0. *value is
// the code point by the rules of HTML5: Windows-1252 for 80…9F, U+FFFD for impossible ones; -1: it is
// removed (controls, non-characters).
static inline size_t numeric_reference(const uint32_t *c, size_t n, int64_t *value) {
    if (n < 3 || c[0] != '&' || c[1] != '#') return 0;
    uint32_t base = (c[2] | 32) == 'x' ? 16 : 10, number = 0;
    size_t i = base == 16 ? 3 : 2, start = i;
    for (; i < n; i++) {
        uint32_t letter = c[i] | 32;
        if (!is_ascii_digit(c[i]) && !(base == 16 && c[i] < 0x80 && letter >= 'a' && letter <= 'f')) break;
        number = number * base + (is_ascii_digit(c[i]) ? c[i] - '0' : letter - 'a' + 10);
        if (number > 0x10FFFF) number = 0x110000; // and stays there
    }
    if (i == start) return 0;
    bool control =
        (number >= 1 && number <= 8) || number == 0xB || (number >= 0xE && number < 0x20) || number == 0x7F;
    if (number == 0 || (number >= 0xD800 && number < 0xE000) || number > 0x10FFFF)
        *value = REPLACEMENT_CHARACTER;
    else if (control || (number >= 0xFDD0 && number <= 0xFDEF) || (number & 0xFFFE) == 0xFFFE) *value = -1;
    else *value = fix_c1(number);
    return i + (i < n && c[i] == ';');
}

// Python's html.unescape(): some names may lack their semicolon, and letters may follow them ("&notit;" is
// "¬it;").
static inline void html_unescape(Text *out, const Text *in) {
    for (size_t i = 0, used; i < in->length; i += used) {
        const uint32_t *c = in->at + i;
        size_t left = in->length - i, n = 0;
        int64_t value;
        used = 1;
        if (c[0] != '&') {
            text_push(out, c[0]);
        } else if ((n = numeric_reference(c, left, &value)) > 0) {
            if (value >= 0) text_push(out, (uint32_t)value);
            used = n;
        } else {
            int entity = -1;
            while (n < ENTITY_NAME_MAX && 1 + n < left &&
                   (is_ascii_digit(c[1 + n]) || is_ascii_letter(c[1 + n])))
                n++;
            bool semicolon = 1 + n < left && c[1 + n] == ';';
            for (; n >= 2; n--, semicolon = false) {
                entity = entity_find(c + 1, n);
                if (entity >= 0 && (html_entities[entity].kind == ENTITY_BARE ||
                                       (semicolon && html_entities[entity].kind == ENTITY_SEMICOLON)))
                    break;
                entity = -1;
            }
            if (entity >= 0) {
                entity_push(out, entity);
                used = 1 + n + semicolon;
            } else text_push(out, '&');
        }
    }
}

// ftfy's rules: only with a semicolon, up to 24 letters and digits, and upper-case spellings ("&EACUTE;").
static inline void ftfy_unescape(Text *out, const Text *in) {
    for (size_t i = 0, used; i < in->length; i += used) {
        const uint32_t *c = in->at + i;
        size_t left = in->length - i, hash = left > 1 && c[1] == '#', n = 0;
        while (c[0] == '&' && n < 25 && 1 + hash + n < left &&
               (is_ascii_digit(c[1 + hash + n]) || is_ascii_letter(c[1 + hash + n])))
            n++;
        bool whole = n >= 1 && n <= 24 && 1 + hash + n < left && c[1 + hash + n] == ';';
        int entity = whole && !hash ? entity_find(c + 1, n) : -1;
        int64_t value = ';'; // a reference to it is left as it is, as in ftfy
        used = whole ? 1 + hash + n + 1 : 1;
        if (entity >= 0) entity_push(out, entity);
        else if (!whole || !hash || numeric_reference(c, used, &value) < used || value == ';')
            text_append(out, c, used);
        else if (value >= 0) text_push(out, (uint32_t)value);
    }
}

// ---------------------------------------------------------------- single characters

// The letters of a Latin ligature or digraph; NULL for any other character.
static inline const char *ligature_letters(uint32_t c) {
    static const struct {
        uint16_t c;
        const char *letters;
    } ligatures[] = {{0x132, "IJ"}, {0x133, "ij"}, {0x149, "\u02bcn"}, {0x1C4, "DŽ"}, {0x1C5, "Dž"},
        {0x1C6, "dž"}, {0x1C7, "LJ"}, {0x1C8, "Lj"}, {0x1C9, "lj"}, {0x1CA, "NJ"}, {0x1CB, "Nj"},
        {0x1CC, "nj"}, {0x1F1, "DZ"}, {0x1F2, "Dz"}, {0x1F3, "dz"}, {0xFB00, "ff"}, {0xFB01, "fi"},
        {0xFB02, "fl"}, {0xFB03, "ffi"}, {0xFB04, "ffl"}, {0xFB05, "ſt"}, {0xFB06, "st"}};
    for (size_t i = 0; i < sizeof ligatures / sizeof *ligatures; i++)
        if (ligatures[i].c == c) return ligatures[i].letters;
    return NULL;
}

static inline void push_straightened(Text *out, uint32_t c) {
    if (c == 0x2BC || (c >= 0x2018 && c <= 0x201B)) c = '\'';
    if (c >= 0x201C && c <= 0x201F) c = '"';
    if (c == '\r' || c == 0x2028 || c == 0x2029 || c == 0x85) c = '\n';
    text_push(out, c);
}

// C1 controls, Latin ligatures, full- and half-width forms, curly quotes, line breaks: in ftfy's order,
// character by character.
static inline void fix_characters(Text *out, const Text *in) {
    for (size_t i = 0; i < in->length; i++) {
        uint32_t c = fix_c1(in->at[i]);
        if (c == '\r' && i + 1 < in->length && in->at[i + 1] == '\n') continue;
        Text parts = {NULL, 0, 0};
        const char *letters = c < 0x132 ? NULL : ligature_letters(c);
        if (letters) {
            text_append_utf8(&parts, letters, strlen(letters));
        } else if (c >= 0xFF01 && c < 0xFFF0) {
            text_push(&parts, c);
            text_normalize(&parts, UTF8PROC_COMPAT);
        } else {
            push_straightened(out, c == 0x3000 ? ' ' : c);
        }
        for (size_t k = 0; k < parts.length; k++) push_straightened(out, parts.at[k]);
        text_free(&parts);
    }
}

// Removes terminal escapes (ESC [ digits and semicolons, a letter) and control characters.
static inline void remove_controls(Text *out, const Text *in) {
    for (size_t i = 0; i < in->length; i++) {
        uint32_t c = in->at[i];
        if (c == 0x1B && i + 1 < in->length && in->at[i + 1] == '[') {
            size_t end = i + 2;
            while (end < in->length &&
                   (in->at[end] == ';' || unicode_category(in->at[end]) == UTF8PROC_CATEGORY_ND))
                end++;
            if (end < in->length && is_ascii_letter(in->at[end])) {
                i = end;
                continue;
            }
        }
        bool control = c < 9 || c == 0xB || (c >= 0xE && c < 0x20) || c == 0x7F ||
                       (c >= 0x206A && c <= 0x206F) || c == 0xFEFF || (c >= 0xFFF9 && c <= 0xFFFC);
        if (!control) text_push(out, c);
    }
}

// A run of white space becomes one blank; at both ends it is removed.
static inline void collapse_space(Text *out, const Text *in) {
    for (size_t i = 0; i < in->length; i++) {
        if (unicode_is_space(in->at[i])) continue;
        if (out->length && unicode_is_space(in->at[i - 1])) text_push(out, ' ');
        text_push(out, in->at[i]);
    }
}

#endif
