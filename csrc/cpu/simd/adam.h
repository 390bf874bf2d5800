// Adam's step. What is left over of a row goes through the same operations one lane at a time, so no element's bits
// depend on where it lies.
#pragma once

namespace saekernels {
namespace {

struct One {
  static constexpr int kWidth = 1;
  float v;

  static One broadcast(float x) { return {x}; }
  template <class T>
  static One load(const T* p) {
    return {to_float(*p)};
  }
  template <class T>
  void store(T* p) const {
    from_float(v, p);
  }
};
inline One operator+(One a, One b) { return {a.v + b.v}; }
inline One operator-(One a, One b) { return {a.v - b.v}; }
inline One operator*(One a, One b) { return {a.v * b.v}; }
inline One operator/(One a, One b) { return {a.v / b.v}; }
inline One sqrt(One a) { return {__builtin_sqrtf(a.v)}; }

template <class V>
struct AdamLanes {
  explicit AdamLanes(const AdamStep& s)
      : scale(V::broadcast(s.scale)),
        decay(V::broadcast(s.decay)),
        shrink(V::broadcast(s.shrink)),
        beta1(V::broadcast(s.beta1)),
        rest1(V::broadcast(s.rest1)),
        beta2(V::broadcast(s.beta2)),
        rest2(V::broadcast(s.rest2)),
        step_size(V::broadcast(s.step_size)),
        per_root(V::broadcast(1.0f / s.root)),
        eps(V::broadcast(s.eps)),
        project(s.project),
        decays(s.decay != 0) {}

  // The new p; along: the c of AdamStep.
  V operator()(V p, V g, V along, V* m, V* v) const {
    g = scale * g;
    if (project) g = g - along * p;
    if (decays) g = g + decay * p;
    *m = beta1 * *m + rest1 * g;
    *v = beta2 * *v + (rest2 * g) * g;
    return shrink * p - (step_size * *m) / (sqrt(*v) * per_root + eps);
  }

  V scale, decay, shrink, beta1, rest1, beta2, rest2, step_size, per_root, eps;
  bool project, decays;
};

// fn(lanes, at) for whole vectors of n elements, and for each of the rest.
template <class Fn>
inline void each_lane(const AdamLanes<Vec>& wide, const AdamLanes<One>& narrow, int64_t n, Fn&& fn) {
  int64_t i = 0;
  for (; i + Vec::kWidth <= n; i += Vec::kWidth) fn(wide, Vec{}, i);
  for (; i < n; ++i) fn(narrow, One{}, i);
}

// The sum of a[j] * b[j] in the order of `dots`.
template <class A, class B>
inline float plain_dot(const A* a, const B* b, int64_t count) {
  constexpr int kVecs = kDotLanes / Vec::kWidth;
  Vec acc[kVecs];
  for (Vec& lane : acc) lane = Vec::zero();
  int64_t j = 0;
  for (; j + kDotLanes <= count; j += kDotLanes) {
#pragma GCC unroll 8
    for (int i = 0; i < kVecs; ++i) {
      const int64_t at = j + i * Vec::kWidth;
      acc[i] = acc[i] + Vec::load(a + at) * Vec::load(b + at);
    }
  }
  if (j < count) {
    float lanes[kDotLanes];
    for (int i = 0; i < kVecs; ++i) acc[i].store(lanes + i * Vec::kWidth);
    for (int64_t i = 0; j + i < count; ++i) lanes[i] += to_float(a[j + i]) * to_float(b[j + i]);
    for (int i = 0; i < kVecs; ++i) acc[i] = Vec::load(lanes + i * Vec::kWidth);
  }
  return fold_lanes(acc);
}

inline float along_of(float scale, float product, float squares) {
  return squares == 0 ? 0.0f : scale * product / squares;
}

inline float norm_of(float squares) { return squares == 0 ? 1.0f : __builtin_sqrtf(squares); }

// A contiguous row. With unit norms its new values wait in scratch, unrounded, until their norm is known.
template <class T>
struct AdamRows {
  const AdamStep& step;
  const AdamLanes<Vec> wide{step};
  const AdamLanes<One> narrow{step};

  void row(T* p, const T* g, T* m, T* v, int64_t cols, float* scratch) const {
    const float along = step.project ? along_of(step.scale, plain_dot(g, p, cols), plain_dot(p, p, cols)) : 0.0f;
    if (!step.unit_norm) return update(p, g, m, v, cols, along, p);
    update(p, g, m, v, cols, along, scratch);
    const float norm = norm_of(plain_dot(scratch, scratch, cols));
    each_lane(wide, narrow, cols, [=](const auto&, auto lanes, int64_t j) {
      using V = decltype(lanes);
      (V::load(scratch + j) / V::broadcast(norm)).store(p + j);
    });
  }

  template <class To>
  void update(const T* p, const T* g, T* m, T* v, int64_t cols, float along, To* out) const {
    each_lane(wide, narrow, cols, [=](const auto& adam, auto lanes, int64_t j) {
      using V = decltype(lanes);
      V mean = V::load(m + j), square = V::load(v + j);
      const V stepped = adam(V::load(p + j), V::load(g + j), V::broadcast(along), &mean, &square);
      mean.store(m + j);
      square.store(v + j);
      stepped.store(out + j);
    });
  }

  // `count` rows, at most kAdamStrip, that lie side by side: element j of each is `stride` elements behind j - 1.
  void strip(T* p, const T* g, T* m, T* v, int64_t count, int64_t cols, int64_t stride, float* scratch) const {
    float *products = scratch + cols * kAdamStrip, *squares = products + kDotLanes * kAdamStrip;
    float along[kAdamStrip] = {};
    if (step.project) {
      std::fill(products, products + 2 * kDotLanes * kAdamStrip, 0.0f);
      for (int64_t j = 0; j < cols; ++j) {
        add_products(g + j * stride, p + j * stride, count, products + j % kDotLanes * kAdamStrip);
        add_products(p + j * stride, p + j * stride, count, squares + j % kDotLanes * kAdamStrip);
      }
      fold_strip(products);
      fold_strip(squares);
      for (int64_t i = 0; i < count; ++i) along[i] = along_of(step.scale, products[i], squares[i]);
    }
    for (int64_t j = 0; j < cols; ++j) {
      const int64_t at = j * stride;
      float* kept = scratch + j * kAdamStrip;
      if (step.unit_norm) {
        update_across(p + at, g + at, m + at, v + at, count, along, kept);
      } else {
        update_across(p + at, g + at, m + at, v + at, count, along, p + at);
      }
    }
    if (step.unit_norm) normalise(p, count, cols, stride, scratch, squares);
  }

  template <class To>
  void update_across(const T* p, const T* g, T* m, T* v, int64_t count, const float* along, To* out) const {
    each_lane(wide, narrow, count, [=](const auto& adam, auto lanes, int64_t i) {
      using V = decltype(lanes);
      V mean = V::load(m + i), square = V::load(v + i);
      const V stepped = adam(V::load(p + i), V::load(g + i), V::load(along + i), &mean, &square);
      mean.store(m + i);
      square.store(v + i);
      stepped.store(out + i);
    });
  }

  void normalise(T* p, int64_t count, int64_t cols, int64_t stride, const float* values, float* squares) const {
    std::fill(squares, squares + kDotLanes * kAdamStrip, 0.0f);
    for (int64_t j = 0; j < cols; ++j) {
      const float* kept = values + j * kAdamStrip;
      add_products(kept, kept, count, squares + j % kDotLanes * kAdamStrip);
    }
    fold_strip(squares);
    for (int64_t i = 0; i < count; ++i) squares[i] = norm_of(squares[i]);
    for (int64_t j = 0; j < cols; ++j) {
      each_lane(wide, narrow, count, [=](const auto&, auto lanes, int64_t i) {
        using V = decltype(lanes);
        (V::load(values + j * kAdamStrip + i) / V::load(squares + i)).store(p + j * stride + i);
      });
    }
  }

  template <class A, class B>
  void add_products(const A* a, const B* b, int64_t count, float* sums) const {
    each_lane(wide, narrow, count, [=](const auto&, auto lanes, int64_t i) {
      using V = decltype(lanes);
      (V::load(sums + i) + V::load(a + i) * V::load(b + i)).store(sums + i);
    });
  }

  // sums [kDotLanes][kAdamStrip] into its first row, in halves, as fold_lanes does.
  static void fold_strip(float* sums) {
    for (int64_t half = kDotLanes / 2; half > 0; half /= 2) {
      for (int64_t i = 0; i < half * kAdamStrip; ++i) sums[i] = sums[i] + sums[i + half * kAdamStrip];
    }
  }
};

template <class T>
inline void adam_step_typed(const AdamStep& step, const AdamTensors& at, int64_t first, int64_t count, float* scratch) {
  const AdamRows<T> rows{step};
  const Matrix& shape = at.param;
  const auto of = [&](const void* data, int64_t row) {
    return const_cast<T*>(static_cast<const T*>(data)) + row * shape.row_stride;
  };
  const bool whole = shape.col_stride == 1;
  const int64_t share = whole ? 1 : kAdamStrip;
  for (int64_t row = first; row < first + count; row += share) {
    T *p = of(shape.data, row), *m = of(at.exp_avg, row), *v = of(at.exp_avg_sq, row);
    const T* g = of(at.grad, row);
    if (whole) {
      rows.row(p, g, m, v, shape.cols, scratch);
    } else {
      rows.strip(p, g, m, v, std::min(share, first + count - row), shape.cols, shape.col_stride, scratch);
    }
  }
}

void adam_step(const AdamStep& step, const AdamTensors& at, int64_t first, int64_t count, float* scratch) {
  with_type(at.param.dtype, [&](auto* tag) {
    adam_step_typed<std::remove_const_t<std::remove_pointer_t<decltype(tag)>>>(step, at, first, count, scratch);
  });
}

}  // namespace
}  // namespace saekernels
