// INT32 sums of COUNT tokens with 8 rows, whose weights are vectors of 8 rows x 4 channels.
//
// vpmaddubsw would saturate: two products of 8 bits are up to 2 * 255 * 127. So codes of both sides are widened to 16
// bits, vpmaddwd adds two products exactly, and a row's sum is in two neighbouring lanes until the end. Weights of up
// to 16 in magnitude, as those of 4 bits with even steps, take the other way: 4 * 2 * 255 * 16 still fits 16 bits.
#pragma once

#include "../simd.h"

namespace ditquant {

constexpr int NARROW = 16;  // largest magnitude of a narrow weight

// sum += x; written so that GCC keeps sums where they are, instead of moving them around.
inline void add_to(__m256i& sum, __m256i x) { asm("vpaddd %1, %0, %0" : "+x"(sum) : "x"(x)); }

// x holds codes of 16 bits, a token every `stride`; the sums of token i go to `to + 64 i`.
template <int COUNT>
void multiply_panel(const int16_t* x, int64_t stride, const int8_t* w, int64_t steps, int32_t* to) {
    __m256i sum[COUNT][2];
    DITQUANT_UNROLL for (int i = 0; i < COUNT; i++) sum[i][0] = sum[i][1] = _mm256_setzero_si256();
    for (int64_t k = 0; k < steps; k++) {
        const auto* four = reinterpret_cast<const __m128i*>(w + 32 * k);
        const __m256i w0 = _mm256_cvtepi8_epi16(_mm_load_si128(four)), w1 = _mm256_cvtepi8_epi16(_mm_load_si128(four + 1));
        DITQUANT_UNROLL for (int i = 0; i < COUNT; i++) {
            const __m256i xi = _mm256_set1_epi64x(*reinterpret_cast<const int64_t*>(x + i * stride + 4 * k));
            add_to(sum[i][0], _mm256_madd_epi16(xi, w0));
            add_to(sum[i][1], _mm256_madd_epi16(xi, w1));
        }
    }
    DITQUANT_UNROLL for (int i = 0; i < COUNT; i++) {
        const __m256i both = _mm256_permute4x64_epi64(_mm256_hadd_epi32(sum[i][0], sum[i][1]), 0xd8);
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + 64 * i), both);
    }
}

// The same for codes of 8 bits, unsigned, and narrow weights.
template <int COUNT, int STEPS>
inline void add_narrow(const uint8_t* x, int64_t stride, const int8_t* w, __m256i (&sum)[COUNT]) {
    __m256i b[STEPS];
    DITQUANT_UNROLL for (int j = 0; j < STEPS; j++) b[j] = _mm256_load_si256(reinterpret_cast<const __m256i*>(w) + j);
    DITQUANT_UNROLL for (int i = 0; i < COUNT; i++) {
        __m256i pairs = _mm256_setzero_si256();
        DITQUANT_UNROLL for (int j = 0; j < STEPS; j++) {
            const __m256i xi = _mm256_set1_epi32(*reinterpret_cast<const int32_t*>(x + i * stride + 4 * j));
            const __m256i product = _mm256_maddubs_epi16(xi, b[j]);
            pairs = j ? _mm256_add_epi16(pairs, product) : product;
        }
        add_to(sum[i], _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
    }
}

template <int COUNT>
void multiply_panel(const uint8_t* x, int64_t stride, const int8_t* w, int64_t steps, int32_t* to) {
    __m256i sum[COUNT];
    DITQUANT_UNROLL for (int i = 0; i < COUNT; i++) sum[i] = _mm256_setzero_si256();
    int64_t k = 0;
    for (; k + 4 <= steps; k += 4) add_narrow<COUNT, 4>(x + 4 * k, stride, w + 32 * k, sum);
    for (; k < steps; k++) add_narrow<COUNT, 1>(x + 4 * k, stride, w + 32 * k, sum);
    DITQUANT_UNROLL for (int i = 0; i < COUNT; i++) _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + 64 * i), sum[i]);
}

}  // namespace ditquant
