// Cross-entropy over a vocabulary and both its gradients: logits exist for a chunk of
// rows, in blocks of 32 by 32 numbers.
//
// There is a multiple of 32 rows; width and vocabulary are multiples of 32, too.

#include <memory>
#include <vector>

#include "tiles.h"

namespace {

// Row blocks that read the same weights, and weights that they read, before the next.
constexpr long TOGETHER = 4, COLUMNS_TOGETHER = 8;

struct Loss {
  long rows, width, words;

  long blocks() const { return words / BLOCK; }
};

// Weights as the products of logits and of the rows' gradients take them.
struct Weights {
  std::unique_ptr<bf16[]> columns, rows;

  Weights(const float* weights, const Loss& s)
      : columns(new bf16[s.words * s.width]), rows(new bf16[s.words * s.width]) {
    pack_columns(weights, s.words, s.width, columns.get());
    pack_rows(weights, s.words, s.width, rows.get());
  }
};

// Logits of some row blocks; returns the largest of each row.
void find_logits(const Multiplier& by, const Loss& s, const bf16* x, const Weights& w, long count,
                 bf16* logits, float* largest) {
  std::vector<Floats> most(count * BLOCK, all(-INFINITY));
  float sums[AREA];
  for (long first = 0; first < s.blocks(); first += COLUMNS_TOGETHER)
    for (long row = 0; row < count; ++row) {
      const Left left(by, x + row * BLOCK * s.width, s.width, BLOCK, s.width / BLOCK);
      for (long column = first; column < std::min(first + COLUMNS_TOGETHER, s.blocks()); ++column) {
        multiply(by, left, {w.columns.get() + column * BLOCK * s.width, s.width * TILE, PACKED}, sums,
                 BLOCK, false);
        store_block(sums, logits + (row * s.blocks() + column) * AREA, BLOCK);
        for (long r = 0; r < BLOCK; ++r) {
          Floats& so_far = most[row * BLOCK + r];
          for (long i = 0; i < BLOCK; i += LANES) {
            const Floats x = load(sums + r * BLOCK + i);
            so_far = choose(x > so_far, x, so_far);
          }
        }
      }
    }
  for (long r = 0; r < count * BLOCK; ++r) {
    float lanes[LANES];
    store(lanes, most[r]);
    largest[r] = *std::max_element(lanes, lanes + LANES);
  }
}

// Logits of a row block become e^(logit - largest), but for the target's, from which their sum is
// taken: times the row's scale they are the gradient of its loss. A target below 0 counts for nothing.
void find_errors(const Loss& s, bf16* logits, const float* largest, const int64_t* targets,
                 float* losses, float* scales) {
  Floats sums[BLOCK]{};
  float chosen[BLOCK];
  const auto place = [&](long r) {
    return logits + targets[r] / BLOCK * AREA + r * BLOCK + targets[r] % BLOCK;
  };
  for (long r = 0; r < BLOCK; ++r) chosen[r] = targets[r] < 0 ? 0 : one(*place(r)) - largest[r];
  for (long column = 0; column < s.blocks(); ++column)
    for (long r = 0; r < BLOCK; ++r) {
      bf16* here = logits + column * AREA + r * BLOCK;
      const Floats first = exponential(load(here) - largest[r]);
      const Floats second = exponential(load(here + LANES) - largest[r]);
      sums[r] += first + second;
      put(here, pairs_of(first, second));
    }
  for (long r = 0; r < BLOCK; ++r) {
    const float sum = sum_of(sums[r]);
    losses[r] = targets[r] < 0 ? 0 : std::log(sum) - chosen[r];
    scales[r] = targets[r] < 0 ? 0 : 1 / sum;
    if (targets[r] < 0) continue;
    const Floats error = all(std::exp(chosen[r]) - sum);
    store(place(r), error, Part{1});
  }
}

// The gradients of some row blocks.
void find_row_gradients(const Multiplier& by, const Loss& s, const bf16* errors, const Weights& w,
                        const float* scales, long count, bf16* grads) {
  std::vector<float> sums(count * BLOCK * s.width);
  for (long first = 0; first < s.blocks(); first += COLUMNS_TOGETHER)
    for (long row = 0; row < count; ++row) {
      const Left left(by, errors + (row * s.blocks() + first) * AREA, BLOCK, AREA,
                      std::min(COLUMNS_TOGETHER, s.blocks() - first));
      const bf16* rows = w.rows.get() + first * BLOCK * s.width;
      for (long column = 0; column < s.width; column += BLOCK)
        multiply(by, left, {rows + column * BLOCK, PACKED, s.width * BLOCK},
                 sums.data() + row * BLOCK * s.width + column, s.width, first > 0);
    }
  for (long r = 0; r < count * BLOCK; ++r)
    along(s.width, [&](long i, auto part) {
      store(grads + r * s.width + i, load(sums.data() + r * s.width + i) * scales[r], part);
    });
}

// Adds what `count` row blocks give to the gradient of 32 words; scaled rows are packed.
void add_word_gradients(const Multiplier& by, const Loss& s, const bf16* errors, const bf16* rows,
                        long count, bf16* turned, float* grads, bool add) {
  for (long row = 0; row < count; ++row)
    pack_rows_as_left(errors + row * s.blocks() * AREA, BLOCK, BLOCK, turned + row * AREA);
  const Left left(by, turned, BLOCK, AREA, count);
  for (long column = 0; column < s.width; column += BLOCK)
    multiply(by, left, {rows + column * BLOCK, PACKED, s.width * BLOCK}, grads + column, s.width, add);
}
}  // namespace

extern "C" {

// x (rows, width), weights (words, width), targets (rows,) -> losses (rows,) in nats and, where they
// are wanted, the gradients of their sum: of x, and of the weights.
void linear_cross_entropy(const bf16* x, const float* weights, const int64_t* targets, float* losses,
                          bf16* grad_x, float* grad_weights, Loss s, long chunk, int threads) {
  const Weights w(weights, s);
  const std::unique_ptr<bf16[]> logits(new bf16[chunk * s.words]), scaled(new bf16[chunk * s.width]),
      packed(new bf16[chunk * s.width]);
  std::vector<float> largest(chunk), scales(chunk);
#pragma omp parallel num_threads(threads) if (threads > 1)
  {
    const Multiplier by;
    const std::unique_ptr<bf16[]> turned(new bf16[chunk * BLOCK]);
    for (long start = 0; start < s.rows; start += chunk) {
      const long blocks = std::min(chunk, s.rows - start) / BLOCK;
#pragma omp for
      for (long block = 0; block < blocks; block += TOGETHER) {
        const long count = std::min(TOGETHER, blocks - block), row = block * BLOCK;
        bf16* here = logits.get() + row * s.words;
        find_logits(by, s, x + (start + row) * s.width, w, count, here, largest.data() + row);
        for (long i = 0; i < count; ++i) {
          const long r = row + i * BLOCK;
          find_errors(s, here + i * BLOCK * s.words, largest.data() + r, targets + start + r,
                      losses + start + r, scales.data() + r);
        }
        if (grad_x)
          find_row_gradients(by, s, here, w, scales.data() + row, count,
                             grad_x + (start + row) * s.width);
        for (long r = row; grad_weights && r < row + count * BLOCK; ++r)
          along(s.width, [&](long i, auto part) {
            store(scaled.get() + r * s.width + i, load(x + (start + r) * s.width + i) * scales[r],
                  part);
          });
        if (grad_weights)
          pack_rows(scaled.get() + row * s.width, count * BLOCK, s.width,
                    packed.get() + row * s.width);
      }
#pragma omp for
      for (long word = 0; word < (grad_weights ? s.blocks() : 0); ++word)
        add_word_gradients(by, s, logits.get() + word * AREA, packed.get(), blocks, turned.get(),
                           grad_weights + word * BLOCK * s.width, start > 0);
    }
  }
}
}
