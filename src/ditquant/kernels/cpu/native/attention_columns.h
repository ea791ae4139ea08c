// Attention in bfloat16 by the tile registers of AMX, whose scores are k qT: the lanes of a vector are queries, and what
// the softmax of each of them needs is found without looking across lanes.
//
// While vectors take the exponentials of a tile of keys, the registers find the scores of the tile behind it and multiply
// the probabilities of the tile before it by its values: each product is loaded ahead of a few exponentials and computed
// behind them. 32 queries at a time: what is written stays in the first cache.
#pragma once

#include "amx.h"
#include "attention_bfloat16.h"

#if DITQUANT_X86

namespace ditquant {

constexpr int64_t VALUES = TILE_BYTES / 2;  // bfloat16 of a register's row

// sums [16, 16] += a [16, 32 n] b [32 n, 16], n <= 4. The registers 4 .. 7 keep b for many a.
class Product {
    const char* last_ = nullptr;  // the fourth register of a
    char* to_ = nullptr;
    int64_t stride_ = 0;  // of rows of a, in bytes
    int n_ = 0;

  public:
    static constexpr int64_t SUMS = PAIR * 4;  // stride of their rows, in bytes

    // n registers of b, `next` bytes apart.
    void keep(const void* b, int64_t next, int64_t stride, int64_t n) {
        const char* first = static_cast<const char*>(b);
        n_ = static_cast<int>(n);
        load_tile<4>(first, stride);
        if (n > 1) load_tile<5>(first + next, stride);
        if (n > 2) load_tile<6>(first + 2 * next, stride);
        if (n > 3) load_tile<7>(first + 3 * next, stride);
    }
    // The first half of a product: what it needs from memory. n registers of a, `next` bytes apart.
    void load(const void* from, void* to, const void* a, int64_t next, int64_t stride) {
        const char* first = static_cast<const char*>(a);
        to_ = static_cast<char*>(to), stride_ = stride, last_ = first + 3 * next;
        load_tile<0>(from, SUMS);
        stream_tile<1>(first, stride);
        if (n_ > 1) stream_tile<2>(first + next, stride);
        if (n_ > 2) stream_tile<3>(first + 2 * next, stride);
    }
    // The second half.
    void multiply() {
        multiply_bfloat16<0, 1, 4>();
        if (n_ > 1) multiply_bfloat16<0, 2, 5>();
        if (n_ > 2) multiply_bfloat16<0, 3, 6>();
        if (n_ > 3) stream_tile<1>(last_, stride_), multiply_bfloat16<0, 1, 7>();
        store_tile<0>(to_, SUMS);
    }
};

// What a unit of work is about: PAIR queries and the keys of a tile.
struct Unit {
    const uint16_t *queries, *k, *v;
    float* scores;   // [key][query]
    uint16_t* p;     // [pair of keys][query][2]
};

// Products in the order in which they are wanted: the scores of one unit, and then the values of another.
class Products {
    alignas(64) static constexpr float ZEROS[TILE_SIDE * PAIR] = {};  // a product is late behind tilezero
    Product product_;
    int64_t vectors_, parts_;
    float* y_;
    Unit scored_{}, mixed_{};
    int64_t scoring_ = 0, all_ = 0, done_ = 0;
    int64_t column_ = 0, chunk_ = 0, row_ = 0;

    void load() {
        if (done_ == scoring_) column_ = chunk_ = row_ = 0;
        done_ < scoring_ ? load_scores() : load_values();
    }

    // Of 16 keys; up to 4 x 32 channels.
    void load_scores() {
        if (row_ == 0) {
            const int64_t n = std::min<int64_t>(4, parts_ - 4 * chunk_);
            product_.keep(scored_.queries + chunk_ * 4 * VALUES * TILE + column_ * VALUES, VALUES * TILE * 2, TILE * 4, n);
        }
        float* to = scored_.scores + row_ * TILE_SIDE * PAIR + column_ * TILE_SIDE;
        const uint16_t* k = scored_.k + (row_ * TILE_SIDE * parts_ + 4 * chunk_) * VALUES;
        product_.load(chunk_ ? to : ZEROS, to, k, TILE_BYTES, parts_ * TILE_BYTES);
    }

    // Of 16 channels; 2 x 32 keys.
    void load_values() {
        if (row_ == 0) product_.keep(mixed_.p + column_ * VALUES, VALUES * PAIR * 2, PAIR * 4, 2);
        float* y = y_ + row_ * TILE_SIDE * PAIR + column_ * TILE_SIDE;
        product_.load(y, y, mixed_.v + row_ * TILE_SIDE * VALUES, vectors_ * TILE_SIDE * TILE_BYTES, TILE_BYTES);
    }

    void multiply() {
        product_.multiply();
        const bool scores = done_ < scoring_;
        if (++row_ == (scores ? TILE / TILE_SIDE : vectors_)) {
            row_ = 0;
            if (!scores || 4 * ++chunk_ >= parts_) chunk_ = 0, column_++;
        }
        done_++;
    }

  public:
    Products(int64_t vectors, int64_t parts, float* y) : vectors_(vectors), parts_(parts), y_(y) {}
    void set(const Unit* scored, const Unit* mixed) {
        scoring_ = done_ = column_ = chunk_ = row_ = 0;
        if (scored) scored_ = *scored, scoring_ = 2 * ceil_div(parts_, 4) * TILE / TILE_SIDE;
        if (mixed) mixed_ = *mixed;
        all_ = scoring_ + (mixed ? 2 * vectors_ : 0);
    }
    // Do work(), and between the halves of products their `share` of `whole`.
    template <class Work>
    void with(int64_t share, int64_t whole, const Work& work) {
        const bool due = done_ * whole < all_ * share;
        if (due) load();
        work();
        if (due) multiply();
        while (done_ * whole < all_ * share) load(), multiply();
    }
    void finish() {
        while (done_ < all_) load(), multiply();
    }
};

class Columns {
    static constexpr float NOTHING = -std::numeric_limits<float>::infinity();
    static constexpr float ABOVE = 6;   // how far an exponent may rise above `top_`
    static constexpr int64_t STEP = 4;  // keys between two products

    Scratch<uint16_t> keys_, values_, queries_;
    Scratch<float> y_;                                      // [padded width][PAIR]
    alignas(64) float scores_[2][TILE * PAIR];
    alignas(64) uint16_t p_[2][TILE * PAIR];
    alignas(64) float top_[PAIR], sum_[PAIR], keep_[PAIR];  // exponents are less `top_`
    int64_t vectors_ = 0, parts_ = 0;                       // of 16 and of VALUES channels

    // Set what lies beyond the last key, add a bias, and return what scores are to be multiplied by.
    static float prepare(float* scores, int64_t there, float slope, const float* bias) {
        for (int64_t i = there * PAIR; i < TILE * PAIR; i++) scores[i] = NOTHING;
        if (!bias) return slope;
        for (int64_t key = 0; key < there; key++) {
            for (float* s = scores + key * PAIR; s < scores + (key + 1) * PAIR; s += 16) {
                const __m512 more = _mm512_set1_ps(bias[key] * LOG2_E);
                _mm512_store_ps(s, _mm512_fmadd_ps(_mm512_load_ps(s), _mm512_set1_ps(slope), more));
            }
        }
        return 1;
    }

    // Raise `top_` where the scores rise far above it; returns whether any did.
    bool look(const float* scores, float slope) {
        __m512 high[4];
        DITQUANT_UNROLL for (int j = 0; j < 4; j++) high[j] = _mm512_load_ps(scores + 16 * j);
        for (int64_t key = 2; key < TILE; key += 2) {
            DITQUANT_UNROLL for (int j = 0; j < 4; j++) high[j] = _mm512_max_ps(_mm512_load_ps(scores + key * PAIR + 16 * j), high[j]);
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

    // Take the exponentials of a tile, and meanwhile products.
    void exponentiate(const Unit& unit, float slope, Products& products) {
        const __m512 slopes = _mm512_set1_ps(slope);
        __m512 sum[2], less[2];
        DITQUANT_UNROLL for (int j = 0; j < 2; j++) {
            const __m512 top = _mm512_load_ps(top_ + 16 * j);
            less[j] = _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(top, _mm512_set1_ps(NOTHING), _CMP_NEQ_UQ), top);
            sum[j] = _mm512_mul_ps(_mm512_load_ps(sum_ + 16 * j), _mm512_load_ps(keep_ + 16 * j));
        }
        for (int64_t key = 0; key < TILE; key += STEP) {
            products.with(key + STEP, TILE, [&] {
                DITQUANT_UNROLL for (int64_t i = key; i < key + STEP; i += 2) {
                    DITQUANT_UNROLL for (int j = 0; j < 2; j++) {
                        const float* s = unit.scores + i * PAIR + 16 * j;
                        const __m512 even = power(_mm512_load_ps(s), slopes, less[j]);
                        const __m512 odd = power(_mm512_load_ps(s + PAIR), slopes, less[j]);
                        const __m512i both = pairs(even, odd);
                        _mm512_store_si512(unit.p + i * PAIR + 32 * j, both);
                        // the sum of what is multiplied: rounding a large share does not move the mean
                        sum[j] = _mm512_dpbf16_ps(sum[j], (__m512bh)both, (__m512bh)_mm512_set1_epi16(0x3f80));
                    }
                }
            });
        }
        DITQUANT_UNROLL for (int j = 0; j < 2; j++) _mm512_store_ps(sum_ + 16 * j, sum[j]);
    }

    // 2^(s * slope - top), to 8e-5 of itself.
    static __m512 power(__m512 s, __m512 slope, __m512 top) {
        const __m512 x = _mm512_fmsub_ps(s, slope, top);
        const __m512 f = _mm512_reduce_ps(x, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);  // less the next lower whole number
        __m512 y = _mm512_set1_ps(7.8024589e-2f);  // least relative error for 0 <= f <= 1
        y = _mm512_fmadd_ps(y, f, _mm512_set1_ps(2.2606723e-1f));
        y = _mm512_fmadd_ps(y, f, _mm512_set1_ps(6.9583338e-1f));
        y = _mm512_fmadd_ps(y, f, _mm512_set1_ps(9.9992520e-1f));
        return _mm512_scalef_ps(y, x);
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
        Products products(vectors_, parts_, y_.get(0));
        const auto unit = [&](int64_t t) {
            const int64_t first = tiles[t] * TILE;
            const uint16_t *k = keys_.get(0) + first * parts_ * VALUES, *v = values_.get(0) + first * vectors_ * TILE_SIDE;
            return Unit{queries, k, v, scores_[t % 2], p_[t % 2]};
        };
        Unit before{}, now{}, next{};
        if (count) next = unit(0), products.set(&next, nullptr);
        products.finish();
        for (int64_t t = 0; t < count; t++) {
            before = now, now = next;
            if (t + 1 < count) next = unit(t + 1);
            products.set(t + 1 < count ? &next : nullptr, t ? &before : nullptr);
            const int64_t first = tiles[t] * TILE;
            const float slope = prepare(now.scores, std::min(a.keys - first, TILE), a.scale * LOG2_E, bias ? bias + first : nullptr);
            const bool fades = look(now.scores, slope);
            exponentiate(now, slope, products);
            if (fades) fade();
        }
        products.set(nullptr, count ? &now : nullptr);
        products.finish();
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
                    const __m256i half = (__m256i)_mm512_cvtneps_pbh(_mm512_castsi512_ps(block[j]));
                    _mm256_mask_storeu_epi16(y(first + i + j) + 2 * at, lanes(a.width - at), half);
                }
            }
        }
    }

    // Bring tokens first .. end nearer, to be read or written: those of a head lie far apart, where no one foresees them.
    // Inline, as GCC leaves out calls of functions that do nothing else.
    template <int WRITE>
    [[gnu::always_inline]] static inline void fetch(const Attention& a, const Tokens& x, int64_t first, int64_t end) {
        for (int64_t i = first; i < end; i++) {
            for (const char *at = x(i), *last = at + 2 * a.width - 1; at < last; at += 64) __builtin_prefetch(at, WRITE, 2);
            __builtin_prefetch(x(i) + 2 * a.width - 1, WRITE, 2);
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
        fetch<0>(a, q, end, std::min(2 * end - first, a.queries));
        for (int64_t row = first; row < end; row += PAIR) {
            const int64_t at = row - first;
            fetch<1>(a, y, row, std::min(row + PAIR, end));
            attend_pair(a, queries + at / TILE * TILE * groups * 2 + at % TILE * 2, bias, tiles, count);
            finish(a, y, row, std::min(end - row, PAIR));
        }
    }
};

}  // namespace ditquant

#endif
