// 16 floats at a time, by the instruction set that this library is compiled for.
#pragma once

#include "simd.h"

#if DITQUANT_X86
#if defined(__AVX512F__)
#include "floats_avx512.h"
#else
#include "floats_avx2.h"
#endif
#endif
