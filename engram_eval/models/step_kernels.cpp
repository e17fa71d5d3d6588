// What happens between the matrix products of a training step on a CPU, each in one pass.
//
// Matrices are row by row without gaps, unless a stride is given. Exported functions exist for both
// types: their names end in _bf16 or _f32.

#include <vector>

#include "activation.h"

namespace {

template <typename T>
float largest(const T* row, long width) {
  Floats most = all(-INFINITY);
  along(width, [&](long i, auto part) {
    const Floats x = load(row + i, part, -INFINITY);
    most = x > most ? x : most;
  });
  float lanes[LANES];
  store(lanes, most);
  return *std::max_element(lanes, lanes + LANES);
}

// Writes e^(x - most), up to a multiple of LANES numbers, and returns their sum.
template <typename T>
float exponentials(const T* row, float most, float* out, long width) {
  Floats sum{};
  along(width, [&](long i, auto part) {
    const Floats e = exponential(load(row + i, part, -INFINITY) - most);
    store(out + i, e);
    sum += e;
  });
  return sum_of(sum);
}

// losses (rows,) in nats; with_error replaces logits (rows, width) by the losses' gradient. A target
// below 0 counts for nothing.
template <typename T>
void cross_entropy(T* logits, const int64_t* targets, float* losses, long rows, long width,
                   bool with_error, int threads) {
#pragma omp parallel num_threads(threads) if (threads > 1)
  {
    std::vector<float> e(width + LANES);
#pragma omp for
    for (long r = 0; r < rows; ++r) {
      T* row = logits + r * width;
      const int64_t target = targets[r];
      losses[r] = 0;
      if (target < 0) {
        if (with_error) fill_zeros(row, width);
        continue;
      }
      const float most = largest(row, width);
      const float sum = exponentials(row, most, e.data(), width);
      losses[r] = std::log(sum) - (one(row[target]) - most);
      if (!with_error) continue;
      e[target] -= sum;
      const float scale = 1 / sum;
      along(width, [&](long i, auto part) { store(row + i, load(e.data() + i) * scale, part); });
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
    const long at = r * stride;
    activate(gate + at, up + at, factors ? one(factors[r]) : 1.0f, out + r * width, width);
  }
}

// Gradients of gate and up, whose rows lie `stride` apart as well, and of the factors.
template <typename T>
void swiglu_backward(const T* grads, const T* gate, const T* up, long stride, const T* factors,
                     T* grad_gate, T* grad_up, long grad_stride, T* grad_factors, long rows,
                     long width, int threads) {
#pragma omp parallel for num_threads(threads) if (threads > 1)
  for (long r = 0; r < rows; ++r) {
    const long at = r * stride, out = r * grad_stride;
    const Floats inner =
        all(activate_backward(grads + r * width, gate + at, up + at, factors ? one(factors[r]) : 1.0f,
                              grad_gate + out, grad_up + out, width));
    if (grad_factors) store(grad_factors + r, inner, Part{1});
  }
}

// A depthwise causal convolution: x (batch, seen, width) of which the last `fresh` rows are convolved,
// weights (taps, width), the last tap for the present row, those before `apart` rows further back each;
// what lies before x is zero.
struct Convolution {
  long batch, seen, fresh, width, taps, apart;

  // The row of x that tap k of output t reads; negative if there is none.
  long row(long t, long k) const { return seen - fresh + t - (taps - 1 - k) * apart; }
};

template <typename T>
void convolve(const T* x, const float* weights, T* out, const Convolution& c, int threads) {
#pragma omp parallel for collapse(2) num_threads(threads) if (threads > 1)
  for (long b = 0; b < c.batch; ++b) {
    for (long t = 0; t < c.fresh; ++t) {
      along(c.width, [&](long i, auto part) {
        Floats sum{};
        for (long k = 0; k < c.taps; ++k)
          if (const long row = c.row(t, k); row >= 0)
            sum += load(x + (b * c.seen + row) * c.width + i, part) *
                   load(weights + k * c.width + i, part);
        store(out + (b * c.fresh + t) * c.width + i, sum, part);
      });
    }
  }
}

template <typename T>
void convolve_backward(const T* grads, const T* x, const float* weights, T* grad_x,
                       float* grad_weights, const Convolution& c, int threads) {
  std::vector<float> sums(c.batch * c.taps * c.width);
#pragma omp parallel for num_threads(threads) if (threads > 1)
  for (long b = 0; b < c.batch; ++b) {
    const T *own = x + b * c.seen * c.width, *grad = grads + b * c.fresh * c.width;
    float* added = sums.data() + b * c.taps * c.width;
    for (long row = 0; row < c.seen; ++row) {
      along(c.width, [&](long i, auto part) {
        Floats sum{};
        for (long k = 0; k < c.taps; ++k) {
          const long t = row - c.row(0, k);
          if (t < 0 || t >= c.fresh) continue;
          const Floats g = load(grad + t * c.width + i, part);
          float* place = added + k * c.width + i;
          sum += g * load(weights + k * c.width + i, part);
          store(place, load(place, part) + g * load(own + row * c.width + i, part), part);
        }
        store(grad_x + (b * c.seen + row) * c.width + i, sum, part);
      });
    }
  }
  std::memset(grad_weights, 0, c.taps * c.width * sizeof(float));
  for (long b = 0; b < c.batch; ++b)
    for (long i = 0; i < c.taps * c.width; ++i) grad_weights[i] += sums[b * c.taps * c.width + i];
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
}  // namespace

#define EXPORT(T, NAME)                                                                           \
  void cross_entropy_##NAME(T* logits, const int64_t* targets, float* losses, long rows,           \
                            long width, bool with_error, int threads) {                            \
    cross_entropy(logits, targets, losses, rows, width, with_error, threads);                      \
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
  void convolve_##NAME(const T* x, const float* weights, T* out, Convolution sizes, int threads) { \
    convolve(x, weights, out, sizes, threads);                                                     \
  }                                                                                               \
  void convolve_backward_##NAME(const T* grads, const T* x, const float* weights, T* grad_x,       \
                                float* grad_weights, Convolution sizes, int threads) {             \
    convolve_backward(grads, x, weights, grad_x, grad_weights, sizes, threads);                    \
  }                                                                                               \
  void add_rows_##NAME(const T* rows, const int64_t* places, T* out, long tokens, long k,          \
                       long width, int threads) {                                                 \
    add_rows(rows, places, out, tokens, k, width, threads);                                        \
  }                                                                                               \

extern "C" {
EXPORT(bf16, bf16)
EXPORT(float, f32)
}
