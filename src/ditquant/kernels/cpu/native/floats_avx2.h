// 16 floats, or 16 integers of 32 bits, in two AVX2 vectors; floats_avx512.h says what the functions do.
#pragma once

#include <cstring>

#include "simd.h"

namespace ditquant {

struct Floats {
    __m256 low, high;
};
struct Ints {
    __m256i low, high;
};
struct Lanes {
    int64_t count;  // the first ones, 0 to 16
};

inline Lanes first_floats(int64_t count) { return {count >= 16 ? 16 : count < 0 ? 0 : count}; }

inline Floats zeros() { return {_mm256_setzero_ps(), _mm256_setzero_ps()}; }
inline Floats all(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
inline Floats load(const float* from) { return {_mm256_load_ps(from), _mm256_load_ps(from + 8)}; }
inline Floats load_any(const float* from) { return {_mm256_loadu_ps(from), _mm256_loadu_ps(from + 8)}; }
inline void save(float* to, Floats x) { _mm256_store_ps(to, x.low), _mm256_store_ps(to + 8, x.high); }
inline Floats add(Floats a, Floats b) { return {_mm256_add_ps(a.low, b.low), _mm256_add_ps(a.high, b.high)}; }
inline Floats sub(Floats a, Floats b) { return {_mm256_sub_ps(a.low, b.low), _mm256_sub_ps(a.high, b.high)}; }
inline Floats mul(Floats a, Floats b) { return {_mm256_mul_ps(a.low, b.low), _mm256_mul_ps(a.high, b.high)}; }
inline Floats fmadd(Floats a, Floats b, Floats c) {
    return {_mm256_fmadd_ps(a.low, b.low, c.low), _mm256_fmadd_ps(a.high, b.high, c.high)};
}
inline Floats fnmadd(Floats a, Floats b, Floats c) {
    return {_mm256_fnmadd_ps(a.low, b.low, c.low), _mm256_fnmadd_ps(a.high, b.high, c.high)};
}
inline Floats least(Floats a, Floats b) { return {_mm256_min_ps(a.low, b.low), _mm256_min_ps(a.high, b.high)}; }
inline Floats most(Floats a, Floats b) { return {_mm256_max_ps(a.low, b.low), _mm256_max_ps(a.high, b.high)}; }

inline Floats load_some(const float* from, Lanes lanes) {
    if (lanes.count == 16) return load_any(from);
    alignas(32) float there[16] = {};
    std::memcpy(there, from, lanes.count * sizeof(float));
    return load(there);
}

inline float least_of(Floats x) {
    alignas(32) float found[8];
    _mm256_store_ps(found, _mm256_min_ps(x.low, x.high));
    for (int i = 1; i < 8; i++) found[0] = found[i] < found[0] ? found[i] : found[0];
    return found[0];
}

inline float most_of(Floats x) { return -least_of(sub(zeros(), x)); }

inline __m256 flip(__m256 x, int signs) {
    const __m256i bit = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
    const __m256i set = _mm256_cmpeq_epi32(_mm256_and_si256(_mm256_set1_epi32(signs), bit), bit);
    return _mm256_blendv_ps(x, _mm256_sub_ps(_mm256_setzero_ps(), x), _mm256_castsi256_ps(set));
}
inline Floats flip(Floats x, uint16_t signs) { return {flip(x.low, signs & 0xff), flip(x.high, signs >> 8)}; }

template <int STRIDE>
inline __m256 butterfly(__m256 x) {
    constexpr int upper = STRIDE == 1 ? 0xaa : STRIDE == 2 ? 0xcc : 0xf0;
    const __m256 sign = _mm256_blend_ps(_mm256_set1_ps(1), _mm256_set1_ps(-1), upper);
    __m256 other;
    if constexpr (STRIDE == 1) other = _mm256_permute_ps(x, 0xb1);
    if constexpr (STRIDE == 2) other = _mm256_permute_ps(x, 0x4e);
    if constexpr (STRIDE == 4) other = _mm256_permute2f128_ps(x, x, 1);
    return _mm256_fmadd_ps(x, sign, other);
}
template <int STRIDE>
inline Floats butterfly(Floats x) {
    if constexpr (STRIDE == 8) return {_mm256_add_ps(x.low, x.high), _mm256_sub_ps(x.low, x.high)};
    else return {butterfly<STRIDE>(x.low), butterfly<STRIDE>(x.high)};
}

inline void exchange(__m256& p, __m256& q, __m256& r, __m256& s) {
    const __m256d a = _mm256_castps_pd(_mm256_unpacklo_ps(p, q)), b = _mm256_castps_pd(_mm256_unpackhi_ps(p, q));
    const __m256d c = _mm256_castps_pd(_mm256_unpacklo_ps(r, s)), d = _mm256_castps_pd(_mm256_unpackhi_ps(r, s));
    p = _mm256_castpd_ps(_mm256_unpacklo_pd(a, c)), q = _mm256_castpd_ps(_mm256_unpackhi_pd(a, c));
    r = _mm256_castpd_ps(_mm256_unpacklo_pd(b, d)), s = _mm256_castpd_ps(_mm256_unpackhi_pd(b, d));
}
inline void exchange(Floats (&v)[4]) {
    exchange(v[0].low, v[1].low, v[2].low, v[3].low);
    exchange(v[0].high, v[1].high, v[2].high, v[3].high);
}

inline Ints all(int32_t x) { return {_mm256_set1_epi32(x), _mm256_set1_epi32(x)}; }
inline Ints nearest(Floats x) { return {_mm256_cvtps_epi32(x.low), _mm256_cvtps_epi32(x.high)}; }
inline Ints magnitude_bits(Floats x) {
    const __m256i mask = _mm256_set1_epi32(0x7fffffff);
    return {_mm256_and_si256(_mm256_castps_si256(x.low), mask), _mm256_and_si256(_mm256_castps_si256(x.high), mask)};
}
inline Ints load_ints(const int32_t* from) {
    const auto* part = reinterpret_cast<const __m256i*>(from);
    return {_mm256_loadu_si256(part), _mm256_loadu_si256(part + 1)};
}
inline Floats to_floats(Ints x) { return {_mm256_cvtepi32_ps(x.low), _mm256_cvtepi32_ps(x.high)}; }
inline Floats reciprocal(Floats x) {
    const __m256 one = _mm256_set1_ps(1.0f);
    return {_mm256_div_ps(one, x.low), _mm256_div_ps(one, x.high)};
}
inline __m256 power_of_two(__m256i x) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(x, _mm256_set1_epi32(127)), 23));
}
inline Floats power_of_two(Ints x) { return {power_of_two(x.low), power_of_two(x.high)}; }
inline Ints mul(Ints a, Ints b) { return {_mm256_mullo_epi32(a.low, b.low), _mm256_mullo_epi32(a.high, b.high)}; }
inline Ints add(Ints a, Ints b) { return {_mm256_add_epi32(a.low, b.low), _mm256_add_epi32(a.high, b.high)}; }
inline Ints least(Ints a, Ints b) { return {_mm256_min_epi32(a.low, b.low), _mm256_min_epi32(a.high, b.high)}; }
inline Ints most(Ints a, Ints b) { return {_mm256_max_epi32(a.low, b.low), _mm256_max_epi32(a.high, b.high)}; }

inline int32_t most_of(Ints x) {
    alignas(32) int32_t found[8];
    _mm256_store_si256(reinterpret_cast<__m256i*>(found), _mm256_max_epi32(x.low, x.high));
    for (int i = 1; i < 8; i++) found[0] = found[i] > found[0] ? found[i] : found[0];
    return found[0];
}

inline void save_bytes(uint8_t* to, const Ints (&x)[4]) {
    const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
    DITQUANT_UNROLL for (int i = 0; i < 2; i++) {
        const Ints &a = x[2 * i], &b = x[2 * i + 1];
        const __m256i both = _mm256_packus_epi16(_mm256_packs_epi32(a.low, a.high), _mm256_packs_epi32(b.low, b.high));
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + 32 * i), _mm256_permutevar8x32_epi32(both, order));
    }
}

inline __m256 from_half(__m128i half, int dtype) {
    if (dtype == FLOAT16) return _mm256_cvtph_ps(half);
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(half), 16));
}

// Round to the nearest bfloat16, ties to even; NaN stays NaN. In the lower half of every 32 bits.
inline __m256i to_bfloat16(__m256 x) {
    const __m256i bits = _mm256_castps_si256(x);
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    const __m256i rounded = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
    const __m256i bad = _mm256_castps_si256(_mm256_cmp_ps(x, x, _CMP_UNORD_Q));
    return _mm256_srli_epi32(_mm256_blendv_epi8(rounded, _mm256_set1_epi32(0x7fc00000), bad), 16);
}

inline Floats load_bfloat16(const uint16_t* from) {
    const auto part = [&](int i) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(from + i)); };
    return {from_half(part(0), BFLOAT16), from_half(part(8), BFLOAT16)};
}

inline Floats load(const void* from, int64_t at, Lanes lanes, int dtype) {
    if (dtype == FLOAT32) return load_some(static_cast<const float*>(from) + at, lanes);
    alignas(32) uint16_t some[16] = {};
    const uint16_t* half = static_cast<const uint16_t*>(from) + at;
    if (lanes.count < 16) std::memcpy(some, half, lanes.count * sizeof *half), half = some;
    const auto part = [&](int i) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(half + i)); };
    return {from_half(part(0), dtype), from_half(part(8), dtype)};
}

inline void store(void* to, int64_t at, Lanes lanes, Floats x, int dtype) {
    const int64_t bytes = dtype == FLOAT32 ? 4 : 2;
    char* end = static_cast<char*>(to) + at * bytes;
    alignas(32) char some[64];
    char* place = lanes.count == 16 ? end : some;
    if (dtype == FLOAT32) {
        _mm256_storeu_ps(reinterpret_cast<float*>(place), x.low);
        _mm256_storeu_ps(reinterpret_cast<float*>(place) + 8, x.high);
    } else if (dtype == FLOAT16) {
        _mm_storeu_si128(reinterpret_cast<__m128i*>(place), _mm256_cvtps_ph(x.low, _MM_FROUND_TO_NEAREST_INT));
        _mm_storeu_si128(reinterpret_cast<__m128i*>(place) + 1, _mm256_cvtps_ph(x.high, _MM_FROUND_TO_NEAREST_INT));
    } else {
        const __m256i both = _mm256_packus_epi32(to_bfloat16(x.low), to_bfloat16(x.high));
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(place), _mm256_permute4x64_epi64(both, 0xd8));
    }
    if (place != end) std::memcpy(end, some, lanes.count * bytes);
}

}  // namespace ditquant
