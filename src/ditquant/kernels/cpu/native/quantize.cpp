// One pass over a token: smoothing, rotation of its blocks of channels, INT8 codes and their scale.
//
// x * factor -> signs1 -> Hadamard -> permutation -> signs2 -> Hadamard -> codes; every part but the last may be absent.
#include <cmath>
#include <cstring>
#include <limits>

#include "parallel.h"
#include "rotate.h"

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
    int64_t group;    // channels that share a scale: a multiple of 4, or all of them
    uint8_t* values;  // [tokens, padded channels], code + 128
    float* scale;     // [tokens, groups()]
    int32_t* zero;    // the same

    int64_t padded() const { return round_up(channels, LANE); }
    int64_t groups() const { return channels / group; }
};

inline uint16_t sign_bits(const uint8_t* signs, int64_t at, int64_t channels) {
    const int low = at < channels ? signs[at / 8] : 0, high = at + 8 < channels ? signs[at / 8 + 1] : 0;
    return static_cast<uint16_t>(low | high << 8);
}

// What every channel is multiplied by before the first rotation: smoothing, signs, and the norm of all rotations.
void read_gains(const Quantize& q, float* gains) {
    const int rotations = q.block ? (q.permutation ? 2 : 1) : 0;
    const Floats norm = all(rotations ? static_cast<float>(std::pow(q.block, -0.5 * rotations)) : 1.0f);
    for (int64_t k = 0; k < q.padded(); k += 16) {
        const Floats factor = q.factor ? load(q.factor, k, first_floats(q.channels - k), BFLOAT16) : all(1.0f);
        const Floats gain = mul(factor, norm);
        save(gains + k, q.signs1 ? flip(gain, sign_bits(q.signs1, k, q.channels)) : gain);
    }
}

// The token in float32, smoothed and rotated once; channels beyond the last are zero.
template <class Read>
void transform(const Quantize& q, float* x, const Read& smoothed) {
    // a block below 16 may end inside the last vector; zeros behind it stay zeros
    const int64_t rotated = q.block ? round_up(q.channels, 16) : 0;
    if (q.block) rotate_blocks(x, rotated, q.block, smoothed);
    for (int64_t k = rotated; k < q.padded(); k += 16) save(x + k, smoothed(k));
}

void transform(const Quantize& q, const float* gains, int64_t token, float* x) {
    const int64_t first = token * q.channels;
    if (q.dtype == BFLOAT16 && q.channels == q.padded()) {  // what nearly all layers are
        const auto* from = static_cast<const uint16_t*>(q.x) + first;
        return transform(q, x, [&](int64_t k) { return mul(load_bfloat16(from + k), load(gains + k)); });
    }
    transform(q, x, [&](int64_t k) {
        return mul(load(q.x, first + k, first_floats(q.channels - k), q.dtype), load(gains + k));
    });
}

constexpr int TOGETHER = 4;  // tokens whose channels are moved at once

// Where `exchange` puts a channel, of 16 at a time; it is its own inverse.
inline int64_t place(int64_t k) { return (k & ~15) | (k & 3) << 2 | (k >> 2 & 3); }

// For every place after the permutation, the place that its channel comes from.
void read_permutation(const Quantize& q, int32_t* from) {
    for (int64_t k = 0; k < q.padded(); k++) {
        from[place(k)] = static_cast<int32_t>(place(k < q.channels ? q.permutation[k] : k));
    }
}

// Permute TOGETHER tokens that lie in x one after the other, and rotate them again; `spare` is as large as x.
void permute_rotate(const Quantize& q, const int32_t* from, float* x, float* spare) {
    const int64_t size = q.padded();
    Floats v[TOGETHER];
    for (int64_t k = 0; k < size; k += 16) {
        DITQUANT_UNROLL for (int i = 0; i < TOGETHER; i++) v[i] = load(x + i * size + k);
        exchange(v);
        DITQUANT_UNROLL for (int i = 0; i < TOGETHER; i++) save(spare + k * TOGETHER + 16 * i, v[i]);
    }
    for (int64_t k = 0; k < size; k++) _mm_store_ps(x + k * TOGETHER, _mm_load_ps(spare + from[k] * TOGETHER));
    for (int64_t k = 0; k < size; k += 16) {
        DITQUANT_UNROLL for (int i = 0; i < TOGETHER; i++) v[i] = load(x + k * TOGETHER + 16 * i);
        exchange(v);
        const uint16_t signs = sign_bits(q.signs2, k, q.channels);
        DITQUANT_UNROLL for (int i = 0; i < TOGETHER; i++) save(spare + i * size + k, flip(v[i], signs));
    }
    for (int i = 0; i < TOGETHER; i++) {
        float* token = spare + i * size;
        rotate_blocks(token, round_up(q.channels, 16), q.block, [&](int64_t k) { return load(token + k); });
    }
}

// Largest magnitude; infinity and NaN are larger than any number, NaN than infinity.
float largest(const float* x, int64_t size) {
    Ints high = all(0);
    for (int64_t k = 0; k < size; k += 16) {
        high = most(high, magnitude_bits(load_some(x + k, first_floats(size - k))));
    }
    const int32_t bits = most_of(high);
    float found;
    std::memcpy(&found, &bits, sizeof found);
    return found;
}

// round(x / scale) as torch has it: the quotient is corrected, since 1 / scale is rounded.
inline Ints divide(Floats x, Floats scale, Floats inverse) {
    const Floats quotient = mul(x, inverse);
    return nearest(fmadd(fnmadd(quotient, scale, x), inverse, quotient));
}

// Codes + 128 of 64 floats.
template <bool CLAMP>
inline void put_codes(const float* x, float scale, int zero, int lowest, int highest, uint8_t* to) {
    const Floats s = all(scale), inverse = all(1 / scale);
    const Ints offset = all(128 + zero), low = all(128 + lowest), high = all(128 + highest);
    Ints code[4];
    DITQUANT_UNROLL for (int i = 0; i < 4; i++) {
        code[i] = add(divide(load_any(x + 16 * i), s, inverse), offset);
        if (CLAMP) code[i] = least(most(code[i], low), high);
    }
    save_bytes(to, code);
}

template <bool CLAMP>
void write_codes(const float* x, int64_t size, float scale, int zero, int lowest, int highest, uint8_t* to) {
    int64_t k = 0;
    for (; k + 64 <= size; k += 64) put_codes<CLAMP>(x + k, scale, zero, lowest, highest, to + k);
    if (k == size) return;
    float rest[64] = {};
    uint8_t codes[64];
    std::copy(x + k, x + size, rest);
    put_codes<CLAMP>(rest, scale, zero, lowest, highest, codes);
    std::copy(codes, codes + (size - k), to + k);
}

// Quantize `size` channels that share a scale.
void quantize(const Quantize& q, const float* x, int64_t size, uint8_t* values, float* scale_of, int32_t* zero_of) {
    const int half = 1 << (q.bits - 1);
    const float tiny = std::numeric_limits<float>::min();
    const float peak = largest(x, size);
    float scale;
    int zero = 0;
    if (q.symmetric || !std::isfinite(peak)) {
        scale = std::max(tiny, peak * q.clip / static_cast<float>(half - 1));
        if (!std::isfinite(peak)) scale = peak;  // the token's outputs are not finite either
    } else {
        Floats low = zeros(), high = low;
        for (int64_t k = 0; k < size; k += 16) {
            const Floats v = load_some(x + k, first_floats(size - k));
            low = least(low, v);
            high = most(high, v);
        }
        const float from = least_of(low) * q.clip, to = most_of(high) * q.clip;
        scale = std::max(tiny, (to - from) / static_cast<float>(2 * half - 1));
        zero = static_cast<int>(std::nearbyintf(-from / scale)) - half;
    }
    // only a clip, or a zero point, lets codes leave their range
    const auto write = q.clip < 1 || !q.symmetric ? write_codes<true> : write_codes<false>;
    write(x, size, scale, zero, q.symmetric ? 1 - half : -half, half - 1, values);
    *scale_of = scale;
    *zero_of = zero;
}

void quantize(const Quantize& q, int64_t token, const float* x) {
    uint8_t* values = q.values + token * q.padded();
    const int64_t groups = q.groups(), first = token * groups;
    if (groups == 1) return quantize(q, x, q.padded(), values, q.scale + first, q.zero + first);
    for (int64_t u = 0; u < groups; u++) {
        quantize(q, x + u * q.group, q.group, values + u * q.group, q.scale + first + u, q.zero + first + u);
    }
    std::fill(values + q.channels, values + q.padded(), uint8_t{128});
}

}  // namespace
}  // namespace ditquant

using namespace ditquant;

DITQUANT_API void ditquant_quantize(const void* x, int dtype, int64_t tokens, int64_t channels, const uint16_t* factor,
                                    int64_t block, const uint8_t* signs1, const int32_t* permutation,
                                    const uint8_t* signs2, int bits, int symmetric, float clip, int64_t group,
                                    uint8_t* values, float* scale, int32_t* zero, int threads) {
    const Quantize q{x, dtype, tokens, channels, factor, block, signs1, permutation, signs2,
                     bits, symmetric, clip, group, values, scale, zero};
    constexpr int64_t TOKENS = 32;  // of a task
    const int64_t size = q.padded();
    parallel(ceil_div(tokens, TOKENS), threads, [&](int64_t task) {
        static thread_local Scratch<float> scratch;
        static thread_local Scratch<int32_t> places;
        float* gains = scratch.get((1 + 2 * TOGETHER) * size);
        float* x = gains + size;
        read_gains(q, gains);
        int32_t* from = permutation ? places.get(size) : nullptr;
        if (permutation) read_permutation(q, from);
        const int64_t end = std::min((task + 1) * TOKENS, tokens);
        for (int64_t token = task * TOKENS; token < end; token += TOGETHER) {
            const int64_t count = std::min<int64_t>(TOGETHER, end - token);
            if (!permutation) {
                for (int64_t i = 0; i < count; i++) transform(q, gains, token + i, x), quantize(q, token + i, x);
                continue;
            }
            for (int64_t i = 0; i < TOGETHER; i++) transform(q, gains, token + std::min(i, count - 1), x + i * size);
            float* rotated = x + TOGETHER * size;
            permute_rotate(q, from, x, rotated);
            for (int64_t i = 0; i < count; i++) quantize(q, token + i, rotated + i * size);
        }
    });
}

#endif
