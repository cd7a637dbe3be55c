// What open_clip does to a caption before it is split into words: ftfy.fix_text, html.unescape twice, white
// space to single blanks, lower(). text_clean() at the end does it all; doc/tokenizer.md explains the order
// and the traps.
//
// Most of this file is ftfy's repair of mojibake, UTF-8 that was read as a code page with one byte a
// character ("Ã©" for "é"): its step fix_encoding, by Robyn Speer, Apache-2.0;
// ftfy.readthedocs.io/en/latest/heuristic.html. A line is repaired if it contains a sequence of characters
// that hardly ever occurs otherwise (mojibake_suspect): it is encoded in each code page and the bytes are
// decoded as UTF-8. If that fails for the whole line, its suspect parts are repaired alone.
#ifndef CLIPC_TEXT_CLEAN_H
#define CLIPC_TEXT_CLEAN_H

#include "clipc/data/unicode.h"

// ---------------------------------------------------------------- classes of characters

// clang-format off
enum {
    // M_FACE: in emoticons
    M_COMMON = 1, M_C1 = 2, M_BAD = 4, M_LAW = 8, M_MONEY = 0x10, M_OPEN = 0x20, M_CLOSE = 0x40,
    M_NUMERIC = 0x80, M_FACE = 0x100, M_UPPER = 0x200, M_LOWER = 0x400, M_UPPER_COMMON = 0x800,
    M_LOWER_COMMON = 0x1000, M_BOX = 0x2000,
    // what a byte of UTF-8 may look like in a code page: mojibake_classes_init()
    M_LEAD_2 = 0x4000, M_LEAD_3 = 0x8000, M_LEAD_4 = 0x10000, M_TRAIL = 0x20000, M_PUNCTUATION = 0x40000,
    M_ASCII_UPPER = 0x80000, M_ASCII_LOWER = 0x100000, M_BLANK = 0x200000, M_SPACE = 0x400000,
    M_WORD = 0x800000, M_NEWLINE = 0x1000000,
    M_OTHER = 0x2000000, // any character but a newline
    M_START = 0x4000000, // the place before the first character
    M_ACCENTED = M_UPPER | M_LOWER, M_QUOTES = M_OPEN | M_CLOSE,
    M_ASCII_LETTER = M_ASCII_UPPER | M_ASCII_LOWER,
};

// The members of the classes: characters and ranges (a-b).
static const struct { int classes; const char *members; } mojibake_members[] = {
    {M_COMMON, "\u00a0\u00ad\u00b4\u00b7–-―’…"},
    {M_BAD, "¤¦¨ª¬¯¸ºƒˆˇ˘˛˜†‡‰⌐◊\ufffd"},
    {M_LAW, "§¶"},
    {M_MONEY, "¢£¥₧€"},
    {M_OPEN, "¡©«¿΄΅‘‚“„•‹\uf8ff"},
    {M_CLOSE, "®»˝”›™"},
    {M_NUMERIC, "±-³µ¹¼-¾×÷⁄№∂∆∏∑√∞∩∫≈≠≡≤≥"},
    {M_FACE, "°Ò-ÖÙ-Üò-öø-üŌŐŪŲ"},
    {M_UPPER, "À-ÑØÜÝĀĂĄĆČĎĐĒĖĘĚĞĢĪİĶĹĻĽŁŃŅŇŒŘŚŞŠŢŤŮŰŸŹŻŽҐ"},
    {M_LOWER, "ß-ñüāăąćčďđēėęěğģīįķĺļľłœŕśşšťźżžґﬁﬂ"},
    {M_UPPER_COMMON, "ÞΆΈ-ΊΌΎΏΑ-ΫЁ-Я"},
    {M_LOWER_COMMON, "ά-ωа-џ"},
    {M_BOX, "│┌┐┘├┤┬┼═-╬▀▄█▌▐-▓"},
    {M_PUNCTUATION, "–—―‘’‚“”„•…"},
};

// A place in a sequence matches a character of one of the classes, or one of the characters.
typedef struct { int classes; const char *characters; } MojibakePlace;
enum { MOJIBAKE_PLACES = 7 };
#define M_ANY_QUIRK (M_BOX | M_QUOTES | M_MONEY | M_NUMERIC | M_LAW)
#define M_ARABIC_TRAIL {M_COMMON | M_MONEY | M_BAD | M_NUMERIC | M_OPEN, "ŸŠ®°µ»"}
static const MojibakePlace mojibake_sequences[][MOJIBAKE_PLACES] = {
    {{M_C1, ""}},
    // classes that are not neighbours in any language
    {{M_BAD | M_ACCENTED | M_ANY_QUIRK, ""}, {M_BAD, ""}},
    {{M_ASCII_LETTER, ""}, {M_LOWER_COMMON | M_UPPER_COMMON, ""}, {M_BAD, ""}},
    {{M_BAD, ""}, {M_ACCENTED | M_ANY_QUIRK, ""}},
    {{M_LOWER | M_LOWER_COMMON | M_BOX | M_CLOSE | M_MONEY | M_NUMERIC, ""}, {M_UPPER, ""}},
    {{M_BOX | M_CLOSE | M_MONEY | M_NUMERIC, ""}, {M_LOWER, ""}},
    {{M_LOWER | M_BOX | M_CLOSE, ""}, {M_MONEY, ""}},
    {{M_SPACE, ""}, {M_UPPER, ""}, {M_MONEY, ""}},
    {{M_UPPER | M_BOX, ""}, {M_NUMERIC | M_LAW, ""}},
    {{M_ACCENTED | M_BOX | M_MONEY | M_CLOSE, ""}, {M_OPEN, ""}, {M_NUMERIC, ""}},
    {{M_ACCENTED | M_MONEY | M_NUMERIC | M_BOX | M_LAW, ""}, {M_CLOSE, ""}, {M_OPEN, ""}},
    {{M_MONEY | M_NUMERIC | M_BOX, ""}, {M_OPEN, ""}},
    {{M_ASCII_LOWER, ""}, {M_UPPER, ""}, {M_OPEN | M_MONEY, ""}},
    {{M_BOX, ""}, {M_FACE | M_CLOSE, ""}},
    {{M_ACCENTED | M_MONEY | M_NUMERIC | M_QUOTES | M_LAW, ""}, {M_BOX, ""}},
    {{M_ACCENTED, ""}, {M_QUOTES, ""}, {M_WORD, ""}},
    {{M_UPPER, ""}, {0, "°"}},
    {{0, "Œœ"}, {M_OTHER | M_NEWLINE, ""}},
    // Windows-1252
    {{0, "ÂÃÎÐ"}, {M_QUOTES, "€œŠš¢£Ÿž\u00a0\u00ad®©°·»–—´"}},
    {{0, "×"}, {0, "²³"}},
    {{0, "ØÙ"}, M_ARABIC_TRAIL, {0, "ØÙ"}, M_ARABIC_TRAIL},
    {{0, "à"}, {0, "²µ¹¼½¾"}},
    {{M_ASCII_LOWER | M_START, ""}, {0, "ÃÂ"}, {M_BLANK, ""}},
    {{M_ASCII_LOWER, ""}, {M_SPACE, ""}, {0, "ÃÂ"}, {M_BLANK, ""}},
    {{M_ASCII_LOWER | M_CLOSE, ".,?!"}, {0, "Â"}, {M_BLANK | M_QUOTES, ""}},
    // MacRoman
    {{0, "√"}, {0, "±∂†≠®™´≤≥¥µø"}},
    {{0, "≈"}, {0, "°¢"}},
    {{0, "‚"}, {0, "Ä"}, {0, "ìîïòôúùû†°¢π"}},
    {{0, "‚"}, {0, "âó"}, {0, "àä°ê"}},
    // Windows-1251, Windows-1253
    {{0, "в"}, {0, "Ђ"}},
    {{0, "ВГРС"}, {M_C1 | M_BAD | M_QUOTES | M_MONEY, "°µ"}, {0, "ВГРС"}},
    {{0, "Г"}, {0, "ў"}, {0, "В"}, {0, "Ђ"}, {0, "В"}, {M_OTHER | M_ASCII_LETTER, ""},
     {M_ASCII_LETTER | M_BLANK, ""}},
    {{0, "β"}, {0, "€"}, {0, "™\u00a0Ά\u00ad®°"}},
    {{0, "ΒΓΞΟ"}, {M_C1 | M_BAD | M_QUOTES | M_MONEY, "°"}, {0, "ΒΓΞΟ"}},
};
// clang-format on

// The classes by character, a hash table with open addressing; a slot with c = 0 is empty.
enum { MOJIBAKE_SLOTS = 2048 };
typedef struct {
    struct {
        uint32_t c;
        int classes;
    } slots[MOJIBAKE_SLOTS];
} MojibakeClasses;

static inline size_t mojibake_slot(const MojibakeClasses *m, uint32_t c) {
    size_t i = (c * 0x9E3779B1u) >> 21;
    while (m->slots[i].c && m->slots[i].c != c) i = (i + 1) % MOJIBAKE_SLOTS;
    return i;
}

static inline void mojibake_classes_add(MojibakeClasses *m, uint32_t c, int classes) {
    size_t i = mojibake_slot(m, c);
    m->slots[i].c = c;
    m->slots[i].classes |= classes;
}

static inline void mojibake_classes_init(MojibakeClasses *m) {
    memset(m, 0, sizeof *m);
    for (size_t i = 0; i < sizeof mojibake_members / sizeof *mojibake_members; i++) {
        Text t = {NULL, 0, 0};
        text_append_utf8(&t, mojibake_members[i].members, strlen(mojibake_members[i].members));
        for (size_t j = 0; j < t.length; j++) {
            bool range = j + 2 < t.length && t.at[j + 1] == '-';
            for (uint32_t c = t.at[j]; c <= t.at[range ? j + 2 : j]; c++)
                mojibake_classes_add(m, c, mojibake_members[i].classes);
            if (range) j += 2;
        }
        text_free(&t);
    }
    for (uint32_t c = 0x80; c < 0xA0; c++) mojibake_classes_add(m, c, M_C1);
    // Latin-1 (-1) and the Windows code pages: which byte of UTF-8 a character may have been
    for (int page = -1; page < PAGE_ISO8859_2; page++)
        for (uint32_t b = 0x80; b <= 0xF3; b++) {
            int classes = b < 0xC0                 ? M_TRAIL
                          : b < 0xC2               ? 0
                          : b < 0xE0               ? M_LEAD_2
                          : b < 0xF0               ? M_LEAD_3
                          : b == 0xF0 || b == 0xF3 ? M_LEAD_4
                                                   : 0;
            if (classes) mojibake_classes_add(m, page < 0 ? b : code_pages[page][b - 0x80], classes);
        }
}

static inline int mojibake_classes_of(const MojibakeClasses *m, uint32_t c) {
    if (c == '\n') return M_NEWLINE | M_SPACE;
    if (c >= 'A' && c <= 'Z') return M_ASCII_UPPER | M_WORD;
    if (c >= 'a' && c <= 'z') return M_ASCII_LOWER | M_WORD;
    char kind = unicode_class(c);
    return M_OTHER | (c ? m->slots[mojibake_slot(m, c)].classes : 0) | (c == ' ' ? M_BLANK : 0) |
           (unicode_is_space(c) ? M_SPACE : 0) | (kind == 'L' || kind == 'N' || c == '_' ? M_WORD : 0);
}

static inline bool mojibake_place_matches(const MojibakePlace *place, int classes, uint32_t c) {
    if (place->classes & classes) return true;
    bool valid;
    uint32_t member;
    const unsigned char *p = (const unsigned char *)place->characters;
    for (size_t n = strlen(place->characters), i = 0; i < n;) {
        i += utf8_next(p + i, n - i, &member, &valid);
        if (member == c) return true;
    }
    return false;
}

// Whether the text contains one of the sequences.
static inline bool mojibake_suspect(const MojibakeClasses *m, const uint32_t *c, size_t n) {
    // of the start, then of each character
    int *classes = (int *)malloc_check((n + 1) * sizeof *classes);
    classes[0] = M_START;
    for (size_t i = 0; i < n; i++) classes[i + 1] = mojibake_classes_of(m, c[i]);
    bool found = false;
    for (size_t i = 0; !found && i <= n; i++)
        for (size_t s = 0; !found && s < sizeof mojibake_sequences / sizeof *mojibake_sequences; s++) {
            const MojibakePlace *place = mojibake_sequences[s];
            size_t k = 0;
            while (k < MOJIBAKE_PLACES && place[k].characters && i + k <= n &&
                   mojibake_place_matches(&place[k], classes[i + k], i + k ? c[i + k - 1] : 0))
                k++;
            found = k == MOJIBAKE_PLACES || !place[k].characters;
        }
    free(classes);
    return found;
}

// ---------------------------------------------------------------- undoing one wrong reading

// The byte of a character in a code page (-1: Latin-1), or -1. In a Windows page U+FFFD marks a byte that was
// lost; it is written as 1A, which therefore cannot be encoded itself.
static inline int code_page_byte(int page, uint32_t c) {
    bool windows = page >= 0 && page < PAGE_ISO8859_2;
    if (windows && c == REPLACEMENT_CHARACTER) return 0x1A;
    if (c < 0x80) return windows && c == 0x1A ? -1 : (int)c;
    if (page < 0) return c < 0x100 ? (int)c : -1;
    for (int i = 0; i < 128; i++)
        if (code_pages[page][i] == c) return 0x80 + i;
    return -1;
}

static inline bool is_trail_byte(unsigned char b) { return b >= 0x80 && b <= 0xBF; }

// Length of a UTF-8 sequence at p whose trail byte A0 (no-break space) has become a blank, after those lead
// bytes where that is likely; or 0.
static inline size_t altered_length(const unsigned char *p, size_t n) {
    unsigned char b = p[0];
    if (n >= 2 && p[1] == ' ' && b && strchr("\xc2\xc3\xc5\xce\xd0\xd9", b)) return 2;
    if (n >= 3 && b >= 0xE0 && b <= 0xE3) {
        bool trail_1 = is_trail_byte(p[1]) && p[1] != 0x85 && p[1] != 0xA0;
        bool trail_2 = is_trail_byte(p[2]) && p[2] != 0x85 && p[2] != 0xA0;
        if ((b >= 0xE2 && p[1] == ' ' && trail_2) || (trail_1 && p[2] == ' ')) return 3;
    }
    if (n >= 4 && b == 0xF0) {
        int blanks = 0, trails = 0;
        for (int i = 1; i < 4; i++) {
            blanks += p[i] == ' ';
            trails += is_trail_byte(p[i]);
        }
        if (blanks == 1 && trails == 2) return 4;
    }
    return 0;
}

// Restores those A0: writes n bytes to out (up to 3 n / 2) and returns how many. "Ã " as a word was "à ": its
// blank is kept, except in Portuguese contractions.
static inline size_t restore_no_break_spaces(unsigned char *out, const unsigned char *p, size_t n) {
    size_t altered = 0, m = 0;
    while (altered < n && !altered_length(p + altered, n - altered)) altered++;
    bool any = altered < n;
    static const char *const contractions[] = {" ", "quele", "quela", "quilo", "s "};
    for (size_t i = 0; i < n; i++) {
        out[m++] = p[i];
        if (!any || p[i] != 0xC3 || i + 1 >= n || p[i + 1] != ' ') continue;
        bool word = true;
        for (size_t k = 0; k < sizeof contractions / sizeof *contractions; k++) {
            size_t length = strlen(contractions[k]);
            if (n - i - 2 >= length && memcmp(p + i + 2, contractions[k], length) == 0) word = false;
        }
        if (word) out[m++] = 0xA0;
    }
    for (size_t i = 0, length; any && i < m; i += length ? length : 1) {
        length = altered_length(out + i, m - i);
        for (size_t k = 0; k < length; k++)
            if (out[i + k] == ' ') out[i + k] = 0xA0;
    }
    return m;
}

// A pair of surrogates, each encoded in three bytes as UTF-8 would; the last byte of either may be any.
static inline bool is_surrogate_pair(const unsigned char *p, size_t n) {
    return n >= 6 && p[0] == 0xED && p[1] >= 0xA0 && p[1] <= 0xAF && p[3] == 0xED && p[4] >= 0xB0 &&
           p[4] <= 0xBF;
}

// Length of a UTF-8 sequence at p (a pair of surrogates counts as one) some of whose trail bytes were lost:
// they are 1A, one of them may be '?'; or 0.
static inline size_t lossy_length(const unsigned char *p, size_t n) {
    if (is_surrogate_pair(p, n)) {
        bool lost_2 = p[2] == 0x1A || p[2] == '?', lost_5 = p[5] == 0x1A || p[5] == '?';
        if ((lost_2 || lost_5) && (lost_2 || is_trail_byte(p[2])) && (lost_5 || is_trail_byte(p[5])))
            return 6;
    }
    size_t length = p[0] >= 0xC2 && p[0] <= 0xDF   ? 2
                    : p[0] >= 0xE0 && p[0] <= 0xEF ? 3
                    : p[0] >= 0xF0 && p[0] <= 0xF4 ? 4
                                                   : 0;
    if (length && length <= n) {
        size_t lost = 0, asked = 0, kept = 0;
        for (size_t i = 1; i < length; i++) {
            lost += p[i] == 0x1A;
            asked += p[i] == '?';
            kept += is_trail_byte(p[i]);
        }
        bool may_ask = length > 2 || p[0] <= 0xC3;
        if (lost + asked + kept == length - 1 && lost + asked > 0 && asked <= (may_ask ? 1u : 0u))
            return length;
    }
    return p[0] == 0x1A;
}

// Each of those becomes U+FFFD: writes n bytes to out (up to 3 n) and returns how many.
static inline size_t replace_lossy_sequences(unsigned char *out, const unsigned char *p, size_t n) {
    size_t m = 0;
    for (size_t i = 0, length; i < n; i += length ? length : 1) {
        length = lossy_length(p + i, n - i);
        if (length) m += utf8_write(out + m, REPLACEMENT_CHARACTER);
        else out[m++] = p[i];
    }
    return m;
}

// Decodes UTF-8, Java's C0 80 for U+0000, and CESU-8 (each half of a surrogate pair in three bytes); false
// where the bytes are none of these.
static inline bool text_decode_utf8_variants(Text *out, const unsigned char *p, size_t n) {
    for (size_t i = 0; i < n;) {
        uint32_t c;
        bool valid = true;
        const unsigned char *q = p + i;
        size_t left = n - i;
        // the newline: ftfy's `$` matches before it
        if (left >= 2 && q[0] == 0xC0 && (q[1] == 0x80 || (left == 2 && q[1] == '\n'))) {
            c = 0;
            i += 2;
        } else if (is_surrogate_pair(q, left) && is_trail_byte(q[2]) && is_trail_byte(q[5])) {
            c = 0x10000 +
                ((q[1] & 0x0Fu) << 16 | (q[2] & 0x3Fu) << 10 | (q[4] & 0x0Fu) << 6 | (q[5] & 0x3Fu));
            i += 6;
        } else {
            i += utf8_next(q, left, &c, &valid);
        }
        if (!valid) return false;
        text_push(out, c);
    }
    return true;
}

// What the text was if it is UTF-8 that was read as the code page; false if it is not.
static inline bool mojibake_reread(Text *out, const Text *t, int page) {
    size_t n = t->length;
    bool fits = true;
    unsigned char *bytes = (unsigned char *)malloc_check(6 * n), *other = bytes + 3 * n;
    for (size_t i = 0; fits && i < n; i++) {
        int b = code_page_byte(page, t->at[i]);
        bytes[i] = (unsigned char)b;
        fits = b >= 0;
    }
    if (fits && page != PAGE_MAC_ROMAN) { // there an en dash and a blank would look altered
        n = restore_no_break_spaces(other, bytes, n);
        memcpy(bytes, other, n);
    }
    if (fits && page >= 0 && page < PAGE_ISO8859_2) {
        n = replace_lossy_sequences(other, bytes, n);
        memcpy(bytes, other, n);
    }
    out->length = 0;
    fits = fits && text_decode_utf8_variants(out, bytes, n);
    free(bytes);
    return fits;
}

// ---------------------------------------------------------------- the repair

static inline void text_fix_encoding(Text *t, const MojibakeClasses *m);

// Length of the run of sequences from `start` on that look like UTF-8 in some code page; 0 right after what
// looks like the middle of one.
static inline size_t mojibake_run(const Text *t, size_t start, const MojibakeClasses *m) {
    if (start > 0 && (mojibake_classes_of(m, t->at[start - 1]) & (M_TRAIL | M_PUNCTUATION)) == M_TRAIL)
        return 0;
    for (size_t i = start;;) {
        int lead = i < t->length ? mojibake_classes_of(m, t->at[i]) : 0;
        size_t trails = 0;
        while (trails < 3 && i + 1 + trails < t->length &&
               mojibake_classes_of(m, t->at[i + 1 + trails]) & (M_TRAIL | M_BLANK))
            trails++;
        if (lead & M_LEAD_2 && trails >= 1) i += 2;
        else if (lead & M_LEAD_3 && trails >= 2) i += 3;
        else if (lead & M_LEAD_4 && trails >= 3) i += 4;
        else return i - start;
    }
}

// Repairs suspect runs, each on its own.
static inline void mojibake_fix_runs(Text *out, const Text *t, const MojibakeClasses *m) {
    for (size_t i = 0; i < t->length;) {
        size_t n = mojibake_run(t, i, m);
        Text run = {NULL, 0, 0};
        text_append(&run, t->at + i, n ? n : 1);
        if (n && n < t->length && mojibake_suspect(m, run.at, run.length)) text_fix_encoding(&run, m);
        text_append(out, run.at, run.length);
        text_free(&run);
        i += n ? n : 1;
    }
}

// Undoes one wrong reading; false when nothing changed.
static inline bool mojibake_fix_once(Text *t, const MojibakeClasses *m) {
    bool ascii = true, fits = false;
    for (size_t i = 0; ascii && i < t->length; i++) ascii = t->at[i] < 0x80;
    if (ascii || !mojibake_suspect(m, t->at, t->length)) return false;
    Text fixed = {NULL, 0, 0};
    for (int page = -1; !fits && page < CODE_PAGES; page++) fits = mojibake_reread(&fixed, t, page);
    if (!fits) {
        fixed.length = 0;
        mojibake_fix_runs(&fixed, t, m);
        if (text_equal(&fixed, t))
            for (size_t i = 0; i < t->length; i++) fixed.at[i] = fix_c1(t->at[i]);
    }
    bool changed = !text_equal(&fixed, t);
    text_replace(t, &fixed);
    return changed;
}

static inline void text_fix_encoding(Text *t, const MojibakeClasses *m) {
    while (mojibake_fix_once(t, m)) {}
}

// ---------------------------------------------------------------- all of it, in order

enum {
    FTFY_SEGMENT = 1000000, // characters that ftfy fixes at a time
    // characters examined in all rounds, after which a line is left as it is: "&amp;amp;amp;…" takes a
    // round for each "amp;"
    FTFY_WORK = 1 << 23,
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

// ftfy.fix_text, line by line. Entities are left as they are from the first line on that has a `<`: such text
// seems to be HTML itself.
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

// What open_clip does to a caption after ftfy and html.unescape(): lower(), or nothing, or what SigLIP has.
typedef enum { CLEAN_LOWER, CLEAN_WHITESPACE, CLEAN_CANONICALIZE } TextCleaning;

// CLEAN_CANONICALIZE: `_` becomes a blank, and the other punctuation of ASCII is removed.
static inline bool is_ascii_punctuation(uint32_t c) {
    return c > ' ' && c < 0x7F && !is_ascii_digit(c) && !is_ascii_letter(c);
}

// For plain ASCII without `&`, which ftfy leaves as it is: only punctuation, case and white space change.
// False for any other caption.
static inline bool clean_ascii(Text *out, TextCleaning how, const char *caption, size_t length) {
    list_grow((void **)&out->at, &out->capacity, length + 1, sizeof *out->at);
    size_t n = 0;
    for (size_t i = 0; i < length; i++) {
        unsigned char c = (unsigned char)caption[i];
        const bool letter = c > 0x20 && c < 0x7F && c != '&';
        if (!letter && c != ' ' && c != '\t' && c != '\n' && c != '\f' && c != '\r') return false;
        if (how == CLEAN_CANONICALIZE && c != '_' && is_ascii_punctuation(c)) continue;
        const bool space = !letter || (how == CLEAN_CANONICALIZE && c == '_');
        if (!space) out->at[n++] = how != CLEAN_WHITESPACE && c >= 'A' && c <= 'Z' ? c | 32u : c;
        else if (n && out->at[n - 1] != ' ') out->at[n++] = ' ';
    }
    out->length = n && out->at[n - 1] == ' ' ? n - 1 : n;
    return true;
}

static inline void remove_ascii_punctuation(Text *t) {
    size_t n = 0;
    for (size_t i = 0; i < t->length; i++) {
        const uint32_t c = t->at[i] == '_' ? ' ' : t->at[i];
        if (!is_ascii_punctuation(c)) t->at[n++] = c;
    }
    t->length = n;
}

// The caption (any `length` bytes) as it will be split into words: single blanks between words, no other
// white space, and what `how` says.
static inline void text_clean(
    Text *out, const MojibakeClasses *m, TextCleaning how, const char *caption, size_t length) {
    out->length = 0;
    if (clean_ascii(out, how, caption, length)) return;
    Text in = {NULL, 0, 0};
    text_append_utf8(&in, caption, length);
    ftfy_fix_text(out, &in, m);
    for (int round = 0; round < 2; round++) {
        in.length = 0;
        html_unescape(&in, out);
        text_replace(out, &in);
    }
    if (how == CLEAN_CANONICALIZE) remove_ascii_punctuation(out);
    collapse_space(&in, out);
    if (how == CLEAN_WHITESPACE) {
        text_replace(out, &in);
        return;
    }
    out->length = 0;
    text_lower(out, &in);
    text_free(&in);
}

#endif
