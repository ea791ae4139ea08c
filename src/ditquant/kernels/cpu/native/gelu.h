// GELU with tanh, which diffusers calls "gelu-approximate".
#pragma once

#include "floats.h"

#if DITQUANT_X86

namespace ditquant {

// x / (1 + 2^z), 2^z = exp(-2 u), u = sqrt(2 / pi) (x + 0.044715 x^3); to 1e-6, NaN stays NaN.
inline Floats gelu(Floats x) {
    const Floats slope = fmadd(mul(x, x), all(-0.10294324f), all(-2.3022082f));  // z / x
    const Floats z = most(all(-125.9f), least(all(125.9f), mul(x, slope)));
    const Ints whole = nearest(z);
    const Floats f = sub(z, to_floats(whole));
    Floats power = all(1.3276460e-3f);  // 2^f with least relative error for |f| <= 1/2
    power = fmadd(power, f, all(9.6755372e-3f));
    power = fmadd(power, f, all(5.5507131e-2f));
    power = fmadd(power, f, all(2.4022120e-1f));
    power = fmadd(power, f, all(6.9314694e-1f));
    power = fmadd(power, f, all(1.0000001f));
    return mul(x, reciprocal(fmadd(power, power_of_two(whole), all(1.0f))));
}

}  // namespace ditquant

#endif
