/* Distillation from a teacher's top-K: targets are N x K candidates, teacher_logprobs their log-probabilities under the teacher.
 * (Hinton et al. 2015, arXiv 1503.02531; forward and reverse as in Agarwal et al. 2024, arXiv 2306.13649, section 2.)
 *
 *   forward   L = sum w p (log p - log q)      p the teacher's, q the policy's probability of a candidate
 *   reverse   L = sum w q (log q - log p)
 *
 * summed over candidates, positions and datums, like the built-in cross_entropy: with forward, the weights are w p, what
 * cross_entropy with the teacher's probabilities as weights has. With renormalize, p and q are divided by their sums over a position's
 * candidates. A candidate of weight 0 does not exist: rows of fewer than K are padded so.
 */
#include "tinker_loss.h"

enum { FORWARD, REVERSE };

/* log_sum is log(sum exp(x)) over the candidates that exist. */
static double log_sum(const float *x, const float *w, uint32_t k) {
  double top = -__builtin_inf(), sum = 0;
  for (uint32_t j = 0; j < k; j++)
    if (!w || w[j] != 0) top = tl_max(top, x[j]);
  if (top == -__builtin_inf()) return top;
  for (uint32_t j = 0; j < k; j++)
    if (!w || w[j] != 0) sum += tl_exp(x[j] - top);
  return top + tl_log(sum);
}

/* row adds up one position and writes its weights. lp and lt are normalisers, log of the sums of q and p (0 if raw).
 * With s = lp_j - lp: dL/dlp_j = direct_j - renormalize * q_j * sum direct, direct_j what a q_j that stands alone gets. */
static double row(const float *q, const float *p, const float *w, uint32_t k, int reverse, int renormalize, double lq, double lt, float *out) {
  double sum = 0, total = 0;
  for (int pass = 0; pass < 1 + renormalize; pass++)
    for (uint32_t j = 0; j < k; j++) {
      double v = w ? w[j] : 1;
      if (v == 0) continue;
      double a = q[j] - lq, b = p[j] - lt, direct, value;
      if (reverse) {
        double e = tl_exp(a);
        value = e == 0 ? 0 : v * e * (a - b);
        direct = value + v * e;
      } else {
        double e = tl_exp(b);
        value = e == 0 ? 0 : v * e * (b - a);
        direct = -v * e;
      }
      if (pass == 0) {
        sum += value;
        total += direct;
      }
      out[j] = (float)-(renormalize ? direct - tl_exp(a) * total : direct);
    }
  return sum;
}

static int32_t topk_distillation(tl_request *r) {
  const tl_column *teacher = tl_find(r, "teacher_logprobs"), *weights = tl_find(r, "weights");
  int reverse = tl_param(r, 0) == REVERSE, renormalize = tl_param(r, 1) != 0;
  double sum = 0, mass[2] = {0, 0};
  for (uint32_t d = 0; d < r->n_datums; d++) {
    tl_span s = tl_tokens(r, d);
    const float *q = tl_logprobs(r, d), *p = tl_f32(r, teacher, d), *w = tl_f32(r, weights, d);
    float *out = tl_out(r, d);
    double rows = 0, here[2] = {0, 0};
    for (uint32_t t = 0; t < s.dim0; t++, q += s.dim1, p += s.dim1, out += s.dim1, w = w ? w + s.dim1 : w) {
      double lq = log_sum(q, w, s.dim1), lt = log_sum(p, w, s.dim1);
      if (lq == -__builtin_inf() && lt == lq) continue; /* no candidate */
      sum += row(q, p, w, s.dim1, reverse, renormalize, renormalize ? lq : 0, renormalize ? lt : 0, out);
      here[0] += tl_exp(lt);
      here[1] += tl_exp(lq);
      rows++;
    }
    for (int i = 0; i < 2; i++) mass[i] += here[i] / tl_max(rows, 1);
  }
  r->loss = sum;
  tl_metric(r, "teacher_mass:mean", mass[0] / r->n_datums);
  tl_metric(r, "student_mass:mean", mass[1] / r->n_datums);
  return TL_OK;
}

TL_PLUGIN(
    "{\"name\":\"topk_distillation\",\"version\":\"1.0.0\",\"license\":\"Apache-2.0\","
    "\"summary\":\"Distillation from a teacher's top-K (arXiv 1503.02531, 2306.13649): targets are N x K candidates, teacher_logprobs theirs under the teacher. "
    "Sum over positions of the forward or reverse KL divergence, of the raw probabilities or renormalised over the candidates. A candidate of weight 0 is left out.\","
    "\"scope\":\"datum\","
    "\"inputs\":[{\"name\":\"teacher_logprobs\",\"dtype\":\"float32\",\"like\":\"logprobs\"},"
    "{\"name\":\"weights\",\"dtype\":\"float32\",\"like\":\"logprobs\",\"optional\":true}],"
    "\"params\":[{\"name\":\"divergence\",\"type\":\"enum\",\"values\":[\"forward\",\"reverse\"],\"default\":0},"
    "{\"name\":\"renormalize\",\"type\":\"bool\",\"default\":0}],"
    "\"metrics\":[\"teacher_mass:mean\",\"student_mass:mean\"]}",
    topk_distillation)
