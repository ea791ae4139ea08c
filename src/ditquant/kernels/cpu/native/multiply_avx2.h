// COUNT tokens with a tile of 64 rows, 8 rows at a time.
#pragma once

#include <algorithm>

#include "avx2/panel.h"
#include "gelu.h"
#include "parallel.h"
#include "product.h"
#include "tasks.h"

namespace ditquant {

// Widen codes of 8 bits to 16.
inline const int16_t* widened(const uint8_t* codes, int64_t count) {
    static thread_local Scratch<int16_t> scratch;
    int16_t* wide = scratch.get(count);
    for (int64_t k = 0; k < count; k += 16) {
        const __m128i some = _mm_loadu_si128(reinterpret_cast<const __m128i*>(codes + k));
        _mm256_store_si256(reinterpret_cast<__m256i*>(wide + k), _mm256_cvtepu8_epi16(some));
    }
    return wide;
}

// Sums of COUNT tokens with the channels of `steps` vectors of every panel: [COUNT, 64]. `codes` may be those of the
// token itself, or widened.
template <int COUNT, class Code>
void multiply_tile(const Code* x, int64_t channels, const int8_t* tile, int64_t steps, int64_t rows, int32_t* sums) {
    for (int64_t lane = 0; lane < std::min(rows, TILE_ROWS); lane += 8) {
        multiply_panel<COUNT>(x, channels, tile + lane * channels, steps, sums + lane);
    }
}

inline bool is_narrow(const Packed& weight) {
    int largest = 0;
    const int64_t size = (weight.table_stride ? weight.rows : 1) << weight.bits;
    for (int64_t i = 0; i < size; i++) largest = std::max(largest, std::abs(static_cast<int>(weight.table[i])));
    return largest <= NARROW;
}

template <int COUNT>
void multiply(const Product& p, const int8_t* tile, const int32_t* row_sums, int64_t row, int64_t token) {
    const int64_t channels = p.weight.padded(), steps = ceil_div(p.weight.channels, 4), left = p.weight.rows - row;
    const uint8_t* x = p.values + token * channels;
    alignas(64) int32_t sums[COUNT * TILE_ROWS];
    if (p.narrow) multiply_tile<COUNT>(x, channels, tile, steps, left, sums);
    else multiply_tile<COUNT>(widened(x, COUNT * channels), channels, tile, steps, left, sums);
    for (int64_t lane = 0; lane < std::min(left, TILE_ROWS); lane += 16) {
        const int64_t at = row + lane;
        const Lanes there = first_floats(p.weight.rows - at);
        const Floats row_scale = load_some(p.row_scale + at, there);
        const Floats bias = p.bias ? load_some(p.bias + at, there) : zeros();
        for (int i = 0; i < COUNT; i++) {
            const Ints offset = mul(load_ints(row_sums + lane), all(-128 - p.zero[token + i]));
            Floats y = to_floats(add(load_ints(sums + i * TILE_ROWS + lane), offset));
            y = mul(mul(y, all(p.scale[token + i])), row_scale);
            if (p.bias) y = add(y, bias);
            store(p.y, (token + i) * p.weight.rows + at, there, p.gelu ? gelu(y) : y, p.dtype);
        }
    }
}

// Tokens and tiles that go together best, and nothing here that multiplies more at a time.
inline int64_t many_tokens() { return TOKENS; }
inline int64_t many_tiles(int64_t) { return 1; }
inline int64_t multiply_many(const Product&, const int8_t*, const int32_t*, int64_t, int64_t, int64_t token, int64_t) {
    return token;
}

}  // namespace ditquant
