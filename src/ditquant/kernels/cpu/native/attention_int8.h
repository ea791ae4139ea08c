// Both products of attention in integers, by vpdpbusd: Q and K with a scale a token, P unsigned with a scale for each row
// of a tile, V less the middle of its range with a scale for each tile and channel.
#pragma once

#include <cmath>

#include "attention.h"
#include "attention_bfloat16.h"

#if DITQUANT_X86

namespace ditquant {

constexpr float SMALLEST = std::numeric_limits<float>::min();  // scale

inline __m512i dot8(__m512i sum, const void* four, __m512i b) {
    int32_t bits;
    __builtin_memcpy(&bits, four, sizeof bits);
    return _mm512_dpbusd_epi32(sum, _mm512_set1_epi32(bits), b);
}

// Symmetric codes of a token less `mean`; returns their scale.
inline float quantize_token(const Attention& a, const void* x, const float* mean, int bits, int8_t* to) {
    const auto part = [&](int64_t at) {
        const __mmask16 there = lanes(a.width - at);
        const __m512 value = load(x, at, there, a.dtype);
        return mean ? _mm512_sub_ps(value, _mm512_load_ps(mean + at)) : value;
    };
    __m512 high = _mm512_setzero_ps();
    for (int64_t at = 0; at < a.width; at += 16) high = _mm512_max_ps(high, _mm512_abs_ps(part(at)));
    const float scale = std::max(_mm512_reduce_max_ps(high) / levels(bits), SMALLEST);
    for (int64_t at = 0; at < a.width; at += 16) {
        const __m512i code = _mm512_cvtps_epi32(_mm512_div_ps(part(at), _mm512_set1_ps(scale)));
        _mm_storeu_si128(reinterpret_cast<__m128i*>(to + at), _mm512_cvtsepi32_epi8(code));
    }
    return scale;
}

// Scores of queries with the keys of a tile.
class Scores8 {
    Scratch<int8_t> keys_, codes_;
    Scratch<uint8_t> rows_;
    Scratch<float> mean_, slopes_;
    float slope_ = 0;

  protected:
    Scratch<int32_t> sums_;  // of the keys, times -128
    Scratch<float> scales_;  // of the keys
    const int8_t* k_ = nullptr;
    const uint8_t* q_ = nullptr;
    int64_t groups_ = 0, padded_ = 0;

  private:

    // Smooth-K: what all keys share is lost in the softmax.
    const float* mean(const Attention& a, const Tokens& k) {
        float* mean = mean_.get(padded_);
        std::fill_n(mean, padded_, 0.0f);
        for (int64_t at = 0; at < a.width; at += 16) {
            __m512 part[4] = {_mm512_setzero_ps(), _mm512_setzero_ps(), _mm512_setzero_ps(), _mm512_setzero_ps()};
            for (int64_t i = 0; i < a.keys; i++) {
                part[i % 4] = _mm512_add_ps(part[i % 4], load(k(i), at, lanes(a.width - at), a.dtype));
            }
            const __m512 sum = _mm512_add_ps(_mm512_add_ps(part[0], part[1]), _mm512_add_ps(part[2], part[3]));
            _mm512_store_ps(mean + at, _mm512_div_ps(sum, _mm512_set1_ps(static_cast<float>(a.keys))));
        }
        return mean;
    }

  public:
    using Registers = NoTileRegisters;
    static constexpr int64_t STEP = ROWS, CHANNELS = 4;  // queries whose scores are found together; padding

    template <class Self>
    void keys(const Attention& a, const Tokens& k) {
        groups_ = round_up(a.width, Self::CHANNELS) / 4;
        padded_ = round_up(4 * groups_, 16);
        slope_ = a.scale * LOG2_E;
        const float* center = mean(a, k);
        int8_t *to = keys_.get(a.key_tiles() * TILE * groups_ * 4), *codes = codes_.get(TILE * padded_);
        int32_t* sums = sums_.get(a.key_tiles() * TILE);
        float* scales = scales_.get(a.key_tiles() * TILE);
        for (int64_t tile = 0; tile < a.key_tiles(); tile++) {
            const int64_t first = tile * TILE, end = std::min(first + TILE, a.keys);
            std::fill_n(codes, TILE * padded_, int8_t{0});
            for (int64_t i = 0; i < TILE; i++) {  // queries are unsigned, 128 too large
                const bool there = first + i < end;
                scales[first + i] = there ? quantize_token(a, k(first + i), center, a.qk_bits, codes + i * padded_) : 0;
                int32_t sum = 0;
                for (int64_t at = 0; at < a.width; at++) sum += codes[i * padded_ + at];
                sums[first + i] = -128 * sum;
            }
            pack_rows(end - first, groups_ * 4, groups_, [&](int64_t i) { return codes + i * padded_; }, to + tile * groups_ * 256);
        }
        k_ = to;
    }

    template <class Self>
    void queries(const Attention& a, const Tokens& q, int64_t first, int64_t end) {
        const int64_t rows = round_up(end - first, Self::STEP), size = rows * padded_;
        uint8_t* to = rows_.get(size);
        std::fill_n(to, size, uint8_t{0});
        float* slopes = slopes_.get(rows);
        for (int64_t i = 0; i < rows; i++) {
            int8_t* codes = reinterpret_cast<int8_t*>(to) + i * padded_;
            slopes[i] = first + i < end ? slope_ * quantize_token(a, q(first + i), nullptr, a.qk_bits, codes) : 0;
        }
        for (int64_t i = 0; i < size; i++) to[i] ^= 128;
        q_ = to;
    }

    float slope(int64_t row) { return slopes_.get(0)[row]; }

    void score(int64_t row, int64_t tile, float* to, int64_t stride) {
        const uint8_t* q = q_ + row * padded_;
        const int8_t* k = k_ + tile * groups_ * 256;
        const int32_t* sums = sums_.get(0) + tile * TILE;
        const float* scales = scales_.get(0) + tile * TILE;
        __m512i sum[ROWS][4];
        DITQUANT_UNROLL for (int i = 0; i < ROWS; i++) {
            DITQUANT_UNROLL for (int j = 0; j < 4; j++) sum[i][j] = _mm512_load_si512(sums + 16 * j);
        }
        for (int64_t group = 0; group < groups_; group++) {
            __m512i b[4];
            DITQUANT_UNROLL for (int j = 0; j < 4; j++) b[j] = _mm512_load_si512(k + group * 256 + 64 * j);
            DITQUANT_UNROLL for (int i = 0; i < ROWS; i++) {
                DITQUANT_UNROLL for (int j = 0; j < 4; j++) sum[i][j] = dot8(sum[i][j], q + i * padded_ + group * 4, b[j]);
            }
        }
        DITQUANT_UNROLL for (int i = 0; i < ROWS; i++) {
            DITQUANT_UNROLL for (int j = 0; j < 4; j++) {
                const __m512 scale = _mm512_load_ps(scales + 16 * j);
                _mm512_store_ps(to + i * stride + 16 * j, _mm512_mul_ps(_mm512_cvtepi32_ps(sum[i][j]), scale));
            }
        }
    }
};

// V of a tile is codes * scale + middle, [tile][padded width] of both.
struct Levels {
    const float *scale, *middle;
};

// y + p v of one row of a tile, from the sum of products of codes.
inline __m512 add_share(__m512 y, __m512i sum, const Shares& shares, int64_t row, int64_t t, const Levels& levels, int64_t at) {
    y = _mm512_fmadd_ps(_mm512_set1_ps(shares.sum(row, t)), _mm512_load_ps(levels.middle + at), y);
    const __m512 scale = _mm512_mul_ps(_mm512_set1_ps(shares.unit(row, t)), _mm512_load_ps(levels.scale + at));
    return _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum), scale, y);
}

template <int COUNT, int VECTORS>
struct Mix8 {
    // y = keep * y + p v, over the tiles of a list
    static void run(int row, int64_t at, const uint8_t* p, int64_t stride, const int8_t* v, const Levels& levels,
                    const int32_t* tiles, const Shares& shares, int64_t count, int64_t vectors, const float* keep, float* y) {
        y += (row * vectors + at) * 16;
        for (int64_t t = 0; t < count; t++) {
            const uint8_t* rows = p + row * stride + t * TILE;
            const int8_t* values = v + (tiles[t] * TILE * vectors + 4 * at) * 16;
            __m512i sum[COUNT][VECTORS];
            DITQUANT_UNROLL for (int i = 0; i < COUNT; i++) {
                DITQUANT_UNROLL for (int j = 0; j < VECTORS; j++) sum[i][j] = _mm512_setzero_si512();
            }
            for (int64_t key = 0; key < TILE; key += 4) {
                __m512i b[VECTORS];
                DITQUANT_UNROLL for (int j = 0; j < VECTORS; j++) {
                    b[j] = _mm512_load_si512(values + (key * vectors + 4 * j) * 16);
                }
                DITQUANT_UNROLL for (int i = 0; i < COUNT; i++) {
                    DITQUANT_UNROLL for (int j = 0; j < VECTORS; j++) {
                        sum[i][j] = dot8(sum[i][j], rows + i * stride + key, b[j]);
                    }
                }
            }
            const int64_t place_of = (tiles[t] * vectors + at) * 16;
            DITQUANT_UNROLL for (int i = 0; i < COUNT; i++) {
                DITQUANT_UNROLL for (int j = 0; j < VECTORS; j++) {
                    float* place = y + (i * vectors + j) * 16;
                    __m512 before = _mm512_load_ps(place);
                    if (t == 0) before = _mm512_mul_ps(before, _mm512_set1_ps(keep[row + i]));
                    _mm512_store_ps(place, add_share(before, sum[i][j], shares, row + i, t, levels, place_of + j * 16));
                }
            }
        }
    }
};

// Probabilities times values.
class Mix8s {
    Scratch<int8_t> values_;
    Scratch<float> scales_, middles_;

  protected:
    const int8_t* v_ = nullptr;
    Levels levels_{};

  public:
    using Probability = uint8_t;
    static constexpr int64_t STRIP = round_up(TILE, ROWS), GROUP = 2;
    static constexpr bool SCALED = true;

    // As [group of 4 keys][padded width][4], zero beyond the last.
    void values(const Attention& a, const Tokens& v) {
        const int64_t padded = a.vectors() * 16;
        int8_t* to = values_.get(a.key_tiles() * TILE * padded);
        float *scales = scales_.get(a.key_tiles() * padded), *middles = middles_.get(a.key_tiles() * padded);
        const __m512 half = _mm512_set1_ps(0.5f), most = _mm512_set1_ps(static_cast<float>(levels(a.pv_bits)));
        for (int64_t tile = 0; tile < a.key_tiles(); tile++) {
            const int64_t first = tile * TILE, end = std::min(first + TILE, a.keys);
            for (int64_t at = 0; at < padded; at += 16) {
                const __mmask16 there = lanes(a.width - at);
                __m512 low = load(v(first), at, there, a.dtype), high = low;
                for (int64_t i = first + 1; i < end; i++) {
                    const __m512 value = load(v(i), at, there, a.dtype);
                    low = _mm512_min_ps(low, value), high = _mm512_max_ps(high, value);
                }
                low = _mm512_mul_ps(low, half), high = _mm512_mul_ps(high, half);
                const __m512 middle = _mm512_add_ps(high, low);
                const __m512 scale = _mm512_max_ps(_mm512_div_ps(_mm512_sub_ps(high, low), most), _mm512_set1_ps(SMALLEST));
                _mm512_store_ps(scales + tile * padded + at, scale);
                _mm512_store_ps(middles + tile * padded + at, middle);
                for (int64_t key = first; key < first + TILE; key += 4) {
                    __m512i four = _mm512_setzero_si512();
                    for (int j = 0; j < 4 && key + j < end; j++) {
                        const __m512 value = _mm512_sub_ps(load(v(key + j), at, there, a.dtype), middle);
                        const __m512i code = _mm512_cvtps_epi32(_mm512_div_ps(value, scale));
                        four = _mm512_or_si512(four, _mm512_slli_epi32(_mm512_and_si512(code, _mm512_set1_epi32(255)), 8 * j));
                    }
                    _mm512_store_si512(to + key * padded + at * 4, four);
                }
            }
        }
        v_ = to;
        levels_ = {scales, middles};
    }

    static void put(uint8_t* to, __m512 low, __m512 up) {
        const auto codes = [](__m512 x) { return _mm512_cvtusepi32_epi8(_mm512_cvtps_epu32(x)); };
        _mm_store_si128(reinterpret_cast<__m128i*>(to), codes(low));
        _mm_store_si128(reinterpret_cast<__m128i*>(to + 16), codes(up));
    }

    void mix(const Attention& a, const uint8_t* p, int64_t stride, const int32_t* tiles, const Shares& shares,
             int64_t count, const float* keep, float* y) const {
        in_pieces<Mix8>(a.vectors(), p, stride, v_, levels_, tiles, shares, count, a.vectors(), keep, y);
    }
};

}  // namespace ditquant

#endif
