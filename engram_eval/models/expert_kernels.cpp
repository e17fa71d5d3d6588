// SwiGLU experts, each with its own slice of the rows: what a layer of experts does to its tokens, and
// the gradients. Nothing is padded to the fullest, and loads may differ from step to step.
//
// A slice has a multiple of 32 rows; widths are multiples of 32, too. Weights are kept, and their
// gradients added up, in single precision.

#include "activation.h"
#include "blocks.h"
#include "slices.h"

namespace {

// inner: numbers between the two products, after the activation.
struct Experts {
  long experts, tokens, chosen, rows, width, inner;
};

// Which rows there are: whose each is, and by what its output is multiplied; 0 where it is nobody's.
struct Rows {
  const int64_t *owners, *sizes;
  std::vector<int64_t> starts;
  std::vector<float> factors;

  Rows(const int64_t* owners, const int64_t* sizes, const int64_t* places, const float* weights,
       const Experts& s)
      : owners(owners), sizes(sizes), starts(starts_of(sizes, s.experts)), factors(s.rows) {
    for (long i = 0; i < s.tokens * s.chosen; ++i) factors[places[i]] = weights[i];
  }

  // 32 rows of x, one after the other.
  void gather(const bf16* x, long first, long width, bf16* out) const {
    for (long r = first; r < first + BLOCK; ++r, out += width)
      std::memcpy(out, x + owners[r] * width, width * sizeof(bf16));
  }
};

// out (tokens, width): of each token the sum of its rows, and of its row of `beside` unless that is null.
void add_up(const bf16* rows, const int64_t* places, const bf16* beside, const Experts& s, bf16* out) {
#pragma omp for
  for (long t = 0; t < s.tokens; ++t)
    for (long i = 0; i < s.width; i += LANES) {
      Floats sum = beside ? load(beside + t * s.width + i) : Floats{};
      for (long k = 0; k < s.chosen; ++k)
        sum += load(rows + places[t * s.chosen + k] * s.width + i);
      store(out + t * s.width + i, sum);
    }
}

}  // namespace

extern "C" {

// Whether products of small blocks run on a matrix unit here.
int64_t matrix_unit(int) {
  const Multiplier by;
  return by.unit;
}

// x (tokens, width) -> out (tokens, width): of each token the weighted sum of what its experts make of
// it, plus what lies in `beside`. gate_up (experts, width, 2 inner), down (experts, inner, width); hidden
// (rows, 2 inner) is kept for backward. Places (tokens, chosen) say in which rows a token is.
int64_t experts_forward(const bf16* x, const float* weights, const int64_t* places,
                        const int64_t* owners, const int64_t* sizes, const float* gate_up,
                        const float* down, const bf16* beside, bf16* hidden, bf16* out, Experts s,
                        int threads) {
  const Rows rows(owners, sizes, places, weights, s);
  const std::unique_ptr<bf16[]> outer(new bf16[s.rows * s.width]);
  const long both = 2 * s.inner;
#pragma omp parallel num_threads(threads) if (threads > 1)
  {
    const Multiplier by;
    const std::unique_ptr<bf16[]> first(new bf16[s.width * both]), second(new bf16[s.inner * s.width]),
        block(new bf16[BLOCK * s.width]), inner(new bf16[BLOCK * s.inner]);
#pragma omp for schedule(dynamic)
    for (long e = 0; e < s.experts; ++e) {
      pack_rows(gate_up + e * s.width * both, s.width, both, first.get());
      pack_rows(down + e * s.inner * s.width, s.inner, s.width, second.get());
      for (long row = rows.starts[e]; row < rows.starts[e] + sizes[e]; row += BLOCK) {
        bf16* own = hidden + row * both;
        rows.gather(x, row, s.width, block.get());
        times_rows(by, block.get(), s.width, first.get(), both, own);
        for (long r = 0; r < BLOCK; ++r)
          activate(own + r * both, own + r * both + s.inner, rows.factors[row + r],
                   inner.get() + r * s.inner, s.inner);
        times_rows(by, inner.get(), s.inner, second.get(), s.width, outer.get() + row * s.width);
      }
    }
    add_up(outer.get(), places, beside, s, out);
  }
  return 0;
}

// grad_x has what lies in `beside` added.
int64_t experts_backward(const bf16* grads, const bf16* x, const float* weights,
                         const int64_t* places, const int64_t* owners, const int64_t* sizes,
                         const float* gate_up, const float* down, const bf16* hidden,
                         const bf16* beside, bf16* grad_x, float* grad_weights, float* grad_gate_up,
                         float* grad_down, Experts s, int threads) {
  const Rows rows(owners, sizes, places, weights, s);
  const std::unique_ptr<bf16[]> grad_rows(new bf16[s.rows * s.width]);
  const std::unique_ptr<float[]> grad_factors(new float[s.rows]);
  const long both = 2 * s.inner;
#pragma omp parallel num_threads(threads) if (threads > 1)
  {
    const Multiplier by;
    const std::unique_ptr<bf16[]> first(new bf16[s.width * both]), second(new bf16[s.inner * s.width]),
        grad(new bf16[BLOCK * s.width]), block(new bf16[BLOCK * s.width]),
        inner(new bf16[BLOCK * s.inner]), grad_inner(new bf16[BLOCK * s.inner]),
        grad_hidden(new bf16[BLOCK * both]);
    Outer of_first(s.width, both), of_second(s.inner, s.width);
#pragma omp for schedule(dynamic)
    for (long e = 0; e < s.experts; ++e) {
      float *own_first = grad_gate_up + e * s.width * both, *own_second = grad_down + e * s.inner * s.width;
      if (!sizes[e]) {
        std::memset(own_first, 0, s.width * both * sizeof(float));
        std::memset(own_second, 0, s.inner * s.width * sizeof(float));
      }
      pack_columns(gate_up + e * s.width * both, s.width, both, first.get());
      pack_columns(down + e * s.inner * s.width, s.inner, s.width, second.get());
      for (long start = 0; start < sizes[e]; start += ROWS_OF_A_CHUNK) {
        const long count = std::min(ROWS_OF_A_CHUNK, sizes[e] - start);
        for (long row = 0; row < count; row += BLOCK) {
          const long here = rows.starts[e] + start + row;
          rows.gather(grads, here, s.width, grad.get());
          rows.gather(x, here, s.width, block.get());
          times_columns(by, grad.get(), s.width, second.get(), s.inner, grad_inner.get());
          for (long r = 0; r < BLOCK; ++r) {
            const bf16 *gate = hidden + (here + r) * both, *up = gate + s.inner;
            const float factor = rows.factors[here + r];
            bf16* out = grad_hidden.get() + r * both;
            grad_factors[here + r] =
                activate_backward(grad_inner.get() + r * s.inner, gate, up, factor, out,
                                  out + s.inner, s.inner, inner.get() + r * s.inner);
          }
          times_columns(by, grad_hidden.get(), both, first.get(), s.width,
                        grad_rows.get() + here * s.width);
          of_first.take(row, block.get(), grad_hidden.get());
          of_second.take(row, inner.get(), grad.get());
        }
        for (long panel = 0; panel < of_first.panels(); ++panel)
          of_first.add_panel(by, panel, count, own_first, start > 0);
        for (long panel = 0; panel < of_second.panels(); ++panel)
          of_second.add_panel(by, panel, count, own_second, start > 0);
      }
    }
    add_up(grad_rows.get(), places, beside, s, grad_x);
  }
  for (long i = 0; i < s.tokens * s.chosen; ++i) grad_weights[i] = grad_factors[places[i]];
  return 0;
}
}
