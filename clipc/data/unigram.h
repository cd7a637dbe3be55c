// Unigram (Kudo 2018): a word is spelled by the pieces whose scores, log-probabilities, have the largest sum.
// As Hugging Face computes it: sums in double, and what no piece spells scores the least score - 10 a
// character.
#ifndef CLIPC_UNIGRAM_H
#define CLIPC_UNIGRAM_H

#include "clipc/data/vocabulary.h"

// ---------------------------------------------------------------- ids of a caption

typedef struct {
    int *at; // (most)
    int used, most;
} IdList;

// Ids after the last place are dropped.
static inline void ids_push(IdList *ids, int id) {
    if (ids->used < ids->most) ids->at[ids->used++] = id;
}

static inline bool ids_full(const IdList *ids) { return ids->used == ids->most; }

// The ids of the bytes of a text that has no piece; false when one of them is not in the vocabulary.
static inline bool ids_push_bytes(IdList *ids, const Vocabulary *v, const unsigned char *p, size_t n) {
    if (!v->header.f.byte_fallback) return false;
    for (size_t i = 0; i < n; i++)
        if (v->byte_id[p[i]] < 0) return false;
    for (size_t i = 0; i < n; i++) ids_push(ids, v->byte_id[p[i]]);
    return true;
}

// ---------------------------------------------------------------- Viterbi

// The best spelling of the word up to a byte.
typedef struct {
    double score;
    uint32_t start; // of its last piece; UNIGRAM_OPEN: no spelling ends here
    uint32_t next;  // on the best path of the whole word: where the next piece ends
    int32_t id;     // of its last piece
} UnigramEnd;

enum { UNIGRAM_OPEN = 0xFFFFFFFFu };

// Only a larger sum replaces what was found: of equal ones the earlier start stays.
static inline void unigram_offer(UnigramEnd *end, double score, size_t start, int id) {
    if (end->start != UNIGRAM_OPEN && !(score > end->score)) return;
    end->score = score;
    end->start = (uint32_t)start;
    end->id = id;
}

// ends (n + 1): fills in the best path through the word of n bytes.
static inline void unigram_search(const Vocabulary *v, UnigramEnd *ends, const unsigned char *p, size_t n) {
    const Trie *t = &v->trie;
    for (size_t i = 0; i <= n; i++) ends[i].start = UNIGRAM_OPEN;
    ends[0].score = 0;
    for (size_t i = 0, character; i < n; i += character) {
        uint32_t c, node = TRIE_ROOT;
        bool valid, spelled = false;
        character = utf8_next(p + i, n - i, &c, &valid);
        for (size_t k = i; k < n && (node = trie_child(t, node, p[k])) != TRIE_NONE; k++) {
            const int piece = t->string[node];
            if (piece < 0) continue;
            unigram_offer(&ends[k + 1], v->scores[piece] + ends[i].score, i, v->ids[piece]);
            spelled = spelled || k + 1 - i == character;
        }
        if (!spelled)
            unigram_offer(&ends[i + character], v->unknown_score + ends[i].score, i, v->header.f.unknown);
    }
    for (size_t i = n; i > 0; i = ends[i].start) ends[ends[i].start].next = (uint32_t)i;
}

// Appends the ids of a word of n > 0 bytes of UTF-8. ends, capacity: scratch, grown as needed.
static inline void unigram_encode(
    const Vocabulary *v, IdList *ids, UnigramEnd **ends, size_t *capacity, const unsigned char *p, size_t n) {
    const int unknown = v->header.f.unknown;
    list_grow((void **)ends, capacity, n + 1, sizeof **ends);
    const UnigramEnd *path = *ends;
    unigram_search(v, *ends, p, n);
    for (size_t i = 0, end; i < n && !ids_full(ids); i = end) {
        end = path[i].next;
        if (path[end].id != unknown) {
            ids_push(ids, path[end].id);
            continue;
        }
        while (end < n && path[path[end].next].id == unknown) end = path[end].next; // one unknown piece
        const int id = vocabulary_find(v, p + i, end - i);
        if (id >= 0) ids_push(ids, id);
        else if (!ids_push_bytes(ids, v, p + i, end - i)) ids_push(ids, unknown);
    }
}

#endif
