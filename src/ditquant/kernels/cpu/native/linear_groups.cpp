// y = sum over groups of token scale * row scale * ((codes - zero point) x weight), + bias, from INT8 tiles.
//
// Every group has INT32 sums of its own, which are scaled and added in float32. As in linear.cpp, the sums of the
// weight take out what is the same for all codes of a token's group.
#include <vector>

#if defined(__AVX512F__)
#include "multiply_groups_amx.h"
#else
#include "multiply_groups_avx2.h"
#endif
#include "tasks.h"

#if DITQUANT_X86

namespace ditquant {
namespace {

// Write `count` tokens of y [count, 64].
void write(const GroupProduct& p, const float* y, int64_t row, int64_t token, int64_t count) {
    for (int64_t lane = 0; lane < std::min(TILE_ROWS, p.weight.rows - row); lane += 16) {
        const int64_t at = row + lane;
        const Lanes there = first_floats(p.weight.rows - at);
        const Floats bias = p.bias ? load_some(p.bias + at, there) : zeros();
        for (int64_t i = 0; i < count; i++) {
            const Floats found = load(y + i * TILE_ROWS + lane);
            store(p.y, (token + i) * p.weight.rows + at, there, p.bias ? add(found, bias) : found, p.dtype);
        }
    }
}

template <int COUNT>
void multiply(const GroupProduct& p, const GroupTile& tile, int64_t row, int64_t token) {
    alignas(64) float y[COUNT * TILE_ROWS] = {};
    const auto x = codes_of<COUNT>(p, token);
    for (int64_t u = 0; u < p.weight.parts(); u++) add_part<COUNT>(p, tile, x, token, u, y);
    write(p, y, row, token, COUNT);
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
    const GroupProduct p{values, x_scale, x_zero, tokens, x_group, weight, bias, y, dtype};
    const Grid grid{ceil_div(rows, TILE_ROWS), 1, tokens, many_tokens()};
    const uint64_t product = Remembered::next_product();
    share(grid, threads, [&](int64_t i, int64_t, int64_t token, int64_t end) {
        static thread_local Scratch<int8_t> own_values;
        static thread_local Scratch<int32_t> own_sums;
        static thread_local Scratch<float> own_scale;
        static thread_local Remembered decoded;
        GroupTile tile;
        if (tiles) {
            tile = tile_at(weight, {tiles, sums, row_scale}, i);
        } else {
            tile = {own_values.get(weight.padded() * TILE_ROWS), own_sums.get(weight.parts() * TILE_ROWS),
                    own_scale.get(weight.groups() * TILE_ROWS)};
            if (!decoded.same(product, i, 1)) decode_groups(weight, i * TILE_ROWS, tile);
        }
        token = multiply_many(p, tile, i * TILE_ROWS, token, end, write);
        by_steps(token, end, [&](int64_t at, auto count) {
            multiply<decltype(count)::value>(p, tile, i * TILE_ROWS, at);
        });
    });
}

#endif
