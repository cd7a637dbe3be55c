// Tests of clipc/data/vocabulary.h, charsmap.h, normalizer.h, pipeline.h, unigram.h and bpe.h.
//   dev/test/test_vocabulary [FOLDER NAME VOCABULARY]
// compares the ids of every text in FOLDER (texts.jsonl, or wordpiece.jsonl) with those stored for NAME.
// VOCABULARY: the packed form of FOLDER/hf_NAME.
#include "clipc/data/tokenizer.h"

#include "dev/test/test.h"

#include <jansson.h>

// ---------------------------------------------------------------- a small vocabulary

// XLM-R's steps over a handful of pieces, sorted by their bytes: "▁" is E2 96 81.
static const char *const pieces[] = {"<s>", "<unk>", "a", "ab", "b", "qa", "\u2581", "\u2581a", "\u2581ab"};
enum { PIECES = sizeof pieces / sizeof *pieces, SCORES = 128, IDS = SCORES + 8 * PIECES };
enum { LENGTHS = IDS + 4 * PIECES, MERGES = LENGTHS + 4 * PIECES, STEPS = MERGES + 12 };
enum { ADDED = STEPS + 3 * 16, UNITS = ADDED + 2 * 12, TRIE = 768, TEXTS = UNITS + 4 * TRIE };

static void append_ints(Bytes *b, const int32_t *values, size_t count) {
    bytes_append(b, (const unsigned char *)values, count * sizeof *values);
}

static void append_text(Bytes *b, const char *text) {
    bytes_append(b, (const unsigned char *)text, strlen(text));
}

// "A" and what begins with it becomes "b".
static void append_charsmap(Bytes *b) {
    uint32_t units[TRIE] = {256u << 10};
    units[256 ^ 'A'] = (256u ^ 'A' ^ 512u) << 10 | 1 << 8 | 'A';
    units[512] = 1u << 31;
    bytes_append(b, (const unsigned char *)units, sizeof units);
}

static Bytes small_vocabulary(void) {
    static const double scores[PIECES] = {0, 0, -2, -1, -20, -8, -1, -3, -9};
    static const int32_t ids[PIECES] = {0, 1, 3, 4, 5, 9, 6, 7, 8};
    static const int32_t merge[3] = {3, 5, 4}; // what only BPE uses
    static const int32_t steps[3][4] = {{STEP_CHARSMAP, 0, 0, 0}, {STEP_SPLIT_SPACE, 0, 0, 0},
        {STEP_METASPACE, METASPACE_ALWAYS | METASPACE_SPLIT, 0, 3}};
    static const int32_t added[2][3] = {{0, 0, 3}, {10, ADDED_STRIP_LEFT, 6}};
    Bytes b = {NULL, 0, 0};
    VocabularyHeader h;
    int32_t lengths[PIECES];
    memset(&h, 0, sizeof h);
    h.f.magic = VOCABULARY_MAGIC;
    h.f.version = VOCABULARY_VERSION;
    h.f.cleaning = CLEAN_WHITESPACE;
    h.f.vocabulary = 11;
    h.f.pieces = PIECES;
    h.f.merges = 1;
    h.f.steps = 3;
    h.f.added = 2;
    h.f.end = h.f.padding = 2;
    h.f.unknown = 1;
    h.f.charsmap_units = TRIE;
    h.f.charsmap_bytes = 2;
    h.f.text_bytes = 3 + 6;
    for (int i = 0; i < PIECES; i++) h.f.text_bytes += lengths[i] = (int32_t)strlen(pieces[i]);
    h.f.text_bytes += 3;
    append_ints(&b, h.all, VOCABULARY_HEADER_INTS);
    bytes_append(&b, (const unsigned char *)scores, sizeof scores);
    append_ints(&b, ids, PIECES);
    append_ints(&b, lengths, PIECES);
    append_ints(&b, merge, 3);
    append_ints(&b, steps[0], 12);
    append_ints(&b, added[0], 6);
    append_charsmap(&b);
    for (int i = 0; i < PIECES; i++) append_text(&b, pieces[i]);
    append_text(&b, "\u2581<s><mask>");
    bytes_append(&b, (const unsigned char *)"b", 2);
    return b;
}

static Tokenizer *small_tokenizer(const Bytes *b, char error[256]) {
    return tokenizer_create((const char *)b->at, b->length, error);
}

static void test_words_are_spelled_by_the_best_pieces(void) {
    static const struct {
        const char *caption;
        int count, ids[8];
    } cases[] = {
        {"", 2, {0, 2}},
        {"a", 3, {0, 7, 2}},              // ▁a is as good as ▁ a: the earlier start stays
        {"ab  b", 6, {0, 6, 4, 6, 5, 2}}, // ▁ ab is -2, ▁ab -9, ▁a b -23
        {"Aa", 5, {0, 6, 5, 3, 2}},
        {"a xyz", 5, {0, 7, 6, 1, 2}}, // unknown neighbours are one
        {"qab", 5, {0, 6, 9, 5, 2}},   // an unknown q, -30, and ab would be -31, not -28
        {"a <mask>a<s>", 6, {0, 7, 10, 7, 0, 2}},
    };
    char error[256] = "";
    Bytes b = small_vocabulary();
    Tokenizer *t = small_tokenizer(&b, error);
    EXPECT(t, "%s", error);
    for (size_t i = 0; t && i < sizeof cases / sizeof *cases; i++) {
        int ids[9];
        const int used = tokenizer_encode(t, cases[i].caption, strlen(cases[i].caption), ids, 9);
        const size_t bytes = (size_t)cases[i].count * sizeof *ids;
        EXPECT(used == cases[i].count && memcmp(ids, cases[i].ids, bytes) == 0, "'%s': %d ids: %d %d %d %d",
            cases[i].caption, used, ids[0], ids[1], ids[2], ids[3]);
        EXPECT(used == 9 || ids[8] == t->padding, "'%s'", cases[i].caption);
    }
    int ids[3];
    EXPECT(t && tokenizer_encode(t, "a b a b", 7, ids, 3) == 3 && ids[0] == 0 && ids[1] == 7 && ids[2] == 2,
        "cut");
    tokenizer_free(t);
    free(b.at);
}

// ---------------------------------------------------------------- damaged ones

static void test_malformed_vocabularies_are_refused(void) {
    static const double nan_score = NAN, infinite = INFINITY;
    static const struct {
        const char *why;
        size_t place;
        int32_t value;
    } cases[] = {
        {"field 'version'", 4, 2},
        {"field 'model'", 8, 3},
        {"field 'pieces'", 20, 0},
        {"field 'pieces'", 20, INT32_MAX},
        {"field 'text_bytes'", 76, -1},
        {"not that of its parts", 76, 1000},
        {"not that of its parts", 28, 4},
        {"special token's id", 40, 11},
        {"no token for what is unknown", 48, -1},
        {"id of a piece is too large", IDS, 11},
        {"length of a piece", LENGTHS, -1},
        {"length of a piece", LENGTHS + 4 * (PIECES - 1), 1000},
        {"not sorted", LENGTHS, 1},
        {"merge names an id", MERGES, -1},
        {"step is of an unknown kind", STEPS, STEP_KINDS},
        {"flag of a step", STEPS + 32 + 4, 99},
        {"normalizes after one that splits", STEPS + 32, STEP_BERT},
        {"text of a step does not fit", STEPS + 32 + 12, 1000},
        {"not one character", STEPS + 32 + 12, 0},
        {"id of an added token", ADDED, 11},
        {"unknown flags", ADDED + 4, 8},
        {"text of an added token", ADDED + 8, 0},
        {"has a cycle", UNITS + 4 * (256 ^ 'A'), (256 ^ 'A' ^ 256) << 10 | 'A'},
        {"points outside itself", UNITS, 1 << 29},
        {"no such replacement", UNITS + 4 * 512, 2},
    };
    char error[256];
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        Bytes b = small_vocabulary();
        memcpy(b.at + cases[i].place, &cases[i].value, sizeof cases[i].value);
        snprintf(error, sizeof error, "nothing");
        EXPECT(!small_tokenizer(&b, error) && strstr(error, cases[i].why), "%s: %s", cases[i].why, error);
        free(b.at);
    }
    for (int k = 0; k < 2; k++) {
        Bytes b = small_vocabulary();
        memcpy(b.at + SCORES + 16, k ? &infinite : &nan_score, sizeof(double));
        EXPECT(!small_tokenizer(&b, error) && strstr(error, "not finite"), "%s", error);
        free(b.at);
    }
    Bytes b = small_vocabulary();
    for (b.length--; b.length >= 4; b.length--) EXPECT(!small_tokenizer(&b, error), "%zu bytes", b.length);
    free(b.at);
}

// Any bytes anywhere: refused, or ids within the vocabulary come back.
static void test_any_damage_is_survived(void) {
    static const char caption[] = "Aab  <mask>x\u00e9 \u2581\u65e5<s>.ba";
    Rand rng = rand_for(3, 0, 0);
    int read = 0;
    for (int k = 0; k < 4000; k++) {
        Bytes b = small_vocabulary();
        char error[256];
        for (uint64_t n = 1 + rand_below(&rng, 3); n; n--) {
            const size_t at = rand_below(&rng, 4) ? (size_t)rand_below(&rng, UNITS)
                                                  : UNITS + (size_t)rand_below(&rng, b.length - UNITS);
            b.at[at] = (unsigned char)(rand_below(&rng, 2) ? rand_below(&rng, 12) : rand_u64(&rng));
        }
        Tokenizer *t = small_tokenizer(&b, error);
        free(b.at);
        if (!t) continue;
        int ids[12], good = 1;
        const int used = tokenizer_encode(t, caption, sizeof caption - 1, ids, 12);
        for (int i = 0; i < 12; i++) good &= ids[i] >= 0 && ids[i] < t->vocabulary;
        EXPECT(good && used >= 1 && used <= 12 && ids[used - 1] == t->end_of_text, "damage %d", k);
        read++;
        tokenizer_free(t);
    }
    EXPECT(read > 100, "%d could be read", read);
}

// ---------------------------------------------------------------- golden files

static Tokenizer *open_vocabulary(const char *path) {
    char error[256] = "";
    size_t bytes;
    char *packed = file_read_all(path, &bytes);
    Tokenizer *t = tokenizer_create(packed, bytes, error);
    if (!t) die(EXIT_RUNTIME, "%s: %s", path, error);
    free(packed);
    return t;
}

static json_t *field(json_t *record, const char *name, const char *suffix) {
    char key[100];
    snprintf(key, sizeof key, "%s%s", name, suffix);
    return json_object_get(record, key);
}

static Text text_of(json_t *string) {
    Text t = {NULL, 0, 0};
    text_append_utf8(&t, json_string_value(string), json_string_length(string));
    return t;
}

typedef struct {
    int texts, differ;
} Counts;

// The stored cleaned text of a record: `canonical`, or `cleaned`, which is left out where it is the text.
static json_t *cleaned_text(const Tokenizer *t, json_t *record) {
    if (t->cleaning == CLEAN_CANONICALIZE) return json_object_get(record, "canonical");
    json_t *cleaned = json_object_get(record, "cleaned");
    return cleaned ? cleaned : json_object_get(record, "text");
}

static void check_record(const Tokenizer *t, json_t *record, json_t *expected, int line, Counts *counts) {
    enum { MOST = 77 };
    const int context = t->cleaning == CLEAN_CANONICALIZE ? 64 : MOST;
    int ids[MOST];
    json_t *raw = json_object_get(record, "text"), *stored = cleaned_text(t, record);
    EXPECT(json_is_string(stored), "line %d: a field is missing", line);
    if (!json_is_string(stored)) return;
    Text clean = text_of(stored), ours = {NULL, 0, 0};
    if (raw) text_clean(&ours, &t->mojibake, t->cleaning, json_string_value(raw), json_string_length(raw));
    const bool cleaned = !raw || text_equal(&ours, &clean);
    EXPECT(cleaned, "line %d: '%s' is cleaned differently", line, json_string_value(raw));
    const int used = tokenizer_encode_clean(t, &clean, ids, context);
    bool same = used == (int)json_array_size(expected);
    for (int i = 0; same && i < used; i++)
        same = ids[i] == (int)json_integer_value(json_array_get(expected, (size_t)i));
    EXPECT(same, "line %d: '%s'", line, json_string_value(stored));
    bool padded = true;
    for (int i = used; i < context; i++) padded = padded && ids[i] == t->padding;
    EXPECT(padded, "line %d: not padded", line);
    counts->texts++;
    counts->differ += !same || !cleaned;
    text_free(&clean);
    text_free(&ours);
}

// Hugging Face's ids, where they differ from SentencePiece's; a text that has none for NAME is passed over.
static json_t *expected_ids(json_t *record, const char *name) {
    if (strcmp(name, "wordpiece") == 0) return json_object_get(record, "ids");
    json_t *hugging_face = field(record, name, ".hf");
    return hugging_face ? hugging_face : field(record, name, ".context");
}

static void test_stored_texts_get_the_same_ids(const char *folder, const char *name, const char *vocabulary) {
    char path[PATH_SIZE];
    path_format(path, "%s/%s.jsonl", folder, strcmp(name, "wordpiece") == 0 ? "wordpiece" : "texts");
    size_t length;
    char *file = file_read_all(path, &length);
    Tokenizer *t = open_vocabulary(vocabulary);
    Counts counts = {0, 0};
    int line = 0;
    for (char *p = file, *next; p < file + length; p = next) {
        char *newline = (char *)memchr(p, '\n', (size_t)(file + length - p));
        next = newline ? newline + 1 : file + length;
        json_error_t error;
        json_t *record = json_loadb(p, (size_t)(next - p), JSON_ALLOW_NUL, &error);
        line++;
        EXPECT(record, "%s:%d: %s", path, line, error.text);
        json_t *expected = record ? expected_ids(record, name) : NULL;
        if (expected) check_record(t, record, expected, line, &counts);
        json_decref(record);
    }
    printf("%s: %d texts, %d differ\n", name, counts.texts, counts.differ);
    EXPECT(counts.texts > 0, "%s: no text has ids for %s", path, name);
    tokenizer_free(t);
    free(file);
}

int main(int argc, char **argv) {
    if (argc == 4) {
        RUN(test_stored_texts_get_the_same_ids, argv[1], argv[2], argv[3]);
        return test_report();
    }
    RUN(test_words_are_spelled_by_the_best_pieces);
    RUN(test_malformed_vocabularies_are_refused);
    RUN(test_any_damage_is_survived);
    return test_report();
}
