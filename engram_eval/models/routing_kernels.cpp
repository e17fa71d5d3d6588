// Which experts each token goes to, and where its rows lie when they are sorted by expert.

#include "slices.h"
#include "vectors.h"

namespace {

// How tokens (tokens, width) choose among experts; see ``Router``.
struct Router {
  long tokens, width, experts, chosen;
  bool normalised;
  float scale;
};

constexpr float TINY = 1e-20f;

// The numbers of the k largest of some scores, the largest first; of equal ones the first.
inline void choose_one_by_one(const float* score, long width, long k, int64_t* out) {
  // The chosen so far, in order: an insertion for each score that is larger than the last of them.
  long held = 0;
  for (long i = 0; i < width; ++i) {
    if (held == k && !(score[i] > score[out[k - 1]])) continue;
    long place = held < k ? held++ : k - 1;
    for (; place > 0 && score[i] > score[out[place - 1]]; --place) out[place] = out[place - 1];
    out[place] = i;
  }
}

inline void choose(const float* score, long width, long k, int64_t* out) {
#ifdef __AVX512F__
  // Sixteen at most are compared at once, without a branch that depends on them.
  if (width <= LANES) {
    const auto low = same_bits<__m512>(all(-INFINITY));
    const auto there = static_cast<__mmask16>((1u << width) - 1);
    __m512 left = _mm512_mask_loadu_ps(low, there, score);
    long held = 0;
    for (; held < k; ++held) {
      const float most = _mm512_reduce_max_ps(left);
      const auto found = _mm512_cmp_ps_mask(left, _mm512_set1_ps(most), _CMP_EQ_OQ);
      if (!found || !(most > -INFINITY)) break;
      out[held] = __builtin_ctz(found);
      left = _mm512_mask_mov_ps(left, static_cast<__mmask16>(found & -found), low);
    }
    if (held == k) return;
  }
#endif
  choose_one_by_one(score, width, k, out);
}

// Sums over tokens are taken part by part, so that they do not depend on the number of threads.
constexpr long TOKENS_OF_A_PART = 256;

// The gradients of a token's logits, of which `used` experts' are not zero; returns how many.
inline long logit_gradients(const Router& s, const float* grads, const float* grad_logits,
                            const float* logits, const int64_t* chosen, float* scores, float* out,
                            int64_t* used) {
  float sum = TINY, inner = 0;
  for (long k = 0; k < s.chosen; ++k) {
    scores[k] = 1 / (1 + std::exp(-logits[chosen[k]]));
    sum += scores[k];
    inner += grads[k] * scores[k];
  }
  for (long e = 0; grad_logits && e < s.experts; ++e) out[e] = grad_logits[e];
  for (long k = 0; k < s.chosen; ++k) {
    const float of_score = s.normalised ? (grads[k] - inner / sum) / sum : grads[k];
    const float here = s.scale * of_score * scores[k] * (1 - scores[k]);
    out[chosen[k]] = grad_logits ? out[chosen[k]] + here : here;
    used[k] = chosen[k];
  }
  for (long e = 0; grad_logits && e < s.experts; ++e) used[e] = e;
  return grad_logits ? s.experts : s.chosen;
}
}  // namespace

extern "C" {

// x (tokens, width), weights (experts, width), bias (experts,) -> logits (tokens, experts), factors
// and experts (tokens, chosen): those with the largest sigmoid plus bias, factored by their sigmoids.
void route(const float* x, const float* weights, const float* bias, float* logits, float* factors,
           int64_t* chosen, Router s, int threads) {
  const long filled = (s.experts + LANES - 1) / LANES * LANES;
  std::vector<float> columns(s.width * filled);
  for (long e = 0; e < s.experts; ++e)
    for (long i = 0; i < s.width; ++i) columns[i * filled + e] = weights[e * s.width + i];
#pragma omp parallel num_threads(threads) if (threads > 1)
  {
    std::vector<float> scores(filled), biased(filled);
#pragma omp for
    for (long t = 0; t < s.tokens; ++t) {
      const float* row = x + t * s.width;
      along(s.experts, [&](long e, auto part) {
        // Four sums, so that none waits for the one before.
        Floats first{}, second{}, third{}, fourth{};
        const float* column = &columns[e];
        long i = 0;
        for (; i + 4 <= s.width; i += 4, column += 4 * filled) {
          first += load(column) * row[i];
          second += load(column + filled) * row[i + 1];
          third += load(column + 2 * filled) * row[i + 2];
          fourth += load(column + 3 * filled) * row[i + 3];
        }
        for (; i < s.width; ++i, column += filled) first += load(column) * row[i];
        const Floats logit = (first + second) + (third + fourth), score = sigmoid(logit);
        store(logits + t * s.experts + e, logit, part);
        store(&scores[e], score);
        store(&biased[e], score + load(bias + e, part));
      });
      int64_t* own = chosen + t * s.chosen;
      choose(biased.data(), s.experts, s.chosen, own);
      float sum = TINY;
      for (long k = 0; k < s.chosen; ++k) sum += scores[own[k]];
      for (long k = 0; k < s.chosen; ++k)
        factors[t * s.chosen + k] = scores[own[k]] / (s.normalised ? sum : 1) * s.scale;
    }
  }
}

// The gradients of x and weights, given those of the factors and, maybe, of the logits.
void route_backward(const float* grads, const float* grad_logits, const float* x,
                    const float* weights, const float* logits, const int64_t* chosen, float* grad_x,
                    float* grad_weights, Router s, int threads) {
  const long parts = (s.tokens + TOKENS_OF_A_PART - 1) / TOKENS_OF_A_PART, all_of = s.experts * s.width;
  std::vector<float> sums(parts * all_of);
#pragma omp parallel for num_threads(threads) if (threads > 1)
  for (long p = 0; p < parts; ++p) {
    std::vector<float> scores(s.chosen), errors(s.experts);
    std::vector<int64_t> used(s.experts);
    for (long t = p * TOKENS_OF_A_PART; t < std::min((p + 1) * TOKENS_OF_A_PART, s.tokens); ++t) {
      const long count = logit_gradients(s, grads + t * s.chosen,
                                         grad_logits ? grad_logits + t * s.experts : nullptr,
                                         logits + t * s.experts, chosen + t * s.chosen,
                                         scores.data(), errors.data(), used.data());
      along(s.width, [&](long i, auto part) {
        const Floats row = load(x + t * s.width + i, part);
        Floats sum{};
        for (long k = 0; k < count; ++k) {
          const float error = errors[used[k]];
          sum += error * load(weights + used[k] * s.width + i, part);
          float* place = sums.data() + p * all_of + used[k] * s.width + i;
          store(place, load(place, part) + error * row, part);
        }
        store(grad_x + t * s.width + i, sum, part);
      });
    }
  }
  std::memset(grad_weights, 0, all_of * sizeof(float));
  for (long p = 0; p < parts; ++p)
    for (long i = 0; i < all_of; ++i) grad_weights[i] += sums[p * all_of + i];
}

// scores (rows, width) -> the numbers of the k largest of each row, (rows, k), the largest first; of
// equal ones the first.
void top_k(const float* scores, long rows, long width, long k, int64_t* chosen, int threads) {
#pragma omp parallel for num_threads(threads) if (threads > 1)
  for (long r = 0; r < rows; ++r) {
    choose(scores + r * width, width, k, chosen + r * k);
  }
}

// chosen (tokens, k) experts -> the row of each choice, (tokens, k): choices of an expert one after
// the other in its slice; owners (rows) get the token at the rows that belong to one.
void place_choices(const int64_t* chosen, const int64_t* sizes, long experts, long tokens, long k,
                   int64_t* places, int64_t* owners, int) {
  auto next = starts_of(sizes, experts);
  for (long token = 0; token < tokens; ++token) {
    for (long i = token * k; i < (token + 1) * k; ++i) {
      places[i] = next[chosen[i]]++;
      owners[places[i]] = token;
    }
  }
}
}
