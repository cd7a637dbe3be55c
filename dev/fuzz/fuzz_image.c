// Image files, from their bytes to the pixels that the model takes.
#include "dev/fuzz/fuzz.h"

#include "clipc/data/sample.h"

enum { PIXELS_MOST = 1 << 16, SQUARE_MOST = 24 };

static void fuzz_one(const uint8_t *data, size_t size) {
    static uint8_t square[3 * SQUARE_MOST * SQUARE_MOST];
    static const char *const augmentations[] = {
        "none", "scale=[0.01,1.0] color_jitter=[0.4,0.4,0.4,0.1] color_jitter_prob=1 gray_scale_prob=0.5"};
    if (size < 2) return;
    Image image;
    AugmentConfig augment;
    char error[256];
    const int S = 1 + data[1] % SQUARE_MOST;
    const Interpolation filter = (Interpolation)(data[0] & 1);
    const ImageStatus status = image_decode(&image, data + 2, size - 2, PIXELS_MOST);
    fuzz_use(image_status_name(status), 1);
    if (status != IMAGE_OK) return;
    fuzz_use(image.rgb, 3 * (size_t)image.width * (size_t)image.height);
    if (data[0] & 2) image_apply_orientation(&image);
    image_eval_transform(square, &image, S, filter, (ResizeMode)((data[0] >> 2 & 3) % 3));
    if (!augment_parse(&augment, augmentations[data[0] >> 4 & 1], error)) fuzz_fault("%s", error);
    Rand r = rand_for(1, data[0], data[1]);
    image_train_transform(square, &image, S, filter, &augment, &r);
    image_free(&image);
}
