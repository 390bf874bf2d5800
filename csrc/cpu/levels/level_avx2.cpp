#include "cpu/simd/vec_avx2.h"
// The vector type comes first: table.h builds on it.
#include "cpu/simd/table.h"

SK_DEFINE_LEVEL(kAvx2Level, "avx2", bf16_tile, nullptr)
