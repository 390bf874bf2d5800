#include "cpu/simd/vec_avx512.h"
// The vector type comes first: table.h builds on it.
#include "cpu/simd/table.h"
// and this on the table's headers.
#include "cpu/simd/integers/integer_vnni.h"

// 28 where bf16 takes twice as long as int8 (Zen 4), 87 where int16 does (Sapphire Rapids).
SK_DEFINE_LEVEL(kAvx512VnniLevel, "avx512_vnni", bf16_tile, false, integer_product<VnniDot<false>>,
                integer_product<VnniDot<true>>, nullptr, Screening::kInt16, 64, "avx512_vnni")
