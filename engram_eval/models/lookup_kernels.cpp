// From token ids to rows of a table: what each position looks back on, the remainders of its n-grams
// by the heads' primes, and the rows themselves.

#include <vector>

#include "vectors.h"

namespace {

// Tokens are worked on by eights, in as many registers as they take.
constexpr long EIGHT = 8, TOKENS = OWN_LANES / 2, GROUPS = EIGHT / TOKENS;
// Fewer tokens than these are not worth a second thread.
constexpr long MANY = 4096;
using Doubles = Register<double, TOKENS>;
using Ids = Register<uint64_t, TOKENS>;

// Adding 1.5 * 2^52 rounds to a whole number; adding 2^52 leaves a whole number in the last bits.
constexpr double ROUND = 6755399441055744.0, WHOLE = 4503599627370496.0;
// Products of ids that came after the multipliers may be longer.
constexpr uint64_t POSITIVE = (uint64_t{1} << 63) - 1;
constexpr uint64_t WHOLE_BITS = 0x4330000000000000, LAST_BITS = (uint64_t{1} << 52) - 1;

inline Doubles as_doubles(Ids small) { return same_bits<Doubles>(small | WHOLE_BITS) - WHOLE; }

// The remainders of numbers by p, at most p / 2 from 0; with |number| < 2^50 all of it is exact.
inline Doubles near_remainder(Doubles number, double p, double inverse) {
  const Doubles quotient = (number * inverse + ROUND) - ROUND;
  return number - quotient * p;
}

// A head's prime, its inverse, and what is added to a remainder.
struct Head {
  double prime, inverse, offset;
};

// Below it a remainder times 2^32 is less than 2^50.
constexpr double SMALL_PRIME = 1 << 18;

// Of some mixed n-grams at a time, BITS after the others: no vector unit divides 64 bits.
template <int BITS>
inline Ids remainders(Ids mix, const Head& head) {
  constexpr uint64_t BASE = uint64_t{1} << BITS;
  Doubles left = near_remainder(as_doubles(mix >> 32), head.prime, head.inverse);
  for (int shift = 32 - BITS; shift >= 0; shift -= BITS) {
    const Doubles digit = as_doubles((mix >> shift) & (BASE - 1));
    left = near_remainder(left * double(BASE) + digit, head.prime, head.inverse);
  }
  left = left < 0.0 ? left + head.prime : left;
  return same_bits<Ids>(left + (head.offset + WHOLE)) & LAST_BITS;
}

// The numbers of two vectors that PLACES name, counted through both.
template <size_t... PLACES>
inline Ids chosen(Ids a, Ids b) {
#ifdef __clang__
  return __builtin_shufflevector(a, b, PLACES...);
#else
  return __builtin_shuffle(a, b, Ids{PLACES...});
#endif
}

// Blocks of STEP by STEP numbers on either side of the diagonal change places.
template <size_t STEP, size_t... I>
inline void swap_blocks(Ids& a, Ids& b, std::index_sequence<I...>) {
  const Ids lower = chosen<(I & STEP ? TOKENS + I - STEP : I)...>(a, b);
  b = chosen<(I & STEP ? TOKENS + I : I + STEP)...>(a, b);
  a = lower;
}

// As many vectors as one has numbers, rows for columns.
template <size_t STEP = 1>
inline void turn(Ids (&x)[TOKENS]) {
  if constexpr (STEP < TOKENS) {
    UNROLLED for (size_t i = 0; i < TOKENS; ++i)
      if (!(i & STEP)) swap_blocks<STEP>(x[i], x[i + STEP], std::make_index_sequence<TOKENS>());
    turn<2 * STEP>(x);
  }
}

// Writes of each token, as far as there are so many, the first rows of some heads; found is lost.
inline void write_turned(Ids (&found)[TOKENS], int64_t* out, long step, long tokens, long heads) {
  turn(found);
  UNROLLED for (long i = 0; i < TOKENS; ++i) {
    if (i >= tokens) return;
    if (heads == TOKENS) {
      write_own(out + i * step, found[i]);
    } else {
      std::memcpy(out + i * step, &found[i], heads * sizeof(int64_t));
    }
  }
}

// The ids of a register's tokens; none at the end of a text.
inline Ids load_ids(const int64_t* from, long count) {
  Ids ids{};
  if (count >= TOKENS) return read_own<Ids>(from);
  if (count > 0) std::memcpy(&ids, from, count * sizeof(int64_t));
  return ids;
}

// Calls take(i, row) with the i-th named row of a table; returns the place of a number that names none,
// or -1. Of a table larger than a cache rows are asked for ahead.
template <typename T, typename Take>
int64_t for_each_named(const T* table, long rows, long width, const int64_t* named, long count, int threads,
                       Take take) {
  constexpr long LINE = 64 / sizeof(T), AHEAD = 16, CACHE = 1 << 20;
  const bool far = rows * width * long(sizeof(T)) > CACHE;
  int64_t wrong = -1;
#pragma omp parallel for num_threads(threads) if (threads > 1) reduction(max : wrong)
  for (long i = 0; i < count; ++i) {
    if (far && i + AHEAD < count)
      for (long j = 0; j < width; j += LINE) __builtin_prefetch(table + named[i + AHEAD] * width + j);
    if (named[i] < 0 || named[i] >= rows) {
      wrong = i;
    } else {
      take(i, table + named[i] * width);
    }
  }
  return wrong;
}

// table (rows, width) = the sums of grads (count, width) at the rows that are named; a number that
// names none is left out. Each thread makes some rows, of grads in their order: sums do not depend on
// the number of threads.
template <typename T>
int64_t add_named(const T* grads, const int64_t* named, long count, long width, float* table, long rows,
                  int threads) {
#pragma omp parallel for num_threads(threads) if (threads > 1)
  for (long part = 0; part < threads; ++part) {
    const long first = rows * part / threads, end = rows * (part + 1) / threads;
    fill_zeros(table + first * width, (end - first) * width);
    for (long i = 0; i < count; ++i) {
      if (named[i] < first || named[i] >= end) continue;
      float* row = table + named[i] * width;
      along(width, [=](long j, auto part) {
        store(row + j, load(row + j, part) + load(grads + i * width + j, part), part);
      });
    }
  }
  return -1;
}
}  // namespace

extern "C" {

// history (longest, tokens) -> rows (tokens, orders, heads). The n-grams of an order mix as many ids
// as `lengths` says, each times its multiplier, of which 63 bits count; lengths ascend.
int64_t hash_history(const int64_t* history, const int64_t* multipliers, const int64_t* lengths,
                     long orders, const Head* of_heads, int64_t* rows, long tokens, long heads,
                     int threads) {
  const long columns = orders * heads;
#pragma omp parallel for num_threads(threads) if (threads > 1 && tokens >= MANY)
  for (long start = 0; start < tokens; start += EIGHT) {
    const long left = tokens - start;
    int64_t* out = rows + start * columns;
    Ids mix[GROUPS] = {}, found[GROUPS][TOKENS] = {};
    long mixed = 0, column = 0;
    for (long order = 0; order < orders; ++order) {
      for (; mixed < lengths[order]; ++mixed)
        UNROLLED for (long group = 0; group < GROUPS; ++group) {
          const long first = group * TOKENS;
          mix[group] ^= load_ids(history + mixed * tokens + start + first, left - first) *
                        static_cast<uint64_t>(multipliers[mixed]) & POSITIVE;
        }
      for (long head = 0; head < heads; ++head, ++column) {
        const Head one = of_heads[column];
        const long place = column % TOKENS;
        if (one.prime < SMALL_PRIME) {
          UNROLLED for (long group = 0; group < GROUPS; ++group)
            found[group][place] = remainders<32>(mix[group], one);
        } else {
          UNROLLED for (long group = 0; group < GROUPS; ++group)
            found[group][place] = remainders<16>(mix[group], one);
        }
        // A token's rows lie side by side: those of some heads are written at once.
        const long written = place == TOKENS - 1 ? TOKENS : column == columns - 1 ? place + 1 : 0;
        for (long group = 0; written && group < GROUPS; ++group)
          write_turned(found[group], out + group * TOKENS * columns + column - place, columns,
                       left - group * TOKENS, written);
      }
    }
  }
  return -1;
}

// ids (batch, seen) -> history (longest, batch, fresh) of the last `fresh` positions: compressed ids,
// and that of `pad` before the text, at an absent id (below 0), and from there or from a boundary on.
// Returns an id that is not below `vocabulary`, or -1.
int64_t look_back(const int64_t* ids, const int64_t* compressed, long vocabulary, int64_t pad,
                  int64_t boundary, int64_t* history, long batch, long seen, long fresh,
                  long longest, int threads) {
  const int64_t nothing = compressed[pad];
  int64_t wrong = -1;
#pragma omp parallel for num_threads(threads) if (threads > 1 && batch * fresh >= MANY) reduction(max : wrong)
  for (long b = 0; b < batch; ++b) {
    const long from = std::max(0L, seen - fresh - (longest - 1));
    const int64_t* row = ids + b * seen + from;
    const long length = seen - from, before = length - fresh;
    std::vector<int64_t> known(length);
    bool stops = false;
    for (long t = 0; t < length; ++t) {
      const int64_t id = row[t];
      if (id >= vocabulary) wrong = id;
      known[t] = id >= 0 && id < vocabulary ? compressed[id] : nothing;
      stops |= id < 0 || id == boundary;
    }
    for (long back = 0; back < longest && !stops; ++back) {
      // Without a stop the text is only shifted; nothing stands before its start.
      int64_t* to = history + (back * batch + b) * fresh;
      const long missing = std::min(fresh, std::max(0L, back - before));
      std::fill(to, to + missing, nothing);
      std::copy_n(known.data() + before + missing - back, fresh - missing, to + missing);
    }
    // How many places back an n-gram may reach: to the last stop or the start of the text.
    long reach = from ? longest : 1;
    for (long t = 0; t < length && stops; ++t) {
      const long place = t - before;
      for (long back = 0; place >= 0 && back < longest; ++back)
        history[(back * batch + b) * fresh + place] = back < reach ? known[t - back] : nothing;
      reach = row[t] < 0 || row[t] == boundary ? 1 : reach + 1;
    }
  }
  return wrong;
}

// out (count, row_bytes) = the rows of table (rows, row_bytes) that are named. Returns the place of a
// number that names none, or -1.
int64_t gather(const char* table, long rows, long row_bytes, const int64_t* named, char* out,
               long count, int threads) {
  constexpr long LINE = 64;
  return for_each_named(table, rows, row_bytes, named, count, threads, [=](long i, const char* from) {
    char* to = out + i * row_bytes;
    long byte = 0;
    for (; byte + LINE <= row_bytes; byte += LINE) std::memcpy(to + byte, from + byte, LINE);
    if (byte < row_bytes) std::memcpy(to + byte, from + byte, row_bytes - byte);
  });
}

// The same of a table (rows, width) in single precision, rounded.
int64_t gather_rounded(const float* table, long rows, long width, const int64_t* named, bf16* out,
                       long count, int threads) {
  return for_each_named(table, rows, width, named, count, threads, [=](long i, const float* from) {
    along(width, [=](long j, auto part) { store(out + i * width + j, load(from + j, part), part); });
  });
}

int64_t add_at(const float* grads, const int64_t* named, long count, long width, float* table, long rows,
               int threads) {
  return add_named(grads, named, count, width, table, rows, threads);
}

int64_t add_rounded_at(const bf16* grads, const int64_t* named, long count, long width, float* table,
                       long rows, int threads) {
  return add_named(grads, named, count, width, table, rows, threads);
}
}
