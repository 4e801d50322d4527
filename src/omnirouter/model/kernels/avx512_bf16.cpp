// The experts' two layers and their gradients in bfloat16, for processors with AVX-512 BF16.
// `avx512_bf16.py` compiles and calls this; `grouped_mlp_reference` defines what it computes.
//
// The few frames an expert has in a batch give its weights little to do, so the time goes into
// bringing weights from memory. Here the next ones are fetched while the present ones are
// multiplied; float32 weights are rounded to bfloat16 on the way, without a copy in memory, and
// their gradients are written past the caches, in float32.
//
// A product is made of tiles of at most TALL rows and WIDE columns. Two neighbours of the summed
// dimension K are one 32-bit word, as the processor's dot product takes them:
//   words  [K / 2][columns]  what a tile reads of its right side (for gradients of weights, where
//                            rows are what is summed, of both sides)
//   rows   [rows][K]         of its left side: plain bfloat16
// A step is the distance from one row, or one row of words, to the next, in elements. Every number
// is computed by one thread in one order: results do not depend on the number of threads.
// Letters: A frames sorted by expert, N experts, D model width, F feed-forward width.

#include <immintrin.h>
#include <omp.h>
#include <stdint.h>
#include <string.h>

namespace {

constexpr int64_t TALL = 13;    // rows of a tile, whose sums fill 26 registers of 32
constexpr int64_t WIDE = 32;    // columns of a tile, two registers
constexpr int64_t GROUP = 128;  // columns that are worked on together
constexpr int64_t DEEP = 512;   // of the summed dimension, at a time
constexpr int64_t MANY = 512;   // rows, at a time; even
constexpr int64_t STRIP = 512;  // hidden units whose weights' gradients are made together
constexpr int64_t PADS = 16;    // words too many in a row, that rows do not share cache sets
constexpr int64_t RUN = 8;      // items of work a thread takes at once: it has fetched the next

constexpr int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
constexpr int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }
constexpr int64_t parts(int64_t whole, int64_t part) { return (whole + part - 1) / part; }

// Memory to be fetched meanwhile: `left` runs of `run` bytes, each `stride` bytes after the other.
struct Ahead {
  const char *at, *end;
  int64_t run, stride, left;

  Ahead(const void* first, int64_t run, int64_t stride, int64_t runs)
      : at((const char*)first), end(at + run), run(run), stride(stride), left(runs) {}
};

enum Write { SET, ADD, STREAM };  // STREAM: past the caches

// sums[M][WIDE] = left times right over `pairs` words. Steps in bytes. If PAIRED, the left side is
// words too.
template <int M, bool PAIRED>
__attribute__((noinline)) void tile(const char* left, int64_t left_step, const char* right,
                                    int64_t right_step, int64_t pairs, float* sums,
                                    int64_t sums_step, Write write, Ahead& ahead) {
  constexpr int BASES = PAIRED ? 1 : (M + 3) / 4;  // pointers to every fourth row
  const char* base[BASES];
  for (int b = 0; b < BASES; ++b) base[b] = left + 4 * b * left_step;
  const int64_t thrice = 3 * left_step;
  const char *at = ahead.at, *end = ahead.left > 0 ? ahead.end : nullptr;
  __m512 sum[M][2];
#pragma GCC unroll 16
  for (int m = 0; m < M; ++m)
    for (int v = 0; v < 2; ++v)
      sum[m][v] =
          write == ADD ? _mm512_loadu_ps(sums + m * sums_step + 16 * v) : _mm512_setzero_ps();
  for (int64_t i = 0; i < pairs; ++i) {
    const __m512bh low = (__m512bh)_mm512_loadu_si512(right);
    const __m512bh high = (__m512bh)_mm512_loadu_si512(right + 64);
    right += right_step;
    if (end) {
      _mm_prefetch(at, _MM_HINT_T1);
      at += 64;
      if (at == end) {
        at += ahead.stride - ahead.run;
        end = --ahead.left > 0 ? at + ahead.run : nullptr;
      }
    }
#pragma GCC unroll 16
    for (int m = 0; m < M; ++m) {
      const int rest = m % 4;
      const char* row = PAIRED      ? base[0] + 4 * m
                        : rest == 3 ? base[m / 4] + thrice
                                    : base[m / 4] + rest * left_step;
      int word;
      memcpy(&word, row, sizeof word);
      const __m512bh same = (__m512bh)_mm512_set1_epi32(word);
      sum[m][0] = _mm512_dpbf16_ps(sum[m][0], same, low);
      sum[m][1] = _mm512_dpbf16_ps(sum[m][1], same, high);
    }
#pragma GCC unroll 4
    for (int b = 0; b < BASES; ++b) base[b] += PAIRED ? left_step : 4;
  }
  ahead.at = at;
  ahead.end = end;
#pragma GCC unroll 16
  for (int m = 0; m < M; ++m)
    for (int v = 0; v < 2; ++v) {
      float* to = sums + m * sums_step + 16 * v;
      if (write == STREAM) _mm512_stream_ps(to, sum[m][v]);
      else _mm512_storeu_ps(to, sum[m][v]);
    }
}

using Tile = void (*)(const char*, int64_t, const char*, int64_t, int64_t, float*, int64_t, Write,
                      Ahead&);
template <bool P>
constexpr Tile TILES[TALL + 1] = {nullptr,     tile<1, P>,  tile<2, P>,  tile<3, P>, tile<4, P>,
                                  tile<5, P>,  tile<6, P>,  tile<7, P>,  tile<8, P>, tile<9, P>,
                                  tile<10, P>, tile<11, P>, tile<12, P>, tile<13, P>};

// Calls `with(first row, number of rows)` for tiles as equally tall as can be.
template <typename With>
inline void in_tiles(int64_t rows, const With& with) {
  const int64_t count = parts(rows, TALL);
  for (int64_t t = 0; t < count; ++t) {
    const int64_t row = rows * t / count;
    with(row, rows * (t + 1) / count - row);
  }
}

// 32 numbers rounded to bfloat16
inline __m512i rounded(__m512 first, __m512 second) {
  return (__m512i)_mm512_cvtne2ps_pbh(second, first);
}

inline __m512 widened(const uint16_t* from) {
  const __m256i half = _mm256_loadu_si256((const __m256i*)from);
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
}

// words[panels][K / 2][WIDE] of panels of columns of float32 weights [K][columns]
void words_of_columns(const float* from, int64_t step, int64_t k, int64_t panels, uint32_t* out) {
  const __m512i turn = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24,
                                        8, 23, 7, 22, 6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
  for (int64_t i = 0; i < k; i += 2, out += WIDE, from += 2 * step)
    for (int64_t p = 0; p < panels; ++p)
      for (int64_t c = 0; c < WIDE; c += 16) {
        const float* at = from + p * WIDE + c;
        const __m512i both = rounded(_mm512_loadu_ps(at), _mm512_loadu_ps(at + step));
        _mm512_storeu_si512(out + p * k / 2 * WIDE + c, _mm512_permutexvar_epi16(turn, both));
      }
}

// words[panels][K / 2][WIDE] of panels of rows of float32 weights [rows][K], K a multiple of 32: 16
// words of 16 rows at a time are transposed
void words_of_rows(const float* from, int64_t step, int64_t k, int64_t panels, uint32_t* out) {
  for (int64_t c = 0; c < panels * WIDE; c += 16)
    for (int64_t i = 0; i < k; i += 32) {
      __m512i a[16], b[16];
      const float* row = from + c * step + i;
#pragma GCC unroll 16
      for (int r = 0; r < 16; ++r, row += step) {
        a[r] = rounded(_mm512_loadu_ps(row), _mm512_loadu_ps(row + 16));
      }
#pragma GCC unroll 8
      for (int r = 0; r < 16; r += 2) {
        b[r] = _mm512_unpacklo_epi32(a[r], a[r + 1]);
        b[r + 1] = _mm512_unpackhi_epi32(a[r], a[r + 1]);
      }
#pragma GCC unroll 8
      for (int r = 0; r < 8; ++r) {
        const int s = r / 2 * 4 + r % 2;
        a[r / 2 * 4 + 2 * (r % 2)] = _mm512_unpacklo_epi64(b[s], b[s + 2]);
        a[r / 2 * 4 + 2 * (r % 2) + 1] = _mm512_unpackhi_epi64(b[s], b[s + 2]);
      }
#pragma GCC unroll 4
      for (int r = 0; r < 4; ++r) {
        b[r] = _mm512_shuffle_i32x4(a[r], a[r + 4], 0x88);
        b[r + 4] = _mm512_shuffle_i32x4(a[r], a[r + 4], 0xdd);
        b[r + 8] = _mm512_shuffle_i32x4(a[r + 8], a[r + 12], 0x88);
        b[r + 12] = _mm512_shuffle_i32x4(a[r + 8], a[r + 12], 0xdd);
      }
      uint32_t* to = out + (c / WIDE * k + i) / 2 * WIDE + c % WIDE;
#pragma GCC unroll 8
      for (int r = 0; r < 8; ++r) {
        _mm512_storeu_si512(to + r * WIDE, _mm512_shuffle_i32x4(b[r], b[r + 8], 0x88));
        _mm512_storeu_si512(to + (r + 8) * WIDE, _mm512_shuffle_i32x4(b[r], b[r + 8], 0xdd));
      }
    }
}

// words[rows / 2][columns] of bfloat16 rows; behind an odd last row there are zeros
void words_of_pairs(const uint16_t* from, int64_t step, int64_t rows, int64_t columns,
                    uint32_t* out, int64_t out_step) {
  const __m512i low = _mm512_set_epi16(47, 15, 46, 14, 45, 13, 44, 12, 43, 11, 42, 10, 41, 9, 40,
                                       8, 39, 7, 38, 6, 37, 5, 36, 4, 35, 3, 34, 2, 33, 1, 32, 0);
  const __m512i high = _mm512_add_epi16(low, _mm512_set1_epi16(16));
  for (int64_t r = 0; r < rows; r += 2, from += 2 * step, out += out_step)
    for (int64_t c = 0; c < columns; c += WIDE) {
      const __m512i first = _mm512_loadu_si512(from + c);
      const __m512i second =
          r + 1 < rows ? _mm512_loadu_si512(from + step + c) : _mm512_setzero_si512();
      _mm512_storeu_si512(out + c, _mm512_permutex2var_epi16(first, low, second));
      _mm512_storeu_si512(out + c + 16, _mm512_permutex2var_epi16(first, high, second));
    }
}

// How an expert's weights lie: as words [columns / WIDE][K / 2][WIDE], or, in float32, as
// [columns][K] or [K][columns].
enum Lie { WORDS, ROWS, COLUMNS };

// At most MANY rows times GROUP columns of weights. `after(row, column, sums)` gets the results,
// WIDE at a time.
template <Lie LIE, typename After>
void some_rows(const uint16_t* left, int64_t left_step, int64_t rows, const void* weights,
               int64_t k, int64_t columns, int64_t first, float* room, const After& after) {
  const int64_t wide = least(GROUP, columns - first), panels = wide / WIDE;
  const auto* plain = (const float*)weights;
  const auto* ready = (const uint32_t*)weights;
  float* sums = room;                                 // [panels][rows][WIDE]
  auto* made = (uint32_t*)(room + GROUP * MANY);      // [panels][DEEP / 2][WIDE]
  for (int64_t begin = 0; begin < k; begin += DEEP) {
    const int64_t deep = least(DEEP, k - begin);
    const int64_t step = LIE == WORDS ? k / 2 * WIDE : deep / 2 * WIDE;
    const uint32_t* words = LIE == WORDS ? ready + (first * k + begin * WIDE) / 2 : made;
    if (LIE == ROWS) words_of_rows(plain + first * k + begin, k, deep, panels, made);
    if (LIE == COLUMNS)
      words_of_columns(plain + begin * columns + first, columns, deep, panels, made);
    // what comes next: more of the summed dimension, or the next columns
    const bool more = begin + deep < k;
    const int64_t from = more ? begin + deep : 0, column = more ? first : first + wide;
    const int64_t size = least(DEEP, k - from);
    Ahead ahead = LIE == WORDS ? Ahead(ready + (column * k + from * WIDE) / 2, 2 * WIDE * size,
                                       2 * WIDE * k, panels)
                  : LIE == ROWS
                      ? Ahead(plain + column * k + from, 4 * size, 4 * k, wide)
                      : Ahead(plain + from * columns + column, 4 * wide, 4 * columns, size);
    for (int64_t p = 0; p < panels; ++p)
      in_tiles(rows, [&](int64_t row, int64_t tall) {
        TILES<false>[tall]((const char*)(left + row * left_step + begin), 2 * left_step,
                           (const char*)(words + p * step), 4 * WIDE, deep / 2,
                           sums + (p * rows + row) * WIDE, WIDE, begin ? ADD : SET, ahead);
      });
  }
  for (int64_t p = 0; p < panels; ++p)
    for (int64_t r = 0; r < rows; ++r) after(r, first + p * WIDE, sums + (p * rows + r) * WIDE);
}

template <Lie LIE, typename After>
void product(const uint16_t* left, int64_t left_step, int64_t rows, const void* weights, int64_t k,
             int64_t columns, int64_t first, float* room, const After& after) {
  for (int64_t begin = 0; begin < rows; begin += MANY)
    some_rows<LIE>(left + begin * left_step, left_step, least(MANY, rows - begin), weights, k,
                   columns, first, room, [&](int64_t row, int64_t column, const float* sums) {
                     after(begin + row, column, sums);
                   });
}

// out[rows][columns] of two sides as words, summed over pairs
void outer(const uint32_t* left, int64_t left_step, const uint32_t* right, int64_t right_step,
           int64_t pairs, int64_t rows, int64_t columns, float* out, int64_t out_step,
           Write write) {
  Ahead nothing(nullptr, 0, 0, 0);
  in_tiles(rows, [&](int64_t row, int64_t tall) {
    for (int64_t c = 0; c < columns; c += WIDE)
      TILES<true>[tall]((const char*)(left + row), 4 * left_step, (const char*)(right + c),
                        4 * right_step, pairs, out + row * out_step + c, out_step, write, nothing);
  });
}

}  // namespace

extern "C" {

extern const int64_t TOGETHER, HIDDEN_PADS, WORD_PADS, ROOM;
const int64_t TOGETHER = WIDE;         // D and F are multiples of it
const int64_t HIDDEN_PADS = 2 * PADS;  // elements too many in each row of hidden units
const int64_t WORD_PADS = PADS;        // the same of words
const int64_t ROOM =                   // float32 numbers each thread needs
    most(GROUP * (MANY + DEEP / 2), MANY / 2 * (STRIP + PADS));

// What both calls are told.
struct Work {
  int64_t experts, d, f, threads;
  const int64_t *sizes, *begins;  // frames of each expert, none or more, and its first
  float* rooms;                   // ROOM of each thread
};

// y[A][D] = relu(x up' + bias) down' + bias, and `hidden`, what is between, for `backward`.
// Weights are float32, or, if `ready`, words. Dropout: hidden units whose byte is below `dropped`
// become 0, the others are multiplied by `scale`; without bytes there is none.
void forward(const Work* work, int64_t ready, const uint16_t* x, const void* up,
             const float* up_bias, const void* down, const float* down_bias, const uint8_t* bytes,
             int64_t dropped, float scale, uint16_t* hidden, uint16_t* y) {
  const int64_t d = work->d, f = work->f, h_step = f + HIDDEN_PADS, size = ready ? 2 : 4;
  const int64_t ups = parts(f, GROUP), downs = parts(d, GROUP);
  const int64_t run = most(1, least(RUN, work->experts * ups / (4 * work->threads)));
#pragma omp parallel num_threads(work->threads)
  {
    float* room = work->rooms + omp_get_thread_num() * ROOM;
#pragma omp for schedule(dynamic, run)
    for (int64_t item = 0; item < work->experts * ups; ++item) {
      const int64_t e = item / ups, first = item % ups * GROUP;
      const int64_t rows = work->sizes[e], begin = work->begins[e];
      const __m512 zero = _mm512_setzero_ps(), scales = _mm512_set1_ps(scale);
      const char* weights = (const char*)up + e * f * d * size;
      auto after = [&](int64_t row, int64_t column, const float* sums) {
        const float* bias = up_bias + e * f + column;
        __m512 u = _mm512_add_ps(_mm512_loadu_ps(sums), _mm512_loadu_ps(bias));
        __m512 v = _mm512_add_ps(_mm512_loadu_ps(sums + 16), _mm512_loadu_ps(bias + 16));
        u = _mm512_max_ps(zero, u);  // in this order NaN stays NaN
        v = _mm512_max_ps(zero, v);
        if (bytes) {
          const auto* own = (const __m256i*)(bytes + (begin + row) * f + column);
          const __mmask32 kept =
              _mm256_cmpge_epu8_mask(_mm256_loadu_si256(own), _mm256_set1_epi8((char)dropped));
          u = _mm512_maskz_mul_ps((__mmask16)kept, u, scales);
          v = _mm512_maskz_mul_ps((__mmask16)(kept >> 16), v, scales);
        }
        _mm512_storeu_si512(hidden + (begin + row) * h_step + column, rounded(u, v));
      };
      if (ready) product<WORDS>(x + begin * d, d, rows, weights, d, f, first, room, after);
      else product<ROWS>(x + begin * d, d, rows, weights, d, f, first, room, after);
    }
#pragma omp for schedule(dynamic, 1)
    for (int64_t item = 0; item < work->experts * downs; ++item) {
      const int64_t e = item / downs, first = item % downs * GROUP;
      const int64_t rows = work->sizes[e], begin = work->begins[e];
      const char* weights = (const char*)down + e * f * d * size;
      const uint16_t* left = hidden + begin * h_step;
      auto after = [&](int64_t row, int64_t column, const float* sums) {
        const float* bias = down_bias + e * d + column;
        const __m512 u = _mm512_add_ps(_mm512_loadu_ps(sums), _mm512_loadu_ps(bias));
        const __m512 v = _mm512_add_ps(_mm512_loadu_ps(sums + 16), _mm512_loadu_ps(bias + 16));
        _mm512_storeu_si512(y + (begin + row) * d + column, rounded(u, v));
      };
      if (ready) product<WORDS>(left, h_step, rows, weights, f, d, first, room, after);
      else product<ROWS>(left, h_step, rows, weights, f, d, first, room, after);
    }
  }
}

// Gradients of everything, given that of y. Weights and their gradients are float32; those of
// experts without frames are left alone. Room: `d_hidden` as much as hidden, `words` two rows of
// D + WORD_PADS for each pair of frames of an expert.
void backward(const Work* work, const uint16_t* x, const uint16_t* d_y, const uint16_t* hidden,
              const float* up, const float* down, float scale, uint16_t* d_hidden, uint32_t* words,
              uint16_t* d_x, float* d_up, float* d_up_bias, float* d_down, float* d_down_bias) {
  const int64_t d = work->d, f = work->f, h_step = f + HIDDEN_PADS;
  const int64_t word_step = d + WORD_PADS, strip_step = STRIP + WORD_PADS;
  const int64_t ups = parts(f, GROUP), downs = parts(d, GROUP), strips = parts(f, STRIP);
  const int64_t run = most(1, least(RUN, work->experts * ups / (4 * work->threads)));
  auto words_before = [&](int64_t expert) {
    int64_t pairs = 0;
    for (int64_t e = 0; e < expert; ++e) pairs += parts(work->sizes[e], 2);
    return pairs * word_step;
  };
  uint32_t *x_words = words, *d_y_words = words + words_before(work->experts);
#pragma omp parallel num_threads(work->threads)
  {
    float* room = work->rooms + omp_get_thread_num() * ROOM;
#pragma omp for schedule(dynamic, 1)
    for (int64_t e = 0; e < work->experts; ++e) {
      const int64_t rows = work->sizes[e], begin = work->begins[e], at = words_before(e);
      words_of_pairs(x + begin * d, d, rows, d, x_words + at, word_step);
      words_of_pairs(d_y + begin * d, d, rows, d, d_y_words + at, word_step);
      for (int64_t c = 0; rows && c < d; c += 16) {
        __m512 sum = _mm512_setzero_ps();
        for (int64_t r = begin; r < begin + rows; ++r)
          sum = _mm512_add_ps(sum, widened(d_y + r * d + c));
        _mm512_storeu_ps(d_down_bias + e * d + c, sum);
      }
    }
#pragma omp for schedule(dynamic, run)
    for (int64_t item = 0; item < work->experts * ups; ++item) {
      const int64_t e = item / ups, first = item % ups * GROUP;
      const int64_t rows = work->sizes[e], begin = work->begins[e];
      const __m512 scales = _mm512_set1_ps(scale);
      float* bias = d_up_bias + e * f;
      for (int64_t c = first; rows && c < least(first + GROUP, f); c += 16)
        _mm512_storeu_ps(bias + c, _mm512_setzero_ps());
      // a unit that ReLU or dropout made zero passes nothing on; the others were scaled
      auto after = [&](int64_t row, int64_t column, const float* sums) {
        const int64_t at = (begin + row) * h_step + column;
        const __mmask32 on = _mm512_test_epi16_mask(_mm512_loadu_si512(hidden + at),
                                                    _mm512_set1_epi16(0x7fff));  // not +0 or -0
        const __m512 u = _mm512_maskz_mul_ps((__mmask16)on, _mm512_loadu_ps(sums), scales);
        const __m512 v =
            _mm512_maskz_mul_ps((__mmask16)(on >> 16), _mm512_loadu_ps(sums + 16), scales);
        _mm512_storeu_si512(d_hidden + at, rounded(u, v));
        float* sum = bias + column;
        _mm512_storeu_ps(sum, _mm512_add_ps(_mm512_loadu_ps(sum), u));
        _mm512_storeu_ps(sum + 16, _mm512_add_ps(_mm512_loadu_ps(sum + 16), v));
      };
      product<COLUMNS>(d_y + begin * d, d, rows, down + e * f * d, d, f, first, room, after);
    }
    // gradients of an expert's inputs, then of both its matrices, a strip of hidden units at a time
#pragma omp for schedule(dynamic, 1)
    for (int64_t item = 0; item < work->experts * (downs + 2 * strips); ++item) {
      const int64_t e = item / (downs + 2 * strips), kind = item % (downs + 2 * strips) - downs;
      const int64_t rows = work->sizes[e], begin = work->begins[e], weights = e * f * d;
      if (kind < 0) {
        auto after = [&](int64_t row, int64_t column, const float* sums) {
          const __m512i both = rounded(_mm512_loadu_ps(sums), _mm512_loadu_ps(sums + 16));
          _mm512_storeu_si512(d_x + (begin + row) * d + column, both);
        };
        product<COLUMNS>(d_hidden + begin * h_step, h_step, rows, up + weights, f, d,
                         (kind + downs) * GROUP, room, after);
        continue;
      }
      const int64_t first = kind / 2 * STRIP, wide = least(STRIP, f - first);
      auto* strip = (uint32_t*)room;
      for (int64_t row = 0; row < rows; row += MANY) {
        const int64_t own = least(MANY, rows - row), pairs = parts(own, 2);
        const int64_t at = words_before(e) + row / 2 * word_step;
        const Write write = rows <= MANY ? STREAM : row ? ADD : SET;
        words_of_pairs((kind % 2 ? d_hidden : hidden) + (begin + row) * h_step + first, h_step,
                       own, wide, strip, strip_step);
        if (kind % 2)
          outer(strip, strip_step, x_words + at, word_step, pairs, wide, d,
                d_up + weights + first * d, d, write);
        else
          outer(d_y_words + at, word_step, strip, strip_step, pairs, d, wide,
                d_down + weights + first, f, write);
      }
      _mm_sfence();
    }
  }
}

}  // extern "C"
