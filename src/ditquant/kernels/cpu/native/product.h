// What a product is asked for: quantized tokens, a packed weight, and where the result goes.
#pragma once

#include "groups.h"

namespace ditquant {

struct Product {
    const uint8_t* values;  // [tokens, padded channels]
    const float* scale;     // [tokens]
    const int32_t* zero;    // [tokens]
    int64_t tokens;
    Packed weight;
    const int8_t* tiles;    // the decoded weight, or null
    const int32_t* sums;    // of its rows, or null
    const float* row_scale;  // [rows]
    const float* bias;      // [rows] or null
    void* y;                // [tokens, rows]
    int dtype;
    bool gelu;              // y = gelu(y) at the end
    bool narrow;            // is_narrow(weight)
};

struct GroupProduct {
    const uint8_t* values;  // [tokens, padded channels]
    const float* scale;     // [tokens, channels / group]
    const int32_t* zero;    // the same
    int64_t tokens, group;  // channels that share a scale in a token
    Groups weight;
    const float* bias;  // [rows] or null
    void* y;            // [tokens, rows]
    int dtype;

    int64_t groups() const { return weight.channels / group; }
};

}  // namespace ditquant
