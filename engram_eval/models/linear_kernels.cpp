// Linear layers on a matrix unit: rows in bfloat16, weights kept and their gradients added up in single
// precision. Weights are rounded and packed at each call, which takes little beside their products.
//
// There is a multiple of 32 rows; widths are multiples of 32, too.

#include "blocks.h"

namespace {

// A block of rows as products take them.
inline const bf16* block_of(const bf16* rows, long, bf16*) { return rows; }

inline const bf16* block_of(const float* rows, long depth, bf16* room) {
  for (long i = 0; i < BLOCK * depth; i += LANES) store(room + i, load(rows + i));
  return room;
}

inline void finish(const float* sums, const float*, bf16* out, long step) {
  store_block(sums, out, step);
}

inline void finish(const float* sums, const float* added, float* out, long step) {
  for (long r = 0; r < BLOCK; ++r)
    for (long i = 0; i < BLOCK; i += LANES)
      store(out + r * step + i, load(sums + r * BLOCK + i) + load(added + r * step + i));
}

// out (rows, width) = x (rows, depth) times weights, which are (depth, width), or (width, depth) if
// turned; plus what is added, where out is in single precision.
template <typename In, typename Out>
void multiply_rows(const In* x, const float* weights, bool turned, const float* added, Out* out,
                   long rows, long depth, long width, int threads) {
  const std::unique_ptr<bf16[]> packed(new bf16[depth * width]);
  if (turned) {
    pack_columns(weights, width, depth, packed.get());
  } else {
    pack_rows(weights, depth, width, packed.get());
  }
#pragma omp parallel num_threads(threads) if (threads > 1)
  {
    const Multiplier by;
    const std::unique_ptr<bf16[]> room(new bf16[BLOCK * depth]);
    float sums[BLOCK * BLOCK];
#pragma omp for
    for (long row = 0; row < rows; row += BLOCK) {
      const bf16* block = block_of(x + row * depth, depth, room.get());
      for (long column = 0; column < width; column += BLOCK) {
        const bf16* b = packed.get() + column * (turned ? depth : BLOCK);
        multiply(by,
                 {block, depth, BLOCK, b, turned ? depth * TILE : PACKED,
                  turned ? PACKED : width * BLOCK},
                 depth / BLOCK, sums, BLOCK, false);
        const long place = row * width + column;
        finish(sums, added + place, out + place, width);
      }
    }
  }
}

// out (height, width) = the sum over rows of left (rows, height) times right (rows, width).
template <typename T>
void outer_product(const T* left, const bf16* right, float* out, long rows, long height, long width,
                   int threads) {
  Outer product(height, width);
#pragma omp parallel num_threads(threads) if (threads > 1)
  {
    const Multiplier by;
    for (long start = 0; start < rows; start += ROWS_OF_A_CHUNK) {
      const long count = std::min(ROWS_OF_A_CHUNK, rows - start);
#pragma omp for
      for (long row = 0; row < count; row += BLOCK)
        product.take(row, left + (start + row) * height, right + (start + row) * width);
#pragma omp for
      for (long panel = 0; panel < product.panels(); ++panel)
        product.add_panel(by, panel, count, out, start > 0);
    }
  }
}
}  // namespace

extern "C" {

void multiply_rows_bf16(const bf16* x, const float* weights, bool turned, bf16* out, long rows,
                        long depth, long width, int threads) {
  multiply_rows(x, weights, turned, nullptr, out, rows, depth, width, threads);
}

void multiply_rows_f32(const float* x, const float* weights, bool turned, bf16* out, long rows,
                       long depth, long width, int threads) {
  multiply_rows(x, weights, turned, nullptr, out, rows, depth, width, threads);
}

void add_rows_times(const bf16* x, const float* weights, bool turned, const float* added, float* out,
                    long rows, long depth, long width, int threads) {
  multiply_rows(x, weights, turned, added, out, rows, depth, width, threads);
}

void outer_product_bf16(const bf16* left, const bf16* right, float* out, long rows, long height,
                        long width, int threads) {
  outer_product(left, right, out, rows, height, width, threads);
}

void outer_product_f32(const float* left, const bf16* right, float* out, long rows, long height,
                       long width, int threads) {
  outer_product(left, right, out, rows, height, width, threads);
}
}
