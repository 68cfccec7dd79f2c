/* Kahneman-Tversky optimisation: single answers labelled good or bad. Ethayarajh et al. 2024, arXiv 2402.01306, eq. 8.
 *
 *   s = sum of weights * (logprob - ref_logprob)
 *   z0 = max(0, mean of s over the mismatched datums, label -1), held constant; 0 when there are none
 *   L = 1/n * sum lambda_D (1 - sigmoid(beta (s - z0)))   label 1, desirable
 *                 lambda_U (1 - sigmoid(beta (z0 - s)))   label 0, undesirable;  n counts labels 0 and 1
 *
 * The mismatched datums pair a prompt with another prompt's answer and stand for KL(policy || reference) (section 4.2 there);
 * they get no gradient.
 */
#include "tinker_loss.h"

static int32_t kto(tl_request *r) {
  const tl_column *weights = tl_find(r, "weights"), *ref = tl_find(r, "ref_logprobs"), *labels = tl_find(r, "label");
  double beta = tl_param(r, 0), lambda[2] = {tl_param(r, 2), tl_param(r, 1)}; /* by label */
  double *s = (double *)tl_scratch(8 * (size_t)r->n_datums), z0 = 0, count[2] = {0, 0}, reward[2] = {0, 0}, mismatched = 0, sum = 0;
  if (!s) return tl_fail(r, TL_INTERNAL, "out of memory");
  for (uint32_t d = 0; d < r->n_datums; d++) {
    int64_t label = *tl_i64(r, labels, d);
    if (label < -1 || label > 1) return tl_fail_datum(r, d, "label is none of 1 (desirable), 0 (undesirable), -1 (mismatched)");
    s[d] = tl_score(tl_logprobs(r, d), tl_f32(r, ref, d), tl_f32(r, weights, d), tl_count(r, d));
    if (label < 0) {
      z0 += s[d];
      mismatched++;
    } else {
      count[label]++;
      reward[label] += beta * s[d];
    }
  }
  double n = count[0] + count[1];
  if (n == 0) return tl_fail(r, TL_USER, "no datum has label 1 (desirable) or 0 (undesirable)");
  z0 = mismatched > 0 ? tl_max(z0 / mismatched, 0) : 0;
  for (uint32_t d = 0; d < r->n_datums; d++) {
    int64_t label = *tl_i64(r, labels, d);
    if (label < 0) continue; /* weights stay 0 */
    double sign = label ? 1 : -1, v = tl_sigmoid(sign * beta * (s[d] - z0)), opposite = tl_sigmoid(-sign * beta * (s[d] - z0));
    sum += lambda[label] * opposite;
    if (!tl_evaluate_only(r))
      tl_spread(tl_out(r, d), tl_f32(r, weights, d), tl_count(r, d), -sign * lambda[label] * beta * v * opposite / n);
  }
  r->loss = sum / n;
  tl_metric(r, "kl:mean", z0);
  if (count[1] > 0) tl_metric(r, "chosen_reward:mean", reward[1] / count[1]);
  if (count[0] > 0) tl_metric(r, "rejected_reward:mean", reward[0] / count[0]);
  if (count[0] > 0 && count[1] > 0) tl_metric(r, "margin:mean", reward[1] / count[1] - reward[0] / count[0]);
  return TL_OK;
}

TL_PLUGIN(
    "{\"name\":\"kto\",\"version\":\"1.0.2\",\"license\":\"Apache-2.0\","
    "\"summary\":\"Kahneman-Tversky optimisation (arXiv 2402.01306, eq. 8), mean over labelled datums. label 1 is a desirable answer, 0 an undesirable one, "
    "-1 a prompt with another prompt's answer: those only estimate the reference point z0, which is 0 without them.\","
    "\"scope\":\"batch\","
    "\"inputs\":[{\"name\":\"weights\",\"dtype\":\"float32\",\"like\":\"logprobs\",\"summary\":\"1 on the answer's tokens, 0 elsewhere\"},"
    "{\"name\":\"ref_logprobs\",\"dtype\":\"float32\",\"like\":\"logprobs\",\"summary\":\"the reference model's log-probabilities\"},"
    "{\"name\":\"label\",\"dtype\":\"int64\",\"shape\":[1],\"summary\":\"1 desirable, 0 undesirable, -1 mismatched: for the reference point only\"}],"
    "\"params\":[{\"name\":\"beta\",\"type\":\"number\",\"default\":0.1,\"min\":0,\"summary\":\"factor of the log-ratio\"},"
    "{\"name\":\"desirable_weight\",\"type\":\"number\",\"default\":1,\"min\":0,\"summary\":\"of datums of label 1\"},"
    "{\"name\":\"undesirable_weight\",\"type\":\"number\",\"default\":1,\"min\":0,\"summary\":\"of datums of label 0\"}],"
    "\"metrics\":[\"kl:mean\",\"chosen_reward:mean\",\"rejected_reward:mean\",\"margin:mean\"]}",
    kto)
