// Rows sorted by expert: a slice for each, one after the other.

#pragma once

#include <cstdint>
#include <vector>

namespace {

// The first row of each slice.
inline std::vector<int64_t> starts_of(const int64_t* sizes, long experts) {
  std::vector<int64_t> starts(experts);
  for (long e = 1; e < experts; ++e) starts[e] = starts[e - 1] + sizes[e - 1];
  return starts;
}
}  // namespace
