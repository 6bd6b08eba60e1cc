//! Whether a function runs in f64, or rounds to f32 inside, as a whole or in part.

use burn_core::tensor::{DType, Tensor};

use crate::{
    GradCheck,
    check::quietly,
    failure::Failure,
    function::{Evaluate, How},
    numbers::{largest, round_to, signed},
    report::Report,
    subject::Leaf,
};

/// A function in the dtype that it is examined in, and how finely it can be.
#[derive(Clone, Copy)]
pub(crate) struct Examined<'a> {
    pub function: &'a dyn Evaluate,
    /// The dtype whose digits its outputs have.
    pub digits: DType,
}

impl GradCheck {
    /// In f64, if the device and the function can do it; a note or a failure says why not.
    pub(crate) fn resolution<'a>(
        &self,
        native: DType,
        leaves: &[Leaf],
        f64: &'a dyn Evaluate,
        f32: &'a dyn Evaluate,
        report: &mut Report,
    ) -> Examined<'a> {
        let [in_f64, in_f32] = [f64, f32].map(|function| Examined { function, digits: function.dtype() });
        let x: Vec<Vec<f64>> = leaves.iter().map(|leaf| round_to(DType::F32, &leaf.values)).collect();
        // Where the function does not take the moved inputs nothing is known, so nothing is said. What is far off in f32 does not
        // compute in f32: its outputs have coarse steps of their own.
        let apart = || quietly(|| far_apart(f64, f32, &x)).unwrap_or(None);
        let rounds = || apart().is_none() && quietly(|| self.rounds_to_f32(f64, &x)).unwrap_or(false);
        if native == DType::F64 {
            if !rounds() {
                return in_f64;
            }
            report.failures.push(Failure::RoundsToF32);
            return Examined { digits: DType::F32, ..in_f64 };
        }
        if !self.device.supports_dtype(DType::F64) {
            report.notes.push(format!("{:?} has no f64: differences in f32 are good for about three digits", self.device));
            return in_f32;
        }
        // A function that captured tensors of another dtype panics, or its outputs are not f64.
        let why = match quietly(|| f64.outputs(&x, How::Plain).1) {
            Err(panic) => format!("it panics: {panic}"),
            Ok(forms) if forms.iter().any(|form| form.dtype != DType::F64) => "its outputs are not f64".to_string(),
            Ok(_) if rounds() => "it rounds to f32 inside".to_string(),
            Ok(_) if !self.has_exp_of_f64() && quietly(|| disagree(f64, f32, &x)).unwrap_or(true) => {
                "the device's exponential of f64 is wrong".to_string()
            }
            Ok(_) => {
                report.notes.extend(apart());
                return in_f64;
            }
        };
        report.notes.push(format!(
            "the function does not run in f64, {why}; differences in f32 are good for about three digits. If it captures \
             tensors, hand them over as inputs"
        ));
        in_f32
    }

    /// Whether the device computes exp and log in f64. Shading languages have none, and Burn does not say so.
    fn has_exp_of_f64(&self) -> bool {
        let one = Tensor::<1>::from_data([1.0], (&self.device, DType::F64));
        let near = |given: Tensor<1>, right: f64| given.into_data().iter::<f64>().all(|x| (x - right).abs() < 1e-6);
        quietly(|| near(one.clone().exp(), core::f64::consts::E) && near((one + 1.0).log(), core::f64::consts::LN_2))
            .unwrap_or(false)
    }

    /// Whether the outputs, or a part of what makes an output, feel no change of the inputs that f32 cannot hold, but one that it can.
    ///
    /// An ill-conditioned function differs between f32 and f64 as well, but all of it feels the smaller change.
    pub(crate) fn rounds_to_f32(&self, f64: &dyn Evaluate, x: &[Vec<f64>]) -> bool {
        let random = |(which, x): (usize, &Vec<f64>)| signed(self.seed.wrapping_add(which as u64), x.len());
        let signs: Vec<Vec<f64>> = x.iter().enumerate().map(random).collect();
        let alike: Vec<Vec<f64>> = x.iter().map(|x| vec![1.0; x.len()]).collect();
        // What a mean or a norm feels of the one it may not feel of the other.
        let here = f64.outputs(x, How::Plain).0;
        [signs, alike].iter().any(|signs| Changes::along(f64, x, signs, &here).round_to_f32())
    }
}

/// A change of the inputs, as a part of each, that f32 can hold: its numbers are 2⁻²⁴ to 2⁻²³ apart.
const ABOVE: f64 = 1.0 / (1 << 22) as f64;
/// The part of that change which f32 cannot hold: it rounds back to where it was.
const BELOW: f64 = 1.0 / 32.0;

/// Outputs where the inputs are, and where they are changed to both sides.
struct Changes<'a> {
    here: &'a [f64],
    below: [Vec<f64>; 2],
    half_below: Vec<f64>,
    /// The inputs are numbers of f32 again.
    above: [Vec<f64>; 2],
    above_and_below: [Vec<f64>; 2],
}

impl<'a> Changes<'a> {
    fn along(f64: &dyn Evaluate, x: &[Vec<f64>], signs: &[Vec<f64>], here: &'a [f64]) -> Self {
        let moved = |part: f64| -> Vec<Vec<f64>> {
            let element = |(x, sign): (&f64, &f64)| x + part * (round_to_f32(x * (1.0 + ABOVE * sign)) - x);
            x.iter().zip(signs).map(|(x, signs)| x.iter().zip(signs).map(element).collect()).collect()
        };
        let outputs = |part: f64| f64.outputs(&moved(part), How::Plain).0;
        Changes {
            here,
            below: [BELOW, -BELOW].map(outputs),
            half_below: outputs(BELOW / 2.0),
            above: [1.0, -1.0].map(outputs),
            above_and_below: [1.0 + BELOW, -1.0 + BELOW].map(outputs),
        }
    }

    fn round_to_f32(&self) -> bool {
        let feels = |(here, above): (&f64, &f64)| (here - above).abs() > 2f64.powi(-40) * here.abs();
        let is_flat = self.here == self.below[0] && self.above[0] == self.above_and_below[0];
        let is_whole = is_flat && self.here.iter().zip(&self.above[0]).any(feels);
        is_whole || (0..self.here.len()).any(|output| self.rounds_in_part(output))
    }

    /// Whether an output is a straight line within f32's resolution, is off that line a few numbers of f32 away, to both sides, and goes on
    /// there as steep as before, to one side at least: steps, one for each number of f32.
    ///
    /// A smooth function that is as straight as that over 2⁻²⁷ is nearly so over 2⁻²². Beyond a kink it is steeper, or less steep.
    fn rounds_in_part(&self, output: usize) -> bool {
        let change = |outputs: &[f64]| outputs[output] - self.here[output];
        let [up, down] = self.below.each_ref().map(|outputs| change(outputs));
        let size = self.here[output].abs() + change(&self.above[0]).abs() / ABOVE;
        let rounding = 2f64.powi(-48) * size;
        let is_straight = (up + down).abs() <= rounding && (up - 2.0 * change(&self.half_below)).abs() <= rounding;
        let is_off = |(above, sign): (&Vec<f64>, f64)| (change(above) - sign * up / BELOW).abs() > 2f64.powi(-26) * size;
        let goes_on =
            |(above, below): (&Vec<f64>, &Vec<f64>)| (below[output] - above[output] - up).abs() <= 2f64.powi(-36) * size;
        is_straight
            && self.above.iter().zip([1.0, -1.0]).all(is_off)
            && self.above.iter().zip(&self.above_and_below).any(goes_on)
    }
}

fn round_to_f32(x: f64) -> f64 {
    f64::from(x as f32)
}

/// Whether outputs in f64 are not even roughly those in f32.
fn disagree(f64: &dyn Evaluate, f32: &dyn Evaluate, x: &[Vec<f64>]) -> bool {
    let (high, low) = (f64.outputs(x, How::Plain).0, f32.outputs(x, How::Plain).0);
    let size = largest(&low);
    let agree = |(high, low): (&f64, &f64)| high == low || (high - low).abs() <= 1e-3 * size; // False for NaN.
    !high.iter().zip(&low).all(agree)
}

/// Says when the outputs in f32 are far from those in f64: the function is ill-conditioned, or something it holds is not what it
/// should be.
fn far_apart(f64: &dyn Evaluate, f32: &dyn Evaluate, x: &[Vec<f64>]) -> Option<String> {
    let high = f64.outputs(x, How::Plain).0;
    let low = f32.outputs(x, How::Plain).0;
    let off = high.iter().zip(&low).map(|(high, low)| (high - low).abs()).filter(|off| off.is_finite()).fold(0.0, f64::max);
    let size = largest(&high);
    (off > 1e-3 * size).then(|| {
        format!(
            "outputs in f32 are off by up to {off:.1e} from those in f64, which are up to {size:.1e}: the function is \
             ill-conditioned, or it captures tensors that should be inputs"
        )
    })
}
