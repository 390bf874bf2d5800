#include "cpu/simd/vec_avx512.h"
// The vector type comes first: table.h builds on it.
#include "cpu/simd/table.h"
// and these on the table's headers.
#include "cpu/simd/integer_vnni.h"
#include "cpu/simd/amx.h"
#include "cpu/simd/amx_int8.h"

// For many rows, scoring what the wide window of int8 lets pass costs more than its product saves; for few, reading
// latents is all the work, and int8 has half of it.
SK_DEFINE_LEVEL(kAmxLevel, "amx", amx_tile, integer_product<VnniDot<false>>, amx_int8_tile, Screening::kBf16, 128,
                "amx")
