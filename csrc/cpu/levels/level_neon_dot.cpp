#include "cpu/simd/neon/vec_neon.h"
// The vector type comes first: table.h builds on it.
#include "cpu/simd/table.h"
// and this on the table's headers.
#include "cpu/simd/integers/integer_neon.h"

// 64 as measured with AVX-512, for want of a machine.
SK_DEFINE_LEVEL(kNeonDotLevel, "neon_dot", bf16_tile, false, integer_product<PlainDot<int16_t>>,
                integer_product<NeonDot>, nullptr, Screening::kFp32, 64, "neon_dot")
