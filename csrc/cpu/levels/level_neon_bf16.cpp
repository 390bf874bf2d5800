#include "cpu/simd/neon/vec_neon.h"
// The vector type comes first: table.h builds on it.
#include "cpu/simd/table.h"
// and this on the table's headers.
#include "cpu/simd/neon/mmla_neon.h"

// 64 as measured with AVX-512, for want of a machine.
SK_DEFINE_LEVEL(kNeonBf16Level, "neon_bf16", bf16_tile_matrix, true, integer_product<PlainDot<int16_t>>,
                int8_tile_matrix, nullptr, Screening::kBf16, 64, "neon_bf16")
