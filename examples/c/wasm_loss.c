/* A custom loss that is a WASM module: by its name, one of those that come with the library, and from a file. Both give the same bits.
 *
 *     wasm_loss [FILE.wasm]      by default the file of the module that is also used by its name
 *
 * docs/plugins.md says how such a module is written. */
#include <string.h>

#include "check.h"

int main(int argc, char **argv) {
  const char *file = argc > 1 ? argv[1] : "../../plugins/losses/logprob_variance.wasm";
  static const char *const lines[] = {"the sea is blue", "a dog can bark", "ice is very cold"};
  tinker_engine *engine = NULL;
  tinker_tokenizer *tokenizer = NULL;
  tinker_batch *batch = NULL;
  tinker_module *module = NULL;
  tinker_run *run = open_run(&engine, 8);
  tinker_adam adam = TINKER_ADAM_INIT;
  tinker_future *named = NULL, *loaded = NULL;
  double first, last = 0;
  char *json = NULL;
  int i;

  CHECK(tinker_module_open_file(engine, file, &module));
  CHECK(tinker_module_info(module, &json));
  printf("%s\n", json);
  tinker_free(json);

  CHECK(tinker_tokenizer_open(engine, "tinker-local/tiny", &tokenizer));
  CHECK(tinker_batch_create(&batch));
  for (i = 0; i < 3; i++) {
    int32_t *ids = NULL;
    int64_t count = 0, n;
    CHECK(tinker_tokenizer_encode(tokenizer, lines[i], (int64_t)strlen(lines[i]), 0, &ids, &count));
    n = count - 1;
    CHECK(tinker_batch_datum(batch, ids, n));
    CHECK(tinker_batch_set(batch, "target_tokens", TINKER_INT32, ids + 1, &n, 1));
    tinker_free(ids);
  }

  CHECK(tinker_forward(run, batch, "wasm:logprob_variance", NULL, 0, &named));
  CHECK(tinker_forward_custom(run, batch, module, NULL, 0, &loaded));
  CHECK(tinker_future_wait(named, -1));
  CHECK(tinker_future_wait(loaded, -1));
  first = metric(named, "loss:sum");
  if (metric(loaded, "loss:sum") != first) {
    fprintf(stderr, "by name the loss is %.17g, from the file %.17g\n", first, metric(loaded, "loss:sum"));
    return 1;
  }
  CHECK(tinker_future_free(named));
  CHECK(tinker_future_free(loaded));

  adam.learning_rate = 1e-3;
  for (i = 0; i < 15; i++) {
    tinker_future *pass = NULL, *step = NULL;
    CHECK(tinker_forward_backward_custom(run, batch, module, NULL, 0, &pass));
    CHECK(tinker_optim_step(run, &adam, &step));
    CHECK(tinker_future_wait(pass, -1));
    last = metric(pass, "loss:sum");
    CHECK(tinker_future_free(pass));
    finish(step);
  }
  printf("variance of the log-probabilities: %.3f before, %.3f after 15 steps\n", first, last);

  CHECK(tinker_module_free(module));
  CHECK(tinker_batch_free(batch));
  CHECK(tinker_tokenizer_free(tokenizer));
  CHECK(tinker_run_free(run));
  CHECK(tinker_engine_free(engine));
  return last < first ? 0 : 1;
}
