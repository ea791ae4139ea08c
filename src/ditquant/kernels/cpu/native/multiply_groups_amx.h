// AMX_TOKENS tokens with 32 rows at a time, group by group, by tdpbusd; arranged as in multiply_amx.h.
#pragma once

#include "multiply_amx.h"
#include "multiply_groups_avx512.h"

#if DITQUANT_X86

namespace ditquant {

// What the sums of part u, which began with -128 times `sums`, add to y [AMX_TOKENS, 64].
class PartOutputs {
    const GroupProduct* p_ = nullptr;
    const int32_t *sums_, *found_;
    int64_t at_;
    float* y_;
    __m512 scale_[2];

  public:
    PartOutputs() = default;
    PartOutputs(const GroupProduct& p, const GroupTile& tile, int64_t first, int64_t token, int64_t u,
                const int32_t* found, float* y)
        : p_(&p),
          sums_(tile.sums + u * TILE_ROWS + first),
          found_(found),
          at_(token * p.groups() + u * p.weight.part / p.group),
          y_(y + first) {
        const float* scale = tile.scale + u * p.weight.part / p.weight.group * TILE_ROWS + first;
        for (int j = 0; j < 2; j++) scale_[j] = _mm512_load_ps(scale + j * TILE_SIDE);
    }

    void make(int64_t i) const {
        const int64_t at = at_ + i * p_->groups();
        const int32_t zero = p_->zero[at];
        const __m512 token_scale = _mm512_set1_ps(p_->scale[at]);
        DITQUANT_UNROLL for (int j = 0; j < 2; j++) {
            __m512i sum = _mm512_load_si512(found_ + i * AMX_ROWS + j * TILE_SIDE);
            if (zero) {
                const __m512i row_sum = _mm512_load_si512(sums_ + j * TILE_SIDE);
                sum = _mm512_sub_epi32(sum, _mm512_mullo_epi32(row_sum, _mm512_set1_epi32(zero)));
            }
            float* to = y_ + i * TILE_ROWS + j * TILE_SIDE;
            const __m512 both = _mm512_mul_ps(scale_[j], token_scale);
            _mm512_store_ps(to, _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum), both, _mm512_load_ps(to)));
        }
    }
};

// Multiply as many tokens as go together with `count` tiles, the first of which begins at `row`; write(p, y [tokens, 64],
// row, token, tokens) each. Returns the first token that is left: all of them where a part is not of whole rows of
// registers.
template <class Write>
int64_t multiply_many(const GroupProduct& p, const GroupTile& tiles, int64_t row, int64_t count, int64_t token,
                      int64_t end, const Write& write) {
    if (!uses_amx() || p.weight.part % TILE_BYTES || end - token < AMX_TOKENS) return token;
    alignas(64) int32_t found[2][AMX_TOKENS * AMX_ROWS];
    int turn = 0;
    const TileRegisters registers;
    const int64_t channels = p.weight.padded(), part = p.weight.part;
    for (; token + AMX_TOKENS <= end; token += AMX_TOKENS) {
        for (int64_t i = 0; i < count; i++) {
            const GroupTile tile = tiles.behind(p.weight, i);
            const int64_t at = row + i * TILE_ROWS;
            alignas(64) float y[AMX_TOKENS * TILE_ROWS] = {};
            Pending<PartOutputs> pending;
            for (int64_t first = 0; first < TILE_ROWS && at + first < p.weight.rows; first += AMX_ROWS) {
                for (int64_t u = 0; u < p.weight.parts(); u++, turn ^= 1) {
                    alignas(64) int32_t start[AMX_ROWS];
                    for (int64_t j = 0; j < AMX_ROWS; j++) start[j] = -128 * tile.sums[u * TILE_ROWS + first + j];
                    multiply_block(p.values + token * channels + u * part, channels,
                                   tile.values + u * part * TILE_ROWS + first * 4, part / TILE_BYTES, start,
                                   found[turn], pending);
                    pending = Pending(PartOutputs(p, tile, first, token, u, found[turn], y));
                }
            }
            pending.make(AMX_TOKENS);
            write(p, y, at, token, AMX_TOKENS);
        }
    }
    return token;
}

}  // namespace ditquant

#endif
