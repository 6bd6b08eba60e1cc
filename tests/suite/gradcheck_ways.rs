//! `check_every_way`: faults of custom backward passes that show in one layout, with one gradient recorded, under checkpointing, or in one
//! dtype, each named. What shows in none of these is for `check`, in gradcheck_faults.rs.

use burn::backend::{Autodiff, Flex};
use burn::prelude::*;
use burn::tensor::DType;
use burn_gradcheck::{Failure, GradCheck, Report};

use crate::{
    gradcheck_custom::{Fault, custom},
    run::{tensor, wave},
};

fn x<const D: usize>(shape: [usize; D], phase: f64) -> Tensor<D> {
    tensor(&wave(&shape, phase), DType::F32, &Device::flex())
}

fn every_way(f: impl Fn((Tensor<2>, Tensor<2>)) -> Tensor<2>) -> Report {
    GradCheck::new(&Device::flex()).check_every_way(f, (x([3, 4], 0.1), x([3, 4], 0.7)))
}

fn plain(f: impl Fn((Tensor<2>, Tensor<2>)) -> Tensor<2>) -> Report {
    GradCheck::new(&Device::flex()).check(f, (x([3, 4], 0.1), x([3, 4], 0.7)))
}

/// x · y, with a gradient for x of the wrong sign where `is_wrong`.
fn product((x, y): (Tensor<2>, Tensor<2>), is_wrong: bool) -> Tensor<2> {
    let sign = if is_wrong { -1.0 } else { 1.0 };
    let of_y = x.clone().detach() * y.clone();
    let of_x = x.clone() * y.clone().detach() * sign;
    (x * y).detach() + (of_x.clone() - of_x.detach()) + (of_y.clone() - of_y.detach())
}

/// How many numbers lie in the memory of a tensor, of which it may be a view.
fn in_memory(x: &Tensor<2>) -> usize {
    let storage = x.clone().try_into_primitive::<Autodiff<Flex>>().map(|x| x.into_primitive());
    // Under checkpointing it is another type, of which nothing is asked here.
    let Ok(storage) = storage else { return x.dims().iter().product() };
    match x.dtype() {
        DType::F64 => storage.storage::<f64>().len(),
        DType::F32 => storage.storage::<f32>().len(),
        DType::F16 => storage.storage::<half::f16>().len(),
        _ => storage.storage::<half::bf16>().len(),
    }
}

/// The ways in which something is wrong, without the dtype.
fn ways(report: &Report) -> Vec<String> {
    let way = |failure: &Failure| match failure {
        Failure::Differs { at, .. } | Failure::NotFiniteThere { at, .. } | Failure::Panics { at, .. } => {
            at.rsplit_once(", in ").expect("a way and a dtype").0.to_string()
        }
        other => panic!("{other}"),
    };
    let mut ways: Vec<String> = report.failures.iter().map(way).collect();
    ways.dedup();
    ways.sort();
    ways.dedup();
    ways
}

#[test]
fn an_operation_that_is_right_is_right_in_every_way() {
    let report = every_way(|inputs| product(inputs, false));
    report.assert_ok();
    // Four dtypes; 2 · 3 layouts, 4 axes, each of two gradients alone in three functions, two of them with both.
    let note = format!(
        "run in {} ways: inputs permuted, sliced and expanded, gradients of each alone, with checkpointing",
        4 * (6 + 4 + 8)
    );
    assert!(report.notes.contains(&note), "{report}");
}

#[test]
fn a_backward_pass_that_does_not_know_expanded_inputs() {
    let wrong = |(x, y): (Tensor<2>, Tensor<2>)| {
        let is_expanded = in_memory(&y) < 12;
        product((x, y), is_expanded)
    };
    plain(wrong).assert_ok();
    assert_eq!(ways(&every_way(wrong)), ["input 1 expanded along axis 0", "input 1 expanded along axis 1"]);
}

#[test]
fn a_backward_pass_that_reads_a_window_from_the_start_of_its_memory() {
    let wrong = |(x, y): (Tensor<2>, Tensor<2>)| {
        let is_window = in_memory(&x) > 12;
        product((x, y), is_window)
    };
    plain(wrong).assert_ok();
    assert_eq!(ways(&every_way(wrong)), ["all inputs sliced", "input 0 sliced"]);
}

#[test]
fn a_backward_pass_that_needs_both_gradients_to_be_recorded() {
    let wrong = |(x, y): (Tensor<2>, Tensor<2>)| {
        let is_alone = x.is_tracked() && !y.is_tracked();
        product((x, y), is_alone)
    };
    plain(wrong).assert_ok();
    let expected = [
        "computed inputs, the gradient of input 0 alone",
        "inputs computed anew by gradient checkpointing, the gradient of input 0 alone",
        "the gradient of input 0 alone",
    ];
    assert_eq!(ways(&every_way(wrong)), expected);
}

#[test]
fn a_backward_pass_that_checkpointing_breaks() {
    let kept = Device::flex().autodiff().gradient_checkpointing_strategy();
    let wrong = move |(x, y): (Tensor<2>, Tensor<2>)| {
        let is_anew = x.device().gradient_checkpointing_strategy() != kept;
        product((x, y), is_anew)
    };
    plain(wrong).assert_ok();
    let expected = [
        "inputs computed anew by gradient checkpointing",
        "inputs computed anew by gradient checkpointing, the gradient of input 0 alone",
    ];
    assert_eq!(ways(&every_way(wrong)), expected);
}

#[test]
fn an_operation_for_one_checkpointing_strategy_only() {
    // Its types say `NoCheckpointing`, so a user who turns checkpointing on meets a panic.
    let one = |x: Tensor<1>| custom(x, Fault::None);
    let report = GradCheck::new(&Device::flex()).check_every_way(one, x([3], 0.3));
    assert_eq!(ways(&report), ["inputs computed anew by gradient checkpointing"]);
    assert!(report.failures.iter().all(|failure| matches!(failure, Failure::Panics { .. })), "{report}");
}

#[test]
fn a_fault_in_bf16_only_needs_no_list_of_dtypes() {
    let wrong = |(x, y): (Tensor<2>, Tensor<2>)| {
        let is_bf16 = x.dtype() == DType::BF16;
        product((x, y), is_bf16)
    };
    plain(wrong).assert_ok();
    let report = every_way(wrong);
    assert!(matches!(report.failures[..], [Failure::Precision { dtype: DType::BF16, .. }]), "{report}");
}

#[test]
fn what_is_wrong_already_is_not_repeated_in_every_way() {
    let report = every_way(|inputs| product(inputs, true));
    assert!(!report.is_ok() && report.notes.iter().any(|note| note.starts_with("no other way was run")), "{report}");
}
