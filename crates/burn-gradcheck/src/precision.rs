//! The second verdict: does a lower dtype give the same gradient, but for rounding?

use burn_core::tensor::DType;

use crate::{
    GradCheck,
    answer::limits,
    check::quietly,
    failure::Failure,
    function::{Evaluate, How},
    numbers::{index_of, round_to},
    report::{Precision, Report},
    subject::{Gradient, Leaf},
};

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
        let x = leaves.iter().map(|leaf| round_to(dtype, &leaf.values)).collect();
        let exact = self.answer(high, dtype, x);
        let rounded = match quietly(|| low.backward(&exact.x, &exact.cotangent, How::Plain)) {
            Ok(rounded) => rounded,
            Err(panic) => return not_run(format!("the function panics: {panic}")),
        };
        let mut worst = 0.0f64;
        for (which, leaf) in leaves.iter().enumerate() {
            match exact.gradient(which, &rounded[which], format!("{} in {dtype:?}", leaf.name)) {
                None => (),
                // Of another shape in the higher dtype, too: the first verdict says so.
                Some(Err(Failure::Shape { expected, .. })) if expected != leaf.shape => (),
                Some(Err(failure)) => report.failures.push(failure),
                Some(Ok([right, rounded])) => {
                    worst = worst.max(furthest(dtype, leaf, right, rounded, exact.gradients_allowed[which].off, report));
                }
            }
        }
        report.precision.push(Precision { dtype, worst });
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
