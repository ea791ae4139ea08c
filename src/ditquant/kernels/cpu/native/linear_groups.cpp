// y = sum over groups of token scale * row scale * ((codes - zero point) x weight), + bias, by VNNI.
//
// Every group has INT32 sums of its own, which are scaled and added in float32. As in linear.cpp, the sums of the
// weight take out what is the same for all codes of a token's group.
#include <vector>

#include "groups.h"
#include "store.h"
#include "tasks.h"

#if DITQUANT_X86

namespace ditquant {
namespace {

constexpr int VECTORS = 4;  // of 16 rows: one tile

struct Product {
    const uint8_t* values;  // [tokens, padded channels]
    const float* scale;     // [tokens, channels / group]
    const int32_t* zero;    // the same
    int64_t tokens, group;  // channels that share a scale in a token
    Groups weight;
    const float* bias;  // [rows] or null
    void* y;            // [tokens, rows]
    int dtype;

    int64_t groups() const { return weight.channels / group; }
};

// Add what part u brings to y [COUNT, 64]. A function of its own: inlined into the loop over parts, its sums would not
// stay in registers.
template <int COUNT>
[[gnu::noinline]] void add_part(const Product& p, const GroupTile& tile, int64_t token, int64_t u, float* y) {
    const int64_t channels = p.weight.padded(), part = p.weight.part, groups = p.groups();
    const int64_t at = token * groups + u * part / p.group;
    __m512i sum[COUNT][VECTORS];
    DITQUANT_UNROLL for (int j = 0; j < VECTORS; j++) {
        const __m512i row_sum = _mm512_load_si512(tile.sums + u * TILE_ROWS + 16 * j);
        DITQUANT_UNROLL for (int i = 0; i < COUNT; i++) {
            sum[i][j] = _mm512_mullo_epi32(row_sum, _mm512_set1_epi32(-128 - p.zero[at + i * groups]));
        }
    }
    const uint8_t* x = p.values + token * channels;
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

template <int COUNT>
void multiply(const Product& p, const GroupTile& tile, int64_t row, int64_t token) {
    alignas(64) float y[COUNT * TILE_ROWS] = {};
    for (int64_t u = 0; u < p.weight.parts(); u++) add_part<COUNT>(p, tile, token, u, y);
    for (int64_t lane = 0; lane < std::min(TILE_ROWS, p.weight.rows - row); lane += 16) {
        const int64_t at = row + lane, rows = std::min<int64_t>(16, p.weight.rows - at);
        const __mmask16 mask = static_cast<__mmask16>((1u << rows) - 1);
        const __m512 bias = p.bias ? _mm512_maskz_loadu_ps(mask, p.bias + at) : _mm512_setzero_ps();
        for (int i = 0; i < COUNT; i++) {
            const __m512 found = _mm512_load_ps(y + i * TILE_ROWS + lane);
            store(p.y, (token + i) * p.weight.rows + at, mask, p.bias ? _mm512_add_ps(found, bias) : found, p.dtype);
        }
    }
}

std::vector<uint8_t> places(int64_t channels, int64_t group) {
    std::vector<uint8_t> found(round_up(channels, LANE));
    for (int64_t k = 0; k < channels; k++) found[k] = static_cast<uint8_t>(k / group - k / LANE * LANE / group);
    return found;
}

// Where tile i begins in decoded tensors, which hold one tile after the other.
GroupTile tile_at(const Groups& w, const GroupTile& tiles, int64_t i) {
    return {tiles.values + i * w.padded() * TILE_ROWS, tiles.sums + i * w.parts() * TILE_ROWS,
            tiles.scale + i * w.groups() * TILE_ROWS};
}

}  // namespace
}  // namespace ditquant

using namespace ditquant;

// Decode a whole weight: `tiles` [ceil(rows / 64), padded channels * 64], `sums` [ceil(rows / 64), parts * 64] and
// `row_scale` [ceil(rows / 64), groups * 64].
DITQUANT_API void ditquant_decode_groups(const uint8_t* codes, const float* scale, const uint8_t* zero, int bits,
                                         int64_t rows, int64_t channels, int64_t group, int64_t part, int8_t* tiles,
                                         int32_t* sums, float* row_scale, int threads) {
    const auto place = places(channels, group);
    const Groups weight{codes, scale, zero, place.data(), bits, rows, channels, group, part};
    parallel(ceil_div(rows, TILE_ROWS), threads, [&](int64_t i) {
        decode_groups(weight, i * TILE_ROWS, tile_at(weight, {tiles, sums, row_scale}, i));
    });
}

// `tiles`, `sums` and `row_scale` come from ditquant_decode_groups; without them every tile is decoded where it is used.
DITQUANT_API void ditquant_linear_groups(const uint8_t* values, const float* x_scale, const int32_t* x_zero,
                                         int64_t tokens, int64_t x_group, const uint8_t* codes, const float* scale,
                                         const uint8_t* zero, int bits, int64_t rows, int64_t channels, int64_t group,
                                         int64_t part, int8_t* tiles, int32_t* sums, float* row_scale,
                                         const float* bias, void* y, int dtype, int threads) {
    const auto place = places(channels, group);
    const Groups weight{codes, scale, zero, place.data(), bits, rows, channels, group, part};
    const Product p{values, x_scale, x_zero, tokens, x_group, weight, bias, y, dtype};
    share(ceil_div(rows, TILE_ROWS), tokens, threads, [&](int64_t i, int64_t token, int64_t end) {
        static thread_local Scratch<int8_t> own_values;
        static thread_local Scratch<int32_t> own_sums;
        static thread_local Scratch<float> own_scale;
        GroupTile tile;
        if (tiles) {
            tile = tile_at(weight, {tiles, sums, row_scale}, i);
        } else {
            tile = {own_values.get(weight.padded() * TILE_ROWS), own_sums.get(weight.parts() * TILE_ROWS),
                    own_scale.get(weight.groups() * TILE_ROWS)};
            decode_groups(weight, i * TILE_ROWS, tile);
        }
        by_steps(token, end, [&](int64_t at, auto count) {
            multiply<decltype(count)::value>(p, tile, i * TILE_ROWS, at);
        });
    });
}

#endif
