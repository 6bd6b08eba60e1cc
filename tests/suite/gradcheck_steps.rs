//! Right gradients where differences are hard: near poles and edges, at tiny, huge and mixed scales, on top of large offsets,
//! under fast oscillations. None is accused, and each with a gradient of 1 % too much is.

use burn::linalg::{cosine_similarity, l2_norm};
use burn::nn::LayerNormConfig;
use burn::prelude::*;
use burn::tensor::{DType, activation::*};
use burn_dot::DotConfig;
use burn_gradcheck::{Failure, GradCheck, GradientKind, Report, Step};

fn device() -> Device {
    Device::flex()
}

fn check() -> GradCheck {
    GradCheck::new(&device())
}

fn at<const D: usize>(data: impl Into<TensorData>) -> Tensor<D> {
    Tensor::from_data(data, (&device(), DType::F32))
}

/// The same as f64, for points that f32 does not hold.
fn precisely<const D: usize>(data: impl Into<TensorData>) -> Tensor<D> {
    Tensor::from_data(data, (&device(), DType::F64))
}

/// The value of `y`, and 1.01 times its gradient.
fn one_percent_more<const D: usize>(y: Tensor<D>) -> Tensor<D> {
    let more = y.clone() * 1.01;
    y.detach() + more.clone() - more.detach()
}

/// Whether the backward pass is said to be wrong, and not only that it cannot be judged.
fn accuses(report: &Report) -> bool {
    let accusation = |failure: &Failure| {
        matches!(
            failure,
            Failure::Mismatch { .. } | Failure::NotFinite { .. } | Failure::Detached { .. } | Failure::Precision { .. }
        )
    };
    report.failures.iter().any(accusation)
}

/// Every function, right and with 1 % too much.
#[derive(Default)]
struct Table {
    tried: usize,
    wrong: Vec<String>,
}

impl Table {
    fn judge(&mut self, name: &str, right: &Report, wrong: &Report) {
        self.tried += 1;
        if !right.is_ok() {
            self.wrong.push(format!("{name}, accused falsely:\n{right}"));
        }
        if !wrong.failures.iter().any(|failure| matches!(failure, Failure::Mismatch { .. })) {
            self.wrong.push(format!("{name}, its fault not seen:\n{wrong}"));
        }
    }

    fn one<const D: usize, const O: usize>(&mut self, name: &str, x: Tensor<D>, f: impl Fn(Tensor<D>) -> Tensor<O>) {
        let wrong = check().check(|x| one_percent_more(f(x)), x.clone());
        self.judge(name, &check().check(&f, x), &wrong);
    }

    fn two<const D: usize, const E: usize, const O: usize>(
        &mut self,
        name: &str,
        inputs: (Tensor<D>, Tensor<E>),
        f: impl Fn(Tensor<D>, Tensor<E>) -> Tensor<O>,
    ) {
        let wrong = check().check(|(x, y)| one_percent_more(f(x, y)), inputs.clone());
        self.judge(name, &check().check(|(x, y)| f(x, y), inputs), &wrong);
    }

    fn finish(self, at_least: usize) {
        println!("{} functions tried", self.tried);
        assert!(self.tried >= at_least && self.wrong.is_empty(), "{}", self.wrong.join("\n"));
    }
}

#[test]
fn near_poles_and_edges() {
    let mut t = Table::default();
    t.one("1/x at 5e-6", at([5e-6]), |x: Tensor<1>| x.recip());
    t.one("1/x at 1e-7", at([1e-7, -1e-7]), |x: Tensor<1>| x.recip());
    t.one("1/x at 1e-30", precisely([1e-30]), |x: Tensor<1>| x.recip());
    t.one("1/x at zeros of other sizes", at([1e-8, 1.0, 1e8]), |x: Tensor<1>| x.recip());
    t.one("log at 1e-8", at([1e-8]), |x: Tensor<1>| x.log());
    t.one("log at mixed scales", at([1e-8, 1.0, 1e8]), |x: Tensor<1>| x.log());
    t.one("log1p at its edge", at([1e-10, -0.999_999]), |x: Tensor<1>| x.log1p());
    t.one("x log x", at([1e-6, 1e-3, 0.3]), |x: Tensor<1>| x.clone() * x.log());
    t.one("√ near zero", at([1e-10, 4e-5, 2.0]), |x: Tensor<1>| x.sqrt());
    t.one("x^(1/3) near zero", at([1e-9, 1e-3]), |x: Tensor<1>| x.powf_scalar(1.0 / 3.0));
    t.one("x^-3.5", at([1e-4, 3.0]), |x: Tensor<1>| x.powf_scalar(-3.5));
    t.one("x^7.3", at([1e-3, 3.0, 40.0]), |x: Tensor<1>| x.powf_scalar(7.3));
    t.one("acos near 1", at([0.999_999, -0.2]), |x: Tensor<1>| x.acos());
    t.one("atanh near 1", at([0.999_999, -0.2]), |x: Tensor<1>| x.atanh());
    t.one("tan beside its pole", at([core::f64::consts::FRAC_PI_2 - 3e-7, 0.3]), |x: Tensor<1>| x.tan());
    t.two("atan2 near the origin", (at([1e-7, -1.0]), at([1e-8, -1e-7])), |y: Tensor<1>, x: Tensor<1>| y.atan2(x));
    t.two("hypot near the origin", (at([1e-7, -1.0]), at([3e-8, -1e-7])), |x: Tensor<1>, y: Tensor<1>| x.hypot(y));
    t.two("x/(x − y) of near equals", (at([1.000_000_1, 2.0]), at([1.0, 1.0])), |x: Tensor<1>, y: Tensor<1>| {
        x.clone() / (x - y)
    });
    t.one("a norm near zero", at([[1e-8, 2e-9], [3.0, 4.0]]), |x: Tensor<2>| l2_norm(x, 1));
    t.one("a norm of tiny numbers", at([[1e-8, 2e-9], [-3e-9, 4e-8]]), |x: Tensor<2>| l2_norm(x, 1));
    t.one("a norm with a floor below the usual steps, at zero", at([0.0, 0.0]), |x: Tensor<1>| {
        x.clone() / x.abs().clamp_min(1e-12)
    });
    t.finish(21);
}

#[test]
fn saturated_and_overflowing() {
    let mut t = Table::default();
    t.one("exp of large", at([50.0, 80.0, -80.0]), |x: Tensor<1>| x.exp());
    t.one("exp beyond f32", at([600.0, 1.0]), |x: Tensor<1>| x.exp());
    t.one("tanh beyond 8", at([8.5, -9.5]), |x: Tensor<1>| x.tanh());
    t.one("tanh saturated beside others", at([12.0, 0.5]), |x: Tensor<1>| x.tanh());
    t.one("sigmoid saturated", at([20.0, -30.0]), sigmoid::<1>);
    t.one("log sigmoid", at([30.0, -80.0, 0.1]), log_sigmoid::<1>);
    t.one("softplus", at([60.0, -20.0, 0.1]), |x: Tensor<1>| softplus(x, 1.0));
    t.one("softmax of huge logits", at([[1000.0, 999.0, -500.0], [20.0, 0.0, -20.0]]), |x: Tensor<2>| softmax(x, 1));
    t.one("log-softmax of huge logits", at([[1000.0, 999.0, -500.0], [20.0, 0.0, -20.0]]), |x: Tensor<2>| log_softmax(x, 1));
    t.one("log-sum-exp", at([[1000.0, 999.0, -500.0]]), |x: Tensor<2>| {
        let top = x.clone().max_dim(1).detach();
        (x - top.clone()).exp().sum_dim(1).log() + top
    });
    t.one("erf", at([4.0, -3.5, 1e-9]), |x: Tensor<1>| x.erf());
    t.one("gelu", at([-6.0, 6.0, 0.1]), gelu::<1>);
    t.finish(12);
}

#[test]
fn scales_and_offsets() {
    let mut t = Table::default();
    t.one("1e8 + x", at([0.3, -1.2, 0.7]), |x: Tensor<1>| x + 1e8);
    t.one("1e8 + x at 1e-8", at([1e-8]), |x: Tensor<1>| x + 1e8);
    t.one("(x + 1e6) − 1e6", at([0.3, -1.2]), |x: Tensor<1>| (x.sin() + 1e6) - 1e6);
    t.one("(x + 1e9) − 1e9", at([0.3, -1.2]), |x: Tensor<1>| (x.sin() + 1e9) - 1e9);
    t.one("1e-20 x", at([0.3, -1.2]), |x: Tensor<1>| x * 1e-20);
    t.one("1e-30 x", at([0.3, 1e-8]), |x: Tensor<1>| x * 1e-30);
    t.one("1e20 x²", at([1e-8, 1.0]), |x: Tensor<1>| x.square() * 1e20);
    t.one("x² at mixed scales", at([1e-8, 1.0, 1e8]), |x: Tensor<1>| x.square());
    t.one("tanh at mixed scales and zero", at([1e-8, 0.0, 1.0, -1e-3]), |x: Tensor<1>| x.tanh());
    t.one("x³ at zero", at([0.0, 1e-9, 0.5]), |x: Tensor<1>| x.powi_scalar(3));
    t.one("cumsum of mixed scales", at([[1e-8, 1.0, 1e6], [3.0, -1e-5, 2.0]]), |x: Tensor<2>| x.cumsum(1));
    t.one("a product with a tiny factor", at([[1e-7, 3.0, -2.0]]), |x: Tensor<2>| x.prod_dim(1));
    t.one("variance on an offset", at([[1000.0, 1000.5, 999.0]]), |x: Tensor<2>| x.var(1));
    let (x, y) = ([[1e-6, 1.0, 1e5], [2.0, -1e-3, 1e4]], [[1e5, 1.0], [-1.0, 1e-6], [1e-5, 3.0]]);
    t.two("matmul of mixed magnitudes", (at(x), at(y)), |x: Tensor<2>, y: Tensor<2>| x.matmul(y));
    t.one("layer norm of near-constant rows", at([[1.0, 1.0, 1.000_001], [0.5, 0.5, 0.5]]), |x: Tensor<2>| {
        let mean = x.clone().mean_dim(1);
        let centred = x - mean;
        centred.clone() / (centred.square().mean_dim(1) + 1e-12).sqrt()
    });
    let device = device().autodiff();
    t.one("Burn's layer norm of near-constant rows", at([[1.0, 1.0, 1.001], [0.5, 0.5, 0.7]]), |x: Tensor<2>| {
        // Its parameters are f32: the report says that it is checked in f32.
        LayerNormConfig::new(3).init(&device).forward(x)
    });
    t.two("cosine above its floor", (at([[2e-6, 0.0]]), at([[0.6, 0.8]])), |x: Tensor<2>, y: Tensor<2>| {
        DotConfig::new(1).with_normalize(true).init().forward::<2, 2, 2, _>(x, y)
    });
    t.two("cosine below its floor", (at([[2e-7, 0.0]]), at([[0.6, 0.8]])), |x: Tensor<2>, y: Tensor<2>| {
        DotConfig::new(1).with_normalize(true).init().forward::<2, 2, 2, _>(x, y)
    });
    t.two("Burn's cosine of tiny vectors", (at([[2e-6, 1e-6]]), at([[6e-7, 8e-7]])), |x: Tensor<2>, y: Tensor<2>| {
        cosine_similarity(x, y, 1, None)
    });
    t.finish(19);
}

#[test]
fn kinks_steps_and_oscillations() {
    let mut t = Table::default();
    t.one("|x| away from zero", at([1e-9, -1e-12, 2.0]), |x: Tensor<1>| x.abs());
    t.one("|x| at zero", at([0.0, 2.0]), |x: Tensor<1>| x.abs());
    t.one("relu beside zero", at([1e-7, -1e-7, 3.0]), relu::<1>);
    t.one("clamp beside its ends", at([0.500_001, 0.499_999, -2.0]), |x: Tensor<1>| x.clamp(-1.0, 0.5));
    t.one("max of near ties", at([[1.0, 1.000_001, -3.0]]), |x: Tensor<2>| x.max_dim(1));
    t.two("the larger of near ties", (at([1.0, 2.0]), at([1.000_001, 1e-9])), |x: Tensor<1>, y: Tensor<1>| x.max_pair(y));
    t.one("floor and a slope", at([0.3, 1.7, -2.4]), |x: Tensor<1>| x.clone().floor() + x);
    t.one("sign times x", at([0.3, -1e-7, 2.0]), |x: Tensor<1>| x.clone().sign() * x);
    t.one("relu of what lies 1e-7 below zero, at zero", at([0.0, 2.0]), |x: Tensor<1>| relu(x - 1e-7));
    t.one("√(x² + 1e-20)", at([1e-12, 0.3]), |x: Tensor<1>| (x.square() + 1e-20).sqrt());
    t.one("a bend of 1e-10 beside zero", at([0.0]), |x: Tensor<1>| ((x + 1e-11).square() + 1e-20).sqrt());
    t.one("sin 1e4 x", at([1000.123, 999.7, 1000.0]), |x: Tensor<1>| (x * 1e4).sin());
    t.one("sin 1e8 x", at([1.123, 0.7]), |x: Tensor<1>| (x * 1e8).sin());
    t.one("x and a ripple", at([1.123, 0.7]), |x: Tensor<1>| x.clone() + (x * 1e7).sin() * 1e-6);
    t.two("a function without its second input", (at([0.3, 2.0]), at([1.0, 4.0])), |x: Tensor<1>, y: Tensor<1>| {
        x.clone().sin() + y.greater_elem(2.0).float().cast(x.dtype()) * 0.0
    });
    t.finish(15);
}

#[test]
fn an_ill_conditioned_function_runs_in_f64() {
    let report = check().check(|x: Tensor<1>| (x * 1e4).sin(), at([1000.123, 999.7]));
    report.assert_ok();
    assert_eq!(report.dtype, DType::F64);
    let says = |note: &String| note.contains("the function is ill-conditioned");
    assert!(report.notes.iter().any(says), "f32 and f64 outputs are far apart, which a note says: {report}");
}

#[test]
fn a_function_that_rounds_to_f32_inside_is_checked_in_f32() {
    let rounds = |x: Tensor<1>| {
        let dtype = x.dtype();
        x.cast(DType::F32).sin().cast(dtype)
    };
    // Alone, and summed up, where the outputs have more digits than f32.
    for f in [&rounds as &dyn Fn(Tensor<1>) -> Tensor<1>, &|x: Tensor<1>| rounds(x).sum()] {
        let report = check().check(f, at([0.3, -1.2, 0.7]));
        report.assert_ok();
        assert_eq!(report.dtype, DType::F32);
        assert!(report.notes[0].starts_with("the function does not run in f64, it rounds to f32 inside"), "{report}");
        assert!(accuses(&check().check(|x| one_percent_more(f(x)), at([0.3, -1.2, 0.7]))));
        // Who hands over f64 wants f64.
        let report = check().check(f, precisely([0.3, -1.2, 0.7]));
        assert_eq!(report.failures, [Failure::RoundsToF32], "{report}");
    }
    // What is exact in both does not round; neither does what cannot change.
    assert_eq!(check().check(|x: Tensor<1>| x * 2, at([8.0, 1.5])).dtype, DType::F64);
    assert_eq!(check().check(|x: Tensor<1>| x.clone().floor() + relu(x), at([8.0, 1.5])).dtype, DType::F64);
}

#[test]
fn a_function_that_rounds_a_part_of_itself_to_f32_is_not_accused() {
    fn in_f32(f: impl Fn(Tensor<2>) -> Tensor<2>) -> impl Fn(Tensor<2>) -> Tensor<2> {
        move |x| {
            let dtype = x.dtype();
            f(x.cast(DType::F32)).cast(dtype)
        }
    }
    let norm = in_f32(|x| (x.square().mean_dim(1) + 1e-5).sqrt());
    let (gate, softened) = (in_f32(sigmoid), in_f32(|x| softmax(x, 1)));
    let functions: [(&str, &dyn Fn(Tensor<2>) -> Tensor<2>); 4] = [
        ("divided by its norm", &|x| x.clone() / norm(x)),
        ("gated", &|x| x.clone() * gate(x)),
        ("and something that does not", &|x| x.clone().sin() + softened(x)),
        ("summed up", &|x| (x.clone() * gate(x)).sum_dim(0)),
    ];
    let numbers = [[0.3, -1.2, 0.7, 1.6, -0.4], [-0.9, 0.2, 1.1, -0.6, 2.3]];
    for (name, f) in functions {
        let report = check().check(f, at(numbers));
        assert!(report.is_ok() && report.dtype == DType::F32, "{name}: {report}");
        assert!(report.notes[0].contains("it rounds to f32 inside"), "{name}: {report}");
        // Who hands over f64 wants f64, and is not told that the gradient is wrong, too. Neither is it passed over.
        let report = check().check(f, precisely(numbers));
        assert_eq!(report.failures, [Failure::RoundsToF32], "{name}: {report}");
        for x in [at(numbers), precisely(numbers)] {
            assert!(accuses(&check().check(|x| one_percent_more(f(x)), x)), "{name}");
        }
    }
}

#[test]
fn what_is_steep_bent_or_almost_at_a_kink_does_not_round() {
    // A tenth, and a hundred, of the change that f32 can hold.
    let near = |x: Tensor<1>, part: f64| (x - (1.0 + part * 2f64.powi(-22))).abs();
    let functions: [(&str, &dyn Fn(Tensor<1>) -> Tensor<1>); 10] = [
        ("steep", &|x| (x * 100).sin()),
        ("steeper", &|x| (x * 1e5).sin()),
        ("curved", &|x| (x * 30).exp()),
        ("at its zero", &|x| x * 0.1 - 0.1),
        ("in its minimum", &|x| (x - 1.0).square()),
        ("beside a kink", &|x| near(x, 0.1)),
        ("not far from a kink", &|x| near(x, 100.0)),
        ("between two kinks", &|x| x.clamp(1.0 - 1e-7, 1.0 + 1e-7)),
        ("between two kinks, and flat", &|x| relu(x.clone() - (1.0 + 1e-7)) + relu(-x + (1.0 - 1e-7))),
        ("of two parts", &|x| x.clone().sin() + (x * 1e3).cos() * 1e-3),
    ];
    for (name, f) in functions {
        for x in [precisely([1.0, 0.7]), precisely([1.0, -2.3]), precisely([1.0])] {
            let report = check().check(f, x);
            assert!(!report.failures.contains(&Failure::RoundsToF32), "{name}: {report}");
        }
    }
}

#[test]
fn a_point_that_cannot_be_judged_is_not_accused() {
    let pole = precisely([core::f64::consts::FRAC_PI_2 - 3e-16]);
    for (name, report) in [
        ("too near a pole", check().check(|x: Tensor<1>| x.tan(), pole)),
        ("too fast", check().check(|x: Tensor<1>| (x * 1e16).sin(), at([1.123, 0.7]))),
        ("too small", check().check(|x: Tensor<1>| x * 1e-14 + 1e6, at([0.3]))),
    ] {
        assert_eq!(report.failures, [Failure::Uncertain { input: "input 0".into() }], "{name}: {report}");
        assert!(report.notes.iter().any(|note| note.contains("cannot be judged: ")), "{name}: {report}");
        assert!(report.to_string().contains("✗ input 0 cannot be judged: "), "{name}: {report}");
    }
    // One among others is counted, and the others are judged.
    let near = precisely([core::f64::consts::FRAC_PI_2 - 3e-16, 0.3]);
    let report = check().rtol(1e-6).atol(0.0).check(|x: Tensor<1>| x.tan(), near);
    assert!(report.is_ok() && report.rows[0].unknown == 1, "{report}");
}

#[test]
fn what_rounding_hides_is_not_accused() {
    // Straddled by every step that the offset leaves room for.
    let hole = |x: Tensor<1>| (x * 1.2).abs().sqrt() * 2.5e-8 + 87;
    let report = check().check(hole, at([-357.887_36, 5.624_222e-10]));
    assert!(!accuses(&report), "{report}");
    // As fast as the last digits of its input, and no precision asked for where none is left.
    let report = check().precision([]).check(|x: Tensor<1>| (x * 1e12).sin(), precisely([1.123, 0.7]));
    assert!(!accuses(&report), "{report}");
    // Steep from afar, flat on each step.
    let stairs = |(x, y): (Tensor<1>, Tensor<1>)| ((x * 8458.796).floor() * 1.675, y);
    let report = check().check(stairs, (at([66.558_87, 170.514_48]), at([1.0])));
    assert!(!accuses(&report), "{report}");
    // Nor is it said to agree: zero is right on each step of this one, and wrong from afar.
    let coarse = |(x, y): (Tensor<1>, Tensor<1>)| ((x.clone().sin() + 1e9 - 1e9).detach() + x.mul_scalar(0.0), y);
    let report = check().check(coarse, (at([0.3, -1.2]), at([1.0])));
    assert_eq!(report.rows[0].unknown, 2, "{report}");
}

#[test]
fn an_infinite_gradient_agrees_with_nothing() {
    // The root is of zero wherever x is: nothing in value, infinite in slope.
    let wrong = |x: Tensor<1>| x.clone().sin() + (x.clone() - x.detach()).sqrt();
    let report = check().check(wrong, at([0.3]));
    let named = |failure: &Failure| matches!(failure, Failure::NotFinite { analytic, .. } if analytic.is_infinite());
    assert!(report.failures.iter().any(named), "{report}");
}

#[test]
fn a_gradient_near_zero_is_said_to_be_no_more_than_was_seen() {
    // Beside 1e6, with outputs of its own: it is seen, and is no zero.
    let f = |(x, y): (Tensor<1>, Tensor<1>)| (x * 1e6, y * 3.5e-17);
    let report = check().check(f, (at([0.3]), at([0.7])));
    report.assert_ok();
    assert_eq!(report.rows[1].gradient, GradientKind::Present);
    assert!(!report.to_string().contains("its gradient is zero"), "{report}");

    // In the same output it is hidden by the other's rounding.
    let report = check().check(|(x, y): (Tensor<1>, Tensor<1>)| x * 1e6 + y * 3.5e-17, (at([0.3]), at([0.7])));
    report.assert_ok();
    assert_eq!(report.rows[1].gradient, GradientKind::Zero);
    let note = report.notes.iter().find(|note| note.starts_with("input 1")).expect("a note on the second input");
    assert!(note.contains("is within the rounding of the largest"), "{report}");

    let zeros = check().max_kinks(1.0).check(|x: Tensor<1>| relu(x), at([0.0, 0.0]));
    let expected = "input 0: its gradient is zero, and every number of the input lies on a kink, where no derivative exists";
    assert!(zeros.notes.contains(&expected.to_string()), "{zeros}");

    let flat = check().check(|(x, y): (Tensor<1>, Tensor<1>)| x.sin() + y.floor(), (at([0.3]), at([0.7])));
    assert!(flat.notes.contains(&"input 1: its gradient is zero; the differences are zero".to_string()), "{flat}");
}

#[test]
fn steps_that_are_asked_for_are_never_exceeded() {
    // The function fails outside its domain, which is narrower than the usual steps.
    let domain = |low: f64, high: f64| {
        move |x: Tensor<1>| {
            let (min, max) = (x.clone().min().into_scalar::<f64>(), x.clone().max().into_scalar::<f64>());
            assert!(low <= min && max <= high, "asked for {min:e} to {max:e}");
            x.log()
        }
    };
    check().step(Step::Absolute(1e-7)).check(domain(1e-6, 2e-6), at([1.2e-6, 1.8e-6])).assert_ok();
    check().step(Step::Relative(1e-3)).check(domain(0.99e-6, 2.02), at([1e-6, 2.0])).assert_ok();
    let pair = |(x, y): (Tensor<1>, Tensor<1>)| domain(0.99e-6, 1.01e-6)(x) + domain(0.5, 3.5)(y);
    let steps = Step::PerInput(vec![Step::Relative(1e-3), Step::Absolute(0.25)]);
    check().step(steps).check(pair, (at([1e-6]), at([2.0]))).assert_ok();
    // A step much too wide is made narrower, and zeros take the scale of their neighbours.
    check().step(Step::Absolute(0.5)).check(|x: Tensor<1>| x.recip(), at([5e-6, 1.0])).assert_ok();
    let floor = |x: Tensor<1>| x.clone() / x.square().sum().sqrt().clamp_min(1e-6);
    check().step(Step::Relative(1e-2)).check(floor, at([2e-6, 0.0])).assert_ok();
    // And they see what is wrong.
    for step in [Step::Absolute(1e-7), Step::Relative(1e-3)] {
        let wrong = check().step(step).check(|x: Tensor<1>| one_percent_more(x.log()), at([1.2e-6, 1.8e-6]));
        assert!(accuses(&wrong), "{wrong}");
    }
}

#[test]
fn steps_that_mean_nothing_are_refused() {
    for step in
        [Step::Absolute(0.0), Step::Relative(-1.0), Step::Absolute(f64::NAN), Step::PerInput(vec![Step::PerInput(vec![])])]
    {
        assert!(std::panic::catch_unwind(|| check().step(step.clone())).is_err(), "{step:?}");
    }
}

#[test]
fn a_large_input_of_tiny_numbers_is_checked_along_directions() {
    let tiny: Vec<f64> = (0..3_000).map(|i| 1e-8 * (1.5 + f64::from(i).sin())).collect();
    let x = || at::<1>(TensorData::new(tiny.clone(), [3_000]));
    let report = check().check(|x: Tensor<1>| x.recip(), x());
    report.assert_ok();
    assert_eq!((report.rows[0].elements, report.rows[0].directions), (0, 8), "{report}");
    assert!(accuses(&check().check(|x: Tensor<1>| one_percent_more(x.recip()), x())));
}
