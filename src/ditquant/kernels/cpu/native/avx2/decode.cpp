#include "../decode.h"

#include <algorithm>

#include "spread.h"

namespace ditquant {
namespace {

// A row's table of 2^bits bytes, 16 at a time.
template <int BITS>
class Table {
    const int8_t* values_;

    __m256i part(int i) const {
        int32_t four;
        __m128i found;
        if constexpr (BITS == 2) std::memcpy(&four, values_, 4), found = _mm_cvtsi32_si128(four);
        else if constexpr (BITS == 3) found = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(values_));
        else found = _mm_loadu_si128(reinterpret_cast<const __m128i*>(values_) + i);
        return _mm256_broadcastsi128_si256(found);
    }

  public:
    explicit Table(const int8_t* values) : values_(values) {}

    __m256i look_up(__m256i codes) const {
        constexpr int PARTS = BITS <= 4 ? 1 : 1 << (BITS <= 4 ? 0 : BITS - 4);
        if constexpr (PARTS == 1) return _mm256_shuffle_epi8(part(0), codes);
        __m256i found = _mm256_setzero_si256();
        for (int i = 0; i < PARTS; i++) {
            // below 0x80, where a shuffle looks, only for the codes of this part
            const __m256i from = _mm256_sub_epi8(codes, _mm256_set1_epi8(static_cast<char>(16 * i)));
            const __m256i at = _mm256_adds_epu8(from, _mm256_set1_epi8(0x70));
            found = _mm256_or_si256(found, _mm256_shuffle_epi8(part(i), at));
        }
        return found;
    }
};

template <int BITS>
__m256i decode_row(const Spread<BITS>& spread, const Packed& weight, int64_t row, int64_t k) {
    const int64_t bytes = weight.row_bytes(), at = k / 8 * BITS;
    const Table<BITS> table(weight.table + row * weight.table_stride);
    const __m256i found = table.look_up(spread(weight.codes + row * bytes + at, bytes - at));
    return k + 32 <= weight.channels ? found : _mm256_and_si256(found, first_bytes(weight.channels - k));
}

template <int BITS>
void decode_bits(const Packed& weight, int64_t first, int8_t* tile, int32_t* sums) {
    const Spread<BITS> spread;
    auto* to = reinterpret_cast<__m256i*>(tile);
    for (int64_t lane = 0; lane < TILE_ROWS; lane += 8) {
        const int64_t row = first + lane, rows = std::min<int64_t>(8, weight.rows - row);
        __m256i sum = _mm256_setzero_si256();
        for (int64_t k = 0; k < weight.padded(); k += 32) {
            __m256i v[8];
            DITQUANT_UNROLL for (int i = 0; i < 8; i++) {
                v[i] = i < rows && k < weight.channels ? decode_row(spread, weight, row + i, k) : _mm256_setzero_si256();
            }
            transpose(v);
            DITQUANT_UNROLL for (int i = 0; i < 8; i++) {
                sum = _mm256_add_epi32(sum, row_sums(v[i]));
                _mm256_store_si256(to++, v[i]);
            }
        }
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(sums + lane), sum);
    }
}

}  // namespace

void decode_tile(const Packed& weight, int64_t first, int8_t* tile, int32_t* sums) {
    with_bits(weight.bits, [&](auto bits) { decode_bits<bits()>(weight, first, tile, sums); });
}

}  // namespace ditquant
