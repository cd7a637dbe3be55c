// Reads all samples of a data set in every way that a program does.
#ifndef CLIPC_FUZZ_SAMPLES_H
#define CLIPC_FUZZ_SAMPLES_H

#include "clipc/data/sample.h"

static inline void read_all_samples(Dataset *d) {
    char origin[2 * PATH_SIZE];
    SampleBuffers b;
    memset(&b, 0, sizeof b);
    for (int64_t i = 0; i < d->count; i++) {
        const SampleStatus status = dataset_read_caption(d, i, &b);
        if (status == SAMPLE_OK) {
            fuzz_use(b.caption, b.caption_bytes);
            // images of a table are files, which the input does not hold
            if (sample_type(d, &d->samples[i]) != DATASET_CSV && dataset_read(d, i, &b) == SAMPLE_OK)
                fuzz_use(b.image.data, b.image.bytes);
        }
        dataset_origin(d, i, origin, sizeof origin);
        fuzz_use(origin, strlen(origin));
        sample_key(d, i, b.caption, status == SAMPLE_OK ? b.caption_bytes : 0);
        fuzz_use(sample_status_counted(status, i), 1);
    }
    dataset_read_keys(d);
    sample_buffers_free(&b);
}

#endif
