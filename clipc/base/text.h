// Text that comes from files of others: names, captions, paths. Before it is shown it goes through
// make_showable(), so that none of it can move the cursor, change the title of a terminal, forge a line of
// a log or turn the direction of writing.
#ifndef CLIPC_TEXT_H
#define CLIPC_TEXT_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE // strcasestr, memmem and, on Linux, the program's name in errno.h
#endif
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#define REPLACEMENT_CHARACTER 0xFFFD

// Reads one code point from n > 0 bytes; returns how many bytes it takes. Where they are not UTF-8, *c is
// U+FFFD, *valid is false, and the bytes taken are those that Python's errors="replace" turns into one U+FFFD
// (Unicode 3.9, maximal subparts).
static inline size_t utf8_next(const unsigned char *p, size_t n, uint32_t *c, bool *valid) {
    size_t need = p[0] < 0x80 ? 1 : p[0] < 0xC2 ? 0 : p[0] < 0xE0 ? 2 : p[0] < 0xF0 ? 3 : p[0] < 0xF5 ? 4 : 0;
    *valid = need > 0;
    *c = need == 1 ? p[0] : need == 0 ? REPLACEMENT_CHARACTER : p[0] & (0x7Fu >> need);
    for (size_t i = 1; i < need; i++) {
        // the second byte has narrower bounds: no overlong forms, no surrogates, nothing above U+10FFFF
        unsigned char low = 0x80, high = 0xBF;
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

// The bytes of the character at p. *harmful: it must not be shown. That holds for control characters (C0,
// DEL, C1), line and paragraph separators, those that turn the direction of writing, and what is not UTF-8.
static inline size_t showable_next(const char *p, bool *harmful) {
    uint32_t c;
    bool valid;
    const size_t bytes = utf8_next((const unsigned char *)p, 4, &c, &valid); // 4: the NUL ends it before
    const bool control = c < 0x20 || (c >= 0x7f && c < 0xa0);
    const bool breaks = c == 0x2028 || c == 0x2029;
    const bool turns = (c >= 0x202a && c <= 0x202e) || (c >= 0x2066 && c <= 0x2069);
    *harmful = !valid || control || breaks || turns;
    return bytes;
}

static inline bool is_showable(const char *text) {
    bool harmful = false;
    while (*text && !harmful) text += showable_next(text, &harmful);
    return !harmful;
}

// Puts a blank in place of tabs and line breaks, and a ? in place of the others that must not be shown.
// What is left is valid UTF-8, and not longer.
static inline void make_showable(char *text) {
    bool harmful;
    char *to = text;
    for (size_t bytes; *text; text += bytes) {
        bytes = showable_next(text, &harmful);
        memmove(to, text, bytes);
        if (harmful) *to = strchr("\t\n\v\f\r", *text) ? ' ' : '?';
        to += harmful ? 1 : bytes;
    }
    *to = 0;
}

// ---------------------------------------------------------------- text that reads back

// Writes text on one line: backslash, tab and line break as \\ \t \n, bytes that must not be shown as \xHH.
static inline void print_escaped(FILE *f, const char *s) {
    bool harmful;
    for (size_t bytes; *s; s += bytes) {
        bytes = showable_next(s, &harmful);
        if (*s == '\\') fputs("\\\\", f);
        else if (*s == '\t') fputs("\\t", f);
        else if (*s == '\n') fputs("\\n", f);
        else if (!harmful) fwrite(s, 1, bytes, f);
        else
            for (size_t i = 0; i < bytes; i++) fprintf(f, "\\x%02x", (unsigned char)s[i]);
    }
}

// Undoes print_escaped() in place.
static inline void unescape(char *s) {
    char *to = s;
    for (; *s; s++) {
        unsigned byte;
        if (s[0] == '\\' && s[1] == 'x' && strspn(s + 2, "0123456789abcdef") >= 2) {
            sscanf(s + 2, "%2x", &byte);
            *to++ = (char)byte;
            s += 3;
        } else if (*s == '\\' && s[1]) {
            s++;
            *to++ = *s == 't' ? '\t' : *s == 'n' ? '\n' : *s;
        } else *to++ = *s;
    }
    *to = 0;
}

// Writes a blank and a word such that a shell reads it back: in '' where it has to be, in $'' where bytes
// of it must not be shown.
static inline void shell_word(FILE *f, const char *word) {
    static const char plain[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-+=.,:/@%";
    const bool clean = is_showable(word), quoted = !*word || word[strspn(word, plain)];
    bool harmful;
    fputs(!clean ? " $'" : quoted ? " '" : " ", f);
    for (size_t bytes; *word; word += bytes) {
        bytes = showable_next(word, &harmful);
        if (harmful)
            for (size_t i = 0; i < bytes; i++) fprintf(f, "\\%03o", (unsigned char)word[i]);
        else if (*word == '\'') fputs(clean ? "'\\''" : "\\'", f);
        else if (*word == '\\' && !clean) fputs("\\\\", f);
        else fwrite(word, 1, bytes, f);
    }
    if (quoted) fputc('\'', f);
}

#endif
