// How far a screened score can lie from the score itself: |screened - score| <= reach, rigorously.
//
// With x^ and w^ the operands as the screen rounds them, the triangle and the Cauchy-Schwarz inequalities give
//   |x.w - x^.w^| <= |x - x^| |w| + |x^| |w - w^|,
// and a sum of n products in any order, fused or not, is off by at most g(n) |x||w| with g(n) = n u / (1 - n u),
// u = 2^-24 (Higham, Accuracy and Stability of Numerical Algorithms, section 3.1). Both sums, the screen's and the
// score's own, are paid for, and so are the bias addition, products that underflow, and the rounding of the bound.
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>

namespace saekernels {

constexpr double kUnitRoundoff = 0x1p-24;

// g(n), or infinity where the theorem says nothing.
inline double sum_error(double terms) {
  const double nu = terms * kUnitRoundoff;
  return nu < 0.5 ? nu / (1 - nu) : std::numeric_limits<double>::infinity();
}

// The Euclidean norm of `depth` numbers, from above, given the fp32 sum of their squares in any order. Squares that
// underflow are covered by the last term; so are subnormals, which bf16 hardware takes for zero.
inline float norm_above(float sum_of_squares, int64_t depth) {
  const double inflation = 1 + 2 * sum_error(static_cast<double>(depth) + 2);
  const double norm = std::sqrt(static_cast<double>(sum_of_squares) * inflation);
  return static_cast<float>((norm + std::sqrt(static_cast<double>(depth)) * 0x1p-62) * (1 + 0x1p-20));
}

// A row: how much of |w| and of |w - w^| its scores may be off by. Not finite for a row that cannot be screened.
struct RowReach {
  float per_norm;
  float per_error;

  // norm and error: of the row and of its rounding, from above; terms: depth of the screen's sums plus the score's.
  static RowReach of(float norm, float error, double terms) {
    const double both = static_cast<double>(norm) + static_cast<double>(error);
    return {static_cast<float>((error + sum_error(terms + 8) * both) * (1 + 0x1p-20)),
            static_cast<float>(both * (1 + 0x1p-20))};
  }
  bool finite() const { return std::isfinite(per_norm) && std::isfinite(per_error); }
};

// A latent, or the largest of each over a tile of latents.
struct LatentReach {
  float norm = 0;      // of the latent plus its rounding error
  float error = 0;     // of its rounding
  float bias = 0;      // magnitude
  float factor = 1;    // what products that underflow are multiplied by, at most
  float unscaled = 0;  // the norm before `times`

  // Of scores that are multiplied by `scale`, whose bias is multiplied already: two more roundings of each score, which
  // the spare terms of RowReach and of the bias pay for. The last terms are for products that underflow here.
  LatentReach times(float scale) const {
    const float up = scale * (1 + 0x1p-20f);
    return {norm * up + 0x1p-110f, error * up + 0x1p-110f, bias, scale < 1 ? 1 : scale, norm};
  }
};

// Infinite or NaN where nothing can be promised. `depth` terms may each lose 2^-126 to underflow, at both sums.
inline float reach(const RowReach& row, const LatentReach& latent, int64_t depth) {
  // Past this size a partial sum might overflow although the sum itself does not.
  const float largest = row.per_error * latent.norm, before = row.per_error * latent.unscaled;
  if (!(largest < 0x1p120f && before < 0x1p120f)) return std::numeric_limits<float>::infinity();
  const float sum = row.per_norm * latent.norm + row.per_error * latent.error + 0x1p-21f * latent.bias;
  return sum * (1 + 0x1p-20f) + static_cast<float>(depth) * 0x1p-124f * latent.factor;
}

}  // namespace saekernels
