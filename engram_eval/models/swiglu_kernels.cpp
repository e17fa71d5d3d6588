// A SwiGLU layer, down(silu(gate(x)) * up(x)), and its gradients: a block of rows goes through all
// products while it is close to the processor.
//
// There is a multiple of 32 rows; widths are multiples of 32, too. Weights (outputs, inputs) are kept,
// and their gradients added up, in single precision.

#include "activation.h"
#include "blocks.h"

namespace {

// inner: numbers between the two products, after the activation.
struct Layer {
  long rows, width, inner;
};
}  // namespace

extern "C" {

// x (rows, width) -> out (rows, width); hidden (rows, 2 inner) is kept for backward.
void swiglu_layer(const bf16* x, const float* gate, const float* up, const float* down, bf16* hidden,
                  bf16* out, Layer s, int threads) {
  const long both = 2 * s.inner;
  const std::unique_ptr<bf16[]> first(new bf16[both * s.width]), second(new bf16[s.inner * s.width]);
  pack_columns(gate, s.inner, s.width, first.get());
  pack_columns(up, s.inner, s.width, first.get() + s.inner * s.width);
  pack_columns(down, s.width, s.inner, second.get());
#pragma omp parallel num_threads(threads) if (threads > 1)
  {
    const Multiplier by;
    const std::unique_ptr<bf16[]> inner(new bf16[BLOCK * s.inner]);
#pragma omp for
    for (long row = 0; row < s.rows; row += BLOCK) {
      bf16* own = hidden + row * both;
      times_columns(by, x + row * s.width, s.width, first.get(), both, own);
      for (long r = 0; r < BLOCK; ++r, own += both)
        activate(own, own + s.inner, 1.0f, inner.get() + r * s.inner, s.inner);
      times_columns(by, inner.get(), s.inner, second.get(), s.width, out + row * s.width);
    }
  }
}

// The gradients of x, of gate and up, (2 inner, width) one after the other, and of down.
void swiglu_layer_backward(const bf16* grads, const bf16* x, const float* gate, const float* up,
                           const float* down, const bf16* hidden, bf16* grad_x, float* grad_first,
                           float* grad_down, Layer s, int threads) {
  const long both = 2 * s.inner;
  const std::unique_ptr<bf16[]> first(new bf16[both * s.width]), second(new bf16[s.inner * s.width]);
  pack_rows(gate, s.inner, s.width, first.get());
  pack_rows(up, s.inner, s.width, first.get() + s.inner * s.width);
  pack_rows(down, s.width, s.inner, second.get());
  const long chunk = rows_of_a_chunk(both + s.inner + 2 * s.width, threads);
  Outer of_first(both, s.width, chunk), of_down(s.width, s.inner, chunk);
#pragma omp parallel num_threads(threads) if (threads > 1)
  {
    const Multiplier by;
    const std::unique_ptr<bf16[]> inner(new bf16[BLOCK * s.inner]),
        grad_inner(new bf16[BLOCK * s.inner]), grad_hidden(new bf16[BLOCK * both]);
    for (long start = 0; start < s.rows; start += chunk) {
      const long count = std::min(chunk, s.rows - start);
#pragma omp for
      for (long row = 0; row < count; row += BLOCK) {
        const long here = (start + row) * s.width;
        const bf16* own = hidden + (start + row) * both;
        bf16* out = grad_hidden.get();
        times_rows(by, grads + here, s.width, second.get(), s.inner, grad_inner.get());
        for (long r = 0; r < BLOCK; ++r, own += both, out += both)
          activate_backward(grad_inner.get() + r * s.inner, own, own + s.inner, 1.0f, out,
                            out + s.inner, s.inner, inner.get() + r * s.inner);
        times_rows(by, grad_hidden.get(), both, first.get(), s.width, grad_x + here);
        of_first.take(row, grad_hidden.get(), x + here);
        of_down.take(row, grads + here, inner.get());
      }
#pragma omp for
      for (long panel = 0; panel < of_first.panels() + of_down.panels(); ++panel) {
        if (panel < of_first.panels()) {
          of_first.add_panel(by, panel, count, grad_first, start > 0);
        } else {
          of_down.add_panel(by, panel - of_first.panels(), count, grad_down, start > 0);
        }
      }
    }
  }
}
}
