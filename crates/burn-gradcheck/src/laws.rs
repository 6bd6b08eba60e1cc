//! What holds for every backward pass, whatever its formula.

use crate::{
    GradCheck,
    failure::Failure,
    function::{Evaluate, How},
    numbers::{OTHERS, epsilon, first_difference, index_of, largest},
    report::Report,
    subject::{Gradient, Layout, Leaf},
};

impl GradCheck {
    /// What holds for every forward pass: it repeats, recording gradients changes nothing, and neither do strides.
    pub(crate) fn forward_laws(&self, function: &dyn Evaluate, x: &[Vec<f64>], outputs: &[f64], report: &mut Report) {
        let rounding = 1024.0 * epsilon(function.dtype()) * largest(outputs);
        for (how, tolerance) in [(How::Plain, 0.0), (How::Tracked, 0.0), (How::Laid(Layout::Permuted), rounding)] {
            let (again, _) = function.outputs(x, how);
            if let Some(at) = first_difference(outputs, &again, self.nondeterminism_tolerance + tolerance) {
                report.failures.push(match how {
                    How::Plain => Failure::NondeterministicForward,
                    How::Tracked => Failure::TrackedForward { at, plain: outputs[at], tracked: again[at] },
                    _ => Failure::StridedForward { at, contiguous: outputs[at], strided: again[at] },
                });
                return; // The first cause explains the others.
            }
        }
    }

    /// What holds for every backward pass, whatever its formula.
    pub(crate) fn laws(
        &self,
        function: &dyn Evaluate,
        x: &[Vec<f64>],
        cotangent: &[f64],
        leaves: &[Leaf],
        gradients: &[Option<Gradient>],
        report: &mut Report,
    ) {
        let scaled = |factor: f64| cotangent.iter().map(|v| factor * v).collect::<Vec<_>>();
        let again = function.backward(x, cotangent, How::Plain);
        let zero = function.backward(x, &scaled(0.0), How::Plain);
        let doubled = function.backward(x, &scaled(2.0), How::Plain);
        let strided = function.backward(x, cotangent, How::Laid(Layout::Permuted));
        let overall = gradients.iter().flatten().map(|gradient| largest(&gradient.values)).fold(0.0, f64::max);
        for (which, leaf) in leaves.iter().enumerate() {
            let Some(gradient) = &gradients[which] else { continue };
            let input = leaf.name.clone();
            if gradient.shape != leaf.shape {
                let (expected, found) = (leaf.shape.clone(), gradient.shape.clone());
                report.failures.push(Failure::Shape { input, expected, found });
                continue;
            }
            if gradient.dtype != function.dtype() {
                report.failures.push(Failure::DType {
                    input: input.clone(),
                    expected: function.dtype(),
                    found: gradient.dtype,
                });
            }
            let other = |other: &[Option<Gradient>]| match &other[which] {
                Some(other) => other.values.clone(),
                None => vec![0.0; gradient.values.len()],
            };
            let scale = largest(&gradient.values).max(OTHERS * overall);
            let index = |i: usize| index_of(i, &leaf.shape);
            let once = &gradient.values;

            let second = other(&again);
            if let Some(i) = first_difference(once, &second, self.nondeterminism_tolerance) {
                let (first, second) = (once[i], second[i]);
                report.failures.push(Failure::Nondeterministic { input: input.clone(), index: index(i), first, second });
                continue; // The laws below compare runs; they would only repeat it.
            }
            // A gradient that is NaN for every cotangent is reported where it is compared.
            let zero = other(&zero);
            if let Some(i) = (0..zero.len()).find(|&i| zero[i] != 0.0 && !once[i].is_nan()) {
                report.failures.push(Failure::ZeroCotangent { input: input.clone(), index: index(i), gradient: zero[i] });
            }
            let twice: Vec<f64> = once.iter().map(|g| 2.0 * g).collect();
            let doubled = other(&doubled);
            let rounding = 16.0 * epsilon(function.dtype()) * scale + self.nondeterminism_tolerance;
            if let Some(i) = first_difference(&twice, &doubled, rounding) {
                let (once, doubled) = (once[i], doubled[i]);
                report.failures.push(Failure::NotLinear { input: input.clone(), index: index(i), once, doubled });
            }
            let strided = other(&strided);
            let rounding = 1024.0 * epsilon(function.dtype()) * scale + self.nondeterminism_tolerance;
            if let Some(i) = first_difference(once, &strided, rounding) {
                let (contiguous, strided) = (once[i], strided[i]);
                report.failures.push(Failure::Layout { input, index: index(i), contiguous, strided });
            }
        }
    }
}
