#include "cpu/simd/vec_avx512.h"
// The vector type comes first: table.h builds on it.
#include "cpu/simd/table.h"
// and these on the table's headers.
#include "cpu/simd/bf16_dot_avx512.h"
#include "cpu/simd/integers/integer_vnni.h"

// 28 where bf16 takes twice as long as int8 (Zen 4), 87 where int16 does (Sapphire Rapids).
SK_DEFINE_LEVEL(kAvx512Bf16Level, "avx512_bf16", bf16_tile_instruction, true, integer_product<VnniDot<false>>,
                integer_product<VnniDot<true>>, nullptr, Screening::kInt16, 64, "avx512_vnni")
