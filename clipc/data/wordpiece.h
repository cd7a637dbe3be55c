// WordPiece (BERT): from the start of a word the longest piece each time, those within the word with "##"
// before them. A word for which that fails somewhere is unknown as a whole, and so is one of too many
// characters.
#ifndef CLIPC_WORDPIECE_H
#define CLIPC_WORDPIECE_H

#include "clipc/data/unigram.h" // IdList, ids_push

// Appends the ids of a word of n > 0 bytes of UTF-8.
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
