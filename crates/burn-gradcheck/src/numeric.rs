//! Finite differences that know how far off they may be.
//!
//! The function under test becomes a number, `φ(x) = Σ v·f(x)`, with a fixed random signed cotangent `v`, summed on the host in
//! f64. Its gradient is what the backward pass gives for `v`. Central differences with `h = ε^⅓·max(1, |x|)`, a power of two,
//! are divided by the step that was realised. What looks suspicious is done again with Ridders' extrapolation, whose table also
//! tells how far off it may be.

use std::sync::{Mutex, PoisonError};

use burn_core::tensor::{DType, Device, Tensor};
use rand::{RngExt, SeedableRng, rngs::StdRng};

use crate::subject::{Build, Gradient, Output, Outputs, Subject};

/// The function under test in one dtype, from numbers to numbers. As an object, so that the checker is compiled once.
pub(crate) trait Evaluate {
    fn dtype(&self) -> DType;
    /// The outputs: their numbers, and their dtypes.
    fn outputs(&self, x: &[Vec<f64>], how: How) -> (Vec<f64>, Vec<DType>);
    /// The gradients for a cotangent; `None` where none arrives.
    fn backward(&self, x: &[Vec<f64>], cotangent: &[f64], strided: bool) -> Vec<Option<Gradient>>;

    fn phi(&self, x: &[Vec<f64>], cotangent: &[f64]) -> Phi {
        let (values, _) = self.outputs(x, How::Plain);
        // A number without a cotangent has no part in φ, were it infinite.
        let terms = || values.iter().zip(cotangent).filter(|(_, v)| **v != 0.0).map(|(value, v)| value * v);
        Phi { value: terms().sum(), scale: terms().map(f64::abs).sum() }
    }
}

/// How the inputs of one evaluation are made.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum How {
    Plain,
    /// Lying in memory in another order.
    Strided,
    /// Recording gradients.
    Tracked,
}

/// One evaluation at a time: a device's seed belongs to the whole process.
static TURN: Mutex<()> = Mutex::new(());

/// A subject and a function of it.
pub(crate) struct Function<'a, S, F> {
    pub subject: &'a S,
    pub f: &'a F,
    pub device: &'a Device,
    pub dtype: DType,
    pub seed: u64,
}

/// φ at a point.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Phi {
    pub value: f64,
    /// Σ |v·f|: the scale of its rounding error.
    pub scale: f64,
}

impl<S: Subject, O: Outputs, F: Fn(S::Argument) -> O> Function<'_, S, F> {
    fn argument(&self, x: &[Vec<f64>], strided: bool, tracked: bool) -> S::Argument {
        let build = Build { device: self.device, dtype: self.dtype, strided, tracked };
        self.subject.build(&mut x.iter(), &build)
    }

    fn run(&self, argument: S::Argument) -> Vec<Output> {
        let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        self.device.seed(self.seed);
        let mut outputs = Vec::new();
        (self.f)(argument).each(&mut |output| outputs.push(output));
        outputs
    }
}

impl<S: Subject, O: Outputs, F: Fn(S::Argument) -> O> Evaluate for Function<'_, S, F>
where
    S::Argument: Clone,
{
    fn dtype(&self) -> DType {
        self.dtype
    }

    fn outputs(&self, x: &[Vec<f64>], how: How) -> (Vec<f64>, Vec<DType>) {
        let outputs = self.run(self.argument(x, how == How::Strided, how == How::Tracked));
        (outputs.iter().flat_map(|output| output.values.iter().copied()).collect(), outputs.iter().map(|o| o.dtype).collect())
    }

    fn backward(&self, x: &[Vec<f64>], cotangent: &[f64], strided: bool) -> Vec<Option<Gradient>> {
        let mut gradients: Vec<Option<Gradient>> = x.iter().map(|_| None).collect();
        // Outputs of one dtype are added up and go backward together, as in training. Those of another dtype do not add up,
        // but their gradients do; a backward pass consumes the graph, so the function runs anew for each dtype.
        let mut done: Vec<DType> = Vec::new();
        loop {
            let argument = self.argument(x, strided, true);
            let mut rest = cotangent;
            let mut sum: Option<Tensor<1>> = None;
            let mut dtype = None;
            for output in self.run(argument.clone()) {
                let (cotangent, later) = rest.split_at(output.values.len());
                rest = later;
                if !output.tracked || done.contains(&output.dtype) || *dtype.get_or_insert(output.dtype) != output.dtype {
                    continue;
                }
                let weighted = (output.weighted)(cotangent);
                sum = Some(match sum {
                    Some(sum) => sum + weighted,
                    None => weighted,
                });
            }
            let (Some(sum), Some(dtype)) = (sum, dtype) else { return gradients };
            done.push(dtype);
            let found = self.subject.gradients(&argument, &sum.backward());
            gradients = gradients.into_iter().zip(found).map(add).collect();
        }
    }
}

fn add((a, b): (Option<Gradient>, Option<Gradient>)) -> Option<Gradient> {
    match (a, b) {
        (Some(mut a), Some(b)) => {
            a.values.iter_mut().zip(&b.values).for_each(|(a, b)| *a += b);
            Some(a)
        }
        (a, b) => a.or(b),
    }
}

/// Signed numbers of size about one, the same for the same seed.
pub(crate) fn signed(seed: u64, count: usize) -> Vec<f64> {
    let mut random = StdRng::seed_from_u64(seed);
    (0..count)
        .map(|_| {
            let size = random.random_range(0.5..1.5);
            if random.random() { size } else { -size }
        })
        .collect()
}

/// How a dtype rounds.
pub(crate) fn epsilon(dtype: DType) -> f64 {
    dtype.finfo().expect("a float dtype").epsilon
}

/// A number as the dtype holds it.
pub(crate) fn round_to(dtype: DType, values: &[f64]) -> Vec<f64> {
    burn_core::tensor::TensorData::new(values.to_vec(), [values.len()]).convert_dtype(dtype).iter::<f64>().collect()
}

/// What the differences say of a slope.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Slope {
    pub value: f64,
    pub error_bar: f64,
}

/// What was found of one number or direction.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Finding {
    /// The backward pass agrees.
    Agrees(Slope),
    /// The slopes to both sides do not converge to each other.
    Kink,
    /// The function is not finite close enough for a difference.
    Unknown,
    /// The backward pass disagrees.
    Disagrees(Slope),
}

/// Differences of φ around a point.
pub(crate) struct Differences<'a> {
    pub phi: &'a dyn Fn(&[Vec<f64>]) -> Phi,
    pub x: &'a [Vec<f64>],
    pub dtype: DType,
    pub rtol: f64,
    pub atol: f64,
}

/// A set of numbers of one leaf, moved together: one number, or many along a random direction.
pub(crate) struct Move<'a> {
    pub leaf: usize,
    pub elements: &'a [usize],
    /// The sign and size of each element's move.
    pub signs: &'a [f64],
}

impl Differences<'_> {
    /// The largest power of two not above `ε^⅓`, times `2^-level`.
    fn step(&self, level: i32) -> f64 {
        power_of_two(epsilon(self.dtype).cbrt()) * 2f64.powi(-level)
    }

    /// φ on both sides, and the realised moves of each element to either side.
    fn sides(&self, to: &Move, h: f64) -> (Phi, Phi, Vec<(f64, f64)>) {
        let mut x = self.x.to_vec();
        let moved = |sign: f64| -> Vec<f64> {
            let target = to.elements.iter().zip(to.signs).map(|(&i, s)| {
                let x = self.x[to.leaf][i];
                x + sign * s * h * power_of_two(x.abs().max(1.0))
            });
            round_to(self.dtype, &target.collect::<Vec<_>>())
        };
        let (up, down) = (moved(1.0), moved(-1.0));
        let realised = to.elements.iter().zip(up.iter().zip(&down));
        let realised = realised.map(|(&i, (up, down))| (up - self.x[to.leaf][i], self.x[to.leaf][i] - down)).collect();
        let mut at = |values: &[f64]| {
            for (&i, value) in to.elements.iter().zip(values) {
                x[to.leaf][i] = *value;
            }
            (self.phi)(&x)
        };
        let (up, down) = (at(&up), at(&down));
        (up, down, realised)
    }

    /// The ratio of the seen change to the unit of the predicted one, at one step. Both are per unit of `h`.
    fn central(&self, to: &Move, analytic: &[f64], h: f64) -> (f64, f64, f64) {
        let (up, down, realised) = self.sides(to, h);
        let predicted: f64 = realised.iter().zip(analytic).map(|((up, down), g)| g * (up + down)).sum();
        let unit = self.unit(&realised);
        let noise = epsilon(self.dtype) * (up.scale + down.scale) / unit;
        ((up.value - down.value) / unit, predicted / unit, noise)
    }

    /// What a change is divided by: the realised step of a single number, twice `h` along a direction.
    fn unit(&self, realised: &[(f64, f64)]) -> f64 {
        match realised {
            [(up, down)] => up + down,
            many => many.iter().map(|(up, down)| (up + down).abs()).fold(0.0, f64::max),
        }
    }

    fn close(&self, analytic: f64, numeric: f64, error_bar: f64) -> bool {
        (analytic - numeric).abs() <= self.atol + self.rtol * analytic.abs().max(numeric.abs()) + error_bar
    }

    /// Compares the backward pass with the differences along one move.
    pub(crate) fn compare(&self, to: &Move, analytic: &[f64]) -> Finding {
        let (numeric, predicted, noise) = self.central(to, analytic, self.step(0));
        if self.close(predicted, numeric, noise) {
            return Finding::Agrees(Slope { value: numeric, error_bar: noise });
        }
        let (slope, predicted) = self.ridders(to, analytic);
        if self.close(predicted, slope.value, slope.error_bar) {
            return Finding::Agrees(slope);
        }
        if !slope.value.is_finite() || !slope.error_bar.is_finite() {
            return if predicted.is_nan() && numeric.is_finite() { Finding::Disagrees(slope) } else { Finding::Unknown };
        }
        if to.elements.len() == 1 && self.is_kink(to, predicted) { Finding::Kink } else { Finding::Disagrees(slope) }
    }

    /// Ridders' extrapolation of the central difference to a step of zero: value, error bar, and what the backward pass predicts.
    ///
    /// C. J. F. Ridders, Accurate computation of F'(x) and F'(x)F''(x), Advances in Engineering Software 4 (1982).
    fn ridders(&self, to: &Move, analytic: &[f64]) -> (Slope, f64) {
        const ROWS: usize = 12;
        // Start 2⁸ above the usual step in f64; f32 has less room.
        let start = if epsilon(self.dtype) < 1e-10 { -8 } else { -4 };
        let mut best = Slope { value: f64::NAN, error_bar: f64::INFINITY };
        let mut at_best = f64::NAN;
        let mut above: Vec<f64> = Vec::new();
        for row in 0..ROWS {
            let (numeric, predicted, noise) = self.central(to, analytic, self.step(start + row as i32));
            if !numeric.is_finite() {
                above.clear(); // Outside the domain: begin again with a smaller step.
                continue;
            }
            let mut here = vec![numeric];
            let mut factor = 1.0;
            for (column, &older) in above.iter().enumerate() {
                factor *= 4.0;
                let value = (here[column] * factor - older) / (factor - 1.0);
                let error_bar = (value - here[column]).abs().max((value - older).abs()).max(2.0 * noise);
                if error_bar <= best.error_bar {
                    best = Slope { value, error_bar };
                    at_best = predicted;
                }
                here.push(value);
            }
            if best.error_bar.is_infinite() && above.is_empty() {
                at_best = predicted;
                best.value = numeric;
            }
            above = here;
        }
        (best, at_best)
    }

    /// Whether the slopes to the left and to the right stay apart, at some step, by more than a smooth function's would, with
    /// the analytic slope between them.
    ///
    /// A kink at a distance shows in steps that reach over it and not in smaller ones; where rounding leaves no room for those,
    /// nothing can be said of the number.
    fn is_kink(&self, to: &Move, analytic: f64) -> bool {
        let here = (self.phi)(self.x);
        let sides: Vec<(f64, f64, f64)> = (-4..=4)
            .map(|level| {
                let (up, down, realised) = self.sides(to, self.step(level));
                let (right, left) = ((up.value - here.value) / realised[0].0, (here.value - down.value) / realised[0].1);
                (left, right, 4.0 * epsilon(self.dtype) * (up.scale + down.scale) / (realised[0].0 + realised[0].1))
            })
            .collect();
        let gap = |(left, right, _): &(f64, f64, f64)| (right - left).abs();
        // A smooth function's gap halves with the step. A gap that halves less, from one step to the next, is a kink's.
        sides.windows(2).any(|pair| {
            let [wide, narrow] = pair else { return false };
            let (left, right, noise) = *narrow;
            let stays = gap(narrow) > 0.75 * gap(wide) && gap(narrow) > 4.0 * noise + self.atol;
            let slack = noise + self.atol + self.rtol * analytic.abs() + 0.01 * gap(narrow);
            stays && analytic >= left.min(right) - slack && analytic <= left.max(right) + slack
        })
    }
}

/// The largest power of two not above a positive number.
fn power_of_two(x: f64) -> f64 {
    2f64.powi(x.log2().floor() as i32)
}

/// Where two lists first differ by more than a tolerance; NaN equals NaN.
pub(crate) fn first_difference(a: &[f64], b: &[f64], tolerance: f64) -> Option<usize> {
    a.iter().zip(b).position(|(a, b)| !((a - b).abs() <= tolerance || (a.is_nan() && b.is_nan()) || a == b))
}

/// A gradient that is zero by a law of the function (a bias before a softmax) is rounding noise of its neighbours; it is judged
/// against this part of the largest of them.
pub(crate) const OTHERS: f64 = 0.1;

/// The largest finite size.
pub(crate) fn largest(values: &[f64]) -> f64 {
    values.iter().filter(|value| value.is_finite()).fold(0.0, |largest, value| largest.max(value.abs()))
}

/// The index of a number in row-major order.
pub(crate) fn index_of(i: usize, shape: &[usize]) -> Vec<usize> {
    let mut rest = i;
    let mut index: Vec<usize> = shape.iter().rev().map(|size| (rest % size, rest /= size).0).collect();
    index.reverse();
    index
}
