// COUNT tokens with a tile of 64 rows, by vpdpbusd.
#pragma once

#include <algorithm>

#include "floats.h"
#include "product.h"

#if DITQUANT_X86

namespace ditquant {

constexpr int VECTORS = 4;  // of 16 rows: one tile

inline bool is_narrow(const Packed&) { return false; }  // vpdpbusd never saturates

template <int COUNT>
inline void multiply(const Product& p, const int8_t* tile, const int32_t* sums, int64_t row, int64_t token) {
    const int64_t channels = p.weight.padded();
    const uint8_t* x = p.values + token * channels;
    __m512i sum[COUNT][VECTORS];
    DITQUANT_UNROLL for (int i = 0; i < COUNT; i++) {
        DITQUANT_UNROLL for (int j = 0; j < VECTORS; j++) sum[i][j] = _mm512_setzero_si512();
    }
    const int64_t steps = ceil_div(p.weight.channels, 4);
    for (int64_t k = 0; k < steps; k++) {
        __m512i w[VECTORS];
        DITQUANT_UNROLL for (int j = 0; j < VECTORS; j++) w[j] = _mm512_load_si512(tile + (k * VECTORS + j) * 64);
        DITQUANT_UNROLL for (int i = 0; i < COUNT; i++) {
            const __m512i xi = _mm512_set1_epi32(*reinterpret_cast<const int32_t*>(x + i * channels + 4 * k));
            DITQUANT_UNROLL for (int j = 0; j < VECTORS; j++) sum[i][j] = _mm512_dpbusd_epi32(sum[i][j], xi, w[j]);
        }
    }
    DITQUANT_UNROLL for (int j = 0; j < VECTORS; j++) {
        const int64_t at = row + 16 * j, rows = std::min<int64_t>(16, p.weight.rows - at);
        if (rows <= 0) break;
        const __mmask16 mask = static_cast<__mmask16>((1u << rows) - 1);
        const __m512i row_sum = _mm512_loadu_si512(sums + 16 * j);
        const __m512 row_scale = _mm512_maskz_loadu_ps(mask, p.row_scale + at);
        const __m512 bias = p.bias ? _mm512_maskz_loadu_ps(mask, p.bias + at) : _mm512_setzero_ps();
        DITQUANT_UNROLL for (int i = 0; i < COUNT; i++) {
            const __m512i offset = _mm512_mullo_epi32(row_sum, _mm512_set1_epi32(128 + p.zero[token + i]));
            __m512 y = _mm512_cvtepi32_ps(_mm512_sub_epi32(sum[i][j], offset));
            y = _mm512_mul_ps(_mm512_mul_ps(y, _mm512_set1_ps(p.scale[token + i])), row_scale);
            store(p.y, (token + i) * p.weight.rows + at, mask, p.bias ? _mm512_add_ps(y, bias) : y, p.dtype);
        }
    }
}

}  // namespace ditquant

#endif
