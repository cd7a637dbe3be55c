// What open_clip does to a caption before it cuts it into words: ftfy.fix_text, html.unescape twice, white
// space to single blanks, lower(). doc/tokenizer.md tells the order and the traps.
#ifndef CLIPC_TEXT_CLEAN_H
#define CLIPC_TEXT_CLEAN_H

#include "clipc/data/mojibake.h"

static inline bool is_ascii_digit(uint32_t c) { return c >= '0' && c <= '9'; }
static inline bool is_ascii_letter(uint32_t c) { return c < 0x80 && (c | 32) >= 'a' && (c | 32) <= 'z'; }

// ---------------------------------------------------------------- HTML entities

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

// A numeric reference at c ("&#65;", "&#x41", the semicolon may be missing): its length, or 0. *value is the
// code point as HTML5 has it: Windows-1252 for 80…9F, U+FFFD for impossible ones; -1: nothing comes in its
// place (controls, non-characters).
static inline size_t numeric_reference(const uint32_t *c, size_t n, int64_t *value) {
    if (n < 3 || c[0] != '&' || c[1] != '#') return 0;
    uint32_t base = (c[2] | 32) == 'x' ? 16 : 10, number = 0;
    size_t i = base == 16 ? 3 : 2, start = i;
    for (; i < n; i++) {
        uint32_t letter = c[i] | 32;
        if (!is_ascii_digit(c[i]) && !(base == 16 && c[i] < 0x80 && letter >= 'a' && letter <= 'f')) break;
        number = number * base + (is_ascii_digit(c[i]) ? c[i] - '0' : letter - 'a' + 10);
        if (number > 0x10FFFF) number = 0x110000; // and stays above
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

// Python's html.unescape(): names that are allowed to may lack their semicolon, and may have letters behind
// ("&notit;" is "¬it;").
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

// ftfy's way: only with a semicolon, up to 24 letters and digits, and upper-case spellings ("&EACUTE;").
static inline void ftfy_unescape(Text *out, const Text *in) {
    for (size_t i = 0, used; i < in->length; i += used) {
        const uint32_t *c = in->at + i;
        size_t left = in->length - i, hash = left > 1 && c[1] == '#', n = 0;
        while (c[0] == '&' && n < 25 && 1 + hash + n < left &&
               (is_ascii_digit(c[1 + hash + n]) || is_ascii_letter(c[1 + hash + n])))
            n++;
        bool whole = n >= 1 && n <= 24 && 1 + hash + n < left && c[1 + hash + n] == ';';
        int entity = whole && !hash ? entity_find(c + 1, n) : -1;
        int64_t value = ';'; // which ftfy leaves alone
        used = whole ? 1 + hash + n + 1 : 1;
        if (entity >= 0) entity_push(out, entity);
        else if (!whole || !hash || numeric_reference(c, used, &value) < used || value == ';')
            text_append(out, c, used);
        else if (value >= 0) text_push(out, (uint32_t)value);
    }
}

// ---------------------------------------------------------------- single characters

// What a Latin ligature or digraph stands for; NULL for any other character.
static inline const char *ligature_letters(uint32_t c) {
    static const struct {
        uint16_t c;
        const char *letters;
    } ligatures[] = {
        {0x132, "IJ"},
        {0x133, "ij"},
        {0x149, "\u02bcn"},
        {0x1C4, "DŽ"},
        {0x1C5, "Dž"},
        {0x1C6, "dž"},
        {0x1C7, "LJ"},
        {0x1C8, "Lj"},
        {0x1C9, "lj"},
        {0x1CA, "NJ"},
        {0x1CB, "Nj"},
        {0x1CC, "nj"},
        {0x1F1, "DZ"},
        {0x1F2, "Dz"},
        {0x1F3, "dz"},
        {0xFB00, "ff"},
        {0xFB01, "fi"},
        {0xFB02, "fl"},
        {0xFB03, "ffi"},
        {0xFB04, "ffl"},
        {0xFB05, "ſt"},
        {0xFB06, "st"},
    };
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

// Terminal escapes (ESC [ digits and semicolons, a letter) and characters that control and do not show.
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

// ---------------------------------------------------------------- the whole

enum {
    FTFY_SEGMENT = 1000000, // ftfy looks at no more characters at once
    FTFY_WORK =
        1
        // characters looked at in all rounds, then a line is left as it is: "&amp;amp;amp;…" takes a round
        // each
        << 26,
};

// ftfy.fix_text of one line: every fix in turn, until nothing changes.
static inline void ftfy_fix_line(Text *line, const MojibakeClasses *m, bool entities) {
    for (size_t work = 0; work <= FTFY_WORK; work += line->length + 1) {
        Text before = {NULL, 0, 0}, next = {NULL, 0, 0};
        text_append(&before, line->at, line->length);
        if (entities) {
            ftfy_unescape(&next, line);
            text_replace(line, &next);
        }
        text_fix_encoding(line, m);
        fix_characters(&next, line);
        text_replace(line, &next);
        remove_controls(&next, line);
        text_replace(line, &next);
        text_normalize(line, 0);
        bool same = text_equal(line, &before);
        text_free(&before);
        if (same) return;
    }
}

// ftfy.fix_text: line by line. The first `<` on turns its HTML entities off, as such text seems to be HTML by
// itself.
static inline void ftfy_fix_text(Text *out, const Text *in, const MojibakeClasses *m) {
    bool entities = true;
    for (size_t i = 0, n; i < in->length; i += n) {
        Text line = {NULL, 0, 0};
        for (n = 0; i + n < in->length && n < FTFY_SEGMENT && (n == 0 || in->at[i + n - 1] != '\n'); n++)
            if (in->at[i + n] == '<') entities = false;
        text_append(&line, in->at + i, n);
        ftfy_fix_line(&line, m, entities);
        text_append(out, line.at, line.length);
        text_free(&line);
    }
}

// Runs of white space become one blank, at the ends none.
static inline void collapse_space(Text *out, const Text *in) {
    for (size_t i = 0; i < in->length; i++) {
        if (unicode_is_space(in->at[i])) continue;
        if (out->length && unicode_is_space(in->at[i - 1])) text_push(out, ' ');
        text_push(out, in->at[i]);
    }
}

// Plain ASCII, which none of ftfy's fixes and no entity changes: lower case and white space are all there is
// to do. False when it is not.
static inline bool clean_ascii(Text *out, const char *caption, size_t length) {
    list_grow((void **)&out->at, &out->capacity, length + 1, sizeof *out->at);
    size_t n = 0;
    for (size_t i = 0; i < length; i++) {
        unsigned char c = (unsigned char)caption[i];
        if (c > 0x20 && c < 0x7F && c != '&') out->at[n++] = c >= 'A' && c <= 'Z' ? c | 32u : c;
        else if (c != ' ' && c != '\t' && c != '\n' && c != '\f' && c != '\r') return false;
        else if (n && out->at[n - 1] != ' ') out->at[n++] = ' ';
    }
    out->length = n && out->at[n - 1] == ' ' ? n - 1 : n;
    return true;
}

// The caption (length bytes, any) as it is cut into words: no white space but single blanks between words,
// lower case.
static inline void text_clean(Text *out, const MojibakeClasses *m, const char *caption, size_t length) {
    out->length = 0;
    if (clean_ascii(out, caption, length)) return;
    Text in = {NULL, 0, 0};
    text_append_utf8(&in, caption, length);
    ftfy_fix_text(out, &in, m);
    for (int round = 0; round < 2; round++) {
        in.length = 0;
        html_unescape(&in, out);
        text_replace(out, &in);
    }
    collapse_space(&in, out);
    out->length = 0;
    text_lower(out, &in);
    text_free(&in);
}

#endif
