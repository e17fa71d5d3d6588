// Linear layers on a matrix unit: rows in bfloat16, weights kept and their gradients added up in single
// precision. Weights are rounded and packed at each call, which takes little beside their products.
//
// There is a multiple of 32 rows; widths are multiples of 32, too.

#include "blocks.h"

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
}
