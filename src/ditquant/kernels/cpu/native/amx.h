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

// The same, without a place in the first cache: for what passes once while something else is to stay there.
template <int TO>
inline void stream_tile(const void* from, int64_t stride) {
    asm volatile("tileloaddt1 (%1,%2,1), %%tmm%c0" ::"i"(TO), "r"(from), "r"(stride) : "memory");
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

constexpr int64_t PAIR = 2 * TILE_SIDE;

// Sums of PAIR rows and one or two vectors of 16 columns in registers 0 .. 3, from 4 and 5 (rows) and 6 and 7 (columns).
// Strides are those of rows, in bytes.
template <int VECTORS>
struct Sums {
    static void clear() {
        clear_tile<0>(), clear_tile<2>();
        if (VECTORS > 1) clear_tile<1>(), clear_tile<3>();
    }
    static void load(const void* from, int64_t stride) {
        const char* low = static_cast<const char*>(from);
        load_tile<0>(low, stride), load_tile<2>(low + TILE_SIDE * stride, stride);
        if (VECTORS > 1) load_tile<1>(low + TILE_BYTES, stride), load_tile<3>(low + TILE_BYTES + TILE_SIDE * stride, stride);
    }
    static void store(void* to, int64_t stride) {
        char* low = static_cast<char*>(to);
        store_tile<0>(low, stride), store_tile<2>(low + TILE_SIDE * stride, stride);
        if (VECTORS > 1) store_tile<1>(low + TILE_BYTES, stride), store_tile<3>(low + TILE_BYTES + TILE_SIDE * stride, stride);
    }
    // Add 64 bytes of every row times 16 rows of columns.
    template <bool FLOATS>
    static void add(const void* rows, int64_t rows_stride, const void* columns, int64_t columns_stride) {
        const char *x = static_cast<const char*>(rows), *w = static_cast<const char*>(columns);
        stream_tile<6>(w, columns_stride);
        load_tile<4>(x, rows_stride);
        product<FLOATS, 0, 4, 6>();
        load_tile<5>(x + TILE_SIDE * rows_stride, rows_stride);
        product<FLOATS, 2, 5, 6>();
        if (VECTORS > 1) {
            stream_tile<7>(w + TILE_BYTES, columns_stride);
            product<FLOATS, 1, 4, 7>();
            product<FLOATS, 3, 5, 7>();
        }
    }

  private:
    template <bool FLOATS, int SUM, int A, int B>
    static void product() {
        FLOATS ? multiply_bfloat16<SUM, A, B>() : multiply_bytes<SUM, A, B>();
    }
};

}  // namespace ditquant

#endif
