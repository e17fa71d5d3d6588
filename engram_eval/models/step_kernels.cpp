// What happens between the matrix products of a training step on a CPU, each in one pass.
//
// Matrices are row by row without gaps, unless a stride is given. Exported functions exist for both
// types: their names end in _bf16 or _f32.

#include <memory>
#include <vector>

#include "activation.h"

namespace {

template <typename T>
float largest(const T* row, long width) {
  Floats most = all(-INFINITY);
  along(width, [&](long i, auto part) {
    const Floats x = load(row + i, part, -INFINITY);
    most = choose(x > most, x, most);
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

// What a memory writes: for each stream gate * value + silu(conv(norm(gate * value))). The convolution
// has a weight for each channel and tap, the last for the present row, those before `apart` rows
// further back each; nothing is there before a text.
//
// The norm multiplies a value by a number: neither it nor what is convolved is written down.
struct Write {
  long batch, length, streams, width, taps, apart;
  float eps;

  long rows() const { return batch * length; }
  long row() const { return streams * width; }
  // How far back the first tap reads.
  long back() const { return (taps - 1) * apart; }
  // How many taps read rows that are at most so far away.
  long near(long rows) const { return std::min(taps, rows / apart + 1); }
};

// The sum over taps, the present row's first, of rows times weights times a factor for each row.
template <typename T>
struct Taps {
  const T* rows;
  const float *weights, *factors;
  long count, step, weight_step, factor_step;

  template <typename Some>
  Floats sum(long i, Some part) const {
    Floats sum{};
    for (long k = 0; k < count; ++k)
      sum += load(rows + k * step + i, part) * load(weights - k * weight_step + i, part) *
             factors[k * factor_step];
    return sum;
  }
};

// Gates (batch, length, streams), values (batch, length, width), the norm's gain (streams, width) and
// the convolution's weights (taps, streams, width).
template <typename T>
struct Gated {
  const Write w;
  const T* values;
  // Weights times gain, and what a value is multiplied by before the gain.
  std::vector<float> weights, factors;

  Gated(const Write& w, const T* values, const float* gain, const float* given)
      : w(w), values(values), weights(given, given + w.taps * w.row()), factors(w.rows() * w.streams) {
    for (long i = 0; i < w.taps * w.row(); ++i) weights[i] *= gain[i % w.row()];
  }

  const float* last_weights(long m) const { return weights.data() + (w.taps - 1) * w.row() + m * w.width; }

  // What the convolution reads for stream m of row r.
  Taps<T> before(long r, long m) const {
    return {values + r * w.width,      last_weights(m),     factors.data() + r * w.streams + m,
            w.near(r % w.length),      -w.apart * w.width,  w.row(),
            -w.apart * w.streams};
  }

  // The gradients of what it returned that reach row r, where row r's lie first.
  Taps<float> after(const float* errors, long r, long m) const {
    static const float one = 1;
    return {errors + m * w.width, last_weights(m),   &one,
            w.near(w.length - 1 - r % w.length), w.apart * w.row(), w.row(),
            0};
  }
};

// out (batch, length, streams, width); scales, one for each gate, are those of the norm.
template <typename T>
void memory_write(const float* gates, const T* values, const float* gain, const float* weights, T* out,
                  float* scales, const Write& w, int threads) {
  Gated<T> gated(w, values, gain, weights);
#pragma omp parallel num_threads(threads) if (threads > 1)
  {
#pragma omp for
    for (long r = 0; r < w.rows(); ++r) {
      Floats sum{};
      along(w.width, [&](long i, auto part) {
        const Floats v = load(values + r * w.width + i, part);
        sum += v * v;
      });
      const float square = sum_of(sum) / w.width;
      for (long at = r * w.streams; at < (r + 1) * w.streams; ++at) {
        scales[at] = 1 / std::sqrt(gates[at] * gates[at] * square + w.eps);
        gated.factors[at] = gates[at] * scales[at];
      }
    }
#pragma omp for collapse(2)
    for (long r = 0; r < w.rows(); ++r)
      for (long m = 0; m < w.streams; ++m) {
        const Taps<T> taps = gated.before(r, m);
        const float gate = gates[r * w.streams + m];
        T* to = out + (r * w.streams + m) * w.width;
        along(w.width, [=](long i, auto part) {
          const Floats u = taps.sum(i, part);
          store(to + i, load(taps.rows + i, part) * gate + u * sigmoid(u), part);
        });
      }
  }
}

// The gradient of what the convolution returned, into errors (width,), and of its weights, added to
// sums (taps, streams, width) where they are given.
template <typename T>
void convolution_errors(const T* grads, const Taps<T>& taps, float* errors, float* sums, long width) {
  along(width, [=](long i, auto part) {
    const Floats u = taps.sum(i, part), s = sigmoid(u);
    const Floats error = load(grads + i, part) * s * (1.0f + u * (1.0f - s));
    store(errors + i, error, part);
    for (long k = 0; k < (sums ? taps.count : 0); ++k) {
      const Floats read = load(taps.rows + k * taps.step + i, part) * taps.factors[k * taps.factor_step];
      float* added = sums - k * taps.weight_step + i;
      store(added, load(added, part) + error * read, part);
    }
  });
}

template <typename T>
void memory_write_backward(const T* grads, const float* gates, const T* values, const float* gain,
                           const float* weights, const float* scales, float* grad_gates, T* grad_values,
                           float* grad_gain, float* grad_weights, const Write& w, int threads) {
  Gated<T> gated(w, values, gain, weights);
  for (long at = 0; at < w.rows() * w.streams; ++at) gated.factors[at] = gates[at] * scales[at];
  const long parts = (w.rows() + ROWS_OF_A_PART - 1) / ROWS_OF_A_PART, all = w.taps * w.row();
  std::vector<float> sums(parts * all);
#pragma omp parallel num_threads(threads) if (threads > 1)
  {
    // Of a part's rows and of those behind it that read them.
    std::vector<float> errors((ROWS_OF_A_PART + w.back()) * w.row()), grad_value(w.width);
#pragma omp for
    for (long p = 0; p < parts; ++p) {
      const long first = p * ROWS_OF_A_PART, end = std::min(first + ROWS_OF_A_PART, w.rows());
      float* own_sums = sums.data() + (p + 1) * all - w.row();
      for (long r = first; r < std::min(end + w.back(), w.rows()); ++r)
        for (long m = 0; m < w.streams; ++m)
          convolution_errors(grads + r * w.row() + m * w.width, gated.before(r, m),
                             errors.data() + (r - first) * w.row() + m * w.width,
                             r < end ? own_sums + m * w.width : nullptr, w.width);
      for (long r = first; r < end; ++r) {
        const T* value = values + r * w.width;
        float *sum = grad_value.data(), shrinks = 0;
        fill_zeros(sum, w.width);
        for (long m = 0; m < w.streams; ++m) {
          const Taps<float> taps = gated.after(errors.data() + (r - first) * w.row(), r, m);
          const T* grad = grads + r * w.row() + m * w.width;
          const float gate = gates[r * w.streams + m], scale = scales[r * w.streams + m];
          Floats direct{}, by_norm{};
          along(w.width, [&](long i, auto part) {
            const Floats error = taps.sum(i, part), g = load(grad + i, part), v = load(value + i, part);
            direct += g * v;
            by_norm += error * v;
            store(sum + i, load(sum + i, part) + (g + error * scale) * gate, part);
          });
          const float inner = sum_of(by_norm) * scale * scale * scale;
          grad_gates[r * w.streams + m] = sum_of(direct) + inner * w.eps;
          shrinks += inner * gate * gate * gate / w.width;
        }
        along(w.width, [=](long i, auto part) {
          const Floats own = load(sum + i, part) - load(value + i, part) * shrinks;
          store(grad_values + r * w.width + i, own, part);
        });
      }
    }
  }
  fill_zeros(grad_gain, w.row());
  for (long i = 0; i < all; ++i) {
    float sum = 0;
    for (long p = 0; p < parts; ++p) sum += sums[p * all + i];
    grad_weights[i] = sum * gain[i % w.row()];
    grad_gain[i % w.row()] += sum * weights[i];
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
  void memory_write_##NAME(const float* gates, const T* values, const float* gain,                 \
                           const float* weights, T* out, float* scales, Write sizes, int threads) {\
    memory_write(gates, values, gain, weights, out, scales, sizes, threads);                       \
  }                                                                                                \
  void memory_write_backward_##NAME(const T* grads, const float* gates, const T* values,           \
                                    const float* gain, const float* weights, const float* scales,  \
                                    float* grad_gates, T* grad_values, float* grad_gain,           \
                                    float* grad_weights, Write sizes, int threads) {               \
    memory_write_backward(grads, gates, values, gain, weights, scales, grad_gates, grad_values,    \
                          grad_gain, grad_weights, sizes, threads);                                \
  }                                                                                                \
  void add_rows_##NAME(const T* rows, const int64_t* places, T* out, long tokens, long k,          \
                       long width, int threads) {                                                 \
    add_rows(rows, places, out, tokens, k, width, threads);                                        \
  }                                                                                               \

extern "C" {
EXPORT(bf16, bf16)
EXPORT(float, f32)
}
