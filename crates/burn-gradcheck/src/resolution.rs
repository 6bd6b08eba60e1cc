//! Whether a function runs in f64, or rounds to f32 inside.

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

impl GradCheck {
    /// Whether the device and the function can do f64; a note or a failure says why not.
    pub(crate) fn runs_in_f64(
        &self,
        native: DType,
        leaves: &[Leaf],
        f64: &dyn Evaluate,
        f32: &dyn Evaluate,
        report: &mut Report,
    ) -> bool {
        let x: Vec<Vec<f64>> = leaves.iter().map(|leaf| round_to(DType::F32, &leaf.values)).collect();
        // Where the function does not take the moved inputs nothing is known, so nothing is said. What is far off in f32 does not
        // compute in f32: its outputs have coarse steps of their own.
        let apart = || quietly(|| far_apart(f64, f32, &x)).unwrap_or(None);
        let rounds = || apart().is_none() && quietly(|| self.rounds_to_f32(f64, &x)).unwrap_or(false);
        if native == DType::F64 {
            if rounds() {
                report.failures.push(Failure::RoundsToF32);
            }
            return true;
        }
        if !self.device.supports_dtype(DType::F64) {
            report.notes.push(format!("{:?} has no f64: differences in f32 are good for about three digits", self.device));
            return false;
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
                return true;
            }
        };
        report.notes.push(format!(
            "the function does not run in f64, {why}; differences in f32 are good for about three digits. If it captures \
             tensors, hand them over as inputs"
        ));
        false
    }

    /// Whether the device computes exp and log in f64. Shading languages have none, and Burn does not say so.
    fn has_exp_of_f64(&self) -> bool {
        let one = Tensor::<1>::from_data([1.0], (&self.device, DType::F64));
        let near = |given: Tensor<1>, right: f64| given.into_data().iter::<f64>().all(|x| (x - right).abs() < 1e-6);
        quietly(|| near(one.clone().exp(), core::f64::consts::E) && near((one + 1.0).log(), core::f64::consts::LN_2))
            .unwrap_or(false)
    }

    /// Whether no output feels a change of the inputs that f32 cannot hold, though some feel one that it can.
    ///
    /// An ill-conditioned function differs between f32 and f64 as well, but it feels the smaller change.
    pub(crate) fn rounds_to_f32(&self, f64: &dyn Evaluate, x: &[Vec<f64>]) -> bool {
        let moved = |part: f64| {
            let moved = |(which, x): (usize, &Vec<f64>)| -> Vec<f64> {
                let signs = signed(self.seed.wrapping_add(which as u64), x.len());
                x.iter().zip(signs).map(|(x, sign)| x * (1.0 + part * sign)).collect()
            };
            f64.outputs(&x.iter().enumerate().map(moved).collect::<Vec<_>>(), How::Plain).0
        };
        // Numbers of f32 are 2⁻²⁴ to 2⁻²³ apart, so at most 1.5 · 2⁻²⁷ rounds back to where it was.
        let (here, below, above) = (moved(0.0), moved(2f64.powi(-27)), moved(2f64.powi(-22)));
        let feels = |(here, above): (&f64, &f64)| (here - above).abs() > 2f64.powi(-40) * here.abs();
        here == below && here.iter().zip(&above).any(feels)
    }
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
