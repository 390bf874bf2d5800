// What a screen needs to know of the weights, worked out once per version of them: norms, and for a bf16 screen the
// rounded latents in panels. One block of bytes, so that any framework can own it:
//
//   header (64 bytes) | norms fp32 [F'] | errors fp32 [F'] | panels bf16 [F' / 16][depth'][16], bf16 screens only
//
// F' is F rounded up to kMaxPanel, depth' is d rounded up to kScreenDepth.
#pragma once

#include <cstdint>

#include "common/types.h"

namespace saekernels {

enum class Screening : int { kFp32 = 0, kBf16 = 1 };

// The screen that encoders use here: bf16 where the hardware multiplies it faster, or the one forced by
// set_screening ("auto", "fp32", "bf16") or SAEKERNELS_SCREEN.
Screening screening();
void set_screening(const char* name);
const char* screening_name();

struct Prepared {
  Screening screening = Screening::kFp32;
  const float* norms = nullptr;   // of the latents, from above
  const float* errors = nullptr;  // of their rounding, from above
  const Bf16* panels = nullptr;
};

// Bytes that `prepare` fills for weights of this shape under the current screening.
int64_t prepared_bytes(int64_t latents, int64_t depth);
void prepare(const Matrix& weight, int threads, void* out);
// A hash of up to `samples` elements, spread evenly: cheap, and changes with all but small partial changes.
uint64_t fingerprint(const Matrix& weight, int64_t samples);
// Reads the header. Throws std::invalid_argument if the bytes are not those of such weights under the current
// screening.
Prepared read_prepared(const void* data, int64_t bytes, const Matrix& weight);

}  // namespace saekernels
