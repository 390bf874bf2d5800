// The inner loops of one SIMD level, as a table of plain functions. Every level is compiled in its own translation
// unit from the same sources (simd/*.h); the rest of the library is compiled for the baseline machine and calls
// through the table of the level in use, a cache tile at a time.
#pragma once

#include "common/types.h"

namespace saekernels {

// What a score *is*: lane l of kDotLanes sums the terms j = l (mod kDotLanes) in order, with fused multiply-adds, and
// the lanes are folded in halves. `dot`, `dot_rows` and `gather_dot` compute it, at any vector width.
constexpr int kDotLanes = 32;
// The tile products are faster and sum in another order, so encoders only screen with them: inside a block of
// kDotBlock terms one accumulator walks in order, and block sums are added in order.
constexpr int64_t kDotBlock = 256;
// Panels of the bf16 product: 16 rows or latents, depth padded to a multiple of 32.
constexpr int64_t kScreenPanel = 16;
constexpr int64_t kScreenDepth = 32;

// What a screen multiplies in. Integers have a scale for each row and each latent.
enum class Screening : int { kFp32 = 0, kBf16 = 1, kInt16 = 2, kInt8 = 3 };
constexpr int kScreenings = 4;

inline bool is_integer(Screening kind) { return kind == Screening::kInt16 || kind == Screening::kInt8; }

// A row as integers times `scale`; `squares` of the error that this leaves, and the sum of the integers.
struct Quantised {
  float scale = 0;
  float squares = 0;
  int32_t sum = 0;
};

// c[rows][panels * 16] = row_scales[r] * scales[j] * sums of products. Layouts as for bf16, with blocks of 64 bytes of
// a row and words of 4 bytes of a latent. Rows are rounded up to kScreenPanel, as are row_scales and starts (-128 times
// the sum of each row, because the latents' bytes are 128 too large; int16 ignores them).
using IntegerTile = void (*)(const char* a, int64_t rows, const char* b, int64_t panels, int64_t width,
                             const float* row_scales, const int32_t* starts, const float* scales, float* c,
                             int64_t ldc);

// What is compared as a tile of scores is made, where products are so fast that a second look at all of it would show.
struct Gate {
  const float* bias;    // of each latent
  const float* limits;  // of each row, rounded up to two panels; NaN lets everything pass
  bool magnitude;
  // [rows][panels / 2]: bit j of word p says that not (score of latent 32 p + j <= limit). Only the 32 scores of words
  // that are not zero are written, with the bias added.
  uint32_t* marks;
};
using GatedIntegerTile = void (*)(const char* a, int64_t rows, const char* b, int64_t panels, int64_t width,
                                  const float* row_scales, const int32_t* starts, const float* scales, const Gate& gate,
                                  float* c, int64_t ldc);

// Running softmax statistics of one token over the vocabulary seen so far, for both streams.
struct PairState {
  double sum_p = 0;     // sum of exp(z_p - max_p)
  double sum_q = 0;     // sum of exp(z_q - max_q)
  double weighted = 0;  // sum of exp(z_p - max_p) * (z_p - z_q)
  float max_p = -__builtin_inff();
  float max_q = -__builtin_inff();
  int32_t arg_p = -1;  // lowest index of the maximum; of the first NaN where there is one
  int32_t arg_q = -1;
  float target_p = 0;
  float target_q = 0;
  bool nan_p = false;
  bool nan_q = false;
};

// The same for kTokenLanes tokens side by side.
constexpr int kTokenLanes = 16;
struct alignas(64) LaneStates {
  double sum_p[kTokenLanes], sum_q[kTokenLanes], weighted[kTokenLanes];
  float max_p[kTokenLanes], max_q[kTokenLanes], target_p[kTokenLanes], target_q[kTokenLanes];
  int32_t arg_p[kTokenLanes], arg_q[kTokenLanes], nan_p[kTokenLanes], nan_q[kTokenLanes];
};

// What the gradient of a token's losses with respect to its logits needs. Lanes from `count` on are no tokens.
struct alignas(64) SlopeLanes {
  float lse_p[kTokenLanes], lse_q[kTokenLanes];  // log of the sum of exp(z)
  float gap[kTokenLanes];                        // lse_p - lse_q + KL: what z_p - z_q is held against
  float grad_p[kTokenLanes], grad_q[kTokenLanes], grad_kl[kTokenLanes];
  int64_t targets[kTokenLanes];
  int count;
};

// One step of Adam, in fp32 without fused multiply-adds, so that every level has the same bits:
//   g = scale * grad - c * p + decay * p     (c p: the part of scale * grad along the row p; only with `project`)
//   m = beta1 * m + rest1 * g,  v = beta2 * v + rest2 * g * g
//   p = shrink * p - step_size * m / (sqrt(v) * (1 / root) + eps), then p / |p| (only with `unit_norm`)
// Sums over a row are those of `dot` but for the fusing. A row of zeros has no part along it and stays.
struct AdamStep {
  float scale, decay, shrink, beta1, rest1, beta2, rest2, step_size, root, eps;
  bool project, unit_norm;
};

// Four tensors of one layout, in which either rows or columns are contiguous.
struct AdamTensors {
  Matrix param;
  const void* grad;
  void *exp_avg, *exp_avg_sq;
};

// Rows that are stepped together where columns are contiguous, and how many floats that takes for rows of `cols`.
constexpr int64_t kAdamStrip = 128;
inline int64_t adam_scratch(int64_t cols) { return kAdamStrip * (cols + 2 * kDotLanes); }

struct Level {
  const char* name;
  int mr;  // rows of a packed x panel
  int nr;  // latents of a packed W panel

  // out[cols][nr] = rows [row, row + nr) of w, transposed; rows past `count` are zero.
  void (*pack_panel)(const Matrix& w, int64_t row, int64_t count, float* out);
  // fp32 copy of `count` elements, and the way back (rounded to nearest even).
  void (*load_row)(const Matrix& m, int64_t row, int64_t col, int64_t count, float* out);
  void (*store_row)(const float* in, int64_t count, DType dtype, void* out);
  // c[rows][panels * nr] (leading dimension ldc) = dots of packed x rows with packed W panels, each of `depth` terms;
  // `add` adds them to c.
  void (*gemm_tile)(const float* a, int64_t rows, const float* b, int64_t panels, int64_t depth, float* c, int64_t ldc,
                    bool add);
  // The same of one block, depth <= kDotBlock, and of rows that are not packed: a[rows][kDotBlock].
  void (*rows_tile)(const float* a, int64_t rows, const float* b, int64_t panels, int64_t depth, float* c, int64_t ldc,
                    bool add);
  // out[nr] = sums of the squares of a packed panel's latents.
  void (*panel_squares)(const float* panel, int64_t depth, float* out);
  // Multiplies scores by factors, if there are any, adds bias, both in place, and lists the positions j where not
  // (score_j <= threshold): NaN passes, and so does everything if the threshold is NaN. `magnitude` compares |score|.
  // Arrays are padded to a multiple of nr.
  int (*filter_above)(float* scores, const float* factors, const float* bias, int count, float threshold,
                      bool magnitude, uint16_t* hits);
  // The same with one threshold per position, each less `slack`.
  int (*filter_each)(float* scores, const float* factors, const float* bias, const float* thresholds, float slack,
                     int count, uint16_t* hits);
  // out[j] = sum over e, in order, of weights[e] * m[ids[e]][j], for every column j. ids[n .. n + ahead) are rows that
  // the next call will want.
  void (*gather_sum)(float* out, const float* weights, const int32_t* ids, int64_t n, int64_t ahead, const Matrix& m);
  // <a, b> of two fp32 rows, zero-padded to a multiple of kDotLanes.
  float (*dot)(const float* a, const float* b, int64_t padded);
  // out[i * ldo + j] = <row i of a, m[first + j]> for i < n, j < count; rows of `a` as in dot, `lda` apart.
  void (*dot_rows)(const float* a, int64_t lda, int64_t n, const Matrix& m, int64_t first, int64_t count, float* out,
                   int64_t ldo);
  // out[e] = <a, m[ids[e]]>; `a` is zero-padded to a multiple of kDotLanes.
  void (*gather_dot)(const float* a, const int32_t* ids, int64_t n, const Matrix& m, float* out);
  // Rows [first, first + count) of all four; `scratch` has room for adam_scratch(cols), and for one row is unused.
  void (*adam_step)(const AdamStep& step, const AdamTensors& at, int64_t first, int64_t count, float* scratch);
  // Folds one tile of raw logits (overwritten) of both streams into the state. softcap 0 means none.
  void (*softmax_tile)(float* z_p, float* z_q, const float* bias, int count, float softcap, int32_t first_column,
                       int64_t target, PairState* state);
  // Screening in bf16, see simd/bf16.h for the layouts. Rounds n values (a multiple of kDotLanes) and returns the sum
  // of their squared errors; transposes 16 rounded latents of `width` bytes into a panel; c[rows][panels * 16] = packed
  // rows times packed latents (added to c with `add`), where rows and panels may be rounded up to two panels.
  float (*round_to_bf16)(const float* in, int64_t n, Bf16* out);
  void (*interleave_latents)(const void* rows, int64_t width, void* out);
  void (*bf16_tile)(const Bf16* a, int64_t rows, const Bf16* b, int64_t panels, int64_t depth, float* c, int64_t ldc,
                    bool add);
  bool bf16_fast;  // than gemm_tile
  // The loss on transposed tiles of raw logits z[count][ld], whose rows are words and whose first kTokenLanes columns
  // are tokens; bias [count] may be null, softcap 0 means none. Folds them into the states, z_p and z_q overwritten.
  void (*softmax_lanes)(float* z_p, float* z_q, int64_t ld, const float* bias, int count, float softcap,
                        int32_t first_column, const int64_t* targets, LaneStates* states);
  // Turns them into the gradient with respect to themselves; adds each word's sum to sums [count] unless it is null.
  void (*slope_lanes)(float* z_p, float* z_q, int64_t ld, const float* bias, int count, float softcap,
                      int32_t first_column, const SlopeLanes& tokens, float* sums);
  // Rounds z[count][ld] to both operands of bf16_tile, where they are not null: [count / 2][16 tokens][2], zeros up to
  // `padded` words; and rows of words, panels of 16, `panel` elements apart, of [16][kScreenDepth].
  void (*round_slopes)(const float* z, int64_t ld, int count, int padded, Bf16* pairs, Bf16* rows, int64_t panel);
  // out[16][32] = in[32][16] transposed, rows of `in` `stride` elements apart.
  void (*transpose_bf16)(const Bf16* in, int64_t stride, Bf16* out);
  // Screening in integers: n values (a multiple of kDotLanes) of a row of at most this norm as int16, or as int8 plus
  // `zero`; see simd/integers/quantise.h.
  Quantised (*quantise)(const float* in, int64_t n, float norm, Screening kind, int zero, void* out);
  IntegerTile int16_tile, int8_tile;
  GatedIntegerTile int8_gated;  // null where it would not be faster
  // What this machine multiplies faster than gemm_tile: the 16-bit screen (kFp32 for none), and int8 if it is faster
  // still: scoring one latent exactly then costs as much as it saves on so many (0 for never). By which instructions,
  // for people.
  Screening wide;
  int int8_latents_per_score;
  const char* hardware;
};

constexpr int kMaxPanel = 32;  // largest nr of any level: what paddings are rounded to
constexpr int kMaxTile = 512;  // largest number of columns in a score tile

extern const Level kPortableLevel;
#if defined(SK_HAVE_X86_LEVELS)
extern const Level kAvx2Level;
extern const Level kAvx512Level;
#endif
#if defined(SK_HAVE_BF16_LEVELS)
extern const Level kAvx512VnniLevel;
extern const Level kAvx512Bf16Level;
extern const Level kAmxLevel;
#endif
#if defined(SK_HAVE_ARM_LEVELS)
extern const Level kNeonLevel;
extern const Level kNeonDotLevel;
extern const Level kNeonBf16Level;
#endif

// The level in use: the best this machine runs, or the one forced by set_level (or by SAEKERNELS_SIMD at start).
const Level& level();
// Throws std::invalid_argument for an unknown or unsupported name; "auto" returns to the best one.
void set_level(const char* name);
// For tests that bring a level of their own.
void set_level(const Level& wanted);
// Comma-separated names this build has and this machine runs, best first.
const char* supported_levels();
// Of one core; 1 MiB where the system does not say.
int64_t second_cache_bytes();

}  // namespace saekernels
