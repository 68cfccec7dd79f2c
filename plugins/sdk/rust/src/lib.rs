//! Write a loss for tinker-local in Rust. Loss plugin ABI 1.0. No dependencies; no `std` in modules.
//!
//! A loss reads the log-probabilities of a batch and writes its value and, for each log-probability, the weight
//! -dloss/dlogprob (the minus sign is part of the ABI). Three ways to write one:
//!
//! - by hand: [`Batch::logprobs`], [`Batch::floats`], [`Batch::out`]; the author derives
//! - dual numbers: [`Batch::tokens`]; the loss of one token as a formula of a [`Dual`], its derivative comes with it
//! - tape: [`Tape`]; vectors over tokens, datums and groups as in torch, then [`Tape::backward`]
//!
//! A batch may come in chunks: divide by [`Batch::batch_datums`] or [`Batch::batch_groups`], never by the chunk's own counts.
//! Keep nothing between calls: each call begins with empty memory.
#![cfg_attr(not(test), no_std)]

extern crate alloc;

use alloc::string::String;
use alloc::vec;
use alloc::vec::Vec;
use core::cell::{Cell, RefCell};
use core::ops::{Add, Div, Mul, Neg, Sub};
use core::slice::{from_raw_parts, from_raw_parts_mut};

pub const ABI_VERSION: u32 = 0x0001_0000;
const MAGIC: u32 = 0x5353_4F4C;

/// What went wrong, told to the user: status 1 for wrong input or configuration, 2 numerical, 3 a fault of the plugin.
pub struct Error {
    pub status: i32,
    pub text: String,
}

/// The input or the configuration is wrong: `return Err(user("beta needs ref_logprobs"))`.
pub fn user(text: impl Into<String>) -> Error {
    Error { status: 1, text: text.into() }
}

/// A column of inputs, found once by name; datums may lack it.
#[derive(Clone, Copy)]
pub struct Column(u32);

/// One chunk of a batch. `'a` is the time of the call: inputs can be held while outputs are written.
pub struct Batch<'a> {
    at: *mut u8,
    len: usize,
    _call: core::marker::PhantomData<&'a [u8]>,
}

impl<'a> Batch<'a> {
    /// # Safety
    /// `at` is 8-byte aligned and holds a request of `len` bytes, laid out as the ABI says, for the time `'a`.
    pub unsafe fn new(at: *mut u8, len: usize) -> Option<Self> {
        let b = Batch { at, len, _call: core::marker::PhantomData };
        let good = len >= 128 && b.u32(0) == MAGIC && b.u32(4) >> 16 == ABI_VERSION >> 16 && b.u32(8) as usize <= len;
        good.then_some(b)
    }

    /// A slice of the request. The host's offsets are checked all the same: safe Rust stays safe.
    fn slice<T>(&self, off: usize, n: usize) -> &'a [T] {
        let end = n.checked_mul(core::mem::size_of::<T>()).and_then(|size| size.checked_add(off));
        assert!(end.map_or(false, |end| end <= self.len) && off % core::mem::align_of::<T>() == 0, "request: an offset is wrong");
        unsafe { from_raw_parts(self.at.add(off) as *const T, n) }
    }
    fn slice_mut<T>(&mut self, off: usize, n: usize) -> &mut [T] {
        self.slice::<T>(off, n);
        unsafe { from_raw_parts_mut(self.at.add(off) as *mut T, n) }
    }
    fn u32(&self, off: usize) -> u32 {
        self.slice::<u32>(off, 1)[0]
    }
    fn size(&self, off: usize) -> usize {
        self.u32(off) as usize
    }

    pub fn evaluate_only(&self) -> bool {
        self.u32(12) & 1 != 0
    }
    /// Datums in this chunk.
    pub fn datums(&self) -> usize {
        self.size(16)
    }
    /// Log-probabilities in this chunk.
    pub fn elems(&self) -> usize {
        self.size(52)
    }
    /// Groups in this chunk.
    pub fn groups(&self) -> usize {
        self.size(76)
    }
    pub fn batch_datums(&self) -> f64 {
        self.u32(72) as f64
    }
    pub fn batch_groups(&self) -> f64 {
        self.u32(104) as f64
    }
    pub fn batch_elems(&self) -> f64 {
        self.slice::<u64>(80, 1)[0] as f64
    }
    /// The whole configuration: JSON with sorted keys, for what is not a parameter.
    pub fn config(&self) -> &'a [u8] {
        self.slice(self.size(40), self.size(44))
    }
    /// The optimiser step; 0 if unknown.
    pub fn step(&self) -> u64 {
        self.slice::<u64>(112, 1)[0]
    }
    /// The group of a datum, from 0.
    pub fn group(&self, datum: usize) -> usize {
        match self.size(28) {
            0 => 0,
            off => self.slice::<u32>(off, self.datums())[datum] as usize,
        }
    }
    /// A parameter, in the order of the description.
    pub fn param(&self, i: usize) -> f64 {
        self.slice::<f64>(self.size(32), self.size(36))[i]
    }

    pub fn column(&self, name: &str) -> Option<Column> {
        let table = self.size(24);
        (0..self.u32(20)).find(|&c| {
            let at = table + 32 * c as usize;
            self.slice::<u8>(self.size(at), self.size(at + 4)) == name.as_bytes()
        }).map(Column)
    }
    /// start, rows, columns of a datum's part of a column, if it has one, and where the column's data is.
    fn span(&self, c: Option<Column>, datum: usize, dtype: u32) -> Option<(usize, [u32; 4])> {
        let at = self.size(24) + 32 * c?.0 as usize;
        assert!(datum < self.datums(), "datum {} of {}", datum, self.datums());
        let s = self.slice::<[u32; 4]>(self.size(at + 12) + 16 * datum, 1)[0];
        (s[3] & 1 != 0 && self.u32(at + 8) == dtype).then(|| (self.size(at + 16), s))
    }
    /// A datum's part of a float32 column; None when it has none.
    pub fn floats(&self, c: Option<Column>, datum: usize) -> Option<&'a [f32]> {
        self.span(c, datum, 1).map(|(data, s)| self.slice(data + 4 * s[0] as usize, (s[1] * s[2]) as usize))
    }
    /// A datum's part of an int64 column; None when it has none.
    pub fn ints(&self, c: Option<Column>, datum: usize) -> Option<&'a [i64]> {
        self.span(c, datum, 2).map(|(data, s)| self.slice(data + 8 * s[0] as usize, (s[1] * s[2]) as usize))
    }
    /// Positions and candidates per position (1, or K) of a datum.
    pub fn dims(&self, datum: usize) -> (usize, usize) {
        let (_, s) = self.span(Some(Column(0)), datum, 1).expect("logprobs");
        (s[1] as usize, s[2] as usize)
    }
    fn tokens_of(&self, datum: usize) -> core::ops::Range<usize> {
        let (_, s) = self.span(Some(Column(0)), datum, 1).expect("logprobs");
        s[0] as usize..(s[0] + s[1] * s[2]) as usize
    }
    /// The policy's log-probabilities of a datum.
    pub fn logprobs(&self, datum: usize) -> &'a [f32] {
        self.floats(Some(Column(0)), datum).expect("logprobs")
    }
    /// The weights of a datum, -dloss/dlogprob: zeros, to be overwritten.
    pub fn out(&mut self, datum: usize) -> &mut [f32] {
        let r = self.tokens_of(datum);
        let off = self.size(48);
        self.slice_mut(off + 4 * r.start, r.len())
    }
    pub fn set_loss(&mut self, loss: f64) {
        self.slice_mut::<f64>(96, 1)[0] = loss;
    }
    /// Adds a metric. Its name ends in how chunks merge: ":mean" (weighted by datums), ":sum", ":min", ":max".
    pub fn metric(&mut self, name: &str, value: f64) {
        let (n, off) = (self.size(88), self.size(56));
        let len = name.len().min(48);
        if n >= self.size(60) {
            return;
        }
        self.slice_mut::<f64>(off + 64 * n, 1)[0] = value;
        self.slice_mut::<u32>(off + 64 * n + 8, 1)[0] = len as u32;
        self.slice_mut::<u8>(off + 64 * n + 16, len).copy_from_slice(&name.as_bytes()[..len]);
        self.slice_mut::<u32>(88, 1)[0] = n as u32 + 1;
    }
    /// Writes a line to the server's log: level 0 debug, 1 info, 2 warning, 3 error. A module that uses it has an import.
    pub fn log(&self, level: i32, text: &str) {
        #[cfg(target_arch = "wasm32")]
        unsafe {
            module::log(level, text.as_ptr(), text.len())
        }
        #[cfg(not(target_arch = "wasm32"))]
        let _ = (level, text);
    }
    /// Writes an error's text; returns its status.
    pub fn fail(&mut self, e: Error) -> i32 {
        let (off, n) = (self.size(64), e.text.len().min(self.size(68)));
        self.slice_mut::<u8>(off, n).copy_from_slice(&e.text.as_bytes()[..n]);
        self.slice_mut::<u32>(92, 1)[0] = n as u32;
        e.status
    }

    /// The sum over a datum's tokens of w * (logprob - reference), without those of weight 0.
    pub fn score(&self, datum: usize, w: &[f32], reference: Option<&[f32]>) -> f64 {
        let lp = self.logprobs(datum);
        (0..lp.len()).filter(|&i| w[i] != 0.0).map(|i| w[i] as f64 * (lp[i] as f64 - reference.map_or(0.0, |r| r[i] as f64))).sum()
    }
    /// Overwrites a datum's weights, given the derivative of the loss by its score.
    pub fn spread(&mut self, datum: usize, w: &[f32], dscore: f64) {
        let g = -dscore as f32;
        for (o, w) in self.out(datum).iter_mut().zip(w) {
            *o = w * g;
        }
    }
    /// Overwrites a datum's weights with those of scale * sum f(i, logprob of token i) over the tokens whose mask is not 0 (all,
    /// without a mask), and returns that sum.
    pub fn tokens(&mut self, datum: usize, mask: Option<&[f32]>, scale: f64, f: impl Fn(usize, Dual) -> Dual) -> f64 {
        let lp = self.logprobs(datum);
        let mut sum = 0.0;
        for (i, o) in self.out(datum).iter_mut().enumerate() {
            if mask.map_or(true, |m| m[i] != 0.0) {
                let l = f(i, Dual { v: lp[i] as f64, d: 1.0 });
                sum += l.v;
                *o = (-scale * l.d) as f32;
            }
        }
        scale * sum
    }
}

// Arithmetic: the same steps as in the C header, so the same bits.

const LN2_HI: f64 = 6.93147180369123816490e-01; // 33 bits: products with small integers are exact
const LN2_LO: f64 = 1.90821492927058770002e-10;
const SHIFT: f64 = 6755399441055744.0; // 1.5 * 2^52

fn expm1_series(q: f64) -> f64 {
    let z = q * q;
    q + z * (((((((1.0 / 479001600.0) * z + 1.0 / 3628800.0) * z + 1.0 / 40320.0) * z + 1.0 / 720.0) * z + 1.0 / 24.0) * z + 0.5)
        + q * ((((((1.0 / 6227020800.0) * z + 1.0 / 39916800.0) * z + 1.0 / 362880.0) * z + 1.0 / 5040.0) * z + 1.0 / 120.0) * z + 1.0 / 6.0))
}
pub fn exp(x: f64) -> f64 {
    let x = if x < -746.0 { -746.0 } else if x > 710.0 { 710.0 } else { x };
    let t = x * 1.4426950408889634 + SHIFT;
    let k = t - SHIFT;
    let q = (x - k * LN2_HI) - k * LN2_LO;
    let n = (t.to_bits() as i64).wrapping_sub(SHIFT.to_bits() as i64);
    let half = n >> 1;
    let two = |n: i64| f64::from_bits((n.wrapping_add(1023) as u64) << 52);
    (1.0 + expm1_series(q)) * two(half) * two(n.wrapping_sub(half))
}
pub fn expm1(x: f64) -> f64 {
    if abs(x) > 0.34 { exp(x) - 1.0 } else { expm1_series(x) }
}
pub fn log(mut x: f64) -> f64 {
    let mut k = 0i64;
    if x < f64::MIN_POSITIVE {
        if x <= 0.0 {
            return if x == 0.0 { f64::NEG_INFINITY } else { f64::NAN };
        }
        x *= 18014398509481984.0; // 2^54
        k = -54;
    }
    if !(x < f64::INFINITY) {
        return x;
    }
    k += (x.to_bits() >> 52) as i64 - 1023;
    let mut m = f64::from_bits(x.to_bits() & 0x000F_FFFF_FFFF_FFFF | 0x3FF0_0000_0000_0000);
    if m > core::f64::consts::SQRT_2 {
        m *= 0.5;
        k += 1;
    }
    let (f, dk) = (m - 1.0, k as f64);
    let (s, h) = (f / (2.0 + f), 0.5 * f * f);
    let z = s * s;
    let series = z * (2.0 / 3.0 + z * (2.0 / 5.0 + z * (2.0 / 7.0 + z * (2.0 / 9.0 + z * (2.0 / 11.0 + z * (2.0 / 13.0
        + z * (2.0 / 15.0 + z * (2.0 / 17.0 + z * (2.0 / 19.0 + z * (2.0 / 21.0))))))))));
    dk * LN2_HI - ((h - (s * (h + series) + dk * LN2_LO)) - f)
}
pub fn log1p(x: f64) -> f64 {
    let u = 1.0 + x;
    if u == 1.0 {
        x
    } else if !(u < f64::INFINITY) || u <= 0.0 {
        log(u)
    } else {
        log(u) + (x - (u - 1.0)) / u
    }
}
pub fn abs(x: f64) -> f64 {
    f64::from_bits(x.to_bits() & !(1 << 63))
}
/// Newton's method; core has no square root. Within one unit in the last place.
pub fn sqrt(x: f64) -> f64 {
    if !(x > 0.0) || x == f64::INFINITY {
        return if x < 0.0 { f64::NAN } else { x };
    }
    let (x, back) = if x < 1e-290 { (x * 1.157920892373162e77, 2.938735877055719e-39) } else { (x, 1.0) }; // 2^256, 2^-128
    let mut s = f64::from_bits((x.to_bits() >> 1) + 0x1FF8_0000_0000_0000);
    for _ in 0..5 {
        s = 0.5 * (s + x / s);
    }
    s * back
}
/// log(1 + exp(x)): -log sigmoid(x) = softplus(-x). It does not overflow.
pub fn softplus(x: f64) -> f64 {
    (if x > 0.0 { x } else { 0.0 }) + log1p(exp(-abs(x)))
}
pub fn sigmoid(x: f64) -> f64 {
    let e = exp(-abs(x));
    (if x < 0.0 { e } else { 1.0 }) / (1.0 + e)
}

/// A value and its derivative with respect to one token's log-probability. A plain f64 is a constant.
#[derive(Clone, Copy, Debug)]
pub struct Dual {
    pub v: f64,
    pub d: f64,
}

impl From<f64> for Dual {
    fn from(v: f64) -> Dual {
        Dual { v, d: 0.0 }
    }
}
macro_rules! dual_op {
    ($trait:ident, $f:ident, $a:ident, $b:ident, $body:expr) => {
        impl $trait for Dual {
            type Output = Dual;
            fn $f(self, other: Dual) -> Dual {
                let ($a, $b) = (self, other);
                $body
            }
        }
        impl $trait<f64> for Dual {
            type Output = Dual;
            fn $f(self, other: f64) -> Dual {
                self.$f(Dual::from(other))
            }
        }
        impl $trait<Dual> for f64 {
            type Output = Dual;
            fn $f(self, other: Dual) -> Dual {
                Dual::from(self).$f(other)
            }
        }
    };
}
dual_op!(Add, add, a, b, Dual { v: a.v + b.v, d: a.d + b.d });
dual_op!(Sub, sub, a, b, Dual { v: a.v - b.v, d: a.d - b.d });
dual_op!(Mul, mul, a, b, Dual { v: a.v * b.v, d: a.d * b.v + a.v * b.d });
dual_op!(Div, div, a, b, Dual { v: a.v / b.v, d: (a.d - a.v / b.v * b.d) / b.v });
impl Neg for Dual {
    type Output = Dual;
    fn neg(self) -> Dual {
        Dual { v: -self.v, d: -self.d }
    }
}
impl Dual {
    /// The value alone, held constant.
    pub fn detach(self) -> Dual {
        self.v.into()
    }
    pub fn exp(self) -> Dual {
        let e = exp(self.v);
        Dual { v: e, d: self.d * e }
    }
    pub fn log(self) -> Dual {
        Dual { v: log(self.v), d: self.d / self.v }
    }
    pub fn softplus(self) -> Dual {
        Dual { v: softplus(self.v), d: self.d * sigmoid(self.v) }
    }
    /// min and max take the derivative of the one they take; at a tie, of the first.
    pub fn min(self, b: impl Into<Dual>) -> Dual {
        let b = b.into();
        if b.v < self.v { b } else { self }
    }
    pub fn max(self, b: impl Into<Dual>) -> Dual {
        let b = b.into();
        if b.v > self.v { b } else { self }
    }
    pub fn clamp(self, lo: f64, hi: f64) -> Dual {
        self.max(lo).min(hi)
    }
}

#[derive(Clone, Copy, PartialEq)]
enum Op {
    Leaf, Add, Sub, Mul, Div, Min, Max, Keep, Neg, Exp, Log, Softplus, Sigmoid, Sqrt,
    Sum, Every(usize, usize), DatumSum, OfDatum, GroupSum, OfGroup,
}

struct Node {
    op: Op,
    x: usize,
    y: usize,
    live: bool, // depends on the log-probabilities
    v: Vec<f64>,
}

/// Vectors over tokens, datums or groups, float64, and how each came about. A vector of one element goes with any other;
/// other lengths must be equal (a panic ends the call with its text). The weights come from [`Tape::backward`].
pub struct Tape<'a> {
    nodes: RefCell<Vec<Node>>,
    logprobs: Cell<Option<usize>>,
    tokens: Vec<core::ops::Range<usize>>, // of each datum
    group: Vec<usize>,
    groups: usize,
    elems: usize,
    inputs: Batch<'a>,
}

/// A vector on a tape.
#[derive(Clone, Copy)]
pub struct Vector<'t, 'a> {
    tape: &'t Tape<'a>,
    id: usize,
}

impl<'a> Tape<'a> {
    pub fn new(b: &Batch<'a>) -> Tape<'a> {
        Tape {
            nodes: RefCell::new(vec![]),
            logprobs: Cell::new(None),
            tokens: (0..b.datums()).map(|d| b.tokens_of(d)).collect(),
            group: (0..b.datums()).map(|d| b.group(d)).collect(),
            groups: b.groups(),
            elems: b.elems(),
            inputs: Batch { at: b.at, len: b.len, _call: b._call },
        }
    }
    fn push<'t>(&'t self, op: Op, x: usize, y: usize, live: bool, v: Vec<f64>) -> Vector<'t, 'a> {
        let mut nodes = self.nodes.borrow_mut();
        nodes.push(Node { op, x, y, live, v });
        Vector { tape: self, id: nodes.len() - 1 }
    }
    /// A vector of constants.
    pub fn constant<'t>(&'t self, v: Vec<f64>) -> Vector<'t, 'a> {
        self.push(Op::Leaf, 0, 0, false, v)
    }
    fn column(&self, c: Option<Column>, missing: f64) -> Vec<f64> {
        let mut v = vec![missing; self.elems];
        for (d, r) in self.tokens.iter().enumerate() {
            if let Some(x) = self.inputs.floats(c, d) {
                v[r.clone()].iter_mut().zip(x).for_each(|(v, x)| *v = *x as f64);
            }
        }
        v
    }
    pub fn logprobs<'t>(&'t self) -> Vector<'t, 'a> {
        if let Some(id) = self.logprobs.get() {
            return Vector { tape: self, id };
        }
        let x = self.push(Op::Leaf, 0, 0, true, self.column(Some(Column(0)), 0.0));
        self.logprobs.set(Some(x.id));
        x
    }
    /// An input with one number per log-probability; a datum that lacks it has the number missing.
    pub fn per_token<'t>(&'t self, name: &str, missing: f64) -> Vector<'t, 'a> {
        self.constant(self.column(self.inputs.column(name), missing))
    }
    /// An input of shape [1].
    pub fn per_datum<'t>(&'t self, name: &str, missing: f64) -> Vector<'t, 'a> {
        let c = self.inputs.column(name);
        self.constant((0..self.tokens.len()).map(|d| {
            let int = self.inputs.ints(c, d).map(|x| x[0] as f64);
            self.inputs.floats(c, d).map(|x| x[0] as f64).or(int).unwrap_or(missing)
        }).collect())
    }
    /// The number of datums of each group.
    pub fn group_size<'t>(&'t self) -> Vector<'t, 'a> {
        let mut v = vec![0.0; self.groups];
        self.group.iter().for_each(|&g| v[g] += 1.0);
        self.constant(v)
    }
    /// (part, whole) for each token and its datum, or each datum and its group.
    fn parts(&self, op: Op, mut f: impl FnMut(usize, usize)) {
        if op == Op::GroupSum || op == Op::OfGroup {
            return self.group.iter().enumerate().for_each(|(d, &g)| f(d, g));
        }
        self.tokens.iter().enumerate().for_each(|(d, r)| r.clone().for_each(|i| f(i, d)));
    }

    /// Ends a loss: sets it to a vector of one element, and every weight to -dloss/dlogprob.
    pub fn backward(&self, loss: Vector, b: &mut Batch) {
        let nodes = self.nodes.borrow();
        assert!(nodes[loss.id].v.len() == 1, "tape: backward of {} numbers", nodes[loss.id].v.len());
        b.set_loss(nodes[loss.id].v[0]);
        let logprobs = match self.logprobs.get() {
            Some(id) if !b.evaluate_only() => id,
            _ => return,
        };
        let mut grads: Vec<Vec<f64>> = nodes[..=loss.id].iter().map(|o| vec![0.0; if o.live { o.v.len() } else { 0 }]).collect();
        if !nodes[loss.id].live || logprobs > loss.id {
            return;
        }
        grads[loss.id][0] = 1.0;
        for id in (0..=loss.id).rev().filter(|&id| nodes[id].live) {
            let o = &nodes[id];
            let g = core::mem::take(&mut grads[id]);
            let back = Back { o, x: &nodes[o.x], y: &nodes[o.y], g: &g };
            match o.op {
                Op::Leaf => {}
                Op::Add => back.two(&mut grads, |_, _| 1.0, |_, _| 1.0),
                Op::Sub => back.two(&mut grads, |_, _| 1.0, |_, _| -1.0),
                Op::Mul => back.two(&mut grads, |_, b| b, |a, _| a),
                Op::Div => back.two(&mut grads, |_, b| 1.0 / b, |a, b| -a / b / b),
                Op::Min => back.two(&mut grads, |a, b| if b < a { 0.0 } else { 1.0 }, |a, b| if b < a { 1.0 } else { 0.0 }),
                Op::Max => back.two(&mut grads, |a, b| if b > a { 0.0 } else { 1.0 }, |a, b| if b > a { 1.0 } else { 0.0 }),
                Op::Keep => back.two(&mut grads, |_, b| if b != 0.0 { 1.0 } else { 0.0 }, |_, _| 0.0),
                Op::Neg => back.one(&mut grads, |_, _| -1.0),
                Op::Exp => back.one(&mut grads, |_, v| v),
                Op::Log => back.one(&mut grads, |x, _| 1.0 / x),
                Op::Softplus => back.one(&mut grads, |x, _| sigmoid(x)),
                Op::Sigmoid => back.one(&mut grads, |_, v| v * (1.0 - v)),
                Op::Sqrt => back.one(&mut grads, |_, v| if v > 0.0 { 0.5 / v } else { 0.0 }),
                Op::Sum => grads[o.x].iter_mut().for_each(|t| *t += g[0]),
                Op::Every(first, step) => g.iter().enumerate().for_each(|(i, g)| grads[o.x][first + i * step] += g),
                Op::DatumSum | Op::GroupSum => self.parts(o.op, |i, whole| grads[o.x][i] += g[whole]),
                Op::OfDatum | Op::OfGroup => self.parts(o.op, |i, whole| grads[o.x][whole] += g[i]),
            }
            grads[id] = g;
        }
        for (d, r) in self.tokens.iter().enumerate() {
            b.out(d).iter_mut().zip(&grads[logprobs][r.clone()]).for_each(|(o, g)| *o = -g as f32);
        }
    }
}

/// One step back: what node o, with the gradient g, adds to those of its operands.
struct Back<'n> {
    o: &'n Node,
    x: &'n Node,
    y: &'n Node,
    g: &'n [f64],
}

impl Back<'_> {
    /// d is the derivative by the operand, of its value and the result's.
    fn one(&self, grads: &mut [Vec<f64>], d: impl Fn(f64, f64) -> f64) {
        for (((t, g), x), v) in grads[self.o.x].iter_mut().zip(self.g).zip(&self.x.v).zip(&self.o.v) {
            *t += g * d(*x, *v);
        }
    }
    /// dx and dy are the derivatives by the operands, of their values. A lone operand gets the sum.
    fn two(&self, grads: &mut [Vec<f64>], dx: impl Fn(f64, f64) -> f64, dy: impl Fn(f64, f64) -> f64) {
        self.side(self.x.live, &mut grads[self.o.x], dx);
        self.side(self.y.live, &mut grads[self.o.y], dy);
    }
    fn side(&self, live: bool, to: &mut [f64], d: impl Fn(f64, f64) -> f64) {
        if !live {
            return;
        }
        let (x, y, n) = (&self.x.v, &self.y.v, self.g.len());
        let at = |v: &[f64], i: usize| v[if v.len() == n { i } else { 0 }];
        if to.len() == n {
            to.iter_mut().enumerate().for_each(|(i, t)| *t += self.g[i] * d(at(x, i), at(y, i)));
        } else {
            (0..n).for_each(|i| to[0] += self.g[i] * d(at(x, i), at(y, i)));
        }
    }
}

impl<'t, 'a> Vector<'t, 'a> {
    pub fn len(self) -> usize {
        self.tape.nodes.borrow()[self.id].v.len()
    }
    pub fn is_empty(self) -> bool {
        self.len() == 0
    }
    /// Element i.
    pub fn get(self, i: usize) -> f64 {
        self.tape.nodes.borrow()[self.id].v[i]
    }
    fn one(self, op: Op, f: impl Fn(f64) -> f64) -> Self {
        let (v, live) = self.read(|v| v.iter().map(|&x| f(x)).collect());
        self.tape.push(op, self.id, self.id, live, v)
    }
    fn read<R>(self, f: impl FnOnce(&[f64]) -> R) -> (R, bool) {
        let nodes = self.tape.nodes.borrow();
        (f(&nodes[self.id].v), nodes[self.id].live)
    }
    fn two(self, other: Self, op: Op, f: impl Fn(f64, f64) -> f64) -> Self {
        let (v, live) = {
            let nodes = self.tape.nodes.borrow();
            let (x, y) = (&nodes[self.id], &nodes[other.id]);
            let (a, b) = (x.v.len(), y.v.len());
            assert!(a == b || a == 1 || b == 1, "tape: vectors of {} and {} elements", a, b);
            let n = if a == 1 { b } else { a };
            ((0..n).map(|i| f(x.v[if a == 1 { 0 } else { i }], y.v[if b == 1 { 0 } else { i }])).collect(), x.live || y.live)
        };
        self.tape.push(op, self.id, other.id, live, v)
    }
    fn parts(self, op: Op, want: usize, n: usize, gather: bool) -> Self {
        assert!(self.len() == want, "tape: {} elements where {} are wanted", self.len(), want);
        let (v, live) = self.read(|x| {
            let mut v = vec![0.0; n];
            self.tape.parts(op, |i, whole| if gather { v[whole] += x[i] } else { v[i] = x[whole] });
            v
        });
        self.tape.push(op, self.id, self.id, live, v)
    }
    pub fn min(self, b: impl IntoVector<'t, 'a>) -> Self {
        self.two(b.on(self.tape), Op::Min, |a, b| if b < a { b } else { a })
    }
    pub fn max(self, b: impl IntoVector<'t, 'a>) -> Self {
        self.two(b.on(self.tape), Op::Max, |a, b| if b > a { b } else { a })
    }
    pub fn clamp(self, lo: f64, hi: f64) -> Self {
        self.max(lo).min(hi)
    }
    /// self where w is not 0, else 0, even if self is infinite there.
    pub fn keep(self, w: Self) -> Self {
        self.two(w, Op::Keep, |a, b| if b != 0.0 { a } else { 0.0 })
    }
    pub fn exp(self) -> Self {
        self.one(Op::Exp, exp)
    }
    pub fn log(self) -> Self {
        self.one(Op::Log, log)
    }
    pub fn softplus(self) -> Self {
        self.one(Op::Softplus, softplus)
    }
    pub fn sigmoid(self) -> Self {
        self.one(Op::Sigmoid, sigmoid)
    }
    pub fn sqrt(self) -> Self {
        self.one(Op::Sqrt, sqrt)
    }
    pub fn sum(self) -> Self {
        let (v, live) = self.read(|x| vec![x.iter().sum()]);
        self.tape.push(Op::Sum, self.id, self.id, live, v)
    }
    /// Of this chunk: for metrics.
    pub fn mean(self) -> Self {
        let n = self.len();
        self.sum() * if n > 0 { 1.0 / n as f64 } else { 0.0 }
    }
    /// Elements first, first+step, ...: every(0, 2) are the chosen ones of pairs.
    pub fn every(self, first: usize, step: usize) -> Self {
        let (v, live) = self.read(|x| x.iter().skip(first).step_by(step).copied().collect());
        self.tape.push(Op::Every(first, step), self.id, self.id, live, v)
    }
    pub fn datum_sum(self) -> Self {
        self.parts(Op::DatumSum, self.tape.elems, self.tape.tokens.len(), true)
    }
    pub fn of_datum(self) -> Self {
        self.parts(Op::OfDatum, self.tape.tokens.len(), self.tape.elems, false)
    }
    pub fn group_sum(self) -> Self {
        self.parts(Op::GroupSum, self.tape.tokens.len(), self.tape.groups, true)
    }
    pub fn of_group(self) -> Self {
        self.parts(Op::OfGroup, self.tape.groups, self.tape.tokens.len(), false)
    }
    pub fn group_mean(self) -> Self {
        self.group_sum() / self.tape.group_size()
    }
    /// 1 where self < b, else 0; no derivative.
    pub fn less(self, b: impl IntoVector<'t, 'a>) -> Self {
        self.two(b.on(self.tape), Op::Leaf, |a, b| if a < b { 1.0 } else { 0.0 }).detach()
    }
    /// The same numbers, held constant.
    pub fn detach(self) -> Self {
        let v = self.read(|v| v.to_vec()).0;
        self.tape.constant(v)
    }
}

/// A vector, or a number that goes with any.
pub trait IntoVector<'t, 'a> {
    fn on(self, tape: &'t Tape<'a>) -> Vector<'t, 'a>;
}
impl<'t, 'a> IntoVector<'t, 'a> for Vector<'t, 'a> {
    fn on(self, _: &'t Tape<'a>) -> Vector<'t, 'a> {
        self
    }
}
impl<'t, 'a> IntoVector<'t, 'a> for f64 {
    fn on(self, tape: &'t Tape<'a>) -> Vector<'t, 'a> {
        tape.constant(vec![self])
    }
}
macro_rules! vector_op {
    ($trait:ident, $f:ident, $op:expr, $body:expr) => {
        impl<'t, 'a, B: IntoVector<'t, 'a>> $trait<B> for Vector<'t, 'a> {
            type Output = Self;
            fn $f(self, b: B) -> Self {
                self.two(b.on(self.tape), $op, $body)
            }
        }
        impl<'t, 'a> $trait<Vector<'t, 'a>> for f64 {
            type Output = Vector<'t, 'a>;
            fn $f(self, b: Vector<'t, 'a>) -> Vector<'t, 'a> {
                self.on(b.tape).$f(b)
            }
        }
    };
}
vector_op!(Add, add, Op::Add, |a, b| a + b);
vector_op!(Sub, sub, Op::Sub, |a, b| a - b);
vector_op!(Mul, mul, Op::Mul, |a, b| a * b);
vector_op!(Div, div, Op::Div, |a, b| a / b);
impl<'t, 'a> Neg for Vector<'t, 'a> {
    type Output = Self;
    fn neg(self) -> Self {
        self.one(Op::Neg, |a| -a)
    }
}

/// Makes a module of a description (JSON, section 5 of the ABI) and `fn loss(b: &mut Batch) -> Result<(), Error>`.
#[macro_export]
macro_rules! plugin {
    ($description:expr, $loss:path) => {
        #[no_mangle]
        pub extern "C" fn loss_abi_version() -> u32 {
            $crate::ABI_VERSION
        }
        #[no_mangle]
        pub extern "C" fn loss_describe() -> u64 {
            static TEXT: &str = $description;
            (TEXT.as_ptr() as usize as u64) << 32 | TEXT.len() as u64
        }
        /// # Safety
        /// The host calls it, with what loss_alloc gave.
        #[no_mangle]
        pub unsafe extern "C" fn loss_call(at: *mut u8, len: u32) -> i32 {
            match $crate::Batch::new(at, len as usize) {
                None => 3,
                Some(mut b) => match $loss(&mut b) {
                    Ok(()) => 0,
                    Err(e) => b.fail(e),
                },
            }
        }
    };
}

/// What a module needs in place of `std`: memory that is handed out upwards and taken back, whole, by the next loss_alloc; and
/// panics, whose text goes to the host.
#[cfg(target_arch = "wasm32")]
mod module {
    use core::alloc::{GlobalAlloc, Layout};
    use core::arch::wasm32::{memory_grow, memory_size};
    use core::sync::atomic::{AtomicUsize, Ordering::Relaxed};

    extern "C" {
        static __heap_base: u8;
    }
    #[link(wasm_import_module = "loss_host")]
    extern "C" {
        fn abort(ptr: *const u8, len: usize) -> !;
        pub fn log(level: i32, ptr: *const u8, len: usize);
    }

    struct Upwards(AtomicUsize); // 0 before the first use

    #[global_allocator]
    static MEMORY: Upwards = Upwards(AtomicUsize::new(0));

    unsafe impl GlobalAlloc for Upwards {
        unsafe fn alloc(&self, l: Layout) -> *mut u8 {
            let top = match self.0.load(Relaxed) {
                0 => core::ptr::addr_of!(__heap_base) as usize,
                top => top,
            };
            let start = (top + l.align() - 1) & !(l.align() - 1);
            let end = start.wrapping_add(l.size());
            let have = memory_size(0) << 16;
            if end < start || end > have && memory_grow(0, (end - have + 65535) >> 16) == usize::MAX {
                return core::ptr::null_mut();
            }
            self.0.store(end, Relaxed);
            start as *mut u8
        }
        unsafe fn dealloc(&self, _: *mut u8, _: Layout) {}
    }

    #[no_mangle]
    pub unsafe extern "C" fn loss_alloc(size: u32) -> *mut u8 {
        MEMORY.0.store(0, Relaxed);
        MEMORY.alloc(Layout::from_size_align_unchecked(size as usize, 16))
    }

    struct Text([u8; 512], usize);
    impl core::fmt::Write for Text {
        fn write_str(&mut self, s: &str) -> core::fmt::Result {
            let n = s.len().min(self.0.len() - self.1);
            self.0[self.1..self.1 + n].copy_from_slice(&s.as_bytes()[..n]);
            self.1 += n;
            Ok(())
        }
    }

    #[panic_handler]
    fn panic(info: &core::panic::PanicInfo) -> ! {
        let mut text = Text([0; 512], 0);
        let _ = core::fmt::write(&mut text, format_args!("{}", info));
        unsafe { abort(text.0.as_ptr(), text.1) }
    }
}

#[cfg(test)]
mod tests;
