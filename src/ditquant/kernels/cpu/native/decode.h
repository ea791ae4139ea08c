// Packed codes of 2 to 8 bits -> INT8 tiles of 64 rows, laid out for the product.
//
// For AVX512 a tile holds, for every 4 channels in turn, 4 vectors of 16 rows x 4 channels; for AVX2 it holds, for every
// 8 rows in turn, vectors of 8 rows x 4 channels. Rows and channels beyond the weight are zero.
#pragma once

#include <type_traits>

#include "simd.h"

namespace ditquant {

constexpr int64_t TILE_ROWS = 64;

// Call f with a width of 2 to 8 bits as a constant.
template <class Function>
void with_bits(int bits, const Function& f) {
    switch (bits) {
        case 2: return f(std::integral_constant<int, 2>());
        case 3: return f(std::integral_constant<int, 3>());
        case 4: return f(std::integral_constant<int, 4>());
        case 5: return f(std::integral_constant<int, 5>());
        case 6: return f(std::integral_constant<int, 6>());
        case 7: return f(std::integral_constant<int, 7>());
        default: return f(std::integral_constant<int, 8>());
    }
}

// A packed weight [rows, channels]: value i of a row takes the bits [i*bits, (i+1)*bits), and a row's table of 2^bits
// INT8 values says what its codes mean; `table_stride` 0 is one table for all rows.
struct Packed {
    const uint8_t* codes;
    const int8_t* table;
    int64_t table_stride;
    int bits;
    int64_t rows, channels;

    int64_t row_bytes() const { return (channels * bits + 7) / 8; }
    int64_t padded() const { return round_up(channels, LANE); }
};

// Decode the rows from `first` on into `tile` [padded() * 64], and the sum of each of them into `sums` [64].
void decode_tile(const Packed& weight, int64_t first, int8_t* tile, int32_t* sums);

}  // namespace ditquant
