// What happens between the matrix products of a training step on a CPU, each in one pass.
//
// Plain C++ with the vector extension that GCC and Clang share; numbers are computed in single
// precision and rounded once, when they are stored. Matrices are row by row without gaps, unless a
// stride is given. Exported functions exist for both types: their names end in _bf16 or _f32.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>
#ifdef __AVX512F__
#include <immintrin.h>
#endif

namespace {

constexpr long LANES = 16;
using Floats = float __attribute__((vector_size(4 * LANES)));
using Words = uint32_t __attribute__((vector_size(4 * LANES)));
using Pairs = uint64_t __attribute__((vector_size(4 * LANES)));
using Halves = uint16_t __attribute__((vector_size(2 * LANES)));

struct bf16 {
  uint16_t bits;
};

template <typename To, typename From>
inline To same_bits(From from) {
  static_assert(sizeof(To) == sizeof(From), "another size");
  To to;
  std::memcpy(&to, &from, sizeof(to));
  return to;
}

inline Floats all(float x) { return x - Floats{}; }

inline Words widened(Halves x) {
#ifdef __AVX512F__
  return same_bits<Words>(_mm512_cvtepu16_epi32(same_bits<__m256i>(x)));
#else
  return __builtin_convertvector(x, Words);
#endif
}

// How many numbers of a vector are meant: all, fewer at the end of a row, or fewer while the row
// goes on, so that a whole vector may be read and written.
struct Whole {};
struct Part {
  long count;
};
struct First {
  long count;
};

template <typename Do>
inline void along(long width, Do what) {
  long i = 0;
  for (; i + LANES <= width; i += LANES) what(i, Whole{});
  if (i < width) what(i, Part{width - i});
}

template <typename Do>
inline void along_seen(long seen, long width, Do what) {
  long i = 0;
  for (; i + LANES <= seen; i += LANES) what(i, Whole{});
  if (i == seen) return;
  if (i + LANES <= width) {
    what(i, First{seen - i});
  } else {
    what(i, Part{seen - i});
  }
}

inline Floats load(const float* from, Whole = {}, float = 0) {
  Floats x;
  std::memcpy(&x, from, sizeof(x));
  return x;
}

inline Floats load(const bf16* from, Whole = {}, float = 0) {
  Halves x;
  std::memcpy(&x, from, sizeof(x));
  return same_bits<Floats>(widened(x) << 16);
}

inline void store(float* to, Floats x, Whole = {}) { std::memcpy(to, &x, sizeof(x)); }

inline void store(bf16* to, Floats x, Whole = {}) {
#ifdef __AVX512BF16__
  const auto rounded = _mm512_cvtneps_pbh(same_bits<__m512>(x));
  std::memcpy(to, &rounded, sizeof(rounded));
#else
  const Words wide = same_bits<Words>(x);
  const Words rounded = (wide + 0x7fff + ((wide >> 16) & 1)) >> 16;
  // Adding must not turn one that is not a number into one.
  const Halves kept = __builtin_convertvector(x == x ? rounded : (wide >> 16) | 0x40, Halves);
  std::memcpy(to, &kept, sizeof(kept));
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

template <typename T>
inline Floats load(const T* from, First first, float filling = 0) {
  constexpr Words LANE = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  const Words count = Words{} + static_cast<uint32_t>(first.count);
  return LANE < count ? load(from) : all(filling);
}

template <typename T>
inline void store(T* to, Floats x, First) {
  store(to, x);
}

inline float one(float x) { return x; }

inline float one(bf16 x) { return same_bits<float>(static_cast<uint32_t>(x.bits) << 16); }

// Folded in halves: no long chain of additions.
template <typename Fold>
inline float folded(Floats x, Fold fold) {
  float parts[LANES];
  store(parts, x);
  for (long half = LANES / 2; half; half /= 2)
    for (long i = 0; i < half; ++i) parts[i] = fold(parts[i], parts[i + half]);
  return parts[0];
}

inline float sum_of(Floats x) {
#ifdef __AVX512F__
  return _mm512_reduce_add_ps(same_bits<__m512>(x));
#else
  return folded(x, [](float a, float b) { return a + b; });
#endif
}

inline float largest_of(Floats x) {
#ifdef __AVX512F__
  return _mm512_reduce_max_ps(same_bits<__m512>(x));
#else
  return folded(x, [](float a, float b) { return a > b ? a : b; });
#endif
}

// e^x for x up to 88, as 2^n e^r with n whole and r small, by the polynomial of the Cephes library;
// 0 below -87. What is no number stays none.
inline Floats exponential(Floats x) {
  const Floats low = all(-87.0f);
  const Floats kept = x < low ? low : x;
  // Adding 1.5 * 2^23 leaves a whole number in the lowest bits.
  const Floats shifted = kept * 1.44269504088896341f + 12582912.0f;
  const Floats n = shifted - 12582912.0f;
  const Floats r = (kept - n * 0.693359375f) + n * 2.12194440e-4f;
  Floats p = r * 1.9875691500e-4f + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * (r * r) + r + 1.0f;
  const Words scaled = same_bits<Words>(p) + (same_bits<Words>(shifted) << 23);
  return x < low ? Floats{} : same_bits<Floats>(scaled);
}

inline Floats sigmoid(Floats x) {
  const Floats low = all(-88.0f);
  return 1.0f / (1.0f + exponential(-(x < low ? low : x)));
}

// Of the first `seen` numbers of a row of `width`.
template <typename T>
float largest(const T* row, long seen, long width) {
  Floats most = all(-INFINITY);
  along_seen(seen, width, [&](long i, auto part) {
    const Floats x = load(row + i, part, -INFINITY);
    most = x > most ? x : most;
  });
  return largest_of(most);
}

// Writes e^(x - most), 0 from `seen` to a multiple of LANES, and returns their sum.
template <typename T>
float exponentials(const T* row, float most, float* out, long seen, long width) {
  Floats sum{};
  along_seen(seen, width, [&](long i, auto part) {
    const Floats e = exponential(load(row + i, part, -INFINITY) - most);
    store(out + i, e);
    sum += e;
  });
  return sum_of(sum);
}

template <typename T>
void store_scaled(T* row, const float* x, float scale, long seen, long width) {
  along_seen(seen, width, [&](long i, auto part) { store(row + i, load(x + i) * scale, part); });
}

template <typename T>
void fill_zeros(T* row, long width) {
  std::memset(static_cast<void*>(row), 0, width * sizeof(T));
}

std::vector<float> scratch(long width) { return std::vector<float>(width + LANES); }

// losses (rows,) in nats; with_error replaces logits (rows, width) by the losses' gradient. A target
// below 0 counts for nothing.
template <typename T>
void cross_entropy(T* logits, const int64_t* targets, float* losses, long rows, long width,
                   bool with_error, int threads) {
#pragma omp parallel num_threads(threads) if (threads > 1)
  {
    auto buffer = scratch(width);
    float* e = buffer.data();
#pragma omp for
    for (long r = 0; r < rows; ++r) {
      T* row = logits + r * width;
      const int64_t target = targets[r];
      losses[r] = 0;
      if (target < 0) {
        if (with_error) fill_zeros(row, width);
        continue;
      }
      const float most = largest(row, width, width);
      const float sum = exponentials(row, most, e, width, width);
      losses[r] = std::log(sum) - (one(row[target]) - most);
      if (!with_error) continue;
      e[target] -= sum;
      store_scaled(row, e, 1 / sum, width, width);
    }
  }
}

// scores (matrices, rows, width) become weights; row r sees the first `before` + r + 1 columns.
template <typename T>
void causal_softmax(T* scores, long matrices, long rows, long width, long before, int threads) {
#pragma omp parallel num_threads(threads) if (threads > 1)
  {
    auto buffer = scratch(width);
    float* e = buffer.data();
#pragma omp for collapse(2)
    for (long m = 0; m < matrices; ++m) {
      for (long r = 0; r < rows; ++r) {
        T* row = scores + (m * rows + r) * width;
        const long seen = before + r + 1;
        const float sum = exponentials(row, largest(row, seen, width), e, seen, width);
        store_scaled(row, e, 1 / sum, seen, width);
        fill_zeros(row + seen, width - seen);
      }
    }
  }
}

// grads with respect to the weights of causal_softmax become those with respect to its scores.
template <typename T>
void softmax_backward(T* grads, const T* weights, long matrices, long rows, long width,
                      long before, int threads) {
#pragma omp parallel for collapse(2) num_threads(threads) if (threads > 1)
  for (long m = 0; m < matrices; ++m) {
    for (long r = 0; r < rows; ++r) {
      T* grad = grads + (m * rows + r) * width;
      const T* weight = weights + (m * rows + r) * width;
      const long seen = before + r + 1;
      Floats sum{};
      along_seen(seen, width, [&](long i, auto part) {
        sum += load(grad + i, part) * load(weight + i, part);
      });
      const float inner = sum_of(sum);
      along_seen(seen, width, [&](long i, auto part) {
        store(grad + i, load(weight + i, part) * (load(grad + i, part) - inner), part);
      });
      fill_zeros(grad + seen, width - seen);
    }
  }
}

// out = x * scale * gain with scale = 1 / sqrt(mean(x^2) + eps); row r has gain r % gains.
template <typename T>
void rms_norm(const T* x, const float* gain, T* out, float* scales, long rows, long width,
              long gains, float eps, int threads) {
#pragma omp parallel for num_threads(threads) if (threads > 1)
  for (long r = 0; r < rows; ++r) {
    const T* row = x + r * width;
    const float* by = gain + r % gains * width;
    Floats sum{};
    along(width, [&](long i, auto part) {
      const Floats v = load(row + i, part);
      sum += v * v;
    });
    const float scale = 1 / std::sqrt(sum_of(sum) / width + eps);
    scales[r] = scale;
    along(width, [&](long i, auto part) {
      store(out + r * width + i, load(row + i, part) * scale * load(by + i, part), part);
    });
  }
}

// Sums over rows are taken part by part, so that they do not depend on the number of threads.
constexpr long ROWS_OF_A_PART = 256;

template <typename T>
void rms_norm_backward(const T* grads, const T* x, const float* gain, const float* scales, T* out,
                       float* grad_gain, long rows, long width, long gains, int threads) {
  const long parts = (rows + ROWS_OF_A_PART - 1) / ROWS_OF_A_PART;
  std::vector<float> sums(parts * gains * width);
#pragma omp parallel for num_threads(threads) if (threads > 1)
  for (long p = 0; p < parts; ++p) {
    const long end = std::min((p + 1) * ROWS_OF_A_PART, rows);
    for (long r = p * ROWS_OF_A_PART; r < end; ++r) {
      const T *grad = grads + r * width, *row = x + r * width;
      const float* by = gain + r % gains * width;
      float* added = sums.data() + (p * gains + r % gains) * width;
      const float scale = scales[r];
      Floats sum{};
      along(width, [&](long i, auto part) {
        const Floats g = load(grad + i, part), v = load(row + i, part);
        sum += g * v * load(by + i, part);
        store(added + i, load(added + i, part) + g * v * scale, part);
      });
      const float inner = sum_of(sum) * scale * scale / width;
      along(width, [&](long i, auto part) {
        const Floats g = load(grad + i, part) * load(by + i, part);
        store(out + r * width + i, (g - load(row + i, part) * inner) * scale, part);
      });
    }
  }
  std::memset(grad_gain, 0, gains * width * sizeof(float));
  for (long p = 0; p < parts; ++p)
    for (long i = 0; i < gains * width; ++i) grad_gain[i] += sums[p * gains * width + i];
}

// out (rows, width) = silu(gate) * up, times a factor for each row where there are factors. Rows of
// gate and up lie `stride` numbers apart.
template <typename T>
void swiglu(const T* gate, const T* up, long stride, const T* factors, T* out, long rows,
            long width, int threads) {
#pragma omp parallel for num_threads(threads) if (threads > 1)
  for (long r = 0; r < rows; ++r) {
    const float factor = factors ? one(factors[r]) : 1.0f;
    along(width, [&](long i, auto part) {
      const Floats g = load(gate + r * stride + i, part), u = load(up + r * stride + i, part);
      store(out + r * width + i, g * sigmoid(g) * u * factor, part);
    });
  }
}

// Gradients of gate and up, whose rows lie `stride` apart as well, and of the factors.
template <typename T>
void swiglu_backward(const T* grads, const T* gate, const T* up, long stride, const T* factors,
                     T* grad_gate, T* grad_up, long grad_stride, T* grad_factors, long rows,
                     long width, int threads) {
#pragma omp parallel for num_threads(threads) if (threads > 1)
  for (long r = 0; r < rows; ++r) {
    const float factor = factors ? one(factors[r]) : 1.0f;
    Floats sum{};
    along(width, [&](long i, auto part) {
      const Floats d = load(grads + r * width + i, part);
      const Floats g = load(gate + r * stride + i, part), u = load(up + r * stride + i, part);
      const Floats s = sigmoid(g), active = g * s, scaled = d * factor;
      sum += d * active * u;
      store(grad_up + r * grad_stride + i, scaled * active, part);
      store(grad_gate + r * grad_stride + i, scaled * u * (s + active * (1 - s)), part);
    });
    if (grad_factors) {
      const Floats inner = all(sum_of(sum));
      store(grad_factors + r, inner, Part{1});
    }
  }
}

// out (tokens, width): of each token the sum of the k rows that lie at its places.
template <typename T>
void add_rows(const T* rows, const int64_t* places, T* out, long tokens, long k, long width,
              int threads) {
#pragma omp parallel for num_threads(threads) if (threads > 1)
  for (long t = 0; t < tokens; ++t) {
    const int64_t* place = places + t * k;
    along(width, [&](long i, auto part) {
      Floats sum{};
      for (long j = 0; j < k; ++j) sum += load(rows + place[j] * width + i, part);
      store(out + t * width + i, sum, part);
    });
  }
}

// Heads apart, and queries in blocks. Sizes of what lies row by row in projected (batch, length,
// heads + 2 kv_heads, width): queries first, then keys, then values. In blocks of queries the order
// is (block, kv head, batch, group, row, width); keys and values are (kv head, batch, length, width).
struct Heads {
  long batch, length, kv_heads, groups, width, block;

  long row() const { return (groups + 2) * kv_heads * width; }

  long query(long b, long t, long head) const {
    const long start = t / block * block, rows = std::min(block, length - start);
    const long stack = ((head / groups * batch + b) * groups + head % groups) * rows + t - start;
    return (start * kv_heads * batch * groups + stack) * width;
  }

  long key(long b, long t, long head) const { return ((head * batch + b) * length + t) * width; }
};

// (x, y) -> (x cos - y sin, x sin + y cos), or back with a sign of -1; turns are (cos, sin).
template <typename From, typename To>
inline void turn(const From* from, const float* turns, float sign, To* to, long width) {
  constexpr Floats ALTERNATING = {-1, 1, -1, 1, -1, 1, -1, 1, -1, 1, -1, 1, -1, 1, -1, 1};
  constexpr uint64_t SECOND = ~uint64_t{0} << 32;
  along(width, [&](long i, auto part) {
    const Pairs pair = same_bits<Pairs>(load(turns + i, part));
    const Floats cosine = same_bits<Floats>((pair & ~SECOND) | (pair << 32));
    const Floats sine = same_bits<Floats>((pair & SECOND) | (pair >> 32));
    const Floats x = load(from + i, part);
    const Pairs xy = same_bits<Pairs>(x);
    const Floats swapped = same_bits<Floats>((xy << 32) | (xy >> 32));
    store(to + i, x * cosine + swapped * (sine * ALTERNATING * sign), part);
  });
}

// turns (batch or 1, length, width): `turns_step` is how far those of the next sequence lie.
template <typename T>
void split_heads(const T* projected, const float* turns, long turns_step, T* queries, T* keys,
                 T* values, const Heads& h, int threads) {
  const long heads = h.kv_heads * h.groups;
#pragma omp parallel for collapse(2) num_threads(threads) if (threads > 1)
  for (long b = 0; b < h.batch; ++b) {
    for (long t = 0; t < h.length; ++t) {
      const T* row = projected + (b * h.length + t) * h.row();
      const float* angle = turns + b * turns_step + t * h.width;
      for (long head = 0; head < heads; ++head, row += h.width)
        turn(row, angle, 1, queries + h.query(b, t, head), h.width);
      for (long head = 0; head < h.kv_heads; ++head, row += h.width)
        turn(row, angle, 1, keys + h.key(b, t, head), h.width);
      for (long head = 0; head < h.kv_heads; ++head, row += h.width)
        std::memcpy(values + h.key(b, t, head), row, h.width * sizeof(T));
    }
  }
}

// The gradient of split_heads; those of keys and values are sums in single precision.
template <typename T>
void split_heads_backward(const T* queries, const float* keys, const float* values,
                          const float* turns, long turns_step, T* projected, const Heads& h,
                          int threads) {
  const long heads = h.kv_heads * h.groups;
#pragma omp parallel for collapse(2) num_threads(threads) if (threads > 1)
  for (long b = 0; b < h.batch; ++b) {
    for (long t = 0; t < h.length; ++t) {
      T* row = projected + (b * h.length + t) * h.row();
      const float* angle = turns + b * turns_step + t * h.width;
      for (long head = 0; head < heads; ++head, row += h.width)
        turn(queries + h.query(b, t, head), angle, -1, row, h.width);
      for (long head = 0; head < h.kv_heads; ++head, row += h.width)
        turn(keys + h.key(b, t, head), angle, -1, row, h.width);
      for (long head = 0; head < h.kv_heads; ++head, row += h.width)
        along(h.width, [&](long i, auto part) {
          store(row + i, load(values + h.key(b, t, head) + i, part), part);
        });
    }
  }
}

// Rows of all heads, (batch, length, heads, width), into blocks of queries or out of them.
template <typename T>
void move_queries(T* rows, T* blocks, bool into_blocks, const Heads& h, int threads) {
  const long heads = h.kv_heads * h.groups;
#pragma omp parallel for collapse(2) num_threads(threads) if (threads > 1)
  for (long b = 0; b < h.batch; ++b) {
    for (long t = 0; t < h.length; ++t) {
      T* row = rows + (b * h.length + t) * heads * h.width;
      for (long head = 0; head < heads; ++head, row += h.width) {
        T* place = blocks + h.query(b, t, head);
        std::memcpy(into_blocks ? place : row, into_blocks ? row : place, h.width * sizeof(T));
      }
    }
  }
}
}  // namespace

#define EXPORT(T, NAME)                                                                           \
  void cross_entropy_##NAME(T* logits, const int64_t* targets, float* losses, long rows,           \
                            long width, bool with_error, int threads) {                            \
    cross_entropy(logits, targets, losses, rows, width, with_error, threads);                      \
  }                                                                                               \
  void causal_softmax_##NAME(T* scores, long matrices, long rows, long width, long before,         \
                             int threads) {                                                       \
    causal_softmax(scores, matrices, rows, width, before, threads);                                \
  }                                                                                               \
  void softmax_backward_##NAME(T* grads, const T* weights, long matrices, long rows, long width,  \
                               long before, int threads) {                                        \
    softmax_backward(grads, weights, matrices, rows, width, before, threads);                     \
  }                                                                                               \
  void rms_norm_##NAME(const T* x, const float* gain, T* out, float* scales, long rows,            \
                       long width, long gains, float eps, int threads) {                           \
    rms_norm(x, gain, out, scales, rows, width, gains, eps, threads);                              \
  }                                                                                               \
  void rms_norm_backward_##NAME(const T* grads, const T* x, const float* gain,                     \
                                const float* scales, T* out, float* grad_gain, long rows,          \
                                long width, long gains, int threads) {                             \
    rms_norm_backward(grads, x, gain, scales, out, grad_gain, rows, width, gains, threads);        \
  }                                                                                               \
  void swiglu_##NAME(const T* gate, const T* up, long stride, const T* factors, T* out, long rows, \
                     long width, int threads) {                                                    \
    swiglu(gate, up, stride, factors, out, rows, width, threads);                                  \
  }                                                                                               \
  void swiglu_backward_##NAME(const T* grads, const T* gate, const T* up, long stride,             \
                              const T* factors, T* grad_gate, T* grad_up, long grad_stride,        \
                              T* grad_factors, long rows, long width, int threads) {               \
    swiglu_backward(grads, gate, up, stride, factors, grad_gate, grad_up, grad_stride,             \
                    grad_factors, rows, width, threads);                                           \
  }                                                                                               \
  void add_rows_##NAME(const T* rows, const int64_t* places, T* out, long tokens, long k,          \
                       long width, int threads) {                                                 \
    add_rows(rows, places, out, tokens, k, width, threads);                                        \
  }                                                                                               \
  void split_heads_##NAME(const T* projected, const float* turns, long turns_step, T* queries,     \
                          T* keys, T* values, Heads heads, int threads) {                          \
    split_heads(projected, turns, turns_step, queries, keys, values, heads, threads);              \
  }                                                                                               \
  void split_heads_backward_##NAME(const T* queries, const float* keys, const float* values,       \
                                   const float* turns, long turns_step, T* projected,              \
                                   Heads heads, int threads) {                                     \
    split_heads_backward(queries, keys, values, turns, turns_step, projected, heads, threads);     \
  }                                                                                               \
  void move_queries_##NAME(T* rows, T* blocks, bool into_blocks, Heads heads, int threads) {       \
    move_queries(rows, blocks, into_blocks, heads, threads);                                       \
  }

extern "C" {
EXPORT(bf16, bf16)
EXPORT(float, f32)
}
