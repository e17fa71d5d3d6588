// SwiGLU along a row: silu(gate) * up * factor, and its gradients.

#pragma once

#include "vectors.h"

namespace {

template <typename T>
inline void activate(const T* gate, const T* up, float factor, T* out, long width) {
  along(width, [&](long i, auto part) {
    const Floats g = load(gate + i, part), u = load(up + i, part);
    store(out + i, g * sigmoid(g) * u * factor, part);
  });
}

// Returns the gradient of the factor; makes what `activate` does again where `out` is given.
template <typename T>
inline float activate_backward(const T* grads, const T* gate, const T* up, float factor,
                               T* grad_gate, T* grad_up, long width, T* out = nullptr) {
  Floats sum{};
  along(width, [&](long i, auto part) {
    const Floats d = load(grads + i, part), g = load(gate + i, part), u = load(up + i, part);
    const Floats s = sigmoid(g), active = g * s, scaled = d * factor;
    sum += d * active * u;
    if (out) store(out + i, active * u * factor, part);
    store(grad_up + i, scaled * active, part);
    store(grad_gate + i, scaled * u * (s + active * (1 - s)), part);
  });
  return sum_of(sum);
}
}  // namespace
