// Python bindings. Pointers come as integers and matrices as tuples (address, rows, cols, row_stride, col_stride,
// dtype), strides in elements: no torch headers, so one build serves every torch version. The caller keeps the
// tensors alive and has checked shapes and dtypes; what could reach foreign memory is checked again in csrc/cpu.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <cstring>

#include "common/keys.h"
#include "cpu/kernels.h"
#include "cpu/levels/level.h"
#include "cpu/threads/parallel.h"
#include "cpu/stats.h"

namespace py = pybind11;
using namespace saekernels;

namespace {

template <class T>
T* pointer(uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

DType dtype_of(int code) {
  if (code < 0 || code > 2) throw std::invalid_argument("dtype: unknown code " + std::to_string(code));
  return static_cast<DType>(code);
}

// None stands for an absent matrix.
Matrix matrix(const py::object& view) {
  Matrix m;
  if (view.is_none()) return m;
  const auto fields = view.cast<py::tuple>();
  if (fields.size() != 6) throw std::invalid_argument("a matrix is a tuple of 6 integers");
  m.data = pointer<const void>(fields[0].cast<uintptr_t>());
  m.rows = fields[1].cast<int64_t>();
  m.cols = fields[2].cast<int64_t>();
  m.row_stride = fields[3].cast<int64_t>();
  m.col_stride = fields[4].cast<int64_t>();
  m.dtype = dtype_of(fields[5].cast<int>());
  return m;
}

// prepared: (address, bytes), or None.
struct BoundEncoder {
  BoundEncoder(const py::object& x, const py::object& weight, const py::object& bias, const py::object& pre_bias,
               const py::object& scale, const py::object& prepared)
      : encoder{matrix(x), matrix(weight), matrix(bias), matrix(pre_bias), nullptr, matrix(scale)} {
    if (prepared.is_none()) return;
    const auto block = prepared.cast<std::pair<uintptr_t, int64_t>>();
    weights = read_prepared(pointer<const void>(block.first), block.second, encoder.weight);
    encoder.prepared = &weights;
  }
  BoundEncoder(const BoundEncoder&) = delete;

  Prepared weights;
  Encoder encoder;
};

// values: matrix of one contiguous row, or None.
Entries entries(const py::object& values, uintptr_t indices, uintptr_t offsets, int64_t rows, int64_t count) {
  const Matrix v = matrix(values);
  return {v.data, v.dtype, pointer<const int32_t>(indices), pointer<const int64_t>(offsets), rows, count};
}

MutableRows rows_out(const py::object& view) {
  const Matrix m = matrix(view);
  return {const_cast<void*>(m.data), m.row_stride, m.dtype};
}

void bind_encoders(py::module_& m) {
  m.def("encode_topk", [](const py::object& x, const py::object& weight, const py::object& bias,
                          const py::object& pre_bias, const py::object& scale, const py::object& prepared, int64_t k,
                          int activation, int threads, int dtype, uintptr_t values, uintptr_t indices) {
    const BoundEncoder e(x, weight, bias, pre_bias, scale, prepared);
    const py::gil_scoped_release release;
    encode_topk(e.encoder, k, static_cast<Activation>(activation), threads,
                {dtype_of(dtype), pointer<void>(values), pointer<int32_t>(indices)});
  });
  m.def("topk", [](const py::object& scores, int64_t k, int threads, uintptr_t values, uintptr_t indices) {
    const Matrix s = matrix(scores);
    const py::gil_scoped_release release;
    topk(s, k, threads, pointer<void>(values), pointer<int32_t>(indices));
  });
  py::class_<ThresholdCodes>(m, "ThresholdCodes")
      .def_property_readonly("nnz", &ThresholdCodes::nnz)
      .def("move_to", [](ThresholdCodes& codes, int dtype, uintptr_t values, uintptr_t indices, uintptr_t offsets) {
        const DType type = dtype_of(dtype);
        const py::gil_scoped_release release;
        std::memcpy(pointer<int64_t>(offsets), codes.offsets.data(), codes.offsets.size() * sizeof(int64_t));
        codes.move_to(type, pointer<void>(values), pointer<int32_t>(indices));
      });
  m.def("encode_threshold",
        [](const py::object& x, const py::object& weight, const py::object& bias, const py::object& pre_bias,
           const py::object& scale, const py::object& prepared, const py::object& threshold, int threads) {
          const BoundEncoder e(x, weight, bias, pre_bias, scale, prepared);
          const Matrix limit = matrix(threshold);
          const py::gil_scoped_release release;
          return encode_threshold(e.encoder, limit, threads);
        });
}

void bind_prepared(py::module_& m) {
  m.def("prepared_bytes", &prepared_bytes);
  m.def("prepare", [](const py::object& weight, int threads, uintptr_t out) {
    const Matrix w = matrix(weight);
    const py::gil_scoped_release release;
    prepare(w, threads, pointer<void>(out));
  });
  m.def("fingerprint", [](const py::object& weight, int64_t samples, int64_t look, int64_t looks) {
    return fingerprint(matrix(weight), samples, look, looks);
  });
  m.def("screening", &screening_name);
  m.def("set_screening", [](const std::string& name) { set_screening(name.c_str()); });
  m.def("screening_hardware", [] { return level().hardware != nullptr ? level().hardware : ""; });
  m.def("stats", [] {
    py::dict counts;
    counts["direct_rows"] = stats().direct_rows.load();
    counts["screened_rows"] = stats().screened_rows.load();
    counts["int8_rows"] = stats().int8_rows.load();
    counts["int16_rows"] = stats().int16_rows.load();
    counts["bf16_rows"] = stats().bf16_rows.load();
    counts["fp32_rows"] = stats().fp32_rows.load();
    counts["rescreened_rows"] = stats().rescreened_rows.load();
    counts["rescored"] = stats().rescored.load();
    counts["overflow_rows"] = stats().overflow_rows.load();
    counts["unbounded_rows"] = stats().unbounded_rows.load();
    counts["fallback_rows"] = stats().fallback_rows.load();
    return counts;
  });
}

void bind_sparse(py::module_& m) {
  m.def("decode", [](const py::object& values, uintptr_t indices, uintptr_t offsets, int64_t rows, int64_t count,
                     const py::object& weight, const py::object& bias, int threads, const py::object& out) {
    const Entries codes = entries(values, indices, offsets, rows, count);
    const Matrix w = matrix(weight), b = matrix(bias);
    const MutableRows to = rows_out(out);
    const py::gil_scoped_release release;
    decode(codes, w, b, threads, to);
  });
  m.def("gather_dot", [](const py::object& a, const py::object& weight, uintptr_t indices, uintptr_t offsets,
                         int64_t rows, int64_t count, int threads, const py::object& out) {
    const Entries where = entries(py::none(), indices, offsets, rows, count);
    const Matrix left = matrix(a), w = matrix(weight);
    const MutableRows to = rows_out(out);
    const py::gil_scoped_release release;
    gather_dot(left, w, where, threads, to);
  });
  m.def("gather_matmul", [](const py::object& first, int64_t row_stride, const py::object& weight, uintptr_t indices,
                            uintptr_t offsets, int64_t rows, int64_t count, int threads, const py::object& out) {
    const Entries where = entries(py::none(), indices, offsets, rows, count);
    const Matrix left = matrix(first), w = matrix(weight);
    const MutableRows to = rows_out(out);
    const py::gil_scoped_release release;
    gather_matmul(left, row_stride, w, where, threads, to);
  });
  m.def("segment_outer", [](const py::object& values, uintptr_t indices, uintptr_t offsets, int64_t rows, int64_t count,
                            const py::object& a, int64_t segments, int threads, const py::object& out) {
    const Entries codes = entries(values, indices, offsets, rows, count);
    const Matrix right = matrix(a);
    const MutableRows to = rows_out(out);
    const py::gil_scoped_release release;
    segment_outer(codes, right, segments, threads, to);
  });
  m.def("segment_sum", [](const py::object& values, uintptr_t indices, int64_t count, int64_t segments, uintptr_t out) {
    const Entries codes = entries(values, indices, 0, 0, count);
    const py::gil_scoped_release release;
    segment_sum(codes, segments, pointer<void>(out));
  });
}

void bind_loss(py::module_& m) {
  // h_q: a list of streams; ce_q, kl and agree have a row for each.
  m.def("linear_ce_kl", [](const py::object& h_p, const py::list& h_q, const py::object& weight, const py::object& bias,
                           uintptr_t targets, float softcap, int64_t ignore_index, int threads, uintptr_t ce_p,
                           uintptr_t ce_q, uintptr_t kl, uintptr_t agree) {
    std::vector<Matrix> streams;
    for (const py::handle stream : h_q) streams.push_back(matrix(py::reinterpret_borrow<py::object>(stream)));
    const LossArgs args{matrix(h_p), std::move(streams), matrix(weight), matrix(bias), pointer<const int64_t>(targets),
                        softcap,     ignore_index};
    const py::gil_scoped_release release;
    linear_ce_kl(args, threads, pointer<float>(ce_p), pointer<float>(ce_q), pointer<float>(kl), pointer<float>(agree));
  });
  // losses and grads: addresses of three [T] each, for ce_p, ce_q and kl; d_*: matrices to write, or None.
  m.def("linear_ce_kl_backward",
        [](const py::object& h_p, const py::object& h_q, const py::object& weight, const py::object& bias,
           uintptr_t targets, float softcap, int64_t ignore_index, int threads, const py::tuple& losses,
           const py::tuple& grads, const py::object& d_hp, const py::object& d_hq, const py::object& d_weight,
           const py::object& d_bias) {
          const LossArgs args{matrix(h_p), {matrix(h_q)}, matrix(weight), matrix(bias), pointer<const int64_t>(targets),
                              softcap,     ignore_index};
          const auto of = [](const py::tuple& t, size_t i) { return pointer<const float>(t[i].cast<uintptr_t>()); };
          const LossGrads from{of(losses, 0), of(losses, 1), of(losses, 2), of(grads, 0), of(grads, 1), of(grads, 2)};
          const LossInputGrads out{rows_out(d_hp), rows_out(d_hq), rows_out(d_weight), rows_out(d_bias)};
          const py::gil_scoped_release release;
          linear_ce_kl_backward(args, from, threads, out);
        });
}

void bind_optim(py::module_& m) {
  // numbers: the floats of AdamStep in their order; grad, exp_avg and exp_avg_sq lie as param does.
  m.def("adam_step", [](const py::object& param, uintptr_t grad, uintptr_t exp_avg, uintptr_t exp_avg_sq,
                        const std::array<float, 10>& numbers, bool project, bool unit_norm, int threads) {
    const auto& [scale, decay, shrink, beta1, rest1, beta2, rest2, step_size, root, eps] = numbers;
    const AdamStep step{scale, decay, shrink, beta1, rest1, beta2, rest2, step_size, root, eps, project, unit_norm};
    const AdamTensors at{matrix(param), pointer<const void>(grad), pointer<void>(exp_avg), pointer<void>(exp_avg_sq)};
    const py::gil_scoped_release release;
    adam_step(step, at, threads);
  });
}

}  // namespace

PYBIND11_MODULE(_cpu, m) {
  m.doc() = "CPU kernels of saekernels: raw pointers in, raw pointers out.";
  watch_forks();
  bind_encoders(m);
  bind_prepared(m);
  bind_sparse(m);
  bind_loss(m);
  bind_optim(m);
  m.def("simd_level", [] { return level().name; });
  m.def("set_simd_level", [](const std::string& name) { set_level(name.c_str()); });
  m.def("supported_simd_levels", [] { return supported_levels(); });
  m.def("uses_host_threads", &uses_host_threads);
  m.def("compiler", [] { return SK_COMPILER; });
  m.def("make_key", &make_key);
  m.def("key_score", &key_score);
  m.def("key_index", &key_index);
  m.def("round_trip", [](float value, int dtype) {
    float out = value;
    if (dtype_of(dtype) == DType::kBfloat16) {
      Bf16 bits;
      from_float(value, &bits);
      out = to_float(bits);
    } else if (dtype_of(dtype) == DType::kFloat16) {
      F16 bits;
      from_float(value, &bits);
      out = to_float(bits);
    }
    return out;
  });
}
