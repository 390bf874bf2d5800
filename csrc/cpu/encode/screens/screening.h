// Which screens rows meet, in which order.
#pragma once

#include <vector>

#include "cpu/levels/level.h"

namespace saekernels {

// Forces one screen, which fp32 then follows: "int8", "int16", "bf16" or "fp32"; "auto" returns to those of the
// machine. SAEKERNELS_SCREEN does the same at start. Throws std::invalid_argument for another name.
void set_screening(const char* name);
// The one forced, or those of the machine, narrow depths' first: "int8+bf16", "int8+int16", "int8+fp32", "fp32".
const char* screening_name();
// Whether none is forced.
bool screening_chooses();

// Those that weights of this depth are prepared for: the one forced, or the machine's.
std::vector<Screening> prepared_screens(int64_t depth);

struct Workload {
  int64_t rows, latents, depth;
  int64_t k;      // of top-k; 0 for thresholds
  bool prepared;  // weights come in panels
};

// The screens that rows meet one after the other, as long as any are left. The last is fp32.
std::vector<Screening> screens_for(const Workload& work);

}  // namespace saekernels
