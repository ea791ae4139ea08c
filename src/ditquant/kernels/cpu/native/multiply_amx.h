// AMX_TOKENS tokens with 32 rows at a time, by tdpbusd: its tiles of weights are those of decode.h.
//
// Three things cost more than the products, so they are arranged for. Tokens come from far away: they are multiplied with
// as many tiles as stay near before the next ones are read. Weights, which pass once, would drive them out of the first
// cache: they are read past it. And making outputs of sums takes as long as their products: it is done between those of
// the next block, which wait for tile registers and leave the vector units idle.
#pragma once

#include "amx.h"
#include "multiply_avx512.h"
#include "parallel.h"
#include "tasks.h"

#if DITQUANT_X86

namespace ditquant {

constexpr int64_t AMX_TOKENS = PAIR, AMX_ROWS = PAIR;
constexpr int64_t NEAR = 900 << 10;  // bytes of decoded weights that one thread keeps in the second cache
constexpr int64_t STRIP = 1152;      // channels: those of AMX_TOKENS stay in the first cache

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

// Tokens of a block of channels that are multiplied with one pair of vectors of rows after the other.
struct Strip {
    const uint8_t* x;  // [AMX_TOKENS, stride]
    int64_t stride, steps;  // of TILE_BYTES channels
    const uint8_t* next;    // the strip behind it, which is fetched meanwhile
    int64_t fetched;        // tokens of it in one product
};

// Sums [AMX_TOKENS, AMX_ROWS] over a strip, on top of `start`, whose rows are `start_stride` bytes apart, go to `found`;
// what is pending is made meanwhile.
inline void multiply_strip(const Strip& strip, int64_t number, const int8_t* weights, const int32_t* start,
                           int64_t start_stride, int32_t* found, Pending& pending) {
    const int64_t each = ceil_div(AMX_TOKENS, strip.steps);
    const int64_t first = std::min(number * strip.fetched, AMX_TOKENS), end = std::min(first + strip.fetched, AMX_TOKENS);
    Sums<2>::load(start, start_stride);
    for (int64_t k = 0; k < strip.steps; k++, weights += TILE_BYTES * TILE_ROWS) {
        for (int64_t i = first; i < end; i++) _mm_prefetch(strip.next + i * strip.stride + k * TILE_BYTES, _MM_HINT_T1);
        Sums<2>::add<false>(strip.x + k * TILE_BYTES, strip.stride, weights, 4 * TILE_ROWS);
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
    const int64_t channels = p.weight.padded(), rows = std::min(count * TILE_ROWS, p.weight.rows - row);
    const int64_t blocks = ceil_div(rows, AMX_ROWS), strips = ceil_div(channels, STRIP);
    const int64_t wide = round_up(ceil_div(channels, strips), TILE_BYTES), size = AMX_TOKENS * AMX_ROWS;
    int32_t* starts = scratch.get(count * TILE_ROWS + (strips > 1 ? blocks : 1) * size);
    int32_t* found = starts + count * TILE_ROWS;
    for (int64_t i = 0; i < count * TILE_ROWS; i++) starts[i] = -128 * sums[i];
    Pending pending;
    const TileRegisters registers;
    for (; token + AMX_TOKENS <= end; token += AMX_TOKENS) {
        const uint8_t *x = p.values + token * channels, *last = p.values + (end - AMX_TOKENS) * channels;
        for (int64_t at = 0; at < channels; at += wide) {
            const bool ends = at + wide >= channels;
            const uint8_t* next = ends ? std::min(x + AMX_TOKENS * channels, last) : x + at + wide;
            const Strip strip{x + at, channels, (ends ? channels - at : wide) / TILE_BYTES, next, ceil_div(AMX_TOKENS, blocks)};
            for (int64_t block = 0; block < blocks; block++) {
                const int64_t first = block * AMX_ROWS;
                const int8_t* weights = tiles + first / TILE_ROWS * channels * TILE_ROWS + at * TILE_ROWS + first % TILE_ROWS * 4;
                int32_t* to = found + (strips > 1 ? block * size : 0);
                multiply_strip(strip, block, weights, at ? to : starts + first, at ? AMX_ROWS * 4 : 0, to, pending);
                if (ends) pending = Pending(p, sums + first, row + first, token, to);
            }
        }
    }
    pending.make(AMX_TOKENS);
    return token;
}

}  // namespace ditquant

#endif
