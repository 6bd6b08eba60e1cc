//! [`GradCheck`]: its settings, and what is checked in which order.

use std::{
    cell::Cell,
    panic::{self, AssertUnwindSafe},
    sync::Once,
};

use burn_core::module::Module;
use burn_core::tensor::{DType, Device, FloatDType, Tensor};

use crate::{
    failure::Failure,
    function::Function,
    numbers::epsilon,
    report::Report,
    step::Step,
    subject::{Arguments, Both, Inputs, Outputs, Parameters, Subject},
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
/// make it on the device from them. A function that does not (it captures f32 weights, it or a part of it rounds to f32 inside, or the
/// device has no f64) is checked in f32, where differences are good for three digits; a note says so. Lower dtypes are then compared with f64
/// at the same rounded inputs, never with differences.
///
/// The step of the differences comes from the scale of each element and from what they say themselves: while their error bar
/// grows, a smaller one follows. Where none is small enough before rounding hides the slope (a pole, a jump or an oscillation
/// too near), the element is counted as unknown and a note says that it cannot be judged: nothing is accused by differences that did not
/// converge.
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
/// Only where the function under test does, and in [`step`](Self::step). Where the checker can go on without it, in another dtype say, a
/// panic of the function is caught and not printed: for that the program's panic hook is wrapped, once.
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
    pub(crate) device: Device,
    pub(crate) seed: u64,
    pub(crate) full_up_to: usize,
    pub(crate) directions: usize,
    pub(crate) rtol: Option<f64>,
    pub(crate) atol: Option<f64>,
    pub(crate) nondeterminism_tolerance: f64,
    pub(crate) max_kinks: f64,
    pub(crate) step: Step,
    pub(crate) precision: Option<Vec<DType>>,
    pub(crate) precision_factor: Option<f64>,
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
            step: Step::Automatic,
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

    /// How far the differences move an element, at most. Default: [`Step::Automatic`], found from each element's scale.
    ///
    /// ```
    /// use burn::prelude::*;
    /// use burn_gradcheck::{GradCheck, Step};
    ///
    /// let device = Device::flex();
    /// // The function must not be asked for anything outside −1 … 1.
    /// let f = |x: Tensor<1>| {
    ///     assert!(x.clone().abs().max().into_scalar::<f64>() <= 1.0);
    ///     x.acos()
    /// };
    /// let x = Tensor::<1>::from_data([0.9995, -0.2], &device);
    /// GradCheck::new(&device).step(Step::Absolute(1e-4)).check(f, x).assert_ok();
    /// ```
    ///
    /// # Panics
    ///
    /// When a step is not positive and finite, or a list of steps stands in another.
    #[track_caller]
    pub fn step(mut self, step: Step) -> Self {
        assert!(step.is_valid(), "steps are positive and finite, and lists of them are not nested; this is {step:?}");
        self.step = step;
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
        let examined = self.resolution(native, &leaves, &f64, &f32, &mut report);
        report.dtype = examined.function.dtype();
        self.formula(examined, &leaves, &mut report);
        for dtype in self.lower_dtypes(native, report.dtype) {
            let asked = self.precision.is_some() || dtype == native;
            self.precise(examined.function, &function(dtype), asked, &leaves, &mut report);
        }
        report
    }

    pub(crate) fn lower_dtypes(&self, native: DType, formula: DType) -> Vec<DType> {
        let mut dtypes = self.precision.clone().unwrap_or_else(|| vec![DType::F32, native]);
        dtypes.dedup();
        dtypes.retain(|dtype| epsilon(*dtype) > epsilon(formula));
        dtypes
    }
}

thread_local! {
    static QUIET: Cell<bool> = const { Cell::new(false) };
}

/// The result of `f`, or the text of its panic, which is not printed.
///
/// The panic hook is wrapped once: this thread is quiet while `f` runs, everything else goes to the hook that was there.
pub(crate) fn quietly<T>(f: impl FnOnce() -> T) -> Result<T, String> {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let loud = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            if !QUIET.get() {
                loud(info);
            }
        }));
    });
    let was_quiet = QUIET.replace(true);
    let result = panic::catch_unwind(AssertUnwindSafe(f));
    QUIET.set(was_quiet);
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
