// Write a loss for tinker-local in AssemblyScript. Loss plugin ABI 1.0. loss.ts is an example, README.md says how to build.
//
// A loss reads the log-probabilities of a batch and writes its value and, for each log-probability, the weight
// -dloss/dlogprob (the minus sign is part of the ABI). A batch may come in chunks: divide by batchDatums or batchGroups, never by the
// chunk's own counts. Tensors are pointers into the request, read with at(p, i); 0 when a datum lacks one. The stub runtime frees
// nothing, so make objects, arrays and strings once, outside the loss.

const MAGIC: u32 = 0x53534f4c;

/** Number i of a float32 tensor. */
// @ts-ignore: decorator
@inline export function at(p: usize, i: u32): f64 { return f64(load<f32>(p + (usize(i) << 2))); }
/** Number i of an int64 tensor. */
// @ts-ignore: decorator
@inline export function intAt(p: usize, i: u32): i64 { return load<i64>(p + (usize(i) << 3)); }
/** Writes weight i. */
// @ts-ignore: decorator
@inline export function put(p: usize, i: u32, v: f64): void { store<f32>(p + (usize(i) << 2), f32(v)); }

/** One chunk of a batch. */
export class Batch {
  req: usize = 0;

  private u(off: usize): u32 { return load<u32>(this.req + off); }
  get evaluateOnly(): bool { return (this.u(12) & 1) != 0; }
  /** Datums, log-probabilities and groups of this chunk. */
  get datums(): u32 { return this.u(16); }
  get elems(): u32 { return this.u(52); }
  get groups(): u32 { return this.u(76); }
  get batchDatums(): f64 { return f64(this.u(72)); }
  get batchElems(): f64 { return f64(load<u64>(this.req + 80)); }
  get batchGroups(): f64 { return f64(this.u(104)); }
  /** The group of a datum, from 0. */
  group(datum: u32): u32 { return this.u(28) ? load<u32>(this.req + this.u(28) + 4 * datum) : 0; }
  /** A parameter, in the order of the description. */
  param(i: u32): f64 { return load<f64>(this.req + this.u(32) + 8 * i); }

  /** The input of that name, as UTF-8 (see utf8); 0 when no datum has it. */
  column(name: ArrayBuffer): usize {
    for (let i: u32 = 0; i < this.u(20); i++) {
      const c = this.req + this.u(24) + 32 * i;
      if (load<u32>(c, 4) == u32(name.byteLength) && memory.compare(this.req + load<u32>(c), changetype<usize>(name), name.byteLength) == 0) return c;
    }
    return 0;
  }
  private span(c: usize, datum: u32): usize { return this.req + load<u32>(c, 12) + 16 * datum; }
  private part(c: usize, datum: u32, dtype: u32, shift: u32): usize {
    if (!c || load<u32>(c, 8) != dtype) return 0;
    const s = this.span(c, datum);
    return load<u32>(s, 12) & 1 ? this.req + load<u32>(c, 16) + (usize(load<u32>(s)) << shift) : 0;
  }
  /** A datum's part of a float32 or int64 column; 0 when it has none. */
  floats(c: usize, datum: u32): usize { return this.part(c, datum, 1, 2); }
  ints(c: usize, datum: u32): usize { return this.part(c, datum, 2, 3); }

  private get policy(): usize { return this.req + this.u(24); }
  /** Positions of a datum, and candidates per position (1, or K). */
  positions(datum: u32): u32 { return load<u32>(this.span(this.policy, datum), 4); }
  candidates(datum: u32): u32 { return load<u32>(this.span(this.policy, datum), 8); }
  count(datum: u32): u32 { return this.positions(datum) * this.candidates(datum); }
  /** The policy's log-probabilities of a datum, and the place of their weights: zeros, to be overwritten. */
  logprobs(datum: u32): usize { return this.floats(this.policy, datum); }
  out(datum: u32): usize { return this.req + this.u(48) + 4 * load<u32>(this.span(this.policy, datum)); }

  set loss(v: f64) { store<f64>(this.req + 96, v); }
  /** Adds a metric. Its name, as UTF-8, ends in how chunks merge: ":mean" (weighted by datums), ":sum", ":min", ":max". */
  metric(name: ArrayBuffer, v: f64): void {
    const n = this.u(88), m = this.req + this.u(56) + 64 * n, length = min(name.byteLength, 48);
    if (n >= this.u(60)) return;
    store<f64>(m, v);
    store<u32>(m, length, 8);
    memory.copy(m + 16, changetype<usize>(name), length);
    store<u32>(this.req + 88, n + 1);
  }
  /** Ends the loss: return b.fail(1, text). Status 1: wrong input or configuration, 2 numerical, 3 a fault of the plugin. */
  fail(status: i32, text: ArrayBuffer): i32 {
    const length = min(u32(text.byteLength), this.u(68));
    memory.copy(this.req + this.u(64), changetype<usize>(text), length);
    store<u32>(this.req + 92, length);
    return status;
  }

  /** The sum over a datum's tokens of w * (logprob - reference), without those of weight 0. reference may be 0. */
  score(datum: u32, w: usize, reference: usize): f64 {
    const lp = this.logprobs(datum), n = this.count(datum);
    let sum: f64 = 0;
    for (let i: u32 = 0; i < n; i++) {
      if (at(w, i) != 0) sum += at(w, i) * (at(lp, i) - (reference ? at(reference, i) : 0));
    }
    return sum;
  }
  /** Overwrites a datum's weights, given the derivative of the loss by its score. */
  spread(datum: u32, w: usize, dscore: f64): void {
    const out = this.out(datum), n = this.count(datum);
    for (let i: u32 = 0; i < n; i++) put(out, i, -dscore * at(w, i));
  }
}

/** log(1 + exp(x)): -log sigmoid(x) = softplus(-x); and its derivative. Neither overflows. */
export function softplus(x: f64): f64 { return max(x, 0) + Math.log1p(Math.exp(-abs(x))); }
export function sigmoid(x: f64): f64 {
  const e = Math.exp(-abs(x));
  return (x < 0 ? e : 1) / (1 + e);
}

/** A name for column and metric, a text for fail. Make them once, outside the loss. */
export function utf8(text: string): ArrayBuffer { return String.UTF8.encode(text); }

let description: ArrayBuffer = new ArrayBuffer(0);
let plugin: (b: Batch) => i32 = (b: Batch): i32 => 3;
const batch = new Batch();

/** Names the module's description (JSON, section 5 of the ABI) and its loss, which returns 0 or what fail returned. */
export function register(text: string, loss: (b: Batch) => i32): void {
  description = utf8(text);
  plugin = loss;
}

// The entry file re-exports these four.

export function loss_abi_version(): i32 { return 0x00010000; }
export function loss_describe(): i64 { return (i64(changetype<usize>(description)) << 32) | i64(description.byteLength); }

let room: usize = 0;
let buffer: usize = 0;
export function loss_alloc(size: u32): usize {
  if (usize(size) > room) {
    if (size > 0x3fff0000) return 0;
    buffer = (heap.alloc(usize(size) + 15) + 15) & ~15;
    room = size;
  }
  return buffer;
}
export function loss_call(req: usize, len: u32): i32 {
  if (len < 128 || load<u32>(req) != MAGIC || load<u32>(req, 4) >> 16 != 1 || load<u32>(req, 8) > len) return 3;
  batch.req = req;
  return plugin(batch);
}
