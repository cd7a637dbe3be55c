// Training states (.state): header, settings, optimizer state.
#include "dev/fuzz/fuzz.h"

#define CLIP_WITHOUT_MAIN
#include "train_clip.c"

#include "clipc/train/training.h"
#include "dev/fuzz/sealed.h"
#include "dev/fuzz/tiny.h"

enum { FILE_MOST = 1 << 16 };

// Takes the settings over, as --resume does.
static void adopt(const char *settings) {
    Options o;
    options_defaults(&o);
    char *kept = settings_without_acting(settings, &o);
    options_adopt(&o, kept, true);
    free(kept);
    options_print(&o, stdout);
    options_free(&o);
}

// The model of the run; it outlives the input.
static Clip *model(void) {
    static Clip *clip;
    const ClipTraining how = {2, false, false};
    if (clip) return clip;
    const ClipConfig c = tiny_config();
    fuzz_inside = false;
    clip = clip_create(&c, NULL, 0, 1);
    clip_start_training(clip, &how);
    fuzz_inside = true;
    return clip;
}

// Makes the file as long as its header announces, and seals it.
static size_t repair(uint8_t *file, size_t size) {
    StateHeader h;
    if (size < sizeof h) return size;
    memcpy(&h, file, sizeof h);
    if (h.settings_bytes < 0 || h.settings_bytes > FILE_MOST / 2 || h.floats < 0 || h.floats > FILE_MOST / 16)
        return size;
    const size_t contents = sizeof h + (size_t)h.settings_bytes + 4 * (size_t)h.floats;
    return fuzz_fit(file, size, contents, h.version > 2);
}

static void fuzz_one(const uint8_t *data, size_t size) {
    static uint8_t file[FILE_MOST + FUZZ_SEAL_BYTES];
    Checkpoint c;
    const char *path;
    if (size < 1 || size > FILE_MOST) return;
    memcpy(file, data + 1, size - 1);
    const size_t bytes = data[0] & 1 ? repair(file, size - 1) : size - 1;
    memset(&c, 0, sizeof c);
    path_format(c.state, "%s", fuzz_file(file, bytes));
    path_format(c.weights, "/dev/null");
    if (!checkpoint_open(&c)) {
        fuzz_use(checkpoint_fault(&c, &path), 1);
        adopt(c.settings);
        checkpoint_restore(&c, model());
    }
    free(c.settings);
}
