//! The first verdict: is the backward pass the derivative of the forward pass?

use crate::{
    GradCheck,
    comparison::{Comparison, NAMED},
    failure::Failure,
    function::How,
    hint::hint,
    numbers::{OTHERS, cotangent, epsilon, largest, round_to},
    numeric::{Differences, Finding},
    report::{GradientKind, Report, Row},
    resolution::Examined,
    subject::{Gradient, Leaf},
};

impl GradCheck {
    /// The first verdict: is the backward pass the derivative of the forward pass?
    pub(crate) fn formula(&self, examined: Examined, leaves: &[Leaf], report: &mut Report) {
        let function = examined.function;
        let x: Vec<Vec<f64>> = leaves.iter().map(|leaf| round_to(function.dtype(), &leaf.values)).collect();
        let (outputs, _) = function.outputs(&x, How::Plain);
        if outputs.iter().any(|value| value.is_nan()) {
            report.failures.push(Failure::NanForward);
            return;
        }
        let infinite = outputs.iter().filter(|value| value.is_infinite()).count();
        if infinite > 0 {
            report.notes.push(format!("{infinite} infinite outputs are left out"));
        }
        self.forward_laws(function, &x, &outputs, report);
        let cotangent = cotangent(self.seed, function.dtype(), &outputs);
        let gradients = function.backward(&x, &cotangent, How::Plain);
        self.laws(function, &x, &cotangent, leaves, &gradients, report);
        let seen = self.leaves(examined, &x, (&outputs, &cotangent), leaves, &gradients, report);
        self.patterns(leaves, &gradients, &seen, report);
        let is_alive = |row: &Row| matches!(row.gradient, GradientKind::Present | GradientKind::Detached);
        if report.is_ok() && !report.rows.iter().any(is_alive) {
            report.failures.push(Failure::Vacuous);
        }
    }

    /// Compares the gradient of each leaf with differences; the findings of each leaf.
    fn leaves(
        &self,
        Examined { function, digits }: Examined,
        x: &[Vec<f64>],
        (here, cotangent): (&[f64], &[f64]),
        leaves: &[Leaf],
        gradients: &[Option<Gradient>],
        report: &mut Report,
    ) -> Vec<Vec<(usize, Finding)>> {
        let outputs = |x: &[Vec<f64>]| function.outputs(x, How::Plain).0;
        let rtol = self.rtol.unwrap_or(if epsilon(digits) < 1e-10 { 1e-6 } else { 1e-3 });
        let overall = gradients.iter().flatten().map(|gradient| largest(&gradient.values)).fold(0.0, f64::max);
        let steps: Vec<_> = x.iter().enumerate().map(|(which, x)| self.step.steps(which, x, digits)).collect();
        let mut seen = Vec::new();
        for (which, leaf) in leaves.iter().enumerate() {
            let gradient = gradients[which].as_ref();
            if gradient.is_some_and(|gradient| gradient.shape != leaf.shape) {
                seen.push(Vec::new()); // Reported by its laws; its numbers have no places to be compared at.
                continue;
            }
            let analytic = gradient.map_or_else(|| vec![0.0; leaf.values.len()], |gradient| gradient.values.clone());
            // Relative to the largest number of the gradient, so that a small gradient is judged like a large one.
            let size = largest(&analytic);
            let atol = self.atol.unwrap_or(0.1 * rtol * size);
            let negligible = rtol * size.max(OTHERS * overall);
            let outputs = &outputs;
            let differences = Differences { outputs, cotangent, x, here, steps: &steps, digits, rtol, atol, negligible };
            let arrived = gradient.is_some();
            let dtype = function.dtype();
            let comparison = Comparison { differences: &differences, dtype, which, leaf, analytic, arrived, overall };
            seen.push(self.beside_differences(&comparison, report));
        }
        seen
    }

    /// Compares one leaf's gradient with the differences, and adds its row, failures and notes.
    fn beside_differences(&self, leaf: &Comparison, report: &mut Report) -> Vec<(usize, Finding)> {
        let seen = leaf.look(self);
        let mut tally = leaf.tally(&seen);
        let count = leaf.analytic.len();
        let unknown = tally.doubts.iter().sum();
        let row = Row {
            name: leaf.leaf.name.clone(),
            shape: leaf.leaf.shape.clone(),
            elements: seen.findings.len(),
            directions: seen.directions,
            kinks: tally.kinks,
            unknown,
            worst: tally.worst,
            gradient: leaf.kind(&tally),
        };
        if row.gradient == GradientKind::Detached {
            tally.failures = vec![Failure::Detached { input: row.name.clone(), slope: tally.slope }];
        }
        let compared = if seen.directions > 0 { count } else { row.elements };
        if row.kinks as f64 > self.max_kinks * compared as f64 {
            tally.failures.push(Failure::Kinks { input: row.name.clone(), kinks: row.kinks, compared });
        }
        let is_zero = row.gradient == GradientKind::Zero;
        if seen.directions == 0 && !is_zero && unknown > 0 && unknown + row.kinks == row.elements {
            tally.failures.push(Failure::Uncertain { input: row.name.clone() });
        }
        report.notes.extend(leaf.notes(&row, &tally));
        report.failures.append(&mut tally.failures);
        report.rows.push(row);
        seen.findings
    }

    /// Says what the mismatches of each leaf have in common.
    fn patterns(&self, leaves: &[Leaf], gradients: &[Option<Gradient>], seen: &[Vec<(usize, Finding)>], report: &mut Report) {
        let numeric = |which: usize| -> Vec<Option<f64>> {
            let mut numbers = vec![None; leaves[which].values.len()];
            for (i, finding) in &seen[which] {
                if let Finding::Agrees(slope) | Finding::Disagrees(slope) = finding {
                    numbers[*i] = Some(slope.value);
                }
            }
            numbers
        };
        for (which, leaf) in leaves.iter().enumerate() {
            let Some(gradient) = gradients[which].as_ref().filter(|gradient| gradient.shape == leaf.shape) else { continue };
            let wrong: Vec<usize> =
                seen[which].iter().filter(|(_, finding)| matches!(finding, Finding::Disagrees(_))).map(|(i, _)| *i).collect();
            if wrong.is_empty() || wrong.iter().any(|&i| !gradient.values[i].is_finite()) {
                continue;
            }
            let here = numeric(which);
            let others = (0..leaves.len()).filter(|&other| other != which && leaves[other].shape == leaf.shape);
            let other = others.map(|other| (leaves[other].name.clone(), numeric(other)));
            let hint = hint(leaf, &gradient.values, &here, &wrong, other.collect());
            let bisected = leaf.values.len() > self.full_up_to;
            let compared = if bisected { leaf.values.len() } else { seen[which].len() };
            let at_least = bisected && wrong.len() >= NAMED;
            report.failures.push(Failure::Pattern {
                input: leaf.name.clone(),
                mismatches: wrong.len(),
                at_least,
                compared,
                hint,
            });
        }
        // The pattern first: it is what a reader wants.
        report.failures.sort_by_key(|failure| !matches!(failure, Failure::Pattern { .. }));
    }
}
