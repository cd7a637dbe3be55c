// A tokenizer's vocabulary as it travels in a weight file: pieces of text with their ids, the steps that
// cut a caption into words, and the model (Unigram, BPE, WordPiece) that spells a word with pieces.
// dev/vocabularies.py packs it from Hugging Face's tokenizer.json; clipc/data/pipeline.h encodes with it.
//
// Little-endian, one part after the other:
//   header         int32 (32), in the order of VOCABULARY_FIELDS
//   scores         float64 (pieces), of a Unigram model alone
//   ids            int32 (pieces)
//   lengths        int32 (pieces), bytes of each; the pieces are sorted by their bytes
//   merges         int32 (merges, 3): two neighbours and what they become, by rank
//   steps          int32 (steps, 4), see VocabularyStep
//   added          int32 (added, 3), see VocabularyAdded
//   charsmap       uint32 (charsmap_units): SentencePiece's trie of characters to be replaced
//   texts          of the pieces, of the steps (pattern, content), of the added tokens; then the charsmap's
#ifndef CLIPC_VOCABULARY_H
#define CLIPC_VOCABULARY_H

#include "clipc/data/charsmap.h"   // Charsmap, Bytes
#include "clipc/data/text_clean.h" // TextCleaning

// ---------------------------------------------------------------- the packed form

enum {
    VOCABULARY_MAGIC = 0x00434F56, // the bytes "VOC\0": a table of merges has no NUL
    VOCABULARY_VERSION = 1,
    VOCABULARY_HEADER_INTS = 32,
    VOCABULARY_MOST_IDS = 1 << 22,
    VOCABULARY_MOST_BYTES = 1 << 26, // 901,629 pieces are some 22 MB
    VOCABULARY_MOST_STEPS = 16,
    VOCABULARY_PIECE_BYTES = 1024, // of the longest piece or added token
};

typedef enum { MODEL_UNIGRAM, MODEL_BPE, MODEL_WORDPIECE } VocabularyModel;

// name, lowest, highest value
// clang-format off
#define VOCABULARY_FIELDS(X)                                                                              \
    X(magic,           VOCABULARY_MAGIC,   VOCABULARY_MAGIC)                                              \
    X(version,         VOCABULARY_VERSION, VOCABULARY_VERSION)                                            \
    X(model,           MODEL_UNIGRAM,      MODEL_WORDPIECE)                                               \
    X(cleaning,        CLEAN_WHITESPACE,   CLEAN_CANONICALIZE)                                            \
    X(vocabulary,      1,  VOCABULARY_MOST_IDS)       /* every id is below it */                          \
    X(pieces,          1,  VOCABULARY_MOST_IDS)                                                           \
    X(merges,          0,  VOCABULARY_MOST_IDS)       /* of BPE */                                        \
    X(steps,           0,  VOCABULARY_MOST_STEPS)                                                         \
    X(added,           0,  1 << 16)                                                                       \
    X(start,           -1, VOCABULARY_MOST_IDS - 1)   /* id before the caption's; -1: none */             \
    X(end,             0,  VOCABULARY_MOST_IDS - 1)   /* id after them */                                 \
    X(padding,         0,  VOCABULARY_MOST_IDS - 1)   /* id of the places after that */                   \
    X(unknown,         -1, VOCABULARY_MOST_IDS - 1)   /* id of what no piece spells; -1: left out */      \
    X(byte_fallback,   0,  1)  /* what no piece spells becomes its bytes <0x00> … <0xFF> */               \
    X(fuse_unknown,    0,  1)  /* unknown neighbours become one; always so for Unigram */                 \
    X(ignore_merges,   0,  1)  /* BPE: a word that is a piece is not merged from its characters */        \
    X(word_characters, 0,  1 << 20) /* WordPiece: longer words are unknown */                             \
    X(charsmap_units,  0,  1 << 18)                                                                       \
    X(charsmap_bytes,  0,  1 << 20)                                                                       \
    X(text_bytes,      0,  VOCABULARY_MOST_BYTES)

// What is done to a text before its words are spelled, in order: first the normalizers, then what splits it.
// name, highest flag
#define VOCABULARY_STEPS(X)                                                                               \
    X(STEP_CHARSMAP,         0)  /* SentencePiece's, by grapheme clusters */                              \
    X(STEP_REPLACE,          0)  /* each `pattern` by `content` */                                        \
    X(STEP_REPLACE_BLANKS,   0)  /* each run of two blanks or more by `content` */                        \
    X(STEP_REPLACE_ENDS,     0)  /* the blanks at both ends by `content` */                               \
    X(STEP_REPLACE_START,    0)  /* `pattern` at the start by `content` */                                \
    X(STEP_STRIP,            3)  /* white space removed: 1 at the start, 2 at the end */                  \
    X(STEP_LOWER,            0)  /* each character to lower case by itself */                             \
    X(STEP_BERT,             15) /* BERT_ bits */                                                         \
    X(STEP_SPLIT_SPACE,      0)  /* at white space, which is dropped */                                   \
    X(STEP_METASPACE,        7)  /* blanks become `content`; METASPACE_ bits */                           \
    X(STEP_SPLIT,            1)  /* at each of the alternatives in `pattern`, separated by NUL: the */    \
                                 /* match is a word of its own (0), or ends the word before it (1) */     \
    X(STEP_SPLIT_BERT,       0)  /* at white space, which is dropped, and around punctuation */
// clang-format on

typedef enum {
#define X(name, flag) name,
    VOCABULARY_STEPS(X)
#undef X
        STEP_KINDS
} StepKind;

enum { BERT_CLEAN = 1, BERT_IDEOGRAPHS = 2, BERT_STRIP_ACCENTS = 4, BERT_LOWER = 8 };
// before a text, or only at the start of the caption, goes one `content`; each `content` begins a new word
enum { METASPACE_ALWAYS = 1, METASPACE_FIRST = 2, METASPACE_SPLIT = 4 };
// a token is looked for in the normalized text; white space before or after it belongs to it
enum { ADDED_NORMALIZED = 1, ADDED_STRIP_LEFT = 2, ADDED_STRIP_RIGHT = 4 };

typedef struct {
    int32_t kind, flag, pattern_bytes, content_bytes;
} PackedStep;

typedef struct {
    int32_t id, flags, bytes;
} PackedAdded;

typedef struct {
    int32_t left, right, becomes;
} PackedMerge;

typedef union {
    struct {
#define X(name, low, high) int32_t name;
        VOCABULARY_FIELDS(X)
#undef X
    } f;
    int32_t all[VOCABULARY_HEADER_INTS];
} VocabularyHeader;

// ---------------------------------------------------------------- a trie over the bytes of sorted strings

// Nodes in order of depth, so that the children of one are neighbours, sorted by their bytes.
typedef struct {
    uint32_t *first_child; // (nodes + 1): of node i the children are first_child[i] … first_child[i + 1] - 1
    int32_t *string;       // (nodes): which string ends here, or -1
    unsigned char *last_byte; // (nodes): that leads here from the parent
} Trie;

enum { TRIE_ROOT = 0, TRIE_NONE = 0 }; // no child is the root

// The child of `node` by `byte`, or TRIE_NONE.
static inline uint32_t trie_child(const Trie *t, uint32_t node, unsigned char byte) {
    const uint32_t first = t->first_child[node], count = t->first_child[node + 1] - first;
    if (!count) return TRIE_NONE;
    const unsigned char *found = (const unsigned char *)memchr(t->last_byte + first, byte, count);
    return found ? (uint32_t)(found - t->last_byte) : (uint32_t)TRIE_NONE;
}

static inline void trie_free(Trie *t) {
    free(t->first_child);
    free(t->string);
    free(t->last_byte);
    memset(t, 0, sizeof *t);
}

// From `count` different strings, sorted by their bytes: string i is text + start[i] … text + start[i + 1].
static inline Trie trie_create(const unsigned char *text, const size_t *start, size_t count) {
    const size_t most = (count ? start[count] - start[0] : 0) + 2;
    Trie t;
    t.first_child = (uint32_t *)malloc_check(most * sizeof *t.first_child);
    t.string = (int32_t *)malloc_check(most * sizeof *t.string);
    t.last_byte = (unsigned char *)malloc_check(most);
    // the strings that begin as a node: low … high - 1; those of its children follow each other
    struct {
        uint32_t low, high;
    } *range = (__typeof__(range))malloc_check(most * sizeof *range);
    size_t nodes = 1, level_end = 1, depth = 0;
    range[0].low = 0;
    range[0].high = (uint32_t)count;
    t.last_byte[0] = 0;
    for (size_t i = 0; i < nodes; i++) {
        if (i == level_end) {
            level_end = nodes;
            depth++;
        }
        uint32_t low = range[i].low;
        const uint32_t high = range[i].high;
        const bool ends = low < high && start[low + 1] - start[low] == depth;
        t.string[i] = ends ? (int32_t)low++ : -1;
        t.first_child[i] = (uint32_t)nodes;
        while (low < high) {
            const unsigned char byte = text[start[low] + depth];
            range[nodes].low = low;
            while (low < high && text[start[low] + depth] == byte) low++;
            range[nodes].high = low;
            t.last_byte[nodes++] = byte;
        }
    }
    t.first_child[nodes] = (uint32_t)nodes;
    free(range);
    return t;
}

// ---------------------------------------------------------------- in memory

typedef struct {
    StepKind kind;
    int flag;
    const unsigned char *pattern, *content; // (pattern_bytes), (content_bytes)
    size_t pattern_bytes, content_bytes;
} VocabularyStep;

typedef struct {
    int id, flags;
    Bytes text; // what is looked for
} VocabularyAdded;

// Tokens that are cut out of a text before the rest is split.
typedef struct {
    VocabularyAdded *list; // (count), sorted by text
    size_t count;
    Trie trie;
} AddedTokens;

// A hash table with open addressing: what two neighbours become.
typedef struct {
    int32_t left, right, becomes, rank; // becomes -1: an empty slot
} MergeSlot;

typedef struct Vocabulary {
    VocabularyHeader header;
    char *packed; // as it came; what follows points into it
    const double *scores;
    const int32_t *ids;
    const PackedMerge *merges;
    Charsmap charsmap;
    VocabularyStep steps[VOCABULARY_MOST_STEPS];
    int normalizers;             // of the steps, the first ones
    Trie trie;                   // of the pieces
    uint32_t suffixes;           // node of "##" in it, or TRIE_NONE
    int byte_id[256];            // of <0x00> … <0xFF>, or -1
    double unknown_score;        // least score - 10
    AddedTokens raw, normalized; // looked for in the text as it came, and after the normalizers
    MergeSlot *slots;            // (slot_mask + 1)
    size_t slot_mask;
} Vocabulary;

static inline void added_free(AddedTokens *a) {
    for (size_t i = 0; i < a->count; i++) free(a->list[i].text.at);
    free(a->list);
    trie_free(&a->trie);
}

static inline void vocabulary_free(Vocabulary *v) {
    if (!v) return;
    added_free(&v->raw);
    added_free(&v->normalized);
    trie_free(&v->trie);
    free(v->slots);
    free(v->packed);
    free(v);
}

// Is the section a packed vocabulary, and not the text of CLIP's merges?
static inline bool vocabulary_is_packed(const char *section, size_t bytes) {
    return bytes >= 4 && memcmp(section, "VOC", 4) == 0;
}

// The id of a piece, or -1.
static inline int vocabulary_find(const Vocabulary *v, const unsigned char *p, size_t n) {
    uint32_t node = TRIE_ROOT;
    for (size_t i = 0; i < n; i++)
        if ((node = trie_child(&v->trie, node, p[i])) == TRIE_NONE) return -1;
    const int piece = v->trie.string[node];
    return n && piece >= 0 ? v->ids[piece] : -1;
}

static inline size_t merge_slot(const Vocabulary *v, int left, int right) {
    const uint64_t pair = (uint64_t)(uint32_t)left << 32 | (uint32_t)right;
    size_t i = (size_t)(pair * 0x9E3779B97F4A7C15ull >> 20) & v->slot_mask;
    while (v->slots[i].becomes >= 0 && (v->slots[i].left != left || v->slots[i].right != right))
        i = (i + 1) & v->slot_mask;
    return i;
}

// ---------------------------------------------------------------- reading

static inline bool is_whole_utf8(const unsigned char *p, size_t n) {
    uint32_t c;
    bool valid = true;
    for (size_t i = 0; valid && i < n;) i += utf8_next(p + i, n - i, &c, &valid);
    return valid;
}

static inline bool is_one_character(const unsigned char *p, size_t n) {
    uint32_t c;
    bool valid;
    return n && utf8_next(p, n, &c, &valid) == n;
}

// The pieces' trie; a reason when their lengths do not fit or they are not sorted UTF-8.
static inline const char *vocabulary_read_pieces(
    Vocabulary *v, const int32_t *lengths, const unsigned char *text, size_t *used) {
    const size_t count = (size_t)v->header.f.pieces;
    const char *why = NULL;
    size_t *start = (size_t *)malloc_check((count + 1) * sizeof *start);
    start[0] = 0;
    for (size_t i = 0; !why && i < count; i++) {
        const size_t left = (size_t)v->header.f.text_bytes - start[i];
        if (lengths[i] < 1 || lengths[i] > VOCABULARY_PIECE_BYTES || (size_t)lengths[i] > left)
            why = "the length of a piece does not fit";
        else if (v->ids[i] < 0 || v->ids[i] >= v->header.f.vocabulary) why = "the id of a piece is too large";
        else if (!is_whole_utf8(text + start[i], (size_t)lengths[i])) why = "a piece is not UTF-8";
        else if (i) {
            const size_t before = start[i] - start[i - 1];
            const size_t common = before < (size_t)lengths[i] ? before : (size_t)lengths[i];
            const int order = memcmp(text + start[i - 1], text + start[i], common);
            if (order > 0 || (order == 0 && before >= (size_t)lengths[i])) why = "the pieces are not sorted";
        }
        if (!why) start[i + 1] = start[i] + (size_t)lengths[i];
    }
    if (!why) {
        v->trie = trie_create(text, start, count);
        *used = start[count];
    }
    free(start);
    return why;
}

static inline const char *vocabulary_read_merges(Vocabulary *v) {
    const int32_t count = v->header.f.merges, vocabulary = v->header.f.vocabulary;
    v->slot_mask = 1;
    while (v->slot_mask < 2 * (size_t)count) v->slot_mask *= 2;
    v->slots = (MergeSlot *)malloc_check(v->slot_mask * sizeof *v->slots);
    memset(v->slots, 0xFF, v->slot_mask * sizeof *v->slots);
    v->slot_mask--;
    for (int32_t i = 0; i < count; i++) {
        const PackedMerge *m = &v->merges[i];
        if (m->left < 0 || m->left >= vocabulary || m->right < 0 || m->right >= vocabulary ||
            m->becomes < 0 || m->becomes >= vocabulary)
            return "a merge names an id that is too large";
        MergeSlot *slot = &v->slots[merge_slot(v, m->left, m->right)];
        if (slot->becomes >= 0) return "two merges are of the same pair";
        slot->left = m->left;
        slot->right = m->right;
        slot->becomes = m->becomes;
        slot->rank = i;
    }
    return NULL;
}

// The next n bytes of the texts, of which `left` are left.
static inline const unsigned char *texts_take(const unsigned char **text, size_t *left, int32_t n) {
    const unsigned char *p = *text;
    if (n < 0 || (size_t)n > *left || !is_whole_utf8(p, (size_t)n)) return NULL;
    *text += n;
    *left -= (size_t)n;
    return p;
}

static inline const char *vocabulary_read_steps(
    Vocabulary *v, const PackedStep *packed, const unsigned char **text, size_t *left) {
    static const int highest[] = {
#define X(name, flag) flag,
        VOCABULARY_STEPS(X)
#undef X
    };
    for (int i = 0; i < v->header.f.steps; i++) {
        VocabularyStep *s = &v->steps[i];
        if (packed[i].kind < 0 || packed[i].kind >= STEP_KINDS) return "a step is of an unknown kind";
        s->kind = (StepKind)packed[i].kind;
        s->flag = packed[i].flag;
        if (s->flag < 0 || s->flag > highest[s->kind]) return "the flag of a step is too large";
        if (s->kind < STEP_SPLIT_SPACE) {
            if (v->normalizers != i) return "a step normalizes after one that splits";
            v->normalizers++;
        }
        s->pattern = texts_take(text, left, packed[i].pattern_bytes);
        s->content = s->pattern ? texts_take(text, left, packed[i].content_bytes) : NULL;
        if (!s->content) return "the text of a step does not fit";
        s->pattern_bytes = (size_t)packed[i].pattern_bytes;
        s->content_bytes = (size_t)packed[i].content_bytes;
        const bool looks = s->kind == STEP_REPLACE || s->kind == STEP_REPLACE_START || s->kind == STEP_SPLIT;
        if (looks && !s->pattern_bytes) return "a step has no text to look for";
        if (s->pattern_bytes > 1 << 16 || s->content_bytes > 64) return "the text of a step is too long";
        if (s->kind == STEP_METASPACE && !is_one_character(s->content, s->content_bytes))
            return "what a step puts in place of a blank is not one character";
        if (s->kind == STEP_CHARSMAP && !v->charsmap.count) return "it has no charsmap";
    }
    return NULL;
}

// The added tokens as they stand in the file: in `raw`, in the order of the file.
static inline const char *vocabulary_read_added(
    Vocabulary *v, const PackedAdded *packed, const unsigned char **text, size_t *left) {
    v->raw.list = (VocabularyAdded *)calloc_check((size_t)v->header.f.added + 1, sizeof *v->raw.list);
    for (int i = 0; i < v->header.f.added; i++) {
        VocabularyAdded *a = &v->raw.list[i];
        const unsigned char *p = texts_take(text, left, packed[i].bytes);
        if (!p || !packed[i].bytes || packed[i].bytes > VOCABULARY_PIECE_BYTES)
            return "the text of an added token does not fit";
        if (packed[i].id < 0 || packed[i].id >= v->header.f.vocabulary)
            return "the id of an added token is too large";
        if (packed[i].flags < 0 || packed[i].flags > 7) return "an added token has unknown flags";
        a->id = packed[i].id;
        a->flags = packed[i].flags;
        bytes_append(&a->text, p, (size_t)packed[i].bytes);
        v->raw.count++;
    }
    return NULL;
}

static inline const char *vocabulary_read_scores(Vocabulary *v) {
    double least = INFINITY;
    for (int i = 0; v->scores && i < v->header.f.pieces; i++) {
        if (!isfinite(v->scores[i]) || fabs(v->scores[i]) > 1e30) return "the score of a piece is not finite";
        least = v->scores[i] < least ? v->scores[i] : least;
    }
    v->unknown_score = least - 10;
    return NULL;
}

static inline const char *vocabulary_check_header(const VocabularyHeader *h) {
#define X(name, low, high) \
    if (h->f.name < (low) || h->f.name > (high)) return "its field '" #name "' is outside its limits";
    VOCABULARY_FIELDS(X)
#undef X
    const int32_t ids[] = {h->f.start, h->f.end, h->f.padding, h->f.unknown};
    for (size_t i = 0; i < sizeof ids / sizeof *ids; i++)
        if (ids[i] >= h->f.vocabulary) return "a special token's id is too large";
    if (h->f.unknown < 0 && h->f.model != MODEL_BPE) return "it has no token for what is unknown";
    return NULL;
}

// Bytes of the header and of all tables, without the texts.
static inline size_t vocabulary_table_bytes(const VocabularyHeader *h) {
    const size_t scores = h->f.model == MODEL_UNIGRAM ? sizeof(double) : 0;
    return sizeof *h + (size_t)h->f.pieces * (scores + 2 * sizeof(int32_t)) +
           (size_t)h->f.merges * sizeof(PackedMerge) + (size_t)h->f.steps * sizeof(PackedStep) +
           (size_t)h->f.added * sizeof(PackedAdded) + (size_t)h->f.charsmap_units * sizeof(uint32_t);
}

// Everything after the header; a reason when the parts do not fit.
static inline const char *vocabulary_read_parts(Vocabulary *v, size_t bytes) {
    const VocabularyHeader *h = &v->header;
    const size_t pieces = (size_t)h->f.pieces, scores = h->f.model == MODEL_UNIGRAM ? pieces : 0;
    const double *doubles = (const double *)(v->packed + sizeof *h);
    v->scores = scores ? doubles : NULL;
    v->ids = (const int32_t *)(doubles + scores);
    const int32_t *lengths = v->ids + pieces;
    v->merges = (const PackedMerge *)(lengths + pieces);
    const PackedStep *steps = (const PackedStep *)(v->merges + h->f.merges);
    const PackedAdded *added = (const PackedAdded *)(steps + h->f.steps);
    v->charsmap.units = (const uint32_t *)(added + h->f.added);
    v->charsmap.count = (size_t)h->f.charsmap_units;
    const unsigned char *text = (const unsigned char *)(v->charsmap.units + v->charsmap.count);
    v->charsmap.text = text + h->f.text_bytes;
    v->charsmap.text_bytes = (size_t)h->f.charsmap_bytes;
    if (bytes != vocabulary_table_bytes(h) + (size_t)h->f.text_bytes + v->charsmap.text_bytes)
        return "its size is not that of its parts";
    size_t used = 0;
    const char *why = vocabulary_read_scores(v);
    if (!why) why = vocabulary_read_pieces(v, lengths, text, &used);
    size_t left = (size_t)h->f.text_bytes - used;
    text += used;
    if (!why) why = vocabulary_read_merges(v);
    if (!why) why = vocabulary_read_steps(v, steps, &text, &left);
    if (!why) why = vocabulary_read_added(v, added, &text, &left);
    if (!why && left) why = "it has text that belongs to nothing";
    if (!why) why = charsmap_check(&v->charsmap);
    return why;
}

// Reads a packed vocabulary; NULL, with the reason, when it is malformed. The added tokens are not sorted
// yet: see pipeline_create().
static inline Vocabulary *vocabulary_read(const char *section, size_t bytes, char error[256]) {
    Vocabulary *v = (Vocabulary *)calloc_check(1, sizeof *v);
    const char *why = NULL;
    if (bytes < sizeof v->header) why = "it is shorter than its header";
    if (!why) {
        v->packed = (char *)memcpy(malloc_check(bytes), section, bytes); // aligned, and the caller's may go
        memcpy(&v->header, v->packed, sizeof v->header);
        why = vocabulary_check_header(&v->header);
    }
    if (!why) why = vocabulary_read_parts(v, bytes);
    if (why) {
        snprintf(error, 256, "a vocabulary that cannot be read (%s)", why);
        vocabulary_free(v);
        return NULL;
    }
    for (int b = 0; b < 256; b++) {
        char name[8];
        snprintf(name, sizeof name, "<0x%02X>", (unsigned)b);
        v->byte_id[b] = vocabulary_find(v, (const unsigned char *)name, 6);
    }
    v->suffixes = trie_child(&v->trie, TRIE_ROOT, '#');
    if (v->suffixes != TRIE_NONE) v->suffixes = trie_child(&v->trie, v->suffixes, '#');
    return v;
}

// ---------------------------------------------------------------- for the converter

// A part of train_clip --schema: the tables above as JSON.
static inline void vocabulary_schema(FILE *f) {
    const char *comma = "";
    fputs("  \"vocabulary\": {\"constants\": {", f);
#define CONSTANT(name)                                    \
    fprintf(f, "%s\n    \"%s\": %d", comma, #name, name); \
    comma = ",";
    CONSTANT(VOCABULARY_MAGIC)
    CONSTANT(VOCABULARY_VERSION)
    CONSTANT(VOCABULARY_HEADER_INTS)
    CONSTANT(VOCABULARY_MOST_BYTES)
    CONSTANT(VOCABULARY_PIECE_BYTES)
    CONSTANT(CHARSMAP_KEY_BYTES)
    CONSTANT(MODEL_UNIGRAM)
    CONSTANT(MODEL_BPE)
    CONSTANT(MODEL_WORDPIECE)
    CONSTANT(CLEAN_WHITESPACE)
    CONSTANT(CLEAN_CANONICALIZE)
    CONSTANT(BERT_CLEAN)
    CONSTANT(BERT_IDEOGRAPHS)
    CONSTANT(BERT_STRIP_ACCENTS)
    CONSTANT(BERT_LOWER)
    CONSTANT(METASPACE_ALWAYS)
    CONSTANT(METASPACE_FIRST)
    CONSTANT(METASPACE_SPLIT)
    CONSTANT(ADDED_NORMALIZED)
    CONSTANT(ADDED_STRIP_LEFT)
    CONSTANT(ADDED_STRIP_RIGHT)
#define X(name, flag) CONSTANT(name)
    VOCABULARY_STEPS(X)
#undef X
#undef CONSTANT
    fputs("\n  }, \"fields\": [", f);
    comma = "";
#define X(name, low, high)                                                                        \
    fprintf(f, "%s\n    {\"name\": \"%s\", \"low\": %d, \"high\": %d}", comma, #name, low, high); \
    comma = ",";
    VOCABULARY_FIELDS(X)
#undef X
    fputs("\n  ]},\n", f);
}

#endif
