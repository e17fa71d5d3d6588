// The residual stream of a training step on a CPU: adding to it and normalising it are one pass each
// way. The stream is in single precision; what is added to it is in bfloat16, and so is what is read
// from it, and, where it is asked for, in single precision as well.

#include <vector>

#include "vectors.h"

namespace {

// Sums over rows are taken part by part, so that they do not depend on the number of threads.
constexpr long ROWS_OF_A_PART = 256;
}  // namespace

extern "C" {

// joined = stream + added, where something is added; normed = joined * scale * gain with scale =
// 1 / sqrt(mean(joined^2) + eps).
void join_and_norm(const float* stream, const bf16* added, const float* gain, float* joined,
                   bf16* normed, float* wide, float* scales, long rows, long width, float eps, int threads) {
#pragma omp parallel for num_threads(threads) if (threads > 1)
  for (long r = 0; r < rows; ++r) {
    const float* row = stream + r * width;
    Floats sum{};
    if (added) {
      float* out = joined + r * width;
      along(width, [&](long i, auto part) {
        const Floats v = load(row + i, part) + load(added + r * width + i, part);
        sum += v * v;
        store(out + i, v, part);
      });
      row = out;
    } else {
      along(width, [&](long i, auto part) {
        const Floats v = load(row + i, part);
        sum += v * v;
      });
    }
    const float scale = 1 / std::sqrt(sum_of(sum) / width + eps);
    scales[r] = scale;
    along(width, [&](long i, auto part) {
      const Floats v = load(row + i, part) * scale * load(gain + i, part);
      store(normed + r * width + i, v, part);
      if (wide) store(wide + r * width + i, v, part);
    });
  }
}

// The gradient of the stream, once more in bfloat16 for what was added, and of the gain. That of the
// joined stream, which went on, is added where there is one.
void join_and_norm_backward(const float* grad_joined, const bf16* grads, const float* grads_wide,
                            const float* joined, const float* gain, const float* scales, float* out, bf16* out_added,
                            float* grad_gain, long rows, long width, int threads) {
  const long parts = (rows + ROWS_OF_A_PART - 1) / ROWS_OF_A_PART;
  std::vector<float> sums(parts * width);
#pragma omp parallel for num_threads(threads) if (threads > 1)
  for (long p = 0; p < parts; ++p) {
    const long end = std::min((p + 1) * ROWS_OF_A_PART, rows);
    float* of_gain = sums.data() + p * width;
    for (long r = p * ROWS_OF_A_PART; r < end; ++r) {
      const float *row = joined + r * width, scale = scales[r];
      const auto grad = [&](long i, auto part) {
        const Floats narrow = load(grads + r * width + i, part);
        return grads_wide ? narrow + load(grads_wide + r * width + i, part) : narrow;
      };
      Floats sum{};
      along(width, [&](long i, auto part) {
        const Floats by_row = grad(i, part) * load(row + i, part);
        sum += by_row * load(gain + i, part);
        store(of_gain + i, load(of_gain + i, part) + by_row * scale, part);
      });
      const float inner = sum_of(sum) * scale * scale / width;
      along(width, [&](long i, auto part) {
        const Floats g = grad(i, part) * load(gain + i, part);
        Floats own = (g - load(row + i, part) * inner) * scale;
        if (grad_joined) own += load(grad_joined + r * width + i, part);
        store(out + r * width + i, own, part);
        if (out_added) store(out_added + r * width + i, own, part);
      });
    }
  }
  std::memset(grad_gain, 0, width * sizeof(float));
  for (long p = 0; p < parts; ++p)
    for (long i = 0; i < width; ++i) grad_gain[i] += sums[p * width + i];
}
// out = stream + added.
void join(const float* stream, const bf16* added, float* out, long count, int threads) {
#pragma omp parallel for num_threads(threads) if (threads > 1)
  for (long i = 0; i < count / LANES; ++i)
    store(out + i * LANES, load(stream + i * LANES) + load(added + i * LANES));
  for (long i = count / LANES * LANES; i < count; ++i) out[i] = stream[i] + one(added[i]);
}
}
