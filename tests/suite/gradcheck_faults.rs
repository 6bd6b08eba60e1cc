//! Planted faults: each is caught by `burn-gradcheck` and named.
//!
//! `value(f).gradient_of(g)` has the value of `f` and the gradient of `g`: whatever a wrong backward pass would do.

use burn::prelude::*;
use burn::tensor::{DType, FloatDType, activation::relu};
use burn_gradcheck::{Failure, GradCheck, GradientKind, Hint, Report, self_test};
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::{
    device::turn_to_draw,
    oracle::Array,
    run::{tensor, value_of, wave},
};

pub fn x<const D: usize>(shape: [usize; D], phase: f64) -> Tensor<D> {
    tensor(&wave(&shape, phase), DType::F32, &Device::flex())
}

pub fn check() -> GradCheck {
    GradCheck::new(&Device::flex())
}

fn hints(report: &Report) -> Vec<&Hint> {
    let hints = report.failures.iter().filter_map(|failure| match failure {
        Failure::Pattern { hint, .. } => Some(hint),
        _ => None,
    });
    hints.collect()
}

#[test]
fn a_flipped_sign() {
    let report = check().check(|x: Tensor<2>| value_of(x.clone().tanh(), -x.tanh()), x([3, 4], 0.1));
    assert_eq!(hints(&report), [&Hint::SignFlipped], "{report}");
}

#[test]
fn a_factor_of_two() {
    let report = check().check(|x: Tensor<2>| value_of(x.clone().exp(), x.exp() * 2), x([3, 4], 0.1));
    let [Hint::Factor(factor)] = hints(&report)[..] else { panic!("{report}") };
    assert!((factor - 2.0).abs() < 1e-6, "{report}");
}

#[test]
fn a_factor_that_only_precise_differences_see() {
    // Narrow steps have wide error bars, in which such a fault has room; wide steps have accused it before.
    let at = tensor::<2>(&wave(&[3, 4], 0.1), DType::F64, &Device::flex());
    for too_much in [3e-3, 1e-3, 1e-4, 1e-5, 4e-6] {
        let functions: [fn(Tensor<2>) -> Tensor<2>; 4] = [|x| x.exp(), |x| x.sin(), |x| x.clone() * x, |x| x.tanh()];
        for f in functions {
            let report = check().check(|x: Tensor<2>| value_of(f(x.clone()), f(x) * (1.0 + too_much)), at.clone());
            let mismatches = report.failures.iter().filter(|f| matches!(f, Failure::Mismatch { .. })).count();
            assert_eq!(mismatches, 12, "{too_much:e} too much: {report}");
            check().check(f, at.clone()).assert_ok();
        }
    }
}

#[test]
fn a_missing_term() {
    // The product rule with one of its terms: the gradient of x · sin(x) without that of x.
    let wrong = |x: Tensor<1>| value_of(x.clone() * x.clone().sin(), x.clone().detach() * x.sin());
    let report = check().check(wrong, x([7], 0.3));
    assert_eq!(hints(&report), [&Hint::Term], "{report}");
}

#[test]
fn swapped_inputs() {
    // ∂(x·y)/∂x is y; this gives x to x and y to y.
    let wrong = |(x, y): (Tensor<2>, Tensor<2>)| value_of(x.clone() * y.clone(), (x.clone() * x + y.clone() * y) / 2);
    let report = check().check(wrong, (x([3, 4], 0.1), x([3, 4], 0.7)));
    assert_eq!(hints(&report), [&Hint::GradientOf("input 1".into()), &Hint::GradientOf("input 0".into())], "{report}");
}

#[test]
fn a_transposed_gradient() {
    let weights = |dtype| tensor::<2>(&wave(&[4, 4], 0.5), dtype, &Device::flex());
    let wrong = move |x: Tensor<2>| {
        let w = weights(x.dtype());
        value_of((x.clone() * w.clone()).sum(), (x * w.transpose()).sum())
    };
    let report = check().check(wrong, x([4, 4], 0.2));
    assert_eq!(hints(&report), [&Hint::Transposed], "{report}");
}

#[test]
fn one_wrong_element_of_ten_thousand() {
    const AT: usize = 7_654;
    let wrong = |x: Tensor<1>| {
        let edge = Array::from_fn(&[10_000], |index| f64::from(u8::from(index[0] == AT)));
        let edge = tensor::<1>(&edge, x.dtype(), &x.device());
        value_of(x.clone().sin(), x.clone().sin() + x * edge * 0.01)
    };
    let report = check().check(wrong, x([10_000], 0.2));
    let named: Vec<_> = report
        .failures
        .iter()
        .filter_map(|f| if let Failure::Mismatch { index, .. } = f { Some(index.clone()) } else { None })
        .collect();
    assert_eq!(named, [vec![AT]], "{report}");
    assert_eq!(hints(&report), [&Hint::OneElement], "{report}");
}

#[test]
fn a_detached_branch() {
    let report = check().check(|(x, y): (Tensor<2>, Tensor<2>)| x * y.detach(), (x([3, 4], 0.1), x([3, 4], 0.6)));
    assert!(
        matches!(&report.failures[..], [Failure::Detached { input, slope }] if input == "input 1" && *slope > 0.1),
        "{report}"
    );
    assert_eq!(report.rows[1].gradient, GradientKind::Detached);

    let report = check().check(|x: Tensor<2>| x.clone().tanh() + x.sin().detach(), x([3, 4], 0.1));
    assert_eq!(hints(&report), [&Hint::Term], "a branch of several: {report}");
}

#[test]
fn a_norm_without_its_projection() {
    let wrong = |x: Tensor<2>| {
        let norm = x.clone().powf_scalar(2.0).sum_dim(1).sqrt();
        x / norm.detach()
    };
    let report = check().check(wrong, x([3, 4], 0.1));
    assert_eq!(hints(&report), [&Hint::AlongInput], "{report}");
}

#[test]
fn a_nan_at_zero() {
    // x⁴ᐟ² is smooth at zero, but its backward pass goes through a square root's infinity.
    let wrong = |x: Tensor<1>| x.clone().powf_scalar(2.0).sqrt() * x;
    let at = Tensor::<1>::from_data([1.0, 0.0, -2.0], &Device::flex());
    let report = check().check(wrong, at);
    let named =
        |failure: &Failure| matches!(failure, Failure::NotFinite { index, analytic, .. } if index == &[1] && analytic.is_nan());
    assert!(report.failures.iter().any(named), "{report}");
}

#[test]
fn a_loss_of_precision_in_f32_only() {
    // The slope sin x by way of (sin x + 10⁵) − 10⁵: its last digits are lost in f32, and nothing that matters in f64.
    let wrong = |x: Tensor<1>| {
        let slope = (x.clone().sin() + 1e5) - 1e5;
        value_of(-x.clone().cos(), slope.detach() * x)
    };
    let report = check().check(wrong, x([7], 0.3));
    assert!(report.failures.iter().all(|f| matches!(f, Failure::Precision { dtype: DType::F32, .. })), "{report}");
    assert!(!report.is_ok());
}

#[test]
fn a_vacuous_check() {
    let zero = 0.0;
    let report = check().check(|x: Tensor<1>| x * zero, x([5], 0.3));
    assert_eq!(report.failures, [Failure::Vacuous], "{report}");
    assert_eq!(report.rows[0].gradient, GradientKind::Zero);
    let report = check().check(|x: Tensor<1, Int>| x.float(), Tensor::<1, Int>::ones([5], &Device::flex()));
    assert_eq!(report.failures, [Failure::Vacuous], "nothing to differentiate: {report}");
}

#[test]
fn too_many_kinks() {
    let report = check().check(|x: Tensor<1>| relu(x), Tensor::from_data([0.0, 0.0, 1.0], &Device::flex()));
    assert_eq!(report.failures, [Failure::Kinks { input: "input 0".into(), kinks: 2, compared: 3 }], "{report}");
    let few = check().max_kinks(0.7).check(|x: Tensor<1>| relu(x), Tensor::from_data([0.0, 0.0, 1.0], &Device::flex()));
    assert!(few.is_ok(), "{few}");
}

#[test]
fn a_random_forward_pass() {
    static CALLS: AtomicUsize = AtomicUsize::new(0);
    let wrong = |x: Tensor<1>| x * CALLS.fetch_add(1, Ordering::Relaxed) as f64;
    assert!(check().check(wrong, x([3], 0.1)).failures.contains(&Failure::NondeterministicForward));
}

#[test]
fn the_negative_control_fails() {
    let report = self_test(&Device::flex());
    assert!(!report.is_ok());
    assert!(report.clone().into_result().is_err());
    assert!(std::panic::catch_unwind(|| report.assert_ok()).is_err());
}

#[test]
fn a_tiny_gradient_of_the_wrong_sign() {
    // 1e-12 is judged like 1: relative to the gradient.
    let report = check().check(|x: Tensor<2>| value_of(x.clone().tanh() * 1e-12, -x.tanh() * 1e-12), x([3, 4], 0.1));
    assert_eq!(hints(&report), [&Hint::SignFlipped], "{report}");
}

#[test]
fn a_gradient_too_small_to_see() {
    let report = check().check(|x: Tensor<1>| x * 1e-14 + 1e6, x([5], 0.1));
    assert_eq!(report.failures, [Failure::Uncertain { input: "input 0".into() }], "{report}");
}

#[test]
fn one_kink_in_a_large_input_is_no_failure_and_hides_nothing() {
    let mut at = wave(&[5_000], 0.2);
    at.data[1234] = 0.0;
    let at = tensor::<1>(&at, DType::F32, &Device::flex());
    let report = check().check(|x: Tensor<1>| relu(x), at.clone());
    assert!(report.is_ok() && report.rows[0].kinks == 1, "{report}");
    let wrong = |x: Tensor<1>| {
        let edge = Array::from_fn(&[5_000], |index| f64::from(u8::from(index[0] == 4_321)));
        value_of(relu(x.clone()), relu(x.clone()) + x.clone() * tensor::<1>(&edge, x.dtype(), &x.device()))
    };
    let report = check().check(wrong, at);
    assert!(report.failures.iter().any(|f| matches!(f, Failure::Mismatch { index, .. } if index == &[4_321])), "{report}");
}

#[test]
fn a_large_input_of_nothing_but_kinks_is_told() {
    let report = check().check(|x: Tensor<1>| relu(x), Tensor::<1>::zeros([2_001], &Device::flex()));
    assert_eq!(report.rows[0].kinks, 2_001, "{report}");
    assert!(!report.is_ok(), "{report}");
}

#[test]
fn a_function_that_captures_f32_is_checked_in_f32_without_false_alarm() {
    for seed in 0..10 {
        let weights = x([6, 6], f64::from(seed));
        let report = check().check(|x: Tensor<2>| relu(x.matmul(weights.clone())), x([30, 6], 0.1 + f64::from(seed)));
        assert_eq!(report.dtype, DType::F32);
        assert!(report.notes[0].starts_with("the function does not run in f64, it panics"), "{report}");
        report.assert_ok();
        let wrong = check()
            .check(|x: Tensor<2>| value_of(x.clone().matmul(weights.clone()), -x.matmul(weights.clone())), x([3, 6], 0.1));
        assert_eq!(hints(&wrong), [&Hint::SignFlipped], "{wrong}");
    }
}

#[test]
fn a_dtype_that_does_not_run() {
    let f64_only = |x: Tensor<1>| {
        assert!(x.dtype() != DType::F16, "no f16 here");
        x.exp()
    };
    let report = check().precision([FloatDType::F16]).check(f64_only, x([3], 0.1));
    let reason = "the function panics: no f16 here".to_string();
    assert_eq!(report.failures, [Failure::NotRun { dtype: DType::F16, reason }], "{report}");
}

#[test]
fn outputs_that_are_nan_or_infinite() {
    let report = check().check(|x: Tensor<1>| x.log(), Tensor::from_data([1.0, -1.0], &Device::flex()));
    assert_eq!(report.failures, [Failure::NanForward], "{report}");
    let masked = |x: Tensor<1>| x.clone().exp().mask_fill(x.greater_elem(1.0), f64::NEG_INFINITY);
    let report = check().check(masked, Tensor::from_data([0.5, 2.0], &Device::flex()));
    assert!(report.is_ok() && report.notes.contains(&"1 infinite outputs are left out".to_string()), "{report}");
}

#[test]
fn another_output_when_gradients_are_recorded() {
    let report = check().check(|x: Tensor<1>| if x.is_require_grad() { x * 2 } else { x * 3 }, x([2], 0.1));
    assert!(report.failures.iter().any(|f| matches!(f, Failure::TrackedForward { at: 0, .. })), "{report}");
}

#[test]
fn inputs_and_outputs_of_every_form() {
    let index = Tensor::<1, Int>::from_data([2, 0], &Device::flex());
    let mask = Tensor::<2, Bool>::from_data([[true, false, true], [false, true, true]], &Device::flex());
    let f = |(x, y, index, mask): (Tensor<2>, Tensor<1>, Tensor<1, Int>, Tensor<2, Bool>)| {
        let rows = x.clone().select(1, index.clone()) * y.clone().unsqueeze();
        (rows, vec![x.clone().mask_fill(mask, 0.5), x.exp()], y.sin(), index)
    };
    let inputs = (x([2, 3], 0.1), x([2], 0.7), index, mask);
    let report = check().check(f, inputs);
    report.assert_ok();
    assert_eq!(report.rows.iter().map(|row| &row.name[..]).collect::<Vec<_>>(), ["input 0", "input 1"]);
}

#[derive(Module, Debug)]
struct Nested {
    inner: Vec<burn::nn::Linear>,
}

#[test]
fn a_fault_in_a_module_is_named_by_its_path() {
    let _turn = turn_to_draw();
    let linear = || burn::nn::LinearConfig::new(3, 3).init(&Device::flex());
    let module = Nested { inner: vec![linear(), linear()] };
    let batch = x([2, 3], 0.4);
    let right = |m: &Nested, x: Tensor<2>| m.inner[1].forward(m.inner[0].forward(x).tanh());
    check().check_module_with(&module, batch.clone(), right).assert_ok();

    let wrong = |m: &Nested, x: Tensor<2>| {
        value_of(right(m, x.clone()), right(m, x.clone()) + m.inner[1].weight.val().sum().unsqueeze())
    };
    let report = check().check_module_with(&module, batch.clone(), wrong);
    let named = |f: &Failure| matches!(f, Failure::Pattern { input, .. } if input == "inner.1.weight");
    assert!(report.failures.iter().any(named) && !report.to_string().contains("✗ inner.0"), "{report}");

    let device = Device::flex().autodiff();
    let linear = || burn::nn::LinearConfig::new(3, 3).init(&device);
    let half = Nested { inner: vec![linear().freeze(), linear()] };
    let report = check().check_module_with(&half, batch, right);
    report.assert_ok();
    assert_eq!(report.rows.len(), 3, "{report}");
    assert!(report.notes.contains(&"2 frozen parameters are not checked".to_string()), "{report}");
}

#[test]
fn the_message_says_what_where_and_how_far() {
    let report =
        check().check(|x: Tensor<2>| value_of(x.clone() * 3, x * -3), Tensor::from_data([[1.0, 2.0]], &Device::flex()));
    let text = report.to_string();
    for part in [
        "gradient check: FAILED (differences in F64)",
        "input 0            [1, 2]         2           0      0        0      2.0e0  present",
        "✗ input 0: 2 of 2 numbers disagree; the sign is flipped",
        "✗ input 0 [0, 1]: backward says ",
    ] {
        assert!(text.contains(part), "{part:?} is not in\n{text}");
    }
}
