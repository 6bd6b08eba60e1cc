//! What a product reads and writes: gradients in place, layouts and sizes that are refused.

use alloc::{vec, vec::Vec};

use burn_core::backend::flex::{FlexTensor, Layout};
use burn_core::tensor::{Bytes, DType};

use super::super::{Wanted, aligned::LINE, float_dot, float_dot_grads, in_huge_pages, strided::CHUNK};
use super::case::*;
use crate::{
    axes::Axes,
    error::Operand,
    plan::{FloatOptions, Plan},
};

#[test]
fn only_the_wanted_gradient_is_made() {
    let shape = [2, 3, 4];
    let x = waves(shape, 0.1, DType::F64);
    let plan = Plan::new(&Axes::Both(2), 1, false, &shape, &shape).unwrap();
    let grad = waves([2, 3, 3], 0.2, DType::F64);
    let options = FloatOptions { normalize: None, output: None };
    let made = |wanted| {
        let grads = float_dot_grads([x.clone(), x.clone()], &grad, None, &plan, options, wanted).ok().unwrap();
        Wanted { lhs: grads.lhs.is_some(), rhs: grads.rhs.is_some() }
    };
    for wanted in [Wanted::only(Operand::Lhs), Wanted::only(Operand::Rhs), Wanted::BOTH] {
        assert_eq!(made(wanted), wanted);
    }
}

#[test]
fn what_is_large_and_contiguous_is_copied_to_huge_pages_and_all_else_is_left() {
    let rows = (4 << 20) / (2 * 128);
    for dtype in [DType::F64, DType::F32, DType::F16, DType::BF16] {
        let large = waves([rows + 3, 1, 128], 0.3, dtype);
        let part = large.narrow(0, 3, rows);
        let small = waves([100, 1, 128], 0.3, dtype);
        for (x, moves) in [(large.clone(), true), (part, true), (large.transpose(0, 2), false), (small, false)] {
            let (at, data) = (x.bytes().as_ptr(), x.clone().into_data());
            let moved = in_huge_pages(x);
            assert_eq!(moved.bytes().as_ptr() != at, moves && cfg!(target_os = "linux"), "{dtype:?}, {:?}", moved.layout());
            assert_eq!(moved.into_data(), data);
        }
    }
}

/// Else nothing is streamed, and nothing else would tell.
#[test]
fn a_large_product_of_matrices_begins_a_cache_line() {
    let options = FloatOptions { normalize: None, output: None };
    let (lhs_shape, rhs_shape) = ([1, 130, 4], [1, 2064, 4]);
    let plan = Plan::new(&Axes::Both(2), 1, false, &lhs_shape, &rhs_shape).unwrap();
    for dtype in [DType::F32, DType::F64] {
        // Each at another place: by chance one in four begins a line.
        let products: Vec<_> = (0..8)
            .map(|_| {
                float_dot(&waves(lhs_shape, 0.1, dtype), &waves(rhs_shape, 0.2, dtype), &plan, options, false).unwrap().out
            })
            .collect();
        assert!(products.iter().all(|out| out.bytes().as_ptr().addr().is_multiple_of(LINE)), "{dtype:?}");
    }
}

#[test]
fn an_input_that_nobody_else_holds_gives_its_memory_to_its_gradient() {
    // The shapes, contracted along these axes; which inputs give theirs, plain and normalized.
    let long = 2 * CHUNK + 3;
    let cases = [
        ([3, 1, long], [3, 1, long], (2, 2), [true, true], [true, true]),
        ([3, long, 1], [3, 1, long], (1, 2), [true, true], [true, true]),
        ([3, 1, 8], [3, 1, 8], (2, 2), [true, true], [true, true]),
        ([3, 1, 37], [3, 4, 37], (2, 2), [true, true], [true, true]),
        ([3, 4, 37], [3, 37, 1], (2, 1), [true, true], [true, true]),
        ([1, 1, 37], [3, 1, 37], (2, 2), [true, true], [true, true]),
        ([1, 1, 128], [1, 1100, 128], (2, 2), [true, true], [true, true]),
        ([3, 1, 37], [3, 37, 4], (2, 1), [true, false], [false, false]),
        ([3, 5, 37], [3, 4, 37], (2, 2), [true, false], [false, false]),
        ([1, 5, 37], [3, 4, 37], (2, 2), [true, false], [false, false]),
    ];
    for (lhs_shape, rhs_shape, (lhs_axis, rhs_axis), plain, normalized) in cases {
        let plan = Plan::new(&Axes::Pair(lhs_axis, rhs_axis), 1, true, &lhs_shape, &rhs_shape).unwrap();
        for dtype in [DType::F64, DType::F32, DType::F16, DType::BF16] {
            for epsilon in [None, Some(1e-6)] {
                for unique in [[true, false], [false, true], [true, true]] {
                    let tensor = |shape: [usize; 3], phase: f64| waves(shape, phase, dtype);
                    let grad_shape = [lhs_shape[0].max(rhs_shape[0]), plan.m, plan.n];
                    let (lhs, rhs, grad) = (tensor(lhs_shape, 0.1), tensor(rhs_shape, 0.4), tensor(grad_shape, 0.7));
                    let options = FloatOptions { normalize: epsilon, output: None };
                    let grads = |inputs: [FlexTensor; 2]| {
                        let grads = float_dot_grads(inputs, &grad, None, &plan, options, Wanted::BOTH).ok().unwrap();
                        [grads.lhs, grads.rhs].map(Option::unwrap)
                    };
                    let expected = grads([lhs.clone(), rhs.clone()]);
                    let homes = [&lhs, &rhs].map(|x| x.bytes().as_ptr());
                    let others = [lhs.clone(), rhs.clone()].into_iter().zip(unique).filter(|(_, unique)| !unique);
                    let others: Vec<_> = others.collect();
                    let given = grads([lhs, rhs]);
                    drop(others);
                    // f64 has rows that only the composition can normalize, and it needs the inputs.
                    let gives = match epsilon {
                        None => plain,
                        Some(_) => normalized.map(|gives| gives && dtype != DType::F64),
                    };
                    for side in 0..2 {
                        let name =
                            alloc::format!("{lhs_shape:?}, {rhs_shape:?}, {dtype:?}, {epsilon:?}, {unique:?}, side {side}");
                        assert_eq!(given[side].bytes(), expected[side].bytes(), "{name}");
                        assert_eq!(given[side].bytes().as_ptr() == homes[side], gives[side] && unique[side], "{name}");
                    }
                }
            }
        }
    }
}

/// A part of a tensor's memory, held by nobody else: its gradient would begin in the wrong place.
#[test]
fn a_part_of_a_memory_is_not_overwritten() {
    let plan = Plan::new(&Axes::Both(2), 1, false, &[2, 1, 5], &[2, 1, 5]).unwrap();
    let options = FloatOptions { normalize: None, output: None };
    let part = |phase| waves([4, 1, 5], phase, DType::F32).narrow(0, 1, 2);
    let grad = waves([2, 1, 1], 0.7, DType::F32);
    let grads = |inputs: [FlexTensor; 2]| {
        let grads = float_dot_grads(inputs, &grad, None, &plan, options, Wanted::BOTH).ok().unwrap();
        [grads.lhs, grads.rhs].map(|grad| elements(grad.unwrap()))
    };
    let held = [part(0.1), part(0.4)];
    let expected = grads(held.clone());
    drop(held);
    assert_eq!(grads([part(0.1), part(0.4)]), expected);
}

#[test]
#[should_panic(expected = "a tensor of 4 elements whose layout reaches from 0 to 999")]
fn a_layout_that_reaches_beyond_the_memory_is_refused() {
    let x = FlexTensor::new(Bytes::from_elems(vec![1f32; 4]), Layout::contiguous([1, 1000].into()), DType::F32);
    let plan = Plan::new(&Axes::Both(1), 1, false, &[1, 1000], &[1, 1000]).unwrap();
    float_dot(&x, &x, &plan, FloatOptions { normalize: None, output: None }, false);
}
