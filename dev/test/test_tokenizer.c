// Tests of clipc/data/tokenizer.h, text_clean.h and unicode.h.
//   dev/test/test_tokenizer [GOLDEN_DIR]
// GOLDEN_DIR holds tokens.jsonl, unicode_classes.tsv and unicode_lower.tsv; every record in them is checked,
// no caption is excused.
#include "clipc/data/tokenizer.h"

#include "dev/test/test.h"

#include <jansson.h>

#define CONTEXT 77

static Tokenizer *builtin(void) {
    char error[256] = "";
    Tokenizer *t = tokenizer_create(tokenizer_builtin_merges, (size_t)tokenizer_builtin_merges_length, error);
    if (!t) die(EXIT_RUNTIME, "data/bpe_merges.txt: %s", error);
    return t;
}

// The cleaned caption as UTF-8; free() it. *bytes may be NULL.
static char *clean(const Tokenizer *t, const char *caption, size_t length, size_t *bytes) {
    Text text = {NULL, 0, 0};
    text_clean(&text, &t->mojibake, t->cleaning, caption, length);
    unsigned char *out = (unsigned char *)malloc_check(4 * text.length + 1);
    size_t n = 0;
    for (size_t i = 0; i < text.length; i++) n += utf8_write(out + n, text.at[i]);
    out[n] = 0;
    if (bytes) *bytes = n;
    text_free(&text);
    return (char *)out;
}

static void expect_ids(const Tokenizer *t, const char *caption, int context, const int *expected, int count) {
    int ids[CONTEXT], used = tokenizer_encode(t, caption, strlen(caption), ids, context);
    EXPECT(used == count && memcmp(ids, expected, (size_t)count * sizeof *ids) == 0,
        "'%s': %d ids, %d expected", caption, used, count);
    for (int i = used; i < context; i++) EXPECT(ids[i] == 0, "'%s': id %d after the end", caption, ids[i]);
}
#define EXPECT_IDS(caption, context, ...)                                                     \
    do {                                                                                      \
        const int expected[] = {__VA_ARGS__};                                                 \
        expect_ids(t, caption, context, expected, (int)(sizeof expected / sizeof *expected)); \
    } while (0)

static void test_known_captions_get_known_ids(const Tokenizer *t) {
    EXPECT(
        t->vocabulary == 49408 && t->start_of_text == 49406 && t->end_of_text == 49407, "%d", t->vocabulary);
    EXPECT_IDS("", CONTEXT, 49406, 49407);
    EXPECT_IDS(" \t\r\n", CONTEXT, 49406, 49407);
    EXPECT_IDS("a dog running on the beach", CONTEXT, 49406, 320, 1929, 2761, 525, 518, 2117, 49407);
    EXPECT_IDS("HANDMADE  LEATHER WALLET - BROWN", CONTEXT, 49406, 6737, 5862, 12154, 268, 2866, 49407);
    EXPECT_IDS("circa 1920", CONTEXT, 49406, 10411, 272, 280, 273, 271, 49407); // a digit is a word
    EXPECT_IDS("a dog running on the beach", 5, 49406, 320, 1929, 2761, 49407);
    EXPECT_IDS("a dog running on the beach", 8, 49406, 320, 1929, 2761, 525, 518, 2117, 49407); // just fits
    EXPECT_IDS("a dog running on the beach", 2, 49406, 49407);
    EXPECT_IDS("dog<end_of_text>", CONTEXT, 49406, 1929, 49407, 49407);
    EXPECT_IDS("<START_of_text>", CONTEXT, 49406, 49406, 49407);
    EXPECT_IDS("a dog\u0345 running", CONTEXT, 49406, 320, 1929, 2761, 49407); // the pattern loses the iota
}

static void test_words_are_cut_as_by_the_pattern(void) {
    static const struct {
        const char *text;
        size_t length;
    } cases[] = {
        {"'sup", 2},
        {"'\u017f", 2},
        {"'re", 3},
        {"'ra", 1},
        {"'ll", 3},
        {"'l", 1},
        {"!'s", 2},
        {"abc1", 3},
        {"12", 1},
        {"½1", 1},
        {"a\u0301b", 1},
        {"\u0301!a", 2},
        {"<start_of_text>x", 15},
        {"<\u017ftart_of_text>", 15},
        {"<start_of_tex", 1},
        {"<<end_of_text>", 2},
        {"<end_of_text><end_of_text>", 13},
        {"東京!", 2},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        Text text = {NULL, 0, 0};
        text_append_utf8(&text, cases[i].text, strlen(cases[i].text));
        size_t length = word_length(text.at, text.length);
        EXPECT(length == cases[i].length, "'%s': %zu instead of %zu", cases[i].text, length, cases[i].length);
        text_free(&text);
    }
}

// The pair of the lowest rank is merged first, wherever it occurs, and all its occurrences from the left.
static void test_pairs_are_merged_by_rank(void) {
    char error[256] = "";
    const char *merges = "b c\na a\na b\nab c</w>\na bc\nabc c</w>";
    Tokenizer *t = tokenizer_create(merges, strlen(merges), error);
    EXPECT(t && t->vocabulary == 512 + 6 + 2, "%s", error);
    if (!t) return;
    int a = t->byte_id['a'], end = 256; // "!" is the first byte
    EXPECT(t->byte_id['!'] == 0 && a == 'a' - '!', "%d", a);
    EXPECT_IDS("ab", 9, 518, a, t->byte_id['b'] + end, 519); // "b" at the end is another symbol than in "a b"
    EXPECT_IDS("abc", 9, 518, 515, 519);                     // "a b" (rank 2), for "b c" does not end a word
    EXPECT_IDS("abcc", 9, 518, 517, 519);                    // "b c" (rank 0) before "a b"
    EXPECT_IDS("aaaaab", 9, 518, 513, 513, a, t->byte_id['b'] + end, 519);
    EXPECT_IDS("aaab!", 9, 518, 513, a, t->byte_id['b'] + end, end, 519);
    tokenizer_free(t);
}

static void test_malformed_tables_are_refused(void) {
    static const struct {
        const char *merges, *error;
    } cases[] = {
        {"a b\nab\n", "merge 2 is not two symbols separated by a blank"},
        {"a b\n\nab c", "merge 2 is not two symbols separated by a blank"},
        {"a b c\n", "merge 1 is not two symbols separated by a blank"},
        {" a", "merge 1 is not two symbols separated by a blank"},
        {"a ", "merge 1 is not two symbols separated by a blank"},
        {"a b\nabc d\n", "merge 2: no earlier merge makes 'abc'"},
        {"a b\r\n", "merge 1: no earlier merge makes 'b\r'"},
        {"a b\na b\n", "merge 2 makes what an earlier one makes"},
        {"a b\nb c\nab c\na bc\n", "merge 4 makes what an earlier one makes"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char error[256] = "";
        Tokenizer *t = tokenizer_create(cases[i].merges, strlen(cases[i].merges), error);
        EXPECT(t == NULL, "%s", cases[i].merges);
        EXPECT_STRING(error, cases[i].error);
        tokenizer_free(t);
    }
    char error[256] = "", *many = (char *)malloc_check(1 << 20); // more than the ids that there can be
    size_t n = 0;
    for (int a = '!'; a <= '~'; a++)
        for (int b = 0; b < 2 * ('~' - '!' + 1); b++)
            n += (size_t)sprintf(many + n, "%c %c%s\n", a, '!' + b / 2, b % 2 ? "</w>" : "");
    size_t pairs = n; // 17,672 merges of two characters; then of those with a third
    for (size_t i = 0; i < pairs && n < (1 << 20) - 32;) {
        size_t length = (size_t)((char *)memchr(many + i, '\n', pairs - i) - many) - i;
        if (length == 3)
            for (int c = 'a'; c <= 'z' && n < (1 << 20) - 32; c++)
                n += (size_t)sprintf(many + n, "%c%c %c</w>\n", many[i], many[i + 2], c);
        i += length + 1;
    }
    Tokenizer *t = tokenizer_create(many, n, error);
    EXPECT(t == NULL && strcmp(error, "more than 65022 merges") == 0, "%s", error);
    tokenizer_free(t);
    free(many);
    t = tokenizer_create("", 0, error); // bytes alone
    EXPECT(t && t->vocabulary == 514, "%s", error);
    tokenizer_free(t);
}

static void test_captions_are_cleaned_as_by_ftfy(const Tokenizer *t) {
    static const struct {
        const char *caption, *cleaned;
    } cases[] = {
        // white space and case
        {"  A\u3000b\u00a0\u2028c\x1f ", "a b c"},
        {"a\u200bb\ufeffc", "a\u200bbc"},
        {"a\x0b"
         "b",
            "ab"},
        {"a&#28;b", "ab"},
        {"\u0130\u1E9E\u212a\u212b", "i\u0307ßkå"},
        {"ΣΑΣ Σ. ΑΣ. ΑΣ'Α Α\u0301Σ\u00ad ªΣ 1Σ", "σας σ. ας. ασ'α ά\u03c2\u00ad ªς 1σ"},
        // HTML: ftfy's rule, with semicolon and until nothing changes; then html.unescape twice, also without
        {"&amp;amp;amp;amp;lt;", "<"},
        {"&copy 5 &notit; &NTILDE;&SZLIG; &nTILDE;", "© 5 ¬it; ñss &ntilde;"},
        {"&#150;&#x9D;&#0;&#xD800;&#x110000;|&#1;&#xFFFE;|", "–\302\235\ufffd\ufffd\ufffd||"},
        {"&#59 &#59; &#x41 &#xZZ; &#;", "; ; a &#xzz; &#;"},
        {"&amp;eacute; < &eacute;", "é < é"},
        {"< &amp;amp;eacute;", "< &eacute;"},
        {"< &amp;amp;amp;lt;", "< &amp;lt;"},
        {"&lt;\n&amp;amp;amp;lt;", "< <"},
        {"&CounterClockwiseContourIntegral;&NotEqualTilde;", "∳≂\u0338"},
        {"&#13;x&#99999999999999999999;", "x\ufffd"},
        {"e&#769;", "é"},
        {"&lt e&#769", "< e\u0301"},
        {"&eacute&#59;", "é;"},
        // characters
        {"“q” ‘r’ \u02bc \u201f\u201b", "\"q\" 'r' ' \"'"},
        {"ﬁ ﬄ Ǆ ŉ ﬅ", "fi ffl dž 'n ſt"},
        {"ＬＯＵＤ！　ｶﾞ ￣ ﾡ", "loud! ガ \u0304 ᄀ"},
        {"\302\221x\302\205\302\201", "'x…\302\201"},
        {"a\x1b[1;31mb\x1b[\u0663mc\x1b[?d\x7f\ufff9", "abc[?d"},
        {"e\u0301 \u0344", "é \u0308\u0301"},
        {"\u1100\u1161\u11a8", "각"},
        {"\u0958", "\u0915\u093c"},
        // mojibake: several code pages, layers, lost bytes, runs alone, and what only looks like it
        {"sÃ³", "só"},
        {"âœ” No problems", "✔ no problems"},
        {"voilÃ  le travail", "voilà le travail"},
        {"dâ€™accord", "d'accord"},
        {"â€œ like this â€\ufffd", "\" like this \ufffd"},
        {"ÃƒÂ©tÃƒÂ©", "été"},
        {"РїСЂРёРІРµС‚, РјРёСЂ вЂ” СЌС‚Рѕ", "привет, мир — это"},
        {"√©t√©", "été"},
        {"t├⌐l├⌐phone", "téléphone"},
        {"ðŸ˜€ ☃ â€”", "😀 ☃ —"},
        {"Ã quele", "àquele"},
        {"í\u00a0½í¸€Ã©", "😀é"},
        {"\302\222 ☃", "' ☃"},
        {"Ã la carte", "à la carte"},
        {"AHÅ™, the new sofa from IKEA®", "ahå™, the new sofa from ikea®"},
        {"(-1/2)! = √π", "(-1/2)! = √π"},
        {"├┤a┼┐", "├┤a┼┐"},
        // bytes that are not UTF-8: as Python's errors="replace"
        {"a\xff\xe2\x82z", "a\ufffd\ufffdz"},
        {"\xed\xa0\x80", "\ufffd\ufffd\ufffd"},
        {"\xf0\x9f\x98", "\ufffd"},
        {"\xc0\x80\xf5", "\ufffd\ufffd\ufffd"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char *cleaned = clean(t, cases[i].caption, strlen(cases[i].caption), NULL);
        EXPECT_STRING(cleaned, cases[i].cleaned);
        free(cleaned);
    }
    char *cleaned = clean(t, "a\0b é\0", 7, NULL); // NUL is a character like others, and removed
    EXPECT_STRING(cleaned, "ab é");
    free(cleaned);
}

// One example of every sequence, which is suspect by its last character.
static void test_every_mojibake_sequence_is_repaired(const Tokenizer *t) {
    static const char *const suspects[] = {
        "Ω\302\205",
        "\uf8ff◊",
        "aћº",
        "¸≈",
        "íÇ",
        "╠ť",
        "ī£",
        " Í£",
        "Œ¶",
        "Ě‘≠",
        "ґ›‘",
        "╢‹",
        "xŤ•",
        "▄ø",
        "▌›",
        "Ş┌",
        "Ň‚ş",
        "œ ",
        "Ā°",
        "ÃŸ",
        "×²",
        "Ø·Ù·",
        "à¼",
        "√®",
        "≈°",
        "‚Äπ",
        "‚ó°",
        "вЂ",
        "ВµГ",
        "ГўВЂВxa",
        "aÃ ",
        "a Ã ",
        "Ã ",
        ",Â ",
        "β€Ά",
        "Β°Γ",
    };
    for (size_t i = 0; i < sizeof suspects / sizeof *suspects; i++) {
        Text text = {NULL, 0, 0};
        text_append_utf8(&text, suspects[i], strlen(suspects[i]));
        EXPECT(mojibake_suspect(&t->mojibake, text.at, text.length), "'%s'", suspects[i]);
        EXPECT(!mojibake_suspect(&t->mojibake, text.at, text.length - 1), "'%s' but the last", suspects[i]);
        text_free(&text);
    }
}

static void test_classes_of_code_points_are_pythons(void) {
    static const struct {
        uint32_t c;
        char kind;
    } cases[] = {
        {'a', 'L'}, {'Z', 'L'}, {'7', 'N'}, {'_', 'O'}, {' ', 'S'}, {0x1C, 'O'}, {0x85, 'S'}, {0x200B, 'O'},
        {0x2167, 'N'}, {0x24D0, 'O'}, {0x345, 'O'}, {0x5D0, 'L'}, {0x10D4A, 'L'}, {0x10D40, 'N'},
        {0x10D66, 'O'}, {0x10FFFF, 'O'}, // the first two are of Unicode 16
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        EXPECT(
            unicode_class(cases[i].c) == cases[i].kind, "U+%04X: %c", cases[i].c, unicode_class(cases[i].c));
}

// Plain ASCII has a fast path; the general one, forced by a letter at the end, gives the same.
static void test_plain_ascii_is_cleaned_the_same_way(const Tokenizer *t) {
    Rand rng = rand_for(1, 0, 0);
    for (int k = 0; k < 2000; k++) {
        char caption[40];
        size_t n = rand_below(&rng, 30), bytes;
        for (size_t i = 0; i < n; i++) caption[i] = " \t\r\n\fAbZ'09<&;~x"[rand_below(&rng, 17)];
        char *brief = clean(t, caption, n, &bytes);
        memcpy(caption + n, " \u00e9", 4);
        char *longer = clean(t, caption, n + 3, NULL);
        EXPECT(
            strncmp(brief, longer, bytes) == 0 && strcmp(longer + bytes, bytes ? " \u00e9" : "\u00e9") == 0,
            "'%s' and '%s'", brief, longer);
        free(brief);
        free(longer);
    }
}

// Any bytes, any length: a well-formed row of ids comes back.
static void test_any_bytes_are_encoded(const Tokenizer *t) {
    static const char *const spice[] = {
        "&",
        "&amp;",
        "&#",
        ";",
        "\x1b[",
        "Ã",
        "â€",
        "\u0345",
        "Σ",
        "\xed\xa0",
        "\xf0",
        "<end_of_text>",
        "\ufffd",
        "ﬁ",
        "'",
        "\u0301",
        "\n",
    };
    Rand rng = rand_for(2, 0, 0);
    for (int k = 0; k < 3000; k++) {
        char caption[600];
        size_t n = 0, parts = (size_t)rand_below(&rng, 30);
        for (size_t i = 0; i < parts; i++) {
            const char *s = spice[rand_below(&rng, sizeof spice / sizeof *spice)];
            if (rand_below(&rng, 2)) n += (size_t)sprintf(caption + n, "%s", s);
            else caption[n++] = (char)rand_u64(&rng);
        }
        int ids[CONTEXT], context = 2 + (int)(rand_below(&rng, CONTEXT - 1)), good = 1;
        int used = tokenizer_encode(t, caption, n, ids, context);
        for (int i = 0; i < context; i++)
            good &= ids[i] >= 0 && ids[i] < t->vocabulary && (i < used || ids[i] == 0);
        EXPECT(good && used >= 2 && used <= context && ids[0] == t->start_of_text &&
                   ids[used - 1] == t->end_of_text,
            "caption %d", k);
    }
}

// What would take quadratic time or worse stays quick: a word, a chain of entities, marks without end.
static void test_long_captions_are_cut(const Tokenizer *t) {
    static const struct {
        const char *start, *part;
    } cases[] = {{"", "qx"}, {"&", "amp;"}, {"a", "\u0301\u0316"}, {"", "Ã©☃"}, {"", "\x1b["}, {"aΣ", "'"}};
    for (size_t k = 0; k < sizeof cases / sizeof *cases; k++) {
        size_t part = strlen(cases[k].part), n = strlen(cases[k].start), count = 100000;
        char *caption = (char *)malloc_check(n + count * part);
        memcpy(caption, cases[k].start, n);
        for (size_t i = 0; i < count; i++, n += part) memcpy(caption + n, cases[k].part, part);
        int ids[CONTEXT];
        double start = seconds_now();
        int used = tokenizer_encode(t, caption, n, ids, CONTEXT);
        double seconds = seconds_now() - start;
        EXPECT(used >= 2 && seconds < 20, "%s…: %.1f s", cases[k].part, seconds);
        free(caption);
    }
}

// ---------------------------------------------------------------- golden files

typedef struct {
    char kind[32];
    int captions, differ;
} Kind;

static void golden_caption(const Tokenizer *t, json_t *record, Kind *kind, int line) {
    json_t *text = json_object_get(record, "text");
    json_t *expected = json_object_get(record, "ids");
    json_t *cleaned = json_object_get(record, "cleaned");
    int context = json_object_get(record, "context")
                      ? (int)json_integer_value(json_object_get(record, "context"))
                      : CONTEXT;
    EXPECT(json_is_string(text) && json_is_array(expected) && context >= 2,
        "tokens.jsonl:%d: a field is missing", line);
    if (!json_is_string(text) || context < 2) return;
    int *ids = (int *)malloc_check((size_t)context * sizeof *ids);
    int used = tokenizer_encode(t, json_string_value(text), json_string_length(text), ids, context);
    bool same = used == (int)json_array_size(expected);
    for (int i = 0; same && i < used; i++)
        same = ids[i] == (int)json_integer_value(json_array_get(expected, (size_t)i));
    size_t bytes;
    char *ours = clean(t, json_string_value(text), json_string_length(text), &bytes);
    if (cleaned)
        same = same && bytes == json_string_length(cleaned) &&
               memcmp(ours, json_string_value(cleaned), bytes) == 0;
    kind->captions++;
    kind->differ += !same;
    EXPECT(same, "tokens.jsonl:%d (%s): '%s'", line, kind->kind, json_string_value(text));
    free(ours);
    free(ids);
}

static void test_stored_captions_get_the_same_ids(const Tokenizer *t, const char *directory) {
    char path[PATH_SIZE];
    path_format(path, "%s/tokens.jsonl", directory);
    size_t length, count = 0;
    char *file = file_read_all(path, &length);
    Kind kinds[100], all = {"all", 0, 0};
    int line = 0;
    for (char *p = file, *next; p < file + length; p = next) {
        char *newline = (char *)memchr(p, '\n', (size_t)(file + length - p));
        next = newline ? newline + 1 : file + length;
        line++;
        json_error_t error;
        json_t *record = json_loadb(p, (size_t)(next - p), JSON_ALLOW_NUL, &error);
        const char *name = json_string_value(json_object_get(record, "kind"));
        EXPECT(record && name, "tokens.jsonl:%d: %s", line, error.text);
        size_t k = 0;
        while (name && k < count && strncmp(kinds[k].kind, name, sizeof kinds->kind - 1)) k++;
        if (name && k < sizeof kinds / sizeof *kinds) {
            if (k == count) {
                memset(&kinds[count], 0, sizeof *kinds);
                snprintf(kinds[count++].kind, sizeof kinds->kind, "%s", name);
            }
            golden_caption(t, record, &kinds[k], line);
        }
        json_decref(record);
    }
    for (size_t k = 0; k < count; k++) {
        printf("%-20s %5d captions, %d differ\n", kinds[k].kind, kinds[k].captions, kinds[k].differ);
        all.captions += kinds[k].captions;
        all.differ += kinds[k].differ;
    }
    printf("%-20s %5d captions, %d differ\n", all.kind, all.captions, all.differ);
    EXPECT(all.captions > 0 && all.captions == line, "tokens.jsonl: %d captions on %d lines", all.captions,
        line);
    free(file);
}

// The fields of every line but the first, split at tabs, to a visitor; returns the number of lines.
static int for_each_row(const char *directory, const char *name,
    void (*visit)(char **field, int fields, void *context), void *context) {
    char path[PATH_SIZE], *save_line, *save_field;
    path_format(path, "%s/%s", directory, name);
    char *file = file_read_all(path, NULL);
    int rows = 0;
    for (char *line = strtok_r(file, "\n", &save_line); line; line = strtok_r(NULL, "\n", &save_line)) {
        char *field[4];
        int fields = 0;
        if (rows++ == 0) continue;
        for (char *f = strtok_r(line, "\t", &save_field); f && fields < 4;
             f = strtok_r(NULL, "\t", &save_field))
            field[fields++] = f;
        visit(field, fields, context);
    }
    free(file);
    return rows - 1;
}

static void visit_class(char **field, int fields, void *context) {
    char *classes = (char *)context;
    EXPECT(fields == 3, "unicode_classes.tsv: %d fields", fields);
    if (fields != 3) return;
    for (long c = strtol(field[0], NULL, 16), last = strtol(field[1], NULL, 16); c <= last && c < 0x110000;
         c++)
        classes[c] = field[2][0];
}

static void visit_lower(char **field, int fields, void *context) {
    char **lower = (char **)context;
    long c = fields == 2 ? strtol(field[0], NULL, 16) : -1;
    EXPECT(c >= 0 && c < 0x110000, "unicode_lower.tsv: %d fields", fields);
    if (c >= 0 && c < 0x110000) lower[c] = strdup_check(field[1]);
}

// The table of lower() is Unicode 14's; a letter younger than that may or may not have its lower case here.
static bool is_younger(uint32_t c) {
    for (size_t i = 0; i < sizeof unicode_younger / sizeof *unicode_younger; i++)
        if (c >= unicode_younger[i].first && c <= unicode_younger[i].last) return true;
    return false;
}

static void test_stored_classes_and_mappings_are_equal(const char *directory) {
    char *classes = (char *)malloc_check(0x110000);
    char **lower = (char **)calloc_check(0x110000, sizeof *lower);
    memset(classes, 'O', 0x110000);
    int class_rows = for_each_row(directory, "unicode_classes.tsv", visit_class, classes);
    int lower_rows = for_each_row(directory, "unicode_lower.tsv", visit_lower, lower);
    EXPECT(class_rows > 0 && lower_rows > 0, "%d and %d rows", class_rows, lower_rows);
    int class_differ = 0, lower_differ = 0;
    for (uint32_t c = 0; c < 0x110000; c++) {
        if (c >= 0xD800 && c < 0xE000) continue;
        bool same = unicode_class(c) == classes[c];
        class_differ += !same;
        EXPECT(same, "class of U+%04X: %c instead of %c", c, unicode_class(c), classes[c]);
        Text in = {&c, 1, 1}, out = {NULL, 0, 0};
        text_lower(&out, &in);
        char expected[64], ours[64] = "";
        snprintf(expected, sizeof expected, "%04X", c);
        for (size_t i = 0, n = 0; i < out.length; i++)
            n += (size_t)snprintf(ours + n, sizeof ours - n, "%s%04X", i ? " " : "", out.at[i]);
        same = strcasecmp(ours, lower[c] ? lower[c] : expected) == 0 || (!lower[c] && is_younger(c));
        lower_differ += !same;
        EXPECT(same, "lower(U+%04X) is %s", c, ours);
        text_free(&out);
        free(lower[c]);
    }
    printf("unicode_classes.tsv: %d ranges, %d code points differ\n", class_rows, class_differ);
    printf("unicode_lower.tsv: %d mappings, %d code points differ\n", lower_rows, lower_differ);
    free(lower);
    free(classes);
}

int main(int argc, char **argv) {
    Tokenizer *t = builtin();
    RUN(test_known_captions_get_known_ids, t);
    RUN(test_words_are_cut_as_by_the_pattern);
    RUN(test_pairs_are_merged_by_rank);
    RUN(test_malformed_tables_are_refused);
    RUN(test_classes_of_code_points_are_pythons);
    RUN(test_captions_are_cleaned_as_by_ftfy, t);
    RUN(test_every_mojibake_sequence_is_repaired, t);
    RUN(test_plain_ascii_is_cleaned_the_same_way, t);
    RUN(test_any_bytes_are_encoded, t);
    RUN(test_long_captions_are_cut, t);
    if (argc > 1) {
        RUN(test_stored_captions_get_the_same_ids, t, argv[1]);
        RUN(test_stored_classes_and_mappings_are_equal, argv[1]);
    }
    tokenizer_free(t);
    return test_report();
}
