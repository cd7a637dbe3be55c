// The samples of WebDataset's tar shards.
#ifndef CLIPC_DATASET_TAR_H
#define CLIPC_DATASET_TAR_H

#include "clipc/data/csv.h"          // make_one_line
#include "clipc/data/dataset_list.h" // Dataset
#include "clipc/data/webdataset.h"   // TarReader

// The sample whose members are being read; finished when the key changes.
typedef struct {
    char *key;
    size_t key_length, capacity;
    bool any; // it has an image, a caption or a label; members of other kinds alone are not a sample
    int image_rank;
    DataSample sample;
} MemberGroup;

static inline void member_group_finish(MemberGroup *g, Dataset *d) {
    if (g->any) {
        *dataset_add_sample(d) = g->sample;
        d->files[g->sample.file].samples++;
    }
    g->any = false;
    memset(&g->sample, 0, sizeof g->sample);
    g->sample.image_bytes = g->sample.caption_bytes = g->sample.label = -1;
    g->sample.file = (int32_t)d->file_count - 1;
}

// What a member is for its sample.
typedef enum { MEMBER_OTHER, MEMBER_IMAGE, MEMBER_CAPTION, MEMBER_LABEL } MemberRole;

static inline MemberRole member_role(const DatasetConfig *c, const char *kind, int *image_rank) {
    *image_rank = member_kind(kind, c->image_key);
    if (*image_rank >= 0) return MEMBER_IMAGE;
    if (member_kind(kind, c->json_text_key ? "json" : c->text_key) >= 0) return MEMBER_CAPTION;
    return member_kind(kind, "cls") >= 0 ? MEMBER_LABEL : MEMBER_OTHER;
}

// Adds a member to its sample; false where the shard is broken.
static inline bool member_group_add(MemberGroup *g, Dataset *d, TarReader *t, TarMember *m) {
    size_t key_length = member_key_length(m->name);
    DataSample *s = &g->sample;
    int rank;
    MemberRole role = key_length ? member_role(&d->config, m->name + key_length + 1, &rank) : MEMBER_OTHER;
    bool same = key_length == g->key_length && !memcmp(m->name, g->key, key_length);
    // the next sample may have the same key, as in LAION-400M: then a kind of member comes again
    bool again = (role == MEMBER_IMAGE && s->image_bytes >= 0 && rank == g->image_rank) ||
                 (role == MEMBER_CAPTION && s->caption_bytes >= 0);
    if (!same || again) {
        member_group_finish(g, d);
        list_grow((void **)&g->key, &g->capacity, key_length + 1, 1);
        memcpy(g->key, m->name, key_length);
        g->key_length = key_length;
    }
    if (role == MEMBER_OTHER || (role == MEMBER_IMAGE && s->image_bytes >= 0 && rank > g->image_rank))
        return true;
    if (!g->any || role == MEMBER_IMAGE)
        s->name = data_file_add_text(&d->files[d->file_count - 1], m->name); // the image's, if there is one
    g->any = true;
    if (role == MEMBER_LABEL) {
        char text[256];
        int64_t n = tar_read(t, text, sizeof text);
        if (n >= 0) s->label = dataset_label(d, d->count, text, (size_t)n);
        return n >= 0;
    }
    if (m->offset < 0) { // compressed, or from a command
        if (d->spill_fd < 0) d->spill_fd = spill_open();
        if (!tar_copy_member(t, m, d->spill_fd, &d->spill_bytes)) return false;
        m->offset = ~m->offset;
    }
    int32_t bytes = (int32_t)min_i64(m->bytes, INT32_MAX);
    if (role == MEMBER_IMAGE) {
        s->image = m->offset;
        s->image_bytes = bytes;
        g->image_rank = rank;
    } else {
        s->caption = m->offset;
        s->caption_bytes = bytes;
    }
    return true;
}

// A broken shard gives the samples before the error, and one line that says so.
static inline void dataset_add_shard(Dataset *d, int source, const char *path) {
    TarReader t;
    TarMember m;
    MemberGroup g;
    memset(&g, 0, sizeof g);
    dataset_add_file(d, source, path);
    member_group_finish(&g, d);
    list_grow((void **)&g.key, &g.capacity, 1, 1);
    bool whole = tar_open(&t, path);
    while (whole && tar_next(&t, &m)) whole = member_group_add(&g, d, &t, &m);
    member_group_finish(&g, d);
    tar_close(&t);
    int64_t samples = d->files[d->file_count - 1].samples;
    make_one_line(t.error);
    if (t.error[0])
        warn("%s: broken shard (%s); %lld samples can be read; download it again", path, t.error,
            (long long)samples);
    else if (!samples)
        warn("%s: contains no samples (members KEY.%s with KEY.%s); see --image-key, --text-key", path,
            d->config.image_key, d->config.text_key);
    free(g.key);
}

static inline void dataset_add_webdataset(Dataset *d, int source, const char *spec) {
    StringList shards = shard_list(spec);
    bool show = isatty(STDERR_FILENO);
    double start = seconds_now();
    for (size_t i = 0; i < shards.count; i++) {
        if (show && seconds_now() - start > 1)
            fprintf(stderr, "\rlisting the samples: shard %zu of %zu ", i + 1, shards.count);
        dataset_add_shard(d, source, shards.list[i]);
    }
    if (show && seconds_now() - start > 1) fprintf(stderr, "\r\033[K");
    string_list_free(&shards);
}

#endif
