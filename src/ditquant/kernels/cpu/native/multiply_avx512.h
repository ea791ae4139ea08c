// COUNT tokens with a tile of 64 rows, by vpdpbusd.
#pragma once

#include <algorithm>

#include "gelu.h"
#include "product.h"

#if DITQUANT_X86

namespace ditquant {

constexpr int VECTORS = 4;  // of 16 rows: one tile

inline bool is_narrow(const Packed&) { return false; }  // vpdpbusd never saturates

// Up to 16 rows of a weight, from `at` on: what makes outputs of their sums.
class Outputs {
    const Product& p_;
    const int64_t at_;
    const __mmask16 there_;
    const __m512i row_sum_;
    const __m512 row_scale_, bias_;

  public:
    Outputs(const Product& p, int64_t at, const int32_t* sums)
        : p_(p),
          at_(at),
          there_(first_floats(p.weight.rows - at)),
          row_sum_(_mm512_loadu_si512(sums)),
          row_scale_(load_some(p.row_scale + at, there_)),
          bias_(p.bias ? load_some(p.bias + at, there_) : zeros()) {}

    void put(int64_t token, __m512i sum) const {
        const __m512i offset = _mm512_mullo_epi32(row_sum_, _mm512_set1_epi32(128 + p_.zero[token]));
        __m512 y = _mm512_cvtepi32_ps(_mm512_sub_epi32(sum, offset));
        y = mul(mul(y, all(p_.scale[token])), row_scale_);
        if (p_.bias) y = add(y, bias_);
        store(p_.y, token * p_.weight.rows + at_, there_, p_.gelu ? gelu(y) : y, p_.dtype);
    }
};

template <int COUNT>
inline void multiply(const Product& p, const int8_t* tile, const int32_t* sums, int64_t row, int64_t token) {
    const int64_t channels = p.weight.padded();
    const uint8_t* x = p.values + token * channels;
    __m512i sum[COUNT][VECTORS];
    DITQUANT_UNROLL for (int i = 0; i < COUNT; i++) {
        DITQUANT_UNROLL for (int j = 0; j < VECTORS; j++) sum[i][j] = _mm512_setzero_si512();
    }
    const int64_t steps = ceil_div(p.weight.channels, 4);
    for (int64_t k = 0; k < steps; k++) {
        __m512i w[VECTORS];
        DITQUANT_UNROLL for (int j = 0; j < VECTORS; j++) w[j] = _mm512_load_si512(tile + (k * VECTORS + j) * 64);
        DITQUANT_UNROLL for (int i = 0; i < COUNT; i++) {
            const __m512i xi = _mm512_set1_epi32(*reinterpret_cast<const int32_t*>(x + i * channels + 4 * k));
            DITQUANT_UNROLL for (int j = 0; j < VECTORS; j++) sum[i][j] = _mm512_dpbusd_epi32(sum[i][j], xi, w[j]);
        }
    }
    DITQUANT_UNROLL for (int j = 0; j < VECTORS; j++) {
        if (row + 16 * j >= p.weight.rows) break;
        const Outputs outputs(p, row + 16 * j, sums + 16 * j);
        DITQUANT_UNROLL for (int i = 0; i < COUNT; i++) outputs.put(token + i, sum[i][j]);
    }
}

}  // namespace ditquant

#endif
