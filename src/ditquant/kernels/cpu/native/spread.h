// 64 packed codes -> 64 bytes, and masks of the bytes that are there.
#pragma once

#include "simd.h"

#if DITQUANT_X86

namespace ditquant {

// Spread 64 packed codes to bytes: every group of 8 codes goes to a quadword of its own, and is cut up there.
template <int BITS>
class Spread {
    __m512i bytes_, shifts_;

  public:
    Spread() {
        alignas(64) uint8_t bytes[64], shifts[64];
        for (int i = 0; i < 64; i++) {
            bytes[i] = static_cast<uint8_t>(i / 8 * BITS + i % 8 % BITS);
            shifts[i] = static_cast<uint8_t>(i % 8 * BITS);
        }
        bytes_ = _mm512_load_si512(bytes);
        shifts_ = _mm512_load_si512(shifts);
    }

    __m512i operator()(const uint8_t* packed, __mmask64 there) const {
        __m512i data = _mm512_maskz_loadu_epi8(there, packed);
        if constexpr (BITS == 8) return data;
        data = _mm512_multishift_epi64_epi8(shifts_, _mm512_permutexvar_epi8(bytes_, data));
        return _mm512_and_si512(data, _mm512_set1_epi8((1 << BITS) - 1));
    }
};

inline __mmask64 first_bytes(int64_t count) {
    return count >= 64 ? ~0ull : (1ull << (count < 0 ? 0 : count)) - 1;
}

}  // namespace ditquant

#endif
