/* The built-in ppo as a module, for tests of hosts: L = sum -min(ratio A, clamp(ratio, low, high) A), ratio = exp(t-q). The bounds
 * are parameters, or inputs with one number per token. Tokens of advantage 0 are masked. */
#include "tinker_loss.h"

static int32_t ppo(tl_request *r) {
  const tl_column *logprobs = tl_find(r, "logprobs"), *advantages = tl_find(r, "advantages");
  const tl_column *bounds[2] = {tl_find(r, "clip_low_threshold"), tl_find(r, "clip_high_threshold")};
  double sum = 0;
  for (uint32_t d = 0; d < r->n_datums; d++) {
    if (tl_tokens(r, d).dim1 != 1) return tl_fail_datum(r, d, "ppo wants one target for each position");
    const float *a = tl_f32(r, advantages, d), *lows = tl_f32(r, bounds[0], d), *highs = tl_f32(r, bounds[1], d);
    for (uint32_t i = 0, n = tl_count(r, d); i < n; i++) {
      double low = lows ? lows[i] : tl_param(r, 0), high = highs ? highs[i] : tl_param(r, 1);
      if (!(low >= 0 && low <= high)) return tl_fail_datum(r, d, "clip thresholds are not 0 <= low <= high");
    }
    sum += tl::tokens(r, d, a, 1, [](auto t, auto q, auto a, auto low, auto high) {
      auto ratio = exp(t - q);
      return -min(ratio * a, clamp(ratio, low, high) * a);
    }, tl_f32(r, logprobs, d), a, tl::In(lows, tl_param(r, 0)), tl::In(highs, tl_param(r, 1))).loss;
  }
  r->loss = sum;
  return TL_OK;
}

TL_PLUGIN(
    "{\"name\":\"ppo\",\"version\":\"1.0.0\",\"license\":\"Apache-2.0\",\"summary\":\"The built-in loss of this name, as a module.\","
    "\"scope\":\"datum\",\"inputs\":[{\"name\":\"logprobs\",\"dtype\":\"float32\",\"like\":\"logprobs\"},"
    "{\"name\":\"advantages\",\"dtype\":\"float32\",\"like\":\"logprobs\"},"
    "{\"name\":\"clip_low_threshold\",\"dtype\":\"float32\",\"like\":\"logprobs\",\"optional\":true},"
    "{\"name\":\"clip_high_threshold\",\"dtype\":\"float32\",\"like\":\"logprobs\",\"optional\":true}],"
    "\"params\":[{\"name\":\"clip_low_threshold\",\"type\":\"number\",\"default\":0.8,\"min\":0},"
    "{\"name\":\"clip_high_threshold\",\"type\":\"number\",\"default\":1.2,\"min\":0}],\"metrics\":[]}",
    ppo)
