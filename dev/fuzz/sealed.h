// Seals (clipc/base/safe_file.h) for changed files: hardly one of them would have right checksums by itself.
#ifndef CLIPC_FUZZ_SEALED_H
#define CLIPC_FUZZ_SEALED_H

#include "clipc/base/safe_file.h"

enum { FUZZ_SEAL_BYTES = SEAL_END_BYTES + 4 }; // room for it behind a file of at most SEAL_BLOCK bytes

// Appends the seal of the first `contents` bytes; the new size. It is written as safe_file_seal() does.
static inline size_t fuzz_seal(uint8_t *file, size_t contents) {
    const size_t blocks = seal_blocks((int64_t)contents);
    const uint32_t checksum = crc_of(file, contents);
    if (blocks > 1) fuzz_fault("a file of %zu bytes has several blocks", contents);
    const uint32_t end[] = {crc_of(&checksum, 4 * blocks), (uint32_t)blocks, SEAL_BLOCK, SEAL_MAGIC};
    memcpy(file + contents, &checksum, 4 * blocks);
    memcpy(file + contents + 4 * blocks, end, sizeof end);
    return contents + 4 * blocks + sizeof end;
}

// Cuts or lengthens (by zeros) a file of `size` bytes to `contents`, and seals it if it is to have a seal.
static inline size_t fuzz_fit(uint8_t *file, size_t size, size_t contents, bool sealed) {
    if (contents > size) memset(file + size, 0, contents - size);
    return sealed ? fuzz_seal(file, contents) : contents;
}

#endif
