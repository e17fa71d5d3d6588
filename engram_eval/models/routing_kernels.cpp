// Which experts each token goes to, and where its rows lie when they are sorted by expert.

#include "slices.h"

extern "C" {

// scores (rows, width) -> the numbers of the k largest of each row, (rows, k), the largest first; of
// equal ones the first.
void top_k(const float* scores, long rows, long width, long k, int64_t* chosen, int threads) {
#pragma omp parallel for num_threads(threads) if (threads > 1)
  for (long r = 0; r < rows; ++r) {
    const float* score = scores + r * width;
    int64_t* out = chosen + r * k;
    // The chosen so far, in order: an insertion for each score that is larger than the last of them.
    long held = 0;
    for (long i = 0; i < width; ++i) {
      if (held == k && !(score[i] > score[out[k - 1]])) continue;
      long place = held < k ? held++ : k - 1;
      for (; place > 0 && score[i] > score[out[place - 1]]; --place) out[place] = out[place - 1];
      out[place] = i;
    }
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
