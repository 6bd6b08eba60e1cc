//! The second verdict: does a lower dtype give the same gradient, but for rounding?

use crate::{
    GradCheck,
    check::quietly,
    numeric::{Evaluate, How, OTHERS, epsilon, index_of, largest, round_to, signed},
    report::{Failure, Precision, Report},
    subject::Leaf,
};
use burn_core::tensor::DType;

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
        let cotangent = round_to(dtype, &signed(self.seed, outputs.len()));
        let part = |(v, output): (f64, &f64)| if output.is_finite() { v } else { 0.0 };
        let cotangent: Vec<f64> = cotangent.into_iter().zip(&outputs).map(part).collect();
        let exact = high.backward(&x, &cotangent, false);
        let rounded = match quietly(|| low.backward(&x, &cotangent, false)) {
            Ok(rounded) => rounded,
            Err(panic) => return not_run(format!("the function panics: {panic}")),
        };
        let factor = self.precision_factor.unwrap_or(if dtype.size() < 4 { 4.0 } else { 64.0 });
        let mut worst_ratio = 0.0f64;
        // Conditioning: how far the exact gradient moves when each input moves by a unit in its last place.
        let mut moved = vec![0.0f64; leaves.len()];
        for draw in 0..3 {
            let nudge = |(which, x): (usize, &Vec<f64>)| -> Vec<f64> {
                let signs = signed(self.seed.wrapping_add(1000 * (draw + 1) + which as u64), x.len());
                x.iter().zip(signs).map(|(x, sign)| x * (1.0 + epsilon(dtype) * sign)).collect()
            };
            let nudged: Vec<Vec<f64>> = x.iter().enumerate().map(nudge).collect();
            for (which, nudged) in high.backward(&nudged, &cotangent, false).iter().enumerate() {
                if let (Some(a), Some(b)) = (&exact[which], nudged) {
                    let largest = a.values.iter().zip(&b.values).map(|(a, b)| (a - b).abs()).filter(|d| d.is_finite());
                    moved[which] = largest.fold(moved[which], f64::max);
                }
            }
        }
        let overall = exact.iter().flatten().map(|gradient| largest(&gradient.values)).fold(0.0, f64::max);
        for (which, leaf) in leaves.iter().enumerate() {
            let (Some(exact), Some(rounded)) = (&exact[which], &rounded[which]) else { continue };
            let input = leaf.name.clone();
            if rounded.dtype != dtype {
                report.failures.push(Failure::DType { input, expected: dtype, found: rounded.dtype });
                continue;
            }
            if rounded.values.len() != exact.values.len() {
                continue; // A wrong shape is reported by the first verdict.
            }
            let scale = largest(&exact.values).max(OTHERS * overall);
            let allowed = factor * epsilon(dtype) * scale + 4.0 * moved[which] + tiny(dtype);
            let ratio = |(a, b): (&f64, &f64)| (a - b).abs() / allowed;
            worst_ratio = exact.values.iter().zip(&rounded.values).map(ratio).fold(worst_ratio, f64::max);
            let off = |i: &usize| {
                let off = (exact.values[*i] - rounded.values[*i]).abs();
                exact.values[*i].is_finite() && (off > allowed || off.is_nan())
            };
            let worst = (0..exact.values.len()).filter(off).max_by(|&a, &b| {
                let off = |i: usize| (exact.values[i] - rounded.values[i]).abs();
                off(a).total_cmp(&off(b))
            });
            if let Some(i) = worst {
                let (index, low, high) = (index_of(i, &leaf.shape), rounded.values[i], exact.values[i]);
                report.failures.push(if low.is_finite() {
                    Failure::Precision { input, index, dtype, low, high, allowed }
                } else {
                    Failure::NotFinite { input, index, dtype, analytic: low }
                });
            }
        }
        report.precision.push(Precision { dtype, worst: worst_ratio });
    }
}

/// The smallest numbers of a dtype, below which nothing is compared.
fn tiny(dtype: DType) -> f64 {
    dtype.finfo().map_or(0.0, |info| info.min_positive)
}
