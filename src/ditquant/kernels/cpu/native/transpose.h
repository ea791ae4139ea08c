#pragma once

#include "simd.h"

#if DITQUANT_X86

namespace ditquant {

// Transpose 16 x 16 groups of 4 bytes.
inline void transpose(__m512i (&v)[16]) {
    __m512i t[16];
    DITQUANT_UNROLL for (int i = 0; i < 16; i += 2) {
        t[i] = _mm512_unpacklo_epi32(v[i], v[i + 1]);
        t[i + 1] = _mm512_unpackhi_epi32(v[i], v[i + 1]);
    }
    DITQUANT_UNROLL for (int i = 0; i < 16; i += 4) {
        v[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
        v[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
        v[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
        v[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
    }
    // v[4 a + b] holds, in its 128-bit lane c, column 4 c + b of rows 4 a .. 4 a + 3
    DITQUANT_UNROLL for (int b = 0; b < 4; b++) {
        __m512i even01 = _mm512_shuffle_i32x4(v[b], v[4 + b], 0x88), odd01 = _mm512_shuffle_i32x4(v[b], v[4 + b], 0xdd);
        __m512i even23 = _mm512_shuffle_i32x4(v[8 + b], v[12 + b], 0x88);
        __m512i odd23 = _mm512_shuffle_i32x4(v[8 + b], v[12 + b], 0xdd);
        t[b] = _mm512_shuffle_i32x4(even01, even23, 0x88);
        t[4 + b] = _mm512_shuffle_i32x4(odd01, odd23, 0x88);
        t[8 + b] = _mm512_shuffle_i32x4(even01, even23, 0xdd);
        t[12 + b] = _mm512_shuffle_i32x4(odd01, odd23, 0xdd);
    }
    DITQUANT_UNROLL for (int i = 0; i < 16; i++) v[i] = t[i];
}

}  // namespace ditquant

#endif
