/* Bradley-Terry preference model on sequence scores. Bradley & Terry 1952, Biometrika 39; as a loss: Ouyang et al. 2022,
 * arXiv 2203.02155, eq. 1. With average and margin it is SimPO (Meng et al. 2024, arXiv 2405.14734, eq. 6).
 *
 *   s = sum of weights * logprob, divided by the sum of weights if average
 *   L = 1/pairs * sum softplus(-(beta * (s_chosen - s_rejected) - margin))
 */
#include "tinker_loss.h"
using namespace tl;

static int32_t bradley_terry(tl_request *r) {
  begin(r);
  Vec w = per_token("weights"), s = datum_sum(w * keep(logprobs(), w));
  if (param(2) != 0) s = s / max(datum_sum(w), 1e-9); /* a datum without tokens has score 0 */
  Vec chosen = every(s, 0, 2), rejected = every(s, 1, 2), gap = param(0) * (chosen - rejected);
  metric("accuracy:mean", mean(less(rejected, chosen)));
  metric("margin:mean", mean(gap));
  metric("chosen_score:mean", mean(chosen));
  metric("rejected_score:mean", mean(rejected));
  return backward((2.0 / r->batch_datums) * sum(softplus(param(1) - gap)));
}

TL_PLUGIN(
    "{\"name\":\"bradley_terry\",\"version\":\"1.0.0\",\"license\":\"Apache-2.0\","
    "\"summary\":\"Bradley-Terry preference loss (arXiv 2203.02155, eq. 1) on sequence scores, mean over pairs. Datums 2i and 2i+1 are the preferred and "
    "the other sequence; the score is the sum of weights*logprob, with average=1 their mean; average=1 and a margin make SimPO (arXiv 2405.14734, eq. 6).\","
    "\"scope\":\"group\",\"grouping\":{\"by\":\"consecutive\",\"size\":2},"
    "\"inputs\":[{\"name\":\"weights\",\"dtype\":\"float32\",\"like\":\"logprobs\",\"summary\":\"1 on the answer's tokens, 0 elsewhere\"}],"
    "\"params\":[{\"name\":\"beta\",\"type\":\"number\",\"default\":1,\"min\":0,\"summary\":\"factor of the difference of scores\"},"
    "{\"name\":\"margin\",\"type\":\"number\",\"default\":0,\"summary\":\"difference that is asked for\"},"
    "{\"name\":\"average\",\"type\":\"bool\",\"default\":0,\"summary\":\"1 divides a score by its sum of weights\"}],"
    "\"metrics\":[\"accuracy:mean\",\"margin:mean\",\"chosen_score:mean\",\"rejected_score:mean\"]}",
    bradley_terry)
