//! The second verdict: does a lower dtype give the same gradient, but for rounding?

use crate::{
    GradCheck,
    check::quietly,
    failure::Failure,
    function::{Evaluate, How},
    numbers::{OTHERS, cotangent, epsilon, index_of, largest, round_to, signed},
    report::{Precision, Report},
    subject::{Gradient, Leaf},
};
use burn_core::tensor::DType;

/// What the rounding of outputs explains, as a part of what that of gradients does: where a gradient is computed from an output, as
/// tanh's is, the output's rounding is in it.
const OUTPUTS: f64 = 0.25;

impl GradCheck {
    /// The second verdict: does a lower dtype give the same gradient, but for rounding?
    pub(crate) fn precise(&self, high: &dyn Evaluate, low: &dyn Evaluate, asked: bool, leaves: &[Leaf], report: &mut Report) {
        let dtype = low.dtype();
        let mut not_run = |reason: String| {
            if asked {
                report.failures.push(Failure::NotRun { dtype, reason });
            } else {
                report.notes.push(format!("{dtype:?} was not compared: {reason}"));
            }
        };
        if !self.device.supports_dtype(dtype) {
            return not_run(format!("{:?} does not have it", self.device));
        }
        let x: Vec<Vec<f64>> = leaves.iter().map(|leaf| round_to(dtype, &leaf.values)).collect();
        let (outputs, _) = high.outputs(&x, How::Plain);
        let cotangent = cotangent(self.seed, dtype, &outputs);
        let exact = high.backward(&x, &cotangent, false);
        let rounded = match quietly(|| low.backward(&x, &cotangent, false)) {
            Ok(rounded) => rounded,
            Err(panic) => return not_run(format!("the function panics: {panic}")),
        };
        let moved = self.conditioning(high, dtype, &x, &cotangent, &exact);
        let overall = exact.iter().flatten().map(|gradient| largest(&gradient.values)).fold(0.0, f64::max);
        let factor = self.precision_factor.unwrap_or(if dtype.size() < 4 { 4.0 } else { 64.0 });
        let weighted: Vec<f64> = outputs.iter().zip(&cotangent).map(|(output, v)| output * v).collect();
        let mut worst = 0.0f64;
        for (which, leaf) in leaves.iter().enumerate() {
            let (Some(exact), Some(rounded)) = (&exact[which], &rounded[which]) else { continue };
            if rounded.dtype != dtype {
                let input = leaf.name.clone();
                report.failures.push(Failure::DType { input, expected: dtype, found: rounded.dtype });
                continue;
            }
            if rounded.values.len() != exact.values.len() {
                continue; // A wrong shape is reported by the first verdict.
            }
            let per_input = match largest(&x[which]) {
                0.0 => 0.0,
                input => OUTPUTS * largest(&weighted) / input,
            };
            let scale = largest(&exact.values).max(OTHERS * overall) + per_input;
            let allowed = factor * epsilon(dtype) * scale + 4.0 * moved[which] + limits(dtype).0;
            worst = worst.max(furthest(dtype, leaf, exact, rounded, allowed, report));
        }
        report.precision.push(Precision { dtype, worst });
    }

    /// Conditioning: how far the exact gradient moves when each input moves by a unit in its last place.
    fn conditioning(
        &self,
        high: &dyn Evaluate,
        dtype: DType,
        x: &[Vec<f64>],
        cotangent: &[f64],
        exact: &[Option<Gradient>],
    ) -> Vec<f64> {
        let mut moved = vec![0.0f64; x.len()];
        for draw in 0..3 {
            let nudge = |(which, x): (usize, &Vec<f64>)| -> Vec<f64> {
                let signs = signed(self.seed.wrapping_add(1000 * (draw + 1) + which as u64), x.len());
                x.iter().zip(signs).map(|(x, sign)| x * (1.0 + epsilon(dtype) * sign)).collect()
            };
            let nudged: Vec<Vec<f64>> = x.iter().enumerate().map(nudge).collect();
            for (which, nudged) in high.backward(&nudged, cotangent, false).iter().enumerate() {
                if let (Some(a), Some(b)) = (&exact[which], nudged) {
                    let largest = a.values.iter().zip(&b.values).map(|(a, b)| (a - b).abs()).filter(|d| d.is_finite());
                    moved[which] = largest.fold(moved[which], f64::max);
                }
            }
        }
        moved
    }
}

/// How far the rounded gradient is off at most, as a part of what is allowed; a failure where that is more than all of it.
fn furthest(dtype: DType, leaf: &Leaf, exact: &Gradient, rounded: &Gradient, allowed: f64, report: &mut Report) -> f64 {
    let off = |i: usize| (exact.values[i] - rounded.values[i]).abs();
    // A number that the dtype does not hold is infinite in it, rightly.
    let held = |i: &usize| exact.values[*i].abs() <= limits(dtype).1;
    let wrong = (0..exact.values.len()).filter(held).filter(|&i| off(i) > allowed || off(i).is_nan());
    if let Some(i) = wrong.max_by(|&a, &b| off(a).total_cmp(&off(b))) {
        let (input, index) = (leaf.name.clone(), index_of(i, &leaf.shape));
        let (low, high) = (rounded.values[i], exact.values[i]);
        report.failures.push(if low.is_finite() {
            Failure::Precision { input, index, dtype, low, high, allowed }
        } else {
            Failure::NotFinite { input, index, dtype, analytic: low }
        });
    }
    (0..exact.values.len()).filter(held).map(|i| off(i) / allowed).fold(0.0, f64::max)
}

/// The smallest numbers of a dtype, below which nothing is compared, and the largest.
fn limits(dtype: DType) -> (f64, f64) {
    dtype.finfo().map_or((0.0, f64::INFINITY), |info| (info.min_positive, info.max))
}
