#include "cpu/simd/vec_avx512.h"
// The vector type comes first: table.h builds on it.
#include "cpu/simd/table.h"

SK_DEFINE_LEVEL(kAvx512Level, "avx512", bf16_tile, false, integer_product<PlainDot<int16_t>>,
                integer_product<PlainDot<int8_t>>, nullptr, Screening::kFp32, 0, nullptr)
