//! [`Compare`]: the same function on several devices.

use core::fmt;

use burn_core::{
    module::Module,
    tensor::{DType, Device},
};

use crate::{
    GradCheck,
    answer::{Allowed, Answer},
    check::quietly,
    failure::Failure,
    function::{Evaluate, Function, How},
    numbers::{epsilon, round_to},
    report::{GradCheckError, Report, write_findings},
    subject::{Arguments, Both, Inputs, Leaf, Outputs, Parameters, Subject},
};

/// The same function or module, at the same numbers, on several devices: do outputs and gradients agree?
///
/// The first device is the reference. Its gradients are checked as by [`GradCheck`]; then each device, the first among them, is run in
/// f64 and f32, the dtype of the inputs, and those of [`GradCheck::precision`], and compared with the reference in f64 at the same
/// rounded inputs. Where the function does not run in f64 on the reference, that is f32.
///
/// # Numerics
///
/// A number may be off by 64 ε of the largest of its tensor (4 ε in f16 and bf16), and by what the conditioning explains: how far
/// the right answer moves with the last place of the inputs. What is further off is [`Precision`](Agreement::Precision) up to a thousandth of
/// the largest number (16 ε in f16 and bf16), and [`Wrong`](Agreement::Wrong) beyond.
///
/// # What is said and not failed
///
/// A dtype that a device lacks; an operation that it lacks, as told by its panic ("not supported", "not implemented", …); and a function that
/// draws random numbers, as each device draws others. Any other panic is a failure.
///
/// The function gets its inputs on the device of the turn: hand it tensors as inputs rather than capturing them. Fusion is compared by a
/// build with Burn's feature `fusion`.
///
/// ```
/// use burn::prelude::*;
/// use burn_gradcheck::GradCheck;
///
/// let devices = [Device::flex()]; // and Device::wgpu(DeviceKind::DefaultDevice), …
/// let x = Tensor::<2>::from_data([[0.3, -1.2], [0.7, 0.1]], &devices[0]);
/// let report = GradCheck::compare(&devices).check(|x: Tensor<2>| x.tanh().sum_dim(1), x);
/// report.assert_ok();
/// assert_eq!(report.rows.len(), 2, "f64 by differences, f32 by comparison");
/// ```
#[derive(Clone, Debug)]
pub struct Compare {
    check: GradCheck,
    devices: Vec<Device>,
    names: Vec<String>,
}

/// What a comparison of devices found. It prints as a table, followed by everything that is wrong.
#[derive(Clone, Debug)]
#[must_use = "a report says nothing until it is asked; call assert_ok() or into_result()"]
pub struct DeviceReport {
    /// The gradients of the first device beside finite differences.
    pub reference: Report,
    /// One row for each device and dtype; the first is the reference itself.
    pub rows: Vec<DeviceRow>,
    /// Everything that is wrong on a device, beside [`reference`](Self::reference), in the order found.
    pub failures: Vec<Failure>,
    /// What could not be compared, and why.
    pub notes: Vec<String>,
}

/// What was seen of one device in one dtype.
#[derive(Clone, Debug)]
pub struct DeviceRow {
    /// The device, by its place in the list that was handed over.
    pub device: usize,
    /// Its name: the backend's, with what tells it from another of the same backend.
    pub name: String,
    /// The dtype.
    pub dtype: DType,
    /// Whether it agrees with the reference; for the reference, with finite differences.
    pub agreement: Agreement,
    /// How far the outputs are off at most, in ε of the largest number of each.
    pub outputs: f64,
    /// How far the gradients are off at most, in ε of the largest number of each.
    pub gradients: f64,
}

/// How a device agrees with the reference.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Agreement {
    /// Equal within rounding.
    Ok,
    /// Not compared: the device lacks the dtype or the operation, or draws other random numbers. A note tells which.
    NotCompared,
    /// Nothing is known of the reference: its differences are too rough, or no gradient reaches what is checked.
    Unknown,
    /// Digits are lost.
    Precision,
    /// Numbers are wrong.
    Wrong,
    /// NaN, or an infinity where the right number is finite.
    NotFinite,
    /// The function panics.
    Panic,
}

impl fmt::Display for Agreement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Ok => "ok",
            Self::NotCompared => "–",
            Self::Unknown => "?",
            Self::Precision => "precision",
            Self::Wrong => "wrong",
            Self::NotFinite => "NaN",
            Self::Panic => "panic",
        })
    }
}

impl GradCheck {
    /// A comparison of devices, the first of which is the reference; autodiff is switched on by itself.
    ///
    /// # Panics
    ///
    /// Without a device.
    #[track_caller]
    pub fn compare(devices: &[Device]) -> Compare {
        let first = devices.first().expect("at least one device to compare");
        let devices: Vec<Device> = devices.iter().map(|device| device.clone().autodiff()).collect();
        Compare { check: Self::new(first), names: names(&devices), devices }
    }
}

impl Compare {
    /// Changes the settings of the check: seed, dtypes, tolerances, steps.
    ///
    /// ```
    /// use burn::{prelude::*, tensor::FloatDType};
    /// use burn_gradcheck::GradCheck;
    ///
    /// let device = Device::flex();
    /// let compare = GradCheck::compare(&[device.clone()]).set(|check| check.precision([FloatDType::F32, FloatDType::BF16]));
    /// compare.check(|x: Tensor<1>| x.exp(), Tensor::from_data([0.5, -1.0], &device)).assert_ok();
    /// ```
    pub fn set(mut self, change: impl FnOnce(GradCheck) -> GradCheck) -> Self {
        self.check = change(self.check);
        self
    }

    /// The devices by name, as in the report.
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// Compares outputs and gradients of `f`; inputs and outputs as for [`GradCheck::check`].
    ///
    /// # Panics
    ///
    /// Only where `f` does on the reference.
    pub fn check<I: Inputs, O: Outputs>(&self, f: impl Fn(I) -> O, inputs: I) -> DeviceReport {
        let reference = self.check.check(&f, inputs.clone());
        self.run(reference, |_| Arguments(inputs.clone()), &f)
    }

    /// Compares outputs of `f` and gradients of the parameters of `module`, as [`GradCheck::check_module`].
    ///
    /// # Panics
    ///
    /// Only where `f` does on the reference.
    pub fn check_module<M: Module + Clone, O: Outputs>(&self, module: &M, f: impl Fn(&M) -> O) -> DeviceReport {
        let reference = self.check.check_module(module, &f);
        self.run(reference, |device| Parameters::new(module.clone(), device), &|module: M| f(&module))
    }

    /// Compares outputs of `f` and gradients of the parameters of `module` and of its inputs, as [`GradCheck::check_module_with`].
    ///
    /// ```
    /// use burn::{nn::LinearConfig, prelude::*};
    /// use burn_gradcheck::GradCheck;
    ///
    /// let device = Device::flex();
    /// let (linear, batch) = (LinearConfig::new(3, 2).init(&device), Tensor::<2>::ones([4, 3], &device));
    /// GradCheck::compare(&[device]).check_module_with(&linear, batch, |linear, batch| linear.forward(batch)).assert_ok();
    /// ```
    ///
    /// # Panics
    ///
    /// Only where `f` does on the reference.
    pub fn check_module_with<M: Module + Clone, I: Inputs, O: Outputs>(
        &self,
        module: &M,
        inputs: I,
        f: impl Fn(&M, I) -> O,
    ) -> DeviceReport {
        let reference = self.check.check_module_with(module, inputs.clone(), &f);
        let subject = |device: &Device| Both(Parameters::new(module.clone(), device), Arguments(inputs.clone()));
        self.run(reference, subject, &|(module, inputs): (M, I)| f(&module, inputs))
    }

    fn run<S: Subject, O: Outputs>(
        &self,
        reference: Report,
        subject: impl Fn(&Device) -> S,
        f: &impl Fn(S::Argument) -> O,
    ) -> DeviceReport
    where
        S::Argument: Clone,
    {
        let first = &self.devices[0];
        let high_dtype = reference.dtype;
        let mut report = DeviceReport { reference, rows: Vec::new(), failures: Vec::new(), notes: Vec::new() };
        // What it says of lower dtypes is said in rows of their own.
        let of_lower = |failure: &&Failure| matches!(failure, Failure::Precision { .. } | Failure::NotRun { .. });
        let own: Vec<Failure> = report.reference.failures.iter().filter(|failure| !of_lower(failure)).cloned().collect();
        report.rows.push(self.row(0, high_dtype, agreement(&own, false)));
        let on_first = subject(first);
        let leaves = on_first.leaves();
        if leaves.is_empty() || report.reference.failures.contains(&Failure::NanForward) {
            report.notes.push("nothing is compared, for want of a reference".into());
            return report;
        }
        let seed = self.check.seed;
        let high = Function { subject: &on_first, f, device: first, dtype: high_dtype, seed };
        let reseeded = Function { seed: !seed, ..high };
        let reference = Reference::new(self, &high, &reseeded, &leaves);
        for (which, device) in self.devices.iter().enumerate() {
            let on_device = quietly(|| subject(device));
            for answer in reference.answers.iter().filter(|(answer, _)| which > 0 || answer.dtype != high_dtype) {
                let dtype = answer.0.dtype;
                if reference.is_random && which > 0 {
                    let name = &self.names[which];
                    report.notes.push(format!(
                        "{name} in {dtype:?} was not compared: the function draws random numbers, other ones there"
                    ));
                    report.rows.push(self.row(which, dtype, Agreement::NotCompared));
                    continue;
                }
                match &on_device {
                    Ok(subject) => {
                        self.device(which, &Function { subject, f, device, dtype, seed }, answer, &leaves, &mut report)
                    }
                    Err(reason) => self.panicked(which, dtype, reason.clone(), &mut report),
                }
            }
        }
        report
    }

    /// Compares one device in one dtype.
    fn device(
        &self,
        which: usize,
        low: &dyn Evaluate,
        (answer, allowed): &(Answer, Vec<Allowed>),
        leaves: &[Leaf],
        report: &mut DeviceReport,
    ) {
        let (device, dtype) = (&self.devices[which], answer.dtype);
        let at = format!("{} in {dtype:?}", self.names[which]);
        if !device.supports_dtype(dtype) {
            report.notes.push(format!("{} has no {dtype:?}", self.names[which]));
            report.rows.push(self.row(which, dtype, Agreement::NotCompared));
            return;
        }
        let x = &answer.x;
        let run = || (low.outputs(x, How::Plain).0, low.backward(x, &answer.cotangent, How::Plain));
        let (outputs, gradients) = match quietly(run) {
            Ok(given) => given,
            Err(reason) => return self.panicked(which, dtype, reason, report),
        };
        let verdict = self.check.judge(&at, answer, allowed, leaves, (&outputs, &gradients), How::Plain);
        let mut failures = verdict.failures;
        if failures.is_empty() && dtype == DType::F64 && quietly(|| self.check.rounds_to_f32(low, x)).unwrap_or(false) {
            failures.push(Failure::RoundsThere { at });
        }
        let row = self.row(which, dtype, agreement(&failures, verdict.is_wrong));
        report.rows.push(DeviceRow { outputs: verdict.outputs, gradients: verdict.gradients, ..row });
        report.failures.append(&mut failures);
    }

    /// Says of a panic what it is: an operation that the device lacks, or a fault.
    fn panicked(&self, which: usize, dtype: DType, reason: String, report: &mut DeviceReport) {
        let at = format!("{} in {dtype:?}", self.names[which]);
        let is_lack = LACKS.iter().any(|lack| reason.to_lowercase().contains(lack));
        report.rows.push(self.row(which, dtype, if is_lack { Agreement::NotCompared } else { Agreement::Panic }));
        if is_lack {
            report.notes.push(format!("{at} was not compared: {reason}"));
        } else {
            report.failures.push(Failure::Panics { at, reason });
        }
    }

    fn row(&self, device: usize, dtype: DType, agreement: Agreement) -> DeviceRow {
        DeviceRow { device, name: self.names[device].clone(), dtype, agreement, outputs: 0.0, gradients: 0.0 }
    }
}

/// What Burn's backends say of an operation that they do not have.
const LACKS: [&str; 4] = ["not supported", "unsupported", "not implemented", "unimplemented"];

/// The right answers, by dtype.
struct Reference {
    answers: Vec<(Answer, Vec<Allowed>)>,
    /// Whether another seed gives other outputs.
    is_random: bool,
}

impl Reference {
    fn new(compare: &Compare, high: &dyn Evaluate, reseeded: &dyn Evaluate, leaves: &[Leaf]) -> Self {
        let mut dtypes = vec![high.dtype(), DType::F32, leaves[0].dtype];
        dtypes.extend(compare.check.precision.iter().flatten());
        dtypes.retain(|dtype| epsilon(*dtype) >= epsilon(high.dtype()));
        dtypes.sort_by(|a, b| epsilon(*a).total_cmp(&epsilon(*b)));
        dtypes.dedup();
        let numbers = |dtype: DType| leaves.iter().map(|leaf| round_to(dtype, &leaf.values)).collect::<Vec<_>>();
        let answer = |dtype: DType| {
            let answer = compare.check.answer(high, dtype, numbers(dtype));
            let allowed = compare.check.outputs_allowed(high, &answer);
            (answer, allowed)
        };
        let x = numbers(high.dtype());
        let is_random = high.outputs(&x, How::Plain).0 != reseeded.outputs(&x, How::Plain).0;
        Self { answers: dtypes.into_iter().map(answer).collect(), is_random }
    }
}

/// The devices' names: the backend's, and what tells one from another of the same.
fn names(devices: &[Device]) -> Vec<String> {
    let kept = devices[0].clone().without_autodiff().autodiff().gradient_checkpointing_strategy();
    let name = |device: &Device| {
        let text = format!("{:?}", device.clone().without_autodiff());
        let mut words = text.split(|c: char| !c.is_alphanumeric()).filter(|word| !matches!(*word, "" | "Device" | "Cube"));
        let checkpointing = if device.gradient_checkpointing_strategy() == kept { "" } else { " with checkpointing" };
        format!("{}{checkpointing}", words.next().unwrap_or(&text))
    };
    let names: Vec<String> = devices.iter().map(name).collect();
    let is_shared = |name: &String| names.iter().filter(|other| *other == name).count() > 1;
    let numbered = |(at, name): (usize, &String)| if is_shared(name) { format!("{name} (device {at})") } else { name.clone() };
    names.iter().enumerate().map(numbered).collect()
}

/// The gravest of some failures. `is_wrong` where numbers are off by more than digits.
fn agreement(failures: &[Failure], is_wrong: bool) -> Agreement {
    let one = |failure: &Failure| match failure {
        Failure::NotFinite { .. } | Failure::NotFiniteThere { .. } | Failure::NanForward => Agreement::NotFinite,
        Failure::Precision { .. } | Failure::RoundsToF32 | Failure::RoundsThere { .. } => Agreement::Precision,
        Failure::Differs { .. } if !is_wrong => Agreement::Precision,
        Failure::Panics { .. } => Agreement::Panic,
        Failure::Uncertain { .. } | Failure::Vacuous => Agreement::Unknown,
        _ => Agreement::Wrong,
    };
    failures.iter().map(one).max().unwrap_or(Agreement::Ok)
}

impl DeviceReport {
    /// Whether nothing is wrong, on the reference and elsewhere.
    pub fn is_ok(&self) -> bool {
        self.reference.is_ok() && self.failures.is_empty()
    }

    /// Panics with the whole report at the caller's line when something is wrong.
    ///
    /// # Panics
    ///
    /// When there is a failure.
    #[track_caller]
    pub fn assert_ok(&self) {
        assert!(self.is_ok(), "{self}");
    }

    /// The report as a result, for `?`.
    ///
    /// # Errors
    ///
    /// The report of the reference, with the failures and notes of every device, when there is a failure.
    pub fn into_result(self) -> Result<DeviceReport, GradCheckError> {
        if self.is_ok() {
            return Ok(self);
        }
        let mut report = self.reference;
        report.failures.extend(self.failures);
        report.notes.extend(self.notes);
        Err(GradCheckError(Box::new(report)))
    }
}

impl fmt::Display for DeviceReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verdict = if self.is_ok() { "ok" } else { "FAILED" };
        let reference = &self.rows[0];
        writeln!(f, "comparison of devices: {verdict} (beside {} in {:?})", reference.name, reference.dtype)?;
        let width = self.rows.iter().map(|row| row.name.chars().count()).max().unwrap_or(0).max(6);
        writeln!(f, "{:width$}  {:>5}  {:>11}  {:>13}  agreement", "device", "dtype", "outputs / ε", "gradients / ε")?;
        for (at, row) in self.rows.iter().enumerate() {
            let dtype = format!("{:?}", row.dtype);
            let distance = |off: f64| match row.agreement {
                _ if at == 0 => "–".to_string(),
                Agreement::NotCompared | Agreement::Panic => "–".to_string(),
                _ => format!("{off:.1e}"),
            };
            let (outputs, gradients) = (distance(row.outputs), distance(row.gradients));
            let with = if at == 0 { ", by finite differences" } else { "" };
            writeln!(f, "{:width$}  {dtype:>5}  {outputs:>11}  {gradients:>13}  {}{with}", row.name, row.agreement)?;
        }
        write_findings(f, &self.failures, &self.notes)?;
        if !self.reference.is_ok() {
            write!(f, "the reference itself, {}: {}", reference.name, self.reference)?;
        }
        Ok(())
    }
}
