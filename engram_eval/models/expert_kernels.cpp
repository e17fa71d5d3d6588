// Products of all experts at once, each with its own slice of the rows: no padding to the fullest, and
// nothing to prepare for loads that differ from step to step.
//
// A slice has a multiple of 32 rows; widths are multiples of 32, too.

#include <memory>

#include "slices.h"
#include "tiles.h"

namespace {

// 32 rows of sums, 32 numbers each, rounded into rows `step` numbers apart.
inline void store_block(const float* sums, bf16* out, long step) {
  for (long r = 0; r < BLOCK; ++r)
    for (long i = 0; i < BLOCK; i += LANES)
      store(out + r * step + i, load(sums + r * BLOCK + i));
}
}  // namespace

extern "C" {

// Whether products of small blocks run on a matrix unit here.
int64_t matrix_unit(int) {
  const Multiplier by;
  return by.unit;
}

// out (rows, width) = each slice of rows (rows, depth) times its weights (experts, depth, width),
// which are (experts, width, depth) if turned.
int64_t multiply_slices(const bf16* rows, const int64_t* sizes, long experts, long depth, long width,
                        const bf16* weights, bool turned, bf16* out, int threads) {
  const auto starts = starts_of(sizes, experts);
#pragma omp parallel num_threads(threads) if (threads > 1)
  {
    const Multiplier by;
    const std::unique_ptr<bf16[]> packed(new bf16[depth * width]);
    float sums[BLOCK * BLOCK];
#pragma omp for schedule(dynamic)
    for (long e = 0; e < experts; ++e) {
      const bf16* own = weights + e * depth * width;
      if (turned) {
        pack_columns(own, width, depth, packed.get());
      } else {
        pack_rows(own, depth, width, packed.get());
      }
      for (long row = starts[e]; row < starts[e] + sizes[e]; row += BLOCK)
        for (long column = 0; column < width; column += BLOCK) {
          const bf16* b = packed.get() + column * (turned ? depth : BLOCK);
          multiply(by,
                   {rows + row * depth, depth, BLOCK, b, turned ? depth * TILE : PACKED,
                    turned ? PACKED : width * BLOCK},
                   depth / BLOCK, sums, BLOCK, false);
          store_block(sums, out + row * width + column, width);
        }
    }
  }
  return 0;
}

// out (experts, height, width) = the sum over each slice's rows of left (rows, height) times right
// (rows, width).
int64_t outer_products(const bf16* left, const bf16* right, const int64_t* sizes, long experts,
                       long height, long width, bf16* out, int threads) {
  const auto starts = starts_of(sizes, experts);
  const long most = *std::max_element(sizes, sizes + experts);
#pragma omp parallel num_threads(threads) if (threads > 1)
  {
    const Multiplier by;
    const std::unique_ptr<bf16[]> columns(new bf16[most * height]), pairs(new bf16[most * width]);
    float sums[BLOCK * BLOCK];
#pragma omp for schedule(dynamic)
    for (long e = 0; e < experts; ++e) {
      const long count = sizes[e];
      turn_rows_over(left + starts[e] * height, count, height, columns.get());
      pack_rows(right + starts[e] * width, count, width, pairs.get());
      for (long row = 0; row < height; row += BLOCK)
        for (long column = 0; column < width; column += BLOCK) {
          multiply(by,
                   {columns.get() + row * count, count, BLOCK, pairs.get() + column * BLOCK, PACKED,
                    width * BLOCK},
                   count / BLOCK, sums, BLOCK, false);
          store_block(sums, out + (e * height + row) * width + column, width);
        }
    }
  }
  return 0;
}
}
