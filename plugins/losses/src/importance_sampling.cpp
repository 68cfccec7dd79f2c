/* The built-in importance_sampling as a module, for tests of hosts: L = sum -exp(t-q)*A. Tokens of advantage 0 are masked. */
#include "tinker_loss.h"

static int32_t importance_sampling(tl_request *r) {
  const tl_column *logprobs = tl_find(r, "logprobs"), *advantages = tl_find(r, "advantages");
  for (uint32_t d = 0; d < r->n_datums; d++)
    if (tl_tokens(r, d).dim1 != 1) return tl_fail_datum(r, d, "importance_sampling wants one target for each position");
  double sum = 0;
  for (uint32_t d = 0; d < r->n_datums; d++) {
    const float *a = tl_f32(r, advantages, d);
    sum += tl::tokens(r, d, a, 1, [](auto t, auto q, auto a) { return -(exp(t - q) * a); }, tl_f32(r, logprobs, d), a).loss;
  }
  r->loss = sum;
  return TL_OK;
}

TL_PLUGIN(
    "{\"name\":\"importance_sampling\",\"version\":\"1.0.0\",\"license\":\"Apache-2.0\",\"summary\":\"The built-in loss of this name, as a module.\","
    "\"scope\":\"datum\",\"inputs\":[{\"name\":\"logprobs\",\"dtype\":\"float32\",\"like\":\"logprobs\"},"
    "{\"name\":\"advantages\",\"dtype\":\"float32\",\"like\":\"logprobs\"}],\"params\":[],\"metrics\":[]}",
    importance_sampling)
