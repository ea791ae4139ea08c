// Vectors of 16 floats to and from memory in float32, bfloat16 or float16.
#pragma once

#include "simd.h"

#if DITQUANT_X86

namespace ditquant {

inline __m512 load(const void* from, int64_t at, __mmask16 mask, int dtype) {
    if (dtype == FLOAT32) return _mm512_maskz_loadu_ps(mask, static_cast<const float*>(from) + at);
    const __m256i half = _mm256_maskz_loadu_epi16(mask, static_cast<const uint16_t*>(from) + at);
    if (dtype == FLOAT16) return _mm512_cvtph_ps(half);
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
}

// Round to the nearest bfloat16, ties to even; NaN stays NaN.
inline __m256i to_bfloat16(__m512 x) {
    const __m512i bits = _mm512_castps_si512(x);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    __m512i rounded = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
    rounded = _mm512_mask_mov_epi32(rounded, _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q), _mm512_set1_epi32(0x7fc00000));
    return _mm512_cvtepi32_epi16(_mm512_srli_epi32(rounded, 16));
}

inline void store(void* to, int64_t at, __mmask16 mask, __m512 x, int dtype) {
    if (dtype == FLOAT32) return _mm512_mask_storeu_ps(static_cast<float*>(to) + at, mask, x);
    const __m256i half = dtype == FLOAT16 ? _mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC) : to_bfloat16(x);
    _mm256_mask_storeu_epi16(static_cast<uint16_t*>(to) + at, mask, half);
}

}  // namespace ditquant

#endif
