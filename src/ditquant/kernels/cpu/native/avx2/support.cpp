// Which instructions of this processor this library needs, found when it runs.
#include <cpuid.h>

#include "../simd.h"

// Name the first instruction set that is missing; null if there is none.
DITQUANT_API const char* ditquant_missing() {
    unsigned a, b, c = 0, d;
    __builtin_cpu_init();
    if (!__builtin_cpu_supports("avx2")) return "AVX2";
    if (!__builtin_cpu_supports("fma")) return "FMA";
    return __get_cpuid(1, &a, &b, &c, &d) && c & bit_F16C ? nullptr : "F16C";
}

// Attention is in the other library only.
DITQUANT_API const char* ditquant_missing_attention() { return "AVX512-BF16"; }
