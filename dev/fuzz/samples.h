// Reads all samples of a data set in every way that a program does.
#ifndef CLIPC_FUZZ_SAMPLES_H
#define CLIPC_FUZZ_SAMPLES_H

#include "clipc/data/sample.h"

// The samples themselves; what is wrong with one goes into the account.
static inline void read_each_sample(const Dataset *d) {
    char origin[2 * PATH_SIZE];
    SampleBuffers b;
    memset(&b, 0, sizeof b);
    for (int64_t i = 0; i < d->count; i++) {
        SampleStatus status = dataset_read_caption(d, i, &b);
        if (status == SAMPLE_OK) fuzz_use(b.caption, b.caption_bytes);
        // images of a table are files, which the input does not hold
        if (status == SAMPLE_OK && sample_type(d, &d->samples[i]) != DATASET_CSV) {
            status = dataset_read(d, i, &b);
            if (status == SAMPLE_OK) fuzz_use(b.image.data, b.image.bytes);
        }
        if (status != SAMPLE_OK) dataset_pass_over(d, i, status);
        dataset_note(d, i, i & 1, i & 2);
        if (i % 5 == 4) dataset_note_repeated(d, i);
        dataset_origin(d, i, origin, sizeof origin);
        fuzz_use(origin, strlen(origin));
        sample_key(d, i, b.caption, status == SAMPLE_OK ? b.caption_bytes : 0);
    }
    sample_buffers_free(&b);
}

static inline void read_all_samples(Dataset *d) {
    Logger log;
    memset(&log, 0, sizeof log);
    log.out.fd = log.metrics.fd = -1;
    read_each_sample(d);
    dataset_read_keys(d);
    dataset_print_accounts(d, &log);
}

#endif
