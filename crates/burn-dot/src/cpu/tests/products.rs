//! Products and their gradients, from tensors to tensors.

use alloc::{vec, vec::Vec};

use burn_core::backend::flex::{FlexTensor, Layout};
use burn_core::tensor::{Bytes, DType, FloatDType, TensorData, bf16, f16};

use super::{
    super::{Saved, Wanted, float_dot, float_dot_grads, layout, runs::CHUNK},
    EXTENTS, assert_near, wave,
};
use crate::{
    error::Operand,
    plan::{Axes, FloatOptions, Plan, SavedBy},
};

fn tensor(x: &[f64], shape: &[usize], dtype: DType) -> FlexTensor {
    FlexTensor::from_data(TensorData::new(x.to_vec(), shape).convert_dtype(dtype))
}

/// A tensor of distinct elements of both signs.
fn waves(shape: [usize; 3], phase: f64, dtype: DType) -> FlexTensor {
    tensor(&wave(shape.iter().product(), phase), &shape, dtype)
}

fn elements(x: FlexTensor) -> Vec<f64> {
    x.into_data().iter().collect()
}

/// The product of two constant matrices of so many rows, columns and terms.
pub(super) fn constant_product([m, n, k]: [usize; 3], [x, y]: [f64; 2], dtype: DType) -> Vec<f64> {
    let (lhs, rhs) = (tensor(&vec![x; m * k], &[1, m, k], dtype), tensor(&vec![y; n * k], &[1, n, k], dtype));
    let plan = Plan::new(&Axes::Pair(2, 2), 1, false, &[1, m, k], &[1, n, k]).unwrap();
    elements(float_dot(&lhs, &rhs, &plan, FloatOptions { normalize: None, output: None }, false).expect("a kernel").out)
}

/// Both gradients.
fn gradients(
    [lhs, rhs]: [&FlexTensor; 2],
    grad: &FlexTensor,
    saved: Option<&Saved>,
    plan: &Plan,
    options: FloatOptions,
) -> Option<[FlexTensor; 2]> {
    let grads = float_dot_grads([lhs.clone(), rhs.clone()], grad, saved, plan, options, Wanted::BOTH).ok()?;
    Some([grads.lhs, grads.rhs].map(|grad| grad.expect("wanted")))
}

/// Sizes of a product, and how its inputs lie in memory.
#[derive(Clone, Copy, Debug)]
pub(super) struct Case {
    pub batch: usize,
    pub m: usize,
    pub n: usize,
    pub k: usize,
    /// Whether the contracted axis comes last, else before the free one.
    pub k_last: [bool; 2],
    pub dtype: DType,
    pub epsilon: Option<f64>,
}

impl Case {
    /// Compares the output and both gradients with plain loops in f64.
    pub fn check(self) {
        let Case { batch, m, n, k, k_last, dtype, epsilon } = self;
        let shape = |free: usize, last: bool| if last { [batch, free, k] } else { [batch, k, free] };
        let (lhs_shape, rhs_shape) = (shape(m, k_last[0]), shape(n, k_last[1]));
        let (lhs, rhs, grad) = (waves(lhs_shape, 0.1, dtype), waves(rhs_shape, 0.4, dtype), waves([batch, m, n], 0.7, dtype));
        let axis = |last: bool| if last { 2 } else { 1 };
        let plan = Plan::new(&Axes::Pair(axis(k_last[0]), axis(k_last[1])), 1, false, &lhs_shape, &rhs_shape).unwrap();
        let options = FloatOptions { normalize: epsilon, output: None };
        let given = float_dot(&lhs, &rhs, &plan, options, true);
        // Also held here: what is not shared is overwritten.
        let grads = |saved: Option<&Saved>| gradients([&lhs, &rhs], &grad, saved, &plan, options);
        if [batch, m, n, k].contains(&0) {
            assert!(given.is_none() && grads(None).is_none(), "{self:?}: nothing to multiply is for the composition");
            return;
        }
        let given = given.expect("a kernel");
        let (given, saved) = (given.out, given.saved);
        let grads = |saved| grads(saved).expect("a kernel").map(elements);
        let (out, [grad_lhs, grad_rhs]) = (elements(given), grads(None));
        if saved.is_some() {
            assert_eq!(grads(saved.as_ref()), [grad_lhs.clone(), grad_rhs.clone()], "{self:?}: with what was saved");
        }

        let (x, y, g) = (elements(lhs), elements(rhs), elements(grad));
        let place = |b: usize, free: usize, term: usize, count: usize, last: bool| {
            if last { (b * count + free) * k + term } else { (b * k + term) * count + free }
        };
        let vector = |x: &[f64], b: usize, i: usize, count: usize, last: bool| {
            let elements: Vec<f64> = (0..k).map(|term| x[place(b, i, term, count, last)]).collect();
            let norm = elements.iter().map(|x| x * x).sum::<f64>().sqrt();
            let divisor = epsilon.map_or(1.0, |epsilon| norm.max(epsilon));
            (
                elements.iter().map(|x| x / divisor).collect::<Vec<f64>>(),
                divisor,
                epsilon.is_some_and(|epsilon| norm >= epsilon),
            )
        };
        let epsilon = match dtype {
            DType::F64 => f64::EPSILON,
            DType::F32 => f32::EPSILON.into(),
            DType::F16 => f16::EPSILON.into(),
            _ => bf16::EPSILON.into(),
        };
        for b in 0..batch {
            let u: Vec<_> = (0..m).map(|i| vector(&x, b, i, m, k_last[0])).collect();
            let v: Vec<_> = (0..n).map(|j| vector(&y, b, j, n, k_last[1])).collect();
            for i in 0..m {
                for j in 0..n {
                    let terms = || u[i].0.iter().zip(&v[j].0).map(|(u, v)| u * v);
                    let scale = terms().map(f64::abs).sum();
                    assert_near(&alloc::format!("{self:?}: out"), out[(b * m + i) * n + j], terms().sum(), scale, epsilon);
                }
            }
            let check_grad = |name: &str,
                              given: &[f64],
                              own: &[(Vec<f64>, f64, bool)],
                              other: &[(Vec<f64>, f64, bool)],
                              last: bool,
                              weight: &dyn Fn(usize, usize) -> f64| {
                for (i, (unit, divisor, above)) in own.iter().enumerate() {
                    let h: Vec<f64> =
                        (0..k).map(|t| other.iter().enumerate().map(|(j, v)| weight(i, j) * v.0[t]).sum()).collect();
                    let size: Vec<f64> =
                        (0..k).map(|t| other.iter().enumerate().map(|(j, v)| (weight(i, j) * v.0[t]).abs()).sum()).collect();
                    let along = if *above { unit.iter().zip(&h).map(|(u, h)| u * h).sum() } else { 0.0 };
                    let along_size: f64 = if *above { unit.iter().zip(&size).map(|(u, h)| (u * h).abs()).sum() } else { 0.0 };
                    for t in 0..k {
                        let expected = (h[t] - unit[t] * along) / divisor;
                        let scale = (size[t] + unit[t].abs() * along_size) / divisor;
                        let at = place(b, i, t, own.len(), last);
                        assert_near(&alloc::format!("{self:?}: {name}"), given[at], expected, scale, epsilon);
                    }
                }
            };
            check_grad("grad_lhs", &grad_lhs, &u, &v, k_last[0], &|i, j| g[(b * m + i) * n + j]);
            check_grad("grad_rhs", &grad_rhs, &v, &u, k_last[1], &|j, i| g[(b * m + i) * n + j]);
        }
    }
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
/// place, or the only one that the instruction for bf16 cannot take.
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
        // More than one block of vectors, whose norms are made by several threads.
        for k_last in [[true, true], [false, false]] {
            Case { batch: 1, m: 600, n: 2, k: 96, k_last, dtype: DType::F32, epsilon }.check();
        }
    }
}

/// The instruction for bf16 takes subnormal numbers, and products as small, for zero.
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

/// More columns than a block holds, and more terms than are summed at once.
#[test]
fn large_bf16_matrices_agree_with_plain_loops() {
    for last in [true, false] {
        Case { batch: 1, m: 10, n: 300, k: 1030, k_last: [last; 2], dtype: DType::BF16, epsilon: None }.check();
    }
}

/// With whole registers and a rest: where a row is one with itself, and where it holds NaN.
#[test]
fn cosines_of_long_rows_stay_within_one_and_nan_reaches_its_row_only() {
    let options = FloatOptions { normalize: Some(1e-6), output: None };
    for (dtype, epsilon) in
        [(DType::F32, f64::from(f32::EPSILON)), (DType::F16, f64::from(f16::EPSILON)), (DType::BF16, f64::from(bf16::EPSILON))]
    {
        for (k, partners) in [(33, 1), (1027, 1), (33, 3), (1027, 3)] {
            let shape = |free: usize| [3, free, k];
            let plan = Plan::new(&Axes::Pair(2, 2), 1, false, &shape(1), &shape(partners)).unwrap();
            let tensor = |x: &[f64], free: usize| tensor(x, &shape(free), dtype);
            for (place, wrong) in
                [None, Some(0), Some(k - 1)].iter().flat_map(|p| [f64::NAN, f64::INFINITY].map(|wrong| (*p, wrong)))
            {
                let mut x = wave(3 * k, 0.3);
                let y: Vec<f64> = x.chunks(k).flat_map(|row| row.repeat(partners)).collect();
                if let Some(place) = place {
                    x[k + place] = wrong;
                }
                let out = float_dot(&tensor(&x, 1), &tensor(&y, partners), &plan, options, false).expect("a kernel").out;
                for (i, out) in out.into_data().iter::<f64>().enumerate() {
                    let name = alloc::format!("{dtype:?}, {k} terms, {wrong} at {place:?}: row {i}");
                    if place.is_some() && i / partners == 1 {
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

/// With rows that begin anywhere in a cache line and are longer than a buffer.
#[test]
fn gradients_written_past_the_caches_agree_with_plain_loops() {
    let case =
        |[batch, n, k]: [usize; 3], dtype, epsilon| Case { batch, m: 1, n, k, k_last: [true, true], dtype, epsilon }.check();
    case([130, 1, 1027], DType::F32, Some(1e-6));
    case([2, 65, 1027], DType::F64, None);
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

#[test]
fn numbers_whose_squares_f64_cannot_hold_are_for_the_composition() {
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

/// As rows and as matrices, over more terms than f32 adds at a time.
#[test]
fn cosines_of_halves_given_as_f32_are_as_exact_as_f32() {
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
fn norms_are_kept_where_they_are_little_beside_the_inputs() {
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
fn norms_kept_of_rows_are_left_alone_by_matrices_and_those_of_matrices_by_rows() {
    let plan = Plan::new(&Axes::Both(2), 1, false, &[3, 1, 64], &[3, 4, 64]).unwrap();
    let lhs = waves([3, 1, 64], 0.1, DType::F64);
    let along = waves([3, 4, 64], 0.4, DType::F64);
    let perpendicular = FlexTensor::from_data(along.transpose(1, 2).into_data()).transpose(1, 2);
    let grad = waves([3, 1, 4], 0.7, DType::F64);
    let options = FloatOptions { normalize: Some(1e-6), output: None };
    let saved = |rhs: &FlexTensor| float_dot(&lhs, rhs, &plan, options, true).unwrap().saved.expect("norms");
    assert_eq!([&along, &perpendicular].map(|rhs| saved(rhs).by), [SavedBy::Rows(Operand::Lhs), SavedBy::Matrices]);
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
        let of_rhs = Saved { by: SavedBy::Rows(Operand::Rhs), ..own.clone() };
        for wrong in [claims(other.norms), claims(short), claims(broadcast), claims(f32s), of_rhs] {
            assert_eq!(grads(Some(&wrong)), grads(None), "{:?}", wrong.by);
        }
    }
}

/// In whole registers: with a epsilon of 1e-6 the gradient of a vector of zeros is a million times its counterpart.
#[test]
fn gradients_that_a_half_cannot_hold_saturate() {
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

#[test]
#[should_panic(expected = "a tensor of 4 elements whose layout reaches from 0 to 999")]
fn a_layout_that_reaches_beyond_the_memory_is_refused() {
    let x = FlexTensor::new(Bytes::from_elems(vec![1f32; 4]), Layout::contiguous([1, 1000].into()), DType::F32);
    let plan = Plan::new(&Axes::Both(1), 1, false, &[1, 1000], &[1, 1000]).unwrap();
    float_dot(&x, &x, &plan, FloatOptions { normalize: None, output: None }, false);
}

/// On 32-bit targets, vectors of 2^16 elements, 2^16 of them, all the same one: in 2^32 elements a product of sizes that wraps sees none.
/// The same here, with 2^32 in place of 2^16.
#[test]
fn sizes_whose_product_wraps_are_not_taken_for_small_buffers() {
    let small = Plan::new(&Axes::Both(2), 1, false, &[1, 2, 4], &[1, 2, 4]).unwrap();
    let large = (usize::MAX >> (usize::BITS / 2)) + 1;
    assert_eq!(large.wrapping_mul(large), 0);
    let plan =
        Plan { m: large, k: large, lhs_shape: [1, large, large].into(), rhs_shape: [1, 2, large].into(), ..small.clone() };
    assert!(layout::is_countable(&small) && !layout::is_countable(&plan));
    let broadcast = |k| Plan { batch: large, batch_shape: [large].into(), k, ..small.clone() };
    assert!(layout::is_countable(&broadcast(large / 8)) && !layout::is_countable(&broadcast(large)));
    // Refused before anything is made or read.
    let x = waves([1, 2, 4], 0.1, DType::F32);
    let options = FloatOptions { normalize: Some(1e-6), output: None };
    assert!(float_dot(&x, &x, &plan, options, true).is_none());
    assert!(gradients([&x, &x], &x, None, &plan, options).is_none());
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
