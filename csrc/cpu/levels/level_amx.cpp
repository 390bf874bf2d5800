#include "cpu/simd/vec_avx512.h"
// The vector type comes first: table.h builds on it.
#include "cpu/simd/table.h"
// and these on the table's headers.
#include "cpu/simd/integer_vnni.h"
#include "cpu/simd/amx.h"
#include "cpu/simd/amx_int8.h"

namespace saekernels {
namespace {

// Tiles take 32 rows for the price of one.
void int8_product(const char* a, int64_t rows, const char* b, int64_t panels, int64_t width, const float* row_scales,
                  const int32_t* starts, const float* scales, float* c, int64_t ldc) {
  const auto multiply = rows <= 4 ? integer_product<VnniDot<true>> : amx_int8_tile;
  multiply(a, rows, b, panels, width, row_scales, starts, scales, c, ldc);
}

}  // namespace
}  // namespace saekernels

// For many rows, scoring what the wide window of int8 lets pass costs more than its product saves; for few, reading
// latents is all the work, and int8 has half of it.
SK_DEFINE_LEVEL(kAmxLevel, "amx", amx_tile, integer_product<VnniDot<false>>, int8_product, Screening::kBf16, 32, "amx")
