// Causal grouped-query attention with rotary positions: one pass forward and one backward, in which
// scores exist for 32 queries at a time (arXiv:2205.14135).
//
// Rows of projected (batch, length, heads + 2 kv_heads, width) hold queries, keys and values; queries
// and keys are rotated on the way, pairs of numbers side by side. Each key head is worked on alone,
// with all query heads that share it. Scores are kept key by key: what is said of a query is then a
// vector's lane.

#include <memory>

#include "tiles.h"

namespace {

struct Sizes {
  long batch, length, kv_heads, groups, width;

  long heads() const { return kv_heads * groups; }
  long row() const { return (heads() + 2 * kv_heads) * width; }
  // What is worked on: zeros fill up to whole blocks.
  long rows() const { return (length + BLOCK - 1) / BLOCK * BLOCK; }
  long columns() const { return (width + BLOCK - 1) / BLOCK * BLOCK; }
  long all() const { return rows() * columns(); }
  bool whole() const { return rows() == length && columns() == width; }
};

// (x, y) -> (x cos - y sin, x sin + y cos), or back with a sign of -1; turns are (cos, sin).
template <typename From>
inline void turn(const From* from, const float* turns, float sign, bf16* to, long width) {
  constexpr float ALTERNATING[LANES] = {-1, 1, -1, 1, -1, 1, -1, 1, -1, 1, -1, 1, -1, 1, -1, 1};
  const Floats signs = load(ALTERNATING) * sign;
  constexpr uint64_t SECOND = ~uint64_t{0} << 32;
  along(width, [&](long i, auto part) {
    const Pairs pair = same_bits<Pairs>(load(turns + i, part));
    const Floats cosine = same_bits<Floats>((pair & ~SECOND) | (pair << 32));
    const Floats sine = same_bits<Floats>((pair & SECOND) | (pair >> 32));
    const Floats x = load(from + i, part);
    const Pairs xy = same_bits<Pairs>(x);
    const Floats swapped = same_bits<Floats>((xy << 32) | (xy >> 32));
    store(to + i, x * cosine + swapped * (sine * signs), part);
  });
}

// One sequence: its rows, and what turns them.
struct Sequence {
  const bf16* projected;
  const float* turns;

  Sequence(const bf16* all, const float* angles, long step, const Sizes& s, long b)
      : projected(all + b * s.length * s.row()), turns(angles + b * step) {}

  // All rows of one head, rotated if asked.
  void read(const Sizes& s, long head, bool rotated, bf16* out) const {
    if (!s.whole()) fill_zeros(out, s.all());
    for (long t = 0; t < s.length; ++t, out += s.columns()) {
      const bf16* row = projected + t * s.row() + head * s.width;
      if (rotated) {
        turn(row, turns + t * s.width, 1, out, s.width);
      } else {
        std::memcpy(out, row, s.width * sizeof(bf16));
      }
    }
  }
};

// Memory to work in, with nothing in it yet.
template <typename T>
class Room {
 public:
  explicit Room(long size) : size(size), place(new T[size]) {}
  T* data() const { return place.get(); }
  T& operator[](long i) const { return place[i]; }
  const long size;

 private:
  std::unique_ptr<T[]> place;
};

// Which lanes' queries, from `query` on, see this key.
inline auto sees(long query, long key) {
  constexpr uint32_t NUMBERS[LANES] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  return read<Words>(NUMBERS) + static_cast<uint32_t>(query) >= static_cast<uint32_t>(key);
}

// Keys and values of one head as forward takes them, and room for one query head.
struct Forward {
  Room<bf16> keys, values, columns_of_values, queries, packed_queries, packed_weights;
  Room<float> scores, sums;

  explicit Forward(const Sizes& s)
      : keys(s.all()), values(s.all()), columns_of_values(s.all()), queries(s.all()),
        packed_queries(s.all()), packed_weights(s.rows() * BLOCK), scores(s.rows() * BLOCK),
        sums(s.columns() * BLOCK) {}
};

// Weights e^(score - largest) of 16 queries, packed; returns what scales their sum to one and leaves
// the logarithm of the normaliser. `end` keys are there.
Floats weigh(const float* scores, long query, long end, bf16* packed, float* normalisers) {
  // All see the keys before the first query.
  Floats most = all(-INFINITY), sum{};
  for (long key = 0; key < query; ++key) {
    const Floats score = load(scores + key * BLOCK);
    most = choose(score > most, score, most);
  }
  for (long key = query; key < end; ++key) {
    const Floats score = choose(sees(query, key), load(scores + key * BLOCK), most);
    most = choose(score > most, score, most);
  }
  const auto weigh_pair = [&](long key, Floats first, Floats second) {
    const Words pair = paired_with(first, second);
    sum += first + second;
    put(packed + key / BLOCK * 2 * PACKED + key % BLOCK / 2 * BLOCK, pair);
  };
  const auto weight = [&](long key) { return exponential(load(scores + key * BLOCK) - most); };
  for (long key = 0; key < query; key += 2) weigh_pair(key, weight(key), weight(key + 1));
  for (long key = query; key < end; key += 2)
    weigh_pair(key, choose(sees(query, key), weight(key), Floats{}),
               choose(sees(query, key + 1), weight(key + 1), Floats{}));
  float sums[LANES];
  store(sums, sum);
  store(normalisers, most);
  for (long i = 0; i < LANES; ++i) normalisers[i] += std::log(sums[i]);
  return 1.0f / sum;
}

// 32 queries of one head.
void attend(const Multiplier& by, Forward& f, const Sizes& s, long query, bf16* output,
            float* normalisers) {
  const long width = s.columns(), end = query + BLOCK;
  for (long key = 0; key < end; key += BLOCK)
    multiply(by, {by, f.keys.data() + key * width, width, BLOCK, width / BLOCK},
             {f.packed_queries.data() + query * width, width * TILE, PACKED},
             f.scores.data() + key * BLOCK, BLOCK, false);
  Floats scales[2];
  for (long half = 0; half < 2; ++half)
    scales[half] = weigh(f.scores.data() + half * TILE, query + half * TILE, end,
                         f.packed_weights.data() + half * PACKED, normalisers + half * TILE);
  for (long column = 0; column < width; column += BLOCK)
    multiply(by, {by, f.columns_of_values.data() + column * s.rows(), s.rows(), BLOCK, end / BLOCK},
             {f.packed_weights.data(), PACKED, 2 * PACKED}, f.sums.data() + column * BLOCK, BLOCK,
             false);
  for (long half = 0; half < 2; ++half)
    for (long column = 0; column < s.width; column += TILE) {
      Words square[TILE];
      for (long r = 0; r < TILE; ++r)
        square[r] = same_bits<Words>(load(f.sums.data() + (column + r) * BLOCK + half * TILE) *
                                     scales[half]);
      turn_over(square);
      const long here = query + half * TILE, there = std::min(s.length - here, TILE);
      bf16* out = output + here * s.heads() * s.width + column;
      for (long r = 0; r < there; ++r, out += s.heads() * s.width) {
        if (s.width - column < TILE) {
          store(out, same_bits<Floats>(square[r]), Part{s.width - column});
        } else {
          store(out, same_bits<Floats>(square[r]));
        }
      }
    }
}

// Keys and values of one head as backward takes them, and one of its query heads.
struct Backward {
  Room<bf16> keys, values, columns_of_keys;
  Room<bf16> queries, packed_queries, queries_in_pairs, grads, packed_grads, grads_in_pairs;
  Room<float> grad_keys, grad_values, grad_queries, inner, scores, errors;
  // Of 32 keys and all queries that see them, block by block.
  Room<bf16> weights, errors_by_key, packed_errors;

  explicit Backward(const Sizes& s)
      : keys(s.all()), values(s.all()), columns_of_keys(s.all()), queries(s.all()),
        packed_queries(s.all()), queries_in_pairs(s.all()), grads(s.all()), packed_grads(s.all()),
        grads_in_pairs(s.all()), grad_keys(s.all()), grad_values(s.all()),
        grad_queries(s.all()), inner(s.rows()), scores(2 * AREA), errors(2 * AREA),
        weights(s.rows() * BLOCK), errors_by_key(s.rows() * BLOCK),
        packed_errors(s.rows() * BLOCK) {}
};

// Reads a query head: its queries, the gradient of what it returned, and the sums of their products
// with what it returned, which the softmax's gradient takes.
void read_queries(Backward& w, const Sequence& of, const Sizes& s, long head, const bf16* output,
                  const bf16* grads) {
  of.read(s, head, true, w.queries.data());
  const long width = s.columns(), step = s.heads() * s.width;
  if (!s.whole()) {
    fill_zeros(w.grads.data(), s.all());
    fill_zeros(w.inner.data(), s.rows());
  }
  for (long t = 0; t < s.length; ++t) {
    const bf16 *grad = grads + t * step + head * s.width, *row = output + t * step + head * s.width;
    std::memcpy(w.grads.data() + t * width, grad, s.width * sizeof(bf16));
    Floats sum{};
    along(s.width, [&](long i, auto part) { sum += load(grad + i, part) * load(row + i, part); });
    w.inner[t] = sum_of(sum);
  }
  pack_columns(w.queries.data(), s.rows(), width, w.packed_queries.data());
  pack_rows(w.queries.data(), s.rows(), width, w.queries_in_pairs.data());
  pack_columns(w.grads.data(), s.rows(), width, w.packed_grads.data());
  pack_rows(w.grads.data(), s.rows(), width, w.grads_in_pairs.data());
}

// Scores of 32 keys by 32 queries again, and the gradients of their weights.
void score_again(const Multiplier& by, Backward& w, const Sizes& s, const Left& keys,
                 const Left& values, long query) {
  const long width = s.columns(), place = query * width, other = query / BLOCK % 2 * AREA;
  multiply(by, keys, {w.packed_queries.data() + place, width * TILE, PACKED},
           w.scores.data() + other, BLOCK, false);
  multiply(by, values, {w.packed_grads.data() + place, width * TILE, PACKED},
           w.errors.data() + other, BLOCK, false);
}

// Their weights, and the gradients of the scores.
void weigh_again(Backward& w, long key, long query, const float* normalisers) {
  const long place = (query - key) * BLOCK;
  const float *scores = w.scores.data() + query / BLOCK % 2 * AREA,
              *grads = w.errors.data() + query / BLOCK % 2 * AREA;
  bf16 *weights_by_key = w.weights.data() + place, *errors_by_key = w.errors_by_key.data() + place,
       *packed = w.packed_errors.data() + place;
  Floats log_sums[2], inner[2];
  for (long half = 0; half < 2; ++half) {
    log_sums[half] = load(normalisers + query + half * TILE);
    inner[half] = load(w.inner.data() + query + half * TILE);
  }
  for (long r = 0; r < BLOCK; r += 2) {
    Floats weights[2][2], errors[2][2];
    for (long i = 0; i < 2; ++i)
      for (long half = 0; half < 2; ++half) {
        const long at = (r + i) * BLOCK + half * TILE;
        Floats weight = exponential(load(scores + at) - log_sums[half]);
        if (key == query)
          weight = choose(sees(query + half * TILE, key + r + i), weight, Floats{});
        weights[i][half] = weight;
        errors[i][half] = weight * (load(grads + at) - inner[half]);
      }
    for (long i = 0; i < 2; ++i) {
      put(weights_by_key + (r + i) * BLOCK, pairs_of(weights[i][0], weights[i][1]));
      put(errors_by_key + (r + i) * BLOCK, pairs_of(errors[i][0], errors[i][1]));
      put(packed + i * PACKED + r / 2 * BLOCK, paired_with(errors[0][i], errors[1][i]));
    }
  }
}

// Adds what 32 keys and a query head's queries that see them give to each other's gradients.
void add_gradients(const Multiplier& by, Backward& w, const Sizes& s, long key) {
  const long width = s.columns(), count = (s.rows() - key) / BLOCK;
  for (long column = 0; column < width; column += BLOCK) {
    const long pairs = key * width + column * BLOCK, place = key * width + column;
    multiply(by, {by, w.weights.data(), BLOCK, AREA, count},
             {w.grads_in_pairs.data() + pairs, PACKED, width * BLOCK}, w.grad_values.data() + place,
             width, true);
    multiply(by, {by, w.errors_by_key.data(), BLOCK, AREA, count},
             {w.queries_in_pairs.data() + pairs, PACKED, width * BLOCK}, w.grad_keys.data() + place,
             width, true);
    // Turned over: rows are the queries' numbers.
    const Left keys(by, w.columns_of_keys.data() + column * s.rows() + key, s.rows(), 0, 1);
    for (long query = key; query < s.rows(); query += BLOCK)
      multiply(by, keys, {w.packed_errors.data() + (query - key) * BLOCK, PACKED, 0},
               w.grad_queries.data() + query * width + column * BLOCK, BLOCK, key > 0);
  }
}

// The gradients of a head's queries, in their places.
void write_queries(const Backward& w, const Sequence& of, const Sizes& s, long head,
                   bf16* grad_projected) {
  for (long here = 0; here < s.length; here += TILE)
    for (long column = 0; column < s.width; column += TILE) {
      const long there = std::min(s.length - here, TILE);
      const float* from = w.grad_queries.data() + here / BLOCK * BLOCK * s.columns() +
                          column * BLOCK + here % BLOCK;
      Words square[TILE];
      for (long r = 0; r < TILE; ++r) square[r] = same_bits<Words>(load(from + r * BLOCK));
      turn_over(square);
      for (long r = 0; r < there; ++r) {
        const Floats row = same_bits<Floats>(square[r]);
        turn(reinterpret_cast<const float*>(&row), of.turns + (here + r) * s.width + column, -1,
             grad_projected + (here + r) * s.row() + head * s.width + column,
             std::min(TILE, s.width - column));
      }
    }
}

// One query head: adds to the gradients of keys and values, and writes those of the queries.
void attend_backward(const Multiplier& by, Backward& w, const Sequence& of, const Sizes& s,
                     long head, const float* normalisers, bf16* grad_projected) {
  for (long key = 0; key < s.rows(); key += BLOCK) {
    const long width = s.columns();
    const Left keys(by, w.keys.data() + key * width, width, BLOCK, width / BLOCK);
    const Left values(by, w.values.data() + key * width, width, BLOCK, width / BLOCK);
    // Scores are read when the next ones are on their way.
    score_again(by, w, s, keys, values, key);
    for (long query = key; query < s.rows(); query += BLOCK) {
      if (query + BLOCK < s.rows()) score_again(by, w, s, keys, values, query + BLOCK);
      weigh_again(w, key, query, normalisers);
    }
    add_gradients(by, w, s, key);
  }
  write_queries(w, of, s, head, grad_projected);
}

// Gradients of a key head's keys and values, in their places.
void write_keys(const Backward& w, const Sequence& of, const Sizes& s, long head,
                bf16* grad_projected) {
  for (long t = 0; t < s.length; ++t) {
    bf16* out = grad_projected + t * s.row() + (s.heads() + head) * s.width;
    turn(w.grad_keys.data() + t * s.columns(), of.turns + t * s.width, -1, out, s.width);
    const float* grad = w.grad_values.data() + t * s.columns();
    along(s.width, [&](long i, auto part) {
      store(out + s.kv_heads * s.width + i, load(grad + i), part);
    });
  }
}

// Does something for each key head of each sequence, each thread with a room of its own.
template <typename Own, typename Do>
void for_each_key_head(const Sizes& s, int threads, Do what) {
#pragma omp parallel num_threads(threads) if (threads > 1)
  {
    const Multiplier by;
    Own own(s);
#pragma omp for collapse(2)
    for (long b = 0; b < s.batch; ++b)
      for (long shared = 0; shared < s.kv_heads; ++shared) what(by, own, b, shared);
  }
}
}  // namespace

// Calls what(separate, i, joined, j) for rows of queries and keys, each `heads` heads: there numbers i
// and i + width / 2 of a head are rotated together, and lie side by side in the joined weight.
template <typename What>
void for_each_pair(long heads, long width, What what) {
  for (long head = 0; head < heads; ++head)
    for (long i = 0; i < width; ++i)
      what(head * width + i, head * width + i % (width / 2) * 2 + i / (width / 2));
}

void scale_row(const float* from, float by, float* to, long depth) {
  along(depth, [&](long i, auto part) { store(to + i, load(from + i, part) * by, part); });
}

extern "C" {

// joined ((heads + 2 kv_heads) width, depth): queries, scaled, keys, both with rotated numbers side by
// side, and values.
void join_projections(const float* query, const float* key, const float* value, float* joined, Sizes s,
                      long depth, float scaling, int) {
  for_each_pair(s.heads(), s.width, [&](long row, long place) {
    scale_row(query + row * depth, scaling, joined + place * depth, depth);
  });
  joined += s.heads() * s.width * depth;
  const long rows = s.kv_heads * s.width;
  for_each_pair(s.kv_heads, s.width, [&](long row, long place) {
    std::memcpy(joined + place * depth, key + row * depth, depth * sizeof(float));
  });
  std::memcpy(joined + rows * depth, value, rows * depth * sizeof(float));
}

// The gradients of all three weights, given that of the joined one.
void separate_projections(const float* joined, float* query, float* key, float* value, Sizes s,
                          long depth, float scaling, int) {
  for_each_pair(s.heads(), s.width, [&](long row, long place) {
    scale_row(joined + place * depth, scaling, query + row * depth, depth);
  });
  joined += s.heads() * s.width * depth;
  const long rows = s.kv_heads * s.width;
  for_each_pair(s.kv_heads, s.width, [&](long row, long place) {
    std::memcpy(key + row * depth, joined + place * depth, depth * sizeof(float));
  });
  std::memcpy(value, joined + rows * depth, rows * depth * sizeof(float));
}

// projected -> output (batch, length, heads, width), and the logarithms of the normalisers (batch,
// heads, rows()) that backward takes. The turns of the next sequence lie `turns_step` numbers on.
void attention(const bf16* projected, const float* turns, long turns_step, bf16* output,
               float* normalisers, Sizes s, int threads) {
  for_each_key_head<Forward>(s, threads, [&](const Multiplier& by, Forward& f, long b, long shared) {
    const Sequence of(projected, turns, turns_step, s, b);
    of.read(s, s.heads() + shared, true, f.keys.data());
    of.read(s, s.heads() + s.kv_heads + shared, false, f.values.data());
    turn_rows_over(f.values.data(), s.rows(), s.columns(), f.columns_of_values.data());
    for (long head = shared * s.groups; head < (shared + 1) * s.groups; ++head) {
      of.read(s, head, true, f.queries.data());
      pack_columns(f.queries.data(), s.rows(), s.columns(), f.packed_queries.data());
      bf16* out = output + b * s.length * s.heads() * s.width + head * s.width;
      float* logs = normalisers + (b * s.heads() + head) * s.rows();
      for (long query = 0; query < s.rows(); query += BLOCK)
        attend(by, f, s, query, out, logs + query);
    }
  });
}

// The gradient of projected.
void attention_backward(const bf16* grads, const bf16* projected, const float* turns,
                        long turns_step, const bf16* output, const float* normalisers,
                        bf16* grad_projected, Sizes s, int threads) {
  for_each_key_head<Backward>(s, threads, [&](const Multiplier& by, Backward& w, long b,
                                              long shared) {
    const Sequence of(projected, turns, turns_step, s, b);
    const long first = b * s.length * s.heads() * s.width;
    bf16* out = grad_projected + b * s.length * s.row();
    of.read(s, s.heads() + shared, true, w.keys.data());
    of.read(s, s.heads() + s.kv_heads + shared, false, w.values.data());
    turn_rows_over(w.keys.data(), s.rows(), s.columns(), w.columns_of_keys.data());
    fill_zeros(w.grad_keys.data(), s.all());
    fill_zeros(w.grad_values.data(), s.all());
    for (long head = shared * s.groups; head < (shared + 1) * s.groups; ++head) {
      read_queries(w, of, s, head, output + first, grads + first);
      attend_backward(by, w, of, s, head, normalisers + (b * s.heads() + head) * s.rows(), out);
    }
    write_keys(w, of, s, shared, out);
  });
}
}
