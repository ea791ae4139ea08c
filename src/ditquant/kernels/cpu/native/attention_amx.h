// The products of attention in the tile registers of AMX; what they multiply lies as for vpdpbf16ps and vpdpbusd.
//
// 32 queries at a time: two registers of them share what is read of the keys and values, which lie in the second cache.
#pragma once

#include "amx.h"
#include "attention_int8.h"

#if DITQUANT_X86

namespace ditquant {

struct AmxScores16 : Scores16 {
    using Registers = TileRegisters;
    static constexpr int64_t STEP = PAIR, CHANNELS = TILE_BYTES / 2;

    void score(int64_t row, int64_t tile, float* to, int64_t stride) const {
        const uint16_t *q = q_ + row * pairs_ * 2, *k = k_ + tile * pairs_ * 2 * TILE;
        for (int64_t key = 0; key < TILE; key += PAIR) {
            Sums<2>::clear();
            for (int64_t pair = 0; pair < pairs_; pair += TILE_SIDE) {
                Sums<2>::add<true>(q + pair * 2, pairs_ * 4, k + pair * 2 * TILE + key * 2, 4 * TILE);
            }
            Sums<2>::store(to + key, stride * 4);
        }
    }
};

struct AmxScores8 : Scores8 {
    using Registers = TileRegisters;
    static constexpr int64_t STEP = PAIR, CHANNELS = TILE_BYTES;

    void score(int64_t row, int64_t tile, float* to, int64_t stride) {
        const uint8_t* q = q_ + row * padded_;
        const int8_t* k = k_ + tile * padded_ * TILE;
        const int32_t* sums = sums_.get(0) + tile * TILE;
        const float* scales = scales_.get(0) + tile * TILE;
        for (int64_t key = 0; key < TILE; key += PAIR) {
            Sums<2>::load(sums + key, 0);  // the same for every query
            for (int64_t at = 0; at < padded_; at += TILE_BYTES) {
                Sums<2>::add<false>(q + at, padded_, k + at * TILE + key * 4, 4 * TILE);
            }
            Sums<2>::store(to + key, stride * 4);
        }
        for (int64_t i = 0; i < STEP; i++) {
            for (int64_t at = 0; at < TILE; at += 16) {
                float* place = to + i * stride + at;
                const __m512 sum = _mm512_cvtepi32_ps(_mm512_load_si512(place));
                _mm512_store_ps(place, _mm512_mul_ps(sum, _mm512_load_ps(scales + at)));
            }
        }
    }
};

// work(first vector, their number as a constant) for all vectors, two at a time.
template <class Work>
inline void by_two(int64_t vectors, const Work& work) {
    int64_t at = 0;
    for (; at + 2 <= vectors; at += 2) work(at, std::integral_constant<int, 2>());
    if (at < vectors) work(at, std::integral_constant<int, 1>());
}

// y = keep * y, of PAIR rows.
inline void fade(const float* keep, int64_t vectors, float* y) {
    for (int64_t i = 0; i < PAIR; i++) {
        for (int64_t j = 0; j < vectors; j++, y += 16) {
            _mm512_store_ps(y, _mm512_mul_ps(_mm512_load_ps(y), _mm512_set1_ps(keep[i])));
        }
    }
}

struct AmxMix16 : Mix16s {
    static constexpr int64_t STRIP = PAIR;

    void mix(const Attention& a, const uint16_t* p, int64_t stride, const int32_t* tiles, const Shares&, int64_t count,
             const float* keep, float* y) const {
        const int64_t vectors = a.vectors();
        fade(keep, vectors, y);
        by_two(vectors, [&](int64_t at, auto size) {
            Sums<size()>::load(y + at * 16, vectors * 64);
            for (int64_t t = 0; t < count; t++) {
                for (int64_t key = 0; key < TILE; key += 32) {
                    const uint16_t* values = v_ + ((tiles[t] * TILE + key) * vectors + 2 * at) * 16;
                    Sums<size()>::template add<true>(p + t * TILE + key, stride * 2, values, vectors * 64);
                }
            }
            Sums<size()>::store(y + at * 16, vectors * 64);
        });
    }
};

struct AmxMix8 : Mix8s {
    static constexpr int64_t STRIP = TILE, GROUP = 4;

    void mix(const Attention& a, const uint8_t* p, int64_t stride, const int32_t* tiles, const Shares& shares,
             int64_t count, const float* keep, float* y) const {
        alignas(64) int32_t sums[PAIR * 2 * 16];
        const int64_t vectors = a.vectors();
        fade(keep, vectors, y);
        for (int64_t t = 0; t < count; t++) {
            by_two(vectors, [&](int64_t at, auto size) {
                Sums<size()>::clear();
                const int8_t* values = v_ + (tiles[t] * TILE * vectors + 4 * at) * 16;
                Sums<size()>::template add<false>(p + t * TILE, stride, values, vectors * 64);
                Sums<size()>::store(sums, 2 * 64);
                for (int64_t i = 0; i < PAIR; i++) {
                    DITQUANT_UNROLL for (int j = 0; j < size(); j++) {
                        float* place = y + (i * vectors + at + j) * 16;
                        const __m512i found = _mm512_load_si512(sums + (i * 2 + j) * 16);
                        const int64_t level = (tiles[t] * vectors + at + j) * 16;
                        _mm512_store_ps(place, add_share(_mm512_load_ps(place), found, shares, i, t, levels_, level));
                    }
                }
            });
        }
    }
};

}  // namespace ditquant

#endif
