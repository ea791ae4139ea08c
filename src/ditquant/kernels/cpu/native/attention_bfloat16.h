// Both products of attention in bfloat16 with float32 sums, by vdpbf16ps.
#pragma once

#include "attention.h"
#include "transpose.h"

#if DITQUANT_X86

namespace ditquant {

inline __m512 dot(__m512 sum, const void* pair, __m512i b) {
    int32_t bits;
    __builtin_memcpy(&bits, pair, sizeof bits);
    return _mm512_dpbf16_ps(sum, (__m512bh)_mm512_set1_epi32(bits), (__m512bh)b);
}

// Rows of `bytes` bytes as [row / 64][groups of 4 bytes][64 rows], zero beyond the last row and byte.
template <class Row>
void pack_rows(int64_t count, int64_t bytes, int64_t groups, const Row& row, void* to) {
    for (int64_t i = 0; i < round_up(count, TILE); i += 16) {
        char* tile = static_cast<char*>(to) + i / TILE * groups * 256 + i % TILE * 4;
        for (int64_t group = 0; group < groups; group += 16) {
            const int64_t left = std::max<int64_t>(bytes - 4 * group, 0);
            const __mmask64 there = left >= 64 ? ~0ull : (1ull << left) - 1;
            __m512i v[16];
            DITQUANT_UNROLL for (int j = 0; j < 16; j++) {
                v[j] = i + j < count ? _mm512_maskz_loadu_epi8(there, row(i + j) + 4 * group) : _mm512_setzero_si512();
            }
            transpose(v);
            DITQUANT_UNROLL for (int j = 0; j < 16; j++) {
                if (group + j < groups) _mm512_store_si512(tile + (group + j) * 256, v[j]);
            }
        }
    }
}

// Scores of queries with the keys of a tile.
class Scores16 {
    Scratch<uint16_t> keys_, rows_;
    float slope_ = 0;

  protected:
    const uint16_t *k_ = nullptr, *q_ = nullptr;
    int64_t pairs_ = 0;

  public:
    using Registers = NoTileRegisters;
    static constexpr int64_t STEP = ROWS, CHANNELS = 2;  // queries whose scores are found together; padding

    template <class Self>
    void keys(const Attention& a, const Tokens& k) {
        pairs_ = round_up(a.width, Self::CHANNELS) / 2;
        slope_ = a.scale * LOG2_E;
        uint16_t* to = keys_.get(a.key_tiles() * TILE * pairs_ * 2);
        pack_rows(a.keys, 2 * a.width, pairs_, k, to);
        k_ = to;
    }

    template <class Self>
    void queries(const Attention& a, const Tokens& q, int64_t first, int64_t end) {
        const int64_t size = round_up(end - first, Self::STEP) * pairs_ * 2;
        uint16_t* to = rows_.get(size);
        std::fill_n(to, size, uint16_t{0});
        for (int64_t i = first; i < end; i++) {
            std::copy_n(reinterpret_cast<const uint16_t*>(q(i)), a.width, to + (i - first) * pairs_ * 2);
        }
        q_ = to;
    }

    // What scores of a query are to be multiplied by, to be exponents of two; it is not negative.
    float slope(int64_t) const { return slope_; }

    // STEP queries from `row` on; `to` has `stride` floats a query.
    void score(int64_t row, int64_t tile, float* to, int64_t stride) const {
        const uint16_t *q = q_ + row * pairs_ * 2, *k = k_ + tile * pairs_ * 128;
        __m512 sum[ROWS][4];
        DITQUANT_UNROLL for (int i = 0; i < ROWS; i++) {
            DITQUANT_UNROLL for (int j = 0; j < 4; j++) sum[i][j] = _mm512_setzero_ps();
        }
        for (int64_t pair = 0; pair < pairs_; pair++) {
            __m512i b[4];
            DITQUANT_UNROLL for (int j = 0; j < 4; j++) b[j] = _mm512_load_si512(k + pair * 128 + 32 * j);
            DITQUANT_UNROLL for (int i = 0; i < ROWS; i++) {
                DITQUANT_UNROLL for (int j = 0; j < 4; j++) sum[i][j] = dot(sum[i][j], q + (i * pairs_ + pair) * 2, b[j]);
            }
        }
        DITQUANT_UNROLL for (int i = 0; i < ROWS; i++) {
            DITQUANT_UNROLL for (int j = 0; j < 4; j++) _mm512_store_ps(to + i * stride + 16 * j, sum[i][j]);
        }
    }
};

template <int COUNT, int VECTORS>
struct Mix16 {
    // y = keep * y + p v, over the tiles of a list
    static void run(int row, int64_t at, const uint16_t* p, int64_t stride, const uint16_t* v, const int32_t* tiles,
                    int64_t count, int64_t vectors, const float* keep, float* y) {
        __m512 sum[COUNT][VECTORS];
        y += (row * vectors + at) * 16;
        DITQUANT_UNROLL for (int i = 0; i < COUNT; i++) {
            DITQUANT_UNROLL for (int j = 0; j < VECTORS; j++) {
                sum[i][j] = _mm512_mul_ps(_mm512_load_ps(y + (i * vectors + j) * 16), _mm512_set1_ps(keep[row + i]));
            }
        }
        for (int64_t t = 0; t < count; t++) {
            const uint16_t *rows = p + row * stride + t * TILE, *values = v + (tiles[t] * TILE * vectors + 2 * at) * 16;
            for (int64_t key = 0; key < TILE; key += 2) {
                __m512i b[VECTORS];
                DITQUANT_UNROLL for (int j = 0; j < VECTORS; j++) {
                    b[j] = _mm512_load_si512(values + (key * vectors + 2 * j) * 16);
                }
                DITQUANT_UNROLL for (int i = 0; i < COUNT; i++) {
                    DITQUANT_UNROLL for (int j = 0; j < VECTORS; j++) {
                        sum[i][j] = dot(sum[i][j], rows + i * stride + key, b[j]);
                    }
                }
            }
        }
        DITQUANT_UNROLL for (int i = 0; i < COUNT; i++) {
            DITQUANT_UNROLL for (int j = 0; j < VECTORS; j++) _mm512_store_ps(y + (i * vectors + j) * 16, sum[i][j]);
        }
    }
};

// Probabilities times values.
class Mix16s {
    Scratch<uint16_t> values_;

  protected:
    const uint16_t* v_ = nullptr;

  public:
    using Probability = uint16_t;
    static constexpr int64_t STRIP = ROWS, GROUP = 8;  // queries and tiles whose scores are held
    static constexpr bool SCALED = false;              // no scale of P

    // As [pair of keys][padded width][2], zero beyond the last.
    void values(const Attention& a, const Tokens& v) {
        uint16_t* to = values_.get(a.key_tiles() * TILE * a.vectors() * 16);
        for (int64_t key = 0; key < a.key_tiles() * TILE; key += 2) {
            for (int64_t i = 0; i < a.vectors(); i++) {
                const __mmask16 there = lanes(a.width - 16 * i);
                __m512i pair = _mm512_setzero_si512();
                for (int64_t j = 0; j < 2 && key + j < a.keys; j++) {
                    const __m512i wide = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(there, v(key + j) + 32 * i));
                    pair = _mm512_or_si512(pair, j ? _mm512_slli_epi32(wide, 16) : wide);
                }
                _mm512_store_si512(to + (key * a.vectors() + 2 * i) * 16, pair);
            }
        }
        v_ = to;
    }

    static void put(uint16_t* to, __m512 low, __m512 up) { _mm512_store_si512(to, (__m512i)_mm512_cvtne2ps_pbh(up, low)); }

    void mix(const Attention& a, const uint16_t* p, int64_t stride, const int32_t* tiles, const Shares&, int64_t count,
             const float* keep, float* y) const {
        in_pieces<Mix16>(a.vectors(), p, stride, v_, tiles, count, a.vectors(), keep, y);
    }
};

}  // namespace ditquant

#endif
