// A loss over pairs: datums 2i and 2i+1 are the preferred and the other answer, weights mark the answers' tokens.
//
//   L = mean over pairs of log(1 + exp(-beta * (s_chosen - s_rejected))),   s = sum of weights * logprob
import { Batch, register, sigmoid, softplus, utf8 } from "./tinker-loss";
export { loss_abi_version, loss_alloc, loss_call, loss_describe } from "./tinker-loss";

const WEIGHTS = utf8("weights"), ACCURACY = utf8("accuracy:mean"), MARGIN = utf8("margin:mean");

function pairs(b: Batch): i32 {
  const weights = b.column(WEIGHTS), beta = b.param(0), all = b.batchDatums / 2;
  let sum: f64 = 0, right: f64 = 0, gaps: f64 = 0;
  for (let d: u32 = 0; d + 1 < b.datums; d += 2) {
    const chosen = b.floats(weights, d), rejected = b.floats(weights, d + 1);
    const gap = beta * (b.score(d, chosen, 0) - b.score(d + 1, rejected, 0));
    sum += softplus(-gap);
    const slope = beta * sigmoid(-gap) / all; // -dL/ds_chosen
    b.spread(d, chosen, -slope);
    b.spread(d + 1, rejected, slope);
    gaps += gap;
    if (gap > 0) right++;
  }
  b.loss = sum / all;
  const here = f64(b.datums / 2);
  b.metric(ACCURACY, right / here);
  b.metric(MARGIN, gaps / here);
  return 0;
}

register(`{"name":"pairs","version":"1.0.0","summary":"Preference loss over pairs of answers.","license":"",
"scope":"group","grouping":{"by":"consecutive","size":2},
"inputs":[{"name":"weights","dtype":"float32","like":"logprobs"}],
"params":[{"name":"beta","type":"number","default":1,"min":0}],
"metrics":["accuracy:mean","margin:mean"]}`, pairs);
