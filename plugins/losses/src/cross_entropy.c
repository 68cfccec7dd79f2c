/* The built-in cross_entropy as a module, for tests of hosts: L = sum -w*t, weights in are weights out; missing ones are 1. */
#include "tinker_loss.h"

static int32_t cross_entropy(tl_request *r) {
  const tl_column *weights = tl_find(r, "weights");
  double sum = 0;
  for (uint32_t d = 0; d < r->n_datums; d++) {
    const float *t = tl_logprobs(r, d), *w = tl_f32(r, weights, d);
    float *out = tl_out(r, d);
    for (uint32_t i = 0, n = tl_count(r, d); i < n; i++) {
      out[i] = w ? w[i] : 1;
      if (out[i] != 0) sum -= (double)out[i] * (double)t[i];
    }
  }
  r->loss = sum;
  return TL_OK;
}

TL_PLUGIN(
    "{\"name\":\"cross_entropy\",\"version\":\"1.0.0\",\"license\":\"Apache-2.0\",\"summary\":\"The built-in loss of this name, as a module.\","
    "\"scope\":\"datum\",\"inputs\":[{\"name\":\"weights\",\"dtype\":\"float32\",\"like\":\"logprobs\",\"optional\":true}],\"params\":[],\"metrics\":[]}",
    cross_entropy)
