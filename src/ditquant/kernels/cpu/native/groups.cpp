#include "groups.h"

#include "parallel.h"
#include "spread.h"
#include "transpose.h"

#if DITQUANT_X86

namespace ditquant {
namespace {

// The zero points of 64 channels of a row.
inline __m512i zeros(const Groups& w, int64_t row, int64_t k) {
    if (!w.zero) return _mm512_set1_epi8(static_cast<char>(1 << (w.bits - 1)));
    const int64_t group = k / w.group;
    const __m512i found = _mm512_maskz_loadu_epi8(first_bytes(w.groups() - group), w.zero + row * w.groups() + group);
    return _mm512_permutexvar_epi8(_mm512_loadu_si512(w.place + k), found);
}

template <int BITS>
void decode_bits(const Groups& w, int64_t first, const GroupTile& tile) {
    const Spread<BITS> spread;
    const int64_t bytes = w.row_bytes();
    for (int64_t lane = 0; lane < TILE_ROWS; lane += 16) {
        const int64_t row = first + lane, rows = std::min<int64_t>(16, w.rows - row);
        __m512i sum = _mm512_setzero_si512();
        int64_t part = 0, left = w.part;
        for (int64_t k = 0; k < w.channels; k += 64) {
            const int64_t at = k / 8 * BITS;
            const __mmask64 there = first_bytes(std::min<int64_t>(bytes - at, 8 * BITS));
            const __mmask64 channels = first_bytes(w.channels - k);
            __m512i v[16];
            DITQUANT_UNROLL for (int i = 0; i < 16; i++) {
                v[i] = _mm512_setzero_si512();
                if (i < rows) {
                    const __m512i codes = spread(w.codes + (row + i) * bytes + at, there);
                    v[i] = _mm512_maskz_sub_epi8(channels, codes, zeros(w, row + i, k));
                }
            }
            transpose(v);
            DITQUANT_UNROLL for (int i = 0; i < 16; i++) {
                _mm512_store_si512(tile.values + (k / 4 + i) * 256 + lane * 4, v[i]);
                sum = _mm512_dpbusd_epi32(sum, _mm512_set1_epi8(1), v[i]);
                if ((left -= 4) == 0) {
                    _mm512_storeu_si512(tile.sums + part++ * TILE_ROWS + lane, sum);
                    sum = _mm512_setzero_si512();
                    left = part < w.parts() ? w.part : -1;  // no part ends in the padding
                }
            }
        }
    }
    gather_scales(w, first, tile.scale);
}

}  // namespace

void decode_groups(const Groups& weight, int64_t first, const GroupTile& tile) {
    with_bits(weight.bits, [&](auto bits) { decode_bits<bits()>(weight, first, tile); });
}

}  // namespace ditquant

#endif
