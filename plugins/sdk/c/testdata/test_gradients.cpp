// Every operation of the tape and of the dual numbers against difference quotients, on a request laid out as a host does.
#include "tinker_loss.h"

#include <cmath>
#include <cstdio>
#include <cstring>
#include <string>
#include <vector>

static const std::vector<uint32_t> lengths = {3, 1, 4, 2, 5}, group = {0, 1, 0, 0, 1};
static const uint32_t count = 15;

struct Request {
  alignas(16) char bytes[16384] = {};
  tl_request *r = (tl_request *)bytes;

  Request(const std::vector<double> &logprobs) {
    r->magic = TL_MAGIC, r->version = TL_ABI_VERSION, r->total_len = sizeof bytes;
    r->n_datums = r->batch_datums = 5, r->n_columns = 3, r->columns_off = 128, r->groups_off = 832, r->params_off = 864, r->n_params = 1;
    r->n_groups = r->batch_groups = 2, r->n_elems = count, r->batch_elems = count;
    r->out_weights_off = 4096, r->metrics_off = 5120, r->metrics_cap = 4, r->error_off = 6144, r->error_cap = 64;
    *(double *)tl_at(r, 864) = 0.5;
    const char *names[] = {"$logprobs", "w", "x"};
    for (uint32_t c = 0; c < 3; c++) {
      tl_column *column = (tl_column *)tl_at(r, 128) + c;
      *column = {768 + 16 * c, (uint32_t)strlen(names[c]), TL_FLOAT32, 256 + 128 * c, 1024 + 1024 * c, c == 2 ? 5 : count, {0, 0}};
      strcpy((char *)tl_at(r, column->name_off), names[c]);
      uint32_t start = 0;
      for (uint32_t d = 0; d < 5; d++) {
        uint32_t n = c == 2 ? 1 : lengths[d];
        if (c == 1 && d == 4) continue; // w is absent in the last datum
        ((tl_span *)tl_at(r, column->spans_off))[d] = {start, n, 1, 1};
        start += n;
      }
    }
    for (uint32_t d = 0; d < 5; d++) ((uint32_t *)tl_at(r, 832))[d] = group[d];
    for (uint32_t i = 0; i < count; i++) {
      ((float *)tl_at(r, 1024))[i] = (float)logprobs[i];
      ((float *)tl_at(r, 2048))[i] = i ? 0.5f + i % 3 : 0;
      ((float *)tl_at(r, 3072))[i] = i;
    }
  }
  float out(uint32_t i) { return ((float *)tl_at(r, r->out_weights_off))[i]; }
  int32_t run(int32_t (*loss)(tl_request *)) {
    tl_alloc(0);
    return tl_run(r, sizeof bytes, loss);
  }
};

static std::vector<double> base() {
  std::vector<double> x;
  for (uint32_t i = 0; i < count; i++) x.push_back(-0.25 - (i * 7 % 15) / 8.0);
  return x;
}

static int failures;
#define EXPECT(condition, ...) \
  if (!(condition)) failures++, printf("line %d: ", __LINE__), printf(__VA_ARGS__), printf("\n")

static void check(const char *name, int32_t (*loss)(tl_request *)) {
  Request at(base());
  EXPECT(at.run(loss) == 0, "%s: %.64s", name, (char *)tl_at(at.r, at.r->error_off));
  bool any = false;
  for (uint32_t i = 0; i < count; i++) {
    double value[2];
    for (int side = 0; side < 2; side++) {
      std::vector<double> x = base();
      x[i] += side ? -1.0 / 1024 : 1.0 / 1024;
      Request moved(x);
      moved.run(loss);
      value[side] = moved.r->loss;
    }
    double slope = (value[0] - value[1]) * 512;
    EXPECT(std::fabs(slope + at.out(i)) < 1e-4 * (1 + std::fabs(slope)), "%s: element %u: slope %g, weight %g", name, i, slope, at.out(i));
    any |= at.out(i) != 0;
  }
  EXPECT(any, "%s: no weight", name);
}

using namespace tl;

static int32_t tokens_tape(tl_request *r) {
  begin(r);
  Vec lp = logprobs(), w = per_token("w", 2), away = lp - w * 0.25;
  Vec l = min(exp(lp * w), clamp(away, -1.3, -0.4) * 3.0) + max(sqrt(sq(away) + 0.1), 0.7) - log(1.5 - lp) / (2.0 + sigmoid(lp));
  return backward(sum(keep(l, w) + lp * lp));
}

static int32_t datums_tape(tl_request *r) {
  begin(r);
  Vec lp = logprobs(), w = per_token("w", 1), x = per_datum("x"), s = datum_sum(w * keep(lp, w));
  Vec away = s - of_group(group_mean(s)) * x, pairs = softplus(mean(every(s, 0, 2)) - every(s, 1, 2));
  return backward(sum(of_datum(away) * lp) * Vec(param(0) / r->batch_groups) + sum(pairs) - sum(group_sum(-away)) / sum(group_size()));
}

static int32_t duals(tl_request *r) {
  const tl_column *w = tl_find(r, "w");
  double beta = tl_param(r, 0);
  r->loss = 0;
  for (uint32_t d = 0; d < r->n_datums; d++)
    r->loss += tokens(r, d, tl_f32(r, w, d), 0.5, [&](auto lp, auto w) {
      auto ratio = exp(lp - w);
      return min(ratio * 2.0, clamp(ratio, 0.8, 1.2) / (beta - lp)) + softplus(sq(lp)) - log(1.0 - lp) * lp + max(-lp, 0.55) + expm1(lp) / w;
    }, In(tl_f32(r, w, d), -1)).loss;
  return TL_OK;
}

static int32_t by_hand(tl_request *r) {
  const tl_column *w = tl_find(r, "w"), *x = tl_find(r, "x");
  float ones[8] = {1, 1, 1, 1, 1, 1, 1, 1};
  r->loss = 0;
  for (uint32_t d = 0; d < r->n_datums; d++) {
    const float *here = tl_f32(r, w, d) ? tl_f32(r, w, d) : ones;
    double by = *tl_f32(r, x, d), s = by * tl_score(tl_logprobs(r, d), NULL, here, tl_count(r, d));
    r->loss += tl_softplus(-s);
    tl_spread(tl_out(r, d), here, tl_count(r, d), -tl_sigmoid(-s) * by);
  }
  tl_metric(r, "loss:mean", r->loss);
  return TL_OK;
}

static int32_t by_tape(tl_request *r) {
  begin(r);
  return backward(sum(softplus(-(datum_sum(per_token("w", 1) * logprobs()) * per_datum("x")))));
}

int main() {
  check("tokens_tape", tokens_tape);
  check("datums_tape", datums_tape);
  check("duals", duals);
  check("by_hand", by_hand);

  Request hand(base()), tape(base());
  hand.run(by_hand), tape.run(by_tape);
  for (uint32_t i = 0; i < count; i++) EXPECT(std::fabs(hand.out(i) - tape.out(i)) <= 1e-6 * std::fabs(hand.out(i)), "weight %u: %g by hand, %g by tape", i, hand.out(i), tape.out(i));
  EXPECT(hand.r->n_metrics == 1 && std::string(((tl_metric_slot *)tl_at(hand.r, 5120))->name, 9) == "loss:mean", "metric");

  // What is detached counts with its value, without its derivative.
  Request held(base());
  held.run([](tl_request *r) {
    begin(r);
    return backward(sum(detach(logprobs()) * logprobs() + less(logprobs(), -1)));
  });
  Request also(base());
  also.run([](tl_request *r) {
    for (uint32_t d = 0; d < r->n_datums; d++) tokens(r, d, NULL, 1, [](auto lp) { return lp.value() * lp + less(lp, -1); });
    return 0;
  });
  for (uint32_t i = 0; i < count; i++) EXPECT(held.out(i) == -base()[i] && also.out(i) == -base()[i], "detached weight %u: %g, %g", i, held.out(i), also.out(i));

  // Masked tokens may hold anything; the SIMD lanes and the last odd token agree about it.
  for (uint32_t hole : {0u, 3u, 6u, 9u}) {
    std::vector<double> x = base();
    x[hole] = -INFINITY;
    Request masked(x);
    ((float *)tl_at(masked.r, 2048))[hole] = 0;
    masked.run([](tl_request *r) {
      r->loss = 0;
      for (uint32_t d = 0; d < r->n_datums; d++) {
        const float *w = tl_f32(r, tl_find(r, "w"), d);
        if (w) r->loss += tokens(r, d, w, 1, [](auto lp) { return exp(-lp) * lp; }).loss;
      }
      return 0;
    });
    EXPECT(std::isfinite(masked.r->loss) && masked.out(hole) == 0, "hole %u: loss %g, weight %g", hole, masked.r->loss, masked.out(hole));
  }

  // Misuse is told, not computed.
  struct { int32_t (*loss)(tl_request *); const char *want; } wrong[] = {
    {[](tl_request *r) { begin(r); return backward(logprobs() + per_datum("x")); }, "tape: two vectors of different lengths"},
    {[](tl_request *r) { begin(r); return backward(logprobs()); }, "tape: backward of more than one number"},
    {[](tl_request *r) { begin(r); return backward(sum(datum_sum(per_datum("x")))); }, "tape: a sum over datums or groups"},
    {[](tl_request *r) { begin(r); Vec x = sum(logprobs()); for (int i = 0; i < 300; i++) x = x + 1.0; return backward(x); }, "tape: more than 256 vectors"},
    {[](tl_request *r) { return tl_fail_datum(r, 1203, "beta"); }, "datum 1203: beta"},
  };
  for (auto &w : wrong) {
    Request bad(base());
    int32_t status = bad.run(w.loss);
    EXPECT(status != 0 && strncmp((char *)tl_at(bad.r, 6144), w.want, strlen(w.want)) == 0, "%d, %.64s", status, (char *)tl_at(bad.r, 6144));
  }
  Request quick(base());
  quick.r->flags = TL_EVALUATE_ONLY;
  quick.run(by_tape);
  EXPECT(quick.r->loss == tape.r->loss && quick.out(3) == 0, "evaluation only");
  quick.r->magic = 0;
  EXPECT(quick.run(by_tape) == TL_INTERNAL, "no head");
  printf("%d failures\n", failures);
  return failures != 0;
}
