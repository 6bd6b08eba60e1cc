//! The function under test as a function of numbers, forward and backward.

use std::sync::{Mutex, PoisonError};

use burn_core::tensor::{DType, Device, Tensor};

use crate::subject::{Build, Gradient, Output, Outputs, Subject};

/// The function under test in one dtype, from numbers to numbers. As an object, so that the checker is compiled once.
pub(crate) trait Evaluate {
    fn dtype(&self) -> DType;
    /// The outputs: their numbers, and their dtypes.
    fn outputs(&self, x: &[Vec<f64>], how: How) -> (Vec<f64>, Vec<DType>);
    /// The gradients for a cotangent; `None` where none arrives.
    fn backward(&self, x: &[Vec<f64>], cotangent: &[f64], strided: bool) -> Vec<Option<Gradient>>;
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
