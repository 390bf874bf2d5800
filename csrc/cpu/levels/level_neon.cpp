#include "cpu/simd/neon/vec_neon.h"
// The vector type comes first: table.h builds on it.
#include "cpu/simd/table.h"

SK_DEFINE_LEVEL(kNeonLevel, "neon", bf16_tile, false, integer_product<PlainDot<int16_t>>,
                integer_product<PlainDot<int8_t>>, nullptr, Screening::kFp32, 0, nullptr)
