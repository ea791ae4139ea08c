// What attention is asked for, and what its parts share: rows of tokens in any order, lists of tiles, exponentials.
#pragma once

#include <algorithm>
#include <limits>

#include "floats.h"
#include "parallel.h"

#if DITQUANT_X86

namespace ditquant {

constexpr int ROWS = 6;        // queries of one step
constexpr int64_t TILE = 64;   // tokens of a tile's side
constexpr float LOG2_E = 1.44269504f;  // exponentials are powers of two here

struct Strides {
    int64_t batch, head, token;
};

struct Attention {
    const void *q, *k, *v;  // [batch, heads, tokens, width], neighbours in the last axis
    void* y;
    const float* bias;        // [batch, heads, keys] or null
    const int32_t* order;     // [heads, tokens]: which token stands where; null leaves them
    const int32_t* tiles;     // kept tiles of keys, those of each tile of queries in rising order; null keeps all
    const int64_t* starts;    // [heads * tiles of queries + 1] into `tiles`
    Strides of_q, of_k, of_v, of_y;
    int64_t heads, queries, keys, width;
    float scale;
    int dtype, qk_bits, pv_bits;  // of 16 bits are bfloat16, below are integers

    int64_t key_tiles() const { return ceil_div(keys, TILE); }
    int64_t vectors() const { return ceil_div(width, FLOATS); }
    int64_t bytes() const { return dtype == FLOAT32 ? 4 : 2; }
};

struct NoTileRegisters {
    NoTileRegisters() {}
};

inline int levels(int bits) { return (1 << (bits - 1)) - 1; }

inline __mmask16 lanes(int64_t count) {
    return static_cast<__mmask16>(count >= 16 ? 0xffff : (1u << (count < 0 ? 0 : count)) - 1);
}

// The tokens of one head, in order.
struct Tokens {
    char* data;
    int64_t stride;  // in bytes
    const int32_t* order;

    Tokens(const Attention& a, const void* all, const Strides& of, int64_t batch, int64_t head)
        : data(const_cast<char*>(static_cast<const char*>(all)) + (batch * of.batch + head * of.head) * a.bytes()),
          stride(of.token * a.bytes()),
          order(a.order ? a.order + head * a.keys : nullptr) {}
    char* operator()(int64_t i) const { return data + (order ? order[i] : i) * stride; }
};

// Of each row of a few tiles of P: what its codes are multiplied by, and the sum of what they stand for.
constexpr int64_t SHARES = 16;
struct Shares {
    const float *units, *sums;  // [row][SHARES]
    float unit(int64_t row, int64_t t) const { return units[row * SHARES + t]; }
    float sum(int64_t row, int64_t t) const { return sums[row * SHARES + t]; }
    Shares from(int64_t row) const { return {units + row * SHARES, sums + row * SHARES}; }
};

// 2^x for x <= 0, to 3e-6; 0 far below; NaN stays NaN.
inline __m512 exp2(__m512 x) {
    x = _mm512_max_ps(_mm512_set1_ps(-200), x);
    const __m512 whole = _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    const __m512 f = _mm512_sub_ps(x, whole);
    __m512 y = _mm512_set1_ps(9.570086e-3f);  // least relative error for |f| <= 1/2
    y = _mm512_fmadd_ps(y, f, _mm512_set1_ps(5.5917822e-2f));
    y = _mm512_fmadd_ps(y, f, _mm512_set1_ps(2.4024744e-1f));
    y = _mm512_fmadd_ps(y, f, _mm512_set1_ps(6.9312179e-1f));
    y = _mm512_fmadd_ps(y, f, _mm512_set1_ps(9.9999928e-1f));
    return _mm512_scalef_ps(y, whole);
}

// piece(first row, first vector) of a product of ROWS rows and `vectors` vectors, in sizes that fit the registers.
template <template <int, int> class Piece, class... Arguments>
inline void in_pieces(int64_t vectors, const Arguments&... arguments) {
    int64_t at = 0;
    for (; vectors - at >= 4 && vectors - at != 5; at += 4) Piece<6, 4>::run(0, at, arguments...);
    switch (vectors - at) {
        case 1: return Piece<6, 1>::run(0, at, arguments...);
        case 2: return Piece<6, 2>::run(0, at, arguments...);
        case 3: return Piece<6, 3>::run(0, at, arguments...);
        case 5: Piece<3, 5>::run(0, at, arguments...); return Piece<3, 5>::run(3, at, arguments...);
    }
}

}  // namespace ditquant

#endif
