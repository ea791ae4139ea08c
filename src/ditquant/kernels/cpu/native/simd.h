// Instruction sets of this library, and what the compiler is allowed to emit for them.
#pragma once

#include <cstdint>

#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))
#define DITQUANT_X86 1
#include <immintrin.h>
#define DITQUANT_UNROLL _Pragma("GCC unroll 32")
#else
#define DITQUANT_X86 0
#endif

#define DITQUANT_API extern "C" __attribute__((visibility("default")))

namespace ditquant {

constexpr int64_t LANE = 64;   // bytes of a vector
constexpr int64_t FLOATS = 16;  // floats of a vector

enum Dtype : int { FLOAT32 = 0, BFLOAT16 = 1, FLOAT16 = 2 };

constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
constexpr int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }

}  // namespace ditquant
