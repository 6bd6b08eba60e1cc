//! The right answer at inputs as a dtype holds them, how far another may be off, and what is wrong with one that is further off.

use burn_core::tensor::DType;

use crate::{
    GradCheck,
    failure::Failure,
    function::{Evaluate, Form, How},
    numbers::{OTHERS, cotangent, epsilon, index_of, largest, signed},
    subject::{Gradient, Leaf},
};

/// What the rounding of outputs explains, as a part of what that of gradients does: where a gradient is computed from an output, as
/// tanh's is, the output's rounding is in it.
const OUTPUTS: f64 = 0.25;

/// Off by more than this part of the largest number, or by so many ε, is wrong; by less, imprecise.
const WRONG: f64 = 1.0 / 1024.0;
const WRONG_IN_EPSILONS: f64 = 16.0;

/// The right answer at some inputs, and how far another in `dtype` may be off.
pub(crate) struct Answer {
    pub dtype: DType,
    pub x: Vec<Vec<f64>>,
    pub cotangent: Vec<f64>,
    pub forms: Vec<Form>,
    pub outputs: Vec<f64>,
    pub gradients: Vec<Option<Gradient>>,
    pub gradients_allowed: Vec<Allowed>,
}

/// How far the numbers of one tensor may be off, and what that is beside.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Allowed {
    pub off: f64,
    /// The largest number.
    pub scale: f64,
}

/// How far an answer is off, in ε of the largest number of each tensor, and what is wrong with it.
#[derive(Default)]
pub(crate) struct Verdict {
    pub outputs: f64,
    pub gradients: f64,
    pub failures: Vec<Failure>,
    /// Whether some number is off by more than lost digits.
    pub is_wrong: bool,
}

impl GradCheck {
    /// What `high` says at `x`, for judging what runs in `dtype`.
    pub(crate) fn answer(&self, high: &dyn Evaluate, dtype: DType, x: Vec<Vec<f64>>) -> Answer {
        let (outputs, forms) = high.outputs(&x, How::Plain);
        let cotangent = cotangent(self.seed, dtype, &outputs);
        let gradients = high.backward(&x, &cotangent, How::Plain);
        let mut moved = vec![0.0f64; x.len()];
        for nudged in self.nudged(dtype, &x) {
            for (which, nudged) in high.backward(&nudged, &cotangent, How::Plain).iter().enumerate() {
                if let (Some(a), Some(b)) = (&gradients[which], nudged) {
                    moved[which] = moved[which].max(distance(&a.values, &b.values));
                }
            }
        }
        let overall = gradients.iter().flatten().map(|gradient| largest(&gradient.values)).fold(0.0, f64::max);
        let weighted: Vec<f64> = outputs.iter().zip(&cotangent).map(|(output, v)| output * v).collect();
        let allowed = |(which, gradient): (usize, &Option<Gradient>)| {
            let per_input = match largest(&x[which]) {
                0.0 => 0.0,
                input => OUTPUTS * largest(&weighted) / input,
            };
            let size = gradient.as_ref().map_or(0.0, |gradient| largest(&gradient.values)).max(OTHERS * overall);
            Allowed { off: self.rounding(dtype) * (size + per_input) + 4.0 * moved[which] + limits(dtype).0, scale: size }
        };
        let gradients_allowed = gradients.iter().enumerate().map(allowed).collect();
        Answer { dtype, x, cotangent, forms, outputs, gradients, gradients_allowed }
    }

    /// How far each output may be off.
    pub(crate) fn outputs_allowed(&self, high: &dyn Evaluate, answer: &Answer) -> Vec<Allowed> {
        let mut moved = vec![0.0f64; answer.forms.len()];
        for nudged in self.nudged(answer.dtype, &answer.x) {
            let (outputs, _) = high.outputs(&nudged, How::Plain);
            for (moved, range) in moved.iter_mut().zip(answer.ranges()) {
                *moved = moved.max(distance(&answer.outputs[range.clone()], &outputs[range]));
            }
        }
        let allowed = |(moved, range): (f64, core::ops::Range<usize>)| {
            let scale = largest(&answer.outputs[range]);
            Allowed { off: self.rounding(answer.dtype) * scale + 4.0 * moved + limits(answer.dtype).0, scale }
        };
        moved.into_iter().zip(answer.ranges()).map(allowed).collect()
    }

    /// Compares outputs and gradients with the right ones; `at` says whose they are.
    pub(crate) fn judge(
        &self,
        at: &str,
        answer: &Answer,
        outputs_allowed: &[Allowed],
        leaves: &[Leaf],
        (outputs, gradients): (&[f64], &[Option<Gradient>]),
        how: How,
    ) -> Verdict {
        let mut verdict = Verdict::default();
        if outputs.len() != answer.outputs.len() {
            let (expected, found) = (vec![answer.outputs.len()], vec![outputs.len()]);
            verdict.failures.push(Failure::Shape { input: format!("the outputs, {at}"), expected, found });
            verdict.is_wrong = true;
            return verdict;
        }
        for (which, range) in answer.ranges().enumerate() {
            let shape = &answer.forms[which].shape;
            let off = Off { at, what: format!("output {which}"), shape, dtype: answer.dtype, allowed: outputs_allowed[which] };
            let worst = off.look(&answer.outputs[range.clone()], &outputs[range], &mut verdict);
            verdict.outputs = verdict.outputs.max(worst);
        }
        for (which, leaf) in leaves.iter().enumerate().filter(|(which, _)| how.records(*which)) {
            match answer.gradient(which, &gradients[which], format!("{}, {at}", leaf.name)) {
                None => (),
                Some(Err(failure)) => {
                    verdict.failures.push(failure);
                    verdict.is_wrong = true;
                }
                Some(Ok([expected, given])) => {
                    let what = format!("the gradient of {}", leaf.name);
                    let allowed = answer.gradients_allowed[which];
                    let off = Off { at, what, shape: &leaf.shape, dtype: answer.dtype, allowed };
                    let worst = off.look(&expected.values, &given.values, &mut verdict);
                    verdict.gradients = verdict.gradients.max(worst);
                }
            }
        }
        verdict
    }

    /// How far rounding alone may put a number off, beside the largest.
    fn rounding(&self, dtype: DType) -> f64 {
        self.precision_factor.unwrap_or(if dtype.size() < 4 { 4.0 } else { 64.0 }) * epsilon(dtype)
    }

    /// The inputs, each number moved by a unit in its last place, for the conditioning; three draws.
    fn nudged(&self, dtype: DType, x: &[Vec<f64>]) -> impl Iterator<Item = Vec<Vec<f64>>> {
        (0..3).map(move |draw| {
            let nudge = |(which, x): (usize, &Vec<f64>)| -> Vec<f64> {
                let signs = signed(self.seed.wrapping_add(1000 * (draw + 1) + which as u64), x.len());
                x.iter().zip(signs).map(|(x, sign)| x * (1.0 + epsilon(dtype) * sign)).collect()
            };
            x.iter().enumerate().map(nudge).collect()
        })
    }
}

impl Answer {
    /// A gradient, the right one first, where its numbers can be compared; else what is wrong with it. None where none is to arrive.
    pub(crate) fn gradient<'a>(
        &'a self,
        which: usize,
        given: &'a Option<Gradient>,
        input: String,
    ) -> Option<Result<[&'a Gradient; 2], Failure>> {
        let right = self.gradients[which].as_ref()?;
        let Some(given) = given else {
            let slope = largest(&right.values);
            return (slope > 0.0).then_some(Err(Failure::Detached { input, slope }));
        };
        Some(if given.dtype != self.dtype {
            Err(Failure::DType { input, expected: self.dtype, found: given.dtype })
        } else if given.shape != right.shape {
            Err(Failure::Shape { input, expected: right.shape.clone(), found: given.shape.clone() })
        } else {
            Ok([right, given])
        })
    }

    /// Which of the numbers are each output's.
    fn ranges(&self) -> impl Iterator<Item = core::ops::Range<usize>> {
        self.forms.iter().scan(0, |start, form| {
            let range = *start..*start + form.shape.iter().product::<usize>();
            *start = range.end;
            Some(range)
        })
    }
}

/// One tensor of an answer, to be compared.
struct Off<'a> {
    at: &'a str,
    what: String,
    shape: &'a [usize],
    dtype: DType,
    allowed: Allowed,
}

impl Off<'_> {
    /// How far the numbers are off at most, in ε of the largest; failures where that is more than allowed, and where there is NaN.
    fn look(&self, expected: &[f64], given: &[f64], verdict: &mut Verdict) -> f64 {
        let index = |i: usize| index_of(i, self.shape);
        let (at, what) = (self.at.to_string(), self.what.clone());
        let finite = |i: &usize| expected[*i].is_finite() && expected[*i].abs() <= limits(self.dtype).1;
        // A NaN is told apart from a wrong number; where the right answer is infinite, an infinity is right.
        if let Some(i) = (0..given.len()).find(|i| given[*i].is_nan() || finite(i) && given[*i].is_infinite()) {
            let (given, expected) = (given[i], expected[i]);
            verdict.failures.push(Failure::NotFiniteThere { at, what, index: index(i), given, expected });
            return f64::INFINITY;
        }
        let off = |i: &usize| (given[*i] - expected[*i]).abs();
        let Some(i) = (0..given.len()).filter(finite).max_by(|a, b| off(a).total_cmp(&off(b))) else { return 0.0 };
        let (off, unit) = (off(&i), epsilon(self.dtype) * self.allowed.scale);
        let epsilons = if off == 0.0 { 0.0 } else { off / unit };
        if off > self.allowed.off {
            let (given, expected, allowed) = (given[i], expected[i], self.allowed.off / unit);
            verdict.is_wrong |= off > WRONG.max(WRONG_IN_EPSILONS * epsilon(self.dtype)) * self.allowed.scale;
            verdict.failures.push(Failure::Differs { at, what, index: index(i), given, expected, epsilons, allowed });
        }
        epsilons
    }
}

/// The largest finite distance between two lists.
fn distance(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).filter(|off| off.is_finite()).fold(0.0, f64::max)
}

/// The smallest numbers of a dtype, below which nothing is compared, and the largest.
pub(crate) fn limits(dtype: DType) -> (f64, f64) {
    dtype.finfo().map_or((0.0, f64::INFINITY), |info| (info.min_positive, info.max))
}
