// The smallest model and data set for which harnesses read states and caches, and of which seeds.c writes
// them.
#ifndef CLIPC_FUZZ_TINY_H
#define CLIPC_FUZZ_TINY_H

#include "clipc/data/sample.h"
#include "clipc/model/weight_file.h"

static inline ClipConfig tiny_config(void) {
    ClipConfig c;
    memset(&c, 0, sizeof c);
    c.embed_dim = c.image_width = c.text_width = 2;
    c.image_size = c.patch_size = 2;
    c.image_layers = c.text_layers = c.image_heads = c.text_heads = 1;
    c.image_mlp = c.text_mlp = 3;
    c.ln_pre = 1;
    c.context_length = 3;
    c.vocab_size = 4;
    c.eot_id = 3;
    c.image_ln_eps = c.text_ln_eps = 1e-5f;
    c.std_r = c.std_g = c.std_b = 0.3f;
    snprintf(c.name, sizeof c.name, "tiny");
    return c;
}

enum { TINY_SAMPLES = 3 };

// Synthetic samples: their identity depends on no file.
static inline Dataset tiny_dataset(void) {
    DatasetConfig c = dataset_config_default();
    c.num_samples = TINY_SAMPLES;
    return dataset_open("synthetic", &c, 1);
}

// size: of the square that the model takes; 0: images are kept as decoded
static inline ImageSettings tiny_images(int size) {
    const ImageSettings s = {size, 0, 0, true, 10000};
    return s;
}

#endif
