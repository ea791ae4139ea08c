// Fast Walsh-Hadamard transform of a token's blocks of channels, not normalized.
#pragma once

#include "floats.h"

#if DITQUANT_X86

namespace ditquant {

inline Floats within(Floats x, int64_t block) {
    x = butterfly<1>(x);
    if (block > 2) x = butterfly<2>(x);
    if (block > 4) x = butterfly<4>(x);
    if (block > 8) x = butterfly<8>(x);
    return x;
}

// All stages of COUNT vectors from `at` on, held in registers.
template <int COUNT, class Read>
inline void rotate_vectors(float* x, int64_t at, int64_t block, const Read& read) {
    Floats v[COUNT];
    DITQUANT_UNROLL for (int i = 0; i < COUNT; i++) v[i] = within(read(at + 16 * i), block);
    DITQUANT_UNROLL for (int stride = 1; stride < COUNT; stride *= 2) {
        DITQUANT_UNROLL for (int i = 0; i < COUNT; i++) {
            if (i & stride) continue;
            const Floats a = v[i], b = v[i + stride];
            v[i] = add(a, b);
            v[i + stride] = sub(a, b);
        }
    }
    DITQUANT_UNROLL for (int i = 0; i < COUNT; i++) save(x + at + 16 * i, v[i]);
}

// Rotate every block, a power of two from 2 on, of `size` floats, a multiple of 16 and of the block. read(at) gives 16
// of them, and x, aligned, takes the result.
template <class Read>
inline void rotate_blocks(float* x, int64_t size, int64_t block, const Read& read) {
    const int64_t inner = block < 128 ? block : 128;
    if (inner <= 16) {
        for (int64_t at = 0; at < size; at += 16) rotate_vectors<1>(x, at, inner, read);
    } else if (inner == 32) {
        for (int64_t at = 0; at < size; at += 32) rotate_vectors<2>(x, at, inner, read);
    } else if (inner == 64) {
        for (int64_t at = 0; at < size; at += 64) rotate_vectors<4>(x, at, inner, read);
    } else {
        for (int64_t at = 0; at < size; at += 128) rotate_vectors<8>(x, at, inner, read);
    }
    for (int64_t stride = 128; stride < block; stride *= 2) {
        for (int64_t i = 0; i < size; i += 16) {
            if (i & stride) continue;
            const Floats a = load(x + i), b = load(x + i + stride);
            save(x + i, add(a, b));
            save(x + i + stride, sub(a, b));
        }
    }
}

}  // namespace ditquant

#endif
