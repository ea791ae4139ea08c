// Packed codes with a scale (and a zero point) for every group of channels -> INT8 tiles of 64 rows.
#pragma once

#include "decode.h"

namespace ditquant {

// w = scale * (code - zero), of 2 to 8 bits, with zero 2^(bits-1) where there are no zero points. Group sizes are
// multiples of 4, the channels of one vpdpbusd; `part` channels share a scale in the weight and in the tokens.
struct Groups {
    const uint8_t* codes;  // as in Packed
    const float* scale;    // [rows, groups()]
    const uint8_t* zero;   // [rows, groups()] or null
    const uint8_t* place;  // [padded()]: a channel's group, counted from that of the first of its 64
    int bits;
    int64_t rows, channels, group, part;

    int64_t groups() const { return channels / group; }
    int64_t parts() const { return channels / part; }
    int64_t row_bytes() const { return (channels * bits + 7) / 8; }
    int64_t padded() const { return round_up(channels, LANE); }
};

// A decoded tile: code - zero as in decode.h, the sums of every part, and the scales of every group.
struct GroupTile {
    int8_t* values;  // [padded() * 64]
    int32_t* sums;   // [parts() * 64]
    float* scale;    // [groups() * 64]
};

// Lay the scales of 64 rows side by side, zero beyond the weight.
inline void gather_scales(const Groups& w, int64_t first, float* scale) {
    for (int64_t group = 0; group < w.groups(); group++) {
        for (int64_t i = 0; i < TILE_ROWS; i++) {
            *scale++ = first + i < w.rows ? w.scale[(first + i) * w.groups() + group] : 0;
        }
    }
}

void decode_groups(const Groups& weight, int64_t first, const GroupTile& tile);

}  // namespace ditquant
