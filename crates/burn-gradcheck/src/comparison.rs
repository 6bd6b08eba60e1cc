//! One leaf's gradient beside the differences: what was found, counted, and what it says.

use std::collections::HashSet;

use burn_core::tensor::DType;

use crate::{
    GradCheck,
    failure::Failure,
    numbers::{epsilon, index_of, largest, signed},
    numeric::{Differences, Doubt, Finding, Move, Slope},
    report::{GradientKind, Row},
    subject::Leaf,
};

/// A gradient of so many ε of the largest of all may be the rounding noise of zero.
const NOISE: f64 = 16.0;

/// How many wrong numbers of a large input are named: enough to see a pattern.
pub(crate) const NAMED: usize = 64;

/// A number compared within an error bar of more than this part of it is mentioned.
const LOOSE: f64 = 0.01;

/// One leaf, its gradient, and the differences to compare it with.
pub(crate) struct Comparison<'a> {
    pub differences: &'a Differences<'a>,
    /// Of the backward pass.
    pub dtype: DType,
    pub which: usize,
    pub leaf: &'a Leaf,
    /// Zeros where no gradient arrived.
    pub analytic: Vec<f64>,
    pub arrived: bool,
    /// The largest number of all gradients.
    pub overall: f64,
}

/// What the differences found of a leaf.
pub(crate) struct Seen {
    /// By number; along directions those only that were looked at one by one.
    pub findings: Vec<(usize, Finding)>,
    pub directions: usize,
}

/// The findings of a leaf, counted.
#[derive(Default)]
pub(crate) struct Tally {
    pub kinks: usize,
    /// By the order of `Doubt::ALL`.
    pub doubts: [usize; Doubt::ALL.len()],
    pub worst: f64,
    /// The largest slope that the differences allow where they agree.
    bound: f64,
    /// The largest slope where they disagree.
    pub slope: f64,
    /// How many numbers are told from zero.
    told: usize,
    /// How many of those within a wide error bar, and the widest, beside the number.
    loose: usize,
    loosest: f64,
    pub failures: Vec<Failure>,
}

impl Comparison<'_> {
    /// Number by number, or along directions when there are many.
    pub(crate) fn look(&self, check: &GradCheck) -> Seen {
        let count = self.analytic.len();
        if count <= check.full_up_to {
            return Seen { findings: (0..count).map(|i| (i, self.one(i))).collect(), directions: 0 };
        }
        let mut seen = Seen { findings: Vec::new(), directions: 0 };
        let mut rest: Vec<usize> = (0..count).collect();
        for direction in 0..check.directions {
            seen.directions += 1;
            let before = seen.findings.len();
            self.bisect(&rest, check.seed.wrapping_add(1 + direction as u64), &mut seen.findings);
            if seen.findings[before..].iter().any(|(_, finding)| matches!(finding, Finding::Disagrees(_))) {
                break; // Named already; further directions would name them again.
            }
            // What lies on kinks is known; the other directions are for the rest.
            let known: HashSet<usize> = seen.findings[before..].iter().map(|&(i, _)| i).collect();
            rest.retain(|i| !known.contains(i));
            if rest.is_empty() {
                break;
            }
        }
        seen
    }

    fn one(&self, i: usize) -> Finding {
        self.differences.compare(&Move { leaf: self.which, elements: &[i], signs: &[1.0] }, &[self.analytic[i]])
    }

    /// Compares along a random direction over some numbers; where it disagrees, over each half of them, down to single numbers.
    fn bisect(&self, elements: &[usize], seed: u64, findings: &mut Vec<(usize, Finding)>) {
        if findings.iter().filter(|(_, finding)| matches!(finding, Finding::Disagrees(_))).count() >= NAMED {
            return;
        }
        if let &[i] = elements {
            match self.one(i) {
                Finding::Agrees(_) => {}
                finding => findings.push((i, finding)),
            }
            return;
        }
        let signs = signed(seed, elements.len());
        let here: Vec<f64> = elements.iter().map(|&i| self.analytic[i]).collect();
        if let Finding::Agrees(_) = self.differences.compare(&Move { leaf: self.which, elements, signs: &signs }, &here) {
            return;
        }
        let (left, right) = elements.split_at(elements.len() / 2);
        self.bisect(left, seed.wrapping_mul(31).wrapping_add(1), findings);
        self.bisect(right, seed.wrapping_mul(31).wrapping_add(2), findings);
    }

    pub(crate) fn tally(&self, seen: &Seen) -> Tally {
        let mut tally = Tally::default();
        for &(i, finding) in &seen.findings {
            let g = self.analytic[i];
            match finding {
                Finding::Kink => tally.kinks += 1,
                Finding::Unknown(doubt) => tally.doubts[doubt as usize] += 1,
                Finding::Agrees(slope) => self.agreed(g, slope, &mut tally),
                Finding::Disagrees(slope) => {
                    tally.slope = tally.slope.max(slope.value.abs());
                    tally.worst = tally.worst.max(relative(g, slope.value, self.differences.atol));
                    tally.failures.push(self.failure(i, slope));
                }
            }
        }
        tally
    }

    fn agreed(&self, g: f64, slope: Slope, tally: &mut Tally) {
        tally.bound = tally.bound.max(slope.value.abs() + slope.error_bar);
        // A number within the error bar agrees with zero as well.
        if g != 0.0 && g.abs() <= slope.error_bar {
            tally.doubts[Doubt::Hidden as usize] += 1;
            return;
        }
        tally.told += usize::from(g != 0.0);
        tally.worst = tally.worst.max(relative(g, slope.value, self.differences.atol + slope.error_bar));
        if g != 0.0 && slope.error_bar > (LOOSE * g.abs()).max(self.differences.negligible) {
            tally.loose += 1;
            tally.loosest = tally.loosest.max(slope.error_bar / g.abs());
        }
    }

    fn failure(&self, i: usize, slope: Slope) -> Failure {
        let (input, index) = (self.leaf.name.clone(), index_of(i, &self.leaf.shape));
        let g = self.analytic[i];
        if g.is_finite() {
            Failure::Mismatch { input, index, analytic: g, numeric: slope.value, error_bar: slope.error_bar }
        } else {
            Failure::NotFinite { input, index, dtype: self.dtype, analytic: g }
        }
    }

    /// Whether a gradient arrived, and whether it is zero as far as anyone can tell.
    pub(crate) fn kind(&self, tally: &Tally) -> GradientKind {
        let noise = NOISE * epsilon(self.dtype) * self.overall;
        let is_small = self.analytic.iter().all(|g| g.abs() <= noise) && tally.told == 0;
        match (self.arrived, tally.failures.is_empty()) {
            (false, true) => GradientKind::Unused,
            (false, false) => GradientKind::Detached,
            (true, true) if is_small => GradientKind::Zero,
            (true, _) => GradientKind::Present,
        }
    }

    /// What a reader should know: no more than was seen.
    pub(crate) fn notes(&self, row: &Row, tally: &Tally) -> Vec<String> {
        let name = &row.name;
        let mut notes = Vec::new();
        match row.gradient {
            GradientKind::Unused => {
                notes.push(format!("{name}: no gradient arrives, and no difference shows a change with it"))
            }
            GradientKind::Zero => notes.push(format!("{name}: {}", self.zero(row, tally))),
            _ => {
                for (doubt, &count) in Doubt::ALL.iter().zip(&tally.doubts).filter(|(_, count)| **count > 0) {
                    let of = row.elements;
                    notes.push(format!("{name}: {count} of {of} numbers cannot be judged: {}", doubt.reason()));
                }
            }
        }
        if tally.loose > 0 && row.gradient == GradientKind::Present {
            let (count, percent) = (tally.loose, 100.0 * tally.loosest);
            notes
                .push(format!("{name}: {count} numbers are compared within an error bar of up to {percent:.0} % of them only"));
        }
        notes
    }

    /// What is known of a gradient that may be zero.
    fn zero(&self, row: &Row, tally: &Tally) -> String {
        let size = largest(&self.analytic);
        let is = match size {
            0.0 => "its gradient is zero".to_string(),
            _ => format!("its gradient, at most {size:.1e}, is within the rounding of the largest, {:.1e}", self.overall),
        };
        let (on_kinks, judged) = (row.kinks, row.elements - row.kinks - row.unknown);
        if on_kinks > 0 && on_kinks == row.elements {
            return format!("{is}, and every number of the input lies on a kink, where no derivative exists");
        }
        let seen = match tally.bound {
            _ if row.directions > 0 => format!("the differences along {} random directions agree", row.directions),
            _ if judged == 0 => "the differences cannot tell".to_string(),
            0.0 => "the differences are zero".to_string(),
            bound => format!("the differences see no slope above {bound:.1e}"),
        };
        let kinks = if on_kinks > 0 { format!(" at the numbers that do not lie on {on_kinks} kinks") } else { String::new() };
        format!("{is}; {seen}{kinks}")
    }
}

fn relative(a: f64, b: f64, atol: f64) -> f64 {
    let off = (a - b).abs();
    if off <= atol { 0.0 } else { off / a.abs().max(b.abs()) }
}
