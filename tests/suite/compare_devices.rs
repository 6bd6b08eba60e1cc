//! `GradCheck::compare`: agreement of devices, and faults planted on one of them, each named by device, dtype, place and distance.

use burn::module::{Module, Param};
use burn::nn::{DropoutConfig, Linear, LinearConfig};
use burn::prelude::*;
use burn::tensor::{DType, FloatDType, activation::hard_sigmoid};
use burn_gradcheck::{Agreement, Compare, DeviceReport, Failure, GradCheck};

use crate::{
    device::{device, is_cubecl, turn_to_draw},
    run::{tensor, value_of, wave},
};

/// The reference and another device: that of `BURN_DEVICE`, or flex once more, told apart by its checkpointing.
fn devices() -> [Device; 2] {
    let other = device();
    let other = if other == Device::flex() { other.autodiff().gradient_checkpointing() } else { other };
    [Device::flex(), other]
}

/// Whether a tensor lies on the second of them.
fn is_second<const D: usize>(x: &Tensor<D>) -> bool {
    let (here, [first, second]) = (x.device(), devices());
    if first == second {
        here.gradient_checkpointing_strategy() == second.gradient_checkpointing_strategy()
    } else {
        here == second
    }
}

fn compare() -> Compare {
    // Fusion on a GPU may order a sum otherwise from one run to the next.
    GradCheck::compare(&devices()).set(|check| check.nondeterminism_tolerance(if is_cubecl() { 1e-12 } else { 0.0 }))
}

fn x<const D: usize>(shape: [usize; D], phase: f64) -> Tensor<D> {
    tensor(&wave(&shape, phase), DType::F32, &Device::flex())
}

/// The agreement of the second device, by dtype.
fn second(report: &DeviceReport, dtype: DType) -> Agreement {
    report.rows.iter().find(|row| row.device == 1 && row.dtype == dtype).expect("a row of the second device").agreement
}

/// Only products and sums: every device has them in f64.
fn product((x, y): (Tensor<2>, Tensor<2>)) -> Tensor<2> {
    x.clone().matmul(y) * x.sum_dim(1)
}

fn inputs() -> (Tensor<2>, Tensor<2>) {
    (x([3, 4], 0.1), x([4, 2], 0.6))
}

#[test]
fn devices_that_agree_are_said_to_in_every_dtype_that_they_have() {
    let report = compare().check(product, inputs());
    report.assert_ok();
    let rows: Vec<_> = report.rows.iter().map(|row| (row.device, row.dtype)).collect();
    assert_eq!(rows, [(0, DType::F64), (0, DType::F32), (1, DType::F64), (1, DType::F32)], "{report}");
    assert_eq!(second(&report, DType::F32), Agreement::Ok, "{report}");
    assert!(report.rows[3].gradients < 64.0, "{report}");
}

#[test]
fn a_gradient_of_the_wrong_sign_on_one_device_is_named_with_its_input_and_distance() {
    let wrong = |(x, y): (Tensor<2>, Tensor<2>)| {
        let sign = if is_second(&y) { -1.0 } else { 1.0 };
        product((x, value_of(y.clone(), y * sign)))
    };
    let report = compare().check(wrong, inputs());
    assert!(report.reference.is_ok() && !report.is_ok(), "{report}");
    assert_eq!(second(&report, DType::F32), Agreement::Wrong, "{report}");
    assert!(report.rows.iter().all(|row| row.device == 1 || row.agreement == Agreement::Ok), "{report}");
    let name = &report.rows[3].name;
    for failure in &report.failures {
        let Failure::Differs { at, what, given, expected, epsilons, .. } = failure else { panic!("{report}") };
        assert!(at.starts_with(name.as_str()), "{at} is not {name}");
        assert_eq!(what, "the gradient of input 1");
        assert!((given + expected).abs() <= 1e-5 * expected.abs() && *epsilons > 1e6, "{failure}");
    }
    assert!(report.into_result().is_err());
}

#[test]
fn a_wrong_output_on_one_device_is_told_from_a_wrong_gradient() {
    let wrong = |(x, y): (Tensor<2>, Tensor<2>)| {
        let out = product((x, y.clone()));
        let off = if is_second(&y) { 0.25 } else { 0.0 };
        (out.clone().sum_dim(1), value_of(out.clone() + off, out))
    };
    let report = compare().check(wrong, inputs());
    let outputs = |failure: &Failure| matches!(failure, Failure::Differs { what, .. } if what == "output 1");
    assert!(!report.failures.is_empty() && report.failures.iter().all(outputs), "{report}");
}

#[test]
fn a_nan_on_one_device_is_told_from_a_wrong_number() {
    // WGSL promises no NaN, and the root's gradient at zero has none on llvmpipe.
    if is_cubecl() {
        return;
    }
    // √(d²) at d = 0: its value is zero, its gradient ∞ · 0.
    let nan = |x: Tensor<1>| {
        if is_second(&x) { x.clone() * x.clone() + (x.clone() - x.detach()).square().sqrt() } else { x.clone() * x }
    };
    let at = Tensor::<1>::from_data([0.5, 2.0, -1.5], &Device::flex());
    let report = compare().check(nan, at.clone());
    assert_eq!(second(&report, DType::F32), Agreement::NotFinite, "{report}");
    let named = |f: &Failure| matches!(f, Failure::NotFiniteThere { what, given, expected, .. } if what == "the gradient of input 0" && given.is_nan() && expected.is_finite());
    assert!(report.failures.iter().any(named), "{report}");
}

#[test]
fn digits_that_are_lost_on_one_device_are_told_from_wrong_numbers() {
    let wrong = |x: Tensor<1>| {
        let slope = if is_second(&x) { 1.0002 } else { 1.0 };
        value_of(x.clone(), x * slope)
    };
    let report = compare().check(wrong, x([5], 0.3));
    assert_eq!(second(&report, DType::F32), Agreement::Precision, "{report}");
}

#[test]
fn a_fault_in_one_dtype_is_named_with_the_dtype() {
    let wrong = |x: Tensor<1>| {
        let sign = if x.dtype() == DType::F32 { -1.0 } else { 1.0 };
        value_of(x.clone() * x.clone(), x.clone() * x * sign)
    };
    let report = GradCheck::compare(&[Device::flex()]).check(wrong, x([5], 0.3));
    let agreements: Vec<_> = report.rows.iter().map(|row| (row.dtype, row.agreement)).collect();
    // The reference is checked in f32 by itself, and says so as well.
    assert_eq!(agreements[1], (DType::F32, Agreement::Wrong), "{report}");
    assert!(matches!(&report.failures[..], [Failure::Differs { at, .. }] if at.ends_with("in F32")), "{report}");
}

#[derive(Module, Debug)]
struct Tower {
    layers: Vec<Linear>,
    scale: Param<Tensor<1>>,
}

#[test]
fn a_parameter_of_a_module_is_named_by_its_path() {
    let _turn = turn_to_draw();
    let device = Device::flex();
    let linear = || LinearConfig::new(3, 3).init(&device);
    let tower = Tower { layers: vec![linear(), linear()], scale: Param::from_data([0.7], &device) };
    let right = |m: &Tower, x: Tensor<2>| m.layers[1].forward(m.layers[0].forward(x)) * m.scale.val().unsqueeze();
    compare().check_module_with(&tower, x([2, 3], 0.4), right).assert_ok();
    let wrong = |m: &Tower, x: Tensor<2>| {
        let out = right(m, x);
        if is_second(&out) { value_of(out.clone(), out + m.layers[1].weight.val().sum().unsqueeze()) } else { out }
    };
    let report = compare().check_module_with(&tower, x([2, 3], 0.4), wrong);
    let named = |f: &Failure| matches!(f, Failure::Differs { what, .. } if what == "the gradient of layers.1.weight");
    assert!(!report.failures.is_empty() && report.failures.iter().all(named), "{report}");
}

#[test]
fn a_panic_on_one_device_is_a_failure_and_an_operation_that_it_lacks_is_said() {
    let on_the_second = |text: &'static str| {
        move |x: Tensor<1>| {
            assert!(!is_second(&x), "{text}");
            x.clone() * x
        }
    };
    let report = compare().check(on_the_second("index out of bounds"), x([3], 0.1));
    assert_eq!(second(&report, DType::F32), Agreement::Panic, "{report}");
    assert!(matches!(&report.failures[0], Failure::Panics { reason, .. } if reason == "index out of bounds"), "{report}");

    let report = compare().check(on_the_second("this is not implemented: fft"), x([3], 0.1));
    report.assert_ok();
    assert_eq!(second(&report, DType::F32), Agreement::NotCompared, "{report}");
    assert!(report.notes.iter().any(|note| note.ends_with("was not compared: this is not implemented: fft")), "{report}");
}

#[test]
fn a_dtype_that_a_device_lacks_is_said() {
    let dtypes = [FloatDType::F32, FloatDType::F16, FloatDType::BF16];
    let report = compare().set(|check| check.precision(dtypes)).check(product, inputs());
    for dtype in dtypes.map(DType::from) {
        let expected = if device().supports_dtype(dtype) { Agreement::Ok } else { Agreement::NotCompared };
        assert_eq!(second(&report, dtype), expected, "{report}");
    }
    report.assert_ok();
}

#[test]
fn random_numbers_of_two_devices_are_not_compared() {
    let dropout = DropoutConfig::new(0.4).init();
    let report = compare().check(|x: Tensor<2>| dropout.forward(x), x([4, 5], 0.2));
    report.assert_ok();
    assert_eq!(second(&report, DType::F32), Agreement::NotCompared, "{report}");
    assert!(report.notes.iter().any(|note| note.contains("draws random numbers")), "{report}");
}

#[test]
fn a_function_that_rounds_to_f32_inside_is_imprecise_on_each_device() {
    let at = x([3], 0.2).cast(DType::F64);
    let report = GradCheck::compare(&[Device::flex()]).check(|x: Tensor<1>| hard_sigmoid(x, 0.2, 0.5), at);
    assert_eq!(report.rows[0].agreement, Agreement::Precision, "{report}");
}

#[test]
fn a_reference_that_finite_differences_do_not_tell_about_is_not_taken_for_right() {
    // Too small a slope to be seen beside the output, and none at all.
    for slope in [1e-14, 0.0] {
        let report = GradCheck::compare(&[Device::flex()]).check(|x: Tensor<1>| x * slope + 1e6, x([5], 0.1));
        assert_eq!(report.rows[0].agreement, Agreement::Unknown, "{report}");
        assert!(!report.is_ok(), "{report}");
    }
}

#[test]
fn a_nan_of_the_reference_is_said_of_each_device_that_gives_it() {
    // WGSL promises no NaN, and the root's gradient at zero has none on llvmpipe.
    if is_cubecl() {
        return;
    }
    let zero = Tensor::<2>::zeros([1, 2], &Device::flex());
    let root = |x: Tensor<2>| x.clone().square().sum_dim(1).sqrt() * x;
    let report = compare().check(root, zero);
    assert_eq!(
        (report.rows[0].agreement, second(&report, DType::F32)),
        (Agreement::NotFinite, Agreement::NotFinite),
        "{report}"
    );
}

#[test]
fn the_report_says_device_dtype_place_and_distance() {
    let wrong = |x: Tensor<1>| if is_second(&x) { value_of(x.clone() * 3, x * -3) } else { x * 3 };
    let report = compare().check(wrong, Tensor::from_data([1.0, 2.0], &Device::flex()));
    let (name, text) = (&report.rows[3].name, report.to_string());
    for part in [
        "comparison of devices: FAILED (beside Flex".to_string(),
        format!("✗ {name} in F32: the gradient of input 0 [1] is "),
        "ε of the largest, ".to_string(),
    ] {
        assert!(text.contains(&part), "{part:?} is not in\n{text}");
    }
}

#[test]
#[should_panic(expected = "at least one device to compare")]
fn nothing_to_compare_is_refused() {
    let _ = GradCheck::compare(&[]);
}
