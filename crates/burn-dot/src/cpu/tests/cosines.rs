//! Norms: their range, what is saved of them, and the gradients that come of them.

use alloc::{vec, vec::Vec};

use burn_core::backend::flex::{FlexTensor, Layout};
use burn_core::tensor::{DType, bf16, f16};

use super::case::*;
use super::{
    super::{Saved, Wanted, float_dot, float_dot_grads, layout, strided::CHUNK},
    assert_near, wave,
};
use crate::{
    axes::Axes,
    error::Operand,
    path::Path,
    plan::{FloatOptions, Plan},
};

/// With whole registers and a rest: where a row is one with itself, and where it holds NaN.
#[test]
fn cosines_of_long_rows_stay_within_one_and_nan_reaches_its_row_only() {
    let options = FloatOptions { normalize: Some(1e-6), output: None };
    for (dtype, epsilon) in
        [(DType::F32, f64::from(f32::EPSILON)), (DType::F16, f64::from(f16::EPSILON)), (DType::BF16, f64::from(bf16::EPSILON))]
    {
        for (k, columns) in [(33, 1), (1027, 1), (33, 3), (1027, 3)] {
            let shape = |free: usize| [3, free, k];
            let plan = Plan::new(&Axes::Pair(2, 2), 1, false, &shape(1), &shape(columns)).unwrap();
            let tensor = |x: &[f64], free: usize| tensor(x, &shape(free), dtype);
            for (place, wrong) in
                [None, Some(0), Some(k - 1)].iter().flat_map(|p| [f64::NAN, f64::INFINITY].map(|wrong| (*p, wrong)))
            {
                let mut x = wave(3 * k, 0.3);
                let y: Vec<f64> = x.chunks(k).flat_map(|row| row.repeat(columns)).collect();
                if let Some(place) = place {
                    x[k + place] = wrong;
                }
                let out = float_dot(&tensor(&x, 1), &tensor(&y, columns), &plan, options, false).expect("a kernel").out;
                for (i, out) in out.into_data().iter::<f64>().enumerate() {
                    let name = alloc::format!("{dtype:?}, {k} terms, {wrong} at {place:?}: row {i}");
                    if place.is_some() && i / columns == 1 {
                        assert!(out.is_nan(), "{name}: {out}");
                    } else {
                        assert!(out <= 1.0, "{name}: {out}");
                        assert_near(&name, out, 1.0, 1.0, epsilon / 16.0);
                    }
                }
            }
        }
    }
}

#[test]
fn elements_whose_squares_f64_cannot_hold_are_for_the_composition() {
    let options = FloatOptions { normalize: Some(1e-300), output: None };
    for (m, n) in [(1, 1), (1, 2), (2, 2)] {
        for size in [1e200, 1e-200] {
            let (lhs_shape, rhs_shape) = ([1, m, 2], [1, n, 2]);
            let tensor = |shape: [usize; 3]| tensor(&vec![size; shape.iter().product()], &shape, DType::F64);
            let (lhs, rhs) = (tensor(lhs_shape), tensor(rhs_shape));
            let plan = Plan::new(&Axes::Both(2), 1, false, &lhs_shape, &rhs_shape).unwrap();
            assert!(float_dot(&lhs, &rhs, &plan, options, true).is_none(), "{size:e}, {m}, {n}");
            let grad = waves([1, m, n], 0.7, DType::F64);
            let unique = [tensor(lhs_shape), tensor(rhs_shape)];
            let grads = float_dot_grads(unique, &grad, None, &plan, options, Wanted::BOTH);
            let [again_lhs, again_rhs] = grads.err().expect("no gradients");
            assert_eq!((again_lhs.bytes(), again_rhs.bytes()), (lhs.bytes(), rhs.bytes()), "the composition needs the inputs");
        }
    }
}

/// In the last of many vectors, along the terms and perpendicular to them. Its squares overflow in f32, or do not; its norm is just too small, or is not.
#[test]
fn vectors_whose_norms_a_matrix_product_does_not_bear_are_for_the_composition() {
    let (m, n, k) = (1100, 17, 96);
    let root = (k as f64).sqrt();
    for (dtype, k_last) in [DType::F32, DType::BF16].into_iter().flat_map(|dtype| [true, false].map(|last| (dtype, last))) {
        for (element, epsilon, for_the_kernel) in [
            (3e20, 1e-12, false),
            (1e15, 1e-12, false),
            (2e-9 / root, 1e-12, true),
            (5e-10 / root, 1e-12, false),
            (f64::NAN, 1e-6, true),
        ] {
            let name = alloc::format!("{dtype:?}, {element:e}, terms last: {k_last}");
            let options = FloatOptions { normalize: Some(epsilon), output: Some(DType::F32.into()) };
            let place =
                |vector: usize, term: usize, vectors: usize| if k_last { vector * k + term } else { term * vectors + vector };
            let mut x = wave(m * k, 0.1);
            (0..k).for_each(|term| x[place(m - 1, term, m)] = element);
            let shape = |vectors: usize| if k_last { [1, vectors, k] } else { [1, k, vectors] };
            // Half of the terms are zeros: a cosine of one would be one for a norm too small, too.
            let mut y = vec![0.0; n * k];
            (0..n * k / 2).for_each(|i| y[place(i % n, i / n, n)] = 1.0);
            let (lhs, rhs) = (tensor(&x, &shape(m), dtype), tensor(&y, &shape(n), dtype));
            let axis = if k_last { 2 } else { 1 };
            let plan = Plan::new(&Axes::Both(axis), 1, false, &shape(m), &shape(n)).unwrap();
            let given = float_dot(&lhs, &rhs, &plan, options, false);
            assert_eq!(given.is_some(), for_the_kernel, "{name}");
            let Some(given) = given else { continue };
            let given = elements(given.out);
            assert!(given[..(m - 1) * n].iter().all(|x| x.is_finite()), "{name}: the other rows");
            for &given in &given[(m - 1) * n..] {
                if element.is_nan() {
                    assert!(given.is_nan(), "{name}: {given}");
                } else {
                    assert_near(&name, given, core::f64::consts::FRAC_1_SQRT_2, 1.0, f32::EPSILON.into());
                }
            }
        }
    }
}

/// As rows and as matrices, over more terms than f32 adds at a time.
#[test]
fn cosines_of_16_bit_floats_given_as_f32_are_as_exact_as_f32() {
    let k = 2 * CHUNK + 3;
    for (dtype, [m, n]) in [DType::F16, DType::BF16].into_iter().flat_map(|dtype| [[1, 1], [1, 3], [3, 2]].map(|s| (dtype, s)))
    {
        let (lhs, rhs) = (waves([1, m, k], 0.1, dtype), waves([1, n, k], 0.4, dtype));
        let plan = Plan::new(&Axes::Both(2), 1, false, &[1, m, k], &[1, n, k]).unwrap();
        let options = FloatOptions { normalize: Some(1e-6), output: Some(DType::F32.into()) };
        let given = float_dot(&lhs, &rhs, &plan, options, false).expect("a kernel").out;
        let [x, y] = [lhs, rhs].map(elements);
        for (at, given) in elements(given).into_iter().enumerate() {
            let (x, y) = (&x[at / n * k..][..k], &y[at % n * k..][..k]);
            let sum = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
            let expected = sum(x, y) / (sum(x, x) * sum(y, y)).sqrt();
            assert_near(&alloc::format!("{dtype:?}, {m} × {n}: {at}"), given, expected, 1.0, f32::EPSILON.into());
        }
    }
}

/// Norms of the one form and of the other, saved by a product whose gradients may go another way.
#[test]
fn norms_are_saved_where_they_are_little_beside_the_inputs() {
    // The shapes; the shape of what is saved, if anything.
    let cases: [([usize; 3], [usize; 3], &[usize]); 10] = [
        ([3, 1, 64], [3, 1, 64], &[3, 3]),
        ([3, 1, 4], [3, 1, 4], &[]),
        ([3, 1, 64], [3, 20, 64], &[60, 3]),
        ([3, 5, 64], [3, 4, 64], &[27]),
        ([1, 5, 64], [3, 4, 64], &[17]),
        ([3, 5, 4], [3, 4, 4], &[]),
        ([3, 1, 64], [1, 1, 64], &[3, 3]),
        // The gradients of these are made as those of matrices.
        ([3, 1, 128], [1, 4, 128], &[]),
        // An eighth, and a little more.
        ([3, 1, 24], [3, 1, 24], &[3, 3]),
        ([3, 1, 23], [3, 1, 23], &[]),
    ];
    let options = FloatOptions { normalize: Some(1e-6), output: None };
    for (lhs_shape, rhs_shape, expected) in cases {
        let plan = Plan::new(&Axes::Both(2), 1, true, &lhs_shape, &rhs_shape).unwrap();
        let tensor = |shape: [usize; 3], phase: f64| waves(shape, phase, DType::F32);
        let (lhs, rhs, grad) = (tensor(lhs_shape, 0.1), tensor(rhs_shape, 0.4), tensor([3, plan.m, plan.n], 0.7));
        let saved = float_dot(&lhs, &rhs, &plan, options, true).unwrap().saved;
        let name = alloc::format!("{lhs_shape:?}, {rhs_shape:?}");
        assert_eq!(saved.as_ref().map_or(vec![], |saved| saved.norms.layout().shape().to_vec()), expected, "{name}");
        let grads = |saved: Option<&Saved>| {
            let grads = gradients([&lhs, &rhs], &grad, saved, &plan, options);
            grads.unwrap().map(FlexTensor::into_data)
        };
        assert_eq!(grads(saved.as_ref()), grads(None), "{name}");
        assert!(float_dot(&lhs, &rhs, &plan, options, false).unwrap().saved.is_none(), "{name}: nobody asked");
        let plain = FloatOptions { normalize: None, output: None };
        assert!(float_dot(&lhs, &rhs, &plan, plain, true).unwrap().saved.is_none(), "{name}: no norms");
    }
}

/// What one path saved, for the gradients of another: the same elements in memory, stored along the terms or perpendicular to them.
#[test]
fn norms_saved_of_rows_are_not_read_by_matrices_nor_those_of_matrices_by_rows() {
    let plan = Plan::new(&Axes::Both(2), 1, false, &[3, 1, 64], &[3, 4, 64]).unwrap();
    let lhs = waves([3, 1, 64], 0.1, DType::F64);
    let along = waves([3, 4, 64], 0.4, DType::F64);
    let perpendicular = FlexTensor::from_data(along.transpose(1, 2).into_data()).transpose(1, 2);
    let grad = waves([3, 1, 4], 0.7, DType::F64);
    let options = FloatOptions { normalize: Some(1e-6), output: None };
    let saved = |rhs: &FlexTensor| float_dot(&lhs, rhs, &plan, options, true).unwrap().saved.expect("norms");
    assert_eq!([&along, &perpendicular].map(|rhs| saved(rhs).by), [Path::Reduction { vector: Operand::Lhs }, Path::Gemm]);
    for (rhs, other) in [(&along, &perpendicular), (&perpendicular, &along)] {
        let grads = |saved: Option<&Saved>| {
            let grads = gradients([&lhs, rhs], &grad, saved, &plan, options);
            grads.unwrap().map(FlexTensor::into_data)
        };
        let (own, other) = (saved(rhs), saved(other));
        assert_eq!(grads(Some(&other)), grads(None));
        // What claims to be from this path, and is too short, or repeats, or of another dtype, or from the other operand.
        let claims = |norms: FlexTensor| Saved { norms, by: own.by };
        let short = own.norms.narrow(0, 0, 1);
        let broadcast = short.clone().with_layout(Layout::new(
            own.norms.layout().shape().clone(),
            vec![0; own.norms.layout().num_dims()],
            0,
        ));
        let f32s = waves([1, 1, own.norms.layout().num_elements()], 0.0, DType::F32);
        let of_rhs = Saved { by: Path::Reduction { vector: Operand::Rhs }, ..own.clone() };
        for wrong in [claims(other.norms), claims(short), claims(broadcast), claims(f32s), of_rhs] {
            assert_eq!(grads(Some(&wrong)), grads(None), "{:?}", wrong.by);
        }
    }
}

/// In whole registers: with a epsilon of 1e-6 the gradient of a vector of zeros is a million times its counterpart.
#[test]
fn gradients_that_f16_cannot_hold_saturate() {
    let (shape, options) = ([1, 1, 70], FloatOptions { normalize: Some(1e-6), output: None });
    let plan = Plan::new(&Axes::Both(2), 1, false, &shape, &shape).unwrap();
    let tensor = |x: f64, shape: [usize; 3]| tensor(&vec![x; shape.iter().product()], &shape, DType::F16);
    let root = 70f64.sqrt();
    for (g, expected) in [(0.5, 0.5e6 / root), (1.0, f64::from(f16::MAX)), (-8.0, f64::from(f16::MIN))] {
        let grad = tensor(g, [1, 1, 1]);
        let [grad_lhs, _] = gradients([&tensor(0.0, shape), &tensor(2.0, shape)], &grad, None, &plan, options).unwrap();
        for given in grad_lhs.into_data().iter::<f64>() {
            assert_near(&alloc::format!("{g}"), given, expected, expected.abs(), f16::EPSILON.into());
            assert!(given.is_finite(), "{g}");
        }
    }
}

/// One norm is written for each vector, however its batch is broadcast.
#[test]
fn there_is_a_place_for_the_norm_of_each_vector() {
    for (lhs, rhs, counts) in [([3, 2, 4], [3, 5, 4], [6, 15]), ([1, 2, 4], [3, 5, 4], [2, 15]), ([3, 2, 4], [1, 5, 4], [6, 5])]
    {
        let plan = Plan::new(&Axes::Both(2), 1, true, &lhs, &rhs).unwrap();
        let space = layout::Space::new(&plan, layout::Strides::default());
        assert_eq!([space.vectors(layout::X_INDEX), space.vectors(layout::Y_INDEX)], counts);
        let mut swapped = space.clone();
        swapped.swap();
        assert_eq!([swapped.vectors(layout::X_INDEX), swapped.vectors(layout::Y_INDEX)], [counts[1], counts[0]]);
    }
}
