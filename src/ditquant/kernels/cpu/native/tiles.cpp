// What a softmax looks like tile by tile: sum, maximum and small entries of each tile of 64x64, never holding the map.
#include "attention.h"

#if DITQUANT_X86

namespace ditquant {
namespace {

// float32 [tokens, width], one head after another.
struct Maps {
    const float *q, *k;
    int64_t tokens, width;
    const int64_t* stripes;  // rows of tiles to look at
    int64_t count;
    float scale, eps;
    float *total, *largest;  // [heads, stripes, tiles]
    int32_t* small;

    int64_t tiles() const { return ceil_div(tokens, TILE); }
};

struct Room {
    Scratch<float> keys, scores;
};

// Keys as [key / 64][channel][64 keys], zero beyond the last.
void pack(const Maps& m, const float* k, float* to) {
    for (int64_t tile = 0; tile < m.tiles(); tile++) {
        for (int64_t c = 0; c < m.width; c++) {
            for (int64_t i = 0; i < TILE; i++) {
                const int64_t key = tile * TILE + i;
                to[(tile * m.width + c) * TILE + i] = key < m.tokens ? k[key * m.width + c] : 0;
            }
        }
    }
}

// Scores of ROWS queries with all keys, and the largest of each.
void score(const Maps& m, const float* const (&q)[ROWS], const float* keys, float* scores, float (&high)[ROWS]) {
    const int64_t padded = m.tiles() * TILE;
    const __m512 lowest = _mm512_set1_ps(-std::numeric_limits<float>::infinity());
    const __m512 factor = _mm512_set1_ps(m.scale * LOG2_E);
    __m512 top[ROWS];
    DITQUANT_UNROLL for (int i = 0; i < ROWS; i++) top[i] = lowest;
    for (int64_t tile = 0; tile < m.tiles(); tile++) {
        __m512 sum[ROWS][4];
        DITQUANT_UNROLL for (int i = 0; i < ROWS; i++) {
            DITQUANT_UNROLL for (int j = 0; j < 4; j++) sum[i][j] = _mm512_setzero_ps();
        }
        const float* k = keys + tile * m.width * TILE;
        for (int64_t c = 0; c < m.width; c++) {
            __m512 b[4];
            DITQUANT_UNROLL for (int j = 0; j < 4; j++) b[j] = _mm512_load_ps(k + c * TILE + 16 * j);
            DITQUANT_UNROLL for (int i = 0; i < ROWS; i++) {
                const __m512 a = _mm512_set1_ps(q[i][c]);
                DITQUANT_UNROLL for (int j = 0; j < 4; j++) sum[i][j] = _mm512_fmadd_ps(a, b[j], sum[i][j]);
            }
        }
        DITQUANT_UNROLL for (int j = 0; j < 4; j++) {
            const __mmask16 there = lanes(m.tokens - tile * TILE - 16 * j);
            DITQUANT_UNROLL for (int i = 0; i < ROWS; i++) {
                const __m512 x = _mm512_mask_mul_ps(lowest, there, sum[i][j], factor);
                top[i] = _mm512_max_ps(top[i], x);
                _mm512_store_ps(scores + i * padded + tile * TILE + 16 * j, x);
            }
        }
    }
    DITQUANT_UNROLL for (int i = 0; i < ROWS; i++) high[i] = _mm512_reduce_max_ps(top[i]);
}

// Add a row of scores to what is known of its tiles.
void reduce(const Maps& m, float* scores, float high, float* total, float* largest, int32_t* small) {
    const __m512 offset = _mm512_set1_ps(high);
    __m512 all = _mm512_setzero_ps();
    for (int64_t at = 0; at < m.tiles() * TILE; at += 16) {
        const __m512 e = exp2(_mm512_sub_ps(_mm512_load_ps(scores + at), offset));
        all = _mm512_add_ps(all, e);
        _mm512_store_ps(scores + at, e);
    }
    const float sum = _mm512_reduce_add_ps(all), inverse = 1 / sum;
    const __m512 below = _mm512_set1_ps(m.eps * sum);
    for (int64_t tile = 0; tile < m.tiles(); tile++) {
        __m512 part = _mm512_setzero_ps(), top = _mm512_setzero_ps();
        int few = 0;
        DITQUANT_UNROLL for (int j = 0; j < 4; j++) {
            const __m512 e = _mm512_load_ps(scores + tile * TILE + 16 * j);
            part = _mm512_add_ps(part, e);
            top = _mm512_max_ps(top, e);
            const __mmask16 there = lanes(m.tokens - tile * TILE - 16 * j);
            few += __builtin_popcount(_mm512_mask_cmp_ps_mask(there, e, below, _CMP_LT_OQ));
        }
        total[tile] += _mm512_reduce_add_ps(part) * inverse;
        largest[tile] = std::max(largest[tile], _mm512_reduce_max_ps(top) * inverse);
        small[tile] += few;
    }
}

}  // namespace
}  // namespace ditquant

using namespace ditquant;

DITQUANT_API void ditquant_tiles(const float* q, const float* k, const int64_t* stripes, int64_t count, int64_t heads,
                                 int64_t tokens, int64_t width, float scale, float eps, float* total, float* largest,
                                 int32_t* small, int threads) {
    const Maps m{q, k, tokens, width, stripes, count, scale, eps, total, largest, small};
    const int64_t parts = std::min(count, threads > 1 ? ceil_div(4 * threads, heads) : 1);
    parallel(heads * parts, threads, [&](int64_t task) {
        static thread_local Room room;
        const int64_t head = task / parts, part = task % parts;
        float* keys = room.keys.get(m.tiles() * TILE * width);
        float* scores = room.scores.get(ROWS * m.tiles() * TILE);
        pack(m, k + head * tokens * width, keys);
        for (int64_t r = count * part / parts; r < count * (part + 1) / parts; r++) {
            const int64_t first = stripes[r] * TILE, end = std::min(first + TILE, tokens), at = (head * count + r) * m.tiles();
            std::fill_n(total + at, m.tiles(), 0.0f);
            std::fill_n(largest + at, m.tiles(), 0.0f);
            std::fill_n(small + at, m.tiles(), 0);
            for (int64_t i = first; i < end; i += ROWS) {
                const float* rows[ROWS];
                float high[ROWS];
                for (int j = 0; j < ROWS; j++) rows[j] = q + (head * tokens + std::min(i + j, end - 1)) * width;
                score(m, rows, keys, scores, high);
                for (int64_t j = 0; j < std::min<int64_t>(ROWS, end - i); j++) {
                    reduce(m, scores + j * m.tiles() * TILE, high[j], total + at, largest + at, small + at);
                }
            }
        }
    });
}

#endif
