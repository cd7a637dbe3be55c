// The other two models. Byte pair encoding with a table of merges over characters (as in Gemma and Llama): of
// all neighbours in a word that a merge joins, the pair of the lowest rank is joined first, the leftmost of
// equal ones. CLIP's own, over bytes of words that end with </w>, is in clipc/data/tokenizer.h.
// And WordPiece, at the end.
#ifndef CLIPC_BPE_H
#define CLIPC_BPE_H

#include "clipc/data/unigram.h" // IdList, ids_push

// A symbol of the word; symbols that were joined to the one before them are dead.
typedef struct {
    int32_t id, previous, next; // next: -1 at the end
    bool dead;
} BpeSymbol;

// A pair that may be joined: the symbol at `place` and the one after it.
typedef struct {
    int32_t rank, place, becomes;
} BpePair;

typedef struct {
    BpeSymbol *symbols;
    size_t count, symbol_capacity;
    BpePair *heap; // the pair that comes first at its root
    size_t pairs, heap_capacity;
} BpeWord;

static inline void bpe_word_free(BpeWord *w) {
    free(w->symbols);
    free(w->heap);
}

static inline bool pair_before(const BpePair *a, const BpePair *b) {
    return a->rank != b->rank ? a->rank < b->rank : a->place < b->place;
}

static inline void pair_swap(BpePair *a, BpePair *b) {
    const BpePair before = *a;
    *a = *b;
    *b = before;
}

// ---------------------------------------------------------------- the heap of pairs

// Adds the pair of the symbol at `place` and its neighbour, if a merge joins them.
static inline void bpe_push_pair(const Vocabulary *v, BpeWord *w, int32_t place) {
    if (place < 0 || w->symbols[place].next < 0) return;
    const MergeSlot *m =
        &v->slots[merge_slot(v, w->symbols[place].id, w->symbols[w->symbols[place].next].id)];
    if (m->becomes < 0) return;
    list_grow((void **)&w->heap, &w->heap_capacity, w->pairs + 1, sizeof *w->heap);
    size_t i = w->pairs++;
    w->heap[i].rank = m->rank;
    w->heap[i].place = place;
    w->heap[i].becomes = m->becomes;
    for (; i && pair_before(&w->heap[i], &w->heap[(i - 1) / 2]); i = (i - 1) / 2)
        pair_swap(&w->heap[i], &w->heap[(i - 1) / 2]);
}

static inline BpePair bpe_pop_pair(BpeWord *w) {
    const BpePair first = w->heap[0];
    w->heap[0] = w->heap[--w->pairs];
    for (size_t i = 0, child = 1; child < w->pairs; i = child, child = 2 * i + 1) {
        if (child + 1 < w->pairs && pair_before(&w->heap[child + 1], &w->heap[child])) child++;
        if (!pair_before(&w->heap[child], &w->heap[i])) break;
        pair_swap(&w->heap[child], &w->heap[i]);
    }
    return first;
}

// ---------------------------------------------------------------- a word

static inline void bpe_push_symbol(BpeWord *w, int id) {
    list_grow((void **)&w->symbols, &w->symbol_capacity, w->count + 1, sizeof *w->symbols);
    BpeSymbol *s = &w->symbols[w->count];
    s->id = id;
    s->previous = (int32_t)w->count - 1;
    s->next = -1;
    s->dead = false;
    if (w->count) s[-1].next = (int32_t)w->count;
    w->count++;
}

// One symbol for each character; where it has no piece, its bytes, or the unknown one. Unknown ones wait
// until a known character follows (also while bytes pass), so that neighbours can become one.
static inline void bpe_split(const Vocabulary *v, BpeWord *w, const unsigned char *p, size_t n) {
    const int unknown = v->header.f.unknown;
    int waiting = 0;
    w->count = w->pairs = 0;
    for (size_t i = 0, length; i < n; i += length) {
        uint32_t c;
        bool valid;
        length = utf8_next(p + i, n - i, &c, &valid);
        const int id = vocabulary_find(v, p + i, length);
        bool bytes = id < 0 && v->header.f.byte_fallback;
        for (size_t k = 0; bytes && k < length; k++) bytes = v->byte_id[p[i + k]] >= 0;
        if (bytes) {
            for (size_t k = 0; k < length; k++) bpe_push_symbol(w, v->byte_id[p[i + k]]);
        } else if (id < 0) {
            if (waiting && !v->header.f.fuse_unknown && unknown >= 0) bpe_push_symbol(w, unknown);
            waiting = 1;
        } else {
            if (waiting && unknown >= 0) bpe_push_symbol(w, unknown);
            waiting = 0;
            bpe_push_symbol(w, id);
        }
    }
    if (waiting && unknown >= 0) bpe_push_symbol(w, unknown);
}

static inline void bpe_merge(const Vocabulary *v, BpeWord *w) {
    for (size_t i = 0; i < w->count; i++) bpe_push_pair(v, w, (int32_t)i);
    while (w->pairs) {
        const BpePair pair = bpe_pop_pair(w);
        BpeSymbol *left = &w->symbols[pair.place];
        if (left->dead || left->next < 0) continue;
        BpeSymbol *right = &w->symbols[left->next];
        // another pair may stand there by now
        if (v->slots[merge_slot(v, left->id, right->id)].becomes != pair.becomes) continue;
        left->id = pair.becomes;
        left->next = right->next;
        right->dead = true;
        if (right->next >= 0) w->symbols[right->next].previous = pair.place;
        bpe_push_pair(v, w, left->previous);
        bpe_push_pair(v, w, pair.place);
    }
}

// Appends the ids of a word of n > 0 bytes of UTF-8. w: scratch.
static inline void bpe_encode(
    const Vocabulary *v, IdList *ids, BpeWord *w, const unsigned char *p, size_t n) {
    const int whole = v->header.f.ignore_merges ? vocabulary_find(v, p, n) : -1;
    if (whole >= 0) {
        ids_push(ids, whole);
        return;
    }
    bpe_split(v, w, p, n);
    bpe_merge(v, w);
    for (size_t i = 0; i < w->count && !ids_full(ids); i++)
        if (!w->symbols[i].dead) ids_push(ids, w->symbols[i].id);
}

// ---------------------------------------------------------------- WordPiece

// WordPiece (BERT): from the start of a word the longest piece each time, those within the word with "##"
// before them. A word for which that fails somewhere is unknown as a whole, and so is one of too many
// characters. Appends the ids of a word of n > 0 bytes of UTF-8.
static inline void wordpiece_encode(const Vocabulary *v, IdList *ids, const unsigned char *p, size_t n) {
    const Trie *t = &v->trie;
    const IdList before = *ids;
    size_t characters = 0;
    for (size_t i = 0; i < n; i++) characters += (p[i] & 0xC0) != 0x80;
    bool spelled = characters <= (size_t)v->header.f.word_characters;
    for (size_t i = 0, end; spelled && i < n; i = end) {
        uint32_t node = i ? v->suffixes : (uint32_t)TRIE_ROOT;
        int longest = -1;
        end = i;
        if (i && node == TRIE_NONE) spelled = false;
        for (size_t k = i; spelled && k < n && (node = trie_child(t, node, p[k])) != TRIE_NONE; k++) {
            if (t->string[node] < 0) continue;
            longest = t->string[node];
            end = k + 1;
        }
        spelled = spelled && longest >= 0;
        if (spelled) ids_push(ids, v->ids[longest]);
    }
    if (spelled) return;
    *ids = before;
    ids_push(ids, v->header.f.unknown);
}

#endif
