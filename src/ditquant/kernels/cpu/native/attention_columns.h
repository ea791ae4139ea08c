// Attention in bfloat16 by the tile registers of AMX, whose scores are k qT: the lanes of a vector are queries, and what
// the softmax of each of them needs is found without looking across lanes.
//
// While vectors take the exponentials of a tile of keys, the registers multiply those of the tile before it by its
// values and find the scores of the tile behind it. 32 queries at a time: all that is written stays in the first cache.
#pragma once

#include "amx.h"
#include "attention_bfloat16.h"

#if DITQUANT_X86

namespace ditquant {

constexpr int64_t VALUES = TILE_BYTES / 2;  // bfloat16 of a register's row

class Columns {
    static constexpr float NOTHING = -std::numeric_limits<float>::infinity();
    static constexpr float ABOVE = 6;         // how far an exponent may rise above `top_`
    static constexpr float BELOW = 120;       // 2^-120 stands for all that is less
    static constexpr float MAGIC = 12582912;  // 1.5 * 2^23: floats of this size are whole numbers
    static constexpr int64_t STEP = 4;        // keys between two products
    alignas(64) static constexpr float ZEROS[TILE_SIDE * PAIR] = {};

    Scratch<uint16_t> keys_, values_, queries_;
    Scratch<float> y_;                               // [padded width][PAIR]
    alignas(64) float scores_[TILE * PAIR];          // [key][query]
    alignas(64) uint16_t p_[TILE * PAIR];            // [pair of keys][query][2]
    alignas(64) float top_[PAIR], sum_[PAIR], keep_[PAIR];  // exponents are less `top_`
    int64_t vectors_ = 0, parts_ = 0;                // of 16 and of VALUES channels

    // Scores of 16 keys, those of a tile from `key` on.
    void score(const uint16_t* queries, int64_t tile, int64_t key) {
        const char *k = reinterpret_cast<const char*>(keys_.get(0) + (tile * TILE + key) * parts_ * VALUES);
        const char *q = reinterpret_cast<const char*>(queries);
        load_tile<0>(ZEROS, PAIR * 4), load_tile<1>(ZEROS, PAIR * 4);  // a product is late behind tilezero
        for (int64_t i = 0; i < parts_; i++, k += TILE_BYTES, q += TILE_SIDE * TILE * 4) {
            load_tile<2>(k, parts_ * TILE_BYTES);
            load_tile<3>(q, TILE * 4);
            multiply_bfloat16<0, 2, 3>();
            load_tile<3>(q + TILE_BYTES, TILE * 4);
            multiply_bfloat16<1, 2, 3>();
        }
        float* to = scores_ + key * PAIR;
        store_tile<0>(to, PAIR * 4), store_tile<1>(to + TILE_SIDE, PAIR * 4);
    }

    // Keep the probabilities of a tile in registers.
    void load_probabilities() const {
        const uint16_t* half = p_ + VALUES * PAIR;
        load_tile<4>(p_, PAIR * 4), load_tile<5>(p_ + VALUES, PAIR * 4);
        load_tile<6>(half, PAIR * 4), load_tile<7>(half + VALUES, PAIR * 4);
    }

    // y of 16 channels += values of a tile times the probabilities.
    void mix(int64_t tile, int64_t vector) {
        const uint16_t *v = values_.get(0) + (tile * 2 * vectors_ + vector) * TILE_SIDE * VALUES;
        float* y = y_.get(0) + vector * TILE_SIDE * PAIR;
        load_tile<0>(y, PAIR * 4), load_tile<1>(y + TILE_SIDE, PAIR * 4);
        load_tile<2>(v, TILE_BYTES);
        multiply_bfloat16<0, 2, 4>(), multiply_bfloat16<1, 2, 5>();
        load_tile<3>(v + vectors_ * TILE_SIDE * VALUES, TILE_BYTES);
        multiply_bfloat16<0, 3, 6>(), multiply_bfloat16<1, 3, 7>();
        store_tile<0>(y, PAIR * 4), store_tile<1>(y + TILE_SIDE, PAIR * 4);
    }

    // Set what lies beyond the last key, add a bias, and return what scores are to be multiplied by.
    float prepare(int64_t there, float slope, const float* bias) {
        for (int64_t i = there * PAIR; i < TILE * PAIR; i++) scores_[i] = NOTHING;
        if (!bias) return slope;
        for (int64_t key = 0; key < there; key++) {
            for (float* s = scores_ + key * PAIR; s < scores_ + (key + 1) * PAIR; s += 16) {
                const __m512 more = _mm512_set1_ps(bias[key] * LOG2_E);
                _mm512_store_ps(s, _mm512_fmadd_ps(_mm512_load_ps(s), _mm512_set1_ps(slope), more));
            }
        }
        return 1;
    }

    // Raise `top_` where the scores rise far above it; returns whether any did.
    bool look(float slope) {
        __m512 high[4];
        DITQUANT_UNROLL for (int j = 0; j < 4; j++) high[j] = _mm512_load_ps(scores_ + 16 * j);
        for (int64_t key = 2; key < TILE; key += 2) {
            DITQUANT_UNROLL for (int j = 0; j < 4; j++) high[j] = _mm512_max_ps(_mm512_load_ps(scores_ + key * PAIR + 16 * j), high[j]);
        }
        unsigned any = 0;
        DITQUANT_UNROLL for (int j = 0; j < 2; j++) {
            const __m512 before = _mm512_load_ps(top_ + 16 * j);
            const __m512 now = _mm512_mul_ps(_mm512_max_ps(high[j], high[j + 2]), _mm512_set1_ps(slope));
            const __mmask16 rises = _mm512_cmp_ps_mask(now, _mm512_add_ps(before, _mm512_set1_ps(ABOVE)), _CMP_GT_OQ);
            const __m512 top = _mm512_mask_mov_ps(before, rises, now);
            const __m512 keep = exp2(_mm512_maskz_sub_ps(rises, before, top));
            _mm512_store_ps(top_ + 16 * j, top), _mm512_store_ps(keep_ + 16 * j, keep);
            any |= rises;
        }
        return any != 0;
    }

    void fade() {
        const __m512 keep[2] = {_mm512_load_ps(keep_), _mm512_load_ps(keep_ + 16)};
        for (float *y = y_.get(0), *end = y + vectors_ * 16 * PAIR; y < end; y += 16) {
            _mm512_store_ps(y, _mm512_mul_ps(_mm512_load_ps(y), keep[(y - end) / 16 & 1]));
        }
    }

    // Take the exponentials of a tile; between them the values of tile `mixed` and the scores of tile `scored`, where
    // these are not below zero.
    void exponentiate(float slope, const uint16_t* queries, int64_t mixed, int64_t scored) {
        const __m512 slopes = _mm512_set1_ps(slope);
        __m512 sum[2], less[2], low[2];
        DITQUANT_UNROLL for (int j = 0; j < 2; j++) {
            const __m512 top = _mm512_load_ps(top_ + 16 * j);
            less[j] = _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(top, _mm512_set1_ps(NOTHING), _CMP_NEQ_UQ), top);
            sum[j] = _mm512_mul_ps(_mm512_load_ps(sum_ + 16 * j), _mm512_load_ps(keep_ + 16 * j));
            low[j] = _mm512_div_ps(_mm512_sub_ps(less[j], _mm512_set1_ps(BELOW)), slopes);
        }
        int64_t vector = 0;
        for (int64_t key = 0; key < TILE; key += STEP) {
            DITQUANT_UNROLL for (int64_t i = key; i < key + STEP; i += 2) {
                DITQUANT_UNROLL for (int j = 0; j < 2; j++) {
                    const float* s = scores_ + i * PAIR + 16 * j;
                    const __m512 even = power(_mm512_max_ps(low[j], _mm512_load_ps(s)), slopes, less[j]);
                    const __m512 odd = power(_mm512_max_ps(low[j], _mm512_load_ps(s + PAIR)), slopes, less[j]);
                    const __m512i both = pairs(even, odd);
                    _mm512_store_si512(p_ + i * PAIR + 32 * j, both);
                    // the sum of what is multiplied: rounding a large share does not move the mean
                    sum[j] = _mm512_dpbf16_ps(sum[j], (__m512bh)both, (__m512bh)_mm512_set1_epi16(0x3f80));
                }
            }
            if (mixed >= 0) {
                for (; vector * TILE < (key + STEP) * vectors_; vector++) mix(mixed, vector);
            }
            if (scored >= 0 && (key + STEP) % TILE_SIDE == 0) score(queries, scored, key + STEP - TILE_SIDE);
        }
        DITQUANT_UNROLL for (int j = 0; j < 2; j++) _mm512_store_ps(sum_ + 16 * j, sum[j]);
    }

    // 2^(s * slope - top), to 8e-5 of itself.
    static __m512 power(__m512 s, __m512 slope, __m512 top) {
        const __m512 x = _mm512_fmsub_ps(s, slope, top), magic = _mm512_set1_ps(MAGIC);
        const __m512 whole = _mm512_add_ps(x, magic), f = _mm512_sub_ps(x, _mm512_sub_ps(whole, magic));
        __m512 y = _mm512_set1_ps(5.5171451e-2f);  // least relative error for |f| <= 1/2
        y = _mm512_fmadd_ps(y, f, _mm512_set1_ps(2.4261064e-1f));
        y = _mm512_fmadd_ps(y, f, _mm512_set1_ps(6.9326098e-1f));
        y = _mm512_fmadd_ps(y, f, _mm512_set1_ps(9.999281e-1f));
        return _mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(y), _mm512_slli_epi32(_mm512_castps_si512(whole), 23)));
    }

    // 16 queries of two keys, as [query][2].
    static __m512i pairs(__m512 even, __m512 odd) {
        const __m512i order = _mm512_setr_epi32(0x100000, 0x110001, 0x120002, 0x130003, 0x140004, 0x150005, 0x160006, 0x170007,
                                                0x180008, 0x190009, 0x1a000a, 0x1b000b, 0x1c000c, 0x1d000d, 0x1e000e, 0x1f000f);
        return _mm512_permutexvar_epi16(order, (__m512i)_mm512_cvtne2ps_pbh(odd, even));
    }

    // PAIR queries, with the keys of `count` tiles.
    void attend_pair(const Attention& a, const uint16_t* queries, const float* bias, const int32_t* tiles, int64_t count) {
        std::fill_n(y_.get(vectors_ * 16 * PAIR), vectors_ * 16 * PAIR, 0.0f);
        std::fill_n(top_, PAIR, NOTHING), std::fill_n(sum_, PAIR, 0.0f), std::fill_n(keep_, PAIR, 1.0f);
        for (int64_t key = 0; count && key < TILE; key += TILE_SIDE) score(queries, tiles[0], key);
        for (int64_t t = 0; t < count; t++) {
            if (t > 0) load_probabilities();
            const int64_t first = tiles[t] * TILE;
            const float slope = prepare(std::min(a.keys - first, TILE), a.scale * LOG2_E, bias ? bias + first : nullptr);
            const bool fades = look(slope);
            exponentiate(slope, queries, t > 0 ? tiles[t - 1] : -1, t + 1 < count ? tiles[t + 1] : -1);
            if (fades) fade();
        }
        if (count) load_probabilities();
        for (int64_t vector = 0; count && vector < vectors_; vector++) mix(tiles[count - 1], vector);
    }

    // Divide by the sums, and store rows first .. first + count.
    void finish(const Attention& a, const Tokens& y, int64_t first, int64_t count) {
        for (int64_t i = 0; i < count; i += 16) {
            const __mmask16 seen = _mm512_cmp_ps_mask(_mm512_load_ps(top_ + i), _mm512_set1_ps(NOTHING), _CMP_NEQ_UQ);
            const __m512 inverse = _mm512_maskz_div_ps(seen, _mm512_set1_ps(1), _mm512_load_ps(sum_ + i));
            for (int64_t at = 0; at < a.width; at += 16) {
                __m512i block[16];
                DITQUANT_UNROLL for (int j = 0; j < 16; j++) {
                    block[j] = _mm512_castps_si512(_mm512_mul_ps(_mm512_load_ps(y_.get(0) + (at + j) * PAIR + i), inverse));
                }
                transpose(block);
                for (int64_t j = 0; j < std::min<int64_t>(16, count - i); j++) {
                    store(y(first + i + j), at, lanes(a.width - at), _mm512_castsi512_ps(block[j]), a.dtype);
                }
            }
        }
    }

  public:
    using Registers = TileRegisters;

    // K as [key][padded width], V as [32 keys][padded width][32 keys]; zero beyond the last.
    void pack(const Attention& a, const Tokens& k, const Tokens& v) {
        vectors_ = a.vectors(), parts_ = ceil_div(a.width, VALUES);
        const int64_t keys = a.key_tiles() * TILE, width = parts_ * VALUES;
        uint16_t* to = keys_.get(keys * width);
        for (int64_t key = 0; key < keys; key++) {
            for (int64_t at = 0; at < width; at += VALUES, to += VALUES) {
                const int64_t left = a.width - at;
                const __mmask32 there = left >= 32 ? ~0u : (1u << left) - 1;
                _mm512_store_si512(to, key < a.keys ? _mm512_maskz_loadu_epi16(there, k(key) + 2 * at) : _mm512_setzero_si512());
            }
        }
        to = values_.get(keys * vectors_ * 16);
        for (int64_t key = 0; key < keys; key += VALUES) {
            for (int64_t i = 0; i < vectors_; i++) {
                const auto wide = [&](int64_t at) {
                    if (at >= a.keys) return _mm512_setzero_si512();
                    return _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(lanes(a.width - 16 * i), v(at) + 32 * i));
                };
                __m512i pair[16];
                DITQUANT_UNROLL for (int j = 0; j < 16; j++) {
                    pair[j] = _mm512_or_si512(wide(key + 2 * j), _mm512_slli_epi32(wide(key + 2 * j + 1), 16));
                }
                transpose(pair);
                DITQUANT_UNROLL for (int j = 0; j < 16; j++, to += VALUES) _mm512_store_si512(to, pair[j]);
            }
        }
    }

    // Queries first .. end with the keys of `count` tiles.
    void attend(const Attention& a, const Tokens& q, const float* bias, const Tokens& y, int64_t first, int64_t end,
                const int32_t* tiles, int64_t count) {
        const int64_t groups = parts_ * TILE_SIDE;  // of two channels
        uint16_t* queries = queries_.get(round_up(end - first, TILE) * groups * 2);
        pack_rows(end - first, 2 * a.width, groups, [&](int64_t i) { return q(first + i); }, queries);
        for (int64_t row = first; row < end; row += PAIR) {
            const int64_t at = row - first;
            attend_pair(a, queries + at / TILE * TILE * groups * 2 + at % TILE * 2, bias, tiles, count);
            finish(a, y, row, std::min(end - row, PAIR));
        }
    }
};

}  // namespace ditquant

#endif
