// One pass over a token: smoothing, rotation of its blocks of channels, INT8 codes and their scale.
//
// x * factor -> signs1 -> Hadamard -> permutation -> signs2 -> Hadamard -> codes; every part but the last may be absent.
#include <cmath>
#include <cstring>
#include <limits>

#include "parallel.h"
#include "rotate.h"
#include "store.h"

#if DITQUANT_X86

namespace ditquant {
namespace {

struct Quantize {
    const void* x;               // [tokens, channels]
    int dtype;
    int64_t tokens, channels;
    const uint16_t* factor;      // bfloat16 [channels] or null
    int64_t block;               // of the rotations, a power of two; 0 without
    const uint8_t* signs1;       // 1 bit a channel, or null
    const int32_t* permutation;  // [channels] or null; with it comes a second rotation
    const uint8_t* signs2;
    int bits, symmetric;
    float clip;
    uint8_t* values;  // [tokens, padded channels], code + 128
    float* scale;     // [tokens]
    int32_t* zero;    // [tokens]

    int64_t padded() const { return round_up(channels, LANE); }
};

inline __mmask16 first_floats(int64_t count) {
    return count >= 16 ? 0xffff : static_cast<__mmask16>((1u << (count < 0 ? 0 : count)) - 1);
}

inline __mmask16 sign_mask(const uint8_t* signs, int64_t at, int64_t channels) {
    const int low = at < channels ? signs[at / 8] : 0, high = at + 8 < channels ? signs[at / 8 + 1] : 0;
    return static_cast<__mmask16>(low | high << 8);
}

inline __m512 flip(__m512 x, __mmask16 signs) { return _mm512_mask_sub_ps(x, signs, _mm512_setzero_ps(), x); }

// The token in float32, smoothed and rotated; channels beyond the last are zero.
float* transform(const Quantize& q, int64_t token, float* x, float* spare) {
    const int rotations = q.block ? (q.permutation ? 2 : 1) : 0;
    const __m512 norm = _mm512_set1_ps(static_cast<float>(std::pow(std::sqrt(1.0 / std::max<int64_t>(q.block, 1)), rotations)));
    for (int64_t k = 0; k < q.padded(); k += 16) {
        const __mmask16 there = first_floats(q.channels - k);
        __m512 v = load(q.x, token * q.channels + k, there, q.dtype);
        if (q.factor) v = _mm512_mul_ps(v, load(q.factor, k, there, BFLOAT16));
        if (rotations) v = _mm512_mul_ps(v, norm);
        if (q.signs1) v = flip(v, sign_mask(q.signs1, k, q.channels));
        _mm512_store_ps(x + k, v);
    }
    if (!rotations) return x;
    // a block below 16 may end inside the last vector; zeros behind it stay zeros
    rotate_blocks(x, round_up(q.channels, 16), q.block);
    if (rotations == 1) return x;
    std::memset(spare + q.channels, 0, (q.padded() - q.channels) * sizeof(float));
    for (int64_t k = 0; k < q.channels; k++) spare[k] = x[q.permutation[k]];
    for (int64_t k = 0; k < q.channels; k += 16) {
        _mm512_store_ps(spare + k, flip(_mm512_load_ps(spare + k), sign_mask(q.signs2, k, q.channels)));
    }
    rotate_blocks(spare, round_up(q.channels, 16), q.block);
    return spare;
}

// Largest magnitude; infinity and NaN are larger than any number, NaN than infinity.
float largest(const float* x, int64_t size) {
    __m512i high = _mm512_setzero_si512();
    for (int64_t k = 0; k < size; k += 16) {
        const __m512i bits = _mm512_and_si512(_mm512_load_si512(x + k), _mm512_set1_epi32(0x7fffffff));
        high = _mm512_max_epi32(high, bits);
    }
    const int32_t bits = _mm512_reduce_max_epi32(high);
    float found;
    std::memcpy(&found, &bits, sizeof found);
    return found;
}

// round(x / scale) as torch has it: the quotient is corrected, since 1 / scale is rounded.
inline __m512i divide(__m512 x, __m512 scale, __m512 inverse) {
    __m512 quotient = _mm512_mul_ps(x, inverse);
    quotient = _mm512_fmadd_ps(_mm512_fnmadd_ps(quotient, scale, x), inverse, quotient);
    return _mm512_cvtps_epi32(quotient);
}

void quantize(const Quantize& q, int64_t token, const float* x) {
    const int half = 1 << (q.bits - 1);
    const float tiny = std::numeric_limits<float>::min();
    const float peak = largest(x, q.padded());
    float scale;
    int zero = 0;
    if (q.symmetric || !std::isfinite(peak)) {
        scale = std::max(tiny, peak * q.clip / static_cast<float>(half - 1));
        if (!std::isfinite(peak)) scale = peak;  // the token's outputs are not finite either
    } else {
        __m512 low = _mm512_setzero_ps(), high = low;
        for (int64_t k = 0; k < q.padded(); k += 16) {
            low = _mm512_min_ps(low, _mm512_load_ps(x + k));
            high = _mm512_max_ps(high, _mm512_load_ps(x + k));
        }
        const float from = _mm512_reduce_min_ps(low) * q.clip, to = _mm512_reduce_max_ps(high) * q.clip;
        scale = std::max(tiny, (to - from) / static_cast<float>(2 * half - 1));
        zero = static_cast<int>(std::nearbyintf(-from / scale)) - half;
    }
    const __m512 s = _mm512_set1_ps(scale), inverse = _mm512_set1_ps(1 / scale);
    const __m512i least = _mm512_set1_epi32(128 + (q.symmetric ? 1 - half : -half));
    const __m512i most = _mm512_set1_epi32(128 + half - 1), offset = _mm512_set1_epi32(128 + zero);
    uint8_t* to = q.values + token * q.padded();
    for (int64_t k = 0; k < q.padded(); k += 16) {
        __m512i code = _mm512_add_epi32(divide(_mm512_load_ps(x + k), s, inverse), offset);
        code = _mm512_min_epi32(_mm512_max_epi32(code, least), most);
        _mm_store_si128(reinterpret_cast<__m128i*>(to + k), _mm512_cvtepi32_epi8(code));
    }
    q.scale[token] = scale;
    q.zero[token] = zero;
}

}  // namespace
}  // namespace ditquant

using namespace ditquant;

DITQUANT_API void ditquant_quantize(const void* x, int dtype, int64_t tokens, int64_t channels, const uint16_t* factor,
                                    int64_t block, const uint8_t* signs1, const int32_t* permutation,
                                    const uint8_t* signs2, int bits, int symmetric, float clip, uint8_t* values,
                                    float* scale, int32_t* zero, int threads) {
    const Quantize q{x, dtype, tokens, channels, factor, block, signs1, permutation, signs2,
                     bits, symmetric, clip, values, scale, zero};
    constexpr int64_t TOKENS = 32;  // of a task
    parallel(ceil_div(tokens, TOKENS), threads, [&](int64_t task) {
        static thread_local Scratch<float> scratch;
        float* x = scratch.get(2 * q.padded());
        for (int64_t token = task * TOKENS; token < std::min((task + 1) * TOKENS, tokens); token++) {
            quantize(q, token, transform(q, token, x, x + q.padded()));
        }
    });
}

#endif
