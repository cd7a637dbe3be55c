// Stored arrays of the tests (.npz).
#include "dev/fuzz/fuzz.h"

#include "dev/test/npz.h"

static void fuzz_one(const uint8_t *data, size_t size) {
    Npz npz = npz_read(fuzz_file(data, size));
    for (size_t i = 0; i < npz.count; i++) {
        const NpzArray *a = &npz.arrays[i];
        fuzz_use(a->data, (size_t)a->count * (size_t)(a->dtype[1] - '0'));
        if (npz_find(&npz, a->name) == NULL) fuzz_fault("an array is not found");
    }
    npz_free(&npz);
}
