#include "cpu/simd/vec_avx512.h"
// The vector type comes first: table.h builds on it.
#include "cpu/simd/table.h"
// and these on the table's headers.
#include "cpu/simd/integer_vnni.h"
#include "cpu/simd/amx.h"
#include "cpu/simd/amx_int8.h"

// int8 by itself pays where bf16 is slow: here scoring what its wide window lets pass costs what its product saves.
SK_DEFINE_LEVEL(kAmxLevel, "amx", amx_tile, integer_product<VnniDot<false>>, amx_int8_tile, Screening::kBf16, false,
                "amx")
