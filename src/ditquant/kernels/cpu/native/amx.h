// The tile registers of AMX: eight of 16 rows x 64 bytes, and products of them.
//
// By inline assembly: the intrinsics of GCC 12 do not tell the compiler that they read memory, and these need no flag.
#pragma once

#include "simd.h"

#if DITQUANT_X86

namespace ditquant {

constexpr int64_t TILE_SIDE = 16;   // rows of a register, and its columns of 32 bits
constexpr int64_t TILE_BYTES = 64;  // of a row

// Whether products are to go through these registers: the processor has them, Linux lets this process use them, and
// they are not switched off.
bool uses_amx();

struct alignas(64) TileShapes {
    uint8_t palette = 1, first_row = 0, reserved[14] = {};
    uint16_t bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
    uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};

// The shapes of this thread's registers, and after its life those that they had before; what they held is lost.
class TileRegisters {
    TileShapes before_;

  public:
    TileRegisters() {
        const TileShapes shapes;
        asm volatile("sttilecfg %0" : "=m"(before_));
        asm volatile("ldtilecfg %0" ::"m"(shapes));
    }
    ~TileRegisters() {
        if (before_.palette) {
            asm volatile("ldtilecfg %0" ::"m"(before_));
        } else {
            asm volatile("tilerelease");
        }
    }
    TileRegisters(const TileRegisters&) = delete;
    TileRegisters& operator=(const TileRegisters&) = delete;
};

template <int TO>
inline void clear_tile() {
    asm volatile("tilezero %%tmm%c0" ::"i"(TO));
}

// Rows of 64 bytes, one every `stride` bytes.
template <int TO>
inline void load_tile(const void* from, int64_t stride) {
    asm volatile("tileloadd (%1,%2,1), %%tmm%c0" ::"i"(TO), "r"(from), "r"(stride) : "memory");
}

template <int FROM>
inline void store_tile(void* to, int64_t stride) {
    asm volatile("tilestored %%tmm%c0, (%1,%2,1)" ::"i"(FROM), "r"(to), "r"(stride) : "memory");
}

// SUM [16, 16] += A [16, 64] x B [16 groups of 4, 16, 4]: unsigned and signed bytes, sums of 32 bits.
template <int SUM, int A, int B>
inline void multiply_bytes() {
    asm volatile("tdpbusd %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(SUM), "i"(A), "i"(B));
}

// SUM [16, 16] += A [16, 32] x B [16 pairs, 16, 2]: bfloat16, sums in float32.
template <int SUM, int A, int B>
inline void multiply_bfloat16() {
    asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(SUM), "i"(A), "i"(B));
}

}  // namespace ditquant

#endif
