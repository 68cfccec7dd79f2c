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

/* shares writes each candidate's share of the candidates' probability, exp(x) / sum exp(x), and returns the log of that sum; a candidate
 * of weight 0 has none. share has room for k + 1. */
static double shares(const float *x, const float *w, uint32_t k, double *share) {
  double top = -__builtin_inf(), sum = 0;
  for (uint32_t j = 0; j < k; j++) {
    share[j] = !w || w[j] != 0 ? x[j] : -__builtin_inf();
    top = tl_max(top, share[j]);
  }
  if (top == -__builtin_inf()) return top; /* no candidate */
  for (uint32_t j = 0; j < k; j += 2) {
    tl_f64x2 e = tl_exp_2((tl_f64x2){share[j], share[j + 1]} - top);
    share[j] = e[0];
    share[j + 1] = e[1];
  }
  for (uint32_t j = 0; j < k; j++) sum += share[j];
  for (uint32_t j = 0; j < k; j++) share[j] /= sum;
  return top + tl_log(sum);
}

static int32_t topk_distillation(tl_request *r) {
  const tl_column *teacher = tl_find(r, "teacher_logprobs"), *weights = tl_find(r, "weights");
  int reverse = tl_param(r, 0) == REVERSE, renormalize = tl_param(r, 1) != 0;
  uint32_t most = 0;
  for (uint32_t d = 0; d < r->n_datums; d++) most = tl_tokens(r, d).dim1 > most ? tl_tokens(r, d).dim1 : most;
  double *q = (double *)tl_scratch(8 * ((size_t)most + 1)), *p = (double *)tl_scratch(8 * ((size_t)most + 1));
  if (!q || !p) return tl_fail(r, TL_INTERNAL, "out of memory");

  double sum = 0, mass[2] = {0, 0};
  for (uint32_t d = 0; d < r->n_datums; d++) {
    tl_span s = tl_tokens(r, d);
    uint32_t k = s.dim1;
    const float *lq = tl_logprobs(r, d), *lp = tl_f32(r, teacher, d), *w = tl_f32(r, weights, d);
    float *out = tl_out(r, d);
    double rows = 0, here[2] = {0, 0};
    for (uint32_t t = 0; t < s.dim0; t++, lq += k, lp += k, out += k, w = w ? w + k : w) {
      double log_q = shares(lq, w, k, q), log_p = shares(lp, w, k, p);
      if (log_q == -__builtin_inf() || log_p == -__builtin_inf()) continue;
      double mass_q = tl_exp(log_q), mass_p = tl_exp(log_p);
      here[0] += mass_p;
      here[1] += mass_q;
      rows++;
      /* p and q become what is compared, log_p and log_q their normalisers. out gets -dL/dq_j q_j, what a q that stands alone
       * has; when q is a share, its sum comes back in parts of q. */
      if (renormalize) mass_q = mass_p = 1;
      else log_q = log_p = 0;
      double total = 0;
      for (uint32_t j = 0; j < k; j++) {
        double v = w ? w[j] : 1, a = q[j] * mass_q, b = p[j] * mass_p;
        if (v == 0) continue;
        double apart = (lq[j] - log_q) - (lp[j] - log_p), value = reverse ? a == 0 ? 0 : v * a * apart : b == 0 ? 0 : -v * b * apart;
        double direct = reverse ? value + v * a : -v * b;
        sum += value;
        total += direct;
        out[j] = (float)-direct;
        p[j] = direct;
      }
      for (uint32_t j = 0; renormalize && j < k; j++)
        if (!w || w[j] != 0) out[j] = (float)(q[j] * total - p[j]);
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
    "\"inputs\":[{\"name\":\"teacher_logprobs\",\"dtype\":\"float32\",\"like\":\"logprobs\",\"summary\":\"the teacher's log-probabilities of the candidates\"},"
    "{\"name\":\"weights\",\"dtype\":\"float32\",\"like\":\"logprobs\",\"optional\":true,\"summary\":\"of each candidate; 0 leaves it out\"}],"
    "\"params\":[{\"name\":\"divergence\",\"type\":\"enum\",\"values\":[\"forward\",\"reverse\"],\"default\":0,\"summary\":\"KL(teacher, student) or KL(student, teacher)\"},"
    "{\"name\":\"renormalize\",\"type\":\"bool\",\"default\":0,\"summary\":\"1 divides probabilities by their sum over the candidates\"}],"
    "\"metrics\":[\"teacher_mass:mean\",\"student_mass:mean\"]}",
    topk_distillation)
