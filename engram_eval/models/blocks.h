// Blocks of 32 rows times weights, and outer products that add up over rows.

#pragma once

#include "tiles.h"

namespace {

// out (32, width) = block (32, depth) times weights that `pack_rows` packed.
inline void times_rows(const Multiplier& by, const bf16* block, long depth, const bf16* packed,
                       long width, bf16* out) {
  const Left left(by, block, depth, BLOCK, depth / BLOCK);
  float sums[AREA];
  for (long column = 0; column < width; column += BLOCK) {
    multiply(by, left, {packed + column * BLOCK, PACKED, width * BLOCK}, sums, BLOCK, false);
    store_block(sums, out + column, width);
  }
}

// The same with weights that `pack_columns` packed.
inline void times_columns(const Multiplier& by, const bf16* block, long depth, const bf16* packed,
                          long width, bf16* out) {
  const Left left(by, block, depth, BLOCK, depth / BLOCK);
  float sums[AREA];
  for (long column = 0; column < width; column += BLOCK) {
    multiply(by, left, {packed + column * depth, depth * TILE, PACKED}, sums, BLOCK, false);
    store_block(sums, out + column, width);
  }
}

// So many rows add to a gradient at a time: what they are packed to stays close to the processor.
constexpr long ROWS_OF_A_CHUNK = 256;

// The same for threads that work on a chunk together, of so many numbers a row: they wait for each
// other twice in each.
inline long rows_of_a_chunk(long numbers, int threads) {
  constexpr long CLOSE = 1 << 19, MOST = 4 * ROWS_OF_A_CHUNK;
  if (threads == 1) return ROWS_OF_A_CHUNK;
  return std::clamp(CLOSE / numbers / BLOCK * BLOCK, ROWS_OF_A_CHUNK, MOST);
}

// The two factors of an outer product that adds up over the rows of a chunk.
class Outer {
 public:
  Outer(long height, long width, long rows = ROWS_OF_A_CHUNK)
      : height(height), width(width), columns(new bf16[rows * height]), pairs(new bf16[rows * width]) {}

  // Row `row` of the chunk, and 31 more.
  void take(long row, const bf16* left, const bf16* right) {
    pack_rows_as_left(left, BLOCK, height, columns.get() + row * height);
    pack_rows(right, BLOCK, width, pairs.get() + row * width);
  }

  long panels() const { return height / BLOCK; }

  // 32 rows of out (height, width), from the `count` rows that were taken.
  void add_panel(const Multiplier& by, long panel, long count, float* out, bool add) const {
    const long row = panel * BLOCK;
    const Left left(by, columns.get() + row * BLOCK, BLOCK, height * BLOCK, count / BLOCK);
    for (long column = 0; column < width; column += BLOCK)
      multiply(by, left, {pairs.get() + column * BLOCK, PACKED, width * BLOCK},
               out + row * width + column, width, add);
  }

 private:
  const long height, width;
  std::unique_ptr<bf16[]> columns, pairs;
};
}  // namespace
