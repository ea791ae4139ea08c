// y = token scale * row scale * ((codes - zero point) x weight) + bias, from INT8 tiles, by VNNI.
//
// Activations are unsigned, code + 128, as vpdpbusd wants its first factor. What is not part of the code is the same
// for all channels of a token, so the sums of the weight's rows take it out again: (128 + zero point) * sum.
#include "decode.h"
#include "store.h"
#include "tasks.h"

#if DITQUANT_X86

namespace ditquant {
namespace {

constexpr int VECTORS = 4;  // of 16 rows: one tile

struct Product {
    const uint8_t* values;  // [tokens, padded channels]
    const float* scale;     // [tokens]
    const int32_t* zero;    // [tokens]
    int64_t tokens;
    Packed weight;
    const int8_t* tiles;    // the decoded weight, or null
    const int32_t* sums;    // of its rows, or null
    const float* row_scale;  // [rows]
    const float* bias;      // [rows] or null
    void* y;                // [tokens, rows]
    int dtype;
};

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

}  // namespace
}  // namespace ditquant

using namespace ditquant;

// `tiles` and `sums` come from ditquant_decode; without them every tile is decoded where it is used. `channels` is at
// most 65536, so that sums stay in 32 bits.
DITQUANT_API void ditquant_linear(const uint8_t* values, const float* scale, const int32_t* zero, int64_t tokens,
                                  const uint8_t* codes, const int8_t* table, int64_t table_stride, int bits,
                                  int64_t rows, int64_t channels, const int8_t* tiles, const int32_t* sums,
                                  const float* row_scale, const float* bias, void* y, int dtype, int threads) {
    const Product p{values, scale, zero, tokens, {codes, table, table_stride, bits, rows, channels},
                    tiles, sums, row_scale, bias, y, dtype};
    const int64_t tile_size = p.weight.padded() * TILE_ROWS;
    share(ceil_div(rows, TILE_ROWS), tokens, threads, [&](int64_t i, int64_t token, int64_t end) {
        static thread_local Scratch<int8_t> scratch;
        alignas(64) int32_t own[TILE_ROWS];
        const int8_t* tile = tiles ? tiles + i * tile_size : scratch.get(tile_size);
        if (!tiles) decode_tile(p.weight, i * TILE_ROWS, const_cast<int8_t*>(tile), own);
        const int32_t* tile_sums = tiles ? sums + i * TILE_ROWS : own;
        by_steps(token, end, [&](int64_t at, auto count) {
            multiply<decltype(count)::value>(p, tile, tile_sums, i * TILE_ROWS, at);
        });
    });
}

#endif
