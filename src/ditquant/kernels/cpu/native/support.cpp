// Which instructions of this processor the library needs, found when it runs.
#include "simd.h"

// Name the first instruction set that is missing; null if there is none.
DITQUANT_API const char* ditquant_missing() {
#if DITQUANT_X86
    __builtin_cpu_init();
    if (!__builtin_cpu_supports("avx512f")) return "AVX512F";
    if (!__builtin_cpu_supports("avx512bw")) return "AVX512BW";
    if (!__builtin_cpu_supports("avx512vl")) return "AVX512VL";
    if (!__builtin_cpu_supports("avx512vbmi")) return "AVX512-VBMI";
    if (!__builtin_cpu_supports("avx512vnni")) return "AVX512-VNNI";
    return nullptr;
#else
    return "x86-64";
#endif
}

// The same for attention.
DITQUANT_API const char* ditquant_missing_attention() {
#if DITQUANT_X86
    const char* missing = ditquant_missing();
    if (missing) return missing;
    return __builtin_cpu_supports("avx512bf16") ? nullptr : "AVX512-BF16";
#else
    return "x86-64";
#endif
}
