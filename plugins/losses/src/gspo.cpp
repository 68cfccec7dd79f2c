/* Group sequence policy optimisation. Zheng et al. 2025, arXiv 2507.18071, eq. 5 to 7.
 *
 *   A = (reward - mean of group) / (std of group + 1e-4)     std with n-1; not divided if scale_rewards is 0
 *   ratio = exp(mean over the datum's tokens of t - q)       t the policy's log-probability, q (logprobs) the sampler's
 *   L = mean over groups of mean over the group's datums of -min(ratio A, clamp(ratio, low, high) A)
 *
 * Tokens are those of weight other than 0.
 */
#include "tinker_loss.h"
using namespace tl;

static int32_t gspo(tl_request *r) {
  begin(r);
  if (param(0) > param(1)) return tl_fail(r, TL_USER, "clip_low_threshold is above clip_high_threshold");
  Vec reward = per_datum("reward"), away = reward - of_group(group_mean(reward)), advantage = away;
  if (param(2) != 0) advantage = away / (of_group(sqrt(group_sum(sq(away)) / max(group_size() - 1.0, 1.0))) + 1e-4);

  Vec w = per_token("weights", 1), one = keep(Vec(1.0), w);
  Vec ratio = exp(datum_sum(keep(logprobs() - per_token("logprobs"), w)) / max(datum_sum(one), 1.0));
  Vec free = ratio * advantage, held = clamp(ratio, param(0), param(1)) * advantage;
  metric("reward:mean", mean(reward));
  metric("ratio:mean", mean(ratio));
  metric("clip_frac:mean", mean(less(held, free)));
  return backward((-1.0 / r->batch_groups) * sum(group_mean(min(free, held))));
}

TL_PLUGIN(
    "{\"name\":\"gspo\",\"version\":\"1.0.0\",\"license\":\"Apache-2.0\","
    "\"summary\":\"Group sequence policy optimisation (arXiv 2507.18071, eq. 5): advantages from the rewards of a group, one clipped ratio per answer, "
    "the geometric mean of its tokens' ratios. Mean over groups and answers. weights mark the answer's tokens, logprobs are the sampler's.\","
    "\"scope\":\"group\",\"grouping\":{\"by\":\"input\",\"name\":\"group\"},"
    "\"inputs\":[{\"name\":\"group\",\"dtype\":\"int64\",\"shape\":[1],\"summary\":\"the same number for all answers to one prompt\"},"
    "{\"name\":\"reward\",\"dtype\":\"float32\",\"shape\":[1],\"summary\":\"of the answer\"},"
    "{\"name\":\"logprobs\",\"dtype\":\"float32\",\"like\":\"logprobs\",\"summary\":\"the sampler's log-probabilities\"},"
    "{\"name\":\"weights\",\"dtype\":\"float32\",\"like\":\"logprobs\",\"optional\":true,\"summary\":\"1 on the answer's tokens, 0 elsewhere; all tokens count without it\"}],"
    "\"params\":[{\"name\":\"clip_low_threshold\",\"type\":\"number\",\"default\":0.9997,\"min\":0,\"summary\":\"least ratio\"},"
    "{\"name\":\"clip_high_threshold\",\"type\":\"number\",\"default\":1.0004,\"min\":0,\"summary\":\"greatest ratio\"},"
    "{\"name\":\"scale_rewards\",\"type\":\"bool\",\"default\":1,\"summary\":\"1 divides by the standard deviation of the group\"}],"
    "\"metrics\":[\"reward:mean\",\"ratio:mean\",\"clip_frac:mean\"]}",
    gspo)
