// Scratch memory: cache-line aligned, checked, freed by scope.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>
#include <type_traits>

namespace saekernels {

// Uninitialised array of trivial elements. Throws std::bad_alloc when the size overflows or memory is out.
template <class T>
class Buffer {
  static_assert(std::is_trivially_copyable_v<T> && std::is_trivially_destructible_v<T>);

 public:
  Buffer() = default;
  explicit Buffer(int64_t count) : data_(allocate(count)) {}

  T* get() const { return data_.get(); }
  T& operator[](int64_t i) const { return data_.get()[i]; }

 private:
  struct Free {
    void operator()(T* p) const { std::free(p); }
  };

  static T* allocate(int64_t count) {
    constexpr int64_t kLine = 64;
    if (count < 0 || count > (INT64_MAX - kLine) / static_cast<int64_t>(sizeof(T))) throw std::bad_alloc();
    const int64_t bytes = (count * static_cast<int64_t>(sizeof(T)) + kLine - 1) / kLine * kLine;
    void* memory = std::aligned_alloc(kLine, static_cast<size_t>(bytes > 0 ? bytes : kLine));
    if (memory == nullptr) throw std::bad_alloc();
    return static_cast<T*>(memory);
  }

  std::unique_ptr<T, Free> data_;
};

inline int64_t round_up(int64_t n, int64_t multiple) { return (n + multiple - 1) / multiple * multiple; }
inline int64_t ceil_div(int64_t n, int64_t by) { return (n + by - 1) / by; }

}  // namespace saekernels
