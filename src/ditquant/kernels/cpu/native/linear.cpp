// y = token scale * row scale * ((codes - zero point) x weight) + bias, from INT8 tiles.
//
// Codes of tokens are unsigned, code + 128, as vpdpbusd wants its first factor. What is not part of the code is the same
// for all channels of a token, so the sums of the weight's rows take it out again: (128 + zero point) * sum.
#if defined(__AVX512F__)
#include "multiply_amx.h"
#else
#include "multiply_avx2.h"
#endif
#include "tasks.h"

#if DITQUANT_X86

using namespace ditquant;

// Decode a whole weight into `tiles` [ceil(rows / 64), padded channels * 64] and `sums` [ceil(rows / 64) * 64].
DITQUANT_API void ditquant_decode(const uint8_t* codes, const int8_t* table, int64_t table_stride, int bits,
                                  int64_t rows, int64_t channels, int8_t* tiles, int32_t* sums, int threads) {
    const Packed weight{codes, table, table_stride, bits, rows, channels};
    parallel(ceil_div(rows, TILE_ROWS), threads, [&](int64_t i) {
        decode_tile(weight, i * TILE_ROWS, tiles + i * weight.padded() * TILE_ROWS, sums + i * TILE_ROWS);
    });
}

// `tiles` and `sums` come from ditquant_decode; without them every tile is decoded where it is used. `channels` is at
// most 65536, so that sums stay in 32 bits.
DITQUANT_API void ditquant_linear(const uint8_t* values, const float* scale, const int32_t* zero, int64_t tokens,
                                  const uint8_t* codes, const int8_t* table, int64_t table_stride, int bits,
                                  int64_t rows, int64_t channels, const int8_t* tiles, const int32_t* sums,
                                  const float* row_scale, const float* bias, void* y, int dtype, int gelu,
                                  int threads) {
    const Packed weight{codes, table, table_stride, bits, rows, channels};
    const Product p{values, scale, zero, tokens, weight, tiles, sums, row_scale, bias, y, dtype, gelu != 0,
                    is_narrow(weight)};
    const int64_t tile_size = p.weight.padded() * TILE_ROWS;
    const Grid grid{ceil_div(rows, TILE_ROWS), many_tiles(tile_size), tokens, many_tokens()};
    const uint64_t product = Remembered::next_product();
    share(grid, threads, [&](int64_t tile, int64_t count, int64_t token, int64_t end) {
        static thread_local Scratch<int8_t> own;
        static thread_local Scratch<int32_t> own_sums;
        static thread_local Remembered decoded;
        const int64_t row = tile * TILE_ROWS;
        const int8_t* here = tiles + tile * tile_size;
        const int32_t* here_sums = sums + row;
        if (!tiles) {
            int8_t* made = own.get(count * tile_size);
            int32_t* made_sums = own_sums.get(count * TILE_ROWS);
            const bool there = decoded.same(product, tile, count);
            for (int64_t i = 0; i < count && !there; i++) {
                decode_tile(p.weight, row + i * TILE_ROWS, made + i * tile_size, made_sums + i * TILE_ROWS);
            }
            here = made, here_sums = made_sums;
        }
        token = multiply_many(p, here, here_sums, row, count, token, end);
        for (int64_t i = 0; i < count; i++) {
            by_steps(token, end, [&](int64_t at, auto step) {
                multiply<decltype(step)::value>(p, here + i * tile_size, here_sums + i * TILE_ROWS, row + i * TILE_ROWS, at);
            });
        }
    });
}

#endif
