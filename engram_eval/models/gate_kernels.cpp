// How well a memory's keys match the residual streams (arXiv:2601.07372 eq. 4), in one pass each way:
// the product of both norms, summed, without writing either down.

#include <vector>

#include "vectors.h"

namespace {

// Rows (rows, width) of which row r has the gains r % gains.
struct Match {
  long rows, width, gains;
  float eps;
};

// Sums over rows are taken part by part, so that they do not depend on the number of threads.
constexpr long ROWS_OF_A_PART = 256;
}  // namespace

extern "C" {

// scores (rows,) = norm(streams) * norm(keys) summed over the width, over its root; scales (rows, 2) are
// those of both norms.
void match(const float* streams, const bf16* keys, const float* query_gain, const float* key_gain,
           float* scores, float* scales, Match s, int threads) {
#pragma omp parallel for num_threads(threads) if (threads > 1)
  for (long r = 0; r < s.rows; ++r) {
    const long at = r * s.width, gain = r % s.gains * s.width;
    Floats of_stream{}, of_key{}, both{};
    along(s.width, [&](long i, auto part) {
      const Floats x = load(streams + at + i, part), k = load(keys + at + i, part);
      of_stream += x * x;
      of_key += k * k;
      both += x * k * load(query_gain + gain + i, part) * load(key_gain + gain + i, part);
    });
    scales[2 * r] = 1 / std::sqrt(sum_of(of_stream) / s.width + s.eps);
    scales[2 * r + 1] = 1 / std::sqrt(sum_of(of_key) / s.width + s.eps);
    scores[r] = sum_of(both) * scales[2 * r] * scales[2 * r + 1] / std::sqrt(float(s.width));
  }
}

void match_backward(const float* grads, const float* streams, const bf16* keys,
                    const float* query_gain, const float* key_gain, const float* scores,
                    const float* scales, float* grad_streams, bf16* grad_keys,
                    float* grad_query_gain, float* grad_key_gain, Match s, int threads) {
  const long parts = (s.rows + ROWS_OF_A_PART - 1) / ROWS_OF_A_PART, of_gains = s.gains * s.width;
  // Of each part the products of streams and keys, which both gains' gradients take.
  std::vector<float> sums(parts * of_gains);
#pragma omp parallel for num_threads(threads) if (threads > 1)
  for (long p = 0; p < parts; ++p) {
    for (long r = p * ROWS_OF_A_PART; r < std::min((p + 1) * ROWS_OF_A_PART, s.rows); ++r) {
      const long at = r * s.width, gain = r % s.gains * s.width;
      const float of_stream = scales[2 * r], of_key = scales[2 * r + 1];
      const float factor = grads[r] * of_stream * of_key / std::sqrt(float(s.width));
      const float shrunk = grads[r] * scores[r] / s.width;
      const float stream_shrinks = shrunk * of_stream * of_stream,
                  key_shrinks = shrunk * of_key * of_key;
      float* added = sums.data() + p * of_gains + gain;
      along(s.width, [&](long i, auto part) {
        const Floats x = load(streams + at + i, part), k = load(keys + at + i, part);
        const Floats gains =
            load(query_gain + gain + i, part) * load(key_gain + gain + i, part) * factor;
        store(grad_streams + at + i, gains * k - x * stream_shrinks, part);
        store(grad_keys + at + i, gains * x - k * key_shrinks, part);
        store(added + i, load(added + i, part) + x * k * factor, part);
      });
    }
  }
  for (long i = 0; i < of_gains; ++i) {
    float sum = 0;
    for (long p = 0; p < parts; ++p) sum += sums[p * of_gains + i];
    grad_query_gain[i] = sum * key_gain[i];
    grad_key_gain[i] = sum * query_gain[i];
  }
}
}
