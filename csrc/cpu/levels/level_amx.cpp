#include "cpu/simd/vec_avx512.h"
// The vector type comes first: table.h builds on it.
#include "cpu/simd/table.h"
// and this on the table's headers.
#include "cpu/simd/amx.h"

SK_DEFINE_LEVEL(kAmxLevel, "amx", amx_tile, "amx")
