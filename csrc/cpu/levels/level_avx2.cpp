#include "cpu/simd/vec_avx2.h"
// The vector type comes first: table.h builds on it.
#include "cpu/simd/table.h"
// and this on the table's headers.
#include "cpu/simd/integers/integer_avx2.h"

SK_DEFINE_LEVEL(kAvx2Level, "avx2", bf16_tile, false, integer_product<PairsDot>, integer_product<PlainDot<int8_t>>,
                nullptr, Screening::kInt16, 0, "avx2")
