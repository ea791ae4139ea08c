// 32 packed codes -> 32 bytes, and 8 rows of them -> vectors of 8 rows x 4 channels.
#pragma once

#include <cstring>

#include "../simd.h"

namespace ditquant {

// Every code lies within two bytes: they go to 16 bits of their own, and are shifted there.
template <int BITS>
class Spread {
    __m256i first_, second_, shifts_;  // bytes of codes 0 .. 7 and 8 .. 15 of 16

  public:
    Spread() {
        alignas(32) uint8_t first[32], second[32];
        alignas(32) uint16_t shifts[16];
        for (int i = 0; i < 16; i++) {
            const int code = i % 8, byte = code * BITS / 8;
            for (int j = 0; j < 2; j++) {
                first[2 * i + j] = static_cast<uint8_t>(byte + j);
                second[2 * i + j] = static_cast<uint8_t>(byte + BITS + j);
            }
            shifts[i] = static_cast<uint16_t>(1 << (8 - code * BITS % 8));
        }
        first_ = _mm256_load_si256(reinterpret_cast<const __m256i*>(first));
        second_ = _mm256_load_si256(reinterpret_cast<const __m256i*>(second));
        shifts_ = _mm256_load_si256(reinterpret_cast<const __m256i*>(shifts));
    }

    // Read the first of `bytes` bytes, and no more; what is not there is zero.
    __m256i operator()(const uint8_t* packed, int64_t bytes) const {
        alignas(32) uint8_t there[48];
        if (bytes < 2 * BITS + 16) {
            std::memset(there, 0, sizeof there);
            if (bytes > 0) std::memcpy(there, packed, bytes);
            packed = there;
        }
        const auto half = [](const uint8_t* from) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(from)); };
        const __m256i data = _mm256_set_m128i(half(packed + 2 * BITS), half(packed));
        if constexpr (BITS == 8) return data;
        const auto cut = [&](__m256i bytes) {
            const __m256i moved = _mm256_mullo_epi16(_mm256_shuffle_epi8(data, bytes), shifts_);
            return _mm256_and_si256(_mm256_srli_epi16(moved, 8), _mm256_set1_epi16((1 << BITS) - 1));
        };
        return _mm256_packus_epi16(cut(first_), cut(second_));
    }
};

// Bytes 0xff where there is a channel.
inline __m256i first_bytes(int64_t count) {
    alignas(32) static const uint8_t numbers[32] = {0,  1,  2,  3,  4,  5,  6,  7,  8,  9,  10, 11, 12, 13, 14, 15,
                                                    16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31};
    const char end = static_cast<char>(count > 32 ? 32 : count < 0 ? 0 : count);
    return _mm256_cmpgt_epi8(_mm256_set1_epi8(end), _mm256_load_si256(reinterpret_cast<const __m256i*>(numbers)));
}

// Transpose 8 x 8 groups of 4 bytes.
inline void transpose(__m256i (&v)[8]) {
    __m256i t[8];
    DITQUANT_UNROLL for (int i = 0; i < 8; i += 2) {
        t[i] = _mm256_unpacklo_epi32(v[i], v[i + 1]);
        t[i + 1] = _mm256_unpackhi_epi32(v[i], v[i + 1]);
    }
    DITQUANT_UNROLL for (int i = 0; i < 8; i += 4) {
        v[i] = _mm256_unpacklo_epi64(t[i], t[i + 2]);
        v[i + 1] = _mm256_unpackhi_epi64(t[i], t[i + 2]);
        v[i + 2] = _mm256_unpacklo_epi64(t[i + 1], t[i + 3]);
        v[i + 3] = _mm256_unpackhi_epi64(t[i + 1], t[i + 3]);
    }
    DITQUANT_UNROLL for (int i = 0; i < 4; i++) {
        t[i] = _mm256_permute2x128_si256(v[i], v[4 + i], 0x20);
        t[4 + i] = _mm256_permute2x128_si256(v[i], v[4 + i], 0x31);
    }
    DITQUANT_UNROLL for (int i = 0; i < 8; i++) v[i] = t[i];
}

// Sums of the 4 channels of each of 8 rows.
inline __m256i row_sums(__m256i v) {
    const __m256i pairs = _mm256_maddubs_epi16(_mm256_set1_epi8(1), v);
    return _mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
}

}  // namespace ditquant
