// softmax(q kT * scale + bias) v in bfloat16 with float32 sums, block by block (FlashAttention), by vdpbf16ps.
#include <cmath>
#include <limits>

#include "parallel.h"
#include "transpose.h"

#if DITQUANT_X86

namespace ditquant {
namespace {

constexpr int ROWS = 6;           // queries of one step
constexpr int64_t QUERIES = 96;   // queries that share a block of keys in the cache
constexpr int64_t KEYS = 512;     // of a block
constexpr float LOG2_E = 1.44269504f;  // exponentials are powers of two here

struct Strides {
    int64_t batch, head, token;
};

struct Attention {
    const uint16_t *q, *k, *v;  // [batch, heads, tokens, width], neighbours in the last axis
    const float* bias;  // [batch, heads, keys] or null
    uint16_t* y;
    Strides of_q, of_k, of_v, of_y;
    int64_t heads, queries, keys, width;
    float scale;

    int64_t padded_keys() const { return round_up(keys, 64); }
    int64_t pairs() const { return ceil_div(width, 2); }
    int64_t vectors() const { return ceil_div(width, 16); }
};

inline __mmask32 first_halves(int64_t count) {
    return count >= 32 ? ~0u : (1u << (count < 0 ? 0 : count)) - 1;
}

// Keys as [key / 64][pair of channels][64 keys][2], zero beyond the last.
void pack_keys(const Attention& a, const uint16_t* k, uint16_t* to) {
    const int64_t pairs = a.pairs();
    for (int64_t key = 0; key < a.padded_keys(); key += 16) {
        uint16_t* tile = to + key / 64 * pairs * 128 + key % 64 * 2;
        for (int64_t pair = 0; pair < pairs; pair += 16) {
            const __mmask32 there = first_halves(a.width - 2 * pair);
            __m512i v[16];
            DITQUANT_UNROLL for (int i = 0; i < 16; i++) {
                const uint16_t* row = k + (key + i) * a.of_k.token + 2 * pair;
                v[i] = key + i < a.keys ? _mm512_maskz_loadu_epi16(there, row) : _mm512_setzero_si512();
            }
            transpose(v);
            DITQUANT_UNROLL for (int i = 0; i < 16; i++) {
                if (pair + i < pairs) _mm512_store_si512(tile + (pair + i) * 128, v[i]);
            }
        }
    }
}

// Values as [pair of keys][padded width][2], zero beyond the last.
void pack_values(const Attention& a, const uint16_t* v, uint16_t* to) {
    for (int64_t key = 0; key < a.padded_keys(); key += 2) {
        for (int64_t i = 0; i < a.vectors(); i++) {
            const auto there = static_cast<__mmask16>(first_halves(std::min<int64_t>(a.width - 16 * i, 16)));
            __m512i pair = _mm512_setzero_si512();
            for (int64_t j = 0; j < 2 && key + j < a.keys; j++) {
                const __m256i row = _mm256_maskz_loadu_epi16(there, v + (key + j) * a.of_v.token + 16 * i);
                const __m512i wide = _mm512_cvtepu16_epi32(row);
                pair = _mm512_or_si512(pair, j ? _mm512_slli_epi32(wide, 16) : wide);
            }
            _mm512_store_si512(to + (key * a.vectors() + 2 * i) * 16, pair);
        }
    }
}

inline __m512 dot(__m512 sum, const void* pair, __m512i b) {
    int32_t bits;
    __builtin_memcpy(&bits, pair, sizeof bits);
    return _mm512_dpbf16_ps(sum, (__m512bh)_mm512_set1_epi32(bits), (__m512bh)b);
}

// Scores of ROWS queries with `count` keys, a multiple of 64.
inline void score(const uint16_t* q, int64_t pairs, const uint16_t* k, int64_t count, float* to) {
    for (int64_t key = 0; key < count; key += 64, k += pairs * 128) {
        __m512 sum[ROWS][4];
        DITQUANT_UNROLL for (int i = 0; i < ROWS; i++) {
            DITQUANT_UNROLL for (int j = 0; j < 4; j++) sum[i][j] = _mm512_setzero_ps();
        }
        for (int64_t pair = 0; pair < pairs; pair++) {
            __m512i b[4];
            DITQUANT_UNROLL for (int j = 0; j < 4; j++) b[j] = _mm512_load_si512(k + pair * 128 + 32 * j);
            DITQUANT_UNROLL for (int i = 0; i < ROWS; i++) {
                DITQUANT_UNROLL for (int j = 0; j < 4; j++) sum[i][j] = dot(sum[i][j], q + (i * pairs + pair) * 2, b[j]);
            }
        }
        DITQUANT_UNROLL for (int i = 0; i < ROWS; i++) {
            DITQUANT_UNROLL for (int j = 0; j < 4; j++) _mm512_store_ps(to + i * KEYS + key + 16 * j, sum[i][j]);
        }
    }
}

// 2^x for x <= 0, to 3e-6; 0 far below; NaN stays NaN.
inline __m512 exp2(__m512 x) {
    x = _mm512_max_ps(_mm512_set1_ps(-200), x);
    const __m512 whole = _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    const __m512 f = _mm512_sub_ps(x, whole);
    __m512 y = _mm512_set1_ps(1.3333558e-3f);  // (ln 2)^n / n!, |f| <= 1/2
    y = _mm512_fmadd_ps(y, f, _mm512_set1_ps(9.6181291e-3f));
    y = _mm512_fmadd_ps(y, f, _mm512_set1_ps(5.5504109e-2f));
    y = _mm512_fmadd_ps(y, f, _mm512_set1_ps(2.4022651e-1f));
    y = _mm512_fmadd_ps(y, f, _mm512_set1_ps(6.9314718e-1f));
    y = _mm512_fmadd_ps(y, f, _mm512_set1_ps(1.0f));
    return _mm512_scalef_ps(y, whole);
}

// Largest score, times `factor`, and sum of the exponentials that a query has seen.
struct Seen {
    float high = -std::numeric_limits<float>::infinity(), sum = 0;
};

// Replace a row of scores by bfloat16 exponentials; return what earlier sums are to be multiplied by.
template <bool BIAS>
inline float exponentials(const float* scores, const float* bias, int64_t keys, float factor, uint16_t* to, Seen& seen) {
    const __m512 lowest = _mm512_set1_ps(-std::numeric_limits<float>::infinity());
    const __m512 slope = _mm512_set1_ps(factor), bias_slope = _mm512_set1_ps(LOG2_E);
    const int64_t padded = round_up(keys, 64);
    const auto part = [&](int64_t at) {
        const auto there = static_cast<__mmask16>(first_halves(std::min<int64_t>(keys - at, 16)));
        __m512 x = _mm512_mul_ps(_mm512_load_ps(scores + at), slope);
        if (BIAS) x = _mm512_fmadd_ps(_mm512_maskz_loadu_ps(there, bias + at), bias_slope, x);
        return _mm512_mask_mov_ps(lowest, there, x);
    };
    __m512 high = lowest;
    for (int64_t at = 0; at < padded; at += 16) high = _mm512_max_ps(high, part(at));
    const float before = seen.high, now = std::max(before, _mm512_reduce_max_ps(high));
    // a query that sees no key at all has no exponential above zero
    const float from = now == -std::numeric_limits<float>::infinity() ? 0 : now;
    const __m512 offset = _mm512_set1_ps(from);
    __m512 sum = _mm512_setzero_ps();
    for (int64_t at = 0; at < padded; at += 32) {
        const __m512 low = exp2(_mm512_sub_ps(part(at), offset)), up = exp2(_mm512_sub_ps(part(at + 16), offset));
        sum = _mm512_add_ps(sum, _mm512_add_ps(low, up));
        _mm512_store_si512(to + at, (__m512i)_mm512_cvtne2ps_pbh(up, low));
    }
    const float keep = std::exp2(before - from);
    seen = {now, seen.sum * keep + _mm512_reduce_add_ps(sum)};
    return keep;
}

// y = keep * y + p v for COUNT queries and VECTORS vectors of channels.
template <int COUNT, int VECTORS>
inline void mix(const uint16_t* p, const uint16_t* v, int64_t keys, int64_t vectors, const float* keep, float* y) {
    __m512 sum[COUNT][VECTORS];
    DITQUANT_UNROLL for (int i = 0; i < COUNT; i++) {
        DITQUANT_UNROLL for (int j = 0; j < VECTORS; j++) {
            sum[i][j] = _mm512_mul_ps(_mm512_load_ps(y + (i * vectors + j) * 16), _mm512_set1_ps(keep[i]));
        }
    }
    for (int64_t key = 0; key < keys; key += 2) {
        __m512i b[VECTORS];
        DITQUANT_UNROLL for (int j = 0; j < VECTORS; j++) b[j] = _mm512_load_si512(v + (key * vectors + 2 * j) * 16);
        DITQUANT_UNROLL for (int i = 0; i < COUNT; i++) {
            DITQUANT_UNROLL for (int j = 0; j < VECTORS; j++) sum[i][j] = dot(sum[i][j], p + i * KEYS + key, b[j]);
        }
    }
    DITQUANT_UNROLL for (int i = 0; i < COUNT; i++) {
        DITQUANT_UNROLL for (int j = 0; j < VECTORS; j++) _mm512_store_ps(y + (i * vectors + j) * 16, sum[i][j]);
    }
}

// All ROWS queries and all channels, in pieces that fit the registers.
inline void mix_rows(const uint16_t* p, const uint16_t* v, int64_t keys, int64_t vectors, const float* keep, float* y) {
    int64_t at = 0;
    for (; vectors - at >= 4 && vectors - at != 5; at += 4) mix<6, 4>(p, v + at * 32, keys, vectors, keep, y + at * 16);
    const auto rest = [&](auto piece, int count) {
        for (int i = 0; i < ROWS; i += count) piece(p + i * KEYS, v + at * 32, keys, vectors, keep + i, y + (i * vectors + at) * 16);
    };
    switch (vectors - at) {
        case 1: return rest(mix<6, 1>, 6);
        case 2: return rest(mix<6, 2>, 6);
        case 3: return rest(mix<6, 3>, 6);
        case 5: return rest(mix<3, 5>, 3);
    }
}

struct Memory {
    Scratch<uint16_t> k, v, q, p;
    Scratch<float> scores, y;
};

// Queries first .. end of one head whose keys and values are packed.
void attend(const Attention& a, Memory& memory, const uint16_t* q, const float* bias, uint16_t* y, int64_t first,
            int64_t end) {
    const int64_t pairs = a.pairs(), vectors = a.vectors(), count = round_up(end - first, ROWS);
    const uint16_t *k = memory.k.get(0), *v = memory.v.get(0);
    uint16_t* rows = memory.q.get(count * pairs * 2);
    float* sums = memory.y.get(count * vectors * 16);
    float* scores = memory.scores.get(ROWS * KEYS);
    uint16_t* p = memory.p.get(ROWS * KEYS);
    Seen seen[QUERIES];
    std::fill_n(rows, count * pairs * 2, uint16_t{0});
    std::fill_n(sums, count * vectors * 16, 0.0f);
    for (int64_t i = first; i < end; i++) std::copy_n(q + i * a.of_q.token, a.width, rows + (i - first) * pairs * 2);
    const float factor = a.scale * LOG2_E;
    for (int64_t key = 0; key < a.keys; key += KEYS) {
        const int64_t keys = std::min(KEYS, a.keys - key), padded = round_up(keys, 64);
        for (int64_t i = 0; i < count; i += ROWS) {
            float keep[ROWS];
            score(rows + i * pairs * 2, pairs, k + key * pairs * 2, padded, scores);
            for (int j = 0; j < ROWS; j++) {
                const auto row = bias ? exponentials<true> : exponentials<false>;
                keep[j] = row(scores + j * KEYS, bias ? bias + key : bias, keys, factor, p + j * KEYS, seen[i + j]);
            }
            mix_rows(p, v + key * vectors * 16, padded, vectors, keep, sums + i * vectors * 16);
        }
    }
    for (int64_t i = 0; i < end - first; i++) {
        const __m512 scale = _mm512_set1_ps(seen[i].sum == 0 ? 0 : 1 / seen[i].sum);
        for (int64_t j = 0; j < vectors; j++) {
            const auto there = static_cast<__mmask16>(first_halves(std::min<int64_t>(a.width - 16 * j, 16)));
            const __m512 value = _mm512_mul_ps(_mm512_load_ps(sums + (i * vectors + j) * 16), scale);
            _mm256_mask_storeu_epi16(y + (first + i) * a.of_y.token + 16 * j, there, (__m256i)_mm512_cvtneps_pbh(value));
        }
    }
}

}  // namespace
}  // namespace ditquant

using namespace ditquant;

// Strides are those of batch, head and token, in elements, of q, k, v and y in turn.
DITQUANT_API void ditquant_attention(const uint16_t* q, const uint16_t* k, const uint16_t* v, const float* bias,
                                     uint16_t* y, const int64_t* strides, int64_t batch, int64_t heads, int64_t queries,
                                     int64_t keys, int64_t width, float scale, int threads) {
    const auto of = [&](int i) { return Strides{strides[3 * i], strides[3 * i + 1], strides[3 * i + 2]}; };
    const Attention a{q, k, v, bias, y, of(0), of(1), of(2), of(3), heads, queries, keys, width, scale};
    // keys are packed once for every task: one task a head, more where threads would have nothing to do
    const int64_t blocks = ceil_div(queries, QUERIES);
    const int64_t parts = std::min(blocks, threads > 1 ? ceil_div(4 * threads, batch * heads) : 1);
    parallel(batch * heads * parts, threads, [&](int64_t task) {
        static thread_local Memory memory;
        const int64_t b = task / parts / heads, h = task / parts % heads, part = task % parts;
        const auto at = [&](const Strides& s) { return b * s.batch + h * s.head; };
        pack_keys(a, k + at(a.of_k), memory.k.get(a.padded_keys() * a.pairs() * 2));
        pack_values(a, v + at(a.of_v), memory.v.get(a.padded_keys() * a.vectors() * 16));
        for (int64_t block = blocks * part / parts; block < blocks * (part + 1) / parts; block++) {
            const int64_t first = block * QUERIES, end = std::min(first + QUERIES, queries);
            attend(a, memory, q + at(a.of_q), bias ? bias + (b * heads + h) * keys : bias, y + at(a.of_y), first, end);
        }
    });
}

#endif
