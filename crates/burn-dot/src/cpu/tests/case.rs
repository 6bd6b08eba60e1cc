//! A product of given sizes, and its gradients, against plain loops.

use alloc::vec::Vec;

use burn_core::backend::flex::FlexTensor;
use burn_core::tensor::{DType, TensorData, bf16, f16};

use super::{
    super::{Saved, Wanted, float_dot, float_dot_grads},
    assert_near, wave,
};
use crate::{
    axes::Axes,
    plan::{FloatOptions, Plan},
};

pub(super) fn tensor(x: &[f64], shape: &[usize], dtype: DType) -> FlexTensor {
    FlexTensor::from_data(TensorData::new(x.to_vec(), shape).convert_dtype(dtype))
}

/// A tensor of distinct elements of both signs.
pub(super) fn waves(shape: [usize; 3], phase: f64, dtype: DType) -> FlexTensor {
    tensor(&wave(shape.iter().product(), phase), &shape, dtype)
}

pub(super) fn elements(x: FlexTensor) -> Vec<f64> {
    x.into_data().iter().collect()
}

/// Both gradients.
pub(super) fn gradients(
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
