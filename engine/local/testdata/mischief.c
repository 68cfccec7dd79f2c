/* A loss that is cross_entropy, and does something wrong with datums whose input "mark" says so. Built by build.sh. */
#include "tinker_loss.h"

enum { HONEST = 1, TRAP, SPIN, NAN_WEIGHT, NAN_LOSS, USER, NUMERICAL, RECURSE };

static volatile uint32_t turns;

static __attribute__((noinline)) uint32_t deeper(uint32_t n) { /* not a tail call: it adds after it returns */
  turns++;
  return n == 0xffffffff ? 0 : deeper(n + 1) + turns;
}

static int32_t mischief(tl_request *r) {
  const tl_column *weights = tl_find(r, "weights"), *marks = tl_find(r, "mark");
  double sum = 0;
  for (uint32_t d = 0; d < r->n_datums; d++) {
    const float *t = tl_logprobs(r, d), *w = tl_f32(r, weights, d);
    float *out = tl_out(r, d);
    for (uint32_t i = 0, n = tl_count(r, d); i < n; i++) {
      out[i] = w ? w[i] : 1;
      if (out[i] != 0) sum -= (double)out[i] * (double)t[i];
    }
    const int64_t *mark = tl_i64(r, marks, d);
    switch (mark ? *mark : HONEST) {
      case TRAP: __builtin_trap(); break;
      case SPIN: for (;;) turns++; break;
      case NAN_WEIGHT: out[0] = __builtin_nanf(""); break;
      case NAN_LOSS: sum = __builtin_nan(""); break;
      case USER: return tl_fail_datum(r, d, "the mark is wrong");
      case NUMERICAL: return tl_fail(r, TL_NUMERICAL, "no number is right");
      case RECURSE: deeper(0); break;
      default: break;
    }
  }
  r->loss = sum;
  tl_metric(r, "mischief/told:max", tl_evaluate_only(r) ? 1 : 0); /* that no weights are wanted */
  return TL_OK;
}

#define TEXT(x) #x
#define STRING(x) TEXT(x)
TL_PLUGIN(
    "{\"name\":\"mischief\",\"version\":\"1.0.0\",\"license\":\"Apache-2.0\",\"summary\":\"for tests of what a module may do wrong\","
    "\"scope\":\"" STRING(SCOPE) "\",\"inputs\":[{\"name\":\"weights\",\"dtype\":\"float32\",\"like\":\"logprobs\",\"optional\":true},"
    "{\"name\":\"mark\",\"dtype\":\"int64\",\"shape\":[1],\"optional\":true}],\"params\":[],\"metrics\":[\"mischief/told:max\"]}",
    mischief)
