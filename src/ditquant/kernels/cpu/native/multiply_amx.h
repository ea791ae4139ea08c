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

// Registers 0 .. 3 += codes [32, 64], a token every `stride` bytes, x 64 channels of 32 rows of a tile.
inline void add_pairs(const uint8_t* x, int64_t stride, const int8_t* w) {
    load_tile<4>(x, stride);
    load_tile<6>(w, 4 * TILE_ROWS);
    load_tile<7>(w + TILE_BYTES, 4 * TILE_ROWS);
    load_tile<5>(x + TILE_SIDE * stride, stride);
    multiply_bytes<0, 4, 6>();
    multiply_bytes<1, 4, 7>();
    multiply_bytes<2, 5, 6>();
    multiply_bytes<3, 5, 7>();
}

// Write registers 0 .. 3 as [32 tokens, 32 rows].
inline void store_pairs(int32_t* to) {
    constexpr int64_t STRIDE = 2 * TILE_SIDE * sizeof(int32_t);
    store_tile<0>(to, STRIDE), store_tile<1>(to + TILE_SIDE, STRIDE);
    to += 2 * TILE_SIDE * TILE_SIDE;
    store_tile<2>(to, STRIDE), store_tile<3>(to + TILE_SIDE, STRIDE);
}

inline void multiply_amx(const Product& p, const int8_t* tile, const int32_t* sums, int64_t row, int64_t token) {
    constexpr int64_t ROWS = 2 * TILE_SIDE;
    alignas(64) int32_t found[AMX_TOKENS * ROWS];
    const int64_t channels = p.weight.padded();
    for (int64_t first = 0; first < TILE_ROWS && row + first < p.weight.rows; first += ROWS) {
        clear_tile<0>(), clear_tile<1>(), clear_tile<2>(), clear_tile<3>();
        for (int64_t k = 0; k < channels; k += TILE_BYTES) {
            add_pairs(p.values + token * channels + k, channels, tile + k * TILE_ROWS + first * 4);
        }
        store_pairs(found);
        for (int64_t lane = 0; lane < ROWS && row + first + lane < p.weight.rows; lane += TILE_SIDE) {
            const Outputs outputs(p, row + first + lane, sums + first + lane);
            for (int64_t i = 0; i < AMX_TOKENS; i++) outputs.put(token + i, _mm512_load_si512(found + i * ROWS + lane));
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
