// AMX_TOKENS tokens with a tile of 64 rows, by tdpbusd: its tiles of weights are those of decode.h.
#pragma once

#include "amx.h"
#include "multiply_avx512.h"
#include "tasks.h"

#if DITQUANT_X86

namespace ditquant {

constexpr int64_t AMX_TOKENS = PAIR;

// Tokens that go together best.
inline int64_t many_tokens() { return uses_amx() ? AMX_TOKENS : TOKENS; }

inline void multiply_amx(const Product& p, const int8_t* tile, const int32_t* sums, int64_t row, int64_t token) {
    constexpr int64_t ROWS = 2 * TILE_SIDE;
    alignas(64) int32_t found[AMX_TOKENS * ROWS];
    const int64_t channels = p.weight.padded();
    for (int64_t first = 0; first < TILE_ROWS && row + first < p.weight.rows; first += ROWS) {
        Sums<2>::clear();
        for (int64_t k = 0; k < channels; k += TILE_BYTES) {
            const int8_t* weights = tile + k * TILE_ROWS + first * 4;
            Sums<2>::add<false>(p.values + token * channels + k, channels, weights, 4 * TILE_ROWS);
        }
        Sums<2>::store(found, ROWS * sizeof(int32_t));
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
