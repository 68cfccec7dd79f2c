/* Group relative policy optimisation. Shao et al. 2024, arXiv 2402.03300, eq. 3 and 4.
 *
 *   A = (reward - mean of group) / (std of group + 1e-4)     std with n-1; not divided if scale_rewards is 0
 *   l = -min(ratio A, clamp(ratio, low, high) A) + beta * (exp(ref-t) - (ref-t) - 1),   ratio = exp(t - q)
 *   L = mean over groups of: mean over the group's datums of mean over tokens of l       length_norm sequence (the paper)
 *                            sum over all the group's tokens / their number              length_norm group (DAPO, arXiv 2503.14476, eq. 8)
 *                            mean over the group's datums of sum over tokens             length_norm none (Dr. GRPO, arXiv 2503.20783)
 *
 * t is the policy's log-probability, q (logprobs) the sampler's, t itself when a datum has none: ratio 1, gradient A. Tokens are those
 * of weight other than 0, all when a datum has no weights.
 */
#include "tinker_loss.h"

struct Group {
  double datums, reward, square, tokens;
};

static int32_t grpo(tl_request *r) {
  const tl_column *weights = tl_find(r, "weights"), *sampler = tl_find(r, "logprobs"), *ref = tl_find(r, "ref_logprobs"), *rewards = tl_find(r, "reward");
  double low = tl_param(r, 0), high = tl_param(r, 1), beta = tl_param(r, 2), scale_rewards = tl_param(r, 3);
  int length_norm = (int)tl_param(r, 4);
  if (low > high) return tl_fail(r, TL_USER, "clip_low_threshold is above clip_high_threshold");

  Group *groups = (Group *)tl_scratch(sizeof(Group) * (size_t)r->n_groups);
  double *length = (double *)tl_scratch(8 * (size_t)r->n_datums);
  if (!groups || !length) return tl_fail(r, TL_INTERNAL, "out of memory");
  for (uint32_t g = 0; g < r->n_groups; g++) groups[g] = {0, 0, 0, 0};
  for (uint32_t d = 0; d < r->n_datums; d++) {
    Group &g = groups[tl_group(r, d)];
    const float *w = tl_f32(r, weights, d);
    length[d] = 0;
    for (uint32_t i = 0, n = tl_count(r, d); i < n; i++) length[d] += !w || w[i] != 0;
    g.datums++;
    g.reward += *tl_f32(r, rewards, d);
    g.tokens += length[d];
  }
  for (uint32_t d = 0; d < r->n_datums; d++) {
    Group &g = groups[tl_group(r, d)];
    double away = *tl_f32(r, rewards, d) - g.reward / g.datums;
    g.square += away * away;
  }

  double reward = 0, spread = 0, clipped = 0, kl = 0, sum = 0;
  bool any_ref = false;
  for (uint32_t d = 0; d < r->n_datums; d++) {
    const Group &g = groups[tl_group(r, d)];
    const float *w = tl_f32(r, weights, d), *q = tl_f32(r, sampler, d), *p = tl_f32(r, ref, d);
    if (beta != 0 && !p) return tl_fail_datum(r, d, "ref_logprobs is missing, beta is not 0");
    double std = g.datums > 1 ? tl_sqrt(g.square / (g.datums - 1)) : 0;
    double advantage = *tl_f32(r, rewards, d) - g.reward / g.datums;
    if (scale_rewards != 0) advantage /= std + 1e-4;
    double share = 1.0 / r->batch_groups;
    if (length_norm == 1) share /= tl_max(g.tokens, 1);
    else share /= g.datums * (length_norm == 0 ? tl_max(length[d], 1) : 1);
    reward += *tl_f32(r, rewards, d);
    spread += std;
    any_ref |= p != nullptr;

    if (!q) q = tl_logprobs(r, d); /* an input: held constant */
    auto clipped_ratio = [=](auto t, auto q) {
      auto ratio = exp(t - q), free = ratio * advantage, held = clamp(ratio, low, high) * advantage;
      return each(-min(free, held), less(held, free), q - q);
    };
    tl::Sums s = !p ? tl::tokens(r, d, w, share, clipped_ratio, q) : tl::tokens(r, d, w, share, [=](auto t, auto q, auto p) {
      auto away = p - t, k = expm1(away) - away;
      auto e = clipped_ratio(t, q);
      return each(e.loss + beta * k, e.a, k.value());
    }, q, p);
    sum += s.loss;
    clipped += s.a / tl_max(length[d], 1);
    kl += s.b / tl_max(length[d], 1);
  }
  r->loss = sum;
  tl_metric(r, "reward:mean", reward / r->n_datums);
  tl_metric(r, "reward_std:mean", spread / r->n_datums);
  tl_metric(r, "clip_frac:mean", clipped / r->n_datums);
  if (any_ref) tl_metric(r, "kl:mean", kl / r->n_datums);
  return TL_OK;
}

TL_PLUGIN(
    "{\"name\":\"grpo\",\"version\":\"1.0.0\",\"license\":\"Apache-2.0\","
    "\"summary\":\"Group relative policy optimisation (arXiv 2402.03300, eq. 3): advantages from the rewards of a group, clipped ratios, KL to a reference "
    "(beta, 0.04 in the paper). Mean over groups, answers and tokens; length_norm group is DAPO's, none Dr. GRPO's. weights mark the answer's tokens; "
    "without logprobs (the sampler's) the ratio is 1.\","
    "\"scope\":\"group\",\"grouping\":{\"by\":\"input\",\"name\":\"group\"},"
    "\"inputs\":[{\"name\":\"group\",\"dtype\":\"int64\",\"shape\":[1],\"summary\":\"the same number for all answers to one prompt\"},"
    "{\"name\":\"reward\",\"dtype\":\"float32\",\"shape\":[1],\"summary\":\"of the answer\"},"
    "{\"name\":\"weights\",\"dtype\":\"float32\",\"like\":\"logprobs\",\"optional\":true,\"summary\":\"1 on the answer's tokens, 0 elsewhere; all tokens count without it\"},"
    "{\"name\":\"logprobs\",\"dtype\":\"float32\",\"like\":\"logprobs\",\"optional\":true,\"summary\":\"the sampler's log-probabilities; without them the ratio is 1\"},"
    "{\"name\":\"ref_logprobs\",\"dtype\":\"float32\",\"like\":\"logprobs\",\"optional\":true,\"summary\":\"the reference model's log-probabilities; needed if beta is not 0\"}],"
    "\"params\":[{\"name\":\"clip_low_threshold\",\"type\":\"number\",\"default\":0.8,\"min\":0,\"summary\":\"least ratio\"},"
    "{\"name\":\"clip_high_threshold\",\"type\":\"number\",\"default\":1.2,\"min\":0,\"summary\":\"greatest ratio\"},"
    "{\"name\":\"beta\",\"type\":\"number\",\"default\":0,\"min\":0,\"summary\":\"factor of the KL divergence from the reference\"},"
    "{\"name\":\"scale_rewards\",\"type\":\"bool\",\"default\":1,\"summary\":\"1 divides by the standard deviation of the group\"},"
    "{\"name\":\"length_norm\",\"type\":\"enum\",\"values\":[\"sequence\",\"group\",\"none\"],\"default\":0,\"summary\":\"mean over an answer's tokens, over a group's, or sum\"}],"
    "\"metrics\":[\"reward:mean\",\"reward_std:mean\",\"clip_frac:mean\",\"kl:mean\"]}",
    grpo)
