// Arithmetic on sixteen numbers at a time. All is computed in single precision and rounded once, when
// it is stored.

#pragma once

#include <algorithm>
#include <cmath>

#include "lanes.h"

namespace {

struct bf16 {
  uint16_t bits;
};

inline Floats all(float x) { return x - Floats{}; }

// How many numbers of a vector are meant: all, or fewer at the end of a row.
struct Whole {};
struct Part {
  long count;
};

template <typename Do>
inline void along(long width, Do what) {
  long i = 0;
  for (; i + LANES <= width; i += LANES) what(i, Whole{});
  if (i < width) what(i, Part{width - i});
}

inline Floats load(const float* from, Whole = {}, float = 0) {
  return read<Floats>(from);
}

inline Floats load(const bf16* from, Whole = {}, float = 0) {
  return same_bits<Floats>(widened(&from->bits) << 16);
}

inline void store(float* to, Floats x, Whole = {}) { write(to, x); }

// Rounded to bfloat16, sixteen bits each.
inline Words rounded(Floats x) {
  const Words wide = same_bits<Words>(x);
  const Words nearest = (wide + 0x7fff + ((wide >> 16) & 1)) >> 16;
  // Adding must not turn one that is not a number into one.
  return choose(x == x, nearest, (wide >> 16) | 0x40);
}

inline void store(bf16* to, Floats x, Whole = {}) {
#ifdef __AVX512BF16__
  write_own(to, _mm512_cvtneps_pbh(same_bits<__m512>(x)));
#else
  narrow(&to->bits, rounded(x));
#endif
}

template <typename T>
inline Floats load(const T* from, Part part, float filling = 0) {
  T few[LANES];
  store(few, all(filling));
  std::memcpy(few, from, part.count * sizeof(T));
  return load(few);
}

template <typename T>
inline void store(T* to, Floats x, Part part) {
  T few[LANES];
  store(few, x);
  std::memcpy(to, few, part.count * sizeof(T));
}

inline float one(float x) { return x; }

inline float one(bf16 x) { return same_bits<float>(static_cast<uint32_t>(x.bits) << 16); }

inline float sum_of(Floats x) {
#ifdef __AVX512F__
  return _mm512_reduce_add_ps(same_bits<__m512>(x));
#else
  // Folded in halves: no long chain of additions.
  float parts[LANES];
  store(parts, x);
  for (long half = LANES / 2; half; half /= 2)
    for (long i = 0; i < half; ++i) parts[i] += parts[i + half];
  return parts[0];
#endif
}

// 2^r for r from -1/2 to 1/2, exact at 0 and to 1e-7 of it elsewhere.
inline Floats power_of_two_near_zero(Floats r) {
  Floats p = r * 1.3264727313e-3f + 9.6715129912e-3f;
  p = p * r + 5.5507335812e-2f;
  p = p * r + 2.4022242427e-1f;
  p = p * r + 6.9314700365e-1f;
  return p * r + 1.0f;
}

// e^x for x up to 88, as 2^n 2^r with n whole and r small; 0 below -87. What is no number stays none.
inline Floats exponential(Floats x) {
  constexpr float LEAST = -87.0f, LOG2_E = 1.44269504088896341f;
#ifdef __AVX512F__
  constexpr int NEAREST = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
  const __m512 power = _mm512_roundscale_ps(same_bits<__m512>(x * LOG2_E), NEAREST);
  const Floats p = power_of_two_near_zero(x * LOG2_E - same_bits<Floats>(power));
  const auto kept = _mm512_cmp_ps_mask(same_bits<__m512>(x), _mm512_set1_ps(LEAST), _CMP_NLT_UQ);
  return same_bits<Floats>(_mm512_maskz_scalef_ps(kept, same_bits<__m512>(p), power));
#else
  const Floats low = all(LEAST);
  const Floats kept = choose(x < low, low, x);
  // Adding 1.5 * 2^23 leaves a whole number in the lowest bits.
  const Floats shifted = kept * LOG2_E + 12582912.0f;
  const Floats p = power_of_two_near_zero(kept * LOG2_E - (shifted - 12582912.0f));
  const Words scaled = same_bits<Words>(p) + (same_bits<Words>(shifted) << 23);
  return choose(x < low, Floats{}, same_bits<Floats>(scaled));
#endif
}

// 1 / x for x up to 1e38: an estimate that one step of Newton's makes exact but for rounding.
inline Floats reciprocal(Floats x) {
#ifdef __AVX512F__
  const Floats near = same_bits<Floats>(_mm512_rcp14_ps(same_bits<__m512>(x)));
  return near * (2.0f - x * near);
#else
  return 1.0f / x;
#endif
}

inline Floats sigmoid(Floats x) {
  const Floats low = all(-87.0f);
  return reciprocal(1.0f + exponential(-choose(x < low, low, x)));
}

template <typename T>
void fill_zeros(T* row, long width) {
  std::memset(static_cast<void*>(row), 0, width * sizeof(T));
}
}  // namespace
