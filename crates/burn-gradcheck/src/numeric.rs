//! Finite differences that know how far off they may be.
//!
//! The function under test becomes a number, `φ(x) = Σ v·f(x)`, with a fixed random signed cotangent `v`. Differences are taken
//! output by output and then summed on the host in f64, so that outputs that do not change add no rounding error. A central
//! difference at the usual step decides in most cases. What looks suspicious is done again at steps from wide to narrow, with
//! Ridders' extrapolation to a step of zero, whose table also tells how far off it may be: where its error bar grows, a smaller
//! step follows. A backward pass is accused only by differences that settled.

use burn_core::tensor::DType;

use crate::{
    numbers::{epsilon, round_to},
    step::Steps,
};

/// What the differences say of a slope.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Slope {
    pub value: f64,
    pub error_bar: f64,
}

/// What was found of one element or direction.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Finding {
    /// The backward pass agrees.
    Agrees(Slope),
    /// The slopes to both sides do not converge to each other.
    Kink,
    /// The differences cannot judge it.
    Unknown(Doubt),
    /// The backward pass disagrees.
    Disagrees(Slope),
}

/// Why differences cannot judge a slope.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Doubt {
    /// The function is not finite on both sides, however small the step.
    Edge,
    /// No step is small enough for the differences to converge before rounding hides them.
    Unsettled,
    /// The rounding of the outputs could hide the slope.
    Hidden,
    /// The backward pass is off by little more than the differences may be.
    Rough,
}

impl Doubt {
    pub(crate) const ALL: [Self; 4] = [Self::Edge, Self::Unsettled, Self::Hidden, Self::Rough];

    pub(crate) fn reason(self) -> &'static str {
        match self {
            Self::Edge => "the function is not finite on both sides of it, however small the step",
            Self::Unsettled => "the differences converge at no step: a pole, a jump or an oscillation is too near",
            Self::Hidden => "the rounding of the outputs hides slopes of that size",
            Self::Rough => "they are off by little more than the differences may be",
        }
    }
}

/// Differences of φ around a point.
pub(crate) struct Differences<'a> {
    pub outputs: &'a dyn Fn(&[Vec<f64>]) -> Vec<f64>,
    pub cotangent: &'a [f64],
    pub x: &'a [Vec<f64>],
    /// The outputs at `x`.
    pub here: &'a [f64],
    /// The steps of each leaf.
    pub steps: &'a [Steps],
    /// The dtype whose digits the outputs have.
    pub digits: DType,
    pub rtol: f64,
    pub atol: f64,
    /// An error bar that does not matter beside the other gradients.
    pub negligible: f64,
}

/// A set of elements of one leaf, moved together: one element, or many along a random direction.
pub(crate) struct Move<'a> {
    pub leaf: usize,
    pub elements: &'a [usize],
    /// The sign and size of each element's move.
    pub signs: &'a [f64],
}

/// A central difference at one step, in units of the change of the inputs.
#[derive(Clone, Copy, Debug)]
struct Difference {
    /// The step, as a multiple of the usual one.
    step: f64,
    value: f64,
    /// What the backward pass says that `value` should be.
    predicted: f64,
    /// How far rounding of the outputs that change may put `value` off.
    noise: f64,
    /// What slope the rounding of the outputs that do not change may hide.
    hidden: f64,
    /// Whether any output changed.
    changed: bool,
    /// The slopes to the left and to the right; of single elements only.
    sides: (f64, f64),
}

/// A difference extrapolated to a step of zero.
#[derive(Clone, Copy, Debug)]
struct Estimate {
    /// The narrowest step that it comes from.
    step: f64,
    slope: Slope,
    predicted: f64,
    noise: f64,
}

impl Estimate {
    /// The larger of what the differences and the backward pass say, of what is finite.
    fn size(&self) -> f64 {
        let predicted = if self.predicted.is_finite() { self.predicted.abs() } else { 0.0 };
        self.slope.value.abs().max(predicted)
    }
}

/// Everything that was seen along one move, from the widest step to the narrowest.
struct Ladder {
    /// How the dtype rounds.
    epsilon: f64,
    differences: Vec<Difference>,
    estimates: Vec<Estimate>,
    /// Whether a slope was seen, but not at the smallest step.
    ends_flat: bool,
}

/// An estimate is precise when its error bar is at most this part of it.
const PRECISE: f64 = 2e-3;

/// An estimate has settled when its error bar is at most this part of it.
const SETTLED: f64 = 0.1;

/// A slope was seen when the error bar was at most this part of it.
const SLOPE: f64 = 1e-5;

/// An error bar of so many times the rounding of the outputs is explained by rounding within the function.
const ROUNDING: f64 = 1e6;

/// An error bar that has shrunk to this part shrinks with the step: the differences converge.
const SHRUNK: f64 = 1e-3;

/// An accusation needs a difference of so many error bars.
const MARGIN: f64 = 3.0;

/// An accusation by a slope of about zero needs so many: a fast oscillation is flat as well.
const MARGIN_OF_ZERO: f64 = 100.0;

/// Columns of the extrapolation: each cancels one more even power of the step.
const COLUMNS: usize = 6;

impl Differences<'_> {
    /// Compares the backward pass with the differences along one move.
    pub(crate) fn compare(&self, to: &Move, analytic: &[f64]) -> Finding {
        let mut alive = vec![false; self.here.len()];
        for step in self.steps[to.leaf].usual(to.elements) {
            let Some(here) = self.central(to, analytic, step, &mut alive) else { continue };
            let slope = Slope { value: here.value, error_bar: here.noise };
            let estimate = Estimate { step, slope, predicted: here.predicted, noise: here.noise };
            if self.vindicates(to, &estimate) {
                return Finding::Agrees(estimate.slope);
            }
        }
        let ladder = self.ladder(to, analytic);
        match ladder.estimates.split_last() {
            Some((last, before)) if self.vindicates(to, last) && !self.hides(before, last) => Finding::Agrees(last.slope),
            _ => self.judge(to, &ladder),
        }
    }

    /// The verdict on a move that no step vindicated.
    fn judge(&self, to: &Move, ladder: &Ladder) -> Finding {
        let single = to.elements.len() == 1;
        let size = self.steps[to.leaf].size(to.elements);
        let Some((best, margin)) = ladder.best(size) else {
            return match ladder.differences.last() {
                _ if single && self.is_kink(&ladder.differences, 0.0) => Finding::Kink,
                Some(last) if last.predicted.is_nan() => {
                    Finding::Disagrees(Slope { value: last.value, error_bar: f64::INFINITY })
                }
                Some(_) => Finding::Unknown(Doubt::Unsettled),
                None => Finding::Unknown(Doubt::Edge),
            };
        };
        let near = ladder.differences.iter().filter(|difference| difference.step <= size);
        let hidden = near.map(|difference| difference.hidden).fold(f64::INFINITY, f64::min);
        let within = |error_bar: f64| self.agrees(&Estimate { slope: Slope { error_bar, ..best.slope }, ..best });
        if self.agrees(&best) {
            Finding::Agrees(best.slope)
        } else if ladder.ends_flat && best.predicted.abs() <= self.atol {
            Finding::Unknown(Doubt::Unsettled) // What is right on the step of a staircase is wrong on its whole.
        } else if single && self.is_kink(&ladder.differences, ladder.rounding(&best)) {
            Finding::Kink
        } else if within(margin * best.slope.error_bar) {
            Finding::Unknown(Doubt::Rough)
        } else if within(margin * best.slope.error_bar + hidden) {
            Finding::Unknown(Doubt::Hidden)
        } else {
            Finding::Disagrees(best.slope)
        }
    }

    fn agrees(&self, estimate: &Estimate) -> bool {
        let Estimate { slope, predicted, .. } = estimate;
        let tolerance = self.atol + self.rtol * estimate.size() + slope.error_bar;
        (predicted - slope.value).abs() <= tolerance
    }

    /// Whether the backward pass agrees with an estimate precise enough to end the search.
    fn vindicates(&self, to: &Move, estimate: &Estimate) -> bool {
        // The fault of one element is a small part of a slope along many.
        let precise = if to.elements.len() == 1 { PRECISE } else { PRECISE.min(10.0 * self.rtol) };
        self.agrees(estimate) && estimate.slope.error_bar <= (precise * estimate.size()).max(self.negligible)
    }

    /// Whether an estimate agrees with the backward pass only because its own error bar is wide: a more precise one before it accuses, and
    /// both may be of the same slope.
    fn hides(&self, before: &[Estimate], estimate: &Estimate) -> bool {
        let Slope { value, error_bar } = estimate.slope;
        before.iter().any(|before| {
            let accuses = !self
                .agrees(&Estimate { slope: Slope { error_bar: MARGIN * before.slope.error_bar, ..before.slope }, ..*before });
            let may_be_the_same = (before.slope.value - value).abs() <= before.slope.error_bar + error_bar;
            before.slope.error_bar < error_bar && accuses && may_be_the_same
        })
    }

    /// Each element's value moved by `sign · step`, as that dtype holds it.
    fn moved(&self, to: &Move, step: f64, sign: f64) -> Vec<f64> {
        let usual = &self.steps[to.leaf];
        let target = to.elements.iter().zip(to.signs).map(|(&i, s)| self.x[to.leaf][i] + sign * s * step * usual.of(i));
        round_to(self.digits, &target.collect::<Vec<_>>())
    }

    fn outputs_at(&self, to: &Move, values: &[f64]) -> Vec<f64> {
        let mut x = self.x.to_vec();
        for (&i, value) in to.elements.iter().zip(values) {
            x[to.leaf][i] = *value;
        }
        (self.outputs)(&x)
    }

    /// The central difference at one step; `None` where nothing moves or the function is not finite.
    ///
    /// `alive` are the outputs that have been seen to change: at a step too small for that they have rounding errors all the same.
    fn central(&self, to: &Move, analytic: &[f64], step: f64, alive: &mut [bool]) -> Option<Difference> {
        let (up, down) = (self.moved(to, step, 1.0), self.moved(to, step, -1.0));
        let x = |i: &usize| self.x[to.leaf][*i];
        let realised: Vec<(f64, f64)> =
            to.elements.iter().zip(up.iter().zip(&down)).map(|(i, (up, down))| (up - x(i), x(i) - down)).collect();
        // The realised step of a single element; along a direction the largest.
        let unit = match realised[..] {
            [(up, down)] => up + down,
            _ => realised.iter().map(|(up, down)| (up + down).abs()).fold(0.0, f64::max),
        };
        let (up, down) = (self.outputs_at(to, &up), self.outputs_at(to, &down));
        let (mut change, mut right, mut left) = (0.0, 0.0, 0.0);
        let (mut noisy, mut silent, mut changed) = (0.0, 0.0, false);
        for (((up, down), (here, v)), alive) in up.iter().zip(&down).zip(self.here.iter().zip(self.cotangent)).zip(alive) {
            if *v == 0.0 {
                continue; // No part in φ, were it infinite.
            }
            change += v * (up - down);
            right += v * (up - here);
            left += v * (here - down);
            let differs = up != down || up != here;
            changed |= differs;
            *alive |= differs;
            *(if *alive { &mut noisy } else { &mut silent }) += v.abs() * (up.abs() + down.abs());
        }
        let rounding = epsilon(self.digits) / unit.abs();
        let difference = Difference {
            step,
            value: change / unit,
            predicted: realised.iter().zip(analytic).map(|((up, down), g)| g * (up + down)).sum::<f64>() / unit,
            noise: rounding * noisy,
            hidden: rounding * silent,
            changed,
            sides: (left / realised[0].1, right / realised[0].0),
        };
        (unit != 0.0 && difference.value.is_finite() && difference.noise.is_finite()).then_some(difference)
    }

    /// Takes differences at ever smaller steps until the backward pass is vindicated or rounding hides what is left.
    ///
    /// The extrapolation is that of C. J. F. Ridders, Accurate computation of F'(x) and F'(x)F''(x), Advances in Engineering
    /// Software 4 (1982).
    fn ladder(&self, to: &Move, analytic: &[f64]) -> Ladder {
        let (differences, estimates) = (Vec::new(), Vec::new());
        let mut ladder = Ladder { epsilon: epsilon(self.digits), differences, estimates, ends_flat: false };
        let mut alive = vec![false; self.here.len()];
        let mut above: Vec<f64> = Vec::new();
        let mut row = 0;
        for step in self.steps[to.leaf].down(to.elements) {
            let Some(difference) = self.central(to, analytic, step, &mut alive) else {
                above.clear(); // Outside the domain: begin again with a smaller step.
                row = 0;
                continue;
            };
            let is_slope = |before: &Estimate| {
                before.slope.error_bar <= SLOPE * before.slope.value.abs()
                    && difference.noise <= 0.01 * before.slope.value.abs()
            };
            let had_slope = ladder.estimates.iter().any(is_slope);
            if had_slope && !difference.changed {
                ladder.ends_flat = true; // Below the resolution of the function, or on a step of a staircase.
                break;
            }
            ladder.differences.push(difference);
            row += 1;
            let recent = &ladder.differences[ladder.differences.len() - row.min(COLUMNS)..];
            let (columns, slope) = extrapolate(recent, &above);
            above = columns;
            let Some(slope) = slope else { continue };
            let mut estimate = Estimate { step, slope, predicted: difference.predicted, noise: difference.noise };
            let vindicated = self.vindicates(to, &estimate);
            // Luck makes an error bar small once; convergence makes it small again.
            if row > 2
                && let Some(before) = ladder.estimates.last()
            {
                estimate.slope.error_bar = slope.error_bar.max(before.slope.error_bar / 16.0);
            }
            // Where the differences themselves agree but for rounding, nothing is left to converge.
            let wider = ladder.differences[ladder.differences.len() - 2];
            if vindicated && (wider.value - difference.value).abs() <= wider.noise + difference.noise {
                estimate.slope = slope;
            }
            let is_vindicated = self.vindicates(to, &estimate) && !self.hides(&ladder.estimates, &estimate);
            ladder.estimates.push(estimate);
            let slopes = ladder.estimates.iter().map(Estimate::size).fold(self.negligible, f64::max);
            if difference.noise > slopes || is_vindicated {
                break;
            }
        }
        ladder
    }

    /// Whether the slopes to the left and to the right stay apart, at the smallest step that rounding does not hide, with the
    /// analytic slope between them. `rounding` is the error of φ that was seen.
    fn is_kink(&self, differences: &[Difference], rounding: f64) -> bool {
        let gap = |difference: &Difference| (difference.sides.1 - difference.sides.0).abs();
        let noise = |difference: &Difference| difference.noise.max(rounding / difference.step);
        let clear = |pair: &&[Difference]| 8.0 * noise(&pair[1]) <= (pair[1].predicted - pair[1].value).abs();
        let Some([wide, narrow]) = differences.windows(2).rev().find(clear) else { return false };
        let ((left, right), analytic, noise) = (narrow.sides, narrow.predicted, noise(narrow));
        // A smooth function's gap shrinks with the step; a kink's stays.
        let stays = gap(narrow) > 0.75 * gap(wide) && gap(narrow) > 16.0 * noise + self.atol;
        let slack = 4.0 * noise + self.atol + self.rtol * analytic.abs() + 0.01 * gap(narrow);
        stays && analytic >= left.min(right) - slack && analytic <= left.max(right) + slack
    }
}

impl Ladder {
    /// The estimate to believe, and how many of its error bars make an accusation: that with the smallest error bar beside its size,
    /// unless smaller steps settled on another slope. `size` is that of the element, as a step.
    fn best(&self, size: f64) -> Option<(Estimate, f64)> {
        let relative = |(estimate, _): &(Estimate, f64)| estimate.slope.error_bar / estimate.size();
        let settled: Vec<_> = (0..self.estimates.len()).filter_map(|i| self.settled(i, size)).collect();
        let mut best = *settled.iter().min_by(|a, b| relative(a).total_cmp(&relative(b)))?;
        for pair in settled.windows(2) {
            let (before, after, known) = (pair[0].0.slope, pair[1].0.slope, best.0.slope);
            let is_small = |slope: Slope| slope.error_bar <= 0.01 * slope.value.abs().max(known.value.abs());
            let apart = |a: Slope, b: Slope| (a.value - b.value).abs() > 4.0 * (a.error_bar + b.error_bar);
            let again = is_small(before) && is_small(after) && !apart(before, after);
            if pair[1].0.step < best.0.step && again && apart(after, known) {
                best = pair[1];
            }
        }
        Some(best)
    }

    /// An estimate with its error bar, if it can be believed, and how many bars make an accusation.
    ///
    /// Either its bar is small beside it. Or it is a slope of about zero, whose bar rounding alone explains, or shrank with the step;
    /// but a step wider than the element can straddle a symmetric dip and give zero: such zeros are ignored.
    fn settled(&self, i: usize, size: f64) -> Option<(Estimate, f64)> {
        let mut here = self.estimates[i];
        here.slope.error_bar = here.slope.error_bar.max(self.rounding(&here) / here.step);
        if here.slope.error_bar <= SETTLED * here.slope.value.abs() {
            return Some((here, MARGIN));
        }
        let widest = self.estimates[..i].iter().map(|estimate| estimate.slope.error_bar).fold(0.0, f64::max);
        let rounding = ROUNDING.min(1e-5 / self.epsilon);
        let is_zero = here.slope.error_bar <= (rounding * here.noise).max(SHRUNK * widest);
        (is_zero && here.step <= size).then_some((here, MARGIN_OF_ZERO))
    }

    /// The error of φ, times the unit of the step, that would explain why the smaller steps say something else.
    fn rounding(&self, estimate: &Estimate) -> f64 {
        let smaller = self.differences.iter().filter(|difference| difference.step < estimate.step);
        smaller.map(|smaller| (smaller.value - estimate.slope.value).abs() * smaller.step).fold(0.0, f64::max)
    }
}

/// One more row of Ridders' table: its columns, and the column with the smallest error bar.
///
/// `above` are the columns of the row before; column `j` has cancelled `j` even powers of the step.
fn extrapolate(recent: &[Difference], above: &[f64]) -> (Vec<f64>, Option<Slope>) {
    let here = recent[recent.len() - 1];
    let mut columns = vec![here.value];
    let mut best: Option<Slope> = None;
    for (older, wide) in above.iter().zip(recent.iter().rev().skip(1)) {
        let last = columns[columns.len() - 1];
        let factor = (wide.step / here.step).powi(2);
        let value = (last * factor - older) / (factor - 1.0);
        let error_bar = (value - last).abs().max((value - older).abs()).max(2.0 * here.noise);
        if best.is_none_or(|best| error_bar <= best.error_bar) {
            best = Some(Slope { value, error_bar });
        }
        columns.push(value);
    }
    (columns, best)
}
