// What one group of channels brings to a product, 8 rows at a time.
#pragma once

#include "multiply_avx2.h"

namespace ditquant {

// Codes of a token as add_part takes them: as they are, and widened where the weight is not narrow.
struct GroupCodes {
    const uint8_t* codes;
    const int16_t* wide;  // or null
};

inline bool is_narrow(const Groups& weight) {
    return (weight.zero ? (1 << weight.bits) - 1 : 1 << (weight.bits - 1)) <= NARROW;
}

template <int COUNT>
inline GroupCodes codes_of(const GroupProduct& p, int64_t token) {
    const int64_t channels = p.weight.padded();
    const uint8_t* codes = p.values + token * channels;
    return {codes, is_narrow(p.weight) ? nullptr : widened(codes, COUNT * channels)};
}

// Add what part u brings to y [COUNT, 64].
template <int COUNT>
void add_part(const GroupProduct& p, const GroupTile& tile, const GroupCodes& x, int64_t token, int64_t u, float* y) {
    const int64_t channels = p.weight.padded(), part = p.weight.part, k = u * part, groups = p.groups();
    const int64_t at = token * groups + k / p.group;
    alignas(64) int32_t sums[COUNT * TILE_ROWS];
    if (x.wide) multiply_tile<COUNT>(x.wide + k, channels, tile.values + 8 * k, part / 4, TILE_ROWS, sums);
    else multiply_tile<COUNT>(x.codes + k, channels, tile.values + 8 * k, part / 4, TILE_ROWS, sums);
    const float* row_scale = tile.scale + k / p.weight.group * TILE_ROWS;
    for (int64_t lane = 0; lane < TILE_ROWS; lane += 16) {
        const Floats scale = load(row_scale + lane);
        for (int i = 0; i < COUNT; i++) {
            float* to = y + i * TILE_ROWS + lane;
            const Ints offset = mul(load_ints(tile.sums + u * TILE_ROWS + lane), all(-128 - p.zero[at + i * groups]));
            const Floats sum = to_floats(add(load_ints(sums + i * TILE_ROWS + lane), offset));
            save(to, fmadd(sum, mul(scale, all(p.scale[at + i * groups])), load(to)));
        }
    }
}

// Nothing here multiplies more tokens at a time.
template <class Write>
int64_t multiply_many(const GroupProduct&, const GroupTile&, int64_t, int64_t token, int64_t, const Write&) {
    return token;
}

}  // namespace ditquant
