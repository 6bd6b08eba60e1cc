//! Products and their gradients against plain loops, from tensors to tensors.

use alloc::{vec, vec::Vec};

use burn_core::backend::flex::FlexTensor;
use burn_core::tensor::{DType, FloatDType, bf16};

use super::case::*;
use super::{
    super::{float_dot, strided::CHUNK},
    EXTENTS, assert_near, wave,
};
use crate::{
    axes::Axes,
    plan::{FloatOptions, Plan},
};

/// The product of two constant matrices of so many rows, columns and terms.
pub(super) fn constant_product([m, n, k]: [usize; 3], [x, y]: [f64; 2], dtype: DType) -> Vec<f64> {
    let (lhs, rhs) = (tensor(&vec![x; m * k], &[1, m, k], dtype), tensor(&vec![y; n * k], &[1, n, k], dtype));
    let plan = Plan::new(&Axes::Pair(2, 2), 1, false, &[1, m, k], &[1, n, k]).unwrap();
    elements(float_dot(&lhs, &rhs, &plan, FloatOptions { normalize: None, output: None }, false).expect("a kernel").out)
}

fn every_case(sizes: impl Fn(usize) -> Vec<[usize; 4]>) {
    for extent in EXTENTS {
        for [batch, m, n, k] in sizes(extent) {
            for dtype in [DType::F64, DType::F32, DType::F16, DType::BF16] {
                for epsilon in [None, Some(1e-6), Some(3.0)] {
                    for k_last in [[true, true], [false, true], [true, false], [false, false]] {
                        Case { batch, m, n, k, k_last, dtype, epsilon }.check();
                    }
                }
            }
        }
    }
}

#[test]
fn rows_with_rows_agree_with_plain_loops() {
    every_case(|extent| vec![[3, 1, 1, extent], [extent, 1, 1, 5]]);
}

#[test]
fn vectors_with_matrices_agree_with_plain_loops() {
    every_case(|extent| vec![[2, 1, 3, extent], [1, extent, 1, 7]]);
}

#[test]
fn matrices_agree_with_plain_loops() {
    every_case(|extent| vec![[2, 3, 2, extent], [1, extent, 5, 2], [1, 2, extent, 3]]);
}

#[test]
fn long_rows_and_wide_blocks_agree_with_plain_loops() {
    for dtype in [DType::F64, DType::F32, DType::F16, DType::BF16] {
        for epsilon in [None, Some(1e-6)] {
            for [batch, m, n, k] in [
                [1, 1, 2, 2 * CHUNK + 3],
                [1, 2, 3, 2 * CHUNK + 3],
                [1, 300, 2, 3],
                [1, 2, 600, 2],
                [2, 140, 130, 9],
                [2, 35, 65, 68],
            ] {
                for k_last in [[true, true], [false, false], [true, false], [false, true]] {
                    Case { batch, m, n, k, k_last, dtype, epsilon }.check();
                }
            }
        }
    }
}

/// So many vectors that their gradients' projections are not taken from the cosines.
#[test]
fn projections_of_whole_rows_agree_with_plain_loops() {
    for dtype in [DType::F32, DType::F16] {
        for [batch, m, n, k] in [[1, 600, 40, 2], [1, 66, 64, CHUNK + 3]] {
            for k_last in [[true, true], [false, false]] {
                Case { batch, m, n, k, k_last, dtype, epsilon: Some(1e-6) }.check();
            }
        }
    }
}

/// Lanes that are packed once serve several blocks of broadcast vectors; the last block may be so short that lanes alone would be read in
/// place.
#[test]
fn packed_lanes_serve_every_block_of_broadcast_vectors() {
    let check = |m: usize, n: usize, dtype: DType, tiny: bool| {
        let k = 20;
        let wave = |count: usize, phase: f64| (0..count * k).map(|i| (1.7 * i as f64 + phase).sin()).collect::<Vec<_>>();
        let (mut x, y) = (wave(m, 0.1), wave(n, 0.5));
        if tiny {
            x[(m - 1) * k] = 1e-20;
        }
        let (lhs, rhs) = (tensor(&x, &[1, m, k], dtype), tensor(&y, &[1, n, k], dtype));
        for transposed in [false, true] {
            let (x, y) = (elements(lhs.clone()), elements(rhs.clone()));
            let at = |x: &FlexTensor| if transposed { x.permute(&[0, 2, 1]) } else { x.clone() };
            let contiguous = |x: FlexTensor| if transposed { x.to_contiguous() } else { x };
            let (lhs, rhs) = (contiguous(at(&lhs)), contiguous(at(&rhs)));
            let axis = if transposed { 1 } else { 2 };
            let shapes = [lhs.layout().shape().to_vec(), rhs.layout().shape().to_vec()];
            let plan = Plan::new(&Axes::Pair(axis, axis), 1, false, &shapes[0], &shapes[1]).unwrap();
            let options = FloatOptions { normalize: None, output: Some(FloatDType::F32).filter(|_| dtype != DType::F64) };
            let given = elements(float_dot(&lhs, &rhs, &plan, options, false).expect("a kernel").out);
            for (at, given) in given.into_iter().enumerate() {
                let terms = || x[at / n * k..][..k].iter().zip(&y[at % n * k..][..k]).map(|(x, y)| x * y);
                let place = alloc::format!("{dtype:?} {m}·{n}, transposed {transposed}: {at}");
                assert_near(&place, given, terms().sum(), terms().map(f64::abs).sum(), f32::EPSILON.into());
            }
        }
    };
    for more in [1, 4, 8, 9] {
        check(1024 + more, 42, DType::F32, false);
    }
    // Two panels, of 48 and of 32 lanes.
    check(1025, 80, DType::F32, false);
    for (m, n, dtype) in [(1027, 40, DType::F64), (1025, 40, DType::F16), (1025, 40, DType::BF16), (200, 256, DType::BF16)] {
        check(m, n, dtype, true);
    }
}

/// What threads do to many rows, to a vector that several tasks share, to matrices cut into blocks, and to long sums cut into parts.
#[cfg(feature = "rayon")]
#[test]
fn work_over_threads_agrees_with_plain_loops() {
    // Not the pool of the process, which has one thread on one core. The fuzz of the suite has pools of other sizes.
    rayon::ThreadPoolBuilder::new().num_threads(3).build().unwrap().install(work_over_threads);
}

#[cfg(feature = "rayon")]
fn work_over_threads() {
    for epsilon in [None, Some(1e-6)] {
        for [batch, m, n, k] in
            [[1100, 1, 1, 128], [1, 1, 1100, 128], [3, 700, 1, 65], [1, 70, 60, 40], [3, 50, 40, 30], [1, 2, 3, 16_500]]
        {
            Case { batch, m, n, k, k_last: [true, true], dtype: DType::F32, epsilon }.check();
        }
        // Streamed, by several tasks.
        Case { batch: 3, m: 20, n: 4672, k: 3, k_last: [true, true], dtype: DType::F32, epsilon }.check();
        // More than one block of vectors, whose norms are made by several threads.
        for k_last in [[true, true], [false, false]] {
            Case { batch: 1, m: 600, n: 2, k: 96, k_last, dtype: DType::F32, epsilon }.check();
        }
    }
}

/// The processor's instruction for bf16 would take subnormal numbers, and products as small, for zero.
#[test]
fn bf16_matrices_of_very_small_numbers_lose_nothing() {
    let (m, n, k) = (9, 33, 40);
    let (lhs_shape, rhs_shape) = ([1, m, k], [1, n, k]);
    let plan = Plan::new(&Axes::Pair(2, 2), 1, false, &lhs_shape, &rhs_shape).unwrap();
    let options = FloatOptions { normalize: None, output: None };
    // The last: products that are normal numbers, with a sum that is not.
    let (small, more) = (2f64.powi(-60), 1.0078125 * 2f64.powi(-60));
    for (x, y) in [([1e-39; 2], [1e38; 2]), ([1e-20; 2], [1e-20; 2]), ([-1e-39; 2], [2.0; 2]), ([more, small], [small, -small])]
    {
        let tensor = |x: [f64; 2], shape: [usize; 3]| {
            let elements = x.repeat(shape.iter().product::<usize>() / 2);
            tensor(&elements, &shape, DType::BF16)
        };
        let out = float_dot(&tensor(x, lhs_shape), &tensor(y, rhs_shape), &plan, options, false).expect("a kernel").out;
        let [x, y] = [x, y].map(|x| x.map(|x| bf16::from_f64(x).to_f64()));
        let expected = bf16::from_f64((k / 2) as f64 * (x[0] * y[0] + x[1] * y[1]));
        out.into_data().iter::<bf16>().for_each(|out| assert_eq!(out, expected, "{k} terms of {x:?} times {y:?}"));
    }
}

/// The last contracted axis is a slice, so that the strides of the others are those of no pairs.
#[test]
fn bf16_matrices_sliced_along_one_of_several_contracted_axes_agree_with_plain_loops() {
    let (m, n, [s, t]) = (16, 20, [4, 2]);
    let (lhs_shape, rhs_shape) = ([m, s, t], [n, s, t]);
    let plan = Plan::new(&Axes::Pairs(vec![(1, 1), (2, 2)]), 0, false, &lhs_shape, &rhs_shape).unwrap();
    let options = FloatOptions { normalize: None, output: Some(FloatDType::F32) };
    let rhs = waves(rhs_shape, 0.4, DType::BF16);
    for stored in 2..6 {
        for (shape, axes) in
            [([m, s, stored], [0, 1, 2]), ([s, m, stored], [1, 0, 2]), ([s, stored, m], [2, 0, 1]), ([stored, s, m], [2, 1, 0])]
        {
            let lhs = waves(shape, 0.1, DType::BF16).permute(&axes).narrow(2, stored - t, t);
            let (x, y) = (elements(lhs.to_contiguous()), elements(rhs.clone()));
            let given = elements(float_dot(&lhs, &rhs, &plan, options, false).expect("a kernel").out);
            for (at, given) in given.into_iter().enumerate() {
                let products = || x[at / n * s * t..][..s * t].iter().zip(&y[at % n * s * t..]).map(|(x, y)| x * y);
                let place = alloc::format!("{t} of {stored}, axes {axes:?}: {at}");
                assert_near(&place, given, products().sum(), products().map(f64::abs).sum(), f32::EPSILON.into());
            }
        }
    }
}

/// More columns than a block holds, and more terms than are summed at once.
#[test]
fn large_bf16_matrices_agree_with_plain_loops() {
    for last in [true, false] {
        Case { batch: 1, m: 10, n: 300, k: 1030, k_last: [last; 2], dtype: DType::BF16, epsilon: None }.check();
    }
}

/// With rows that begin anywhere in a cache line and are longer than a buffer.
#[test]
fn streamed_gradients_agree_with_plain_loops() {
    let case =
        |[batch, n, k]: [usize; 3], dtype, epsilon| Case { batch, m: 1, n, k, k_last: [true, true], dtype, epsilon }.check();
    case([130, 1, 1027], DType::F32, Some(1e-6));
    case([2, 65, 1027], DType::F64, None);
}

/// The output is streamed, in the last case the gradient of rhs; in columns of which each begins a cache line, and in others (2065, 130).
#[test]
fn streamed_matrices_agree_with_plain_loops() {
    for (m, n, k, dtype) in [
        (130, 2064, 5, DType::F32),
        (130, 2065, 5, DType::F32),
        (2064, 130, 5, DType::F32),
        (70, 2056, 3, DType::F64),
        (12, 4400, 64, DType::F32),
    ] {
        for epsilon in [None, Some(1e-6)] {
            Case { batch: 1, m, n, k, k_last: [true; 2], dtype, epsilon }.check();
        }
    }
}

/// Axes of the second matrix that are not contiguous are collapsed, perpendicular the edges of its blocks.
#[test]
fn collapsed_axes_agree_with_plain_loops() {
    let ([batch, m, k], [s, t]) = ([2, 130, 9], [9, 70]);
    let (lhs_shape, rhs_shape) = ([batch, m, k], [batch, s, k, t]);
    let plan = Plan::new(&Axes::Pair(2, 2), 1, false, &lhs_shape, &rhs_shape).unwrap();
    let options = FloatOptions { normalize: None, output: None };
    let (x, y, g) = (wave(batch * m * k, 0.1), wave(batch * s * k * t, 0.4), wave(batch * m * s * t, 0.7));
    let tensor = |x: &[f64], shape: &[usize]| tensor(x, shape, DType::F64);
    let (lhs, rhs, grad) = (tensor(&x, &lhs_shape), tensor(&y, &rhs_shape), tensor(&g, &[batch, m, s, t]));
    let (mut out, mut dx, mut dy) = (vec![0.0; g.len()], vec![0.0; x.len()], vec![0.0; y.len()]);
    for (b, i, s_at) in (0..batch).flat_map(|b| (0..m).flat_map(move |i| (0..s).map(move |s_at| (b, i, s_at)))) {
        for (term, t_at) in (0..k).flat_map(|term| (0..t).map(move |t_at| (term, t_at))) {
            let (x_at, y_at) = ((b * m + i) * k + term, ((b * s + s_at) * k + term) * t + t_at);
            let g_at = ((b * m + i) * s + s_at) * t + t_at;
            out[g_at] += x[x_at] * y[y_at];
            dx[x_at] += g[g_at] * y[y_at];
            dy[y_at] += g[g_at] * x[x_at];
        }
    }
    let given = float_dot(&lhs, &rhs, &plan, options, false).expect("a kernel").out;
    let [grad_lhs, grad_rhs] = gradients([&lhs, &rhs], &grad, None, &plan, options).expect("a kernel");
    for (name, given, expected) in [("out", given, out), ("grad_lhs", grad_lhs, dx), ("grad_rhs", grad_rhs, dy)] {
        let given: Vec<f64> = given.into_data().iter().collect();
        given.iter().zip(&expected).for_each(|(given, expected)| assert_near(name, *given, *expected, 630.0, f64::EPSILON));
    }
}

/// With free axes behind the contracted ones, which are no single axis either.
#[test]
fn cosines_along_several_axes_before_the_free_ones_agree_with_plain_loops() {
    let ([s, f, t, m], n) = ([3, 2, 4, 20], 5);
    let (lhs_shape, rhs_shape) = ([1, s, f, t, m], [1, s, t, n]);
    let plan = Plan::new(&Axes::Pairs(vec![(1, 1), (3, 2)]), 1, false, &lhs_shape, &rhs_shape).unwrap();
    for (dtype, epsilon) in [(DType::F64, f64::EPSILON), (DType::F32, f64::from(f32::EPSILON))] {
        let options = FloatOptions { normalize: Some(1e-6), output: None };
        let (x, y) = (wave(s * f * t * m, 0.1), wave(s * t * n, 0.4));
        let (lhs, rhs) = (tensor(&x, &lhs_shape, dtype), tensor(&y, &rhs_shape, dtype));
        let given = float_dot(&lhs, &rhs, &plan, options, false).expect("a kernel").out;
        for (at, given) in elements(given).into_iter().enumerate() {
            let (i, j) = (at / n, at % n);
            let (mut xx, mut xy, mut yy) = (0.0, 0.0, 0.0);
            for (s_at, t_at) in (0..s).flat_map(|s| (0..t).map(move |t| (s, t))) {
                let (x, y) = (x[((s_at * f + i / m) * t + t_at) * m + i % m], y[(s_at * t + t_at) * n + j]);
                (xx, xy, yy) = (xx + x * x, xy + x * y, yy + y * y);
            }
            assert_near(&alloc::format!("{dtype:?}: {i}, {j}"), given, xy / (xx * yy).sqrt(), 1.0, epsilon);
        }
    }
}
