/* Direct preference optimisation. Rafailov et al. 2023, arXiv 2305.18290, eq. 7; label smoothing as in Mitchell 2023,
 * "A note on DPO with noisy preferences" (cDPO); the offset as in Amini et al. 2024, arXiv 2402.10571 (ODPO).
 *
 *   h = beta * [(s_chosen - s_chosen^ref) - (s_rejected - s_rejected^ref)] - margin,   s = sum of weights * logprob
 *   L = 1/pairs * sum (1-e) softplus(-h) + e softplus(h)                               e = label_smoothing
 */
#include "tinker_loss.h"

static int32_t dpo(tl_request *r) {
  const tl_column *weights = tl_find(r, "weights"), *ref = tl_find(r, "ref_logprobs"), *offset = tl_find(r, "margin");
  double beta = tl_param(r, 0), smooth = tl_param(r, 1), pairs = r->batch_datums / 2;
  double sum = 0, right = 0, up = 0, down = 0;
  for (uint32_t d = 0; d + 1 < r->n_datums; d += 2) {
    const float *w[2] = {tl_f32(r, weights, d), tl_f32(r, weights, d + 1)}, *m = tl_f32(r, offset, d);
    double reward[2];
    for (int i = 0; i < 2; i++) reward[i] = beta * tl_score(tl_logprobs(r, d + i), tl_f32(r, ref, d + i), w[i], tl_count(r, d + i));
    double h = reward[0] - reward[1] - (m ? *m : 0);
    sum += (1 - smooth) * tl_softplus(-h) + smooth * tl_softplus(h);
    double dh = (smooth * tl_sigmoid(h) - (1 - smooth) * tl_sigmoid(-h)) / pairs; /* dL/dh */
    if (!tl_evaluate_only(r))
      for (int i = 0; i < 2; i++) tl_spread(tl_out(r, d + i), w[i], tl_count(r, d + i), i ? -beta * dh : beta * dh);
    right += reward[0] > reward[1];
    up += reward[0];
    down += reward[1];
  }
  r->loss = sum / pairs;
  double here = r->n_datums / 2;
  tl_metric(r, "accuracy:mean", right / here);
  tl_metric(r, "margin:mean", (up - down) / here);
  tl_metric(r, "chosen_reward:mean", up / here);
  tl_metric(r, "rejected_reward:mean", down / here);
  return TL_OK;
}

TL_PLUGIN(
    "{\"name\":\"dpo\",\"version\":\"1.0.2\",\"license\":\"Apache-2.0\","
    "\"summary\":\"Direct preference optimisation (arXiv 2305.18290, eq. 7), mean over pairs. Datums 2i and 2i+1 are the chosen and the rejected answer; "
    "weights mark the answer's tokens, ref_logprobs are the reference model's. margin (of the chosen datum) is subtracted from the difference of rewards.\","
    "\"scope\":\"group\",\"grouping\":{\"by\":\"consecutive\",\"size\":2},"
    "\"inputs\":[{\"name\":\"weights\",\"dtype\":\"float32\",\"like\":\"logprobs\",\"summary\":\"1 on the answer's tokens, 0 elsewhere\"},"
    "{\"name\":\"ref_logprobs\",\"dtype\":\"float32\",\"like\":\"logprobs\",\"summary\":\"the reference model's log-probabilities\"},"
    "{\"name\":\"margin\",\"dtype\":\"float32\",\"shape\":[1],\"optional\":true,\"summary\":\"of the chosen datum; subtracted from the difference of rewards\"}],"
    "\"params\":[{\"name\":\"beta\",\"type\":\"number\",\"default\":0.1,\"min\":0,\"summary\":\"strength of the pull towards the reference\"},"
    "{\"name\":\"label_smoothing\",\"type\":\"number\",\"default\":0,\"min\":0,\"max\":0.5,\"summary\":\"share of pairs that are the wrong way round\"}],"
    "\"metrics\":[\"accuracy:mean\",\"margin:mean\",\"chosen_reward:mean\",\"rejected_reward:mean\"]}",
    dpo)
