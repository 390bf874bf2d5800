// Which screens rows meet, in which order.
#pragma once

#include <vector>

#include "cpu/levels/level.h"

namespace saekernels {

// Forces one screen, which fp32 then follows: "int8", "int16", "bf16" or "fp32"; "auto" returns to those of the
// machine. SAEKERNELS_SCREEN does the same at start. Throws std::invalid_argument for another name.
void set_screening(const char* name);
// The one forced, or those of the machine, narrow depths' first: "int8+bf16", "int8+int16", "fp32".
const char* screening_name();
// The one forced, or that of the machine whose window is narrow at any depth.
Screening wide_screening(int64_t depth);

// Screens for top-k in the order of trial; the last is fp32. The first is prepared for, and all but fp32.
std::vector<Screening> screens_for(int64_t depth);

}  // namespace saekernels
