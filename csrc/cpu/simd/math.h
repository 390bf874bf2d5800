// Vector exp and tanh. Polynomials fitted by Remez exchange to the relative error of the function.
#pragma once

namespace saekernels {
namespace {

// exp(x) for x <= 0 (or NaN): within 2 ulp, exact at 0, and 0 where the result would be subnormal.
inline Vec exp_nonpositive(Vec x) {
  const Vec lowest = Vec::broadcast(-87.336544f);  // log of the smallest normal number
  const Vec clamped = max(lowest, x);              // keeps NaN
  const Vec n = round_to_int(clamped * Vec::broadcast(1.44269504f));
  // ln 2 in two parts: the first has few enough bits that n times it is exact.
  Vec r = fma(n, Vec::broadcast(-0.693359375f), clamped);
  r = fma(n, Vec::broadcast(2.12194440e-4f), r);
  Vec q = Vec::broadcast(0.00138144670593f);
  q = fma(q, r, Vec::broadcast(0.00836878041118f));
  q = fma(q, r, Vec::broadcast(0.0416683942109f));
  q = fma(q, r, Vec::broadcast(0.166665201078f));
  q = fma(q, r, Vec::broadcast(0.499999934125f));
  const Vec small = fma(r * r, q, r);  // exp(r) - 1, |error| < 3.1e-9
  const Vec value = (small + Vec::broadcast(1.0f)) * pow2(n);
  return select_lt(x, lowest, Vec::zero(), value);
}

inline Vec tanh_vec(Vec x) {
  const Vec a = abs(x);
  // Below 0.632: odd polynomial, |relative error| < 1e-8. Above: 1 - 2t / (1 + t) with t = exp(-2|x|).
  const Vec y = x * x;
  Vec q = Vec::broadcast(-0.00581454128988f);
  q = fma(q, y, Vec::broadcast(0.0207622190922f));
  q = fma(q, y, Vec::broadcast(-0.053788079314f));
  q = fma(q, y, Vec::broadcast(0.133322126724f));
  q = fma(q, y, Vec::broadcast(-0.333333224501f));
  const Vec small = fma(x * y, q, x);
  const Vec t = exp_nonpositive(a * Vec::broadcast(-2.0f));
  const Vec one = Vec::broadcast(1.0f);
  const Vec large = copy_sign(one - (t + t) / (one + t), x);
  return select_lt(a, Vec::broadcast(0.632f), small, large);
}

}  // namespace
}  // namespace saekernels
