// Sixteen numbers of 32 bits, or eight of 64, in as many registers as they take: by the extension that
// GCC and Clang share. GCC works on vectors longer than a register number by number, so that a
// processor with shorter ones is given several.

#pragma once

#include <cstdint>
#include <cstring>
#include <utility>
#ifdef __AVX2__
#include <immintrin.h>
#endif

namespace {

constexpr long LANES = 16;

// Numbers of 32 bits that one register holds.
#ifdef __AVX512F__
constexpr long OWN_LANES = 16;
#elif defined(__AVX__)
constexpr long OWN_LANES = 8;
#else
constexpr long OWN_LANES = 4;
#endif

#if defined(__AVX512F__) || defined(__aarch64__)
constexpr long OWN_REGISTERS = 32;
#else
constexpr long OWN_REGISTERS = 16;
#endif

template <typename T, long N>
struct RegisterOf {
  typedef T Type __attribute__((vector_size(sizeof(T) * N)));
};
template <typename T, long N>
using Register = typename RegisterOf<T, N>::Type;
using OwnFloats = Register<float, OWN_LANES>;
using OwnWords = Register<uint32_t, OWN_LANES>;

// A loop over registers, and one whose counting would cost as much as what it does.
#define UNROLLED _Pragma("GCC unroll 16")
#define UNROLLED_BY_4 _Pragma("GCC unroll 4")

template <typename To, typename From>
inline To same_bits(From from) {
  static_assert(sizeof(To) == sizeof(From), "another size");
  To to;
  std::memcpy(&to, &from, sizeof(to));
  return to;
}

template <typename Own>
inline Own read_own(const void* from) {
  Own x;
  std::memcpy(&x, from, sizeof(x));
  return x;
}

template <typename Own>
inline void write_own(void* to, Own x) {
  std::memcpy(to, &x, sizeof(x));
}

#ifdef __AVX512F__
using Floats = Register<float, LANES>;
using Words = Register<uint32_t, LANES>;
using Pairs = Register<uint64_t, LANES / 2>;

template <typename Vector>
inline Vector read(const void* from) {
  return read_own<Vector>(from);
}

template <typename Vector>
inline void write(void* to, Vector x) {
  write_own(to, x);
}

// Of each lane the first where the comparison held, else the second.
template <typename Mask, typename Vector>
inline Vector choose(Mask held, Vector first, Vector second) {
  return held ? first : second;
}

inline Words widened(const uint16_t* from) {
  return same_bits<Words>(_mm512_cvtepu16_epi32(read_own<__m256i>(from)));
}

// The lower halves.
inline void narrow(uint16_t* to, Words x) {
  write_own(to, __builtin_convertvector(x, Register<uint16_t, LANES>));
}
#else
constexpr long REGISTERS = LANES / OWN_LANES;

template <typename T>
struct Lanes {
  using Own = Register<T, OWN_LANES * 4 / sizeof(T)>;
  Own parts[REGISTERS];
};
using Floats = Lanes<float>;
using Words = Lanes<uint32_t>;
using Pairs = Lanes<uint64_t>;

template <typename To, typename What, size_t... I>
inline To of_registers(What what, std::index_sequence<I...>) {
  return To{{what(I)...}};
}

// A vector whose i-th register is what(i).
template <typename To, typename What>
inline To of_registers(What what) {
  return of_registers<To>(what, std::make_index_sequence<REGISTERS>());
}

template <typename Vector>
inline Vector read(const void* from) {
  using Own = typename Vector::Own;
  return of_registers<Vector>([&](long i) { return read_own<Own>(static_cast<const Own*>(from) + i); });
}

template <typename T>
inline void write(void* to, const Lanes<T>& x) {
  using Own = typename Lanes<T>::Own;
  UNROLLED for (long i = 0; i < REGISTERS; ++i) write_own(static_cast<Own*>(to) + i, x.parts[i]);
}

template <typename To, typename T>
inline To same_bits(const Lanes<T>& x) {
  return of_registers<To>([&](long i) { return (typename To::Own)x.parts[i]; });
}

// As a parameter: what T is, the other one tells.
template <typename T>
struct Same {
  using Type = T;
};

#define BETWEEN(OPERATOR, RESULT)                                                               \
  template <typename T>                                                                         \
  inline Lanes<RESULT> operator OPERATOR(const Lanes<T>& x, const Lanes<T>& y) {                \
    return of_registers<Lanes<RESULT>>([&](long i) { return x.parts[i] OPERATOR y.parts[i]; }); \
  }                                                                                             \
  template <typename T>                                                                         \
  inline Lanes<RESULT> operator OPERATOR(const Lanes<T>& x, typename Same<T>::Type y) {         \
    return of_registers<Lanes<RESULT>>([&](long i) { return x.parts[i] OPERATOR y; });          \
  }                                                                                             \
  template <typename T>                                                                         \
  inline Lanes<RESULT> operator OPERATOR(typename Same<T>::Type x, const Lanes<T>& y) {         \
    return of_registers<Lanes<RESULT>>([&](long i) { return x OPERATOR y.parts[i]; });          \
  }
BETWEEN(+, T)
BETWEEN(-, T)
BETWEEN(*, T)
BETWEEN(/, T)
BETWEEN(&, T)
BETWEEN(|, T)
BETWEEN(<<, T)
BETWEEN(>>, T)
BETWEEN(<, int32_t)
BETWEEN(>, int32_t)
BETWEEN(>=, int32_t)
BETWEEN(==, int32_t)
#undef BETWEEN

template <typename T>
inline Lanes<T> operator-(const Lanes<T>& x) {
  return of_registers<Lanes<T>>([&](long i) { return -x.parts[i]; });
}

template <typename T, typename Other>
inline Lanes<T>& operator+=(Lanes<T>& x, const Other& y) {
  return x = x + y;
}

template <typename T, typename Other>
inline Lanes<T>& operator*=(Lanes<T>& x, const Other& y) {
  return x = x * y;
}

#ifdef __AVX2__
// Of sixteen numbers in two registers, which are below 2^16.
inline OwnWords lower_halves(OwnWords first, OwnWords second) {
  constexpr int EVEN_QUARTERS_FIRST = 0b11011000;
  const auto mixed = _mm256_packus_epi32(same_bits<__m256i>(first), same_bits<__m256i>(second));
  return same_bits<OwnWords>(_mm256_permute4x64_epi64(mixed, EVEN_QUARTERS_FIRST));
}
#endif

template <typename T>
inline Lanes<T> choose(const Lanes<int32_t>& held, const Lanes<T>& first, const Lanes<T>& second) {
  return of_registers<Lanes<T>>(
      [&](long i) { return held.parts[i] ? first.parts[i] : second.parts[i]; });
}

inline Words widened(const uint16_t* from) {
  return of_registers<Words>([&](long i) {
    const auto halves = read_own<Register<uint16_t, OWN_LANES>>(from + i * OWN_LANES);
    return __builtin_convertvector(halves, OwnWords);
  });
}

inline void narrow(uint16_t* to, const Words& x) {
#ifdef __AVX2__
  write_own(to, lower_halves(x.parts[0], x.parts[1]));
#else
  UNROLLED for (long i = 0; i < REGISTERS; ++i)
    write_own(to + i * OWN_LANES, __builtin_convertvector(x.parts[i], Register<uint16_t, OWN_LANES>));
#endif
}
#endif
}  // namespace
