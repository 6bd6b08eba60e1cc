//! The first verdict: is the backward pass the derivative of the forward pass?

use crate::{
    GradCheck,
    hint::hint,
    numeric::{Differences, Evaluate, Finding, How, Move, epsilon, first_difference, index_of, largest, round_to, signed},
    report::{Failure, GradientKind, Report, Row},
    subject::{Gradient, Leaf},
};

/// A gradient of so many ε of the largest of all is the rounding noise of zero.
const NOISE: f64 = 16.0;

/// How many wrong numbers of a large input are named: enough to see a pattern.
const NAMED: usize = 64;

impl GradCheck {
    /// The first verdict: is the backward pass the derivative of the forward pass?
    pub(crate) fn formula(&self, function: &dyn Evaluate, leaves: &[Leaf], report: &mut Report) {
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
        let largest_output = largest(&outputs);
        for (how, tolerance) in [
            (How::Plain, self.nondeterminism_tolerance),
            (How::Tracked, self.nondeterminism_tolerance),
            (How::Strided, self.nondeterminism_tolerance + 1024.0 * epsilon(function.dtype()) * largest_output),
        ] {
            let (again, _) = function.outputs(&x, how);
            if let Some(at) = first_difference(&outputs, &again, tolerance) {
                report.failures.push(match how {
                    How::Plain => Failure::NondeterministicForward,
                    How::Tracked => Failure::TrackedForward { at, plain: outputs[at], tracked: again[at] },
                    How::Strided => Failure::StridedForward { at, contiguous: outputs[at], strided: again[at] },
                });
                break; // The first cause explains the others.
            }
        }
        let cotangent = round_to(function.dtype(), &signed(self.seed, outputs.len()));
        let part = |(v, output): (f64, &f64)| if output.is_finite() { v } else { 0.0 };
        let cotangent: Vec<f64> = cotangent.into_iter().zip(&outputs).map(part).collect();
        let gradients = function.backward(&x, &cotangent, false);
        self.laws(function, &x, &cotangent, leaves, &gradients, report);

        let phi = |x: &[Vec<f64>]| function.phi(x, &cotangent);
        let strict = epsilon(function.dtype()) < 1e-10;
        let rtol = self.rtol.unwrap_or(if strict { 1e-6 } else { 1e-3 });
        let overall = gradients.iter().flatten().map(|gradient| largest(&gradient.values)).fold(0.0, f64::max);
        let mut seen = Vec::new();
        for (which, leaf) in leaves.iter().enumerate() {
            let gradient = gradients[which].as_ref();
            if gradient.is_some_and(|gradient| gradient.shape != leaf.shape) {
                seen.push(Vec::new()); // Reported by its laws; its numbers have no places to be compared at.
                continue;
            }
            // Relative to the largest number of the gradient, so that a small gradient is judged like a large one.
            let atol = self.atol.unwrap_or(0.1 * rtol * gradient.map_or(0.0, |gradient| largest(&gradient.values)));
            let differences = Differences { phi: &phi, x: &x, dtype: function.dtype(), rtol, atol };
            seen.push(self.compare(&differences, which, leaf, gradient, overall, report));
        }
        self.patterns(leaves, &gradients, &seen, report);

        let is_alive = |row: &Row| matches!(row.gradient, GradientKind::Present | GradientKind::Detached);
        if report.is_ok() && !report.rows.iter().any(is_alive) {
            report.failures.push(Failure::Vacuous);
        }
        for row in &report.rows {
            match row.gradient {
                GradientKind::Unused => report.notes.push(format!("{}: the function does not change with it", row.name)),
                GradientKind::Zero => report.notes.push(format!("{}: its gradient is zero, truly", row.name)),
                _ => {}
            }
        }
    }

    /// Compares one leaf's gradient with the differences: number by number, or along directions when there are many.
    fn compare(
        &self,
        differences: &Differences,
        which: usize,
        leaf: &Leaf,
        gradient: Option<&Gradient>,
        overall: f64,
        report: &mut Report,
    ) -> Vec<(usize, Finding)> {
        let count = leaf.values.len();
        let analytic = gradient.map_or_else(|| vec![0.0; count], |gradient| gradient.values.clone());
        let mut findings = Vec::new();
        let mut directions = 0;
        if count <= self.full_up_to {
            findings.extend((0..count).map(|i| (i, self.one(differences, which, i, &analytic))));
        } else {
            let mut rest: Vec<usize> = (0..count).collect();
            for direction in 0..self.directions {
                directions += 1;
                let seed = self.seed.wrapping_add(1 + direction as u64);
                let before = findings.len();
                self.bisect(differences, which, &rest, &analytic, seed, &mut findings);
                if findings[before..].iter().any(|(_, finding)| matches!(finding, Finding::Disagrees(_))) {
                    break; // Named already; further directions would name them again.
                }
                // What lies on kinks is known; the other directions are for the rest.
                rest.retain(|i| findings.iter().all(|(known, _)| known != i));
            }
        }

        let input = leaf.name.clone();
        let mut row = Row {
            name: input.clone(),
            shape: leaf.shape.clone(),
            elements: findings.len(),
            directions,
            kinks: 0,
            unknown: 0,
            worst: 0.0,
            gradient: GradientKind::Present,
        };
        let mut slope_seen = 0.0f64;
        let mut failures = Vec::new();
        for &(i, finding) in &findings {
            let g = analytic[i];
            match finding {
                Finding::Kink => row.kinks += 1,
                Finding::Unknown => row.unknown += 1,
                Finding::Agrees(slope) => {
                    // A number within the error bar agrees with zero as well.
                    if g != 0.0 && g.abs() <= slope.error_bar {
                        row.unknown += 1;
                    } else {
                        row.worst = row.worst.max(relative(g, slope.value, differences.atol + slope.error_bar));
                    }
                }
                Finding::Disagrees(slope) => {
                    slope_seen = slope_seen.max(slope.value.abs());
                    row.worst = row.worst.max(relative(g, slope.value, differences.atol));
                    let (input, index) = (input.clone(), index_of(i, &leaf.shape));
                    failures.push(if g.is_finite() {
                        let (analytic, numeric, error_bar) = (g, slope.value, slope.error_bar);
                        Failure::Mismatch { input, index, analytic, numeric, error_bar }
                    } else {
                        Failure::NotFinite { input, index, dtype: differences.dtype, analytic: g }
                    });
                }
            }
        }
        if gradient.is_none() {
            let detached = !failures.is_empty();
            row.gradient = if detached { GradientKind::Detached } else { GradientKind::Unused };
            failures.clear();
            if detached {
                failures.push(Failure::Detached { input: input.clone(), slope: slope_seen });
            }
        } else if largest(&analytic) <= NOISE * epsilon(differences.dtype) * overall && failures.is_empty() {
            row.gradient = GradientKind::Zero;
        }
        let compared = if directions > 0 { count } else { row.elements };
        if row.kinks as f64 > self.max_kinks * compared as f64 {
            failures.push(Failure::Kinks { input: input.clone(), kinks: row.kinks, compared });
        }
        let is_zero = row.gradient == GradientKind::Zero;
        if directions == 0 && !is_zero && row.unknown > 0 && row.unknown + row.kinks == row.elements {
            failures.push(Failure::Uncertain { input });
        }
        report.failures.extend(failures);
        report.rows.push(row);
        findings
    }

    fn one(&self, differences: &Differences, leaf: usize, i: usize, analytic: &[f64]) -> Finding {
        differences.compare(&Move { leaf, elements: &[i], signs: &[1.0] }, &[analytic[i]])
    }

    /// Compares along a random direction over some numbers; where it disagrees, over each half of them, down to single numbers.
    fn bisect(
        &self,
        differences: &Differences,
        leaf: usize,
        elements: &[usize],
        analytic: &[f64],
        seed: u64,
        findings: &mut Vec<(usize, Finding)>,
    ) {
        if findings.iter().filter(|(_, finding)| matches!(finding, Finding::Disagrees(_))).count() >= NAMED {
            return;
        }
        if let &[i] = elements {
            match self.one(differences, leaf, i, analytic) {
                Finding::Agrees(_) => {}
                finding => findings.push((i, finding)),
            }
            return;
        }
        let signs = signed(seed, elements.len());
        let here: Vec<f64> = elements.iter().map(|&i| analytic[i]).collect();
        if let Finding::Agrees(_) = differences.compare(&Move { leaf, elements, signs: &signs }, &here) {
            return;
        }
        let (left, right) = elements.split_at(elements.len() / 2);
        self.bisect(differences, leaf, left, analytic, seed.wrapping_mul(31).wrapping_add(1), findings);
        self.bisect(differences, leaf, right, analytic, seed.wrapping_mul(31).wrapping_add(2), findings);
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

fn relative(a: f64, b: f64, atol: f64) -> f64 {
    let off = (a - b).abs();
    if off <= atol { 0.0 } else { off / a.abs().max(b.abs()) }
}
