#include "cpu/simd/vec_avx512.h"
// The vector type comes first: table.h builds on it.
#include "cpu/simd/table.h"
// and this on the table's headers.
#include "cpu/simd/integer_vnni.h"

SK_DEFINE_LEVEL(kAvx512VnniLevel, "avx512_vnni", bf16_tile, integer_product<VnniDot<false>>,
                integer_product<VnniDot<true>>, Screening::kInt16, kAnyRows, "avx512_vnni")
