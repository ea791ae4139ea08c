// AMX_TOKENS tokens with a tile of 64 rows, by tdpbusd: its tiles of weights are those of decode.h.
#pragma once

#include "amx.h"
#include "multiply_avx512.h"
#include "tasks.h"

#if DITQUANT_X86

namespace ditquant {

constexpr int64_t AMX_TOKENS = 32;

// Tokens that go together best.
inline int64_t many_tokens() { return uses_amx() ? AMX_TOKENS : TOKENS; }

inline void multiply_amx(const Product& p, const int8_t* tile, const int32_t* sums, int64_t row, int64_t token) {
    alignas(64) int32_t found[AMX_TOKENS * TILE_SIDE * 2];
    const int64_t channels = p.weight.padded(), stride = TILE_SIDE * 2 * sizeof(int32_t);
    const uint8_t* x = p.values + token * channels;
    for (int64_t first = 0; first < TILE_ROWS && row + first < p.weight.rows; first += 2 * TILE_SIDE) {
        const int8_t* w = tile + first * 4;
        clear_tile<0>(), clear_tile<1>(), clear_tile<2>(), clear_tile<3>();
        for (int64_t k = 0; k < channels; k += TILE_BYTES) {
            load_tile<4>(x + k, channels);
            load_tile<6>(w + k * TILE_ROWS, 4 * TILE_ROWS);
            load_tile<7>(w + k * TILE_ROWS + TILE_BYTES, 4 * TILE_ROWS);
            load_tile<5>(x + TILE_SIDE * channels + k, channels);
            multiply_bytes<0, 4, 6>();
            multiply_bytes<1, 4, 7>();
            multiply_bytes<2, 5, 6>();
            multiply_bytes<3, 5, 7>();
        }
        store_tile<0>(found, stride);
        store_tile<1>(found + TILE_SIDE, stride);
        store_tile<2>(found + 2 * TILE_SIDE * TILE_SIDE, stride);
        store_tile<3>(found + 2 * TILE_SIDE * TILE_SIDE + TILE_SIDE, stride);
        for (int64_t lane = 0; lane < 2 * TILE_SIDE && row + first + lane < p.weight.rows; lane += TILE_SIDE) {
            const Outputs outputs(p, row + first + lane, sums + first + lane);
            for (int64_t i = 0; i < AMX_TOKENS; i++) {
                outputs.put(token + i, _mm512_load_si512(found + i * 2 * TILE_SIDE + lane));
            }
        }
    }
}

// Multiply as many tokens as go together; returns the first that is left.
inline int64_t multiply_many(const Product& p, const int8_t* tile, const int32_t* sums, int64_t row, int64_t token,
                             int64_t end) {
    if (!uses_amx() || end - token < AMX_TOKENS) return token;
    const TileRegisters registers;
    for (; token + AMX_TOKENS <= end; token += AMX_TOKENS) multiply_amx(p, tile, sums, row, token);
    return token;
}

}  // namespace ditquant

#endif
