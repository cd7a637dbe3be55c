// SentencePiece's table of characters to be replaced before a text is split (precompiled_charsmap: NFKC and a
// little more), applied as Hugging Face's `Precompiled` does. It does not look for the longest key at each
// place, as SentencePiece itself does: see charsmap_apply().
//
// A double-array trie (Yata's Darts, as uint32): a unit holds the byte that leads to it, where its children
// are, and whether a key ends there; then its child by byte 0 holds the place of the replacement.
#ifndef CLIPC_CHARSMAP_H
#define CLIPC_CHARSMAP_H

#include "clipc/data/unicode.h"

// ---------------------------------------------------------------- a growing array of bytes

typedef struct {
    unsigned char *at; // (capacity), of which `length` are used
    size_t length, capacity;
} Bytes;

static inline void bytes_append(Bytes *b, const unsigned char *p, size_t n) {
    if (!n) return;
    list_grow((void **)&b->at, &b->capacity, b->length + n, 1);
    memcpy(b->at + b->length, p, n);
    b->length += n;
}

static inline void bytes_push(Bytes *b, uint32_t c) {
    unsigned char utf8[4];
    bytes_append(b, utf8, utf8_write(utf8, c));
}

// ---------------------------------------------------------------- the table

typedef struct {
    const uint32_t *units; // (count)
    size_t count;
    const unsigned char *text; // (text_bytes): the replacements, each ended by NUL
    size_t text_bytes;
} Charsmap;

enum { CHARSMAP_KEY_BYTES = 256 }; // the longest key

// Where the children of a unit are: at that place, changed by their byte.
static inline size_t unit_children(uint32_t unit) { return (size_t)(unit >> 10) << ((unit & 512) >> 6); }
static inline uint32_t unit_label(uint32_t unit) { return unit & 0x800000FF; } // bit 31: not a child
static inline bool unit_ends_key(uint32_t unit) { return unit >> 8 & 1; }
static inline uint32_t unit_value(uint32_t unit) { return unit & 0x7FFFFFFF; }

// The replacement of the shortest key with which the chunk begins, ended by NUL; NULL: no key does. The table
// was checked.
static inline const unsigned char *charsmap_find(const Charsmap *m, const unsigned char *chunk, size_t n) {
    size_t at = unit_children(m->units[0]);
    for (size_t i = 0; i < n && chunk[i]; i++) {
        const uint32_t unit = m->units[at ^ chunk[i]];
        if (unit_label(unit) != chunk[i]) return NULL;
        at ^= chunk[i] ^ unit_children(unit);
        if (unit_ends_key(unit)) return m->text + unit_value(m->units[at]);
    }
    return NULL;
}

// ---------------------------------------------------------------- checking it

// Whether the children at `at`, and a value where a key ends, are inside the table.
static inline const char *charsmap_check_node(const Charsmap *m, size_t at, bool ends_key) {
    if ((at | 0xFF) >= m->count) return "its charsmap points outside itself";
    if (!ends_key) return NULL;
    const uint32_t value = unit_value(m->units[at]);
    if (value >= m->text_bytes || (m->text[value] & 0xC0) == 0x80)
        return "its charsmap has no such replacement";
    return NULL;
}

// Walks all keys, each place once (different keys share their ends); NULL, or the reason why the table cannot
// be used.
static inline const char *charsmap_check(const Charsmap *m) {
    if (!m->count) return m->text_bytes ? "its charsmap has no keys" : NULL;
    uint32_t c;
    bool valid = m->text_bytes > 0 && m->text[m->text_bytes - 1] == 0;
    for (size_t i = 0; valid && i < m->text_bytes;)
        i += utf8_next(m->text + i, m->text_bytes - i, &c, &valid);
    if (!valid) return "the replacements of its charsmap are not UTF-8";
    enum { NEW, ON_PATH, DONE };
    struct {
        size_t at;
        unsigned byte; // the next one to follow
    } path[CHARSMAP_KEY_BYTES + 1];
    unsigned char *state = (unsigned char *)calloc_check(m->count, 1);
    int depth = 0;
    path[0].at = unit_children(m->units[0]);
    path[0].byte = 1;
    const char *why = charsmap_check_node(m, path[0].at, false);
    if (!why) state[path[0].at] = ON_PATH;
    while (!why && depth >= 0) {
        const unsigned byte = path[depth].byte++;
        if (byte > 0xFF) {
            state[path[depth--].at] = DONE;
            continue;
        }
        const uint32_t unit = m->units[path[depth].at ^ byte];
        if (unit_label(unit) != byte) continue;
        const size_t at = path[depth].at ^ byte ^ unit_children(unit);
        why = charsmap_check_node(m, at, unit_ends_key(unit));
        if (why || state[at] == DONE) continue;
        if (state[at] == ON_PATH) why = "its charsmap has a cycle";
        else if (depth == CHARSMAP_KEY_BYTES) why = "a key of its charsmap is too long";
        if (why) continue;
        state[at] = ON_PATH;
        path[++depth].at = at;
        path[depth].byte = 1;
    }
    free(state);
    return why;
}

// ---------------------------------------------------------------- applying it

// Bytes of the grapheme cluster (UAX 29, extended) at p, of n > 0 bytes of UTF-8.
static inline size_t grapheme_bytes(const unsigned char *p, size_t n) {
    utf8proc_int32_t state = 0;
    uint32_t before, c;
    bool valid;
    size_t i = utf8_next(p, n, &before, &valid);
    while (i < n) {
        if (before < 0x80 && before != '\r' && p[i] < 0x80) return i;
        const size_t length = utf8_next(p + i, n - i, &c, &valid);
        if (utf8proc_grapheme_break_stateful((utf8proc_int32_t)before, (utf8proc_int32_t)c, &state)) return i;
        i += length;
        before = c;
    }
    return i;
}

static inline bool charsmap_replace(const Charsmap *m, Bytes *out, const unsigned char *chunk, size_t n) {
    const unsigned char *found = charsmap_find(m, chunk, n);
    if (found) bytes_append(out, found, strlen((const char *)found));
    return found != NULL;
}

// Hugging Face's rule. A grapheme cluster of under 6 bytes is looked up as a whole, another one character by
// character; the shortest key that the chunk begins with replaces all of it. So º and an acute accent, as one
// cluster, become o, where SentencePiece has ó. Ends when `out` has more than `most` bytes.
static inline void charsmap_apply(
    const Charsmap *m, Bytes *out, const unsigned char *p, size_t n, size_t most) {
    for (size_t i = 0, cluster; i < n && out->length <= most; i += cluster) {
        cluster = grapheme_bytes(p + i, n - i);
        if (cluster < 6 && charsmap_replace(m, out, p + i, cluster)) continue;
        for (size_t k = 0, length; k < cluster; k += length) {
            uint32_t c;
            bool valid;
            length = utf8_next(p + i + k, cluster - k, &c, &valid);
            if (!charsmap_replace(m, out, p + i + k, length)) bytes_append(out, p + i + k, length);
        }
    }
}

#endif
