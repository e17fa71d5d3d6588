// Products of bfloat16 blocks of 32 by 32 numbers, added up in single precision: by the processor's
// matrix unit where it has one (AMX), else by its vectors.
//
// A left factor is 32 rows of 32 numbers. A right factor is packed for the sum: two tiles of 16
// columns each, a tile being 16 pairs of rows, each pair column by column.

#pragma once

#include <memory>
#include <utility>

#include "vectors.h"
#ifdef __AMX_BF16__
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace {

constexpr long TILE = 16, BLOCK = 32;
constexpr long PACKED = TILE * BLOCK, AREA = BLOCK * BLOCK;

#ifdef __AMX_BF16__
// Linux lends the matrix unit's state to a process that asks for it.
inline bool has_matrix_unit() {
  constexpr long REQUEST_PERMISSION = 0x1023, TILE_DATA = 18;
  static const bool granted = syscall(SYS_arch_prctl, REQUEST_PERMISSION, TILE_DATA) == 0;
  return granted;
}

// GCC's functions of the unit do not say what they read: what is at `place` must be written before.
inline void settle(const void* place) { asm volatile("" : : "r"(place) : "memory"); }

// While one exists its thread may multiply.
class Multiplier {
 public:
  Multiplier() : unit(has_matrix_unit()) {
    if (!unit) return;
    alignas(64) struct {
      uint8_t palette = 1, start = 0, reserved[14] = {};
      uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
      uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
    } shapes;
    settle(&shapes);
    _tile_loadconfig(&shapes);
  }
  ~Multiplier() {
    if (unit) _tile_release();
  }
  Multiplier(const Multiplier&) = delete;
  const bool unit;
};
#else
struct Multiplier {
  const bool unit = false;
};
#endif

// A block of 32 rows of a left factor, widened.
inline void widen_left(const bf16* a, long a_row, float* left) {
  for (long r = 0; r < BLOCK; ++r)
    for (long i = 0; i < BLOCK; i += LANES) store(left + r * BLOCK + i, load(a + r * a_row + i));
}

// Two tiles of a right factor, widened to 32 rows.
inline void widen_right(const bf16* b, long b_tile, float* right) {
  for (long pair = 0; pair < TILE; ++pair)
    for (long half = 0; half < 2; ++half) {
      const Words both = read<Words>(b + half * b_tile + pair * BLOCK);
      float* row = right + 2 * pair * BLOCK + half * TILE;
      store(row, same_bits<Floats>(both << 16));
      store(row + BLOCK, same_bits<Floats>(both & 0xffff0000));
    }
}

// Compilers read a factor from memory at each use, unless they are told not to.
inline OwnFloats in_a_register(OwnFloats x) {
#if defined(__x86_64__)
  asm("" : "+x"(x));
#elif defined(__aarch64__)
  asm("" : "+w"(x));
#endif
  return x;
}

// c (ROWS, 32), its rows c_row numbers apart, = the sum of `count` products of left (ROWS, 32) and right
// (32, 32), each a block after the one before, plus what was there if `add`. Sums stay in registers.
template <long ROWS>
inline void multiply_rows_by_vectors(const float* left, const float* right, long count, float* c,
                                     long c_row, bool add) {
  constexpr long ACROSS = TILE / OWN_LANES;
  for (long column = 0; column < BLOCK; column += TILE) {
    OwnFloats sums[ROWS][ACROSS];
    float* to = c + column;
    UNROLLED for (long r = 0; r < ROWS; ++r)
      UNROLLED for (long i = 0; i < ACROSS; ++i)
        sums[r][i] = add ? read_own<OwnFloats>(to + r * c_row + i * OWN_LANES) : OwnFloats{};
    for (long block = 0; block < count; ++block) {
      const float *a = left + block * AREA, *b = right + block * AREA + column;
      UNROLLED_BY_4 for (long k = 0; k < BLOCK; ++k) {
        OwnFloats across[ACROSS];
        UNROLLED for (long i = 0; i < ACROSS; ++i)
          across[i] = in_a_register(read_own<OwnFloats>(b + k * BLOCK + i * OWN_LANES));
        UNROLLED for (long r = 0; r < ROWS; ++r)
          UNROLLED for (long i = 0; i < ACROSS; ++i) sums[r][i] += a[r * BLOCK + k] * across[i];
      }
    }
    UNROLLED for (long r = 0; r < ROWS; ++r)
      UNROLLED for (long i = 0; i < ACROSS; ++i) write_own(to + r * c_row + i * OWN_LANES, sums[r][i]);
  }
}

// The same for all 32 rows.
inline void multiply_widened(const float* left, const float* right, long count, float* c, long c_row,
                             bool add) {
  // So many rows fill most of the registers: one, two or four sums each.
  constexpr long MOST = OWN_LANES == 16 ? 16 : OWN_LANES * OWN_REGISTERS >= 128 ? 6 : 2;
  constexpr long REST = MOST == 6 ? 8 : 0;
  const auto some = [&](auto rows, long row) {
    multiply_rows_by_vectors<rows>(left + row * BLOCK, right, count, c + row * c_row, c_row, add);
  };
  long row = 0;
  for (; row < BLOCK - REST; row += MOST) some(std::integral_constant<long, MOST>(), row);
  for (; row < BLOCK; row += 4) some(std::integral_constant<long, 4>(), row);
}

// Left factors of products that are added up: 32 rows, `row` numbers apart, and those of the next
// product `next` numbers on. By vectors they are widened once, however many right ones follow.
class Left {
 public:
  Left(const Multiplier& by, const bf16* first, long row, long next, long count)
      : first(first), row(row), next(next), count(count) {
    if (by.unit) return;
    wide.reset(new float[count * AREA]);
    for (long i = 0; i < count; ++i) widen_left(first + i * next, row, wide.get() + i * AREA);
  }

  const bf16* const first;
  const long row, next, count;
  std::unique_ptr<float[]> wide;
};

// Right factors: two tiles `tile` numbers apart, those of the next product `next` numbers on.
struct Right {
  const bf16* first;
  long tile, next;
};

#ifdef __AMX_BF16__
inline void multiply_by_unit(const Left& left, Right right, float* c, long c_row, bool add) {
  const bf16* a = left.first;
  float* below = c + TILE * c_row;
  const long bytes = c_row * sizeof(float), a_bytes = left.row * sizeof(bf16);
  constexpr long TILE_BYTES = BLOCK * sizeof(bf16);
  settle(a);
  settle(right.first);
  settle(c);
  if (add) {
    _tile_loadd(0, c, bytes);
    _tile_loadd(1, c + TILE, bytes);
    _tile_loadd(2, below, bytes);
    _tile_loadd(3, below + TILE, bytes);
  } else {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
  }
  for (long i = 0; i < left.count; ++i, a += left.next, right.first += right.next) {
    _tile_loadd(4, a, a_bytes);
    _tile_loadd(6, right.first, TILE_BYTES);
    _tile_dpbf16ps(0, 4, 6);
    _tile_loadd(7, right.first + right.tile, TILE_BYTES);
    _tile_dpbf16ps(1, 4, 7);
    _tile_loadd(5, a + TILE * left.row, a_bytes);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
  }
  _tile_stored(0, c, bytes);
  _tile_stored(1, c + TILE, bytes);
  _tile_stored(2, below, bytes);
  _tile_stored(3, below + TILE, bytes);
}
#endif

inline void multiply_by_vectors(const Left& left, Right right, float* c, long c_row, bool add) {
  // Widened right factors of so many products stay in the nearest cache.
  constexpr long CLOSE = 4;
  alignas(64) float wide[CLOSE * AREA];
  for (long start = 0; start < left.count; start += CLOSE) {
    const long count = std::min(CLOSE, left.count - start);
    for (long i = 0; i < count; ++i, right.first += right.next)
      widen_right(right.first, right.tile, wide + i * AREA);
    multiply_widened(left.wide.get() + start * AREA, wide, count, c, c_row, add || start);
  }
}

// c (32, 32), its rows c_row numbers apart, = the sum of the factors' products, plus what was there if
// `add`.
inline void multiply([[maybe_unused]] const Multiplier& by, const Left& left, Right right, float* c,
                     long c_row, bool add) {
#ifdef __AMX_BF16__
  if (by.unit) return multiply_by_unit(left, right, c, c_row, add);
#endif
  multiply_by_vectors(left, right, c, c_row, add);
}

// Lane i of a row after an exchange: of the upper row, or of the lower one, whose lanes count on.
template <long APART, bool UPPER>
constexpr uint32_t source(uint32_t i) {
  const bool beyond = i & APART;
  if (UPPER) return beyond ? i - APART + OWN_LANES : i;
  return beyond ? i + OWN_LANES : i + APART;
}

template <long APART, bool UPPER, uint32_t... I>
inline OwnWords chosen(OwnWords upper, OwnWords lower, std::integer_sequence<uint32_t, I...>) {
#ifdef __clang__
  return __builtin_shufflevector(upper, lower, source<APART, UPPER>(I)...);
#else
  return __builtin_shuffle(upper, lower, OwnWords{source<APART, UPPER>(I)...});
#endif
}

// Exchanges what lies `APART` off the diagonal of each square of 2 APART rows.
template <long APART>
inline void exchange(OwnWords rows[OWN_LANES]) {
  constexpr std::make_integer_sequence<uint32_t, OWN_LANES> lanes;
  UNROLLED for (long r = 0; r < OWN_LANES; ++r) {
    if (r & APART) continue;
    const OwnWords upper = rows[r], lower = rows[r + APART];
    rows[r] = chosen<APART, true>(upper, lower, lanes);
    rows[r + APART] = chosen<APART, false>(upper, lower, lanes);
  }
}

// A square of as many rows as a register has lanes, turned over while it lies in registers.
struct Square {
  OwnWords rows[OWN_LANES];

  explicit Square(const uint32_t* from) {
    UNROLLED for (long r = 0; r < OWN_LANES; ++r) rows[r] = read_own<OwnWords>(from + r * TILE);
    exchange<1>(rows);
    exchange<2>(rows);
    if constexpr (OWN_LANES > 4) exchange<4>(rows);
    if constexpr (OWN_LANES > 8) exchange<8>(rows);
  }

  void put(uint32_t* to) const {
    UNROLLED for (long r = 0; r < OWN_LANES; ++r) write_own(to + r * TILE, rows[r]);
  }
};

// Turns a square of 16 rows over.
inline void turn_over(Words rows[TILE]) {
  auto* place = reinterpret_cast<uint32_t*>(rows);
  for (long i = 0; i < TILE; i += OWN_LANES) {
    Square(place + i * TILE + i).put(place + i * TILE + i);
    for (long j = 0; j < i; j += OWN_LANES) {
      const Square lower(place + i * TILE + j), upper(place + j * TILE + i);
      lower.put(place + j * TILE + i);
      upper.put(place + i * TILE + j);
    }
  }
}

// 32 numbers that follow each other as 16 pairs, rounded.
inline Words pairs_of(Floats first, Floats second) {
#if defined(__AVX512BF16__)
  return same_bits<Words>(_mm512_cvtne2ps_pbh(same_bits<__m512>(second), same_bits<__m512>(first)));
#elif defined(__AVX2__) && !defined(__AVX512F__)
  const Words one = rounded(first), two = rounded(second);
  return {{lower_halves(one.parts[0], one.parts[1]), lower_halves(two.parts[0], two.parts[1])}};
#else
  bf16 few[2 * LANES];
  store(few, first);
  store(few + LANES, second);
  return read<Words>(few);
#endif
}

// Two rows of 16 numbers, each rounded and paired with the one below.
inline Words paired_with(Floats first, Floats second) {
#ifdef __AVX512BF16__
  constexpr auto at = [](int pair) { return (pair + 16) << 16 | pair; };
  const __m512i turns = _mm512_setr_epi32(at(0), at(1), at(2), at(3), at(4), at(5), at(6), at(7), at(8),
                                          at(9), at(10), at(11), at(12), at(13), at(14), at(15));
  const auto both = same_bits<__m512i>(pairs_of(first, second));
  return same_bits<Words>(_mm512_permutexvar_epi16(turns, both));
#else
  return rounded(first) | (rounded(second) << 16);
#endif
}

inline void put(bf16* to, const Words& pairs) { write(to, pairs); }

inline Words pairs_at(const float* from) { return pairs_of(load(from), load(from + LANES)); }

inline Words pairs_at(const bf16* from) {
  return read<Words>(from);
}

inline Words pairs_below(const float* first, const float* second) {
  return paired_with(load(first), load(second));
}

inline Words pairs_below(const bf16* first, const bf16* second) {
  return (same_bits<Words>(load(first)) >> 16) | same_bits<Words>(load(second));
}

template <typename T, typename Finish>
inline void pack_pairs_of_rows(const T* rows, long count, long width, bf16* packed, Finish finish) {
  for (long start = 0; start < count; start += BLOCK)
    for (long column = 0; column < width; column += TILE, packed += PACKED) {
      Words pairs[TILE];
      for (long pair = 0; pair < TILE; ++pair) {
        const T* from = rows + (start + 2 * pair) * width + column;
        pairs[pair] = pairs_below(from, from + width);
      }
      finish(pairs);
      for (long r = 0; r < TILE; ++r) put(packed + r * BLOCK, pairs[r]);
    }
}

// rows (count, width) -> right factors whose products add up over rows: 16 pairs of rows by 16
// columns, tile after tile along the width, then the next 32 rows.
template <typename T>
inline void pack_rows(const T* rows, long count, long width, bf16* packed) {
  pack_pairs_of_rows(rows, count, width, packed, [](Words*) {});
}

// rows (count, width) -> left factors whose products add up over rows: 16 columns of 32 rows, tile
// after tile along the width, then the next 32 rows.
template <typename T>
inline void pack_rows_as_left(const T* rows, long count, long width, bf16* packed) {
  pack_pairs_of_rows(rows, count, width, packed, turn_over);
}

// rows (count, width) -> right factors whose products add up over columns: 16 pairs of columns by 16
// rows, tile after tile along the width, then the next 16 rows.
template <typename T>
inline void pack_columns(const T* rows, long count, long width, bf16* packed) {
  for (long start = 0; start < count; start += TILE)
    for (long column = 0; column < width; column += BLOCK, packed += PACKED) {
      Words pairs[TILE];
      for (long r = 0; r < TILE; ++r) pairs[r] = pairs_at(rows + (start + r) * width + column);
      turn_over(pairs);
      for (long r = 0; r < TILE; ++r) put(packed + r * BLOCK, pairs[r]);
    }
}

// rows (count, width) -> columns (width, count).
inline void turn_rows_over(const bf16* rows, long count, long width, bf16* columns) {
  for (long start = 0; start < count; start += TILE)
    for (long column = 0; column < width; column += TILE) {
      Words square[TILE];
      for (long r = 0; r < TILE; ++r)
        square[r] = same_bits<Words>(load(rows + (start + r) * width + column));
      turn_over(square);
      for (long r = 0; r < TILE; ++r)
        store(columns + (column + r) * count + start, same_bits<Floats>(square[r]));
    }
}

// 32 rows of sums, 32 numbers each, rounded into rows `step` numbers apart.
inline void store_block(const float* sums, bf16* out, long step) {
  for (long r = 0; r < BLOCK; ++r) put(out + r * step, pairs_at(sums + r * BLOCK));
}
}  // namespace
