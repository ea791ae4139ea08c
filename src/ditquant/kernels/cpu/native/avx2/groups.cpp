#include "../groups.h"

#include <algorithm>

#include "../parallel.h"
#include "spread.h"

namespace ditquant {
namespace {

// The zero points of a row, one for every channel.
void read_zeros(const Groups& w, int64_t row, uint8_t* zeros) {
    for (int64_t group = 0; group < w.groups(); group++) {
        const uint8_t zero = w.zero ? w.zero[row * w.groups() + group] : static_cast<uint8_t>(1 << (w.bits - 1));
        std::memset(zeros + group * w.group, zero, w.group);
    }
}

template <int BITS>
__m256i decode_row(const Spread<BITS>& spread, const Groups& w, int64_t row, int64_t k, const uint8_t* zeros) {
    const int64_t bytes = w.row_bytes(), at = k / 8 * BITS;
    const __m256i codes = spread(w.codes + row * bytes + at, bytes - at);
    const __m256i zero = _mm256_load_si256(reinterpret_cast<const __m256i*>(zeros + k));
    return _mm256_and_si256(_mm256_sub_epi8(codes, zero), first_bytes(w.channels - k));
}

template <int BITS>
void decode_panel(const Groups& w, int64_t row, int64_t rows, uint8_t* zeros, __m256i* to, int32_t* sums) {
    const Spread<BITS> spread;
    for (int64_t i = 0; i < rows; i++) read_zeros(w, row + i, zeros + i * w.padded());
    __m256i sum = _mm256_setzero_si256();
    int64_t left = w.part;
    for (int64_t k = 0; k < w.padded(); k += 32) {
        __m256i v[8];
        DITQUANT_UNROLL for (int i = 0; i < 8; i++) {
            const bool there = i < rows && k < w.channels;
            v[i] = there ? decode_row(spread, w, row + i, k, zeros + i * w.padded()) : _mm256_setzero_si256();
        }
        transpose(v);
        for (int i = 0; i < 8; i++) {
            _mm256_store_si256(to++, v[i]);
            sum = _mm256_add_epi32(sum, row_sums(v[i]));
            if ((left -= 4) == 0 && k + 4 * i < w.channels) {
                _mm256_storeu_si256(reinterpret_cast<__m256i*>(sums), sum);
                sum = _mm256_setzero_si256();
                sums += TILE_ROWS;
                left = w.part;
            }
        }
    }
}

template <int BITS>
void decode_bits(const Groups& w, int64_t first, const GroupTile& tile) {
    static thread_local Scratch<uint8_t> zeros;
    for (int64_t lane = 0; lane < TILE_ROWS; lane += 8) {
        auto* to = reinterpret_cast<__m256i*>(tile.values + lane * w.padded());
        const int64_t row = first + lane, rows = std::clamp<int64_t>(w.rows - row, 0, 8);
        decode_panel<BITS>(w, row, rows, zeros.get(8 * w.padded()), to, tile.sums + lane);
    }
    gather_scales(w, first, tile.scale);
}

}  // namespace

void decode_groups(const Groups& weight, int64_t first, const GroupTile& tile) {
    with_bits(weight.bits, [&](auto bits) { decode_bits<bits()>(weight, first, tile); });
}

}  // namespace ditquant
