use super::*;

/// A request in memory, as a host lays it out: "w" per token (absent in the last datum) and "x" of shape [1].
struct Request(Vec<u64>);

const LENGTHS: [usize; 5] = [3, 1, 4, 2, 5];
const GROUP: [u32; 5] = [0, 1, 0, 0, 1];

impl Request {
    fn new(logprobs: &[f64]) -> Request {
        let n = logprobs.len();
        let mut r = Request(vec![0; 2048]);
        let (columns, spans, names, groups, params) = (128, 256, 768, 816, 840);
        let (data, w, x, out, metrics, error) = (1024, 2048, 3072, 4096, 5120, 6400);
        for (i, v) in [MAGIC, ABI_VERSION, 16384, 0, 5, 3, columns, groups, params, 1, 0, 0, out, n as u32, metrics, 4, error, 64, 5, 2].iter().enumerate() {
            r.put(4 * i, *v);
        }
        r.put(104, 2);
        r.0[params as usize / 8] = 0.5f64.to_bits();
        for (c, (name, data, total)) in [("$logprobs", data, n), ("w", w, n - 5), ("x", x, 5)].into_iter().enumerate() {
            let name_at = names + 16 * c;
            r.bytes()[name_at..name_at + name.len()].copy_from_slice(name.as_bytes());
            let span = spans + 128 * c as u32;
            for (i, v) in [name_at as u32, name.len() as u32, 1, span, data, total as u32].iter().enumerate() {
                r.put(columns as usize + 32 * c + 4 * i, *v);
            }
            let mut start = 0;
            for (d, len) in LENGTHS.iter().enumerate() {
                let len = if c == 2 { 1 } else { *len as u32 };
                if c != 1 || d != 4 {
                    for (i, v) in [start, len, 1, 1].iter().enumerate() {
                        r.put(span as usize + 16 * d + 4 * i, *v);
                    }
                    start += len;
                }
            }
        }
        for (d, g) in GROUP.iter().enumerate() {
            r.put(groups as usize + 4 * d, *g);
        }
        for (i, v) in logprobs.iter().enumerate() {
            r.put(data as usize + 4 * i, (*v as f32).to_bits());
            r.put(w as usize + 4 * i, (0.5 + i as f32 % 3.0).to_bits());
            r.put(x as usize + 4 * i, (i as f32).to_bits());
        }
        r.put(w as usize, 0);
        r
    }
    fn bytes(&mut self) -> &mut [u8] {
        unsafe { from_raw_parts_mut(self.0.as_mut_ptr() as *mut u8, self.0.len() * 8) }
    }
    fn put(&mut self, off: usize, v: u32) {
        self.bytes()[off..off + 4].copy_from_slice(&v.to_le_bytes());
    }
    fn run(&mut self, loss: fn(&mut Batch)) -> (f64, Vec<f64>) {
        let (at, len) = (self.0.as_mut_ptr() as *mut u8, self.0.len() * 8);
        let mut b = unsafe { Batch::new(at, len) }.expect("a request");
        loss(&mut b);
        let weights = (0..b.datums()).flat_map(|d| b.out(d).iter().map(|w| *w as f64).collect::<Vec<_>>()).collect();
        (b.slice::<f64>(96, 1)[0], weights)
    }
}

fn logprobs() -> Vec<f64> {
    (0..15).map(|i| -0.25 - ((i * 7) % 15) as f64 / 8.0).collect()
}

/// The weights are minus the difference quotients, for every log-probability.
fn check(loss: fn(&mut Batch)) {
    let x = logprobs();
    let (_, weights) = Request::new(&x).run(loss);
    assert!(weights.iter().any(|w| *w != 0.0));
    for i in 0..x.len() {
        let at = |by: f64| {
            let mut y = x.clone();
            y[i] += by;
            Request::new(&y).run(loss).0
        };
        let h = 1.0 / 1024.0;
        let slope = (at(h) - at(-h)) / (2.0 * h);
        assert!((slope + weights[i]).abs() < 1e-4 * (1.0 + slope.abs()), "element {}: slope {}, weight {}", i, slope, weights[i]);
    }
}

#[test]
fn tape_of_tokens() {
    check(|b| {
        let t = Tape::new(b);
        let (lp, w) = (t.logprobs(), t.per_token("w", 2.0));
        let away = lp - w * 0.25;
        let l = (lp * w).exp().min(away.clamp(-1.3, -0.4) * 3.0) + (away * away + 0.1).sqrt().max(0.7) - (1.5 - lp).log() / (2.0 + lp.sigmoid());
        t.backward((l.keep(w) + lp * lp).sum(), b);
    });
}

#[test]
fn tape_of_datums_and_groups() {
    check(|b| {
        let t = Tape::new(b);
        let (lp, w, x) = (t.logprobs(), t.per_token("w", 1.0), t.per_datum("x", 0.0));
        let s = (w * lp.keep(w)).datum_sum();
        let away = s - s.group_mean().of_group() * x;
        let pairs = (s.every(0, 2).mean() - s.every(1, 2)).softplus();
        let l = away.of_datum() * lp;
        t.backward(l.sum() * (0.5 / b.batch_groups()) + pairs.sum() - (-away).group_sum().sum() / t.group_size().sum(), b);
    });
}

#[test]
fn duals() {
    check(|b| {
        let w = b.column("w");
        let mut sum = 0.0;
        for d in 0..b.datums() {
            let mask = b.floats(w, d);
            let beta = b.param(0);
            sum += b.tokens(d, mask, 0.5, |i, lp| {
                let r = (lp - mask.map_or(-1.0, |m| m[i] as f64)).exp();
                (r * 2.0).min(r.clamp(0.8, 1.2) / (beta - lp)) + (lp * lp).softplus() - (1.0 - lp).log() * lp + (-lp).max(0.55)
            });
        }
        b.set_loss(sum);
    });
}

/// By hand, by duals and by the tape: the same weights.
#[test]
fn score_and_spread() {
    fn by_hand(b: &mut Batch) {
        let (w, x) = (b.column("w"), b.column("x"));
        let mut sum = 0.0;
        for d in 0..b.datums() {
            let ones = vec![1.0; b.dims(d).0];
            let w = b.floats(w, d).unwrap_or(&ones);
            let s = b.score(d, w, None) * b.floats(x, d).unwrap()[0] as f64;
            sum += softplus(-s);
            b.spread(d, w, -sigmoid(-s) * b.floats(x, d).unwrap()[0] as f64);
        }
        b.set_loss(sum);
        b.metric("loss:mean", sum);
        assert_eq!((b.size(88), b.slice::<u8>(5136, 9)), (1, &b"loss:mean"[..]));
    }
    check(by_hand);
    let (loss, weights) = Request::new(&logprobs()).run(by_hand);
    let (same, also) = Request::new(&logprobs()).run(|b| {
        let t = Tape::new(b);
        let w = t.per_token("w", 1.0);
        t.backward((-((w * t.logprobs()).datum_sum() * t.per_datum("x", 0.0))).softplus().sum(), b);
    });
    assert!((loss - same).abs() < 1e-12);
    weights.iter().zip(also).for_each(|(a, b)| assert!((a - b).abs() <= 1e-6 * b.abs()));
}

/// What is detached counts with its value and without its derivative.
#[test]
fn detached() {
    let want: Vec<f64> = logprobs().iter().map(|x| -x).collect();
    let (_, tape) = Request::new(&logprobs()).run(|b| {
        let t = Tape::new(b);
        t.backward((t.logprobs().detach() * t.logprobs() + t.logprobs().less(-1.0)).sum(), b);
    });
    let (_, duals) = Request::new(&logprobs()).run(|b| (0..b.datums()).for_each(|d| {
        b.tokens(d, None, 1.0, |_, lp| lp.detach() * lp);
    }));
    assert_eq!((&tape, &duals), (&want, &want));
}

#[test]
fn evaluation_only() {
    let mut r = Request::new(&logprobs());
    r.put(12, 1);
    let (loss, weights) = r.run(|b| {
        let t = Tape::new(b);
        t.backward(t.logprobs().sum(), b);
    });
    assert!((loss - logprobs().iter().sum::<f64>()).abs() < 1e-9 && weights.iter().all(|w| *w == 0.0));
}

#[test]
fn failures() {
    let mut r = Request::new(&logprobs());
    let (at, len) = (r.0.as_mut_ptr() as *mut u8, r.0.len() * 8);
    let mut b = unsafe { Batch::new(at, len) }.unwrap();
    assert_eq!(b.fail(user("datum 3: beta")), 1);
    assert_eq!((b.size(92), b.slice::<u8>(6400, 13)), (13, &b"datum 3: beta"[..]));
    assert!(b.column("v").is_none() && b.floats(b.column("w"), 4).is_none() && b.ints(b.column("w"), 0).is_none());
    assert!(unsafe { Batch::new(at, 64) }.is_none());
    r.put(0, 1);
    assert!(unsafe { Batch::new(at, len) }.is_none());
}

#[test]
#[should_panic(expected = "request: an offset is wrong")]
fn lies() {
    let mut r = Request::new(&logprobs());
    r.put(48, 16384); // the weights, behind the end
    r.run(|_| {});
}

#[test]
#[should_panic(expected = "tape: vectors of 15 and 5 elements")]
fn lengths() {
    Request::new(&logprobs()).run(|b| {
        let t = Tape::new(b);
        t.backward((t.logprobs() + t.per_datum("x", 0.0)).sum(), b);
    });
}

/// Errors in units of the last place, against std.
#[test]
fn arithmetic() {
    fn ulps(got: f64, want: f64) -> f64 {
        if got == want || got.is_nan() && want.is_nan() {
            return 0.0;
        }
        (got.to_bits() as i64).abs_diff(want.to_bits() as i64) as f64
    }
    let mut state = 88172645463325252u64;
    let mut random = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 11) as f64 / (1u64 << 53) as f64 * 2.0 - 1.0
    };
    for i in 0..400_000 {
        let x = random() * [745.0, 20.0, 1.0][i % 3];
        let y = (random() * [700.0, 1.0][i % 2]).exp();
        for (name, got, want, most) in [
            ("exp", exp(x), x.exp(), 1.0), ("expm1", expm1(x), x.exp_m1(), 4.0), ("log", log(y), y.ln(), 1.0),
            ("log1p", log1p(y - 1.0), (y - 1.0).ln_1p(), 2.0), ("sqrt", sqrt(y), y.sqrt(), 1.0),
        ] {
            assert!(ulps(got, want) <= most, "{}: {} for {}, std has {} (x {}, y {})", name, got, want, want, x, y);
        }
    }
    for x in [f64::INFINITY, f64::NEG_INFINITY, f64::NAN, 0.0, 5e-324, -1.0] {
        assert!(ulps(exp(x), x.exp()) <= 1.0 && ulps(log(x), x.ln()) <= 1.0 && ulps(sqrt(x), x.sqrt()) <= 1.0, "{}", x);
    }
    assert!(softplus(1000.0) == 1000.0 && softplus(-1000.0) == 0.0 && sigmoid(-1000.0) == 0.0 && sigmoid(1000.0) == 1.0);
}

/// The bits of the C header, whose test has the same number.
#[test]
fn same_bits_as_c() {
    let mut hash = 1469598103934665603u64; // FNV-1a over words
    for i in 0..100_000i64 {
        let x = (i - 50_000) as f64 * 0.0137;
        for v in [exp(x), log(x + 700.0), log1p(x + 690.0), expm1(x / 1000.0), softplus(x / 10.0), sigmoid(x / 10.0)] {
            hash = (hash ^ v.to_bits()).wrapping_mul(1099511628211);
        }
    }
    assert_eq!(hash, 0x55ca87bcdfffeef7);
}
