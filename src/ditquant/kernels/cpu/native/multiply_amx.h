// AMX_TOKENS tokens with 32 rows at a time, by tdpbusd: its tiles of weights are those of decode.h.
//
// Two things cost more than the products, so they are arranged for. Tokens come from far away: they are multiplied with
// as many tiles as stay near before the next ones are read. And making outputs of sums takes as long as their products:
// it is done between those of the next block, which wait for tile registers and leave the vector units idle.
#pragma once

#include "amx.h"
#include "multiply_avx512.h"
#include "parallel.h"
#include "tasks.h"

#if DITQUANT_X86

namespace ditquant {

constexpr int64_t AMX_TOKENS = PAIR, AMX_ROWS = PAIR;
constexpr int64_t NEAR = 640 << 10;  // bytes of decoded weights that one thread keeps in the second cache
constexpr int64_t AHEAD = 2;         // steps

// Tokens that go together best, and tiles of so many bytes.
inline int64_t many_tokens() { return uses_amx() ? AMX_TOKENS : TOKENS; }
inline int64_t many_tiles(int64_t bytes) { return uses_amx() ? std::max<int64_t>(NEAR / bytes, 1) : 1; }

// Outputs of AMX_TOKENS tokens and AMX_ROWS rows, as `Outputs` makes them, that are still to be made of sums `found`,
// which began with -128 times `sums`; none in the beginning.
class Pending {
    const Product* p_ = nullptr;
    const int32_t *sums_, *found_;
    int64_t at_, token_, next_ = AMX_TOKENS;
    Lanes there_[2];
    __m512 row_scale_[2], bias_[2];

  public:
    Pending() = default;
    Pending(const Product& p, const int32_t* sums, int64_t at, int64_t token, const int32_t* found)
        : p_(&p), sums_(sums), found_(found), at_(at), token_(token), next_(0) {
        for (int j = 0; j < 2; j++) {
            const int64_t lane = at + j * TILE_SIDE;
            there_[j] = first_floats(p.weight.rows - lane);
            row_scale_[j] = load_some(p.row_scale + lane, there_[j]);
            bias_[j] = p.bias ? load_some(p.bias + lane, there_[j]) : zeros();
        }
    }

    // Those of so many tokens more.
    void make(int64_t count) {
        for (const int64_t end = std::min(next_ + count, AMX_TOKENS); next_ < end; next_++) put(next_);
    }

  private:
    void put(int64_t i) const {
        const int64_t token = token_ + i, to = token * p_->weight.rows + at_;
        const int32_t zero = p_->zero[token];
        __m512 y[2];
        DITQUANT_UNROLL for (int j = 0; j < 2; j++) {
            __m512i sum = _mm512_load_si512(found_ + i * AMX_ROWS + j * TILE_SIDE);
            if (zero) {
                const __m512i row_sum = _mm512_loadu_si512(sums_ + j * TILE_SIDE);
                sum = _mm512_sub_epi32(sum, _mm512_mullo_epi32(row_sum, _mm512_set1_epi32(zero)));
            }
            y[j] = mul(mul(_mm512_cvtepi32_ps(sum), all(p_->scale[token])), row_scale_[j]);
            if (p_->bias) y[j] = add(y[j], bias_[j]);
            if (p_->gelu) y[j] = gelu(y[j]);
        }
        if (p_->dtype == BFLOAT16) {  // a whole line at once
            const __mmask32 there = there_[0] | static_cast<__mmask32>(there_[1]) << 16;
            const __m512i both = (__m512i)_mm512_cvtne2ps_pbh(y[1], y[0]);
            return _mm512_mask_storeu_epi16(static_cast<uint16_t*>(p_->y) + to, there, both);
        }
        for (int j = 0; j < 2; j++) store(p_->y, to + j * TILE_SIDE, there_[j], y[j], p_->dtype);
    }
};

// Sums [AMX_TOKENS, AMX_ROWS] over `steps` times TILE_BYTES channels, on top of `start` [AMX_ROWS], go to `found`; what
// is pending is made meanwhile.
inline void multiply_block(const uint8_t* x, int64_t channels, const int8_t* weights, int64_t steps,
                           const int32_t* start, int32_t* found, Pending& pending) {
    const int64_t each = ceil_div(AMX_TOKENS, steps);
    Sums<2>::load(start, 0);
    for (int64_t k = 0; k < steps; k++, x += TILE_BYTES, weights += TILE_BYTES * TILE_ROWS) {
        const int8_t* ahead = weights + AHEAD * TILE_BYTES * TILE_ROWS;
        DITQUANT_UNROLL for (int64_t i = 0; i < TILE_SIDE; i++) {
            _mm_prefetch(ahead + i * 4 * TILE_ROWS, _MM_HINT_T0);
            _mm_prefetch(ahead + i * 4 * TILE_ROWS + TILE_BYTES, _MM_HINT_T0);
        }
        Sums<2>::add<false>(x, channels, weights, 4 * TILE_ROWS);
        pending.make(each);
    }
    pending.make(AMX_TOKENS);
    Sums<2>::store(found, AMX_ROWS * sizeof(int32_t));
}

// Multiply as many tokens as go together with `count` tiles, the first of which begins at `row`; returns the first token
// that is left.
inline int64_t multiply_many(const Product& p, const int8_t* tiles, const int32_t* sums, int64_t row, int64_t count,
                             int64_t token, int64_t end) {
    if (!uses_amx() || end - token < AMX_TOKENS) return token;
    static thread_local Scratch<int32_t> scratch;
    int32_t* starts = scratch.get(count * TILE_ROWS);
    for (int64_t i = 0; i < count * TILE_ROWS; i++) starts[i] = -128 * sums[i];
    alignas(64) int32_t found[2][AMX_TOKENS * AMX_ROWS];
    int turn = 0;
    Pending pending;
    const TileRegisters registers;
    const int64_t channels = p.weight.padded(), rows = std::min(count * TILE_ROWS, p.weight.rows - row);
    for (; token + AMX_TOKENS <= end; token += AMX_TOKENS) {
        for (int64_t first = 0; first < rows; first += AMX_ROWS, turn ^= 1) {
            const int8_t* weights = tiles + first / TILE_ROWS * channels * TILE_ROWS + first % TILE_ROWS * 4;
            multiply_block(p.values + token * channels, channels, weights, channels / TILE_BYTES, starts + first,
                           found[turn], pending);
            pending = Pending(p, sums + first, row + first, token, found[turn]);
        }
    }
    pending.make(AMX_TOKENS);
    return token;
}

}  // namespace ditquant

#endif
