//! The kernels for GPUs: every reduction, on lengths and layouts that each of them finds hard.
//!
//! Elsewhere than on CubeCL's devices there is nothing to force, and these tests pass at once.

use std::sync::{Mutex, MutexGuard, PoisonError};

use burn::prelude::*;
use burn::tensor::DType;
use burn_dot::{DotConfig, Reduction, force_reduction};

use crate::{
    device::{device, float_dtypes},
    numerics::assert_long_rows,
    oracle::{self, Array},
    run::{
        LAYOUTS, Layout, array, assert_answer, assert_close, assert_exact, has_gpu_kernels, product, rounded, run, tensor,
        tolerance, wave,
    },
};

/// Lengths of rows: one element, less than a vector's, of a plane's and of a cube's, and what does not divide.
const LENGTHS: [usize; 6] = [1, 7, 64, 129, 512, 4096];

/// Makes the kernels reduce in one way, until it is dropped. Other tests meanwhile take that way, too.
struct Forced {
    _turn: MutexGuard<'static, ()>,
}

impl Forced {
    fn new(reduction: Reduction) -> Self {
        static TURN: Mutex<()> = Mutex::new(());
        let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        force_reduction(Some(reduction));
        Forced { _turn: turn }
    }
}

impl Drop for Forced {
    fn drop(&mut self) {
        force_reduction(None);
    }
}

/// Rows with rows, a vector with many, many with a vector, and a vector for all batches.
fn row_products(k: usize) -> [(&'static str, DotConfig, Vec<usize>, Vec<usize>); 4] {
    [
        ("rows", DotConfig::new(1), vec![5, k], vec![5, k]),
        ("one with many", DotConfig::new((1, 2)), vec![2, k], vec![2, 3, k]),
        ("many with one", DotConfig::new((1, 1)), vec![2, k, 3], vec![2, k]),
        ("one for all batches", DotConfig::new(1).with_broadcast_batch(true), vec![1, k], vec![4, k]),
    ]
}

fn every_length_and_layout(reduction: Reduction) {
    if !has_gpu_kernels() {
        return;
    }
    let _forced = Forced::new(reduction);
    for k in LENGTHS {
        for (name, config, lhs, rhs) in row_products(k) {
            for normalize in [false, true] {
                let config = config.clone().with_normalize(normalize);
                let name = format!("{reduction:?}, k = {k}, {name}, normalize {normalize}");
                let exact = |dtype, layout| assert_exact(&name, &config, dtype, layout, &wave(&lhs, 0.1), &wave(&rhs, 0.4));
                for layout in LAYOUTS {
                    exact(DType::F32, layout);
                }
                for dtype in float_dtypes().into_iter().filter(|&dtype| dtype != DType::F32) {
                    exact_but_for_subnormals(&name, &config, dtype, &wave(&lhs, 0.1), &wave(&rhs, 0.4));
                }
            }
        }
    }
}

/// As [`assert_exact`], where a gradient may be so small that the dtype has fewer digits for it.
fn exact_but_for_subnormals(name: &str, config: &DotConfig, dtype: DType, lhs: &Array, rhs: &Array) {
    let (lhs, rhs) = (rounded(lhs, dtype), rounded(rhs, dtype));
    let cotangent = |shape: &[usize]| rounded(&wave(shape, 0.7), dtype);
    let given = run(config, dtype, Layout::Contiguous, &lhs, &rhs, &cotangent);
    let mut expected = oracle::answer(&product(config, lhs.shape.len(), rhs.shape.len()), &lhs, &rhs, cotangent);
    let least = dtype.finfo().expect("a float").min_positive;
    for scale in [&mut expected.out_scale, &mut expected.grad_lhs_scale, &mut expected.grad_rhs_scale] {
        *scale = scale.map(|scale| scale.max(least));
    }
    assert_answer(&format!("{name}, {dtype:?}"), &given, &expected, tolerance(dtype), tolerance(dtype));
}

#[test]
fn rows_reduced_by_one_unit_are_exact() {
    every_length_and_layout(Reduction::Unit);
}

#[test]
fn rows_reduced_by_planes_are_exact() {
    every_length_and_layout(Reduction::Plane);
}

#[test]
fn rows_reduced_in_shared_memory_are_exact() {
    every_length_and_layout(Reduction::Shared);
}

/// llvmpipe leaves a kernel's loops after 65,535 steps: by one unit a row of 200,000 in f64 lost a third of its terms.
#[test]
fn long_rows_lose_no_digits_by_any_reduction() {
    if has_gpu_kernels() {
        for reduction in Reduction::ALL {
            let _forced = Forced::new(reduction);
            for k in [1 << 16, 1 << 17, 200_000] {
                assert_long_rows(k, 1e-3);
            }
        }
    }
}

#[test]
fn matrices_of_one_element_expanded_meet_wide_vectors() {
    let config = DotConfig::new((2, 2)).with_normalize(true);
    for dtype in float_dtypes() {
        let device = device().autodiff();
        let (small, wide) = (rounded(&wave(&[1, 1, 1], 0.3), dtype), rounded(&wave(&[2, 3, 8], 0.8), dtype));
        let expanded = Array::from_fn(&[2, 4, 8], |_| small.data[0]);
        for side in [0, 1] {
            let leaf = |at| tensor::<3>(if at == side { &small } else { &wide }, dtype, &device).require_grad();
            let view = |at: usize, leaf: &Tensor<3>| if at == side { leaf.clone().expand([2, 4, 8]) } else { leaf.clone() };
            let [lhs, rhs] = [0, 1].map(|at| if at == side { &expanded } else { &wide });
            let (x, y) = (leaf(0), leaf(1));
            let out: Tensor<3> = config.init().forward(view(0, &x), view(1, &y));
            let expected = oracle::answer(&product(&config, 3, 3), lhs, rhs, |shape| Array::from_fn(shape, |_| 1.0));
            let name = format!("{dtype:?}, expanded {side}");
            assert_close(&name, &array(&out), &expected.out, &expected.out_scale, tolerance(dtype));
            let grads = out.sum().backward();
            let [grad_x, grad_y] = [&x, &y].map(|leaf| array(&leaf.grad(&grads).expect("a gradient")));
            let (grad, expected, scale) = match side {
                0 => (grad_y, &expected.grad_rhs, &expected.grad_rhs_scale),
                _ => (grad_x, &expected.grad_lhs, &expected.grad_lhs_scale),
            };
            assert_close(&name, &grad, expected, scale, tolerance(dtype));
        }
    }
}

/// Rows of every magnitude with one another: zeros, rows whose squares underflow or overflow, rows with one such element.
fn extremes(k: usize, phase: f64, shift: usize) -> Array {
    let scales = [1.0, 0.0, 1e-24, 1e24, 1e-36, 3e37, 1e-9, 1e9];
    let x = wave(&[scales.len(), k], phase);
    let mut i = 0;
    Array::from_fn(&x.shape, |_| {
        i += 1;
        let (row, at) = ((i - 1) / k, (i - 1) % k);
        // The last two rows have one element of their scale.
        let scale = scales[(row + shift) % scales.len()];
        x.data[i - 1] * if row < scales.len() - 2 || at == k / 2 { scale } else { 1.0 }
    })
}

#[test]
fn rows_of_every_magnitude_have_exact_cosines_and_gradients() {
    if !has_gpu_kernels() {
        return;
    }
    for reduction in Reduction::ALL {
        let _forced = Forced::new(reduction);
        for k in LENGTHS {
            for shift in 0..8 {
                let layout = LAYOUTS[shift % LAYOUTS.len()];
                for epsilon in [1e-6, 1e-30, 30.0] {
                    let config = DotConfig::new(1).with_normalize(true).with_epsilon(epsilon);
                    let (lhs, rhs) = (rounded(&extremes(k, 0.1, 0), DType::F32), rounded(&extremes(k, 0.4, shift), DType::F32));
                    let name = format!("{reduction:?}, k = {k}, shift {shift}, {layout:?}, epsilon {epsilon:e}");
                    assert_in_range(&name, &config, layout, &lhs, &rhs);
                }
            }
        }
    }
}

/// As [`assert_exact`], where a gradient may be larger than f32 holds, or smaller than GPUs do.
fn assert_in_range(name: &str, config: &DotConfig, layout: Layout, lhs: &Array, rhs: &Array) {
    let cotangent = |shape: &[usize]| rounded(&wave(shape, 0.7), DType::F32);
    let given = run(config, DType::F32, layout, lhs, rhs, &cotangent);
    let expected = oracle::answer(&product(config, lhs.shape.len(), rhs.shape.len()), lhs, rhs, cotangent);
    let check = |what: &str, given: &Array, expected: &Array, scale: &Array, reach: Option<&Array>| {
        for (i, (&given, &exact)) in given.data.iter().zip(&expected.data).enumerate() {
            // What is below ε² of a gradient's reach may be lost to underflow.
            let lost = reach.map_or(0.0, |reach| reach.data[i] * f64::from(f32::EPSILON).powi(2));
            let allowed = tolerance(DType::F32) * scale.data[i].max(exact.abs()) + lost + 1e3 * f64::from(f32::MIN_POSITIVE);
            let is_huge = exact.abs() > 1e37 && (given.abs() > 1e37);
            assert!(
                (given - exact).abs() <= allowed || is_huge,
                "{name}: {what} {i} is {given:e}, not {exact:e}; allowed {allowed:e}"
            );
        }
    };
    check("out", &given.out, &expected.out, &expected.out_scale, None);
    check("grad_lhs", &given.grad_lhs, &expected.grad_lhs, &expected.grad_lhs_scale, Some(&expected.lhs_reach));
    check("grad_rhs", &given.grad_rhs, &expected.grad_rhs, &expected.grad_rhs_scale, Some(&expected.rhs_reach));
}

#[test]
fn nan_stays_in_its_row() {
    if !has_gpu_kernels() {
        return;
    }
    for reduction in Reduction::ALL {
        let _forced = Forced::new(reduction);
        for k in LENGTHS {
            for normalize in [false, true] {
                for planted in [f64::NAN, f64::INFINITY] {
                    let mut lhs = wave(&[4, k], 0.1);
                    lhs.data[2 * k + k / 2] = planted;
                    let config = DotConfig::new(1).with_normalize(normalize);
                    let ones = |shape: &[usize]| Array::from_fn(shape, |_| 1.0);
                    let given = run(&config, DType::F32, Layout::Contiguous, &lhs, &wave(&[4, k], 0.4), &ones);
                    let name = format!("{reduction:?}, k = {k}, normalize {normalize}, {planted}");
                    for (row, &out) in given.out.data.iter().enumerate() {
                        let expected = if row != 2 {
                            f64::is_finite
                        } else if normalize {
                            f64::is_nan
                        } else {
                            |x: f64| !x.is_finite()
                        };
                        assert!(expected(out), "{name}: row {row} is {out}");
                        let finite = given.grad_lhs.data[row * k..][..k].iter().all(|x| x.is_finite());
                        assert_eq!(finite, row != 2 || !normalize, "{name}: the gradient of row {row}");
                    }
                }
            }
        }
    }
}

/// The gradient of one vector that meets many is added in chunks, and those are added by a second launch.
#[test]
fn one_vector_that_meets_thousands_has_an_exact_gradient() {
    if !has_gpu_kernels() {
        return;
    }
    for normalize in [false, true] {
        for k in [3, 8] {
            let config = DotConfig::new((1, 2)).with_normalize(normalize);
            let (lhs, rhs) = (rounded(&wave(&[1, k], 0.1), DType::F32), rounded(&wave(&[1, 3000, k], 0.4), DType::F32));
            let cotangent = |shape: &[usize]| rounded(&wave(shape, 0.7), DType::F32);
            let _forced = Forced::new(Reduction::Unit);
            let given = run(&config, DType::F32, Layout::Contiguous, &lhs, &rhs, &cotangent);
            let expected = oracle::answer(&product(&config, 2, 3), &lhs, &rhs, cotangent);
            let tolerance = tolerance(DType::F32);
            assert_answer(&format!("k = {k}, normalize {normalize}"), &given, &expected, tolerance, tolerance);
        }
    }
}

/// Where there are many, a unit of the backward pass has several vectors of a row: of these, on a device without planes. Tests that force a
/// reduction have them of small rows, too.
#[test]
fn many_rows_have_exact_gradients() {
    let (rows, all) = (DotConfig::new(1).with_normalize(true), DotConfig::new((1, 2)).with_normalize(true));
    let cases: [(&DotConfig, &[usize], &[usize]); 4] = [
        (&rows, &[1024, 256], &[1024, 256]), // 64 vectors, 4 to a unit
        (&rows, &[512, 264], &[512, 264]),   // 66, 2 to a unit
        (&rows, &[1024, 260], &[1024, 260]), // 65, each a unit's own
        (&all, &[64, 128], &[64, 256, 128]), // 32, 2 to a unit, in chunks of 16 of the vectors that they meet
    ];
    if has_gpu_kernels() {
        for (config, lhs, rhs) in cases {
            for layout in [Layout::Contiguous, Layout::Transposed] {
                let name = format!("{lhs:?} · {rhs:?}");
                assert_exact(&name, config, DType::F32, layout, &wave(lhs, 0.1), &wave(rhs, 0.4));
            }
        }
    }
}

/// Its parts are beyond the range of f16, and their sum is not: only the sum may saturate.
#[test]
fn parts_of_a_gradient_that_cancel_do_not_saturate() {
    if !has_gpu_kernels() || !float_dtypes().contains(&DType::F16) {
        return;
    }
    let (first, all) = (16, 3000);
    let config = DotConfig::new((1, 2)).with_normalize(true);
    let (lhs, rhs) = (Array::from_fn(&[1, 8], |_| 0.0), Array::from_fn(&[1, all, 8], |_| 1.0));
    // A vector of zeros has a gradient a million times larger than what it meets.
    let cotangent = |shape: &[usize]| {
        let mut j = 0;
        Array::from_fn(shape, |_| {
            j += 1;
            if j <= first { 0.5 * (all - first) as f64 / first as f64 } else { -0.5 }
        })
    };
    let grad = run(&config, DType::F16, Layout::Contiguous, &lhs, &rhs, &cotangent).grad_lhs;
    assert!(grad.data.iter().all(|x| x.abs() < 1000.0), "zero but for rounding, not {:?}", grad.data);
}

/// The gradient of one input, where the other is not tracked.
fn only<const L: usize, const R: usize, const O: usize>(config: &DotConfig, lhs: &Array, rhs: &Array) -> [Array; 2] {
    let device = device().autodiff();
    let leaves = || (tensor::<L>(lhs, DType::F32, &device), tensor::<R>(rhs, DType::F32, &device));
    let cotangent = |out: &Tensor<O>| tensor::<O>(&wave(&out.dims(), 0.7), DType::F32, &device);
    let (x, y) = leaves();
    let x = x.require_grad();
    let out: Tensor<O> = config.init().forward(x.clone(), y);
    let cot = cotangent(&out);
    let grad_lhs = array(&x.grad(&(out * cot).sum().backward()).expect("lhs has a gradient"));
    let (x, y) = leaves();
    let y = y.require_grad();
    let out: Tensor<O> = config.init().forward(x, y.clone());
    let cot = cotangent(&out);
    [grad_lhs, array(&y.grad(&(out * cot).sum().backward()).expect("rhs has a gradient"))]
}

#[test]
fn one_input_alone_has_the_gradient_that_it_has_with_the_other() {
    if !has_gpu_kernels() {
        return;
    }
    let _forced = Forced::new(Reduction::Unit);
    let cotangent = |shape: &[usize]| wave(shape, 0.7);
    for normalize in [false, true] {
        let check = |name: &str, config: &DotConfig, lhs: &Array, rhs: &Array, only: [Array; 2]| {
            let both = run(config, DType::F32, Layout::Contiguous, lhs, rhs, &cotangent);
            assert_eq!(only, [both.grad_lhs, both.grad_rhs], "{name}, normalize {normalize}");
        };
        let rows = DotConfig::new(1).with_normalize(normalize);
        let (x, y) = (wave(&[5, 12], 0.1), wave(&[5, 12], 0.4));
        check("rows", &rows, &x, &y, only::<2, 2, 2>(&rows, &x, &y));
        let (x, y) = (wave(&[5, 3, 12], 0.1), wave(&[5, 12], 0.4));
        let many = DotConfig::new((2, 1)).with_normalize(normalize);
        check("many with one", &many, &x, &y, only::<3, 2, 2>(&many, &x, &y));
        let (x, y) = (wave(&[2, 3, 12], 0.1), wave(&[2, 4, 12], 0.4));
        let matrices = DotConfig::new(2).with_normalize(normalize);
        check("matrices", &matrices, &x, &y, only::<3, 3, 3>(&matrices, &x, &y));
    }
}
