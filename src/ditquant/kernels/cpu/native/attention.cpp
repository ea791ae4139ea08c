// softmax(q kT * scale + bias) v tile by tile (FlashAttention), over the kept tiles of reordered tokens (PAROAttention).
#include <cmath>

#include "attention_amx.h"
#include "attention_columns.h"

#if DITQUANT_X86

namespace ditquant {
namespace {

constexpr int64_t QUERIES = 96;  // queries that share a block of keys in the cache, where no tiles are left out
constexpr float NOTHING = -std::numeric_limits<float>::infinity();

// One head at a time: its keys and values are packed, then blocks of queries attend.
template <class Scores, class Mix>
class Head {
    static constexpr int64_t KEYS = Mix::GROUP * TILE, STEP = Scores::STEP;
    using Probability = typename Mix::Probability;
    Scores scores_of_;
    Mix mix_;
    Scratch<float> scores_, sums_, tops_, units_, parts_;  // the last three: [row][SHARES]
    Scratch<Probability> p_;
    float high_[QUERIES], sum_[QUERIES], keep_[QUERIES];  // largest exponent and sum seen; factor of earlier sums

    // Exponents of two of 16 scores; nothing beyond the last key.
    template <bool BIAS>
    __m512 exponents(const Attention& a, const float* scores, __m512 slope, const float* bias, int32_t tile, int64_t t,
                     int64_t at) const {
        const __mmask16 there = lanes(a.keys - tile * TILE - at);
        __m512 x = _mm512_mul_ps(_mm512_load_ps(scores + t * TILE + at), slope);
        if (BIAS) x = _mm512_fmadd_ps(_mm512_maskz_loadu_ps(there, bias + tile * TILE + at), _mm512_set1_ps(LOG2_E), x);
        return _mm512_mask_mov_ps(_mm512_set1_ps(NOTHING), there, x);
    }

    // Whether the exponents of a tile are its scores times a query's slope.
    template <bool BIAS>
    bool plain(const Attention& a, int32_t tile) const {
        return !BIAS && (tile + 1) * TILE <= a.keys;
    }

    // Find the largest exponent that a query has seen. With scales also those of its tiles, less that, and their powers.
    template <bool BIAS>
    void look(const Attention& a, const float* scores, const float* bias, const int32_t* tiles, int64_t count, int64_t i,
              float* tops, float* units) {
        const __m512 slope = _mm512_set1_ps(scores_of_.slope(i));
        __m512 high = _mm512_set1_ps(NOTHING);
        for (int64_t t = 0; t < count; t++) {
            if (Mix::SCALED) high = _mm512_set1_ps(NOTHING);
            if (plain<BIAS>(a, tiles[t])) {
                __m512 score = _mm512_load_ps(scores + t * TILE);
                for (int64_t at = 16; at < TILE; at += 16) score = _mm512_max_ps(score, _mm512_load_ps(scores + t * TILE + at));
                high = _mm512_max_ps(high, _mm512_mul_ps(score, slope));
            } else {
                for (int64_t at = 0; at < TILE; at += 16) {
                    high = _mm512_max_ps(high, exponents<BIAS>(a, scores, slope, bias, tiles[t], t, at));
                }
            }
            if (Mix::SCALED) tops[t] = _mm512_reduce_max_ps(high);
        }
        float now = high_[i];
        if (Mix::SCALED) {
            for (int64_t t = 0; t < count; t++) now = std::max(now, tops[t]);
        } else {
            now = std::max(now, _mm512_reduce_max_ps(high));
        }
        // a query that sees no key at all has no exponential above zero
        keep_[i] = std::exp2(high_[i] - (now == NOTHING ? 0 : now));
        high_[i] = now;
        if (Mix::SCALED) {
            // -100 for a tile of which a query sees nothing
            const __m512 top = _mm512_sub_ps(_mm512_load_ps(tops), _mm512_set1_ps(now));
            const __m512 bounded = _mm512_max_ps(top, _mm512_set1_ps(-100));
            _mm512_store_ps(tops, bounded);
            _mm512_store_ps(units, exp2(bounded));
        }
    }

    // Replace a row of scores by probabilities, not yet divided by their sum.
    template <bool BIAS>
    void exponentiate(const Attention& a, const float* scores, const float* bias, const int32_t* tiles, int64_t count,
                      int64_t i, const float* tops, float* units, float* parts, Probability* p) {
        const float most = static_cast<float>((1 << a.pv_bits) - 1), inverse = 1 / most;
        const __m512 full = _mm512_set1_ps(most), slope = _mm512_set1_ps(scores_of_.slope(i));
        float sum = 0;
        __m512 all = _mm512_setzero_ps();
        for (int64_t t = 0; t < count; t++) {
            const __m512 offset = _mm512_set1_ps((high_[i] == NOTHING ? 0 : high_[i]) + (Mix::SCALED ? tops[t] : 0));
            const auto put = [&](int64_t at, __m512 low, __m512 up) {
                low = exp2(low), up = exp2(up);
                all = _mm512_add_ps(all, _mm512_add_ps(low, up));
                if (Mix::SCALED) low = _mm512_mul_ps(low, full), up = _mm512_mul_ps(up, full);
                Mix::put(p + t * TILE + at, low, up);
            };
            if (plain<BIAS>(a, tiles[t])) {
                const auto exponent = [&](int64_t at) {
                    return _mm512_fmsub_ps(_mm512_load_ps(scores + t * TILE + at), slope, offset);
                };
                DITQUANT_UNROLL for (int64_t at = 0; at < TILE; at += 32) put(at, exponent(at), exponent(at + 16));
            } else {
                const auto exponent = [&](int64_t at) {
                    return _mm512_sub_ps(exponents<BIAS>(a, scores, slope, bias, tiles[t], t, at), offset);
                };
                for (int64_t at = 0; at < TILE; at += 32) put(at, exponent(at), exponent(at + 16));
            }
            if (Mix::SCALED) {
                parts[t] = _mm512_reduce_add_ps(all) * units[t];
                units[t] *= inverse;
                sum += parts[t];
                all = _mm512_setzero_ps();
            }
        }
        sum_[i] = sum_[i] * keep_[i] + (Mix::SCALED ? sum : _mm512_reduce_add_ps(all));
    }

    // Queries first .. first + rows of the block, and a few tiles of keys.
    template <bool BIAS>
    void strip(const Attention& a, const float* bias, const int32_t* tiles, int64_t count, int64_t first, int64_t rows) {
        float* scores = scores_.get(Mix::STRIP * KEYS);
        Probability* p = p_.get(Mix::STRIP * KEYS);
        float *tops = tops_.get(Mix::STRIP * SHARES), *units = units_.get(Mix::STRIP * SHARES);
        float* parts = parts_.get(Mix::STRIP * SHARES);
        for (int64_t i = 0; i < rows; i += STEP) {
            for (int64_t t = 0; t < count; t++) scores_of_.score(first + i, tiles[t], scores + i * KEYS + t * TILE, KEYS);
        }
        for (int64_t i = 0; i < rows; i++) {
            const int64_t share = i * SHARES;
            look<BIAS>(a, scores + i * KEYS, bias, tiles, count, first + i, tops + share, units + share);
            exponentiate<BIAS>(a, scores + i * KEYS, bias, tiles, count, first + i, tops + share, units + share,
                               parts + share, p + i * KEYS);
        }
        for (int64_t i = 0; i < rows; i += STEP) {
            float* y = sums_.get(0) + (first + i) * a.vectors() * 16;
            mix_.mix(a, p + i * KEYS, KEYS, tiles, Shares{units, parts}.from(i), count, keep_ + first + i, y);
        }
    }

  public:
    using Registers = typename Scores::Registers;

    void pack(const Attention& a, const Tokens& k, const Tokens& v) {
        scores_of_.template keys<Scores>(a, k);
        mix_.values(a, v);
    }

    // Queries first .. end with the keys of `count` tiles.
    void attend(const Attention& a, const Tokens& q, const float* bias, const Tokens& y, int64_t first, int64_t end,
                const int32_t* tiles, int64_t count) {
        const int64_t rows = round_up(end - first, STEP), vectors = a.vectors();
        scores_of_.template queries<Scores>(a, q, first, end);
        float* sums = sums_.get(rows * vectors * 16);
        std::fill_n(sums, rows * vectors * 16, 0.0f);
        std::fill_n(high_, rows, NOTHING);
        std::fill_n(sum_, rows, 0.0f);
        for (int64_t t = 0; t < count; t += Mix::GROUP) {
            const int64_t some = std::min(Mix::GROUP, count - t);
            for (int64_t i = 0; i < rows; i += Mix::STRIP) {
                const int64_t size = std::min(Mix::STRIP, rows - i);
                bias ? strip<true>(a, bias, tiles + t, some, i, size) : strip<false>(a, bias, tiles + t, some, i, size);
            }
        }
        for (int64_t i = 0; i < end - first; i++) {
            const __m512 inverse = _mm512_set1_ps(sum_[i] == 0 ? 0 : 1 / sum_[i]);
            for (int64_t at = 0; at < a.width; at += 16) {
                const __m512 value = _mm512_mul_ps(_mm512_load_ps(sums + i * vectors * 16 + at), inverse);
                store(y(first + i), at, lanes(a.width - at), value, a.dtype);
            }
        }
    }
};

template <class Head>
void attend_all(const Attention& a, int64_t batch, int threads) {
    const int64_t size = a.tiles || a.pv_bits < 16 || a.qk_bits < 16 ? TILE : QUERIES, blocks = ceil_div(a.queries, size);
    // keys are packed once for every task: one task a head, more where threads would have nothing to do
    const int64_t parts = std::min(blocks, threads > 1 ? ceil_div(4 * threads, batch * a.heads) : 1);
    std::vector<int32_t> every(a.key_tiles());
    for (size_t i = 0; i < every.size(); i++) every[i] = static_cast<int32_t>(i);
    parallel(batch * a.heads * parts, threads, [&](int64_t task) {
        static thread_local Head head;
        const typename Head::Registers registers;
        const int64_t b = task / parts / a.heads, h = task / parts % a.heads, part = task % parts;
        const auto of = [&](const void* x, const Strides& strides) { return Tokens(a, x, strides, b, h); };
        const Tokens q = of(a.q, a.of_q), y = of(a.y, a.of_y);
        head.pack(a, of(a.k, a.of_k), of(a.v, a.of_v));
        for (int64_t block = blocks * part / parts; block < blocks * (part + 1) / parts; block++) {
            const int64_t first = block * size, end = std::min(first + size, a.queries);
            const int64_t* row = a.tiles ? a.starts + h * blocks + block : nullptr;
            const int32_t* tiles = row ? a.tiles + row[0] : every.data();
            const float* bias = a.bias ? a.bias + (b * a.heads + h) * a.keys : nullptr;
            head.attend(a, q, bias, y, first, end, tiles, row ? row[1] - row[0] : a.key_tiles());
        }
    });
}

// Take the products that the bits ask for; `Both16` where both are of bfloat16.
template <class Both16, class QK16, class QK8, class PV16, class PV8>
void attend_by(const Attention& a, int64_t batch, int threads) {
    if (a.qk_bits == 16 && a.pv_bits == 16) return attend_all<Both16>(a, batch, threads);
    if (a.qk_bits == 16) return attend_all<Head<QK16, PV8>>(a, batch, threads);
    return a.pv_bits == 16 ? attend_all<Head<QK8, PV16>>(a, batch, threads) : attend_all<Head<QK8, PV8>>(a, batch, threads);
}

}  // namespace
}  // namespace ditquant

using namespace ditquant;

// Strides are those of batch, head and token, in elements, of q, k, v and y in turn. With an order, or with integers,
// there are as many queries as keys.
DITQUANT_API void ditquant_attention(const void* q, const void* k, const void* v, const float* bias, void* y,
                                     const int64_t* strides, const int32_t* order, const int32_t* tiles,
                                     const int64_t* starts, int64_t batch, int64_t heads, int64_t queries, int64_t keys,
                                     int64_t width, float scale, int dtype, int qk_bits, int pv_bits, int threads) {
    const auto of = [&](int i) { return Strides{strides[3 * i], strides[3 * i + 1], strides[3 * i + 2]}; };
    const Attention a{q,     k,     v,     y,     bias,    order, tiles, starts, of(0),   of(1),
                      of(2), of(3), heads, queries, keys, width, scale, dtype,  qk_bits, pv_bits};
    uses_amx() ? attend_by<Columns, AmxScores16, AmxScores8, AmxMix16, AmxMix8>(a, batch, threads)
               : attend_by<Head<Scores16, Mix16s>, Scores16, Scores8, Mix16s, Mix8s>(a, batch, threads);
}

#endif
