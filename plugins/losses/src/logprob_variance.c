/* The unbiased variance of all log-probabilities of the batch, as torch.var has it: the Tinker documentation's example of a
 * custom loss over several sequences ("practically useless", it says there).
 *
 *   L = sum (x - mean)^2 / (n - 1),   dL/dx = 2 (x - mean) / (n - 1)
 */
#include "tinker_loss.h"

static int32_t logprob_variance(tl_request *r) {
  uint32_t n = r->n_elems;
  if (n < 2) return tl_fail(r, TL_USER, "variance of less than two log-probabilities");
  double mean = 0, square = 0;
  for (uint32_t d = 0; d < r->n_datums; d++) {
    const float *x = tl_logprobs(r, d);
    for (uint32_t i = 0; i < tl_count(r, d); i++) mean += x[i];
  }
  mean /= n;
  for (uint32_t d = 0; d < r->n_datums; d++) {
    const float *x = tl_logprobs(r, d);
    float *out = tl_out(r, d);
    for (uint32_t i = 0; i < tl_count(r, d); i++) {
      double away = x[i] - mean;
      square += away * away;
      out[i] = (float)(-2 * away / (n - 1));
    }
  }
  r->loss = square / (n - 1);
  tl_metric(r, "variance_loss:mean", r->loss);
  tl_metric(r, "logprob:mean", mean);
  return TL_OK;
}

TL_PLUGIN(
    "{\"name\":\"logprob_variance\",\"version\":\"1.0.0\",\"license\":\"Apache-2.0\","
    "\"summary\":\"Unbiased variance of all log-probabilities of the batch (torch.var): an example of a loss over several sequences.\","
    "\"scope\":\"batch\",\"inputs\":[],\"params\":[],\"metrics\":[\"variance_loss:mean\",\"logprob:mean\"]}",
    logprob_variance)
