// The screens in int16 and int8: sums are exact, so what is off is what rounding the operands leaves.
#pragma once

#include "cpu/encode/screens/screen.h"

namespace saekernels {

std::unique_ptr<Screen> make_integer_screen(const Level& simd, Screening kind, int64_t depth,
                                            const PreparedScreen* prepared, int64_t capacity, int64_t max_columns);

// Latents [first, first + count), count <= kScreenPanel, as integers [kScreenPanel][panel_width] with zeros behind
// them; norms and errors from above, and scales. `staged` is scratch for a latent, rounded up to kDotLanes.
void quantise_latents(const Level& simd, const Matrix& weight, Screening kind, int64_t first, int64_t count,
                      float* staged, char* out, float* norms, float* errors, float* scales);

}  // namespace saekernels
