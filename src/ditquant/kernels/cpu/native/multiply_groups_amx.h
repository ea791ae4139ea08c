// AMX_TOKENS tokens with a tile of 64 rows, group by group, by tdpbusd.
#pragma once

#include "multiply_amx.h"
#include "multiply_groups_avx512.h"

#if DITQUANT_X86

namespace ditquant {

// Add what part u brings to 32 rows from `first` on of y [AMX_TOKENS, 64].
inline void add_part_amx(const GroupProduct& p, const GroupTile& tile, int64_t first, int64_t token, int64_t u, float* y) {
    constexpr int64_t ROWS = 2 * TILE_SIDE;
    alignas(64) int32_t found[AMX_TOKENS * ROWS], offset[ROWS];
    const int64_t channels = p.weight.padded(), part = p.weight.part, groups = p.groups();
    const int64_t at = token * groups + u * part / p.group;
    const int32_t* row_sums = tile.sums + u * TILE_ROWS + first;
    const float* row_scale = tile.scale + u * part / p.weight.group * TILE_ROWS + first;
    for (int64_t i = 0; i < ROWS; i++) offset[i] = -128 * row_sums[i];
    Sums<2>::load(offset, 0);  // the same for every token
    for (int64_t k = u * part; k < (u + 1) * part; k += TILE_BYTES) {
        const int8_t* weights = tile.values + k * TILE_ROWS + first * 4;
        Sums<2>::add<false>(p.values + token * channels + k, channels, weights, 4 * TILE_ROWS);
    }
    Sums<2>::store(found, ROWS * sizeof(int32_t));
    for (int64_t lane = 0; lane < ROWS; lane += TILE_SIDE) {
        const __m512 scale = _mm512_load_ps(row_scale + lane);
        const __m512i row_sum = _mm512_load_si512(row_sums + lane);
        for (int64_t i = 0; i < AMX_TOKENS; i++) {
            __m512i sum = _mm512_load_si512(found + i * ROWS + lane);
            const int32_t zero = p.zero[at + i * groups];
            if (zero) sum = _mm512_sub_epi32(sum, _mm512_mullo_epi32(row_sum, _mm512_set1_epi32(zero)));
            float* to = y + i * TILE_ROWS + first + lane;
            const __m512 both = _mm512_mul_ps(scale, _mm512_set1_ps(p.scale[at + i * groups]));
            _mm512_store_ps(to, _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum), both, _mm512_load_ps(to)));
        }
    }
}

// Multiply as many tokens as go together, write(p, y [count, 64], row, token, count) each; returns the first that is
// left: all of them where a part is not of whole rows of registers.
template <class Write>
int64_t multiply_many(const GroupProduct& p, const GroupTile& tile, int64_t row, int64_t token, int64_t end,
                      const Write& write) {
    if (!uses_amx() || p.weight.part % TILE_BYTES || end - token < AMX_TOKENS) return token;
    const TileRegisters registers;
    for (; token + AMX_TOKENS <= end; token += AMX_TOKENS) {
        alignas(64) float y[AMX_TOKENS * TILE_ROWS] = {};
        for (int64_t first = 0; first < TILE_ROWS && row + first < p.weight.rows; first += 2 * TILE_SIDE) {
            for (int64_t u = 0; u < p.weight.parts(); u++) add_part_amx(p, tile, first, token, u, y);
        }
        write(p, y, row, token, AMX_TOKENS);
    }
    return token;
}

}  // namespace ditquant

#endif
