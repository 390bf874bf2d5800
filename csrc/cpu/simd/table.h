// Included last by each level's translation unit, after its vec_*.h: the kernels, and the table that exports them.
#pragma once

#include <algorithm>
#include <cstring>
#include <type_traits>

#include "cpu/levels/level.h"

// clang-format off: each header uses the ones before it
#include "cpu/simd/math.h"
#include "cpu/simd/memory_ops.h"
#include "cpu/simd/gemm.h"
#include "cpu/simd/filter.h"
#include "cpu/simd/dot.h"
#include "cpu/simd/gather.h"
#include "cpu/simd/adam.h"
#include "cpu/simd/bf16.h"
#include "cpu/simd/integers/quantise.h"
#include "cpu/simd/integers/integer_tile.h"
#include "cpu/simd/loss/softmax.h"
#include "cpu/simd/loss/softmax_lanes.h"
#include "cpu/simd/loss/slope_lanes.h"
// clang-format on

#define SK_LEVEL_TABLE(symbol, name, bf16_product, bf16_fast, int16_product, int8_product, int8_gated, wide,       \
                       int8_latents, hardware)                                                                     \
  static_assert(kMaxPanel % kNr == 0 && kNr % 8 == 0 && kDotLanes % Vec::kWidth == 0, "paddings must divide");     \
  extern const Level symbol = {                                                                                    \
      name,          kMr,           kNr,          pack_panel,     load_row,           store_row,     gemm_tile,    \
      rows_tile,     panel_squares, filter_above, filter_each,    gather_sum,         dot,           dot_rows,     \
      gather_dot,    adam_step,     softmax_tile, round_to_bf16,  interleave_latents, bf16_product,  bf16_fast,    \
      softmax_lanes, slope_lanes,   round_slopes, transpose_bf16, quantise,           int16_product, int8_product, \
      int8_gated,    wide,          int8_latents, hardware};

#define SK_DEFINE_LEVEL(symbol, name, bf16_product, bf16_fast, int16_product, int8_product, int8_gated, wide,        \
                        int8_latents, hardware)                                                                      \
  namespace saekernels {                                                                                             \
  SK_LEVEL_TABLE(symbol, name, bf16_product, bf16_fast, int16_product, int8_product, int8_gated, wide, int8_latents, \
                 hardware)                                                                                           \
  }
