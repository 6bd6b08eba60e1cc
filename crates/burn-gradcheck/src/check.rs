//! [`GradCheck`]: what is compared with what, and in which order.

use std::{
    cell::Cell,
    panic::{self, AssertUnwindSafe},
    sync::Once,
};

use burn_core::module::Module;
use burn_core::tensor::{DType, Device, FloatDType, Tensor};

use crate::{
    numeric::{Differences, Evaluate, Finding, Function, How, Move, epsilon, first_difference, round_to, signed},
    report::{Failure, GradientKind, Hint, Precision, Report, Row},
    subject::{Arguments, Both, Gradient, Inputs, Leaf, Outputs, Parameters, Subject},
};

/// A gradient checker: whether the gradients of a function or a module are right, and where and why not.
///
/// ```text
/// for a fixed random signed v:   ∂/∂xᵢ Σ v·f(x), by backward   =   (Σ v·f(x + hᵢ) − Σ v·f(x − hᵢ)) / 2hᵢ
/// ```
///
/// # Numerics
///
/// The function is run in f64, whatever the dtype of the inputs, so it must work in any dtype: take what it needs as inputs, or
/// make it on the device from them. A function that does not (it captures f32 weights, or the device has no f64) is checked in
/// f32, where differences are good for three digits; a note says so. Lower dtypes are then compared with f64 at the same
/// rounded inputs, never with differences.
///
/// # What is checked
///
/// Each number of each float input, or random directions when there are more than [`full_up_to`](Self::full_up_to), narrowed
/// down to the numbers on failure. Further: shape and dtype of each gradient; that a zero cotangent gives zero, a doubled one
/// twice the gradient, two runs the same; that strided inputs give what contiguous ones give; that a missing gradient belongs
/// to an input without influence; that not everything is zero.
///
/// # Panics
///
/// Only where the function under test does.
///
/// # Source
///
/// The cotangent and the two verdicts follow `torch.autograd.gradcheck` and `jax.test_util.check_grads`, the extrapolation
/// Ridders (1982).
///
/// ```
/// use burn::prelude::*;
/// use burn_gradcheck::GradCheck;
///
/// let device = Device::flex();
/// let x = Tensor::<2>::from_data([[0.3, -1.2], [0.7, 0.1]], &device);
/// GradCheck::new(&device).check(|x: Tensor<2>| x.tanh(), x.clone()).assert_ok();
///
/// // A gradient of the wrong sign: the value of tanh, the gradient of −tanh.
/// let wrong = |x: Tensor<2>| x.clone().tanh().detach() * 2 - x.tanh();
/// let report = GradCheck::new(&device).check(wrong, x);
/// assert!(!report.is_ok());
/// assert!(report.to_string().contains("the sign is flipped"));
/// ```
#[derive(Clone, Debug)]
pub struct GradCheck {
    device: Device,
    seed: u64,
    full_up_to: usize,
    directions: usize,
    rtol: Option<f64>,
    atol: Option<f64>,
    nondeterminism_tolerance: f64,
    max_kinks: f64,
    precision: Option<Vec<DType>>,
    precision_factor: Option<f64>,
}

impl GradCheck {
    /// A checker on `device`; autodiff is switched on by itself.
    pub fn new(device: &Device) -> Self {
        Self {
            device: device.clone().autodiff(),
            seed: 0,
            full_up_to: 2000,
            directions: 8,
            rtol: None,
            atol: None,
            nondeterminism_tolerance: 0.0,
            max_kinks: 0.1,
            precision: None,
            precision_factor: None,
        }
    }

    /// Seeds the cotangent, the directions, and the device before each evaluation. Default: 0.
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = seed;
        self
    }

    /// How many numbers of one input are compared one by one before random directions take over. Default: 2000.
    pub fn full_up_to(mut self, elements: usize) -> Self {
        self.full_up_to = elements;
        self
    }

    /// How many random directions are compared for a large input. Default: 8.
    pub fn directions(mut self, directions: usize) -> Self {
        self.directions = directions.max(1);
        self
    }

    /// Tolerance relative to the larger of both slopes, beyond the error bar. Default: 1e-6 in f64, 1e-3 in f32.
    pub fn rtol(mut self, rtol: f64) -> Self {
        self.rtol = Some(rtol);
        self
    }

    /// Absolute tolerance, beyond the error bar. Default: a tenth of `rtol` times the largest number of the gradient.
    pub fn atol(mut self, atol: f64) -> Self {
        self.atol = Some(atol);
        self
    }

    /// How far two runs of the backward pass may differ. Default: 0.
    pub fn nondeterminism_tolerance(mut self, tolerance: f64) -> Self {
        self.nondeterminism_tolerance = tolerance;
        self
    }

    /// The largest part of an input's numbers that may lie on kinks. Default: 0.1.
    pub fn max_kinks(mut self, fraction: f64) -> Self {
        self.max_kinks = fraction;
        self
    }

    /// The lower dtypes whose backward pass is compared with that of the highest. Default: f32, and that of the inputs.
    pub fn precision(mut self, dtypes: impl IntoIterator<Item = FloatDType>) -> Self {
        self.precision = Some(dtypes.into_iter().map(DType::from).collect());
        self
    }

    /// How many ε a lower dtype may be off, relative to the largest number of the gradient, beyond what the conditioning of the
    /// function explains. Default: 64 for f32, 4 for f16 and bf16.
    pub fn precision_factor(mut self, factor: f64) -> Self {
        self.precision_factor = Some(factor);
        self
    }

    /// Checks the gradients of `f` with respect to each float tensor of `inputs`.
    ///
    /// `inputs` is a tensor or a tuple of up to eight, of any ranks; integer and boolean ones pass through. The output is a
    /// tensor, a tuple or a `Vec` of tensors.
    ///
    /// ```
    /// use burn::prelude::*;
    /// use burn_gradcheck::GradCheck;
    ///
    /// let device = Device::flex();
    /// let (x, y) = (Tensor::<2>::from_data([[1.0, 2.0]], &device), Tensor::<2>::from_data([[3.0], [4.0]], &device));
    /// GradCheck::new(&device).check(|(x, y): (Tensor<2>, Tensor<2>)| x.matmul(y), (x, y)).assert_ok();
    /// ```
    pub fn check<I: Inputs, O: Outputs>(&self, f: impl Fn(I) -> O, inputs: I) -> Report {
        self.run(&Arguments(inputs), &f)
    }

    /// Checks the gradients of `f` with respect to each trainable float parameter of `module`, named by its path.
    ///
    /// A module in validation mode is checked in that mode, all its parameters.
    ///
    /// ```
    /// use burn::{nn::LinearConfig, prelude::*};
    /// use burn_gradcheck::GradCheck;
    ///
    /// let device = Device::flex();
    /// let linear = LinearConfig::new(3, 2).init(&device);
    /// let batch = Tensor::<2>::ones([4, 3], &device);
    /// // The module is handed over in the dtype of the check; bring what else it needs into the same.
    /// let report = GradCheck::new(&device)
    ///     .check_module(&linear, |linear| linear.forward(batch.clone().cast(linear.weight.val().dtype())));
    /// report.assert_ok();
    /// assert_eq!(report.rows[0].name, "weight");
    /// ```
    pub fn check_module<M: Module + Clone, O: Outputs>(&self, module: &M, f: impl Fn(&M) -> O) -> Report {
        self.run_module(Parameters::new(module.clone(), &self.device), |parameters| {
            self.run(&parameters, &|module: M| f(&module))
        })
    }

    /// Checks a module's parameters and its inputs together; both are handed over in the dtype of the check.
    ///
    /// ```
    /// use burn::{nn::LinearConfig, prelude::*};
    /// use burn_gradcheck::GradCheck;
    ///
    /// let device = Device::flex();
    /// let linear = LinearConfig::new(3, 2).init(&device);
    /// let batch = Tensor::<2>::ones([4, 3], &device);
    /// let report = GradCheck::new(&device).check_module_with(&linear, batch, |linear, batch| linear.forward(batch));
    /// report.assert_ok();
    /// assert_eq!(report.rows.iter().map(|row| &row.name[..]).collect::<Vec<_>>(), ["weight", "bias", "input 0"]);
    /// ```
    pub fn check_module_with<M: Module + Clone, I: Inputs, O: Outputs>(
        &self,
        module: &M,
        inputs: I,
        f: impl Fn(&M, I) -> O,
    ) -> Report {
        self.run_module(Parameters::new(module.clone(), &self.device), |parameters| {
            self.run(&Both(parameters, Arguments(inputs)), &|(module, inputs): (M, I)| f(&module, inputs))
        })
    }

    fn run_module<M>(&self, parameters: Parameters<M>, run: impl FnOnce(Parameters<M>) -> Report) -> Report {
        let frozen = parameters.frozen;
        let mut report = run(parameters);
        if frozen > 0 {
            report.notes.push(format!("{frozen} frozen parameters are not checked"));
        }
        report
    }

    fn run<S: Subject, O: Outputs>(&self, subject: &S, f: &impl Fn(S::Argument) -> O) -> Report
    where
        S::Argument: Clone,
    {
        let leaves = subject.leaves();
        let mut report =
            Report { dtype: DType::F64, rows: Vec::new(), precision: Vec::new(), failures: Vec::new(), notes: Vec::new() };
        let Some(native) = leaves.first().map(|leaf| leaf.dtype) else {
            report.failures.push(Failure::Vacuous);
            return report;
        };
        let function = |dtype| Function { subject, f, device: &self.device, dtype, seed: self.seed };
        let (f64, f32) = (function(DType::F64), function(DType::F32));
        let formula: &dyn Evaluate = if self.runs_in_f64(native, &leaves, &f64, &f32, &mut report.notes) { &f64 } else { &f32 };
        report.dtype = formula.dtype();
        self.formula(formula, &leaves, &mut report);
        for dtype in self.lower_dtypes(native, report.dtype) {
            let asked = self.precision.is_some() || dtype == native;
            self.precise(formula, &function(dtype), asked, &leaves, &mut report);
        }
        report
    }

    /// Whether the device and the function can do f64.
    fn runs_in_f64(
        &self,
        native: DType,
        leaves: &[Leaf],
        f64: &dyn Evaluate,
        f32: &dyn Evaluate,
        notes: &mut Vec<String>,
    ) -> bool {
        if native == DType::F64 {
            return true;
        }
        if !self.device.supports_dtype(DType::F64) {
            notes.push(format!("{:?} has no f64: differences in f32 are good for about three digits", self.device));
            return false;
        }
        let x: Vec<Vec<f64>> = leaves.iter().map(|leaf| round_to(DType::F32, &leaf.values)).collect();
        // A function that captured tensors of another dtype panics, or quietly mixes them. Its f64 outputs must be f64, and
        // must be its f32 outputs but for rounding.
        let agree = quietly(|| {
            let (high, dtypes) = f64.outputs(&x, How::Plain);
            let (low, _) = f32.outputs(&x, How::Plain);
            let size = high.iter().fold(1.0f64, |size, value| if value.is_finite() { size.max(value.abs()) } else { size });
            let near = |(a, b): (&f64, &f64)| (a - b).abs() <= 1e-3 * size || !(a.is_finite() && b.is_finite());
            dtypes.iter().all(|dtype| *dtype == DType::F64) && high.len() == low.len() && high.iter().zip(&low).all(near)
        });
        let why = match agree {
            Ok(true) => return true,
            Ok(false) => "its outputs are not f64, or not what they are in f32".to_string(),
            Err(panic) => format!("it panics: {panic}"),
        };
        notes.push(format!(
            "the function does not run in f64, {why}; differences in f32 are good for about three digits. If it captures \
             tensors, hand them over as inputs"
        ));
        false
    }

    fn lower_dtypes(&self, native: DType, formula: DType) -> Vec<DType> {
        let mut dtypes = self.precision.clone().unwrap_or_else(|| vec![DType::F32, native]);
        dtypes.dedup();
        dtypes.retain(|dtype| epsilon(*dtype) > epsilon(formula));
        dtypes
    }

    /// The first verdict: is the backward pass the derivative of the forward pass?
    fn formula(&self, function: &dyn Evaluate, leaves: &[Leaf], report: &mut Report) {
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

    /// What holds for every backward pass, whatever its formula.
    fn laws(
        &self,
        function: &dyn Evaluate,
        x: &[Vec<f64>],
        cotangent: &[f64],
        leaves: &[Leaf],
        gradients: &[Option<Gradient>],
        report: &mut Report,
    ) {
        let scaled = |factor: f64| cotangent.iter().map(|v| factor * v).collect::<Vec<_>>();
        let again = function.backward(x, cotangent, false);
        let zero = function.backward(x, &scaled(0.0), false);
        let doubled = function.backward(x, &scaled(2.0), false);
        let strided = function.backward(x, cotangent, true);
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

    /// The second verdict: does a lower dtype give the same gradient, but for rounding?
    fn precise(&self, high: &dyn Evaluate, low: &dyn Evaluate, asked: bool, leaves: &[Leaf], report: &mut Report) {
        let dtype = low.dtype();
        let mut not_run = |reason: String| {
            if asked {
                report.failures.push(Failure::NotRun { dtype, reason });
            } else {
                report.notes.push(format!("{dtype:?} was not compared: {reason}"));
            }
        };
        if !self.device.supports_dtype(dtype) {
            return not_run(format!("{:?} does not have it", self.device));
        }
        let x: Vec<Vec<f64>> = leaves.iter().map(|leaf| round_to(dtype, &leaf.values)).collect();
        let (outputs, _) = high.outputs(&x, How::Plain);
        let cotangent = round_to(dtype, &signed(self.seed, outputs.len()));
        let part = |(v, output): (f64, &f64)| if output.is_finite() { v } else { 0.0 };
        let cotangent: Vec<f64> = cotangent.into_iter().zip(&outputs).map(part).collect();
        let exact = high.backward(&x, &cotangent, false);
        let rounded = match quietly(|| low.backward(&x, &cotangent, false)) {
            Ok(rounded) => rounded,
            Err(panic) => return not_run(format!("the function panics: {panic}")),
        };
        let factor = self.precision_factor.unwrap_or(if dtype.size() < 4 { 4.0 } else { 64.0 });
        let mut worst_ratio = 0.0f64;
        // Conditioning: how far the exact gradient moves when each input moves by a unit in its last place.
        let mut moved = vec![0.0f64; leaves.len()];
        for draw in 0..3 {
            let nudge = |(which, x): (usize, &Vec<f64>)| -> Vec<f64> {
                let signs = signed(self.seed.wrapping_add(1000 * (draw + 1) + which as u64), x.len());
                x.iter().zip(signs).map(|(x, sign)| x * (1.0 + epsilon(dtype) * sign)).collect()
            };
            let nudged: Vec<Vec<f64>> = x.iter().enumerate().map(nudge).collect();
            for (which, nudged) in high.backward(&nudged, &cotangent, false).iter().enumerate() {
                if let (Some(a), Some(b)) = (&exact[which], nudged) {
                    let largest = a.values.iter().zip(&b.values).map(|(a, b)| (a - b).abs()).filter(|d| d.is_finite());
                    moved[which] = largest.fold(moved[which], f64::max);
                }
            }
        }
        let overall = exact.iter().flatten().map(|gradient| largest(&gradient.values)).fold(0.0, f64::max);
        for (which, leaf) in leaves.iter().enumerate() {
            let (Some(exact), Some(rounded)) = (&exact[which], &rounded[which]) else { continue };
            let input = leaf.name.clone();
            if rounded.dtype != dtype {
                report.failures.push(Failure::DType { input, expected: dtype, found: rounded.dtype });
                continue;
            }
            if rounded.values.len() != exact.values.len() {
                continue; // A wrong shape is reported by the first verdict.
            }
            let scale = largest(&exact.values).max(OTHERS * overall);
            let allowed = factor * epsilon(dtype) * scale + 4.0 * moved[which] + tiny(dtype);
            let ratio = |(a, b): (&f64, &f64)| (a - b).abs() / allowed;
            worst_ratio = exact.values.iter().zip(&rounded.values).map(ratio).fold(worst_ratio, f64::max);
            let off = |i: &usize| {
                let off = (exact.values[*i] - rounded.values[*i]).abs();
                exact.values[*i].is_finite() && (off > allowed || off.is_nan())
            };
            let worst = (0..exact.values.len()).filter(off).max_by(|&a, &b| {
                let off = |i: usize| (exact.values[i] - rounded.values[i]).abs();
                off(a).total_cmp(&off(b))
            });
            if let Some(i) = worst {
                let (index, low, high) = (index_of(i, &leaf.shape), rounded.values[i], exact.values[i]);
                report.failures.push(if low.is_finite() {
                    Failure::Precision { input, index, dtype, low, high, allowed }
                } else {
                    Failure::NotFinite { input, index, dtype, analytic: low }
                });
            }
        }
        report.precision.push(Precision { dtype, worst: worst_ratio });
    }
}

/// A gradient of so many ε of the largest of all is the rounding noise of zero.
const NOISE: f64 = 16.0;

/// How many wrong numbers of a large input are named: enough to see a pattern.
const NAMED: usize = 64;

/// A gradient that is zero by a law of the function (a bias before a softmax) is rounding noise of its neighbours; it is judged
/// against this part of the largest of them.
const OTHERS: f64 = 0.1;

/// The largest finite size.
fn largest(values: &[f64]) -> f64 {
    values.iter().filter(|value| value.is_finite()).fold(0.0, |largest, value| largest.max(value.abs()))
}

/// The smallest numbers of a dtype, below which nothing is compared.
fn tiny(dtype: DType) -> f64 {
    dtype.finfo().map_or(0.0, |info| info.min_positive)
}

fn relative(a: f64, b: f64, atol: f64) -> f64 {
    let off = (a - b).abs();
    if off <= atol { 0.0 } else { off / a.abs().max(b.abs()) }
}

/// The index of a number in row-major order.
fn index_of(i: usize, shape: &[usize]) -> Vec<usize> {
    let mut rest = i;
    let mut index: Vec<usize> = shape.iter().rev().map(|size| (rest % size, rest /= size).0).collect();
    index.reverse();
    index
}

/// What the mismatches look like.
fn hint(
    leaf: &Leaf,
    analytic: &[f64],
    numeric: &[Option<f64>],
    wrong: &[usize],
    others: Vec<(String, Vec<Option<f64>>)>,
) -> Hint {
    const SAME: f64 = 1e-4;
    let pairs: Vec<(f64, f64)> =
        analytic.iter().zip(numeric).filter_map(|(&analytic, numeric)| numeric.map(|numeric| (analytic, numeric))).collect();
    let size = pairs.iter().fold(0.0f64, |size, (a, n)| size.max(a.abs()).max(n.abs()));
    let same = |a: f64, b: f64| (a - b).abs() <= SAME * size;
    if wrong.iter().all(|&i| analytic[i] == 0.0) {
        return Hint::Zero;
    }
    // The factor that fits best, and whether it fits all.
    let factor = pairs.iter().map(|(a, n)| a * n).sum::<f64>() / pairs.iter().map(|(_, n)| n * n).sum::<f64>();
    if pairs.iter().all(|&(a, n)| same(a, factor * n)) && (pairs.len() > 1 || leaf.values.len() == 1) {
        return if (factor + 1.0).abs() < SAME { Hint::SignFlipped } else { Hint::Factor(factor) };
    }
    if wrong.len() == 1 {
        return Hint::OneElement;
    }
    let is = |other: &dyn Fn(usize) -> Option<f64>| {
        (0..analytic.len()).all(|i| other(i).is_none_or(|other| same(analytic[i], other)))
            && (0..analytic.len()).any(|i| other(i).is_some())
    };
    if let [.., rows, columns] = leaf.shape[..] {
        // The gradient laid out as (columns, rows) but read as (rows, columns), or transposed where it is square.
        let block = rows * columns;
        let read = |i: usize| {
            let (offset, inside) = (i / block * block, i % block);
            numeric[offset + inside % rows * columns + inside / rows]
        };
        if block > 0 && is(&read) {
            return Hint::Transposed;
        }
    }
    if let Some((name, _)) = others.iter().find(|(_, other)| is(&|i| other[i])) {
        return Hint::GradientOf(name.clone());
    }
    // Along the input: in each row of the last axis the difference is a multiple of the input.
    let width = leaf.shape.last().copied().unwrap_or(1).max(1);
    let along = |row: usize| {
        let range = row * width..(row + 1) * width;
        let known = range.filter_map(|i| numeric[i].map(|n| (leaf.values[i], analytic[i] - n)));
        let (mut xx, mut xd, mut dd) = (0.0, 0.0, 0.0);
        for (x, d) in known {
            (xx, xd, dd) = (xx + x * x, xd + x * d, dd + d * d);
        }
        dd <= SAME * SAME * size * size || xd * xd >= (1.0 - SAME) * xx * dd
    };
    let all_known = numeric.iter().all(Option::is_some);
    if width > 1 && all_known && (0..leaf.values.len() / width).all(along) {
        return Hint::AlongInput;
    }
    Hint::Term
}

thread_local! {
    static QUIET: Cell<bool> = const { Cell::new(false) };
}

/// The result of `f`, or the text of its panic, which is not printed.
///
/// The panic hook is wrapped once: this thread is quiet while `f` runs, everything else goes to the hook that was there.
fn quietly<T>(f: impl FnOnce() -> T) -> Result<T, String> {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let loud = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            if !QUIET.get() {
                loud(info);
            }
        }));
    });
    QUIET.set(true);
    let result = panic::catch_unwind(AssertUnwindSafe(f));
    QUIET.set(false);
    result.map_err(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str).or(panic.downcast_ref::<&str>().copied());
        text.and_then(|text| text.lines().next()).unwrap_or("no reason given").to_string()
    })
}

/// The negative control: checks a function whose gradient is wrong, and returns the report that says so.
///
/// ```
/// let report = burn_gradcheck::self_test(&burn::tensor::Device::flex());
/// assert!(!report.is_ok(), "a checker that passes everything would pass this");
/// ```
pub fn self_test(device: &Device) -> Report {
    let x = Tensor::<2>::from_data([[0.5, -1.5, 2.0], [1.0, 0.25, -0.75]], device);
    // The value of x², the gradient of x³: right at 0 and 2/3 only.
    let wrong = |x: Tensor<2>| {
        let cube = x.clone() * x.clone() * x.clone();
        (x.clone() * x).detach() + cube.clone() - cube.detach()
    };
    GradCheck::new(device).check(wrong, x)
}
