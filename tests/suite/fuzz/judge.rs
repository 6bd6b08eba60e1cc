//! What the layer gave against the oracle, by one rule: |given − exact| ≤ c·ε·Σ|terms| + one rounding to the dtype it is given in.

use burn::prelude::TensorData;
use burn::tensor::DType;

use super::{
    case::{Case, Holder, Numbers},
    play::Given,
};
use crate::{
    device::is_ieee,
    oracle::{self, Array, Product},
    run::{has_gpu_kernels, has_kernels, is_composed, product},
};

/// Who adds.
#[derive(Clone, Copy, PartialEq)]
enum Adds {
    /// Our kernels for CPUs.
    Kernels,
    /// Our kernels of rows for GPUs, in blocks of as many terms as there are blocks.
    Blocks,
    /// Burn's products and sums, of 8192 terms at most, one by one.
    Composition,
    /// Burn's autodiff, all terms one by one.
    Autodiff,
}

/// How exact a sum of so many terms must be, in ε of the dtype it is added in.
fn allowed_epsilons(terms: usize, adds: Adds) -> f64 {
    let one_by_one = 16.0 + 0.5 * terms as f64;
    match (terms, adds) {
        (0..=32, _) => 16.0,
        (_, Adds::Autodiff) => one_by_one,
        (_, Adds::Blocks) => 16.0 + 2.0 * (terms as f64).sqrt(),
        (_, Adds::Composition) => one_by_one.min(4112.0),
        (33..=512, Adds::Kernels) => 16.0,
        (_, Adds::Kernels) => 46.0, // `gemm/mod.rs`: 44.5, and a rounding
    }
}

/// What a number may be: the exact one, how far from it, and how large its terms are.
#[derive(Clone, Copy, Default)]
struct Bounds {
    exact: f64,
    error: f64,
    scale: f64,
}

/// The exact output of a case and its gradients with respect to the leaves, within bounds.
pub struct Exact {
    out: Vec<Bounds>,
    grads: [Vec<Bounds>; 2],
    /// Whether the outputs are cosines of finite numbers.
    cosines: bool,
}

impl Exact {
    pub fn of(case: &Case) -> Self {
        let (lhs, rhs) = (case.lhs.array(), case.rhs.array());
        let meaning = product(&case.config, lhs.shape.len(), rhs.shape.len());
        let answer = oracle::answer(&meaning, &lhs, &rhs, |_| case.cotangent.array());
        let in_kernels = has_kernels() && are_in_range(case, &answer.norms);
        let outputs = match () {
            () if in_kernels => Adds::Kernels,
            // Short plain rows may be composed.
            () if has_gpu_kernels() && case.config.normalize && are_rows(&meaning, [&lhs, &rhs]) => Adds::Blocks,
            () => Adds::Composition,
        };
        let gradients = if is_composed() { Adds::Autodiff } else { outputs };
        let precision = SumPrecision::of(case, least_divisor(case, in_kernels, &answer.norms));
        let contracted: usize = meaning.pairs.iter().map(|pair| lhs.shape[pair.0]).product();
        let out =
            precision.bounds(outputs, contracted, case.out_dtype(), [&answer.out, &answer.out_scale, &answer.out.map(|_| 0.0)]);

        // How many elements of the output each element of an input meets.
        let terms = |own: &Array| {
            let met = contracted * answer.out.data.len() / own.data.len().max(1);
            if case.config.normalize { met.max(contracted) } else { met }
        };
        let of_gradient = |own: &Array, sums: [&Array; 3]| precision.bounds(gradients, terms(own), case.dtype, sums);
        let grad_lhs = of_gradient(&lhs, [&answer.grad_lhs, &answer.grad_lhs_scale, &answer.lhs_reach]);
        let grad_rhs = of_gradient(&rhs, [&answer.grad_rhs, &answer.grad_rhs_scale, &answer.rhs_reach]);
        let of_leaf = |side: usize, x: &Numbers, bounds: &[Bounds]| match case.holders[side] {
            Holder::Test => bounds.to_vec(),
            Holder::Graph => in_memory(x, bounds, case.dtype),
        };
        let grads = if case.same {
            // Burn adds the two.
            let stored = Precision::of(case.dtype);
            let both = grad_lhs.iter().zip(&grad_rhs).map(|(l, r)| sum(*l, *r, stored)).collect::<Vec<_>>();
            [of_leaf(0, &case.lhs, &both), of_leaf(0, &case.lhs, &both)]
        } else {
            [of_leaf(0, &case.lhs, &grad_lhs), of_leaf(1, &case.rhs, &grad_rhs)]
        };
        let finite = |x: &Array| x.data.iter().all(|x| x.is_finite());
        Exact { out, grads, cosines: case.config.normalize && finite(&lhs) && finite(&rhs) }
    }

    /// What is wrong with what was given.
    pub fn judge(&self, case: &Case, given: &Given) -> Result<(), String> {
        compare(case, "out", &given.out, case.out_dtype(), &case.cotangent.shape, &self.out)?;
        if let Some(out) = given.out.iter::<f64>().find(|out| self.cosines && !(-1.0..=1.0).contains(out)) {
            return Err(format!("out: {out:e} is outside of [-1, 1]"));
        }
        for (side, (name, x)) in [("grad_lhs", &case.lhs), ("grad_rhs", &case.rhs)].into_iter().enumerate() {
            let holder = case.holders[if case.same { 0 } else { side }];
            let shape = if holder == Holder::Test { &x.shape } else { &x.view.memory };
            if let Some(given) = &given.grads[side] {
                compare(case, name, given, case.dtype, shape, &self.grads[side])?;
            }
        }
        Ok(())
    }
}

/// What is wrong with integers.
pub fn integers(case: &Case, given: &TensorData) -> Result<(), String> {
    let (lhs, rhs) = (case.lhs.array(), case.rhs.array());
    let exact = oracle::integers(&product(&case.config, lhs.shape.len(), rhs.shape.len()), &lhs, &rhs);
    if (given.dtype(), &given.shape()[..]) != (case.out_dtype(), &case.cotangent.shape[..]) {
        return Err(format!(
            "out: {:?} {:?}, not {:?} {:?}",
            given.dtype(),
            given.shape(),
            case.out_dtype(),
            case.cotangent.shape
        ));
    }
    let given: Vec<i64> = match case.out_dtype() {
        DType::U64 => given.iter::<u64>().map(|x| x as i64).collect(),
        _ => given.iter::<i64>().collect(),
    };
    for (i, (given, exact)) in given.into_iter().zip(exact).enumerate() {
        let exact = wrapped(case.out_dtype(), exact);
        if given != exact {
            return Err(format!("out: element {i} is {given}, not {exact}"));
        }
    }
    Ok(())
}

fn wrapped(dtype: DType, x: i64) -> i64 {
    match dtype {
        DType::I8 => i64::from(x as i8),
        DType::I16 => i64::from(x as i16),
        DType::I32 => i64::from(x as i32),
        DType::U8 => i64::from(x as u8),
        DType::U16 => i64::from(x as u16),
        DType::U32 => i64::from(x as u32),
        _ => x,
    }
}

/// The numbers of a dtype.
#[derive(Clone, Copy)]
struct Precision {
    epsilon: f64,
    max: f64,
    /// The smallest distance between two of them.
    least: f64,
}

impl Precision {
    fn of(dtype: DType) -> Self {
        let info = dtype.finfo().expect("a float");
        let least = if is_ieee() { info.min_positive * info.epsilon } else { info.min_positive };
        Precision { epsilon: info.epsilon, max: info.max, least }
    }

    fn rounding(&self, x: f64) -> f64 {
        0.5 * self.epsilon * x.abs() + self.least
    }
}

/// Whether an input has a single vector for each batch index.
fn are_rows(product: &Product, inputs: [&Array; 2]) -> bool {
    let vectors = |side: usize| -> usize {
        let paired = |axis: usize| product.pairs.iter().any(|pair| [pair.0, pair.1][side] == axis);
        let free = (product.batch_dims..inputs[side].shape.len()).filter(|&axis| !paired(axis));
        free.map(|axis| inputs[side].shape[axis]).product()
    };
    vectors(0) == 1 || vectors(1) == 1
}

/// Whether all kernels take vectors of these norms. Others, but for zeros, are left to the composition (README, Limits), or are judged as
/// if they were: rows of f32 have a wider range.
fn are_in_range(case: &Case, norms: &[f64]) -> bool {
    let range = if case.accumulator() == DType::F64 { 1e-60..=1e60 } else { 1e-9..=1e9 };
    // What has no square in f64 is taken for zeros.
    let is_zero = |norm: f64| norm * norm == 0.0;
    let is_in_range = |&norm: &f64| (is_zero(norm) || range.contains(&norm)) && range.contains(&norm.max(case.config.epsilon));
    norms.iter().all(is_in_range)
}

/// The least that products are divided by once they are multiplied, at most 1: what underflow took of them grows by as much, squared.
fn least_divisor(case: &Case, in_kernels: bool, norms: &[f64]) -> f64 {
    let least = match () {
        // The kernels take norms in their range only.
        () if in_kernels => 0.0,
        // Those for GPUs scale smaller vectors first.
        () if has_gpu_kernels() && case.accumulator() == DType::F64 => 2f64.powi(-200),
        () if has_gpu_kernels() => 2f64.powi(-20),
        // The composition divides before it multiplies.
        () => 1.0,
    };
    norms.iter().map(|norm| norm.max(case.config.epsilon)).fold(1.0, f64::min).max(least)
}

/// How exact the sums of a case must be.
struct SumPrecision {
    /// ε of the dtype they are added in.
    epsilon: f64,
    /// What of a gradient's reach may be lost to underflow.
    negligible: f64,
    /// What underflow may take of each term.
    lost: f64,
}

impl SumPrecision {
    fn of(case: &Case, least_divisor: f64) -> Self {
        let Precision { epsilon, least, .. } = Precision::of(case.accumulator());
        SumPrecision {
            epsilon,
            negligible: if case.config.normalize { epsilon * epsilon } else { 0.0 },
            lost: least / (least_divisor * least_divisor),
        }
    }

    /// Bounds of sums of so many terms, given in a dtype.
    fn bounds(&self, adds: Adds, terms: usize, dtype: DType, [exact, scale, reach]: [&Array; 3]) -> Vec<Bounds> {
        let (epsilons, stored) = (allowed_epsilons(terms, adds) * self.epsilon, Precision::of(dtype));
        let bound = |((&exact, &scale), &reach): ((&f64, &f64), &f64)| {
            let error = epsilons * scale + self.negligible * reach + terms as f64 * self.lost;
            Bounds { exact, error: error + stored.rounding(exact.abs() + error), scale }
        };
        exact.data.iter().zip(&scale.data).zip(&reach.data).map(bound).collect()
    }
}

/// A sum that Burn makes of gradients, in their dtype.
fn sum(a: Bounds, b: Bounds, stored: Precision) -> Bounds {
    let (exact, scale) = (a.exact + b.exact, a.scale + b.scale);
    let overflows = scale >= stored.max / 4.0;
    let error = if overflows { f64::INFINITY } else { a.error + b.error + 2.0 * stored.rounding(scale) };
    Bounds { exact, scale, error }
}

/// The gradient of what an input is a view of: zero where the view does not reach, a sum where it repeats.
fn in_memory(x: &Numbers, bounds: &[Bounds], dtype: DType) -> Vec<Bounds> {
    let (mut memory, stored) = (vec![Bounds::default(); x.memory.data.len()], Precision::of(dtype));
    for (place, bound) in x.view.places().into_iter().zip(bounds) {
        let there = &mut memory[place];
        *there = if x.view.repeats() { sum(*there, *bound, stored) } else { *bound };
    }
    memory
}

fn compare(
    case: &Case,
    name: &str,
    given: &TensorData,
    dtype: DType,
    shape: &[usize],
    bounds: &[Bounds],
) -> Result<(), String> {
    if (given.dtype(), &given.shape()[..]) != (dtype, shape) {
        return Err(format!("{name}: {:?} {:?}, not {dtype:?} {shape:?}", given.dtype(), given.shape()));
    }
    let (accumulator, stored) = (Precision::of(case.accumulator()), Precision::of(dtype));
    for (i, (given, bounds)) in given.iter::<f64>().zip(bounds).enumerate() {
        if !is_right(given, bounds, accumulator, stored) {
            let Bounds { exact, error, scale } = bounds;
            let off = (given - exact).abs();
            let epsilons = off / (accumulator.epsilon * scale);
            return Err(format!(
                "{name}: element {i} is {given:e}, not {exact:e}: off by {off:e}, allowed {error:e}, which is {epsilons:.1} ε of {scale:e}, the sum of absolute terms"
            ));
        }
    }
    Ok(())
}

fn is_right(given: f64, bounds: &Bounds, accumulator: Precision, stored: Precision) -> bool {
    let Bounds { exact, error, scale } = *bounds;
    if exact.is_nan() {
        return given.is_nan();
    }
    if exact.is_infinite() {
        return given == exact;
    }
    // A partial sum may overflow.
    if scale >= accumulator.max / 4.0 || error.is_infinite() || (given - exact).abs() <= error {
        return true;
    }
    // Rounds to infinity, or to the largest number.
    given.abs() >= stored.max && given.signum() * exact + error >= stored.max
}
