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
    char other[PATH_SIZE];  // the first member of another kind, or ""
    char dotted[PATH_SIZE]; // the last one that is an image or a caption but for dots in its name, or ""
    int64_t dotted_count;   // how many different names those have, their endings left out
} MemberGroup;

static inline void tar_pass_over(Dataset *d, const char *one, const char *many, const char *name) {
    char where[2 * PATH_SIZE];
    snprintf(where, sizeof where, "%s:%s", d->files[d->file_count - 1].path, name);
    make_one_line(where);
    account_pass_over(dataset_account(d), one, many, where);
}

static inline void member_group_finish(MemberGroup *g, Dataset *d) {
    if (g->any) {
        *dataset_add_sample(d) = g->sample;
        d->files[g->sample.file].samples++;
        dataset_account(d)->found++;
    } else if (g->dotted_count) {
        for (; g->dotted_count; g->dotted_count--)
            tar_pass_over(d, "name with a dot before its ending (WebDataset's key ends at the first dot)",
                "names with a dot before their endings (WebDataset's key ends at the first dot)", g->dotted);
    } else if (g->other[0]) {
        tar_pass_over(
            d, "sample with neither image nor caption", "samples with neither image nor caption", g->other);
    }
    g->any = false;
    g->other[0] = g->dotted[0] = 0;
    g->dotted_count = 0;
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

// Remembers a member of another kind for the account.
static inline void member_group_add_other(
    MemberGroup *g, const DatasetConfig *c, const char *name, const char *kind) {
    const char *ending = strrchr(kind, '.');
    const size_t stem = ending ? (size_t)(ending - name) : 0;
    int rank;
    if (!g->other[0]) snprintf(g->other, sizeof g->other, "%s", name);
    if (!ending || member_role(c, ending + 1, &rank) == MEMBER_OTHER) return;
    if (strncmp(g->dotted, name, stem + 1) == 0) return; // the caption of an image that was counted
    snprintf(g->dotted, sizeof g->dotted, "%s", name);
    g->dotted_count++;
}

// Adds a member to its sample; false where the shard is broken.
static inline bool member_group_add(MemberGroup *g, Dataset *d, TarReader *t, TarMember *m) {
    const size_t key_length = member_key_length(m->name);
    const char *kind = m->name + key_length + 1;
    DataSample *s = &g->sample;
    int rank;
    if (is_system_file(m->name)) {
        dataset_account(d)->system_files++;
        return true;
    }
    if (!key_length) { // as for WebDataset, it does not come between the members of a sample
        tar_pass_over(d, "member without a key", "members without a key", m->name);
        return true;
    }
    MemberRole role = member_role(&d->config, kind, &rank);
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
    if (role == MEMBER_OTHER) member_group_add_other(g, &d->config, m->name, kind);
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

// ---------------------------------------------------------------- members that are apart

// A sample of a shard that lacks a member, by its key.
typedef struct {
    const char *name;
    size_t key_length;
    int64_t index;
} PartSample;

static inline int compare_part_samples(const void *a, const void *b) {
    const PartSample *x = (const PartSample *)a, *y = (const PartSample *)b;
    const int order = memcmp(x->name, y->name, x->key_length < y->key_length ? x->key_length : y->key_length);
    if (order) return order;
    if (x->key_length != y->key_length) return x->key_length < y->key_length ? -1 : 1;
    return x->index < y->index ? -1 : x->index > y->index;
}

// Puts two samples together in the place of the first, unless both have an image, a caption or a label.
static inline bool part_samples_join(DataSample *a, DataSample *b) {
    if ((a->image_bytes >= 0 && b->image_bytes >= 0) || (a->caption_bytes >= 0 && b->caption_bytes >= 0) ||
        (a->label >= 0 && b->label >= 0))
        return false;
    if (b->image_bytes >= 0) {
        a->image = b->image;
        a->image_bytes = b->image_bytes;
        a->name = b->name;
    }
    if (b->caption_bytes >= 0) {
        a->caption = b->caption;
        a->caption_bytes = b->caption_bytes;
    }
    if (b->label >= 0) a->label = b->label;
    return true;
}

// Joins the parts (count), sorted by key: two parts with the same key are one sample, unless there is a
// third.
// joined (of all samples from `first` on): the index of the sample that took another one in, at its place.
static inline void parts_join(
    Dataset *d, const PartSample *parts, int64_t count, int64_t first, int64_t *joined) {
    const DataFile *f = &d->files[d->file_count - 1];
    char where[2 * PATH_SIZE];
    for (int64_t i = 0, n; i < count; i += n) {
        for (n = 1; i + n < count && parts[i + n].key_length == parts[i].key_length &&
                    !memcmp(parts[i + n].name, parts[i].name, parts[i].key_length);)
            n++;
        const int64_t into = parts[i].index, from = n == 2 ? parts[i + 1].index : into;
        if (n != 2 || !part_samples_join(&d->samples[into], &d->samples[from])) continue;
        joined[from - first] = into;
        snprintf(where, sizeof where, "%s:%s", f->path, f->text + d->samples[into].name);
        make_one_line(where);
        account_add_named(dataset_account(d), USED, "sample whose members are apart in the shard",
            "samples whose members are apart in the shard", where);
    }
}

// Members of one key can be apart in a shard, as in one that has all images, then all captions: what looked
// like two samples becomes one, in the place of the first.
static inline void shard_join_parts(Dataset *d, int64_t first) {
    const size_t n = (size_t)(d->count - first);
    PartSample *parts = (PartSample *)malloc_check(n * sizeof *parts);
    int64_t *moved = (int64_t *)malloc_check(n * sizeof *moved), count = 0, kept = first;
    for (int64_t i = first; i < d->count; i++) {
        const DataSample *s = &d->samples[i];
        const bool captioned = s->caption_bytes >= 0 || !d->config.need_caption;
        const bool labelled = s->label >= 0 || !d->config.need_label;
        const char *name = d->files[d->file_count - 1].text + s->name;
        const PartSample part = {name, member_key_length(name), i};
        if (s->image_bytes < 0 || !captioned || !labelled) parts[count++] = part;
        moved[i - first] = -1;
    }
    if (count) qsort(parts, (size_t)count, sizeof *parts, compare_part_samples);
    parts_join(d, parts, count, first, moved);
    for (int64_t i = first; i < d->count; i++) {
        const int64_t into = moved[i - first]; // before i, so that its new place is known
        moved[i - first] = into < 0 ? kept : moved[into - first];
        if (into < 0) d->samples[kept++] = d->samples[i];
    }
    labels_renumber(&d->labels, first, moved);
    dataset_account(d)->found -= d->count - kept;
    d->files[d->file_count - 1].samples -= d->count - kept;
    d->count = kept;
    free(parts);
    free(moved);
}

// ---------------------------------------------------------------- shards

// A shard that is not there: the program ends, unless --skip-missing-shards leaves it out.
static inline void shard_is_missing(Dataset *d, const char *path, int status) {
    static const char *const why[] = {"it is not there", "cannot be downloaded",
        "the program that downloads it (curl or aws) is not installed"};
    const char *reason = why[status == 0 || status == 22 ? 0 : status == 127 ? 2 : 1];
    if (!d->config.skip_missing_shards || status == 127)
        die(status ? EXIT_RUNTIME : EXIT_USAGE, "%s: %s%s", path, reason,
            status == 127 ? "; install it" : "; give shards that exist, or --skip-missing-shards");
    account_add_named(dataset_account(d), NOTED_ITEMS,
        "shard is not there; how many samples it has is not known",
        "shards are not there; how many samples they have is not known", path);
}

// A broken shard gives the samples before the error, and one line that says so.
static inline void dataset_add_shard(Dataset *d, int source, const char *path, bool url) {
    TarReader t;
    TarMember m;
    MemberGroup g;
    const int64_t first = d->count;
    memset(&g, 0, sizeof g);
    dataset_add_file(d, source, path);
    if (!url && !shard_command(path) && !file_exists(path)) {
        shard_is_missing(d, path, 0);
        return;
    }
    char *download = url ? shard_download(path) : NULL;
    member_group_finish(&g, d);
    list_grow((void **)&g.key, &g.capacity, 1, 1);
    bool whole = tar_open(&t, path, download);
    while (whole && tar_next(&t, &m)) whole = member_group_add(&g, d, &t, &m);
    member_group_finish(&g, d);
    tar_close(&t);
    free(download);
    if (t.status) {
        shard_is_missing(d, path, t.status);
        free(g.key);
        return;
    }
    shard_join_parts(d, first);
    for (; t.links; t.links--)
        tar_pass_over(d, "member that is a link or a device", "members that are links or devices", t.link);
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
        dataset_add_shard(d, source, shards.list[i], is_shard_url(spec));
    }
    if (show && seconds_now() - start > 1) fprintf(stderr, "\r\033[K");
    string_list_free(&shards);
}

#endif
