// 16 floats, or 16 integers of 32 bits, in one AVX512 vector.
#pragma once

#include "simd.h"

namespace ditquant {

using Floats = __m512;
using Ints = __m512i;
using Lanes = __mmask16;

inline Lanes first_floats(int64_t count) {
    return count >= 16 ? 0xffff : static_cast<Lanes>((1u << (count < 0 ? 0 : count)) - 1);
}

inline Floats zeros() { return _mm512_setzero_ps(); }
inline Floats all(float x) { return _mm512_set1_ps(x); }
inline Floats load(const float* from) { return _mm512_load_ps(from); }  // aligned
inline Floats load_any(const float* from) { return _mm512_loadu_ps(from); }
inline Floats load_some(const float* from, Lanes lanes) { return _mm512_maskz_loadu_ps(lanes, from); }
inline void save(float* to, Floats x) { _mm512_store_ps(to, x); }  // aligned
inline Floats add(Floats a, Floats b) { return _mm512_add_ps(a, b); }
inline Floats sub(Floats a, Floats b) { return _mm512_sub_ps(a, b); }
inline Floats mul(Floats a, Floats b) { return _mm512_mul_ps(a, b); }
inline Floats fmadd(Floats a, Floats b, Floats c) { return _mm512_fmadd_ps(a, b, c); }
inline Floats fnmadd(Floats a, Floats b, Floats c) { return _mm512_fnmadd_ps(a, b, c); }
inline Floats least(Floats a, Floats b) { return _mm512_min_ps(a, b); }
inline Floats most(Floats a, Floats b) { return _mm512_max_ps(a, b); }
inline float least_of(Floats x) { return _mm512_reduce_min_ps(x); }
inline float most_of(Floats x) { return _mm512_reduce_max_ps(x); }

// Negate the floats whose bit is set.
inline Floats flip(Floats x, uint16_t signs) { return _mm512_mask_sub_ps(x, signs, _mm512_setzero_ps(), x); }

// Replace lane i by x[i] + x[i ^ stride], or by their difference where i has that bit.
template <int STRIDE>
inline Floats butterfly(Floats x) {
    constexpr __mmask16 upper = STRIDE == 1 ? 0xaaaa : STRIDE == 2 ? 0xcccc : STRIDE == 4 ? 0xf0f0 : 0xff00;
    const __m512 sign = _mm512_mask_mov_ps(_mm512_set1_ps(1), upper, _mm512_set1_ps(-1));
    __m512 other;
    if constexpr (STRIDE == 1) other = _mm512_permute_ps(x, 0xb1);
    if constexpr (STRIDE == 2) other = _mm512_permute_ps(x, 0x4e);
    if constexpr (STRIDE == 4) other = _mm512_shuffle_f32x4(x, x, 0xb1);
    if constexpr (STRIDE == 8) other = _mm512_shuffle_f32x4(x, x, 0x4e);
    return _mm512_fmadd_ps(x, sign, other);
}

// Transpose 4 x 4 floats in every 128 bits of 4 vectors; doing it twice changes nothing.
inline void exchange(Floats (&v)[4]) {
    const __m512d a = _mm512_castps_pd(_mm512_unpacklo_ps(v[0], v[1])), b = _mm512_castps_pd(_mm512_unpackhi_ps(v[0], v[1]));
    const __m512d c = _mm512_castps_pd(_mm512_unpacklo_ps(v[2], v[3])), d = _mm512_castps_pd(_mm512_unpackhi_ps(v[2], v[3]));
    v[0] = _mm512_castpd_ps(_mm512_unpacklo_pd(a, c)), v[1] = _mm512_castpd_ps(_mm512_unpackhi_pd(a, c));
    v[2] = _mm512_castpd_ps(_mm512_unpacklo_pd(b, d)), v[3] = _mm512_castpd_ps(_mm512_unpackhi_pd(b, d));
}

inline Ints all(int32_t x) { return _mm512_set1_epi32(x); }
// Of floats whose reciprocal is normal, to a unit in the last place or two.
inline Floats reciprocal(Floats x) {
    const Floats about = _mm512_rcp14_ps(x);
    return mul(about, fnmadd(x, about, all(2.0f)));
}
inline Floats to_floats(Ints x) { return _mm512_cvtepi32_ps(x); }
inline Floats power_of_two(Ints x) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_add_epi32(x, _mm512_set1_epi32(127)), 23));
}
inline Ints nearest(Floats x) { return _mm512_cvtps_epi32(x); }
inline Ints magnitude_bits(Floats x) {
    return _mm512_and_si512(_mm512_castps_si512(x), _mm512_set1_epi32(0x7fffffff));
}
inline Ints add(Ints a, Ints b) { return _mm512_add_epi32(a, b); }
inline Ints least(Ints a, Ints b) { return _mm512_min_epi32(a, b); }
inline Ints most(Ints a, Ints b) { return _mm512_max_epi32(a, b); }
inline int32_t most_of(Ints x) { return _mm512_reduce_max_epi32(x); }

// 64 integers as bytes, those beyond 0 .. 255 as the nearest.
inline void save_bytes(uint8_t* to, const Ints (&x)[4]) {
    const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    const __m512i first = _mm512_packs_epi32(x[0], x[1]), second = _mm512_packs_epi32(x[2], x[3]);
    _mm512_storeu_si512(to, _mm512_permutexvar_epi32(order, _mm512_packus_epi16(first, second)));
}

inline Floats load_bfloat16(const uint16_t* from) {
    const __m256i half = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
}

// Floats of memory in float32, bfloat16 or float16; zero beyond the lanes.
inline __m512 load(const void* from, int64_t at, Lanes lanes, int dtype) {
    if (dtype == FLOAT32) return _mm512_maskz_loadu_ps(lanes, static_cast<const float*>(from) + at);
    const __m256i half = _mm256_maskz_loadu_epi16(lanes, static_cast<const uint16_t*>(from) + at);
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

inline void store(void* to, int64_t at, Lanes lanes, __m512 x, int dtype) {
    if (dtype == FLOAT32) return _mm512_mask_storeu_ps(static_cast<float*>(to) + at, lanes, x);
    const __m256i half = dtype == FLOAT16 ? _mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC) : to_bfloat16(x);
    _mm256_mask_storeu_epi16(static_cast<uint16_t*>(to) + at, lanes, half);
}

}  // namespace ditquant
