// Token-by-token decoding on a CPU: matrix products with few columns, attention over a cache, layer
// norm. XLA's own products read the weights at half of what the memory gives where there are few
// columns, and each small operation between them costs as much as it computes.
//
// Features come first, as in bart_hk.model: x is [I, N], whose N columns are the rows of a step.
// Weights are float32 or bfloat16; everything is computed and summed in float32. Vectors are those
// of GCC and Clang, so one source serves every processor: it is compiled for the one it runs on.

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <memory>
#include <thread>
#include <vector>

#if defined(__AVX512BF16__)
#include <immintrin.h>
#endif

#include "xla/ffi/api/ffi.h"

namespace ffi = xla::ffi;

namespace {

#if defined(__AVX512F__)
constexpr int kLanes = 16, kColumns = 8;
#elif defined(__AVX__)
constexpr int kLanes = 8, kColumns = 4;
#else
constexpr int kLanes = 4, kColumns = 8;
#endif
constexpr int kVectors = 2;                // of outputs in a tile
constexpr int kWidth = kVectors * kLanes;  // outputs of a tile
constexpr int64_t kSums = 1 << 16;         // of one thread at a time
constexpr int kBlock = 32;                 // inputs that a tile sums before the next tile's turn

typedef float Vector __attribute__((vector_size(kLanes * 4)));
typedef float Anywhere __attribute__((vector_size(kLanes * 4), aligned(4), may_alias));
typedef uint32_t Bits __attribute__((vector_size(kLanes * 4)));
typedef int32_t Signed __attribute__((vector_size(kLanes * 4)));
typedef uint16_t Halves __attribute__((vector_size(kLanes * 2), aligned(2), may_alias));

struct bfloat16 {
  uint16_t bits;
};

inline float value(float x) { return x; }
inline float value(bfloat16 x) {
  uint32_t bits = static_cast<uint32_t>(x.bits) << 16;
  float result;
  std::memcpy(&result, &bits, 4);
  return result;
}

inline Vector load(const float* p) { return *reinterpret_cast<const Anywhere*>(p); }
inline Vector load(const bfloat16* p) {
  Bits bits = __builtin_convertvector(*reinterpret_cast<const Halves*>(p), Bits) << 16;
  return reinterpret_cast<Vector>(bits);
}
inline Vector splat(float x) { return x - Vector{}; }  // adding 0 would turn -0 into 0
inline void store(float* p, Vector x) { *reinterpret_cast<Anywhere*>(p) = x; }

inline Vector exp(Vector x) {
  auto vanishes = x < -87.0f;
  x = vanishes ? Vector{} : x;
  x = x > 88.0f ? splat(88.0f) : x;
  const float shift = 12582912.0f;  // 1.5 * 2 ** 23: what is added to it is rounded
  Vector n = (x * 1.44269504088896341f + shift) - shift;
  Vector r = x - n * 0.693145751953125f - n * 1.42860682030941723e-6f;
  Vector sum = r * (1.0f / 5040) + (1.0f / 720);
  sum = sum * r + (1.0f / 120);
  sum = sum * r + (1.0f / 24);
  sum = sum * r + (1.0f / 6);
  sum = sum * r + 0.5f;
  sum = sum * r + 1.0f;
  sum = sum * r + 1.0f;
  Signed power = (__builtin_convertvector(n, Signed) + 127) << 23;
  return vanishes ? Vector{} : sum * reinterpret_cast<Vector>(power);
}

// Abramowitz and Stegun, Handbook of Mathematical Functions, 7.1.26: within 1.5e-7 of erf.
inline Vector erf(Vector x) {
  Vector size = x < 0.0f ? -x : x;
  Vector t = 1.0f / (1.0f + 0.3275911f * size);
  Vector sum = 1.061405429f * t - 1.453152027f;
  sum = sum * t + 1.421413741f;
  sum = sum * t - 0.284496736f;
  sum = sum * t + 0.254829592f;
  Vector result = 1.0f - sum * t * exp(-size * size);
  return x < 0.0f ? -result : result;
}

inline Vector gelu(Vector x) { return 0.5f * x * (1.0f + erf(x * 0.70710678118654752f)); }

// How sums are made of products: of floats, or of pairs of bfloat16 that a float's place holds, where
// the processor multiplies them.
struct Floats {
  static constexpr int kInputs = 1;
  static Vector add(Vector sum, Vector a, Vector b) { return sum + a * b; }
};
#if defined(__AVX512BF16__)
constexpr bool kHasPairs = true;
struct Pairs {
  static constexpr int kInputs = 2;
  static Vector add(Vector sum, Vector a, Vector b) {
    return reinterpret_cast<Vector>(
        _mm512_dpbf16_ps(reinterpret_cast<__m512>(sum), reinterpret_cast<__m512bh>(a),
                         reinterpret_cast<__m512bh>(b)));
  }
};
#else
constexpr bool kHasPairs = false;
using Pairs = Floats;
#endif

inline uint32_t rounded(float x) {  // to the nearest bfloat16, in the lower bits
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  return x == x ? (bits + 0x7fff + (bits >> 16 & 1)) >> 16 : 0x7fc0;
}

inline Bits widened(const bfloat16* p) {
  return __builtin_convertvector(*reinterpret_cast<const Halves*>(p), Bits);
}
inline void store_pairs(float* to, const bfloat16* first, const bfloat16* second) {
  store(to, reinterpret_cast<Vector>(widened(first) | widened(second) << 16));
}
inline void store_pairs(float*, const float*, const float*) {}  // there are none

// --- Threads -----------------------------------------------------------------------------------

// Runs work(0) ... work(pieces - 1) on XLA's threads and this one.
template <typename Work>
void in_parallel(ffi::ThreadPool& pool, int64_t pieces, const Work& work) {
  struct Shared {
    std::atomic<int64_t> next{0}, finished{0};
  };
  int64_t helpers = std::min<int64_t>(pool.num_threads(), pieces) - 1;
  if (helpers < 1) {
    for (int64_t i = 0; i < pieces; ++i) work(i);
    return;
  }
  auto shared = std::make_shared<Shared>();
  // A helper that comes late finds nothing left, and does not touch `work`, which is gone by then.
  auto take = [shared, pieces, &work] {
    for (int64_t i; (i = shared->next.fetch_add(1)) < pieces;) {
      work(i);
      shared->finished.fetch_add(1, std::memory_order_release);
    }
  };
  for (int64_t i = 0; i < helpers; ++i) pool.Schedule(decltype(take)(take));
  take();
  for (int spins = 0; shared->finished.load(std::memory_order_acquire) < pieces; ++spins) {
    if (spins > 20000) std::this_thread::yield();
  }
}

// Memory of a thread that is kept from call to call.
float* scratch(int which, int64_t size) {
  thread_local std::vector<float> kept[4];
  if (static_cast<int64_t>(kept[which].size()) < size) kept[which].resize(size);
  return kept[which].data();
}

// --- Products with weights [I, O] --------------------------------------------------------------

// sums[c, o] += w[i, o] x[i, c] for kWidth outputs and C columns; the inputs after these are
// fetched meanwhile.
template <typename Op, int C, typename T>
inline void tile(const T* w, int64_t stride, int64_t inputs, int64_t ahead, const float* x,
                 int64_t x_input, int64_t x_column, float* sums, int64_t sums_stride) {
  Vector sum[kVectors][C];
  for (int c = 0; c < C; ++c)
    for (int v = 0; v < kVectors; ++v) sum[v][c] = load(sums + c * sums_stride + v * kLanes);
  for (int64_t i = 0; i < inputs; ++i, w += stride, x += x_input) {
    Vector weights[kVectors];
    for (int v = 0; v < kVectors; ++v) weights[v] = load(w + v * kLanes);
    if (ahead) {
      for (size_t byte = 0; byte < kWidth * sizeof(T); byte += 64)
        __builtin_prefetch(reinterpret_cast<const char*>(w + ahead) + byte, 0, 2);
    }
    for (int c = 0; c < C; ++c)
      for (int v = 0; v < kVectors; ++v)
        sum[v][c] = Op::add(sum[v][c], weights[v], splat(x[c * x_column]));
  }
  for (int c = 0; c < C; ++c)
    for (int v = 0; v < kVectors; ++v) store(sums + c * sums_stride + v * kLanes, sum[v][c]);
}

template <typename Op, typename T, typename... Arguments>
inline void tile_of(int64_t columns, const T* w, Arguments... arguments) {
  switch (columns) {
    case 1: return tile<Op, 1>(w, arguments...);
    case 2: return tile<Op, 2>(w, arguments...);
    case 3: return tile<Op, 3>(w, arguments...);
    case 4: return tile<Op, 4>(w, arguments...);
    case 5: return tile<Op, 5>(w, arguments...);
    case 6: return tile<Op, 6>(w, arguments...);
    case 7: return tile<Op, 7>(w, arguments...);
    default: return tile<Op, 8>(w, arguments...);
  }
}

inline int64_t whole_tiles(int64_t outputs) { return (outputs + kWidth - 1) / kWidth * kWidth; }

// A tile of w in a place of its own: `count` inputs, or pairs of them, of `width` outputs.
template <typename Op, typename T>
inline void copy_tile(const T* w, int64_t stride, int64_t count, int64_t width, int64_t ahead,
                      float* copied) {
  for (int64_t i = 0; i < count; ++i) {
    for (int k = 0; k < Op::kInputs; ++k) {
      const T* from = w + (i * Op::kInputs + k) * stride + ahead;
      for (size_t byte = 0; ahead && byte < kWidth * sizeof(T); byte += 64)
        __builtin_prefetch(reinterpret_cast<const char*>(from) + byte, 0, 2);
    }
    const T* from = w + i * Op::kInputs * stride;
    float* to = copied + i * kWidth;
    T padded[Op::kInputs][kWidth];
    if (width < kWidth) {
      std::memset(padded, 0, sizeof(padded));
      for (int k = 0; k < Op::kInputs; ++k)
        std::memcpy(padded[k], from + k * stride, width * sizeof(T));
    }
    for (int v = 0; v < kVectors; ++v) {
      const T* first = width < kWidth ? padded[0] : from;
      const T* second = width < kWidth ? padded[Op::kInputs - 1] : from + stride;
      if constexpr (Op::kInputs == 2)
        store_pairs(to + v * kLanes, first + v * kLanes, second + v * kLanes);
      else
        store(to + v * kLanes, load(first + v * kLanes));
    }
  }
}

// sums[c, o] = sum over i of w[i, o] x[i, c], for `outputs` outputs; the rows of `sums` have room
// for whole tiles. With pairs, x holds them and `inputs` counts them.
template <typename Op, typename T>
void product(const T* w, int64_t stride, int64_t inputs, int64_t outputs, const float* x,
             int64_t x_input, int64_t x_column, int64_t columns, float* sums,
             int64_t sums_stride) {
  for (int64_t c = 0; c < columns; ++c)
    std::fill_n(sums + c * sums_stride, whole_tiles(outputs), 0.0f);
  alignas(64) float copied[kBlock * kWidth];
  for (int64_t first = 0; first < inputs; first += kBlock) {
    int64_t count = std::min<int64_t>(kBlock, inputs - first);
    for (int64_t o = 0; o < outputs; o += kWidth) {
      const T* block = w + first * Op::kInputs * stride + o;
      int64_t ahead = first + 2 * kBlock <= inputs ? kBlock * Op::kInputs * stride : 0;
      int64_t width = std::min<int64_t>(kWidth, outputs - o);
      auto tiles = [&](auto* from, int64_t from_stride, int64_t next) {
        for (int64_t c = 0; c < columns; c += kColumns) {
          tile_of<Op>(std::min<int64_t>(kColumns, columns - c), from, from_stride, count,
                      c ? 0 : next, x + first * x_input + c * x_column, x_input, x_column,
                      sums + c * sums_stride + o, sums_stride);
        }
      };
      // Copied are pairs; where nothing beyond the last output may be read; and where columns take
      // several turns, since rows that lie a power of two apart push each other out of the cache.
      if (Op::kInputs == 1 && width == kWidth && columns <= kColumns) {
        tiles(block, stride, ahead);
      } else {
        copy_tile<Op>(block, stride, count, width, width == kWidth ? ahead : 0, copied);
        tiles(static_cast<const float*>(copied), kWidth, 0);
      }
    }
  }
}

struct Bias {
  const void* data;
  bool half;
  Vector at(int64_t o) const {
    return half ? load(static_cast<const bfloat16*>(data) + o)
                : load(static_cast<const float*>(data) + o);
  }
  float one(int64_t o) const {
    return half ? value(static_cast<const bfloat16*>(data)[o])
                : static_cast<const float*>(data)[o];
  }
};

// sums[o, c] += w[i, o] x[i, c] for R outputs and G vectors of columns.
template <typename Op, int R, int G>
inline void wide_tile(const float* w, int64_t stride, int64_t inputs, const float* x,
                      int64_t columns, float* sums) {
  Vector sum[R][G];
  for (int r = 0; r < R; ++r)
    for (int v = 0; v < G; ++v) sum[r][v] = load(sums + r * columns + v * kLanes);
  for (int64_t i = 0; i < inputs; ++i, w += stride, x += columns) {
    Vector row[G];
    for (int v = 0; v < G; ++v) row[v] = load(x + v * kLanes);
    for (int r = 0; r < R; ++r)
      for (int v = 0; v < G; ++v) sum[r][v] = Op::add(sum[r][v], row[v], splat(w[r]));
  }
  for (int r = 0; r < R; ++r)
    for (int v = 0; v < G; ++v) store(sums + r * columns + v * kLanes, sum[r][v]);
}

// `linear_input_first` where vectors hold columns: their number is a multiple of kLanes, the
// outputs' one of kWidth.
template <typename Op, typename T>
void linear_of_vectors(ffi::ThreadPool& pool, const T* w, Bias bias, const float* x, float* y,
                       int64_t inputs, int64_t outputs, int64_t columns, bool with_gelu) {
  constexpr int kGroup = 8;  // outputs whose sums are in registers together
  int64_t tiles = outputs / kWidth;
  int64_t turns = std::max(pool.num_threads() * 2, outputs * columns / kSums);
  int64_t pieces = std::min(tiles, turns);
  in_parallel(pool, pieces, [&](int64_t piece) {
    int64_t start = tiles * piece / pieces * kWidth, end = tiles * (piece + 1) / pieces * kWidth;
    for (int64_t o = start; o < end; ++o) std::fill_n(y + o * columns, columns, bias.one(o));
    alignas(64) float copied[kBlock * kWidth];
    bool copying = sizeof(T) < 4 || outputs % 1024 == 0;
    for (int64_t first = 0; first < inputs; first += kBlock) {
      int64_t count = std::min<int64_t>(kBlock, inputs - first);
      int64_t ahead = first + 2 * kBlock <= inputs ? kBlock * Op::kInputs * outputs : 0;
      for (int64_t o = start; o < end; o += kWidth) {
        const T* block = w + first * Op::kInputs * outputs + o;
        const float* from = reinterpret_cast<const float*>(block);
        if (copying) {
          copy_tile<Op>(block, outputs, count, kWidth, ahead, copied);
          from = copied;
        } else {
          for (int64_t i = 0; ahead && i < count; ++i) {
            for (size_t byte = 0; byte < kWidth * sizeof(T); byte += 64)
              __builtin_prefetch(reinterpret_cast<const char*>(block + i * outputs + ahead) + byte,
                                 0, 2);
          }
        }
        int64_t stride = copying ? kWidth : outputs;
        for (int64_t c = 0; c < columns;) {
          const float* rows = x + first * columns + c;
          float* sums = y + o * columns + c;
          bool two = c + 2 * kLanes <= columns;
          for (int r = 0; r < kWidth; r += kGroup) {
            if (two)
              wide_tile<Op, kGroup, 2>(from + r, stride, count, rows, columns, sums + r * columns);
            else
              wide_tile<Op, kGroup, 1>(from + r, stride, count, rows, columns, sums + r * columns);
          }
          c += two ? 2 * kLanes : kLanes;
        }
      }
    }
    for (int64_t i = start * columns; with_gelu && i < end * columns; i += kLanes)
      store(y + i, gelu(load(y + i)));
  });
}

template <typename Op, typename T>
void linear_input_first(ffi::ThreadPool& pool, const T* w, Bias bias, const float* x, float* y,
                        int64_t inputs, int64_t outputs, int64_t columns, bool with_gelu) {
  if (columns % kLanes == 0 && outputs % kWidth == 0)
    return linear_of_vectors<Op>(pool, w, bias, x, y, inputs, outputs, columns, with_gelu);
  int64_t tiles = whole_tiles(outputs) / kWidth;
  // Two turns for each thread, or as many as keep the sums in the cache.
  int64_t turns = std::max(pool.num_threads() * 2, outputs * columns / kSums);
  int64_t pieces = std::min(tiles, turns);
  in_parallel(pool, pieces, [&](int64_t piece) {
    int64_t first = tiles * piece / pieces * kWidth;
    int64_t last = std::min(outputs, tiles * (piece + 1) / pieces * kWidth);
    int64_t stride = whole_tiles(last - first);
    float* sums = scratch(0, stride * columns);
    product<Op>(w + first, outputs, inputs, last - first, x, columns, 1, columns, sums, stride);
    for (int64_t c = 0; c < columns; ++c) {
      float* row = sums + c * stride;
      int64_t o = 0;
      for (; o + kLanes <= last - first; o += kLanes) {
        Vector sum = load(row + o) + bias.at(first + o);
        store(row + o, with_gelu ? gelu(sum) : sum);
      }
      if (o < last - first) {
        for (int64_t rest = o; rest < last - first; ++rest) row[rest] += bias.one(first + rest);
        if (with_gelu) store(row + o, gelu(load(row + o)));
      }
    }
    for (int64_t o = first; o < last; ++o)
      for (int64_t c = 0; c < columns; ++c) y[o * columns + c] = sums[c * stride + o - first];
  });
}

// --- Products with weights [O, I] --------------------------------------------------------------

// P consecutive floats, over and over; P is 1, 2 or kLanes.
template <int P>
inline Vector repeated(const float* p) {
  if constexpr (P == 1) {
    return splat(*p);
  } else if constexpr (P == 2) {
    typedef uint64_t Pairs __attribute__((vector_size(kLanes * 4)));
    uint64_t pair;
    std::memcpy(&pair, p, sizeof(pair));
    return reinterpret_cast<Vector>(Pairs{} + pair);
  } else {
    return load(p);
  }
}

// y[o, c] for R rows of w; x is packed: a vector holds C = kLanes / P columns of P inputs each. The
// rows after these are fetched meanwhile. With `copied`, rows are converted to float32 a piece at a
// time.
template <typename Op, int P, int G, int R, typename T>
void rows_of(const T* w, int64_t inputs, int64_t ahead, bool copied, const Vector* x, Bias bias,
             int64_t row, int64_t column, int64_t columns, float* y) {
  constexpr int kPiece = 128;  // inputs
  alignas(64) float copies[R * kPiece];
  Vector sum[R][G] = {};
  for (int64_t first = 0; first < inputs; first += kPiece) {
    int64_t count = std::min<int64_t>(kPiece, inputs - first);
    int64_t groups = (count + P - 1) / P;
    for (int r = 0; r < R; ++r) {
      const T* from = w + r * inputs + first;
      for (int64_t i = 0; ahead && i < count; i += 64 / sizeof(T))
        __builtin_prefetch(from + i + ahead, 0, 2);
      if (!copied) continue;
      float* to = copies + r * kPiece;
      int64_t i = 0;
      for (; i + kLanes <= count; i += kLanes) store(to + i, load(from + i));
      for (; i < groups * P; ++i) to[i] = i < count ? value(from[i]) : 0.0f;
    }
    int64_t stride = copied ? kPiece : inputs;
    const float* rows = copied ? copies : reinterpret_cast<const float*>(w + first);
    const Vector* vectors = x + first / P * G;
    for (int64_t g = 0; g < groups; ++g) {
      for (int r = 0; r < R; ++r) {
        Vector weights = repeated<P>(rows + r * stride + g * P);
        for (int v = 0; v < G; ++v) sum[r][v] = Op::add(sum[r][v], weights, vectors[g * G + v]);
      }
    }
  }
  constexpr int C = kLanes / P;
  for (int r = 0; r < R; ++r) {
    float offset = bias.one(row + r);
    for (int v = 0; v < G; ++v) {
      float lanes[kLanes];
      std::memcpy(lanes, &sum[r][v], sizeof(lanes));
      int64_t first = column + v * C, count = std::min<int64_t>(C, columns - first);
      for (int64_t c = 0; c < count; ++c) {
        float total = offset;
        for (int p = 0; p < P; ++p) total += lanes[c * P + p];
        y[(row + r) * columns + first + c] = total;
      }
    }
  }
}

// kRows rows of w at a time, and G vectors of columns.
template <typename Op, int P, int G, int kRows, typename T>
void linear_packed(ffi::ThreadPool& pool, const T* w, Bias bias, const float* x, float* y,
                   int64_t inputs, int64_t outputs, int64_t columns) {
  constexpr int C = kLanes / P;
  int64_t groups = (inputs + P - 1) / P, parts = (columns + C * G - 1) / (C * G);
  // Columns are packed in parts of G vectors, which the inputs' groups follow.
  float* packed = scratch(1, parts * groups * G * kLanes + kLanes);
  packed += (64 - reinterpret_cast<uintptr_t>(packed) % 64) % 64 / 4;
  std::memset(packed, 0, parts * groups * G * kLanes * sizeof(float));
  for (int64_t i = 0; i < inputs; ++i) {
    for (int64_t c = 0; c < columns; ++c) {
      int64_t part = c / (C * G), v = c / C % G, lane = c % C * P + i % P;
      packed[((part * groups + i / P) * G + v) * kLanes + lane] = x[i * columns + c];
    }
  }
  const Vector* vectors = reinterpret_cast<const Vector*>(packed);
  int64_t pieces = std::min<int64_t>(outputs / kRows + 1, pool.num_threads() * 8);
  // Rows a power of two apart push each other out of the cache, where there are several vectors.
  bool copied = sizeof(T) < 4 || inputs % P || (columns > kLanes && inputs % 1024 == 0);
  in_parallel(pool, pieces, [&](int64_t piece) {
    int64_t blocks = (outputs + kRows - 1) / kRows;
    int64_t first = blocks * piece / pieces, last = blocks * (piece + 1) / pieces;
    for (int64_t block = first; block < last; ++block) {
      int64_t row = block * kRows, count = std::min<int64_t>(kRows, outputs - row);
      int64_t ahead = row + 2 * kRows <= outputs ? kRows * inputs : 0;
      const T* rows = w + row * inputs;
      for (int64_t part = 0; part < parts; ++part, ahead = 0) {
        const Vector* of_part = vectors + part * groups * G;
        int64_t column = part * C * G;
        if (count == kRows) {
          rows_of<Op, P, G, kRows>(rows, inputs, ahead, copied, of_part, bias, row, column, columns, y);
        } else {
          for (int64_t r = 0; r < count; ++r)
            rows_of<Op, P, G, 1>(rows + r * inputs, inputs, 0, copied, of_part, bias, row + r, column,
                             columns, y);
        }
      }
    }
  });
}

template <typename Op, typename T>
void linear_output_first(ffi::ThreadPool& pool, const T* w, Bias bias, const float* x, float* y,
                         int64_t inputs, int64_t outputs, int64_t columns) {
  auto run = [&](auto packed) { packed(pool, w, bias, x, y, inputs, outputs, columns); };
  if (columns > kLanes) return run(linear_packed<Op, 1, 2, 8, T>);
  if (columns > kLanes / 2) return run(linear_packed<Op, 1, 1, 8, T>);
  if (columns > kLanes / 4) return run(linear_packed<Op, 2, 1, 8, T>);
  if (columns > 2) return run(linear_packed<Op, kLanes, 4, 4, T>);
  if (columns > 1) return run(linear_packed<Op, kLanes, 2, 8, T>);
  return run(linear_packed<Op, kLanes, 1, 8, T>);
}

// --- Entry points ------------------------------------------------------------------------------

int64_t columns_of(const ffi::AnyBuffer& x) {
  int64_t columns = 1;
  for (size_t i = 1; i < x.dimensions().size(); ++i) columns *= x.dimensions()[i];
  return columns;
}

// x [I, ...], w [I, O] or, with `output_first`, [O, I], b [O] -> y [O, ...]
ffi::Error Linear(ffi::ThreadPool pool, ffi::AnyBuffer x, ffi::AnyBuffer w, ffi::AnyBuffer b,
                  ffi::Result<ffi::AnyBuffer> y, bool output_first, bool with_gelu) {
  int64_t inputs = x.dimensions()[0], outputs = y->dimensions()[0], columns = columns_of(x);
  Bias bias{b.untyped_data(), b.element_type() == ffi::BF16};
  const float* from = x.typed_data<float>();
  float* to = y->typed_data<float>();
  auto run = [&](auto op, auto* weights, int64_t count) {
    using Op = decltype(op);
    if (output_first)
      linear_output_first<Op>(pool, weights, bias, from, to, count, outputs, columns);
    else
      linear_input_first<Op>(pool, weights, bias, from, to, count, outputs, columns, with_gelu);
  };
  if (w.element_type() == ffi::F32) {
    run(Floats(), static_cast<const float*>(w.untyped_data()), inputs);
  } else if (!kHasPairs || inputs % 2) {
    run(Floats(), static_cast<const bfloat16*>(w.untyped_data()), inputs);
  } else {
    float* pairs = scratch(3, inputs / 2 * columns);
    for (int64_t i = 0; i < inputs / 2; ++i) {
      for (int64_t c = 0; c < columns; ++c) {
        const float* first = from + 2 * i * columns + c;
        uint32_t pair = rounded(*first) | rounded(first[columns]) << 16;
        std::memcpy(pairs + i * columns + c, &pair, 4);
      }
    }
    from = pairs;
    if (output_first)  // a row's neighbours are pairs as they are
      run(Pairs(), static_cast<const float*>(w.untyped_data()), inputs / 2);
    else
      run(Pairs(), static_cast<const bfloat16*>(w.untyped_data()), inputs / 2);
  }
  return ffi::Error::Success();
}

inline void assign(float* to, float x) { *to = x; }
inline void assign(bfloat16* to, float x) { to->bits = static_cast<uint16_t>(rounded(x)); }

// query [H K, B, W], key [B, H, K, S], value [B, H, S, K], mask bool [B, W, S] or [B, 1, S] -> mixed
// [H K, B, W], weights [B, H, W, S] or nothing [0]. Slots beyond those `used` are neither read nor
// attended. What a step adds, [H K, B, W] each, is first written to the last W of the used ones.
template <typename T>
void attend(ffi::ThreadPool& pool, const float* query, T* key, T* values, const bool* mask,
            int64_t mask_beams, int64_t used, float* mixed, float* weights, int64_t batch,
            int64_t heads, int64_t beams, int64_t width, int64_t slots,
            const float* new_key = nullptr, const float* new_value = nullptr) {
  int64_t all = batch * beams;
  int64_t reading = std::min(slots, whole_tiles(used)), stride = whole_tiles(slots);
  int64_t pairs = batch * heads;
  int64_t pieces = std::min<int64_t>(pairs, pool.num_threads() * 4);
  in_parallel(pool, pieces, [&](int64_t piece) {
    float* scores = scratch(0, beams * stride);
    float* sums = scratch(2, beams * whole_tiles(width));
    for (int64_t pair = pairs * piece / pieces; pair < pairs * (piece + 1) / pieces; ++pair) {
      int64_t b = pair / heads, h = pair % heads;
      for (int64_t k = 0; new_key && k < width; ++k) {
        for (int64_t w = 0; w < beams; ++w) {
          int64_t from = (h * width + k) * all + b * beams + w, slot = used - beams + w;
          assign(key + (pair * width + k) * slots + slot, new_key[from]);
          assign(values + (pair * slots + slot) * width + k, new_value[from]);
        }
      }
      product<Floats>(key + pair * width * slots, slots, width, reading, query + h * width * all + b * beams,
              all, 1, beams, scores, stride);
      for (int64_t w = 0; w < beams; ++w) {
        float* row = scores + w * stride;
        const bool* may = mask + (b * mask_beams + (mask_beams == 1 ? 0 : w)) * slots;
        const float lowest = -std::numeric_limits<float>::max();
        for (int64_t i = 0; i < used; ++i) row[i] = may[i] ? row[i] : lowest;
        std::fill(row + used, row + whole_tiles(used), -std::numeric_limits<float>::infinity());
        Vector most = load(row);
        for (int64_t s = kLanes; s < whole_tiles(used); s += kLanes) {
          Vector other = load(row + s);
          most = other > most ? other : most;
        }
        float greatest = most[0];
        for (int lane = 1; lane < kLanes; ++lane) greatest = std::max(greatest, most[lane]);
        Vector total = {};
        for (int64_t s = 0; s < whole_tiles(used); s += kLanes) {
          Vector weight = exp(load(row + s) - greatest);
          store(row + s, weight);
          total += weight;
        }
        float sum = 0.0f;
        for (int lane = 0; lane < kLanes; ++lane) sum += total[lane];
        for (int64_t s = 0; s < whole_tiles(used); s += kLanes) store(row + s, load(row + s) / sum);
        if (weights) {
          float* out = weights + (pair * beams + w) * slots;
          std::copy_n(row, used, out);
          std::fill(out + used, out + slots, 0.0f);
        }
      }
      product<Floats>(values + pair * slots * width, width, used, width, scores, 1, stride, beams, sums,
              whole_tiles(width));
      for (int64_t k = 0; k < width; ++k)
        for (int64_t w = 0; w < beams; ++w)
          mixed[(h * width + k) * all + b * beams + w] = sums[w * whole_tiles(width) + k];
    }
  });
}

ffi::Error Attend(ffi::ThreadPool pool, ffi::AnyBuffer query, ffi::AnyBuffer key,
                  ffi::AnyBuffer value, ffi::Buffer<ffi::PRED> mask,
                  ffi::Result<ffi::AnyBuffer> mixed, ffi::Result<ffi::AnyBuffer> weights) {
  auto shape = key.dimensions();
  int64_t batch = shape[0], heads = shape[1], width = shape[2], slots = shape[3];
  int64_t beams = query.dimensions()[2], mask_beams = mask.dimensions()[1];
  float* kept = weights->element_count() ? weights->typed_data<float>() : nullptr;
  auto run = [&](auto* keys) {
    auto* values = static_cast<decltype(keys)>(value.untyped_data());
    attend(pool, query.typed_data<float>(), keys, values, mask.typed_data(), mask_beams, slots,
           mixed->typed_data<float>(), kept, batch, heads, beams, width, slots);
  };
  if (key.element_type() == ffi::BF16)
    run(static_cast<bfloat16*>(key.untyped_data()));
  else
    run(static_cast<float*>(key.untyped_data()));
  return ffi::Error::Success();
}

// `attend` over a cache that this step's keys and values are written to, in place.
ffi::Error Remember(ffi::ThreadPool pool, ffi::Buffer<ffi::F32> query,
                    ffi::Buffer<ffi::F32> new_key, ffi::Buffer<ffi::F32> new_value,
                    ffi::AnyBuffer, ffi::AnyBuffer, ffi::Buffer<ffi::PRED> mask,
                    ffi::Buffer<ffi::S32> step, ffi::Result<ffi::Buffer<ffi::F32>> mixed,
                    ffi::Result<ffi::AnyBuffer> key, ffi::Result<ffi::AnyBuffer> value) {
  auto shape = key->dimensions();
  int64_t batch = shape[0], heads = shape[1], width = shape[2], slots = shape[3];
  int64_t beams = query.dimensions()[2], used = (step.typed_data()[0] + 1) * beams;
  if (used > slots) return ffi::Error::InvalidArgument("there is no room for this step");
  auto run = [&](auto* keys) {
    auto* values = static_cast<decltype(keys)>(value->untyped_data());
    attend(pool, query.typed_data(), keys, values, mask.typed_data(), mask.dimensions()[1], used,
           mixed->typed_data(), nullptr, batch, heads, beams, width, slots, new_key.typed_data(),
           new_value.typed_data());
  };
  if (key->element_type() == ffi::BF16)
    run(static_cast<bfloat16*>(key->untyped_data()));
  else
    run(static_cast<float*>(key->untyped_data()));
  return ffi::Error::Success();
}

// Layer norm of x + y over the first axis: x, y [D, ...] or y [0], scale, offset [D].
ffi::Error AddNorm(ffi::AnyBuffer x, ffi::AnyBuffer y, ffi::Buffer<ffi::F32> scale,
                   ffi::Buffer<ffi::F32> offset, ffi::Result<ffi::AnyBuffer> out, float epsilon) {
  int64_t width = x.dimensions()[0], columns = columns_of(x);
  const float* a = x.typed_data<float>();
  const float* b = y.element_count() ? y.typed_data<float>() : nullptr;
  float* to = out->typed_data<float>();
  float* mean = scratch(0, 2 * columns);
  float* factor = mean + columns;
  std::fill_n(mean, 2 * columns, 0.0f);
  for (int64_t d = 0; d < width; ++d) {
    float* row = to + d * columns;
    for (int64_t c = 0; c < columns; ++c) row[c] = a[d * columns + c] + (b ? b[d * columns + c] : 0);
    for (int64_t c = 0; c < columns; ++c) mean[c] += row[c];
  }
  for (int64_t c = 0; c < columns; ++c) mean[c] /= static_cast<float>(width);
  for (int64_t d = 0; d < width; ++d) {
    const float* row = to + d * columns;
    for (int64_t c = 0; c < columns; ++c) factor[c] += (row[c] - mean[c]) * (row[c] - mean[c]);
  }
  for (int64_t c = 0; c < columns; ++c)
    factor[c] = 1.0f / std::sqrt(factor[c] / static_cast<float>(width) + epsilon);
  for (int64_t d = 0; d < width; ++d) {
    float* row = to + d * columns;
    float by = scale.typed_data()[d], plus = offset.typed_data()[d];
    for (int64_t c = 0; c < columns; ++c) row[c] = (row[c] - mean[c]) * factor[c] * by + plus;
  }
  return ffi::Error::Success();
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(bart_hk_linear, Linear,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Ret<ffi::AnyBuffer>()
                                  .Attr<bool>("output_first")
                                  .Attr<bool>("gelu"));

XLA_FFI_DEFINE_HANDLER_SYMBOL(bart_hk_attend, Attend,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::Buffer<ffi::PRED>>()
                                  .Ret<ffi::AnyBuffer>()
                                  .Ret<ffi::AnyBuffer>());

XLA_FFI_DEFINE_HANDLER_SYMBOL(bart_hk_remember, Remember,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::Buffer<ffi::PRED>>()
                                  .Arg<ffi::Buffer<ffi::S32>>()
                                  .Ret<ffi::Buffer<ffi::F32>>()
                                  .Ret<ffi::AnyBuffer>()
                                  .Ret<ffi::AnyBuffer>());

XLA_FFI_DEFINE_HANDLER_SYMBOL(bart_hk_add_norm, AddNorm,
                              ffi::Ffi::Bind()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Ret<ffi::AnyBuffer>()
                                  .Attr<float>("epsilon"));
