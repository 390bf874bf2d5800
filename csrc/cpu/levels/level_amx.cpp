#include "cpu/simd/vec_avx512.h"
// The vector type comes first: table.h builds on it.
#include "cpu/simd/table.h"
// and these on the table's headers.
#include "cpu/simd/integers/integer_vnni.h"
#include "cpu/simd/amx.h"
#include "cpu/simd/integers/amx_int8.h"

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

SK_DEFINE_LEVEL(kAmxLevel, "amx", amx_tile, true, integer_product<VnniDot<false>>, int8_product, amx_int8_gated,
                Screening::kBf16, 64, "amx")
