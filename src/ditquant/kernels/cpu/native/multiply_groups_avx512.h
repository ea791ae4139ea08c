// What one group of channels brings to a product, by vpdpbusd.
#pragma once

#include "multiply_avx512.h"

#if DITQUANT_X86

namespace ditquant {

// The codes of a token and those behind it, as add_part takes them.
template <int COUNT>
inline const uint8_t* codes_of(const GroupProduct& p, int64_t token) {
    return p.values + token * p.weight.padded();
}

// Add what part u brings to y [COUNT, 64]. A function of its own: inlined into the loop over parts, its sums would not
// stay in registers.
template <int COUNT>
[[gnu::noinline]] void add_part(const GroupProduct& p, const GroupTile& tile, const uint8_t* x, int64_t token, int64_t u, float* y) {
    const int64_t channels = p.weight.padded(), part = p.weight.part, groups = p.groups();
    const int64_t at = token * groups + u * part / p.group;
    __m512i sum[COUNT][VECTORS];
    DITQUANT_UNROLL for (int j = 0; j < VECTORS; j++) {
        const __m512i row_sum = _mm512_load_si512(tile.sums + u * TILE_ROWS + 16 * j);
        DITQUANT_UNROLL for (int i = 0; i < COUNT; i++) {
            sum[i][j] = _mm512_mullo_epi32(row_sum, _mm512_set1_epi32(-128 - p.zero[at + i * groups]));
        }
    }
    for (int64_t k = u * part / 4; k < (u + 1) * part / 4; k++) {
        __m512i w[VECTORS];
        DITQUANT_UNROLL for (int j = 0; j < VECTORS; j++) {
            w[j] = _mm512_load_si512(tile.values + (k * VECTORS + j) * 64);
        }
        DITQUANT_UNROLL for (int i = 0; i < COUNT; i++) {
            const __m512i xi = _mm512_set1_epi32(*reinterpret_cast<const int32_t*>(x + i * channels + 4 * k));
            DITQUANT_UNROLL for (int j = 0; j < VECTORS; j++) {
                sum[i][j] = _mm512_dpbusd_epi32(sum[i][j], xi, w[j]);
                asm("" : "+v"(sum[i][j]));  // keeps GCC from copying sums to memory
            }
        }
    }
    const float* row_scale = tile.scale + u * part / p.weight.group * TILE_ROWS;
    DITQUANT_UNROLL for (int j = 0; j < VECTORS; j++) {
        const __m512 scale = _mm512_load_ps(row_scale + 16 * j);
        DITQUANT_UNROLL for (int i = 0; i < COUNT; i++) {
            float* to = y + i * TILE_ROWS + 16 * j;
            const __m512 both = _mm512_mul_ps(scale, _mm512_set1_ps(p.scale[at + i * groups]));
            _mm512_store_ps(to, _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum[i][j]), both, _mm512_load_ps(to)));
        }
    }
}

}  // namespace ditquant

#endif
