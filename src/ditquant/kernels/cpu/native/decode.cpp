#include "decode.h"

#include <algorithm>

#include "spread.h"
#include "transpose.h"

#if DITQUANT_X86

namespace ditquant {
namespace {

// What to load of a table of 2^bits bytes, and how to look 64 codes up in it.
template <int BITS>
struct Table {
    static constexpr int VECTORS = BITS <= 6 ? 1 : 1 << (BITS - 6);
    __m512i part[VECTORS];

    explicit Table(const int8_t* values) {
        constexpr __mmask64 mask = BITS >= 6 ? ~0ull : (1ull << (1 << (BITS >= 6 ? 0 : BITS))) - 1;
        DITQUANT_UNROLL for (int i = 0; i < VECTORS; i++) part[i] = _mm512_maskz_loadu_epi8(mask, values + 64 * i);
    }

    __m512i look_up(__m512i codes) const {
        if constexpr (BITS <= 6) {
            return _mm512_permutexvar_epi8(codes, part[0]);
        } else if constexpr (BITS == 7) {
            return _mm512_permutex2var_epi8(part[0], codes, part[1]);
        } else {
            __m512i low = _mm512_permutex2var_epi8(part[0], codes, part[1]);
            __m512i high = _mm512_permutex2var_epi8(part[2], codes, part[3]);
            return _mm512_mask_blend_epi8(_mm512_movepi8_mask(codes), low, high);
        }
    }
};

template <int BITS>
void decode_bits(const Packed& weight, int64_t first, int8_t* tile, int32_t* sums) {
    const Spread<BITS> spread;
    const int64_t bytes = weight.row_bytes();
    for (int64_t part = 0; part < TILE_ROWS / 16; part++) {
        const int64_t row = first + 16 * part, rows = std::min<int64_t>(16, weight.rows - row);
        __m512i sum = _mm512_setzero_si512();
        for (int64_t k = 0; k < weight.channels; k += 64) {
            const int64_t at = k / 8 * BITS;
            const __mmask64 there = first_bytes(std::min<int64_t>(bytes - at, 8 * BITS));
            const __mmask64 channels = first_bytes(weight.channels - k);
            __m512i v[16];
            DITQUANT_UNROLL for (int i = 0; i < 16; i++) {
                v[i] = _mm512_setzero_si512();
                if (i < rows) {
                    const Table<BITS> table(weight.table + (row + i) * weight.table_stride);
                    v[i] = table.look_up(spread(weight.codes + (row + i) * bytes + at, there));
                    v[i] = _mm512_maskz_mov_epi8(channels, v[i]);
                }
            }
            transpose(v);
            DITQUANT_UNROLL for (int i = 0; i < 16; i++) {
                sum = _mm512_dpbusd_epi32(sum, _mm512_set1_epi8(1), v[i]);
                _mm512_store_si512(tile + (k / 4 + i) * 256 + part * 64, v[i]);
            }
        }
        _mm512_storeu_si512(sums + 16 * part, sum);
    }
}

}  // namespace

void decode_tile(const Packed& weight, int64_t first, int8_t* tile, int32_t* sums) {
    with_bits(weight.bits, [&](auto bits) { decode_bits<bits()>(weight, first, tile, sums); });
}

}  // namespace ditquant

#endif
