// Fast Walsh-Hadamard transform of a token's blocks of channels, not normalized.
#pragma once

#include "simd.h"

#if DITQUANT_X86

namespace ditquant {

// Replace lane i by x[i] + x[i ^ stride], or by their difference where i has that bit.
template <int STRIDE>
inline __m512 butterfly(__m512 x) {
    constexpr __mmask16 upper = STRIDE == 1 ? 0xaaaa : STRIDE == 2 ? 0xcccc : STRIDE == 4 ? 0xf0f0 : 0xff00;
    const __m512 sign = _mm512_mask_mov_ps(_mm512_set1_ps(1), upper, _mm512_set1_ps(-1));
    __m512 other;
    if constexpr (STRIDE == 1) other = _mm512_permute_ps(x, 0xb1);
    if constexpr (STRIDE == 2) other = _mm512_permute_ps(x, 0x4e);
    if constexpr (STRIDE == 4) other = _mm512_shuffle_f32x4(x, x, 0xb1);
    if constexpr (STRIDE == 8) other = _mm512_shuffle_f32x4(x, x, 0x4e);
    return _mm512_fmadd_ps(x, sign, other);
}

inline __m512 within(__m512 x, int64_t block) {
    x = butterfly<1>(x);
    if (block > 2) x = butterfly<2>(x);
    if (block > 4) x = butterfly<4>(x);
    if (block > 8) x = butterfly<8>(x);
    return x;
}

// All stages of COUNT vectors from `at` on, held in registers.
template <int COUNT, class Load>
inline void rotate_vectors(float* x, int64_t at, int64_t block, const Load& load) {
    __m512 v[COUNT];
    DITQUANT_UNROLL for (int i = 0; i < COUNT; i++) v[i] = within(load(at + 16 * i), block);
    DITQUANT_UNROLL for (int stride = 1; stride < COUNT; stride *= 2) {
        DITQUANT_UNROLL for (int i = 0; i < COUNT; i++) {
            if (i & stride) continue;
            const __m512 a = v[i], b = v[i + stride];
            v[i] = _mm512_add_ps(a, b);
            v[i + stride] = _mm512_sub_ps(a, b);
        }
    }
    DITQUANT_UNROLL for (int i = 0; i < COUNT; i++) _mm512_store_ps(x + at + 16 * i, v[i]);
}

// Rotate every block, a power of two from 2 on, of `size` floats, a multiple of 16 and of the block. load(at) gives 16
// of them, and x, aligned, takes the result.
template <class Load>
inline void rotate_blocks(float* x, int64_t size, int64_t block, const Load& load) {
    const int64_t inner = block < 128 ? block : 128;
    if (inner <= 16) {
        for (int64_t at = 0; at < size; at += 16) rotate_vectors<1>(x, at, inner, load);
    } else if (inner == 32) {
        for (int64_t at = 0; at < size; at += 32) rotate_vectors<2>(x, at, inner, load);
    } else if (inner == 64) {
        for (int64_t at = 0; at < size; at += 64) rotate_vectors<4>(x, at, inner, load);
    } else {
        for (int64_t at = 0; at < size; at += 128) rotate_vectors<8>(x, at, inner, load);
    }
    for (int64_t stride = 128; stride < block; stride *= 2) {
        for (int64_t i = 0; i < size; i += 16) {
            if (i & stride) continue;
            const __m512 a = _mm512_load_ps(x + i), b = _mm512_load_ps(x + i + stride);
            _mm512_store_ps(x + i, _mm512_add_ps(a, b));
            _mm512_store_ps(x + i + stride, _mm512_sub_ps(a, b));
        }
    }
}

}  // namespace ditquant

#endif
