// Linear layers: rows in bfloat16, weights kept and their gradients added up in single
// precision. Weights are rounded and packed at each call, which takes little beside their products.
//
// There is a multiple of 32 rows; widths are multiples of 32, too.

#include "blocks.h"

namespace {

// Widths of what two layers return.
struct Pair {
  long rows, depth, first, second;
};
}  // namespace

extern "C" {

// out (rows, width) = x (rows, depth) times weights, which are (depth, width), or (width, depth) if
// turned.
void multiply_rows(const bf16* x, const float* weights, bool turned, bf16* out, long rows, long depth,
                   long width, int threads) {
  const std::unique_ptr<bf16[]> packed(new bf16[depth * width]);
  if (turned) {
    pack_columns(weights, width, depth, packed.get());
  } else {
    pack_rows(weights, depth, width, packed.get());
  }
#pragma omp parallel num_threads(threads) if (threads > 1)
  {
    const Multiplier by;
#pragma omp for
    for (long row = 0; row < rows; row += BLOCK) {
      if (turned) {
        times_columns(by, x + row * depth, depth, packed.get(), width, out + row * width);
      } else {
        times_rows(by, x + row * depth, depth, packed.get(), width, out + row * width);
      }
    }
  }
}

// out (height, width) = the sum over rows of left (rows, height) times right (rows, width).
void outer_product(const bf16* left, const bf16* right, float* out, long rows, long height, long width,
                   int threads) {
  const long chunk = rows_of_a_chunk(height + width, threads);
  Outer product(height, width, chunk);
#pragma omp parallel num_threads(threads) if (threads > 1)
  {
    const Multiplier by;
    for (long start = 0; start < rows; start += chunk) {
      const long count = std::min(chunk, rows - start);
#pragma omp for
      for (long row = 0; row < count; row += BLOCK)
        product.take(row, left + (start + row) * height, right + (start + row) * width);
#pragma omp for
      for (long panel = 0; panel < product.panels(); ++panel)
        product.add_panel(by, panel, count, out, start > 0);
    }
  }
}

// Two layers that read the same rows: outs (rows, widths) = x (rows, depth) times weights (widths, depth),
// turned.
void multiply_pair(const bf16* x, const float* first, const float* second, bf16* out_first,
                   bf16* out_second, Pair s, int threads) {
  const std::unique_ptr<bf16[]> packed(new bf16[(s.first + s.second) * s.depth]);
  bf16* of_second = packed.get() + s.first * s.depth;
  pack_columns(first, s.first, s.depth, packed.get());
  pack_columns(second, s.second, s.depth, of_second);
#pragma omp parallel num_threads(threads) if (threads > 1)
  {
    const Multiplier by;
#pragma omp for
    for (long row = 0; row < s.rows; row += BLOCK) {
      times_columns(by, x + row * s.depth, s.depth, packed.get(), s.first, out_first + row * s.first);
      times_columns(by, x + row * s.depth, s.depth, of_second, s.second, out_second + row * s.second);
    }
  }
}

void multiply_pair_backward(const bf16* grads_first, const bf16* grads_second, const bf16* x,
                            const float* first, const float* second, bf16* grad_x, float* grad_first,
                            float* grad_second, Pair s, int threads) {
  const std::unique_ptr<bf16[]> packed(new bf16[(s.first + s.second) * s.depth]);
  bf16* of_second = packed.get() + s.first * s.depth;
  pack_rows(first, s.first, s.depth, packed.get());
  pack_rows(second, s.second, s.depth, of_second);
  const long chunk = rows_of_a_chunk(s.first + s.second + 2 * s.depth, threads);
  Outer to_first(s.first, s.depth, chunk), to_second(s.second, s.depth, chunk);
#pragma omp parallel num_threads(threads) if (threads > 1)
  {
    const Multiplier by;
    float sums[AREA];
    for (long start = 0; start < s.rows; start += chunk) {
      const long count = std::min(chunk, s.rows - start);
#pragma omp for
      for (long row = 0; row < count; row += BLOCK) {
        const long at = start + row;
        const bf16 *of_first = grads_first + at * s.first, *of_other = grads_second + at * s.second;
        const Left left(by, of_first, s.first, BLOCK, s.first / BLOCK);
        const Left other(by, of_other, s.second, BLOCK, s.second / BLOCK);
        for (long column = 0; column < s.depth; column += BLOCK) {
          const long next = s.depth * BLOCK;
          multiply(by, left, {packed.get() + column * BLOCK, PACKED, next}, sums, BLOCK, false);
          multiply(by, other, {of_second + column * BLOCK, PACKED, next}, sums, BLOCK, true);
          store_block(sums, grad_x + at * s.depth + column, s.depth);
        }
        to_first.take(row, of_first, x + at * s.depth);
        to_second.take(row, of_other, x + at * s.depth);
      }
#pragma omp for
      for (long panel = 0; panel < to_first.panels() + to_second.panels(); ++panel) {
        if (panel < to_first.panels()) {
          to_first.add_panel(by, panel, count, grad_first, start > 0);
        } else {
          to_second.add_panel(by, panel - to_first.panels(), count, grad_second, start > 0);
        }
      }
    }
  }
}
}
