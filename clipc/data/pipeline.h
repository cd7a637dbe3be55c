// From a cleaned caption to ids with a packed vocabulary, as Hugging Face's tokenizers do it: special
// tokens that are written out in the caption are cut out first, the rest is normalized, split into words,
// and each word is spelled with pieces.
#ifndef CLIPC_PIPELINE_H
#define CLIPC_PIPELINE_H

#include "clipc/data/bpe.h"
#include "clipc/data/normalizer.h"
#include "clipc/data/unigram.h"

// The caption at work.
typedef struct {
    const Vocabulary *v;
    IdList ids;
    Bytes normalized, other;               // of what stands between two special tokens
    Bytes replaced[VOCABULARY_MOST_STEPS]; // by each step of METASPACE
    UnigramEnd *ends;                      // scratch of the models
    size_t ends_capacity;
    BpeWord word;
} Encoder;

// ---------------------------------------------------------------- splitting

static inline void encoder_split(Encoder *e, int step, const unsigned char *p, size_t n, bool at_start);

static inline bool is_bert_punctuation(uint32_t c) {
    if (c < 0x80) return c > ' ' && c != 0x7F && !is_ascii_digit(c) && !is_ascii_letter(c);
    const int category = bert_category(c);
    return category >= UTF8PROC_CATEGORY_PC && category <= UTF8PROC_CATEGORY_PO;
}

// At white space, which is dropped; with `punctuation` each character of it is a word of its own.
static inline void encoder_split_space(
    Encoder *e, int step, const unsigned char *p, size_t n, bool punctuation, bool at_start) {
    size_t word = 0; // where it begins
    for (size_t i = 0, length; i < n; i += length) {
        uint32_t c;
        bool valid;
        length = utf8_next(p + i, n - i, &c, &valid);
        const bool space = is_white_space(c), alone = punctuation && is_bert_punctuation(c);
        if (!space && !alone) continue;
        encoder_split(e, step + 1, p + word, i - word, at_start && word == 0);
        if (!space) encoder_split(e, step + 1, p + i, length, at_start && i == 0);
        word = i + length;
    }
    encoder_split(e, step + 1, p + word, n - word, at_start && word == 0);
}

static inline void encoder_split_metaspace(
    Encoder *e, int step, const unsigned char *p, size_t n, bool at_start) {
    const VocabularyStep *s = &e->v->steps[step];
    const size_t mark = s->content_bytes;
    Bytes *out = &e->replaced[step];
    out->length = 0;
    const bool marked = n >= mark && memcmp(p, s->content, mark) == 0;
    const bool wanted = s->flag & METASPACE_ALWAYS || (s->flag & METASPACE_FIRST && at_start);
    if (wanted && !marked && p[0] != ' ') bytes_append(out, s->content, mark);
    for (size_t i = 0; i < n; i++)
        if (p[i] == ' ') bytes_append(out, s->content, mark);
        else bytes_append(out, p + i, 1);
    size_t word = 0;
    for (size_t i = 1; s->flag & METASPACE_SPLIT && i + mark <= out->length; i++) {
        if (memcmp(out->at + i, s->content, mark) != 0) continue;
        encoder_split(e, step + 1, out->at + word, i - word, at_start && word == 0);
        word = i;
        i += mark - 1;
    }
    encoder_split(e, step + 1, out->at + word, out->length - word, at_start && word == 0);
}

// At what the step looks for: a word of its own, or the end of the word before it unless that ends with one.
static inline void encoder_split_matches(
    Encoder *e, int step, const unsigned char *p, size_t n, bool at_start) {
    const VocabularyStep *s = &e->v->steps[step];
    for (size_t i = 0; i < n;) {
        const Match m = step_find(s, p, n, i);
        const size_t end = m.start + m.length;
        if (m.start == i || s->flag) {
            encoder_split(e, step + 1, p + i, end - i, at_start && i == 0);
        } else {
            encoder_split(e, step + 1, p + i, m.start - i, at_start && i == 0);
            encoder_split(e, step + 1, p + m.start, m.length, false);
        }
        i = end;
    }
}

// Appends the ids of a text, from which the steps from `step` on make words. at_start: the caption begins
// here.
static inline void encoder_split(Encoder *e, int step, const unsigned char *p, size_t n, bool at_start) {
    const Vocabulary *v = e->v;
    if (!n || ids_full(&e->ids)) return;
    if (step == v->header.f.steps) {
        switch ((VocabularyModel)v->header.f.model) {
        case MODEL_UNIGRAM: unigram_encode(v, &e->ids, &e->ends, &e->ends_capacity, p, n); break;
        case MODEL_BPE: bpe_encode(v, &e->ids, &e->word, p, n); break;
        case MODEL_WORDPIECE: wordpiece_encode(v, &e->ids, p, n); break;
        }
        return;
    }
    switch (v->steps[step].kind) {
    case STEP_METASPACE: encoder_split_metaspace(e, step, p, n, at_start); break;
    case STEP_SPLIT: encoder_split_matches(e, step, p, n, at_start); break;
    case STEP_SPLIT_BERT: encoder_split_space(e, step, p, n, true, at_start); break;
    default: encoder_split_space(e, step, p, n, false, at_start); break;
    }
}

// ---------------------------------------------------------------- special tokens

// The longest token that the text begins with, or NULL.
static inline const VocabularyAdded *added_find(const AddedTokens *a, const unsigned char *p, size_t n) {
    const VocabularyAdded *found = NULL;
    uint32_t node = TRIE_ROOT;
    for (size_t i = 0; i < n && (node = trie_child(&a->trie, node, p[i])) != TRIE_NONE; i++)
        if (a->trie.string[node] >= 0) found = &a->list[a->trie.string[node]];
    return found;
}

// Bytes of white space at the start of a text.
static inline size_t white_space_bytes(const unsigned char *p, size_t n) {
    size_t i = 0;
    while (i < n) {
        uint32_t c;
        bool valid;
        const size_t length = utf8_next(p + i, n - i, &c, &valid);
        if (!is_white_space(c)) break;
        i += length;
    }
    return i;
}

// Where the white space at the end of the first n bytes begins, but not before `from`.
static inline size_t white_space_before(const unsigned char *p, size_t from, size_t n) {
    size_t end = n;
    while (end > from) {
        size_t i = end - 1;
        while (i > from && (p[i] & 0xC0) == 0x80) i--;
        if (white_space_bytes(p + i, end - i) != end - i) break;
        end = i;
    }
    return end;
}

// Encodes what stands between two tokens; normalized: it has been, and only needs to be split.
static inline void encoder_between(
    Encoder *e, const unsigned char *p, size_t n, bool normalized, bool at_start);

// Cuts the tokens of `a` out of a text and encodes the rest.
static inline void encoder_cut_added(
    Encoder *e, const AddedTokens *a, const unsigned char *p, size_t n, bool normalized, bool at_start) {
    size_t done = 0;
    for (size_t i = 0; a->count && i < n && !ids_full(&e->ids);) {
        const VocabularyAdded *token = added_find(a, p + i, n - i);
        if (!token) {
            i++;
            continue;
        }
        const size_t start = token->flags & ADDED_STRIP_LEFT ? white_space_before(p, done, i) : i;
        i += token->text.length;
        encoder_between(e, p + done, start - done, normalized, at_start && done == 0);
        ids_push(&e->ids, token->id);
        if (token->flags & ADDED_STRIP_RIGHT) i += white_space_bytes(p + i, n - i);
        done = i;
    }
    encoder_between(e, p + done, n - done, normalized, at_start && done == 0);
}

static inline void encoder_between(
    Encoder *e, const unsigned char *p, size_t n, bool normalized, bool at_start) {
    if (!n || ids_full(&e->ids)) return;
    if (normalized) {
        encoder_split(e, e->v->normalizers, p, n, at_start);
        return;
    }
    e->normalized.length = 0;
    bytes_append(&e->normalized, p, n);
    normalize(e->v, &e->normalized, &e->other);
    encoder_cut_added(e, &e->v->normalized, e->normalized.at, e->normalized.length, true, at_start);
}

// ---------------------------------------------------------------- a caption

// Writes at most `most` ids of a cleaned caption, without start and end; returns how many. Thread-safe.
static inline int pipeline_encode(const Vocabulary *v, const Text *clean, int *ids, int most) {
    Encoder e;
    Bytes text = {NULL, 0, 0};
    memset(&e, 0, sizeof e);
    e.v = v;
    e.ids.at = ids;
    e.ids.most = most;
    for (size_t i = 0; i < clean->length; i++) bytes_push(&text, clean->at[i]);
    encoder_cut_added(&e, &v->raw, text.at, text.length, false, true);
    for (int i = 0; i < VOCABULARY_MOST_STEPS; i++) free(e.replaced[i].at);
    free(text.at);
    free(e.normalized.at);
    free(e.other.at);
    free(e.ends);
    bpe_word_free(&e.word);
    return e.ids.used;
}

// ---------------------------------------------------------------- the vocabulary made ready

static inline int added_order(const void *a, const void *b) {
    const Bytes *x = &((const VocabularyAdded *)a)->text, *y = &((const VocabularyAdded *)b)->text;
    const int order = memcmp(x->at, y->at, x->length < y->length ? x->length : y->length);
    return order ? order : (x->length > y->length) - (x->length < y->length);
}

// Sorts the tokens and makes their trie; of equal ones one stays.
static inline void added_sort(AddedTokens *a) {
    Bytes text = {NULL, 0, 0};
    size_t kept = 0, *start = (size_t *)calloc_check(a->count + 1, sizeof *start);
    if (a->count) qsort(a->list, a->count, sizeof *a->list, added_order);
    for (size_t i = 0; i < a->count; i++) {
        if (kept && added_order(&a->list[kept - 1], &a->list[i]) == 0) {
            free(a->list[i].text.at);
            continue;
        }
        a->list[kept++] = a->list[i];
        bytes_append(&text, a->list[kept - 1].text.at, a->list[kept - 1].text.length);
        start[kept] = text.length;
    }
    a->count = kept;
    a->trie = trie_create(text.at, start, kept);
    free(start);
    free(text.at);
}

// Reads a packed vocabulary; NULL, with the reason, when it is malformed. vocabulary_free() it.
static inline Vocabulary *pipeline_create(const char *section, size_t bytes, char error[256]) {
    Vocabulary *v = vocabulary_read(section, bytes, error);
    if (!v) return NULL;
    const size_t count = v->raw.count;
    Bytes scratch = {NULL, 0, 0};
    v->normalized.list = (VocabularyAdded *)calloc_check(count + 1, sizeof *v->normalized.list);
    v->raw.count = 0;
    for (size_t i = 0; i < count; i++) {
        VocabularyAdded added = v->raw.list[i];
        const bool normalized = added.flags & ADDED_NORMALIZED;
        if (normalized) normalize(v, &added.text, &scratch);
        AddedTokens *a = normalized ? &v->normalized : &v->raw;
        if (added.text.length) a->list[a->count++] = added;
        else free(added.text.at);
    }
    free(scratch.at);
    added_sort(&v->raw);
    added_sort(&v->normalized);
    return v;
}

#endif
