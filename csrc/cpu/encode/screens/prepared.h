// What screens need to know of the weights, worked out once per version of them: norms, and for all but fp32 the
// rounded latents in panels. One block of bytes, so that any framework can own it:
//
//   header (64 bytes) | for each screen: norms fp32 [F'] | errors fp32 [F'] | scales fp32 [F'], integers only |
//   panels [F' / 16][row bytes / 4][16][4 bytes], not for fp32
//
// F' is F rounded up to kMaxPanel; a row's bytes are rounded up to 64. fp32 is only prepared where no other screen is.
#pragma once

#include <cstdint>

#include "cpu/encode/screens/screening.h"

namespace saekernels {

struct PreparedScreen {
  const float* norms = nullptr;   // of the latents, from above
  const float* errors = nullptr;  // of their rounding, from above
  const float* scales = nullptr;  // of integers
  const char* panels = nullptr;
};

struct Prepared {
  PreparedScreen screens[kScreenings];
  // Null where this one was not prepared.
  const PreparedScreen* of(Screening kind) const {
    const PreparedScreen* found = screens + static_cast<int>(kind);
    return found->norms != nullptr ? found : nullptr;
  }
};

// Bytes that `prepare` fills for weights of this shape under the current screening.
int64_t prepared_bytes(int64_t latents, int64_t depth);
void prepare(const Matrix& weight, int threads, void* out);
// A hash of every looks-th, from `look` on, of `samples` elements that are spread evenly, or of all elements if they
// are no more than `samples`. The looks together change with all but small partial changes.
uint64_t fingerprint(const Matrix& weight, int64_t samples, int64_t look, int64_t looks);
// Reads the header. Throws std::invalid_argument if the bytes are not those of such weights under the current
// screening.
Prepared read_prepared(const void* data, int64_t bytes, const Matrix& weight);

}  // namespace saekernels
