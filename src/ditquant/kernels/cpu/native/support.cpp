// Which instructions of this processor the library needs and can use, found when it runs.
#include "amx.h"

#if DITQUANT_X86
#include <cpuid.h>
#endif
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

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

#if DITQUANT_X86

namespace ditquant {
namespace {

bool wants_amx = false;

// AMX is there only for a process that asked Linux for the memory which its registers take.
bool may_use_amx() {
    constexpr unsigned BFLOAT16 = 1u << 22, TILE = 1u << 24, INT8 = 1u << 25, ALL = BFLOAT16 | TILE | INT8;
    unsigned a, b, c, d = 0;
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || (d & ALL) != ALL) return false;
#if defined(__linux__)
    constexpr long ASK = 0x1023, TILE_DATA = 18;  // ARCH_REQ_XCOMP_PERM
    return syscall(SYS_arch_prctl, ASK, TILE_DATA) == 0;
#else
    return false;
#endif
}

}  // namespace

bool uses_amx() { return wants_amx; }

}  // namespace ditquant

// Let products go through the registers of AMX, or not; returns whether they do.
DITQUANT_API int ditquant_use_amx(int wanted) {
    static const bool possible = ditquant::may_use_amx();
    ditquant::wants_amx = wanted && possible;
    return ditquant::wants_amx;
}

DITQUANT_API int ditquant_uses_amx() { return ditquant::uses_amx(); }

#else

DITQUANT_API int ditquant_use_amx(int) { return 0; }
DITQUANT_API int ditquant_uses_amx() { return 0; }

#endif
