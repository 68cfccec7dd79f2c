/* tinker_loss.h: write a loss for tinker-local in C11 or C++17. Loss plugin ABI 1.0. Freestanding: no libc, no imports.
 *
 *   clang --target=wasm32 -O3 -std=c11 -msimd128 -mbulk-memory -msign-ext -mnontrapping-fptoint -ffreestanding \
 *     -fno-builtin -nostdlib -fvisibility=hidden -Wl,--no-entry -Wl,-z,stack-size=65536 -Wl,--strip-all -o my.wasm my.c
 *
 * A loss reads the log-probabilities of a batch and writes its value and, for each log-probability, the weight
 * -dloss/dlogprob (the minus sign is part of the ABI). Three ways to write one:
 *
 *   by hand       C or C++: tl_logprobs, tl_f32, tl_out; the author derives
 *   dual numbers  C++: tl::tokens; the loss of one token as a formula, its derivative comes with it, two lanes at a time
 *   tape          C++: tl::Vec; vectors over tokens, datums and groups as in torch, then backward()
 *
 * A batch may come in chunks: divide by r->batch_datums or r->batch_groups, never by the chunk's own counts.
 */
#ifndef TINKER_LOSS_H
#define TINKER_LOSS_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
#define TL_ASSERT(condition, text) static_assert(condition, text)
extern "C" {
#else
#define TL_ASSERT(condition, text) _Static_assert(condition, text)
#endif

#define TL_ABI_VERSION 0x00010000u
#define TL_MAGIC 0x53534F4Cu
#define TL_NO_INLINE static __attribute__((noinline, unused))

enum { TL_OK = 0, TL_USER = 1, TL_NUMERICAL = 2, TL_INTERNAL = 3 }; /* status of a call */
enum { TL_EVALUATE_ONLY = 1 };                                     /* request flag: weights are not needed */
enum { TL_FLOAT32 = 1, TL_INT64 = 2 };                             /* dtype of a column */

/* The head of the one buffer that carries a call. Offsets count from its first byte. */
typedef struct tl_request {
  uint32_t magic, version, total_len, flags;
  uint32_t n_datums, n_columns, columns_off, groups_off;
  uint32_t params_off, n_params, config_off, config_len;
  uint32_t out_weights_off, n_elems, metrics_off, metrics_cap;
  uint32_t error_off, error_cap, batch_datums, n_groups;
  uint64_t batch_elems;
  uint32_t n_metrics, error_len; /* out */
  double loss;                   /* out */
  uint32_t batch_groups, chunk_index;
  uint64_t step, reserved;
} tl_request;
TL_ASSERT(sizeof(tl_request) == 128 && offsetof(tl_request, loss) == 96, "request header");

typedef struct tl_column {
  uint32_t name_off, name_len, dtype, spans_off, data_off, n_elems, zero[2];
} tl_column;

typedef struct tl_span {
  uint32_t start, dim0, dim1, flags; /* flags bit 0: present */
} tl_span;

typedef struct tl_metric_slot {
  double value;
  uint32_t name_len, zero;
  char name[48];
} tl_metric_slot;
TL_ASSERT(sizeof(tl_column) == 32 && sizeof(tl_span) == 16 && sizeof(tl_metric_slot) == 64, "records");

/* ---- reading ---- */

static inline void *tl_at(const tl_request *r, uint32_t off) { return (char *)r + off; }
static inline int tl_evaluate_only(const tl_request *r) { return r->flags & TL_EVALUATE_ONLY; }
static inline double tl_param(const tl_request *r, uint32_t i) { return ((const double *)tl_at(r, r->params_off))[i]; }
static inline uint32_t tl_group(const tl_request *r, uint32_t datum) {
  return r->groups_off ? ((const uint32_t *)tl_at(r, r->groups_off))[datum] : 0;
}

/* tl_find returns the column of that name, or NULL: no datum has it. */
TL_NO_INLINE const tl_column *tl_find(const tl_request *r, const char *name) {
  const tl_column *c = (const tl_column *)tl_at(r, r->columns_off);
  for (uint32_t i = 0; i < r->n_columns; i++) {
    const char *have = (const char *)tl_at(r, c[i].name_off);
    uint32_t n = 0;
    while (n < c[i].name_len && name[n] == have[n] && name[n]) n++;
    if (n == c[i].name_len && !name[n]) return c + i;
  }
  return NULL;
}

/* tl_span_of is where datum's part of column c lies; all zero when it has none. */
static inline tl_span tl_span_of(const tl_request *r, const tl_column *c, uint32_t datum) {
  tl_span none = {0, 0, 0, 0};
  if (!c) return none;
  tl_span s = ((const tl_span *)tl_at(r, c->spans_off))[datum];
  return s.flags & 1 ? s : none;
}

/* tl_f32 and tl_i64 return datum's part of column c, or NULL when it has none. */
static inline float *tl_f32(const tl_request *r, const tl_column *c, uint32_t datum) {
  tl_span s = tl_span_of(r, c, datum);
  return s.flags && c->dtype == TL_FLOAT32 ? (float *)tl_at(r, c->data_off) + s.start : NULL;
}
static inline int64_t *tl_i64(const tl_request *r, const tl_column *c, uint32_t datum) {
  tl_span s = tl_span_of(r, c, datum);
  return s.flags && c->dtype == TL_INT64 ? (int64_t *)tl_at(r, c->data_off) + s.start : NULL;
}

/* The policy's log-probabilities of a datum: tl_tokens(r, d).dim0 rows of .dim1 (1, or K candidates), row-major.
 * tl_out has the place of their weights. */
static inline tl_span tl_tokens(const tl_request *r, uint32_t datum) {
  return ((const tl_span *)tl_at(r, ((const tl_column *)tl_at(r, r->columns_off))->spans_off))[datum];
}
static inline float *tl_logprobs(const tl_request *r, uint32_t datum) {
  return (float *)tl_at(r, ((const tl_column *)tl_at(r, r->columns_off))->data_off) + tl_tokens(r, datum).start;
}
static inline float *tl_out(const tl_request *r, uint32_t datum) {
  return (float *)tl_at(r, r->out_weights_off) + tl_tokens(r, datum).start;
}
static inline uint32_t tl_count(const tl_request *r, uint32_t datum) {
  tl_span s = tl_tokens(r, datum);
  return s.dim0 * s.dim1;
}

/* ---- answering ---- */

/* tl_metric adds a metric. Its name ends in how chunks merge: ":mean" (weighted by datums), ":sum", ":min", ":max". */
TL_NO_INLINE void tl_metric(tl_request *r, const char *name, double value) {
  if (r->n_metrics >= r->metrics_cap) return;
  tl_metric_slot *m = (tl_metric_slot *)tl_at(r, r->metrics_off) + r->n_metrics++;
  m->value = value;
  m->name_len = 0;
  while (m->name_len < sizeof m->name && name[m->name_len]) {
    m->name[m->name_len] = name[m->name_len];
    m->name_len++;
  }
}

static inline void tl_error_char(tl_request *r, char c) {
  if (r->error_len < r->error_cap) ((char *)tl_at(r, r->error_off))[r->error_len++] = c;
}

/* tl_fail ends the loss: return tl_fail(r, TL_USER, "beta needs ref_logprobs"); */
TL_NO_INLINE int32_t tl_fail(tl_request *r, int32_t status, const char *text) {
  while (*text) tl_error_char(r, *text++);
  return status;
}

/* tl_fail_datum is tl_fail with TL_USER and "datum N: " before the text. N counts within the chunk. */
TL_NO_INLINE int32_t tl_fail_datum(tl_request *r, uint32_t datum, const char *text) {
  char digits[10];
  int n = 0;
  do digits[n++] = (char)('0' + datum % 10);
  while (datum /= 10);
  tl_fail(r, TL_USER, "datum ");
  while (n) tl_error_char(r, digits[--n]);
  tl_fail(r, TL_USER, ": ");
  return tl_fail(r, TL_USER, text);
}

/* tl_say writes a line to the server's log: level 0 debug, 1 info, 2 warning, 3 error. A module that uses it has an import. */
#ifdef __wasm__
__attribute__((import_module("loss_host"), import_name("log"))) void tl_host_log(int32_t level, const char *text, uint32_t len);
#else
static inline void tl_host_log(int32_t level, const char *text, uint32_t len) { (void)level, (void)text, (void)len; }
#endif
TL_NO_INLINE void tl_say(int32_t level, const char *text) {
  uint32_t n = 0;
  while (text[n]) n++;
  tl_host_log(level, text, n);
}

/* ---- memory ---- */

static uintptr_t tl_top __attribute__((unused));
#ifdef __wasm__
extern unsigned char __heap_base;
static inline uintptr_t tl_heap(void) { return (uintptr_t)&__heap_base; }
static inline int tl_reach(uintptr_t end) {
  uintptr_t have = (uintptr_t)__builtin_wasm_memory_size(0) << 16;
  return end <= have || __builtin_wasm_memory_grow(0, (end - have + 65535) >> 16) != (size_t)-1;
}
#else /* tests on the machine itself */
static unsigned char tl_native[1 << 26] __attribute__((aligned(16), unused));
static inline uintptr_t tl_heap(void) { return (uintptr_t)tl_native; }
static inline int tl_reach(uintptr_t end) { return end <= (uintptr_t)tl_native + sizeof tl_native; }
#endif

/* tl_scratch returns size bytes, aligned to 16, not zeroed, for the rest of this call; NULL when memory is used up. */
TL_NO_INLINE void *tl_scratch(size_t size) {
  uintptr_t start = (tl_top + 15) & ~(uintptr_t)15, end = start + size;
  if (end < start || !tl_reach(end)) return NULL;
  tl_top = end;
  return (void *)start;
}

static inline void *tl_alloc(size_t size) {
  tl_top = tl_heap(); /* a new request replaces the former one */
  return tl_scratch(size);
}

/* ---- arithmetic: largest error seen against libm, in units of the last place, over the arguments of test_math.c:
 * tl_exp 1, tl_log 1, tl_log1p 2, tl_expm1, tl_softplus and tl_sigmoid 4. tl_exp_2 is tl_exp on two lanes, bit for bit. ---- */

typedef double tl_f64x2 __attribute__((vector_size(16)));
typedef int64_t tl_i64x2 __attribute__((vector_size(16)));
typedef float tl_f32x2 __attribute__((vector_size(8), aligned(4)));
typedef float tl_f32x4 __attribute__((vector_size(16), aligned(4)));

static inline double tl_max(double a, double b) { return b > a ? b : a; }
static inline double tl_min(double a, double b) { return b < a ? b : a; }
static inline double tl_abs(double a) { return __builtin_fabs(a); }
static inline double tl_sqrt(double a) { return __builtin_sqrt(a); }
static inline double tl_from_bits(uint64_t b) { union { uint64_t b; double d; } u = {b}; return u.d; }
static inline uint64_t tl_bits(double d) { union { double d; uint64_t b; } u = {d}; return u.b; }
static inline tl_f64x2 tl_select(tl_i64x2 m, tl_f64x2 a, tl_f64x2 b) {
  return (tl_f64x2)((m & (tl_i64x2)a) | (~m & (tl_i64x2)b));
}
static inline tl_f64x2 tl_load(const float *p) { return __builtin_convertvector(*(const tl_f32x2 *)p, tl_f64x2); }

#define TL_LN2_HI 0x1.62e42feep-1 /* 33 bits: products with |k| < 2^20 are exact */
#define TL_LN2_LO 0x1.a39ef35793c76p-33
#define TL_SHIFT 0x1.8p52 /* adding it leaves round(x) in the low bits */

/* exp(q) - 1 = q + q^2 * (1/2! + q/3! + ...) for |q| <= ln(2)/2: Taylor's series, cut below 2^-57; even and odd powers apart. */
#define TL_EXPM1_SERIES(q, q2)                                                                                                            \
  ((q) + (q2) * (((((((1.0 / 479001600) * (q2) + 1.0 / 3628800) * (q2) + 1.0 / 40320) * (q2) + 1.0 / 720) * (q2) + 1.0 / 24) * (q2) + 0.5) + \
                 (q) * ((((((1.0 / 6227020800.0) * (q2) + 1.0 / 39916800) * (q2) + 1.0 / 362880) * (q2) + 1.0 / 5040) * (q2) + 1.0 / 120) * (q2) + 1.0 / 6)))

TL_NO_INLINE double tl_exp(double x) {
  x = x < -746.0 ? -746.0 : x > 710.0 ? 710.0 : x;
  double t = x * 1.4426950408889634 + TL_SHIFT, k = t - TL_SHIFT;
  double q = (x - k * TL_LN2_HI) - k * TL_LN2_LO, q2 = q * q;
  int64_t n = (int64_t)tl_bits(t) - (int64_t)tl_bits(TL_SHIFT), half = n >> 1; /* two steps, for subnormal results */
  return (1.0 + TL_EXPM1_SERIES(q, q2)) * tl_from_bits((uint64_t)(half + 1023) << 52) * tl_from_bits((uint64_t)(n - half + 1023) << 52);
}

static inline tl_f64x2 tl_exp_2(tl_f64x2 x) {
  const tl_f64x2 lo = {-746.0, -746.0}, hi = {710.0, 710.0}, shift = {TL_SHIFT, TL_SHIFT};
  x = tl_select(x < lo, lo, tl_select(x > hi, hi, x));
  tl_f64x2 t = x * 1.4426950408889634 + shift, k = t - shift;
  tl_f64x2 q = (x - k * TL_LN2_HI) - k * TL_LN2_LO, q2 = q * q;
  tl_i64x2 n = (tl_i64x2)t - (tl_i64x2)shift, half = n >> 1;
  return (1.0 + TL_EXPM1_SERIES(q, q2)) * (tl_f64x2)((half + 1023) << 52) * (tl_f64x2)((n - half + 1023) << 52);
}

TL_NO_INLINE double tl_expm1(double x) {
  if (tl_abs(x) > 0.34) return tl_exp(x) - 1;
  double x2 = x * x;
  return TL_EXPM1_SERIES(x, x2);
}

/* log(2^k m) = k ln 2 + log(1+f) with m = 1+f between sqrt(1/2) and sqrt(2); log(1+f) = 2 atanh(s), s = f/(2+f), written
 * as f - (f^2/2 - s (f^2/2 + 2 (s^2/3 + s^4/5 + ...))), whose leading terms are exact or nearly so. */
TL_NO_INLINE double tl_log(double x) {
  int64_t k = 0;
  if (x < 0x1p-1022) {
    if (x <= 0) return x == 0 ? -__builtin_inf() : __builtin_nan("");
    x *= 0x1p54;
    k = -54;
  }
  if (!(x < __builtin_inf())) return x;
  uint64_t b = tl_bits(x);
  k += (int64_t)(b >> 52) - 1023;
  double m = tl_from_bits((b & 0xFFFFFFFFFFFFFull) | 0x3FF0000000000000ull);
  if (m > 1.4142135623730951) {
    m *= 0.5;
    k++;
  }
  double f = m - 1, s = f / (2 + f), s2 = s * s, h = 0.5 * f * f, dk = (double)k;
  double series = s2 * (2.0 / 3 + s2 * (2.0 / 5 + s2 * (2.0 / 7 + s2 * (2.0 / 9 + s2 * (2.0 / 11 + s2 * (2.0 / 13 + s2 * (2.0 / 15 +
                  s2 * (2.0 / 17 + s2 * (2.0 / 19 + s2 * (2.0 / 21))))))))));
  return dk * TL_LN2_HI - ((h - (s * (h + series) + dk * TL_LN2_LO)) - f);
}

/* log(1+x): u = 1+x is rounded, and (x-(u-1))/u is what rounding took. */
TL_NO_INLINE double tl_log1p(double x) {
  double u = 1 + x;
  if (u == 1) return x;
  if (!(u < __builtin_inf()) || u <= 0) return tl_log(u);
  return tl_log(u) + (x - (u - 1)) / u;
}

/* log(1 + exp(x)): -log sigmoid(x) = softplus(-x); and its derivative. Neither overflows. */
TL_NO_INLINE double tl_softplus(double x) { return tl_max(x, 0) + tl_log1p(tl_exp(-tl_abs(x))); }
TL_NO_INLINE double tl_sigmoid(double x) {
  double e = tl_exp(-tl_abs(x));
  return (x < 0 ? e : 1) / (1 + e);
}

/* ---- losses of sequence scores ---- */

/* TL_OPAQUE hides from the compiler where a value comes from, and keeps such places in order. Fast loops need it, since engines translate
 * a module as it is written, and what compilers make of conversions of half vectors is worse for them than the plain operations. TL_FAR
 * is for a pointer that the turn of a loop begins with: what is read first is its farthest pair, and the nearer ones are at constant
 * distances, so an engine checks one address. */
#ifdef __wasm__
#define TL_OPAQUE(x) __asm__ volatile("" : "+r"(x))
#define TL_FAR(p, pair) do { TL_OPAQUE(p); tl_pair((p) + (pair)); } while (0)
#else
#define TL_OPAQUE(x) ((void)(x))
#define TL_FAR(p, pair) ((void)0)
#endif

/* tl_pair is tl_load, as one load at a constant distance from a pointer. */
typedef int64_t tl_pair_bits __attribute__((aligned(4), may_alias));
static inline tl_f64x2 tl_pair(const float *p) {
  tl_i64x2 bits = {*(const tl_pair_bits *)p, 0};
  TL_OPAQUE(bits);
  return __builtin_convertvector(__builtin_shufflevector((tl_f32x4)bits, (tl_f32x4)bits, 0, 1), tl_f64x2);
}

/* tl_add_8 adds w * (lp - ref) of eight tokens to four pairs of sums; referred says whether there is a ref. */
static inline __attribute__((always_inline)) void tl_add_8(tl_f64x2 *sum, const float *lp, const float *ref, const float *w, int referred) {
#define TL_TWO(j)                                                                                                      \
  sum[j] += tl_pair(w + 2 * j) * (referred ? tl_pair(lp + 2 * j) - tl_pair(ref + 2 * j) : tl_pair(lp + 2 * j)); \
  TL_OPAQUE(sum[j]);
  TL_TWO(0) TL_TWO(1) TL_TWO(2) TL_TWO(3)
#undef TL_TWO
}

/* tl_score_of_some is tl_score token by token, in the same order. */
TL_NO_INLINE double tl_score_of_some(const float *lp, const float *ref, const float *w, uint32_t n) {
  double sum[8] = {0, 0, 0, 0, 0, 0, 0, 0}, rest = 0;
  for (uint32_t i = 0; i < n; i++)
    if (w[i] != 0) *(i < (n & ~7u) ? &sum[i & 7] : &rest) += (double)w[i] * ((double)lp[i] - (ref ? (double)ref[i] : 0));
  return ((sum[0] + sum[2]) + (sum[4] + sum[6])) + ((sum[1] + sum[3]) + (sum[5] + sum[7])) + rest;
}

/* tl_score is the sum over n tokens of w * (lp - ref), in float64; ref may be NULL. Tokens of weight 0 may hold anything,
 * infinities too: they are left out when the sum with them is not finite, else they make no difference. Eight running sums,
 * so that the order is fixed and the adds overlap. */
TL_NO_INLINE double tl_score(const float *lp, const float *ref, const float *w, uint32_t n) {
  tl_f64x2 sum[4] = {{0, 0}, {0, 0}, {0, 0}, {0, 0}};
  uint32_t i = 0;
  if (ref) {
    for (; i + 16 <= n; i += 16) {
      const float *a = lp + i, *b = ref + i, *c = w + i;
      TL_FAR(a, 14);
      TL_FAR(b, 14);
      TL_FAR(c, 14);
      tl_add_8(sum, a, b, c, 1);
      tl_add_8(sum, a + 8, b + 8, c + 8, 1);
    }
    if (i + 8 <= n) tl_add_8(sum, lp + i, ref + i, w + i, 1), i += 8;
  } else {
    for (; i + 16 <= n; i += 16) {
      const float *a = lp + i, *c = w + i;
      TL_FAR(a, 14);
      TL_FAR(c, 14);
      tl_add_8(sum, a, NULL, c, 0);
      tl_add_8(sum, a + 8, NULL, c + 8, 0);
    }
    if (i + 8 <= n) tl_add_8(sum, lp + i, NULL, w + i, 0), i += 8;
  }
  double rest = 0;
  for (; i < n; i++) rest += (double)w[i] * ((double)lp[i] - (ref ? (double)ref[i] : 0));
  tl_f64x2 all = (sum[0] + sum[1]) + (sum[2] + sum[3]);
  double score = all[0] + all[1] + rest;
  return score - score == 0 ? score : tl_score_of_some(lp, ref, w, n);
}

/* tl_spread writes the weights of a score's tokens, given its derivative: out = -dloss/dscore * w. */
TL_NO_INLINE void tl_spread(float *out, const float *w, uint32_t n, double dscore) {
  float g = (float)-dscore;
  uint32_t i = 0;
#define TL_FOUR(j) *(tl_f32x4 *)(to + 4 * j) = *(const tl_f32x4 *)(from + 4 * j) * g;
  for (; i + 32 <= n; i += 32) {
    float *to = out + i;
    const float *from = w + i;
    TL_FAR(to, 30);
    TL_FAR(from, 30);
    TL_FOUR(0) TL_FOUR(1) TL_FOUR(2) TL_FOUR(3) TL_FOUR(4) TL_FOUR(5) TL_FOUR(6) TL_FOUR(7)
  }
  for (; i + 4 <= n; i += 4) {
    float *to = out + i;
    const float *from = w + i;
    TL_FOUR(0)
  }
#undef TL_FOUR
  for (; i < n; i++) out[i] = w[i] * g;
}

/* ---- exports ---- */

#ifdef __wasm__
#define TL_EXPORT(name) __attribute__((export_name(name), visibility("default"), used))
#else
#define TL_EXPORT(name) __attribute__((unused))
#endif

static inline int32_t tl_run(tl_request *r, uint32_t len, int32_t (*loss)(tl_request *)) {
  if (len < sizeof *r || r->magic != TL_MAGIC || r->total_len > len || r->version >> 16 != TL_ABI_VERSION >> 16) return TL_INTERNAL;
  return loss(r);
}

/* TL_PLUGIN makes a module of a description (JSON, section 5 of the ABI) and int32_t loss(tl_request *), which sets
 * r->loss and the weights and returns TL_OK, or the result of tl_fail. */
#ifdef __cplusplus
#define TL_C extern "C"
#else
#define TL_C
#endif
#define TL_PLUGIN(describe, loss)                                                                     \
  static const char tl_description[] = describe;                                                      \
  TL_C TL_EXPORT("loss_abi_version") uint32_t tl_export_version(void) { return TL_ABI_VERSION; }      \
  TL_C TL_EXPORT("loss_describe") uint64_t tl_export_describe(void) {                                 \
    return (uint64_t)(uintptr_t)tl_description << 32 | (uint32_t)(sizeof tl_description - 1);         \
  }                                                                                                   \
  TL_C TL_EXPORT("loss_alloc") void *tl_export_alloc(uint32_t size) { return tl_alloc(size); }        \
  TL_C TL_EXPORT("loss_call") int32_t tl_export_call(tl_request *r, uint32_t len) { return tl_run(r, len, loss); }

#ifdef __cplusplus
} /* extern "C" */

namespace tl {

/* ---- dual numbers: the loss of one token ----
 *
 * Num<V, true> is a value and its derivative with respect to the token's log-probability; Num<V, false> is an input, whose
 * derivative is zero. V is double, or tl_f64x2: two tokens at once. Formulas are generic lambdas, so they serve both. */

template <class V> struct Lanes;
template <> struct Lanes<double> {
  static constexpr uint32_t n = 1;
  static double all(double x) { return x; }
  static double load(const float *p) { return *p; }
  static double select(bool m, double a, double b) { return m ? a : b; }
  static double exp(double x) { return tl_exp(x); }
  static double sum(double x) { return x; }
  template <class F> static double map(F f, double x) { return f(x); }
  static void store(float *p, double x) { *p = (float)x; }
};
template <> struct Lanes<tl_f64x2> {
  static constexpr uint32_t n = 2;
  static tl_f64x2 all(double x) { return tl_f64x2{x, x}; }
  static tl_f64x2 load(const float *p) { return tl_load(p); }
  static tl_f64x2 select(tl_i64x2 m, tl_f64x2 a, tl_f64x2 b) { return tl_select(m, a, b); }
  static tl_f64x2 exp(tl_f64x2 x) { return tl_exp_2(x); }
  static double sum(tl_f64x2 x) { return x[0] + x[1]; }
  template <class F> static tl_f64x2 map(F f, tl_f64x2 x) { return tl_f64x2{f(x[0]), f(x[1])}; }
  static void store(float *p, tl_f64x2 x) { *(tl_f32x2 *)p = __builtin_convertvector(x, tl_f32x2); }
};

template <class V, bool D> struct Num {
  V v;
  Num<V, false> value() const { return {v}; }
};
template <class V> struct Num<V, true> {
  V v, d;
  Num<V, false> value() const { return {v}; } /* the value alone: detached */
};

template <class V, bool P> V slope(Num<V, P> a) {
  if constexpr (P) return a.d;
  else return Lanes<V>::all(0);
}
/* with is a number of value v whose derivative is dv times that of a. */
template <class V, bool P> Num<V, P> with(Num<V, P> a, V v, V dv) {
  if constexpr (P) return {v, a.d * dv};
  else return {v};
}

template <class V, bool P, bool Q> Num<V, P || Q> operator+(Num<V, P> a, Num<V, Q> b) {
  if constexpr (P && Q) return {a.v + b.v, a.d + b.d};
  else if constexpr (P) return {a.v + b.v, a.d};
  else if constexpr (Q) return {a.v + b.v, b.d};
  else return {a.v + b.v};
}
template <class V, bool P> Num<V, P> operator-(Num<V, P> a) {
  if constexpr (P) return {-a.v, -a.d};
  else return {-a.v};
}
template <class V, bool P, bool Q> Num<V, P || Q> operator-(Num<V, P> a, Num<V, Q> b) { return a + (-b); }
template <class V, bool P, bool Q> Num<V, P || Q> operator*(Num<V, P> a, Num<V, Q> b) {
  if constexpr (P && Q) return {a.v * b.v, a.d * b.v + a.v * b.d};
  else if constexpr (P) return {a.v * b.v, a.d * b.v};
  else if constexpr (Q) return {a.v * b.v, a.v * b.d};
  else return {a.v * b.v};
}
template <class V, bool P, bool Q> Num<V, P || Q> operator/(Num<V, P> a, Num<V, Q> b) {
  V q = a.v / b.v;
  if constexpr (P && Q) return {q, (a.d - q * b.d) / b.v};
  else if constexpr (P) return {q, a.d / b.v};
  else if constexpr (Q) return {q, -q * b.d / b.v};
  else return {q};
}
/* min and max take the derivative of the one they take; at a tie, of the first. */
template <class V, bool P, bool Q> Num<V, P || Q> min(Num<V, P> a, Num<V, Q> b) {
  auto second = b.v < a.v;
  if constexpr (P || Q) return {Lanes<V>::select(second, b.v, a.v), Lanes<V>::select(second, slope(b), slope(a))};
  else return {Lanes<V>::select(second, b.v, a.v)};
}
template <class V, bool P, bool Q> Num<V, P || Q> max(Num<V, P> a, Num<V, Q> b) { return -min(-a, -b); }

#define TL_MIXED(op)                                                                                                \
  template <class V, bool P> Num<V, P> op(Num<V, P> a, double b) { return op(a, Num<V, false>{Lanes<V>::all(b)}); } \
  template <class V, bool P> Num<V, P> op(double a, Num<V, P> b) { return op(Num<V, false>{Lanes<V>::all(a)}, b); }
TL_MIXED(operator+) TL_MIXED(operator-) TL_MIXED(operator*) TL_MIXED(operator/) TL_MIXED(min) TL_MIXED(max)
#undef TL_MIXED

template <class V, bool P, class L, class H> auto clamp(Num<V, P> a, L lo, H hi) { return min(max(a, lo), hi); }
template <class V, bool P> Num<V, P> exp(Num<V, P> a) { V e = Lanes<V>::exp(a.v); return with(a, e, e); }
template <class V, bool P> Num<V, P> expm1(Num<V, P> a) { V e = Lanes<V>::map(tl_expm1, a.v); return with(a, e, e + 1.0); }
template <class V, bool P> Num<V, P> log(Num<V, P> a) { return with(a, Lanes<V>::map(tl_log, a.v), 1.0 / a.v); }
template <class V, bool P> Num<V, P> softplus(Num<V, P> a) { return with(a, Lanes<V>::map(tl_softplus, a.v), Lanes<V>::map(tl_sigmoid, a.v)); }
template <class V, bool P> Num<V, P> sq(Num<V, P> a) { return a * a; }
/* less is 1 where a < b, else 0; it has no derivative. */
template <class V, bool P, bool Q> Num<V, false> less(Num<V, P> a, Num<V, Q> b) { return {Lanes<V>::select(a.v < b.v, Lanes<V>::all(1), Lanes<V>::all(0))}; }
template <class V, bool P> Num<V, false> less(Num<V, P> a, double b) { return less(a, Num<V, false>{Lanes<V>::all(b)}); }
template <class V, bool Q> Num<V, false> less(double a, Num<V, Q> b) { return less(Num<V, false>{Lanes<V>::all(a)}, b); }

/* Each is what a formula may return in place of a Num: its loss, and two more numbers to be summed over the tokens. */
template <class V> struct Each {
  Num<V, true> loss;
  Num<V, false> a = {Lanes<V>::all(0)}, b = {Lanes<V>::all(0)};
};
template <class V> Each<V> each(Num<V, true> loss) { return {loss}; }
template <class V> Each<V> each(Each<V> e) { return e; }
template <class V> Each<V> each(Num<V, true> loss, Num<V, false> a, Num<V, false> b) { return {loss, a, b}; }

/* In is one input of a formula: a datum's tensor, or a number for all tokens where the datum lacks it. */
struct In {
  const float *p;
  double otherwise;
  In(const float *data, double missing = 0) : p(data), otherwise(missing) {}
  template <class V> Num<V, false> at(uint32_t i) const { return {p ? Lanes<V>::load(p + i) : Lanes<V>::all(otherwise)}; }
};

struct Sums {
  double loss = 0, a = 0, b = 0;
};

template <class V, class F, class... C> static inline void tokens_at(uint32_t i, const float *lp, const float *mask, float *out, double scale, Sums &sums, F f, C... in) {
  using L = Lanes<V>;
  V zero = L::all(0);
  Each<V> e = each(f(Num<V, true>{L::load(lp + i), L::all(1)}, in.template at<V>(i)...));
  auto off = mask ? L::load(mask + i) == zero : zero != zero;
  L::store(out + i, L::select(off, zero, -scale * e.loss.d));
  sums.loss += L::sum(L::select(off, zero, e.loss.v));
  sums.a += L::sum(L::select(off, zero, e.a.v));
  sums.b += L::sum(L::select(off, zero, e.b.v));
}

/* tokens is a datum's loss, scale * sum f(lp, inputs...), over the tokens whose mask is not 0 (all, if mask is NULL); it
 * overwrites the datum's weights and returns the sum of f times scale in .loss, and the plain sums of its other numbers.
 *
 *   tl::tokens(r, d, advantages, 1.0, [&](auto lp, auto q, auto a) { return -(exp(lp - q) * a); }, logprobs, advantages); */
template <class F, class... C> Sums tokens(tl_request *r, uint32_t datum, const float *mask, double scale, F f, C... inputs) {
  const float *lp = tl_logprobs(r, datum);
  float *out = tl_out(r, datum);
  uint32_t n = tl_count(r, datum), i = 0;
  Sums sums;
  for (; i + 2 <= n; i += 2) tokens_at<tl_f64x2>(i, lp, mask, out, scale, sums, f, In(inputs)...);
  for (; i < n; i++) tokens_at<double>(i, lp, mask, out, scale, sums, f, In(inputs)...);
  sums.loss *= scale;
  return sums;
}

/* ---- tape: vectors over tokens, datums, groups ----
 *
 * begin(r); then formulas over Vec; then return backward(loss), which sets r->loss and the weights. A vector of one element
 * goes with any other; else lengths must be equal. Values are float64: a vector of n elements takes 8n bytes, and 8n more for its
 * gradient when the log-probabilities reach it. A tape holds 256 vectors; what goes wrong is told by backward. */

enum Op : uint8_t {
  LEAF, ADD, SUB, MUL, DIV, MIN, MAX, NEG, EXP, LOG, SOFTPLUS, SIGMOID, SQRT, KEEP,
  SUM, EVERY, DATUM_SUM, OF_DATUM, GROUP_SUM, OF_GROUP,
};

struct Node {
  double *v, *g; /* value; gradient, NULL for constants */
  uint32_t n, x, y; /* length, operands or (EVERY) first and step in y */
  Op op;
  bool live; /* depends on the log-probabilities */
};

struct Tape {
  tl_request *r;
  const char *wrong; /* the first thing that went wrong */
  uint32_t n, logprobs;
  Node node[256];
};
inline Tape tape;

struct Id {
  uint32_t id;
};
struct Vec {
  uint32_t id;
  Vec(Id i) : id(i.id) {}
  Vec(double value); /* a vector of one constant */
  uint32_t size() const { return tape.node[id].n; }
  double operator[](uint32_t i) const { return tape.node[id].v[i]; }
};

TL_NO_INLINE Id node(Op op, uint32_t n, uint32_t x, uint32_t y, bool live) {
  if (tape.n == sizeof tape.node / sizeof *tape.node) tape.wrong = tape.wrong ? tape.wrong : "tape: more than 256 vectors";
  double *v = tape.wrong ? nullptr : (double *)tl_scratch(8 * (size_t)(n ? n : 1));
  if (!v) {
    if (!tape.wrong) tape.wrong = "tape: out of memory";
    return {0};
  }
  tape.node[tape.n] = {v, nullptr, n, x, y, op, live};
  return {tape.n++};
}
/* Once something is wrong, all results are vector 0, which has length 1. */
TL_NO_INLINE void begin(tl_request *r) {
  tape.r = r;
  tape.wrong = nullptr;
  tape.n = 0;
  tape.logprobs = ~0u;
  static double zero;
  zero = 0;
  tape.node[tape.n++] = {&zero, nullptr, 1, 0, 0, LEAF, false};
}
inline Vec::Vec(double value) : id(node(LEAF, 1, 0, 0, false).id) {
  if (id) tape.node[id].v[0] = value;
}

/* column fills a leaf of length n_elems with a column; a datum that lacks it has the value missing in its place. */
TL_NO_INLINE Vec column(const tl_column *c, double missing, bool live) {
  tl_request *r = tape.r;
  Vec x = node(LEAF, r->n_elems, 0, 0, live);
  if (!x.id) return x;
  for (uint32_t d = 0; d < r->n_datums; d++) {
    const float *p = tl_f32(r, c, d);
    double *v = tape.node[x.id].v + tl_tokens(r, d).start;
    for (uint32_t i = 0, n = tl_count(r, d); i < n; i++) v[i] = p ? p[i] : missing;
  }
  return x;
}
inline Vec logprobs() {
  if (tape.logprobs == ~0u) tape.logprobs = column((const tl_column *)tl_at(tape.r, tape.r->columns_off), 0, true).id;
  return Id{tape.logprobs};
}
/* per_token is an input with one number per log-probability; per_datum one of shape [1]. */
inline Vec per_token(const char *name, double missing = 0) { return column(tl_find(tape.r, name), missing, false); }
TL_NO_INLINE Vec per_datum(const char *name, double missing = 0) {
  const tl_column *c = tl_find(tape.r, name);
  Vec x = node(LEAF, tape.r->n_datums, 0, 0, false);
  for (uint32_t d = 0; x.id && d < x.size(); d++) {
    const float *f = tl_f32(tape.r, c, d);
    const int64_t *i = tl_i64(tape.r, c, d);
    tape.node[x.id].v[d] = f ? *f : i ? (double)*i : missing;
  }
  return x;
}

/* one sets v = f(x), and g(x) += gradient * df(x, v). */
template <class F> static inline void one(const Node &o, F f) {
  const double *x = tape.node[o.x].v;
  for (uint32_t i = 0; i < o.n; i++) o.v[i] = f(x[i]);
}
template <class F> static inline void one_back(const Node &o, F df) {
  Node &x = tape.node[o.x];
  for (uint32_t i = 0; i < o.n; i++) x.g[i] += o.g[i] * df(x.v[i], o.v[i]);
}
template <class F> static inline void two(const Node &o, F f) {
  const Node &x = tape.node[o.x], &y = tape.node[o.y];
  if (x.n == o.n && y.n == o.n) for (uint32_t i = 0; i < o.n; i++) o.v[i] = f(x.v[i], y.v[i]);
  else if (x.n == o.n) for (uint32_t i = 0; i < o.n; i++) o.v[i] = f(x.v[i], y.v[0]);
  else for (uint32_t i = 0; i < o.n; i++) o.v[i] = f(x.v[0], y.v[i]);
}
/* dx and dy are the derivatives by the operands, of (x, y, v). A lone operand gets the sum. */
template <class F> static inline void side_back(const Node &o, Node &to, F d) {
  if (!to.g) return;
  const Node &x = tape.node[o.x], &y = tape.node[o.y];
  uint32_t sx = x.n == o.n, sy = y.n == o.n;
  if (to.n == o.n) for (uint32_t i = 0; i < o.n; i++) to.g[i] += o.g[i] * d(x.v[i * sx], y.v[i * sy], o.v[i]);
  else for (uint32_t i = 0; i < o.n; i++) to.g[0] += o.g[i] * d(x.v[i * sx], y.v[i * sy], o.v[i]);
}
template <class F, class G> static inline void two_back(const Node &o, F dx, G dy) {
  side_back(o, tape.node[o.x], dx);
  side_back(o, tape.node[o.y], dy);
}

/* spread and gather go between tokens and datums (by the spans) or datums and groups: to[of(i)] += from[i], or the reverse. */
template <class F> static inline void parts(Op op, F f) {
  tl_request *r = tape.r;
  if (op == GROUP_SUM || op == OF_GROUP) {
    for (uint32_t d = 0; d < r->n_datums; d++) f(d, tl_group(r, d));
    return;
  }
  for (uint32_t d = 0; d < r->n_datums; d++)
    for (uint32_t i = tl_tokens(r, d).start, end = i + tl_count(r, d); i < end; i++) f(i, d);
}

TL_NO_INLINE void forward(const Node &o) {
  const double *x = tape.node[o.x].v;
  double *v = o.v;
  switch (o.op) {
  case LEAF: break;
  case ADD: two(o, [](double a, double b) { return a + b; }); break;
  case SUB: two(o, [](double a, double b) { return a - b; }); break;
  case MUL: two(o, [](double a, double b) { return a * b; }); break;
  case DIV: two(o, [](double a, double b) { return a / b; }); break;
  case MIN: two(o, [](double a, double b) { return b < a ? b : a; }); break;
  case MAX: two(o, [](double a, double b) { return b > a ? b : a; }); break;
  case KEEP: two(o, [](double a, double b) { return b != 0 ? a : 0; }); break;
  case NEG: one(o, [](double a) { return -a; }); break;
  case EXP: one(o, tl_exp); break;
  case LOG: one(o, tl_log); break;
  case SOFTPLUS: one(o, tl_softplus); break;
  case SIGMOID: one(o, tl_sigmoid); break;
  case SQRT: one(o, tl_sqrt); break;
  case SUM:
    v[0] = 0;
    for (uint32_t i = 0; i < tape.node[o.x].n; i++) v[0] += x[i];
    break;
  case EVERY:
    for (uint32_t i = 0; i < o.n; i++) v[i] = x[(o.y & 0xFFFF) + i * (o.y >> 16)];
    break;
  case DATUM_SUM: case GROUP_SUM:
    for (uint32_t i = 0; i < o.n; i++) v[i] = 0;
    parts(o.op, [=](uint32_t i, uint32_t whole) { v[whole] += x[i]; });
    break;
  case OF_DATUM: case OF_GROUP: parts(o.op, [=](uint32_t i, uint32_t whole) { v[i] = x[whole]; }); break;
  }
}

TL_NO_INLINE void reverse(const Node &o) {
  double *to = tape.node[o.x].g;
  const double *g = o.g;
  switch (o.op) {
  case LEAF: break;
  case ADD: two_back(o, [](double, double, double) { return 1.0; }, [](double, double, double) { return 1.0; }); break;
  case SUB: two_back(o, [](double, double, double) { return 1.0; }, [](double, double, double) { return -1.0; }); break;
  case MUL: two_back(o, [](double, double b, double) { return b; }, [](double a, double, double) { return a; }); break;
  case DIV: two_back(o, [](double, double b, double) { return 1 / b; }, [](double, double b, double v) { return -v / b; }); break;
  case MIN: two_back(o, [](double a, double b, double) { return b < a ? 0.0 : 1.0; }, [](double a, double b, double) { return b < a ? 1.0 : 0.0; }); break;
  case MAX: two_back(o, [](double a, double b, double) { return b > a ? 0.0 : 1.0; }, [](double a, double b, double) { return b > a ? 1.0 : 0.0; }); break;
  case KEEP: two_back(o, [](double, double b, double) { return b != 0 ? 1.0 : 0.0; }, [](double, double, double) { return 0.0; }); break;
  case NEG: one_back(o, [](double, double) { return -1.0; }); break;
  case EXP: one_back(o, [](double, double v) { return v; }); break;
  case LOG: one_back(o, [](double x, double) { return 1 / x; }); break;
  case SOFTPLUS: one_back(o, [](double x, double) { return tl_sigmoid(x); }); break;
  case SIGMOID: one_back(o, [](double, double v) { return v * (1 - v); }); break;
  case SQRT: one_back(o, [](double, double v) { return v > 0 ? 0.5 / v : 0.0; }); break; /* 0 at 0, not infinity */
  case SUM:
    for (uint32_t i = 0; i < tape.node[o.x].n; i++) to[i] += g[0];
    break;
  case EVERY:
    for (uint32_t i = 0; i < o.n; i++) to[(o.y & 0xFFFF) + i * (o.y >> 16)] += g[i];
    break;
  case DATUM_SUM: case GROUP_SUM: parts(o.op, [=](uint32_t i, uint32_t whole) { to[i] += g[whole]; }); break;
  case OF_DATUM: case OF_GROUP: parts(o.op, [=](uint32_t i, uint32_t whole) { to[whole] += g[i]; }); break;
  }
}

/* apply adds the vector op(x, y) of length n; want is the length x must have, 0 for any. */
TL_NO_INLINE Vec apply(Op op, Vec x, uint32_t n, uint32_t want = 0) {
  if (want && x.size() != want && !tape.wrong) tape.wrong = "tape: a sum over datums or groups, or its reverse, of a vector of another length";
  Vec o = node(op, n, x.id, 0, tape.node[x.id].live);
  if (o.id) forward(tape.node[o.id]);
  return o;
}
TL_NO_INLINE Vec apply2(Op op, Vec x, Vec y) {
  uint32_t a = x.size(), b = y.size();
  if (a != b && a != 1 && b != 1 && !tape.wrong) tape.wrong = "tape: two vectors of different lengths";
  Vec o = node(op, a == 1 ? b : a, x.id, y.id, tape.node[x.id].live || tape.node[y.id].live);
  if (o.id) forward(tape.node[o.id]);
  return o;
}

inline Vec operator+(Vec a, Vec b) { return apply2(ADD, a, b); }
inline Vec operator-(Vec a, Vec b) { return apply2(SUB, a, b); }
inline Vec operator*(Vec a, Vec b) { return apply2(MUL, a, b); }
inline Vec operator/(Vec a, Vec b) { return apply2(DIV, a, b); }
inline Vec operator-(Vec a) { return apply(NEG, a, a.size()); }
inline Vec min(Vec a, Vec b) { return apply2(MIN, a, b); } /* ties: as for dual numbers */
inline Vec max(Vec a, Vec b) { return apply2(MAX, a, b); }
inline Vec clamp(Vec a, Vec lo, Vec hi) { return min(max(a, lo), hi); }
inline Vec keep(Vec a, Vec w) { return apply2(KEEP, a, w); } /* a where w is not 0, else 0, even if a is infinite there */
inline Vec exp(Vec a) { return apply(EXP, a, a.size()); }
inline Vec log(Vec a) { return apply(LOG, a, a.size()); }
inline Vec softplus(Vec a) { return apply(SOFTPLUS, a, a.size()); }
inline Vec sigmoid(Vec a) { return apply(SIGMOID, a, a.size()); }
inline Vec sqrt(Vec a) { return apply(SQRT, a, a.size()); }
inline Vec sq(Vec a) { return a * a; }
inline Vec sum(Vec a) { return apply(SUM, a, 1); }
inline Vec mean(Vec a) { return sum(a) * Vec(a.size() ? 1.0 / a.size() : 0); } /* of this chunk: for metrics */
inline Vec datum_sum(Vec tokens) { return apply(DATUM_SUM, tokens, tape.r->n_datums, tape.r->n_elems); }
inline Vec of_datum(Vec datums) { return apply(OF_DATUM, datums, tape.r->n_elems, tape.r->n_datums); }
inline Vec group_sum(Vec datums) { return apply(GROUP_SUM, datums, tape.r->n_groups, tape.r->n_datums); }
inline Vec of_group(Vec groups) { return apply(OF_GROUP, groups, tape.r->n_datums, tape.r->n_groups); }
/* group_size is the number of datums of each group. */
TL_NO_INLINE Vec group_size() {
  Vec o = node(LEAF, tape.r->n_groups, 0, 0, false);
  for (uint32_t i = 0; o.id && i < o.size(); i++) tape.node[o.id].v[i] = 0;
  for (uint32_t d = 0; o.id && d < tape.r->n_datums; d++) tape.node[o.id].v[tl_group(tape.r, d)]++;
  return o;
}
inline Vec group_mean(Vec datums) { return group_sum(datums) / group_size(); }
/* every is elements first, first+step, ...: every(x, 0, 2) are the chosen ones of pairs. */
TL_NO_INLINE Vec every(Vec a, uint32_t first, uint32_t step) {
  uint32_t n = a.size() > first && step ? (a.size() - first + step - 1) / step : 0;
  Vec o = node(EVERY, n, a.id, first | step << 16, tape.node[a.id].live);
  if (o.id) forward(tape.node[o.id]);
  return o;
}
/* less is 1 where a < b, else 0; it has no derivative. detach is a without one. */
TL_NO_INLINE Vec less(Vec a, Vec b) {
  Vec o = a - b;
  for (uint32_t i = 0; o.id && i < o.size(); i++) tape.node[o.id].v[i] = tape.node[o.id].v[i] < 0;
  tape.node[o.id].op = LEAF;
  tape.node[o.id].live = false;
  return o;
}
inline Vec detach(Vec a) {
  Vec o = a + Vec(0.0);
  tape.node[o.id].op = LEAF;
  tape.node[o.id].live = false;
  return o;
}

inline double param(uint32_t i) { return tl_param(tape.r, i); }
inline void metric(const char *name, Vec one) { tl_metric(tape.r, name, one[0]); }

/* backward ends a loss: it sets r->loss to a vector of one element and every weight to -dloss/dlogprob. */
TL_NO_INLINE int32_t backward(Vec loss) {
  tl_request *r = tape.r;
  if (!tape.wrong && loss.size() != 1) tape.wrong = "tape: backward of more than one number";
  if (tape.wrong) return tl_fail(r, TL_INTERNAL, tape.wrong);
  r->loss = loss[0];
  if (tl_evaluate_only(r) || !tape.node[loss.id].live) return TL_OK;
  for (uint32_t i = 0; i <= loss.id; i++) {
    Node &o = tape.node[i];
    if (!o.live) continue;
    o.g = (double *)tl_scratch(8 * (size_t)(o.n ? o.n : 1));
    if (!o.g) return tl_fail(r, TL_INTERNAL, "tape: out of memory");
    for (uint32_t j = 0; j < o.n; j++) o.g[j] = 0;
  }
  tape.node[loss.id].g[0] = 1;
  for (uint32_t i = loss.id; i > 0; i--)
    if (tape.node[i].live) reverse(tape.node[i]);
  float *out = (float *)tl_at(r, r->out_weights_off);
  const double *g = tape.node[tape.logprobs].g;
  for (uint32_t i = 0; i < r->n_elems; i++) out[i] = (float)-g[i];
  return TL_OK;
}

} /* namespace tl */
#endif
#endif
